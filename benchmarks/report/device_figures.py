"""Figures of latency, memory, predicted latency, installed size and one run on photographs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.report.device_tables import family_errors, prediction_errors
from benchmarks.report.family_tables import arithmetic_figures, family_figures
from benchmarks.report.figure import Figure
from benchmarks.report.grid_tables import (
    MEMORY_GOAL,
    RUNTIMES,
    UNPRUNED,
    Grid,
    grids,
    memory_ratio,
    speed_rows,
)
from benchmarks.report.sources import device_measurement, lines, measurement

_LATENCY_SLUGS = {"resnet18-32": "", "deit-tiny-224": "-deit-tiny"}
"""The plain ids are ResNet-18's at 32 px, in ONNX Runtime."""


def device_figures() -> Iterator[Figure]:
    """The figures of every measurement that there is."""
    for grid in grids():
        yield from grid_figures(grid, f"benchmarks/device/results/{grid.name}.json")
    if facts := device_measurement("predictor"):
        yield from predictor_figures(facts)
    if facts := device_measurement("light_install"):
        yield installed_size(facts)
    if rows := lines("families"):
        yield from family_figures(rows)
    if facts := measurement("arithmetic"):
        yield from arithmetic_figures(facts)
    if facts := measurement("photos"):
        yield from photo_figures(facts, next(one for one in grids() if one.name == "deit-tiny-224"))


def grid_figures(grid: Grid, source: str) -> list[Figure]:
    """The speed-up at each keep ratio in each runtime of a network, and its peak memory."""
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


def predictor_figures(facts: Mapping[str, Any]) -> Iterator[Figure]:
    """Median errors of the model in the product: known architectures, and the best and worst of unknown ones."""
    source, command = "benchmarks/device/predictor.json", "python -m benchmarks.device.predictor"
    medians = {
        place: float(np.median(errors)) for place, errors in prediction_errors(facts, "law").items()
    }
    unknown = {place: error for place, error in medians.items() if place[0].startswith("all of")}
    for name, (held_out, runtime) in {
        **{
            f"P6-prediction-error-known-{place[1]}": place
            for place in medians
            if place not in unknown
        },
        "P6-prediction-error-best-unknown": min(unknown, key=unknown.__getitem__),
        "P6-prediction-error-worst-unknown": max(unknown, key=unknown.__getitem__),
    }.items():
        text = f"median error of the predicted latency, held out: {held_out}, {runtime}, one thread"
        error = medians[held_out, runtime]
        yield Figure(name, error, None, None, "%", "stated", text, source, command)
    families = {place: float(np.median(own)) for place, own in family_errors(facts).items()}
    every = [error for own in family_errors(facts).values() for error in own]
    worst = max(families, key=families.__getitem__)
    text = "median error of the predicted latency, pruned networks held out of the fit (every third), one thread"
    for name, error, which in (
        (
            "P6-predictor-median-error-pct",
            float(np.median(every)),
            "all architectures, both runtimes",
        ),
        ("P6-worst-family-pct", families[worst], f"the worst architecture: {worst[0]}, {worst[1]}"),
    ):
        yield Figure(name, error, None, None, "%", "≤ 10", f"{text}: {which}", source, command)


def installed_size(facts: Mapping[str, Any]) -> Figure:
    """Disk space of the device half beside the runtime, NumPy and Pillow: the largest of all Python versions."""
    largest = max(row["beside_bytes"] for row in facts["rows"]) / 1e6
    return Figure(
        "device-installed-size", largest, None, None, "MB", f"≤ {facts['limit_bytes'] / 1e6:.0f}",
        "beside the runtime, NumPy and Pillow, x86-64; the largest of all Python versions",
        "benchmarks/device/light_install.json", "python -m benchmarks.device.light_install",
    )  # fmt: skip


def photo_figures(facts: Mapping[str, Any], unpruned: Grid) -> Iterator[Figure]:
    """Top-1 of DeiT-Tiny on a folder of photographs, unpruned and pruned for a Raspberry Pi 4."""
    whole = unpruned.made[UNPRUNED]["accuracy"][0]["top1"]
    text = f"DeiT-Tiny, 224 px, {facts['images']['test']} photographs of ten classes of ImageNet"
    yield Figure(
        "photographs-top1-unpruned", 100 * whole, None, None, "%", "stated", text,
        f"benchmarks/device/results/{unpruned.name}.json", f"python -m benchmarks.device.grid {unpruned.name}",
    )  # fmt: skip
    yield Figure(
        "photographs-top1-pruned", 100 * facts["accuracy"][0]["top1"], None, None, "%", "stated",
        f"{text}, {facts['command']}", "benchmarks/results/photos.json", "python -m benchmarks.study.photos",
    )  # fmt: skip
