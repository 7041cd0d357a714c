"""A depthwise network with squeeze-and-excitation, a grouped one and a ViT: killed, resumed, exported."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvp_edge.families import unit_groups
from mvp_edge.methods.catalogue import METHODS, recipe_for
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.operators import operators
from mvp_edge_export.images import Preprocess
from mvp_edge_export.running.sessions import RUNTIMES
from mvp_edge_export.server.convert import frozen, onnx_graph, save_openvino
from mvp_edge_export.server.graph import operators_of_graph, with_shapes
from mvp_edge_export.server.parity import check_parity
from tests.support.networks import digits, shaken

SIDE = 64
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv3_small_050": ("ifp", {}),
    "regnety_002": ("ifp", {}),
    "vit_small_patch14_reg4_dinov2": ("ahnp", {"depth": 2, "embed_dim": 48, "num_heads": 3}),
}
"""timm's name → the method that shrinks it while it trains, and arguments that make it small."""
STEPS, KILLED = 6, 4


@cache
def backbone(name: str) -> Backbone:
    """With drawn weights; shared, so not to be changed."""
    side = SIDE - SIDE % 14 if "patch14" in name else SIDE
    torch.manual_seed(0)
    architecture = Architecture(name, {}, NETWORKS[name][1], side)
    preprocess = Preprocess(side, (0.5,) * 3, (0.5,) * 3)
    return Backbone(
        name, architecture, shaken(architecture.build(4)), preprocess, (), "0" * 64, name
    )


@cache
def finished(name: str) -> Pruned:
    """The uninterrupted run; shared, so not to be changed."""
    return pruned(name)


def pruned(name: str, checkpoint: Path | None = None, progress: Any = None) -> Pruned:
    """A third of the units, for three digits."""
    whole, method = backbone(name), NETWORKS[name][0]
    side = whole.preprocess.size
    images = digits(count=24, size=64)
    images = type(images)(images.pixels[:, :side, :side], images.labels)
    more = {} if progress is None else {"progress": progress}
    return METHODS[method].prune(
        Problem(
            backbone=whole,
            policy=whole.family.policies[0],
            classes=3,
            train=images,
            validation=None,
            widths=exact_widths(unit_groups(whole.model), 0.34),
            recipe=recipe_for(method, whole.family, steps=STEPS),
            checkpoint=checkpoint,
            **more,
        )
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_killed_and_resumed_it_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    def kill(phase: str, done: int, total: int) -> None:
        if phase == "tuning" and done == KILLED:
            raise KeyboardInterrupt

    whole = finished(name)
    with pytest.raises(KeyboardInterrupt):
        pruned(name, tmp_path / "c.safetensors", kill)
    steps = []
    resumed = pruned(
        name,
        tmp_path / "c.safetensors",
        lambda phase, done, total: steps.append(done) if phase == "tuning" else None,
    )
    assert 1 < min(steps) <= KILLED  # it went on from its checkpoint
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key
    for group, units in whole.kept.items():
        assert np.array_equal(units, resumed.kept[group])


@pytest.mark.parametrize("name", NETWORKS)
def test_both_runtimes_compute_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    small = frozen(finished(name).model, None)
    shape = backbone(name).shape
    graph, _ = onnx_graph(small, torch.zeros(1, *shape), False)
    paths = {"onnxruntime": tmp_path / "m.onnx", "openvino": tmp_path / "m.xml"}
    paths["onnxruntime"].write_bytes(graph.SerializeToString())
    save_openvino(paths["onnxruntime"], paths["openvino"])
    # The prediction of its latency is the same before and after the export.
    ours, theirs = operators(small, shape), operators_of_graph(*with_shapes(graph))
    assert sorted(map(str, ours.to_json())) == sorted(map(str, theirs.to_json()))
    images = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    with torch.no_grad():
        reference = small(torch.from_numpy(images)).numpy()
    for runtime, path in paths.items():
        settings = {"arithmetic": "f32"} if runtime == "openvino" else {}
        session = RUNTIMES[runtime](path, threads=1, **settings)
        found = np.concatenate([session.run(images[i : i + 1]) for i in range(4)])
        parity = check_parity(  # it raises where they differ
            reference, found, session, network="pruned", setting="float32", real_images=0
        )
        assert parity.max_difference <= 1e-4 * max(1.0, float(np.abs(reference).max()))
