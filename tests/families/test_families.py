"""Every family: its smallest members are cut, counted, rebuilt and planned for."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import FAMILIES, family_of, unit_groups
from mvp_edge.pruning.importance import Meter, weight_norms
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.budget import Sizer
from mvp_edge.subnetwork.cost import cross_check, itemise
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.subnet import compose, extract, mask
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import load_profile

torch.set_num_threads(1)

SIDE = 64
MEMBERS = {
    "mobilenetv2_035": "mobile",
    "mobilenetv3_small_050": "mobile",
    "mobilenetv4_conv_small_035": "mobile",
    "tf_efficientnet_lite0": "mobile",
    "efficientnet_b0": "mobile",
    "mnasnet_small": "mobile",
    "regnetx_002": "regnet",
    "regnety_002": "regnet",
    "resnext50_32x4d": "resnet",
    "seresnet18": "resnet",
    "resnetv2_18": "resnetv2",
    "resnetv2_18d": "resnetv2",
    "ecaresnet26t": "resnet",
    "convnext_atto": "convnext",
    "convnext_tiny": "convnext",
    "convnextv2_atto": "convnext",
    "deit3_small_patch16_224": "vit",
    "vit_small_patch14_dinov2": "vit",
    "vit_small_patch14_reg4_dinov2": "vit",
    "vit_base_patch32_clip_224": "vit",
}
"""timm's name → family; convnext_tiny has its MLP on NHWC tensors, convnext_atto as 1×1 convolutions."""
SHALLOW = {"depth": 2, "embed_dim": 48, "num_heads": 3}
"""What makes a ViT small."""


def architecture(name: str) -> Architecture:
    """How a member is built: as timm has it, or two blocks of a ViT."""
    side = 56 if "patch14" in name else SIDE
    return Architecture(name, {}, SHALLOW if MEMBERS[name] == "vit" else {}, side)


CASES = [
    (name, policy)
    for name, family in MEMBERS.items()
    for one in FAMILIES
    if one.name == family
    for policy in one.policies
]


@cache
def member(name: str) -> nn.Module:
    """A network with drawn weights and statistics; shared, so not to be changed."""
    torch.manual_seed(0)
    model = architecture(name).build(5)
    with torch.no_grad():
        for name_, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name_.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name_.endswith("running_mean") or name_.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.2, 1.0)
    return model.eval()


def drawn(model: nn.Module, policy: str, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """About 60 % of the units of each group."""
    rng = np.random.default_rng(seed)
    return {
        group.name: np.sort(rng.permutation(group.size)[: max(1, group.size * 6 // 10)])
        for group in unit_groups(model, policy)
    }


def images(name: str = "resnetv2_18") -> torch.Tensor:
    side = architecture(name).input_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_masked_and_extracted_compute_the_same(name: str, policy: str) -> None:
    whole = member(name)
    kept = drawn(whole, policy)
    small = extract(whole, kept, policy)
    with torch.no_grad():
        seen = images(name)
        plain, masked, cut = whole(seen), mask(whole, kept, policy)(seen), small(seen)
    largest = float(masked.abs().max())
    assert float((masked - cut).abs().max()) <= 2e-5 * max(1.0, largest)
    assert float((masked - plain).abs().max()) > 1e-3 * largest  # something was removed
    assert family_of(small).name == MEMBERS[name]
    assert [g.size for g in unit_groups(small, policy)] == [len(units) for units in kept.values()]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_cut_network_can_be_cut_again(name: str, policy: str) -> None:
    whole = member(name)
    first = drawn(whole, policy)
    second = drawn(extract(whole, first, policy), policy, seed=1)
    twice = extract(extract(whole, first, policy), second, policy)
    once = extract(whole, compose(first, second), policy)
    for (key, a), b in zip(twice.state_dict().items(), once.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6), key


@pytest.mark.parametrize("name", MEMBERS)
def test_its_cost_is_counted_in_three_ways_and_follows_from_the_widths(name: str) -> None:
    whole = member(name)
    kept = drawn(whole, unit_groups_policy(name))
    side = architecture(name).input_size
    small = extract(whole, kept, unit_groups_policy(name))
    cross_check(small, (3, side, side))  # raises where they differ
    sizer = Sizer(whole, None, (3, side, side), load_profile("rpi4"))  # or where it does not follow
    widths = {group: len(units) for group, units in kept.items()}
    cost, _, _ = sizer.predict(widths)
    assert cost == itemise(small, (3, side, side)).cost()


def unit_groups_policy(name: str) -> str:
    (family,) = (one for one in FAMILIES if one.name == MEMBERS[name])
    return family.policies[0]


SMALLEST = {family: name for name, family in reversed(MEMBERS.items())}
"""Family → one of its smallest members."""


@pytest.mark.parametrize("name", [*SMALLEST.values(), "convnextv2_atto", "regnety_002"])
def test_rebuilt_from_its_files_it_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, policy = member(name), unit_groups_policy(name)
    kept = drawn(whole, policy)
    small = extract(whole, kept, policy)
    saved = Network(
        architecture=architecture(name),
        policy=policy,
        backbone=name,
        backbone_sha256="0" * 64,
        classes=("a", "b", "c", "d", "e"),
        preprocess=Preprocess(architecture(name).input_size, (0.5,) * 3, (0.5,) * 3),
        kept=kept,
        ranking={group.name: np.arange(group.size) for group in unit_groups(whole, policy)},
        weights=small.state_dict(),
    )
    saved.save(tmp_path)
    again = Network.load(tmp_path).module()
    with torch.no_grad():
        assert torch.equal(again(images(name)), small(images(name)))


@pytest.mark.parametrize("name", MEMBERS)
def test_every_unit_is_measured(name: str) -> None:
    model, policy = extract(member(name), {}), unit_groups_policy(name)
    groups = unit_groups(model, policy)
    norms = weight_norms(model, groups)
    with Meter(model, groups, "activation") as meter:
        model.train()(images(name).repeat(2, 1, 1, 1))
    measured = meter.importance()
    for group in groups:
        assert norms[group.name].shape == (group.size,)
        assert (norms[group.name] > 0).all(), group.name
        if group.points:
            assert measured[group.name].shape == (group.size,)


@pytest.mark.parametrize("name", MEMBERS)
def test_its_classifier_is_found(name: str) -> None:
    (head,) = heads(member(name)).values()
    assert head.out_features == 5


def test_a_grouped_convolution_is_cut_by_whole_groups() -> None:
    whole: Any = member("regnetx_002")
    conv = whole.s2.b1.conv2.conv
    width = conv.weight.shape[1]
    (group,) = (g for g in unit_groups(whole) if g.name == "s2.b1.conv1.conv.filters")
    assert (group.width, group.size) == (width, conv.groups)
    small: Any = extract(whole, {group.name: np.array([0, 2])})
    cut = small.s2.b1.conv2.conv
    assert (cut.groups, cut.out_channels, cut.weight.shape[1]) == (2, 2 * width, width)


def test_a_classifier_that_is_a_convolution_becomes_the_same_linear_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnetv2_18", num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = load_backbone(f"resnetv2_18@{tmp_path / 'w.pth'}", SIDE)
    assert ours.model.state_dict()["head.fc.weight"].shape == (4, 512)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    assert ours.with_head(7)(images()).shape == (2, 7)
