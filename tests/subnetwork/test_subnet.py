"""Mask and extract are two readings of the same data: they compute the same function."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.subnet import (
    SubNetwork,
    check_kept,
    compose,
    extract,
    full_coordinates,
    mask,
    resize,
)
from mvp_edge_export.errors import BadInput
from tests.support.networks import CASES, FAMILIES, backbone, random_kept

X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
VITS = ("vit", "deit", "distilled")


def outputs(model: nn.Module, *, training: bool) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = copy.deepcopy(model).train(training)(X)
    return logits


def same(a: nn.Module, b: nn.Module) -> None:
    for training in (False, True):
        expected = outputs(a, training=training)
        assert torch.isfinite(expected).all()
        # Statistics of five images divide by small deviations, which magnifies the last bits.
        rtol, atol = (1e-3, 2e-4) if training else (1e-4, 2e-5)
        torch.testing.assert_close(outputs(b, training=training), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "policy"), CASES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=3, deadline=None)
def test_mask_is_extract(name: str, policy: str, seed: int) -> None:
    model = backbone(name).model
    kept = random_kept(model, seed, policy)
    same(mask(model, kept, policy), extract(model, kept, policy))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_masks_are_no_formality(name: str) -> None:
    """The compared outputs differ from the whole network's, so equality above says something."""
    model = backbone(name).model
    removed = outputs(mask(model, random_kept(model, 5)), training=False)
    assert (removed - outputs(model, training=False)).abs().max() > 1e-3


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("fused", [True, False])
def test_a_cut_head_dim_keeps_the_softmax_temperature(name: str, fused: bool) -> None:
    """timm's fused path divides by √(new head_dim) by itself: q has to make up for it."""
    model = copy.deepcopy(backbone(name).model)
    kept = {f"blocks.{b}.head_dim": np.array([0, 2, 3]) for b in range(2)}
    small, masked = extract(model, kept), mask(model, kept)
    for network in (small, masked):
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]
    same(masked, small)
    attention: Any = small.get_submodule("blocks.0.attn")
    assert attention.scale == pytest.approx(3**-0.5)
    dim = 24 // attention.num_heads
    whole, cut = (n.get_parameter("blocks.0.attn.qkv.weight") for n in (model, small))
    rows = [head * dim + d for head in range(attention.num_heads) for d in (0, 2, 3)]
    torch.testing.assert_close(cut[: len(rows)], whole[rows] * (3 / dim) ** 0.5)
    torch.testing.assert_close(cut[len(rows) : 2 * len(rows)], whole[[24 + r for r in rows]])


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_extraction_composes(name: str, policy: str) -> None:
    """Cutting a cut network again is cutting once: of heads, dimensions and streams alike."""
    model = backbone(name).model
    outer = random_kept(model, 11, policy)
    first = extract(model, outer, policy)
    inner = random_kept(first, 12, policy)
    second = extract(first, inner, policy)
    kept = compose(outer, inner)
    at_once = extract(model, kept, policy)
    same(at_once, second)
    for (key, a), (other, b) in zip(
        at_once.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert key == other
        torch.testing.assert_close(a, b)
    same(mask(model, kept, policy), second)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_extracted_network_owns_its_tensors_and_the_model_stays(name: str) -> None:
    model = backbone(name).model
    before = {n: t.clone() for n, t in model.state_dict().items()}
    small = extract(model, random_kept(model, 4))
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.is_leaf for p in small.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_extracted_network_is_an_ordinary_module(name: str) -> None:
    """Its modules' own bookkeeping agrees with their tensors; it can be given a head and trained on."""
    small: Any = extract(backbone(name).model, random_kept(backbone(name).model, 9))
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.weight.shape == module.running_mean.shape == (module.num_features,)
    small.reset_classifier(2)
    small.train()
    small(X).sum().backward()
    assert small(X).shape == (5, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_can_be_cut_on_the_meta_device(name: str) -> None:
    """On any device the indices follow the tensors."""
    model = backbone(name).model
    widths = {n: len(units) for n, units in random_kept(model, 2).items()}
    blank = resize(copy.deepcopy(model).to("meta"), widths)
    real = resize(model, widths)
    assert all(p.is_meta for p in blank.parameters())
    assert [p.shape for p in blank.parameters()] == [p.shape for p in real.parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_full_coordinates_undo_the_slicing(name: str) -> None:
    """Laid back into the backbone, temperature taken out, every entry is where and what it was."""
    model = backbone(name).model
    kept = random_kept(model, 8)
    own = model.state_dict()
    placed = full_coordinates(model, kept, extract(model, kept).state_dict())
    assert placed.keys() == {n for n, t in own.items() if t.dim() > 0}
    for tensor, (values, index) in placed.items():
        there = own[tensor][tuple(torch.from_numpy(i) for i in np.ix_(*index))]
        torch.testing.assert_close(values, there)


def test_a_missing_group_is_whole() -> None:
    model = backbone("resnet18").model
    group = unit_groups(model)[1]
    small = extract(model, {group.name: np.array([0, 3])})
    sizes = {g.name: g.size for g in unit_groups(small)}
    assert sizes == {g.name: g.size for g in unit_groups(model)} | {group.name: 2}


@pytest.mark.parametrize(
    ("name", "units", "culprit"),
    [
        ("layer9.stream", [0], "layer9.stream"),
        ("layer2.stream", [], "layer2.stream must ascend"),
        ("layer2.stream", [3, 1], "layer2.stream must ascend"),
        ("layer2.stream", [1, 1], "layer2.stream must ascend"),
        ("layer2.stream", [0, 12], "within 0 … 11"),
        ("layer2.stream", [-1, 2], "within 0 … 11"),
    ],
)
def test_kept_indices_that_cannot_be(name: str, units: list[int], culprit: str) -> None:
    with pytest.raises(BadInput, match=culprit):
        check_kept(unit_groups(backbone().model), {name: np.array(units, np.int64)})


def test_a_subnetwork_prints_well() -> None:
    sub = SubNetwork("net", "tied", {"a": 4, "b": 10}, {"a": np.array([1, 3])})
    assert sub.widths == {"a": 2, "b": 10}
    assert str(sub).splitlines()[0] == "SubNetwork of net (tied): 12 of 14 units"
    assert "██████████\n" in str(sub)
