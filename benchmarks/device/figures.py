"""The headline figures of the latency grids, computed from their raw rows."""

from collections.abc import Mapping
from typing import Any

from benchmarks.device.grid_tables import (
    MEMORY_GOAL,
    RUNTIMES,
    Grid,
    memory_ratio,
    speed_rows,
)
from benchmarks.figures import Figure

_LATENCY_SLUGS = {"resnet18-32": "", "deit-tiny-224": "-deit-tiny"}
"""The plain ids are ResNet-18's at 32 px, in ONNX Runtime."""


def grid_figures(grid: Grid, source: str) -> list[Figure]:
    """P5: a figure for each keep ratio and runtime of a network; and what its memory comes to."""
    found = []
    command = f"python -m benchmarks.device.grid {grid.name}"
    suffix = _LATENCY_SLUGS.get(grid.name, f"-{grid.name}")
    for row in speed_rows(grid):
        flops, keep = row["flops_ratio"], row["keep"]
        for runtime, (value, low, high) in speedups(row).items():
            slug = suffix + ("" if runtime == "onnxruntime" else f"-{runtime}")
            text = (
                f"{row['network']}, keep {keep}, {runtime}, 1 thread, device widths, "
                f"{row['measured'][runtime]}"
            )
            if keep == 0.5:
                name, goal = f"P5-keep0.5-latency-over-flops{slug}", "≤ 1.5"
                value, low, high = flops / value, flops / high, flops / low
                text = f"{text}; FLOPs ratio {flops:.1f} over latency ratio"
            else:
                name = f"P5-keep{keep}-speedup{slug}"
                goal = "≥ 10" if keep == 0.1 and suffix == "" else f"FLOPs: {flops:.1f}"
            found.append(Figure(name, value, low, high, "×", goal, text, source, command))
    ratios = {
        (variant, runtime): ratio
        for variant in grid.rounded[1:]
        for runtime in RUNTIMES
        if (ratio := memory_ratio(grid, variant, runtime)) is not None
    }
    if ratios:
        worst = max(ratios, key=ratios.__getitem__)
        text = (
            f"{grid.facts['network']}, the worst of its pruned networks ({worst[0]}, {worst[1]}): peak resident "
            "memory over the runtime's own + weights + peak activations predicted"
        )
        name = f"device-peak-memory-{grid.name}"
        goal = f"≤ {MEMORY_GOAL}"
        found.append(Figure(name, ratios[worst], None, None, "×", goal, text, source, command))
    return found


def speedups(row: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Runtime → unpruned p50 / pruned p50, with the worst and best of their intervals."""
    found = {}
    for runtime in ("onnxruntime", "openvino"):
        small, full = row["cells"][f"{runtime}/pruned"], row["cells"][f"{runtime}/baseline"]
        found[runtime] = (
            full["p50_ms"] / small["p50_ms"],
            full["interval"][0] / small["interval"][1],
            full["interval"][1] / small["interval"][0],
        )
    return found
