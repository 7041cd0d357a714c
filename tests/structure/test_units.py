"""What can be cut, and that the cuts are all of it: counted by hand, family by family."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.structure.units import Cut
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.subnet import extract
from mvp_edge_export.errors import BadInput
from tests.support.networks import FAMILIES, backbone, random_kept


def on_meta(name: str, **changes: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **changes)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@given(
    offset=st.integers(0, 5),
    width=st.integers(1, 3),
    repeat=st.integers(1, 3),
    units=st.lists(st.integers(0, 4), unique=True),
)
@settings(max_examples=25, deadline=None)
def test_a_units_indices_are_those_of_the_formula(
    offset: int, width: int, repeat: int, units: list[int]
) -> None:
    cut = Cut("t", 0, offset, width, repeat, period=20)
    loops = [
        offset + k * width + i + r * 20 for k in units for r in range(repeat) for i in range(width)
    ]
    assert sorted(cut.indices(np.array(units, np.int64)).tolist()) == sorted(loops)


@pytest.mark.parametrize(
    ("name", "first", "streams", "inner"),
    [
        ("resnet18", "layer1.stream", (64, 128, 256, 512), 8),
        ("resnet34", "layer1.stream", (64, 128, 256, 512), 16),
        ("resnet50", "stem.stream", (64, 256, 512, 1024, 2048), 32),
        ("resnet101", "stem.stream", (64, 256, 512, 1024, 2048), 66),
        ("resnet18d", "layer1.stream", (64, 128, 256, 512), 10),
        ("wide_resnet50_2", "stem.stream", (64, 256, 512, 1024, 2048), 32),
    ],
)
def test_resnet_groups(name: str, first: str, streams: tuple[int, ...], inner: int) -> None:
    model = on_meta(name)
    groups = unit_groups(model, "tied")
    assert groups[0].name == first
    assert tuple(g.size for g in groups if g.name.endswith(".stream")) == streams
    assert [g.name for g in groups[len(streams) :]] == [g.name for g in unit_groups(model, "inner")]
    assert len(groups) - len(streams) == inner
    assert len({g.name for g in groups}) == len(groups)


def test_vit_groups() -> None:
    groups = unit_groups(on_meta("deit_small_patch16_224", depth=2))
    assert [(g.name, g.kind, g.size) for g in groups[3:]] == [
        ("blocks.1.heads", "head", 6),
        ("blocks.1.head_dim", "head_dim", 64),
        ("blocks.1.nodes", "node", 1536),
    ]


def test_a_stream_is_seen_after_the_addition_and_its_relu() -> None:
    """What conv2 and the shortcut give before the ReLU is signed: no measure of importance."""
    tied = unit_groups(backbone("resnet18d").model, "tied")
    assert [p.module for p in tied[0].points] == ["act1", "layer1.0.act2", "layer1.1.act2"]
    deep = unit_groups(backbone("resnet50").model, "tied")
    assert [p.module for p in deep[1].points] == ["layer1.0.act3"]
    for name in FAMILIES:
        model = backbone(name).model
        for group in unit_groups(model):
            modules = [model.get_submodule(point.module) for point in group.points]
            expected = nn.ReLU if name.startswith("resnet") else nn.Linear
            assert all(isinstance(module, expected) for module in modules)


def basic_parameters(layers: list[int], stem: int, w: dict[str, int], classes: int) -> int:
    """A BasicBlock ResNet by hand: convolutions without bias, two parameters a normalised map."""
    total = 3 * stem * w["stem"] + 2 * w["stem"]
    into = w["stem"]
    for stage, blocks in enumerate(layers, start=1):
        out = w[f"layer{stage}"]
        for block in range(blocks):
            mid = w[f"layer{stage}.{block}.conv1"]
            total += 9 * into * mid + 2 * mid + 9 * mid * out + 2 * out
            if block == 0 and (stage > 1 or into != out or w["stem shortcut"]):
                total += into * out + 2 * out
            into = out
    return total + into * classes + classes


@pytest.mark.parametrize("policy", ["tied", "inner"])
def test_a_cut_basic_resnet_has_the_parameters_of_the_formula(policy: str) -> None:
    """A tensor that a cut forgot, or one cut twice, would change the count."""
    whole = backbone("resnet18")
    groups = {g.name: g.size for g in unit_groups(whole.model, "tied")}
    kept = random_kept(whole.model, 3, policy)
    now = {**groups, **{name: len(units) for name, units in kept.items()}}
    # The stem has 64 channels and layer1 8, so here the stem is a stream of its own.
    widths = {n.removesuffix(".stream").removesuffix(".filters"): m for n, m in now.items()}
    widths["stem shortcut"] = 1
    small = extract(whole.model, kept, policy)
    assert parameters(small) == basic_parameters([2, 1, 1, 1], 9, widths, 6)


def test_a_stem_that_adds_to_its_stage_is_tied_to_it() -> None:
    whole = on_meta("resnet18", num_classes=5)
    groups = unit_groups(whole, "tied")
    kept = {name: np.arange(m) for name, m in exact_widths(groups, 0.3).items()}
    widths = {n.removesuffix(".stream").removesuffix(".filters"): len(u) for n, u in kept.items()}
    widths |= {"stem": widths["layer1"], "stem shortcut": 0}
    small = extract(whole, kept, "tied")
    assert parameters(small) == basic_parameters([2, 2, 2, 2], 49, widths, 5)


def test_a_cut_bottleneck_resnet_has_the_parameters_of_the_formula() -> None:
    whole = backbone("resnet26d")
    kept = random_kept(whole.model, 1)
    w = {name: len(units) for name, units in kept.items()}
    first, second, stem = w["conv1.0.filters"], w["conv1.3.filters"], w["stem.stream"]
    total = 9 * (3 * first + first * second + second * stem) + 2 * (first + second + stem)
    into = stem
    for stage, blocks in enumerate([2, 1, 1, 1], start=1):
        out = w[f"layer{stage}.stream"]
        for block in range(blocks):
            one, two = (w[f"layer{stage}.{block}.conv{i}.filters"] for i in (1, 2))
            total += into * one + 9 * one * two + two * out + 2 * (one + two + out)
            total += into * out + 2 * out if block == 0 else 0
            into = out
    assert parameters(extract(whole.model, kept)) == total + into * 6 + 6


@pytest.mark.parametrize("name", ["vit", "distilled"])
def test_a_cut_vit_has_the_parameters_of_the_formula(name: str) -> None:
    whole = backbone(name)
    kept = random_kept(whole.model, 2)
    d, tokens = 24, 1 + (name == "distilled")
    total = 3 * 4 * 4 * d + d + tokens * d + (tokens + 16) * d  # patches, prefix, positions
    for block in range(2):
        heads, dim, nodes = (
            len(kept[f"blocks.{block}.{part}"]) for part in ("heads", "head_dim", "nodes")
        )
        total += 3 * (d + 1) * heads * dim + (heads * dim + 1) * d
        total += (d + 1) * nodes + (nodes + 1) * d + 4 * d
    total += 2 * d + tokens * (d + 1) * 6
    assert parameters(extract(whole.model, kept)) == total


def test_groups_of_a_pruned_model_have_the_kept_sizes() -> None:
    for name in FAMILIES:
        whole = backbone(name).model
        kept = random_kept(whole, 7)
        assert [g.size for g in unit_groups(extract(whole, kept))] == [
            len(units) for units in kept.values()
        ]


@pytest.mark.parametrize(
    ("model", "culprit"),
    [
        (
            lambda: on_meta("resnet50_gn"),
            r"channels can be removed \(those of conv1: native_group_norm",
        ),
        (lambda: on_meta("levit_128s"), r"Levit\w* cannot be pruned yet"),
        (lambda: on_meta("xcit_nano_12_p8_224"), r"Xcit cannot be pruned yet"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), r"Sequential cannot be pruned yet: .*ResNet.*ViT"),
        (lambda: on_meta("vit_tiny_patch16_224", qk_norm=True), r"blocks\.0\.attn\.q_norm"),
        (lambda: on_meta("vit_medium_patch16_rope_reg1_gap_256"), r"cannot be pruned"),
    ],
)
def test_what_cannot_be_pruned_is_named(model: Any, culprit: str) -> None:
    with pytest.raises(BadInput, match=culprit) as caught:
        unit_groups(model())
    assert "\n" not in str(caught.value)


def test_a_resnet_that_is_not_timms_is_refused() -> None:
    class ResNet(nn.Module):
        pass

    with pytest.raises(BadInput, match="ResNet cannot be pruned yet"):
        unit_groups(ResNet())


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="'thin' is unknown for resnet: choose tied or inner"):
        unit_groups(backbone("resnet18").model, "thin")


def test_no_two_groups_of_a_resnet_own_the_same_entries() -> None:
    """Each axis of each tensor belongs to at most one group."""
    for name in ("resnet18", "resnet26d", "resnet50"):
        model = backbone(name).model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        owned: dict[tuple[str, int], int] = {}
        for group in unit_groups(model, "tied"):
            for cut in group.cuts:
                key = (cut.tensor, cut.axis)
                assert key not in owned
                owned[key] = group.size
        assert all(tensors[tensor].shape[axis] == n for (tensor, axis), n in owned.items())
        whole = {(n, a) for n, t in tensors.items() for a in range(min(t.dim(), 2))}
        assert whole - owned.keys() == {
            ("fc.weight", 0),
            ("fc.bias", 0),
            ("conv1.0.weight" if name == "resnet26d" else "conv1.weight", 1),
        }
