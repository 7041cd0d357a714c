"""Costs against formulas written here on paper, independent of the code under test."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.structure.activations import peak
from mvp_edge.subnetwork import cost
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import extract, resize
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.server.inputs import ExportOptions, TaskImages, VerifiedNetwork
from mvp_edge_export.server.write import ExportJob
from mvp_edge_export.storage import sha256_file
from mvp_edge_export.verified import Verified

SMALL = (3, 32, 32)
PROFILE = {
    "schema": 1,
    "id": "bench",
    "name": "a device for tests",
    "source": {"kind": "estimate", "note": "made up", "date": "2026-11-22"},
    "hardware": {"arch": "x86_64", "cpu": "any", "cores": 1, "ram": "8GiB"},
    "runtime": {"backends": ["onnxruntime"], "threads": 1},
    "budgets": {},
}


def on_meta(name: str, **changes: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **changes)
    return model


def cifar_resnet18(num_classes: int = 5) -> Any:
    """The CIFAR form: a 3×3 stem with stride 1, no pooling after it."""
    model: Any = on_meta("resnet18", num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False, device="meta")
    model.maxpool = nn.Identity()
    return model


def cut(model: nn.Module, keep: float, policy: str | None = None) -> nn.Module:
    return resize(model, exact_widths(unit_groups(model, policy), keep), policy)


def resnet18_on_paper(widths: Mapping[str, int], classes: int) -> tuple[int, int, int]:
    """(multiply-adds, normalisation and pooling, parameters) of a CIFAR ResNet-18 at 32 px."""
    stream = [widths[f"layer{stage}.stream"] for stage in (1, 2, 3, 4)]
    macs, beside = 9 * 3 * stream[0] * 32**2, 2 * stream[0] * 32**2
    params = 9 * 3 * stream[0] + 2 * stream[0]
    reads = stream[0]
    for stage, (writes, side) in enumerate(zip(stream, (32, 16, 8, 4), strict=True), start=1):
        for block in (0, 1):
            inner = widths[f"layer{stage}.{block}.conv1.filters"]
            weights = 9 * reads * inner + 9 * inner * writes
            channels = inner + writes
            if stage > 1 and block == 0:  # the shortcut
                weights, channels = weights + reads * writes, channels + writes
            macs += weights * side**2
            beside += 2 * channels * side**2
            params += weights + 2 * channels
            reads = writes
    macs += stream[3] * classes
    return macs, beside + stream[3] * 4**2, params + stream[3] * classes + classes


def vit_on_paper(heads: int, dim: int, nodes: int, depth: int, side: int) -> tuple[int, int]:
    """(multiply-adds, normalisation) of a DeiT-Tiny with five classes at ``side`` px."""
    patches = (side // 16) ** 2
    tokens = patches + 1
    attention = 2 * tokens**2 * heads * dim
    linear = tokens * 192 * (3 * heads * dim + heads * dim + 2 * nodes)
    macs = patches * 3 * 16 * 16 * 192 + depth * (attention + linear) + 192 * 5
    return macs, (2 * depth + 1) * 5 * tokens * 192


@pytest.mark.parametrize("keep", [1.0, 0.32, 0.1])
def test_resnet18_costs_what_the_paper_formula_says(keep: float) -> None:
    full = cifar_resnet18()
    widths = exact_widths(unit_groups(full), keep)
    model = resize(full, widths)
    macs, beside, params = resnet18_on_paper(widths, classes=5)
    measured = cost.measure(model, SMALL)
    pooling = widths["layer4.stream"] * 4**2
    assert measured.flops == macs + beside
    assert measured.flops_norm == beside - pooling
    assert measured.params == params
    assert cost.forward_macs(model, SMALL) == macs
    checks = cost.cross_check(model, SMALL)
    assert checks["fvcore"] == checks["torch_flop_counter_halved"] == checks["hand"] == macs
    assert checks["pooling_fvcore"] == checks["pooling_hand"] == pooling


@pytest.mark.parametrize(("heads", "dim", "nodes"), [(3, 64, 768), (1, 64, 77), (2, 24, 8)])
def test_vit_attention_is_counted(heads: int, dim: int, nodes: int) -> None:
    full = on_meta("deit_tiny_patch16_224", num_classes=5, depth=2, img_size=64)
    of_kind = {"head": heads, "head_dim": dim, "node": nodes}
    model = resize(full, {group.name: of_kind[group.kind] for group in unit_groups(full)})
    macs, norm = vit_on_paper(heads, dim, nodes, depth=2, side=64)
    measured = cost.measure(model, (3, 64, 64))
    assert (measured.flops, measured.flops_norm) == (macs + norm, norm)
    assert cost.cross_check(model, (3, 64, 64))["fvcore"] == macs


def test_published_figures() -> None:
    """The figures that everybody prints for the dense networks."""
    image = (3, 224, 224)
    resnet50, deit = on_meta("resnet50"), on_meta("deit_tiny_patch16_224")
    assert cost.forward_macs(resnet50, image) == 4_089_184_256  # torchvision: 4.089 G
    assert cost.itemise(resnet50, image).cost().params == 25_557_032
    # 1.08 G is what fvcore prints without a rule for attention, 1.25 G what there is.
    attention = sum(x.flops for x in cost.layers(deit, image) if x.kind == "attention")
    assert round(cost.forward_macs(deit, image) / 1e9, 2) == 1.25
    assert round((cost.itemise(deit, image).cost().flops - attention) / 1e9, 2) == 1.08
    assert cost.itemise(deit, image).cost().params == 5_717_416


def test_the_papers_training_costs() -> None:
    """Table 1 of the paper: MVP at 100 steps of 128 images costs 0.43 and 3.16 (10¹²)."""
    resnet18 = cost.forward_macs(cifar_resnet18(100), SMALL)
    resnet50 = cost.forward_macs(on_meta("resnet50"), (3, 224, 224))
    for dense, printed in ((resnet18, 0.43), (resnet50, 3.16)):
        ours = cost.paper_cost(dense, batch=128, densities=[0.1] * 100) / 1e12
        assert ours == pytest.approx(printed, abs=0.02)


@pytest.mark.parametrize(
    ("name", "changes", "side"),
    [
        ("resnet26d", {}, 64),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32, "global_pool": "avg"}, 32),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "img_size": 32}, 32),
    ],
)
def test_three_counters_agree_and_layers_sum_up(
    name: str, changes: dict[str, Any], side: int
) -> None:
    model, shape = cut(on_meta(name, num_classes=7, **changes), 0.4), (3, side, side)
    assert cost.cross_check(model, shape)["hand"] == cost.forward_macs(model, shape)
    measured, layers = cost.measure(model, shape), cost.layers(model, shape)
    assert sum(layer.flops for layer in layers) == measured.flops
    assert sum(layer.params for layer in layers) == measured.params
    assert measured == cost.itemise(model, shape).cost()


def test_layers_name_and_place_the_cost() -> None:
    by_name = {layer.name: layer for layer in cost.layers(cifar_resnet18(), SMALL)}
    first = by_name["conv1"]
    assert (first.kind, first.params, first.output_shape) == ("conv", 1728, (1, 64, 32, 32))
    assert first.flops == 1728 * 32 * 32
    assert by_name["fc"].flops == 512 * 5


def test_a_heavy_operation_without_a_rule_stops_the_count() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x[0]
            return torch.baddbmm(rows, rows, rows)

    with pytest.raises(BadInput, match=r"Odd cannot be counted: no rule for aten::baddbmm \(1 ×\)"):
        cost.measure(Odd(), SMALL)


def test_counts_that_differ_are_refused() -> None:
    """A product of two activations: fvcore and torch see it, the hand formulas do not."""

    class Gram(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.transpose(2, 3)

    with pytest.raises(BadInput, match=r"fvcore 98,304, .* 98,304, hand 0,"):
        cost.cross_check(Gram(), SMALL)


def test_counting_is_quiet_and_leaves_the_network_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=2).train()
    model.norm.eval()
    calls: list[str] = []
    model.patch_embed.register_forward_hook(lambda *_: calls.append("seen"))
    before = {name: (tensor.clone(), tensor) for name, tensor in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        cost.measure(model, SMALL)
        cost.cross_check(model, SMALL)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not calls
    assert [module.training for module in model.modules()] == training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1].data_ptr()


def test_device_and_precision_do_not_change_the_cost() -> None:
    meta = cut(cifar_resnet18(), 0.1)
    real = meta.to_empty(device="cpu").to(torch.bfloat16).to(memory_format=torch.channels_last)
    assert cost.measure(real, SMALL) == cost.measure(cut(cifar_resnet18(), 0.1), SMALL)


class Residual(nn.Module):
    """Two 3×3 convolutions of eight channels around a shortcut, then a wide 1×1 convolution."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(8, 10, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x), inplace=self.in_place)
        y = self.conv(x)
        y = y.add_(x) if self.in_place else y + x
        out: torch.Tensor = self.wide(y)
        return out.flatten(1).view(-1)


