"""The formats that the network could be shipped in: cost and accuracy of each, and whether it is shipped."""

from collections.abc import Iterator
from dataclasses import dataclass

from mvp_edge.reporting.measures import FORMATS, RUNTIMES
from mvp_edge.reporting.printed import NNBSP, duration, percent, size
from mvp_edge.reporting.results import RunResult
from mvp_edge_export.manifest import Candidate, RuntimeAccuracy, Trial

ABSENT = "–"


@dataclass(frozen=True)
class CandidateRow:
    """One format of the network, ready to be printed."""

    label: str
    runtime: str
    outcome: str
    """shipped, kept or kept out."""
    why: str
    accuracy: str
    drop: str
    """Points lost on the test images, with their 95 % interval."""
    validation: str
    """Points lost on the validation images, by which it was chosen."""
    latency: str
    memory: str
    size: str


@dataclass(frozen=True)
class TrialRow:
    """One quantisation scheme that was tried."""

    runtime: str
    about: str
    chosen: bool
    layers: str
    validation: str
    milliseconds: str
    seconds: str


def candidate_rows(result: RunResult) -> Iterator[CandidateRow]:
    """One row for each candidate; empty before the export."""
    manifest = result.manifest
    if manifest is None:
        return
    shipped = manifest.shipped
    for one in manifest.candidates:
        chosen = shipped is not None and (one.runtime, one.precision) == (
            shipped.runtime,
            shipped.precision,
        )
        latency, memory = _timed(one, result)
        yield CandidateRow(
            label=FORMATS.get(one.format, one.format),
            runtime=f"{RUNTIMES.get(one.runtime, one.runtime)} {one.test.version}, "
            f"{one.test.arithmetic}",
            outcome="shipped" if chosen else "kept" if one.kept else "kept out",
            why=one.why,
            accuracy=percent(one.test.top1),
            drop=f"{_points(one.test.drop)} ({_between(one.test)})",
            validation=_points(one.validation.drop) if one.validation else ABSENT,
            latency=latency,
            memory=memory,
            size=size(one.bytes),
        )


def trial_rows(result: RunResult) -> Iterator[TrialRow]:
    """One row for each quantisation scheme and runtime; empty without int8."""
    for one in result.manifest.candidates if result.manifest else ():
        for trial in one.trials:
            yield _trial(one, trial)


def _trial(candidate: Candidate, trial: Trial) -> TrialRow:
    layers = trial.int8_layers + trial.float_layers
    return TrialRow(
        runtime=RUNTIMES.get(candidate.runtime, candidate.runtime),
        about=trial.about,
        chosen=trial.scheme == candidate.scheme,
        layers=f"{trial.int8_layers} of {layers}",
        validation=_points(trial.validation.drop),
        milliseconds=duration(trial.milliseconds),
        seconds=f"{trial.seconds:.1f}{NNBSP}s",
    )


def _timed(candidate: Candidate, result: RunResult) -> tuple[str, str]:
    """Latency with its thread count, and peak memory: measured for the choice, or else by the last `bench`."""
    timed = [(t.p50, t.p50_interval, t.threads, t.peak_over_import) for t in candidate.timings]
    if not timed and result.bench is not None:
        timed = [
            (c.latency.p50, c.latency.p50_interval, c.threads, c.peak_over_import)
            for c in result.bench.cells
            if (c.network, c.runtime, c.precision)
            == ("pruned", candidate.runtime, candidate.precision)
        ]
    if not timed:
        return ABSENT, ABSENT
    p50, (low, high), threads, peak = min(timed)
    spread = max(high - p50, p50 - low) / p50
    return f"{duration(p50)} ±{percent(spread)}, {threads} thr.", size(peak)


def _points(value: float) -> str:
    return f"{value:.1f}".replace("-", "−") if round(value, 1) else "0.0"


def _between(accuracy: RuntimeAccuracy) -> str:
    low, high = accuracy.drop_interval
    return f"{_points(low)} … {_points(high)}"
