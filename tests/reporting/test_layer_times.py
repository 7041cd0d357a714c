"""The report's part on layers: two networks beside each other, the bound in each bar, nothing made up."""

import re
from pathlib import Path
from typing import Any

import pytest

from mvp_edge.reporting import report
from mvp_edge.reporting.layer_times import draw_layers, layer_parts
from mvp_edge_export.measuring.layers import LayerProfile, LayerTime
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.measuring.roofline import Rate, Roofline
from tests.reporting.test_page import Page
from tests.support.run_fixture import write_run

RATE = Rate(best=60.0, worst=58.0)
ROOFLINE = Roofline(threads=1, multiply_adds=RATE, bandwidth=((1 << 18, RATE),), narrow={})


def layer(name: str, ms: float, whole: float, macs: int = 1000, reached: float = 0.5) -> LayerTime:
    return LayerTime(
        name=name, op="Conv", kernel="nchwc", arithmetic="f32", output=(1, 16, 8, 8), milliseconds=ms,
        share=ms / whole, macs=macs, bytes=1000, roofline_ms=reached * ms, bound="compute",
    )  # fmt: skip


def profile(network: str, runtime: str, whole: float, scale: float, **changes: Any) -> LayerProfile:
    layers = [layer(f"layer{n}", scale * (1 + n % 5), whole, int(1e6 * scale)) for n in range(20)]
    layers += [layer("<b>only</b>", scale * 3, whole)] if network == "pruned" else []
    return LayerProfile(
        network=network, runtime=runtime, version="1", precision="fp32", threads=1, runs=100,
        whole_ms=whole, profiled_ms=1.1 * whole, disturbed=False, network_macs=int(2e7 * scale),
        layers=tuple(layers),
    ).model_copy(update=changes)  # fmt: skip


UNPRUNED = profile("baseline", "onnxruntime", 80.0, 1.0)
PRUNED = profile("pruned", "onnxruntime", 1.0, 0.01)


def with_layers(run: Path, *profiles: LayerProfile) -> BenchResult:
    file = run / "bench.json"
    bench = BenchResult.model_validate_json(file.read_text())
    bench = bench.model_copy(update={"layers": profiles, "rooflines": (ROOFLINE,)})
    bench.save(file)
    return bench


def test_a_section_for_each_runtime(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    bench = with_layers(
        run, PRUNED, UNPRUNED, profile("pruned", "openvino", 1.0, 0.01, disturbed=True)
    )

    page = Page(report([run]))

    assert [part.title for part in layer_parts(bench)] == [
        "ONNX Runtime, 1\N{NARROW NO-BREAK SPACE}thread",
        "OpenVINO, 1\N{NARROW NO-BREAK SPACE}thread",
    ]
    text = page.text
    assert "Where the milliseconds go" in text
    assert "fewer multiply-adds made it 80× faster in onnxruntime" in text
    assert "Another load ran at the same time" in text
    assert "<b>only</b>" not in page.source


def test_a_run_without_layers_has_no_such_section(tmp_path: Path) -> None:
    assert "Where the milliseconds go" not in Page(report([write_run(tmp_path / "run")])).text


@pytest.mark.parametrize("unpruned", [UNPRUNED, None])
def test_the_bars_are_the_shares(unpruned: LayerProfile | None) -> None:
    svg = str(draw_layers(PRUNED, unpruned))

    lengths: dict[str, list[float]] = {}
    for style, length in re.findall(r'class="(bar[^"]*)" d="M4 [\d.]+h([\d.]+)"', svg):
        lengths.setdefault(style, []).append(float(length))
    # All layers and the rest are drawn once, as shares of the whole: the bars of a network sum up
    # to its time, and half of what layers take is their bound.
    for network, style in ((PRUNED, "pruned"), (unpruned, "unpruned")):
        if network is None:
            assert f"bar {style}" not in lengths
            continue
        drawn = lengths[f"bar {style}"]
        rest = network.rest_ms / network.whole_ms
        scale = sum(drawn)
        least = sum(lengths[f"bar least {style}"])
        assert least / scale == pytest.approx((1 - rest) / 2, abs=0.01)
        assert drawn[-1] / scale == pytest.approx(rest, abs=0.01)
    assert "between layers" in svg
    assert "other layers" in svg
