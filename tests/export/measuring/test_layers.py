"""Layers: what the runtimes report, held against the networks themselves; and why time goes there."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring import layer_times, reports
from mvp_edge_export.measuring.bench import bench
from mvp_edge_export.measuring.layers import (
    LayerProfile,
    LayerTime,
    against_roofline,
    explain,
)
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.process import ChildDied
from mvp_edge_export.measuring.reports import Tensor, graph_weights, multiply_adds
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.measuring.roofline import Rate, Roofline, measure_roofline

if TYPE_CHECKING:
    from torch import nn

FLAT = Rate(best=100.0, worst=90.0)
ROOFLINE = Roofline(
    threads=1,
    multiply_adds=FLAT,
    bandwidth=((1000, Rate(best=200.0, worst=200.0)), (1_000_000, Rate(best=50.0, worst=50.0))),
    narrow={"i8": 4.0},
)


@pytest.fixture(scope="module")
def result(bundle_path: Path) -> BenchResult:
    return bench(load_bundle(bundle_path), threads=[1], seconds=0.1, layers=True)


def profile_of(result: BenchResult, *wanted: str) -> LayerProfile:
    (found,) = [o for o in result.layers if (o.network, o.runtime, o.precision) == wanted]
    return found


def counted(network: "nn.Module") -> int:
    """Multiply-adds of convolutions and linear layers, from what their hooks see."""
    import torch
    from torch import nn

    total = 0

    def conv(module: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    def linear(module: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * module.in_features

    hooks = [
        module.register_forward_hook(conv if isinstance(module, nn.Conv2d) else linear)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 16, 16))
    for hook in hooks:
        hook.remove()
    return total


def test_every_cell_has_its_layers(result: BenchResult) -> None:
    assert result.failures == ()
    assert [(o.network, o.runtime, o.precision) for o in result.layers] == [
        (c.network, c.runtime, c.precision) for c in result.cells
    ]
    for one in result.layers:
        assert one.runs >= 100
        assert one.layers
        assert one.layers_ms > 0
        assert one.rest_ms == pytest.approx(max(0, one.whole_ms - one.layers_ms))
        for layer in one.layers:
            assert layer.milliseconds > 0
            assert layer.roofline_ms >= 0
            assert layer.share == pytest.approx(layer.milliseconds / one.run_ms)


def test_multiply_adds_are_those_of_the_network(
    result: BenchResult, network: "nn.Module", unpruned: "nn.Module"
) -> None:
    for name, torch_network in (("pruned", network), ("baseline", unpruned)):
        expected = counted(torch_network)
        # OpenVINO reports shapes without padding; the unpruned one's channels need none.
        assert profile_of(result, name, "openvino", "fp32").macs == expected
        if name == "baseline":
            assert profile_of(result, name, "onnxruntime", "fp32").macs == expected
        else:  # ONNX Runtime pads 8 channels to its vector of 8 or 16
            assert profile_of(result, name, "onnxruntime", "fp32").macs >= expected


def test_int8_weights_are_found_though_the_profile_hides_them(
    result: BenchResult, network: "nn.Module"
) -> None:
    for runtime in ("onnxruntime", "openvino"):
        one = profile_of(result, "pruned", runtime, "int8")
        narrow = [layer for layer in one.layers if layer.arithmetic == "i8" and layer.macs]
        assert narrow, runtime
        assert one.macs >= counted(network) * 0.99


def test_the_table_and_the_sentences_fit_a_terminal(result: BenchResult) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    for one in result.layer_tables():
        console.print(one)
    text = console.export_text()

    assert "between layers" in text
    assert "roofline" in text
    assert "fewer multiply-adds made it" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_result_with_layers_survives_its_file(result: BenchResult, tmp_path: Path) -> None:
    result.save(tmp_path / "bench.json")

    assert BenchResult.model_validate_json((tmp_path / "bench.json").read_text()) == result


def test_a_network_that_dies_under_the_profile_is_a_warning(
    bundle_path: Path, result: BenchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> LayerProfile:
        raise ChildDied("openvino crashed", None)  # type: ignore[arg-type]

    monkeypatch.setattr(layer_times, "layer_profile", dies)
    monkeypatch.setattr(layer_times, "measure_roofline", lambda *_: ROOFLINE)
    plain = result.model_copy(update={"layers": (), "rooflines": ()})

    found = layer_times.with_layers(load_bundle(bundle_path), plain)

    assert found.layers == ()
    assert found.cells == result.cells
    assert "no layers of pruned fp32 in onnxruntime x1: openvino crashed" in found.warnings


def test_weights_of_a_graph_are_those_that_onnx_reads(bundle_path: Path) -> None:
    import onnx

    path = bundle_path / "model.onnx"
    graph = onnx.load(path).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    expected = {n.name: [shapes[i] for i in n.input if i in shapes] for n in graph.node}

    found = graph_weights(path)

    assert {name: [one.shape for one in weights] for name, weights in found.items()} == expected


def test_weights_of_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 40)

    with pytest.raises(BadInput, match="not an ONNX model"):
        graph_weights(tmp_path / "graph.onnx")


@pytest.mark.parametrize(
    ("op", "inputs", "weights", "output", "expected"),
    [
        ("Conv", [(1, 3, 8, 8)], [(16, 3, 3, 3), (16,)], (1, 16, 8, 8), 16 * 27 * 64),
        ("Convolution", [(1, 16, 8, 8)], [(16, 1, 1, 3, 3)], (1, 16, 8, 8), 16 * 9 * 64),
        ("QLinearConv", [(1, 8, 8, 3)], [(16, 3, 3, 3)], (1, 8, 8, 16), 16 * 27 * 64),
        ("Gemm", [(1, 48), (5,)], [(48, 5), (5,)], (1, 5), 48 * 5),
        ("MatMul", [(1, 3, 197, 64), (1, 3, 64, 197)], [], (1, 3, 197, 197), 3 * 197 * 64 * 197),
        ("FullyConnected", [(1, 197, 192)], [(768, 192), (768,)], (1, 197, 768), 197 * 192 * 768),
        ("Softmax", [(1, 197, 197)], [], (1, 197, 197), 0),
        (
            "Subgraph",
            [(1, 3, 197, 64), (1, 3, 64, 197), (1, 3, 197, 64)], [], (1, 3, 197, 64),
            2 * 3 * 197 * 197 * 64,
        ),
        ("Subgraph", [(1, 197, 192), (1, 1, 192), (1, 1, 192)], [], (1, 197, 192), 0),
    ],
)  # fmt: skip
def test_multiply_adds_of_a_layer(
    op: str, inputs: Sequence[Any], weights: Sequence[Any], output: Any, expected: int
) -> None:
    found = multiply_adds(
        op, [Tensor(s, 4) for s in inputs], [Tensor(s, 4) for s in weights], output
    )

    assert found == expected


@given(st.integers(1, 60), st.integers(100, 400), st.floats(1.2, 900), st.integers(0, 9))
def test_a_mean_between_two_rounded_means(
    earlier: int, later: int, typical: float, seed: int
) -> None:
    # As OpenVINO counts: whole microseconds of each run, and of their mean.
    times = np.random.default_rng(seed).uniform(0.9, 1.1, earlier + later) * typical
    before = int(np.floor(times[:earlier]).mean())
    after = int(np.floor(times).mean())

    found = reports.mean_between(before, earlier, after, earlier + later)

    tolerance = 1 + (earlier + later + earlier) / later / 2
    assert found == pytest.approx(times[earlier:].mean(), abs=tolerance)


@given(st.floats(0.6, 50), st.integers(0, 9))
def test_a_typical_time_is_finer_than_the_clock(typical: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    times = random.normal(typical, 0.8, 400).clip(0)
    times[:40] += 1000  # interrupted

    found = reports.typical_time(np.floor(times).astype(int).tolist())

    assert found == pytest.approx(np.median(times), abs=0.3)


def test_a_bound_is_the_larger_of_computing_and_moving() -> None:
    facts = {"name": "a", "op": "Conv", "kernel": "", "arithmetic": "f32", "output": (1, 8, 2, 2)}
    heavy = {**facts, "ms": 2.0, "macs": 100_000_000, "weight_bytes": 500, "activation_bytes": 0}
    fat = {**facts, "ms": 1.0, "macs": 1000, "weight_bytes": 500_000, "activation_bytes": 1000}
    narrow = {**heavy, "arithmetic": "i8"}

    computing, moving, fast = against_roofline([heavy, fat, narrow], ROOFLINE, 4.0)

    assert (computing.bound, moving.bound) == ("compute", "memory")
    assert computing.roofline_ms == pytest.approx(1.0)  # 1e8 at 100e9 a second
    assert computing.reached == pytest.approx(0.5)
    assert computing.gmacs == pytest.approx(50)
    assert fast.roofline_ms == pytest.approx(0.25)
    # The weights of all do not fit the near cache, activations of 1,000 bytes do.
    assert moving.roofline_ms == pytest.approx(500_000 / 50e6 + 1000 / 200e6)


def layer(name: str, ms: float, macs: int = 0, **changes: Any) -> LayerTime:
    values: dict[str, Any] = {
        "name": name, "op": "Conv" if macs else "ReorderOutput", "kernel": "", "arithmetic": "f32",
        "output": (1, 8, 4, 4), "milliseconds": ms, "share": ms, "macs": macs, "bytes": 100,
        "roofline_ms": ms / 10, "bound": "compute",
    }  # fmt: skip
    return LayerTime(**{**values, **changes})


def profile(
    layers: Sequence[LayerTime], whole: float, macs: int, network: str = "pruned"
) -> LayerProfile:
    run = max(whole, sum(one.milliseconds for one in layers))
    shared = tuple(one.model_copy(update={"share": one.milliseconds / run}) for one in layers)
    return LayerProfile(
        network=network, runtime="onnxruntime", version="1", precision="fp32", threads=1, runs=100,
        whole_ms=whole, profiled_ms=whole, disturbed=False, network_macs=macs, layers=shared,
    )  # fmt: skip


BEFORE = profile([layer("stem", 1.0, 1000), layer("body", 9.0, 99_000)], 10.0, 100_000, "baseline")


@pytest.mark.parametrize(
    ("layers", "whole", "cause", "not_said"),
    [
        ([layer("body", 0.2, 1000)], 1.0, "80% of its time passes between", "left as they were"),
        ([layer("stem", 0.9, 1000)], 1.0, "pruning left as they were (stem", "between"),
        ([layer("turn", 0.8)], 0.9, "without multiply-adds (ReorderOutput)", "wait for"),
        ([layer("body", 0.9, 1000, bound="memory")], 1.0, "bytes take longer", "too small"),
        ([layer("body", 0.9, 1000)], 1.0, "use 10% of the machine's arithmetic", "bytes take"),
    ],
)
def test_the_cause_is_the_one_that_the_figures_name(
    layers: Sequence[LayerTime], whole: float, cause: str, not_said: str
) -> None:
    text = " ".join(explain(profile(layers, whole, 1000), BEFORE, ROOFLINE))

    assert "100× fewer multiply-adds made it" in text
    assert cause in text
    assert not_said not in text.replace(cause, "")


def test_nothing_is_blamed_where_time_follows_the_work() -> None:
    fast = profile([layer("body", 0.1, 1000)], 0.11, 1000)

    first, second = explain(fast, BEFORE, ROOFLINE)

    assert "100× fewer multiply-adds made it 90.9× faster" in first
    assert "follows its multiply-adds" in second


def test_shares_add_up_where_watching_made_layers_longer_than_the_run() -> None:
    slow = [("a", 0.6, 1000), ("b", 0.9, 3000)]
    fields = [
        {"name": name, "op": "Conv", "kernel": "", "arithmetic": "f32", "output": (1, 8, 4, 4),
         "ms": ms, "macs": macs, "weight_bytes": 10, "activation_bytes": 10}
        for name, ms, macs in slow
    ]  # fmt: skip
    layers = tuple(against_roofline(fields, ROOFLINE, whole_ms=1.0))
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    text = " ".join(explain(profile(layers, 1.0, 4000), None, ROOFLINE))
    assert "goes into layers that use" in text
    assert not [n for n in re.findall(r"(\d+)% of its time", text) if int(n) > 100]


def test_padding_is_told() -> None:
    padded = profile([layer("body", 0.9, 2000, output=(1, 16, 4, 4), kernel="nchwc")], 1.0, 1000)

    text = " ".join(explain(padded, BEFORE, ROOFLINE))

    assert "computes 2× the multiply-adds" in text
    assert "whole vectors of 16" in text


@pytest.mark.parametrize("threads", [1, 2])
def test_the_roofline_is_measured(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvp_edge_export.measuring.roofline._SIZES", (1 << 18, 1 << 22))

    found = measure_roofline(this_machine(), threads)

    assert found.threads == threads
    assert 0 < found.multiply_adds.worst <= found.multiply_adds.best < 1e5
    assert [size for size, _ in found.bandwidth] == [1 << 18, 1 << 22]
    assert all(0 < rate.worst <= rate.best < 1e5 for _, rate in found.bandwidth)
    assert found.compute_ms(10**9) == pytest.approx(1e3 / found.multiply_adds.best)


@given(st.integers(1, 10**8), st.integers(1, 10**8))
def test_larger_data_are_never_faster(one: int, other: int) -> None:
    small, large = sorted((one, other))

    assert ROOFLINE.memory_ms(1000, small) <= ROOFLINE.memory_ms(1000, large)
