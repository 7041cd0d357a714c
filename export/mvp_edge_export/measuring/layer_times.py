"""Measures the layers of a bundle's networks, in one process with profiling and one without."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.measuring.layers import LayerProfile, against_roofline
from mvp_edge_export.measuring.process import PATIENCE, Child, ChildDied, started
from mvp_edge_export.measuring.result import BenchResult, Cell
from mvp_edge_export.measuring.roofline import Roofline, measure_roofline
from mvp_edge_export.running.sessions import format_of

_RUNS = (100, 200)
"""Minimum and maximum number of profiled runs; ONNX Runtime stores a kilobyte per layer and run."""
_SECONDS = 1.0
_ATTEMPTS = 3
_STEADY = 1.1
"""Ratio of mean to median above which runs were disturbed; it matters as OpenVINO reports means only."""


def with_layers(
    bundle: Bundle,
    result: BenchResult,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> BenchResult:
    """Measure the layers of all cells and the machine's rooflines; takes seconds per cell.

    Args:
        bundle: the measured bundle.
        result: its measurement on this machine.
        progress: called with what is being measured and the share of the work that is done, 0..1.

    Returns:
        The result with ``layers`` and ``rooflines``, and a warning for each network that fails.

    Raises:
        BadInput: the roofline could not be measured.
    """
    rooflines = {}
    for threads in sorted({cell.threads for cell in result.cells}):
        progress(f"peak performance of the machine, threads {threads}", 0.0)
        rooflines[threads] = measure_roofline(result.machine, threads)
    profiles, warnings = [], list(result.warnings)
    shape = (1, 3, bundle.preprocess.size, bundle.preprocess.size)
    costs = {"pruned": bundle.manifest.cost, "baseline": bundle.manifest.cost_baseline}
    for done, cell in enumerate(result.cells):
        what = f"layers of {cell.network} {cell.precision} in {cell.runtime} x{cell.threads}"
        progress(what, done / len(result.cells))
        form = format_of(cell.runtime, cell.precision)
        model = bundle.model(form, baseline=cell.network == "baseline")
        macs = costs[cell.network].flops
        try:
            profiles.append(layer_profile(model, shape, cell, macs, rooflines[cell.threads]))
        except ChildDied as error:
            warnings.append(f"no {what}: {error}")
    found = {"layers": tuple(profiles), "rooflines": tuple(rooflines.values())}
    return result.model_copy(update={**found, "warnings": tuple(warnings)})


def layer_profile(
    model: Path, shape: Sequence[int], cell: Cell, network_macs: int, roofline: Roofline
) -> LayerProfile:
    """Measure the layers of one model file.

    Args:
        model: model file in a format that the cell's runtime reads.
        shape: shape of its input, [N, 3, S, S].
        cell: cell with the runtime and the number of threads.
        network_macs: multiply-adds of the network.
        roofline: roofline of this machine with the same number of threads.

    Raises:
        ChildDied: the network does not run with profiling.
    """
    limit = 10 * _SECONDS + PATIENCE
    with (
        tempfile.TemporaryDirectory() as folder,
        started(model, shape, cell.runtime, cell.threads) as plain,
    ):
        plain.ask({"do": "warm", "seconds": _SECONDS / 2, "cap": 4 * _SECONDS}, limit)
        before = _round(plain, limit)
        low, high = _RUNS
        runs = int(np.clip(_SECONDS / (np.median(before) / 1e9), low, high))
        reports: list[dict[str, Any]] = []
        while not reports or (_unsteady(reports[-1]) and len(reports) < _ATTEMPTS):
            alike = (model, shape, cell.runtime, cell.threads)
            with started(*alike, profile=Path(folder)) as watched:
                reports.append(watched.ask({"do": "layers", "runs": runs}, limit))
        report = min(reports, key=lambda one: one["mean_ms"] / one["whole_ms"])
        after = _round(plain, limit)
    whole = float(np.median(np.concatenate([before, after]))) / 1e6
    return LayerProfile(
        network=cell.network,
        runtime=cell.runtime,
        version=cell.version,
        precision=cell.precision,
        threads=cell.threads,
        runs=runs,
        whole_ms=whole,
        profiled_ms=report["whole_ms"],
        disturbed=_unsteady(report),
        network_macs=network_macs,
        layers=tuple(against_roofline(report["layers"], roofline, whole)),
    )


def _unsteady(report: dict[str, Any]) -> bool:
    return bool(report["mean_ms"] > _STEADY * report["whole_ms"])


def _round(child: Child, limit: float) -> "np.typing.NDArray[np.int64]":
    facts = child.ask({"do": "round", "seconds": _SECONDS / 2}, limit)
    return child.samples(facts["n"], limit)