@pytest.mark.parametrize("batch", [1, 3])
def test_peak_activations_of_a_residual_by_hand(batch: int) -> None:
    """On 8×8 pixels: input 192 numbers, eight channels 512, ten channels 640.

    In place:      stem 192+512, relu 512, conv 512+512, add 1024, wide 512+640 ← the peak
    Out of place:  stem 192+512, relu 512+512, conv 1024, add 3·512 ← the peak, wide 1152
    """
    in_place = cost.itemise(Residual(in_place=True), (3, 8, 8), batch).cost()
    copying = cost.itemise(Residual(in_place=False), (3, 8, 8), batch).cost()
    assert in_place.activation_bytes == batch * 4 * (512 + 640)
    assert copying.activation_bytes == batch * 4 * 3 * 512
    assert in_place.weight_bytes == 4 * (9 * 3 * 8 + 9 * 8 * 8 + 8 * 10)
    assert in_place.flops == 64 * (9 * 3 * 8 + 9 * 8 * 8 + 8 * 10)  # of one image


def test_batch_normalisation_has_an_output_of_its_own() -> None:
    """On 8×8 pixels: conv 192+512, normalisation 512+512 ← the peak, ReLU in place."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    found = cost.itemise(stem, (3, 8, 8)).cost()
    assert found.activation_bytes == 4 * (512 + 512)
    assert found.weight_bytes == 4 * (9 * 3 * 8 + 8 + 4 * 8)


def test_peak_activations_of_an_attention_by_hand() -> None:
    """ViT, 5 tokens of 192, 3 heads: at the softmax live x, qkv, the scores and their softmax.

    In the MLP it is x with 768 nodes before and after GELU: with five tokens that is more.
    """
    model = on_meta("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=2)
    attention, mlp = 5 * 192 + 3 * 5 * 192 + 2 * 3 * 5 * 5, 5 * 192 + 2 * 5 * 768
    assert cost.itemise(model, SMALL).cost().activation_bytes == 4 * max(attention, mlp)
    nodes = {group.name: 8 for group in unit_groups(model) if group.kind == "node"}
    thin = cost.itemise(resize(model, nodes), SMALL).cost()
    qk_scaled = 2 * 5 * 192 + 3 * 5 * 5  # q·s, k·s and the scores beside x and qkv
    assert thin.activation_bytes == 4 * (5 * 192 + 3 * 5 * 192 + qk_scaled)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 9), st.integers(0, 9)).map(
            lambda t: (t[0], (min(t[1:]), max(t[1:])))
        )
    )
)
def test_peak_is_the_fullest_step(tensors: list[tuple[int, tuple[int, int]]]) -> None:
    steps = [sum(n for n, (a, b) in tensors if a <= step <= b) for step in range(10)]
    assert peak([n for n, _ in tensors], [life for _, life in tensors]) == max(steps)


EXPORTED = {
    "very thin ResNet-10-T": ("resnet10t", {}, 0.04, 32),
    "ViT of two blocks": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32}, 0.1, 32),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_the_predicted_file_is_a_little_larger_than_the_real_one(case: str, tmp_path: Path) -> None:
    name, changes, keep, side = EXPORTED[case]
    full = timm.create_model(name, num_classes=5, **changes)
    kept = {
        group: np.sort(np.random.default_rng(0).permutation(size)[:width])
        for (group, width), size in zip(
            exact_widths(unit_groups(full), keep).items(),
            (group.size for group in unit_groups(full)),
            strict=True,
        )
    }
    model = extract(full, kept)
    for tensor in model.state_dict().values():  # zeros would be optimised away, trained values not
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.02)
    weights = tmp_path / "weights"
    weights.write_bytes(b"stands for them")
    measured = cost.measure(model, (3, side, side))
    device = DeviceProfile.model_validate(PROFILE)
    verified = Verified(
        weights_sha256=sha256_file(weights),
        cost=measured,
        cost_baseline=measured,
        accuracy=0.2,
        images=1,
        verdicts=(),
        profile=device.id,
        profile_sha256=device.sha256,
    )
    network = VerifiedNetwork(
        module=model.eval(),
        verified=verified,
        weights=weights,
        labels=[f"class {i}" for i in range(5)],
        preprocess=Preprocess(side, (0.5,) * 3, (0.25,) * 3),
        kept={group: units.tolist() for group, units in kept.items()},
        operators=operators(model, (3, side, side)),
    )
    images = TaskImages(np.zeros((1, side, side, 3), np.uint8), np.zeros(1, np.int64))
    job = ExportJob(network, device, images, ExportOptions(formats=("onnx",)))
    bundle = job.write(tmp_path / "bundle")
    real = (bundle.path / "model.onnx").stat().st_size
    assert real <= cost.file_bytes(model) <= 1.05 * real
