"""The tables and figures of the latency grid say what its rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.device_figures import grid_figures
from benchmarks.report.grid_tables import (
    Grid,
    crosscheck_table,
    full_table,
    grids,
    latency_table,
    memory_table,
    rounding_table,
    speed_rows,
)

MIB = 2**20


def _made(variant: str, keep: float, flops: int, round_to: int = 8) -> dict[str, Any]:
    accuracy = [
        {"format": "onnx", "top1": 0.9},
        {"format": "onnx-int8", "top1": 0.89},
    ]
    files = {"onnx": 3 * MIB, "onnx-int8": MIB, "openvino": 3 * MIB}
    facts = {"variant": variant, "keep": keep, "round_to": round_to, "flops": flops}
    sizes = {"weight_bytes": 2 * MIB, "activation_bytes": MIB}
    return facts | sizes | {"accuracy": accuracy, "files": files}


def _cell(variant: str, p50: float, precision: str = "fp32", **changes: Any) -> dict[str, Any]:
    facts = {"variant": variant, "precision": precision, "p50": p50, "status": "OK"}
    facts |= {"arithmetic": "f32", "p50_interval": [0.99 * p50, 1.02 * p50], "load_ms": 20.0}
    return facts | {"rss_import": 40 * MIB, "rss_peak": 86 * MIB} | changes


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """One network, as the script leaves it."""
    cells = [
        _cell("unpruned", 8.0),
        _cell("keep 0.5", 2.5),
        _cell("keep 0.5", 1.6, "int8", status="NOISY"),
        _cell("keep 0.5, round 1", 3.0),
    ]
    here = {"cpu": "Example 9000", "cores": 2}
    group = {"plan": {"seconds": 15.0}, "machine": here, "cells": cells}
    full = {
        "plan": {"seconds": 60.0},
        "machine": {"cpu": "Example 9000", "cores": 2, "isa": ["avx2"]},
        "cells": [_cell("unpruned", 9.0), _cell("keep 0.5", 2.4)],
    }
    facts = {
        "network": "ResNet-18, 32 px",
        "weights": "trained",
        "steps": 100,
        "made": [
            _made("unpruned", 1, 400_000_000),
            _made("keep 0.5", 0.5, 100_000_000),
            _made("keep 0.5, round 1", 0.5, 98_000_000, 1),
        ],
        "grid": {"onnxruntime x1": group, "openvino x1": group},
        "full": {"openvino x1": full},
    }
    (tmp_path / "resnet18-32.json").write_text(json.dumps(facts))
    (found,) = grids(tmp_path)
    return found


def test_speed_against_multiply_adds(grid: Grid) -> None:
    (row,) = speed_rows(grid)
    assert row["flops_ratio"] == 4
    # By the full protocol, where there is one: both networks, since the machine may be another.
    assert row["cells"]["openvino/pruned"]["p50_ms"] == 2.4
    assert row["cells"]["openvino/baseline"]["p50_ms"] == 9.0
    assert row["measured"] == {
        "onnxruntime": "default protocol",
        "openvino": "full protocol on avx2",
    }
    figures = {figure.id: figure for figure in grid_figures(grid, "rows.json")}
    ours = figures["P5-keep0.5-latency-over-flops"]
    assert ours.value == pytest.approx(4 / (8.0 / 2.5))
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low < ours.value < ours.high
    assert figures["P5-keep0.5-latency-over-flops-openvino"].value == pytest.approx(4 / (9 / 2.4))
    assert figures["device-peak-memory-resnet18-32"].value == pytest.approx(86 / (78 + 2 + 1))


def test_every_table_has_its_rows(grid: Grid) -> None:
    latency = latency_table(grid).splitlines()
    assert latency[2].startswith("| unpruned | 400.0 | 8 | – |")
    assert latency[3].startswith("| keep 0.5 | 100.0 (1/4) | 2.5 (3.2 ×) | 1.6! (5 ×) |")
    assert latency[3].endswith("| 90.0 → 89.0 |")
    full = full_table([grid])
    assert "2.4 (2.38 … 2.45) | 3.75 × | 1/4 |" in full
    assert full.endswith("On 2 cores of an Example 9000 with avx2; arithmetic f32.")
    assert "| 0.5 | any | 98.00 | 3 | 3 |" in rounding_table([grid])
    assert "| 3.00 (1.00) | 20 | 86 | 40 | 1.06 |" in memory_table([grid])


def test_our_median_beside_other_tools() -> None:
    row: dict[str, Any] = {"network": "N", "variant": "unpruned", "runtime": "openvino"}
    row |= {"threads": 1, "p50_ms": {"ours": [1.1, 1.0, 1.2], "benchmark_app": [1.0, 1.1, 1.3]}}
    table = crosscheck_table(
        {"turns": 3, "seconds": 5.0, "rows": [row | {"ours_over": {"benchmark_app": 1.0}}]}
    )
    assert "| N | unpruned | OpenVINO | 1 | 1.1 (1 … 1.2) |  | 1.000 |" in table
