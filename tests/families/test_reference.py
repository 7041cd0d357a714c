"""An independent reference: Torch-Pruning leaves the same tensors for the same kept units."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.subnet import extract

tp = pytest.importorskip("torch_pruning")
SIDE = 64


def removed_by_torch_pruning(model: nn.Module, policy: str, kept: dict[str, Any]) -> nn.Module:
    """The network after its dependency graph has removed our units, one group after the other."""
    small = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group in unit_groups(model, policy):
            graph = tp.DependencyGraph().build_dependency(small, torch.zeros(1, 3, SIDE, SIDE))
            writer = next(cut for cut in group.cuts if cut.axis == 0)
            layer = small.get_submodule(writer.tensor.rpartition(".")[0])
            removed = np.setdiff1d(np.arange(group.size), kept[group.name])
            remove = (
                tp.prune_linear_out_channels
                if isinstance(layer, nn.Linear)
                else tp.prune_conv_out_channels
            )
            indices = writer.indices(removed).tolist()
            graph.get_pruning_group(layer, remove, idxs=indices).prune()
    return small


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("mobilenetv3_small_050", "tied"),  # depthwise, squeeze-and-excitation
        ("seresnet18", "tied"),
        ("resnet18", "inner"),
        ("convnext_tiny", "inner"),  # MLP nodes on NHWC tensors
    ],
)
def test_torch_pruning_leaves_the_same_tensors(name: str, policy: str) -> None:
    torch.manual_seed(0)
    model = Architecture(name, {}, {}, SIDE).build(5)
    rng = np.random.default_rng(0)
    kept = {
        group.name: np.sort(rng.permutation(group.size)[: group.size * 6 // 10])
        for group in unit_groups(model, policy)
    }
    ours, theirs = extract(model, kept, policy), removed_by_torch_pruning(model, policy, kept)
    found = theirs.state_dict()
    assert found.keys() == ours.state_dict().keys()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, found[key]), key
    assert sum(p.numel() for p in ours.parameters()) < sum(p.numel() for p in model.parameters())
