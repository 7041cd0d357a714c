"""The result of a measurement: statistics, verdicts on a profile's budgets, and a table.

    samples → Latency → Process → Cell → BenchResult (JSON, table)

A *cell* is one network in one number format, one runtime and with one number of threads.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from mvp_edge_export.measuring.layers import LayerProfile, explain
from mvp_edge_export.measuring.machine import EMULATED_BY, Machine
from mvp_edge_export.measuring.roofline import Roofline
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.storage import write_json
from mvp_edge_export.verified import Verdict, VerdictWord

MAX_OTHER_LOAD = 0.05
"""Load of other programs, in cores, above which a cell counts as disturbed."""
P99_SAMPLES = 1000
"""Minimum number of samples for a 99th percentile."""

_BLOCKS, _RESAMPLES = 100, 1000

Network = Literal["pruned", "baseline"]
Status = Literal["OK", "NOISY", "INVALID"]

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Latency(BaseModel):
    """Distribution of the time of one inference in milliseconds, over all samples."""

    model_config = _FROZEN

    n: int
    """Number of samples."""
    min: float
    mean: float
    p50: float
    p90: float
    p99: float | None
    """None if there are fewer than 1,000 samples."""
    max: float
    p50_interval: tuple[float, float]
    """95 % confidence interval by a block bootstrap; for several processes the union of theirs."""
    p90_interval: tuple[float, float]


class Memory(BaseModel):
    """Resident memory of the measuring process in bytes."""

    model_config = _FROZEN

    after_import: int
    after_load: int
    after_first: int
    steady: int
    peak: int
    """Peak resident memory (VmHWM)."""

    @property
    def peak_over_import(self) -> int:
        """Memory that the network needed: the peak less the memory after importing the runtime."""
        return max(0, self.peak - self.after_import)


class Process(BaseModel):
    """Measurement of a cell in one process."""

    model_config = _FROZEN

    import_ms: float
    """Time in ms to import the runtime."""
    load_ms: float
    """Time in ms to load and compile the network."""
    first_ms: float
    """Time in ms of the first run."""
    warm_runs: int
    """Number of warm-up runs."""
    warm_seconds: float
    """Duration of the warm-up."""
    warm_settled: bool
    """Whether two successive medians of 10 runs differed by less than 2 % before the time limit."""
    latency: Latency
    memory: Memory
    other_load: float
    """Load of other programs during the timed rounds, in cores."""
    attempts: int
    """Number of attempts, because disturbed rounds are repeated."""
    throttled: bool
    """Whether the board was throttled or had under-voltage during the measurement."""


class Cell(BaseModel):
    """One network in one number format, one runtime and with one number of threads."""

    model_config = _FROZEN

    network: Network
    runtime: str
    version: str
    """Release of the runtime."""
    precision: NumberFormat
    """Number format of the network's file."""
    arithmetic: str
    """Number format that the runtime computes in outside of int8 layers, e.g. ``f32``."""
    threads: int
    options: dict[str, Any]
    """Settings of the runtime."""
    latency: Latency
    """Median of each statistic over the processes."""
    peak_over_import: int
    """Memory that the network needed in bytes: the largest value of the processes."""
    status: Status
    """NOISY: disturbed by other load. INVALID: the board was throttled or had under-voltage."""
    processes: tuple[Process, ...]


class Failure(BaseModel):
    """A cell that could not be measured."""

    model_config = _FROZEN

    network: Network
    runtime: str
    precision: NumberFormat
    threads: int
    why: str
    """Reason, and what the user can do."""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.network} {self.precision} in {self.runtime}, {threads}: {self.why}"


class Protocol(BaseModel):
    """The measurement protocol."""

    model_config = _FROZEN

    full: bool
    """Whether it was the full protocol, whose results can be compared between machines and people."""
    seconds: float
    """Timed seconds per process."""
    processes: int
    """Number of processes per cell."""
    statement: str
    """Description of the protocol."""


class BenchResult(BaseModel):
    """A measurement, the machine on which it was made, and the verdicts on the profile's budgets."""

    model_config = _FROZEN

    schema_: Literal[2] = Field(default=2, alias="schema")
    protocol: Protocol
    machine: Machine
    profile: str
    """Id of the profile whose budgets were judged."""
    profile_sha256: str
    differences: tuple[str, ...]
    """Differences between the machine and the profile's device; latency is judged if there are none."""
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    """Cells that could not be measured."""
    judged: str
    """Name of the cell to which the verdicts apply."""
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    """Reasons for which the results may be inaccurate."""
    layers: tuple[LayerProfile, ...] = ()
    """Time of each layer for each cell; empty unless requested."""
    rooflines: tuple[Roofline, ...] = ()
    """Peak performance of the machine for each number of threads; empty without ``layers``."""
    fingerprint: dict[str, Any]
    """Facts that must be equal for two results to be repetitions of each other."""
    fingerprint_sha256: str

    def cell(
        self, network: Network, runtime: str, threads: int, precision: NumberFormat = "fp32"
    ) -> Cell | None:
        """The cell of a network, runtime, number of threads and format; None if not measured."""
        wanted = (network, runtime, threads, precision)
        for cell in self.cells:
            if (cell.network, cell.runtime, cell.threads, cell.precision) == wanted:
                return cell
        return None

    def speedup(self, cell: Cell) -> float | None:
        """Ratio of the unpruned network's fp32 median to the cell's, with the same runtime and threads.

        None if the unpruned network was not measured, or the cell is its own.
        """
        baseline = self.cell("baseline", cell.runtime, cell.threads)
        if baseline is None or cell.network == "baseline":
            return None
        return baseline.latency.p50 / cell.latency.p50

    def explanations(self) -> Iterator[tuple[LayerProfile, list[str]]]:
        """Yield the layers of each pruned network with sentences that explain their time."""
        rooflines = {roofline.threads: roofline for roofline in self.rooflines}
        unpruned = {
            (one.runtime, one.threads): one
            for one in self.layers
            if (one.network, one.precision) == ("baseline", "fp32")
        }
        for one in self.layers:
            if one.network == "pruned":
                before = unpruned.get((one.runtime, one.threads))
                yield one, list(explain(one, before, rooflines[one.threads]))

    def layer_tables(self) -> Iterator[Table | str]:
        """Yield a table of the slowest layers of each pruned network's cell, then its explanation."""
        for profile, sentences in self.explanations():
            yield profile.table()
            yield "\n".join([*sentences, ""])

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_json(path, self.model_dump(mode="json", by_alias=True))

    def table(self) -> Table:
        """A table of the cells, at most 80 columns wide."""
        versions = {cell.runtime: cell.version for cell in self.cells}
        named = ", ".join(f"{runtime} {version}" for runtime, version in versions.items())
        table = Table(
            title="One inference of batch 1 in ms; peak memory over the import in MiB",
            caption=f"{self.protocol.statement}; {self.machine.cpu}; {named}",
            box=None,
            padding=(0, 1, 0, 0),
        )
        table.add_column("network")
        table.add_column("runtime x threads", no_wrap=True)
        for name in ("p50", "95%", "p90", "p99", "load", "first", "MiB", "faster"):
            table.add_column(name, justify="right")
        for cell in self.cells:
            latency, speedup = cell.latency, self.speedup(cell)
            low, high = latency.p50_interval
            arithmetic = "" if cell.arithmetic == "f32" else f" {cell.arithmetic}"
            table.add_row(
                (cell.network if cell.precision == "fp32" else f"  {cell.precision}")
                + ("" if cell.status == "OK" else "!"),
                f"{cell.runtime}{arithmetic} x{cell.threads}",
                short(latency.p50),
                f"±{100 * max(high - latency.p50, latency.p50 - low) / latency.p50:.2g}%",
                short(latency.p90),
                "" if latency.p99 is None else short(latency.p99),
                short(median(process.load_ms for process in cell.processes)),
                short(median(process.first_ms for process in cell.processes)),
                short(cell.peak_over_import / 2**20),
                "" if speedup is None else f"{short(speedup)}x",
            )
        return table


def summary(milliseconds: npt.NDArray[np.float64]) -> Latency:
    """Compute the statistics of one process's samples [n] in ms, given in the order of measurement."""
    p50, p90 = np.quantile(milliseconds, [0.5, 0.9])
    enough = len(milliseconds) >= P99_SAMPLES
    return Latency(
        n=len(milliseconds),
        min=float(milliseconds.min()),
        mean=float(milliseconds.mean()),
        p50=float(p50),
        p90=float(p90),
        p99=float(np.quantile(milliseconds, 0.99)) if enough else None,
        max=float(milliseconds.max()),
        p50_interval=quantile_interval(milliseconds, 0.5),
        p90_interval=quantile_interval(milliseconds, 0.9),
    )


def quantile_interval(samples: npt.NDArray[np.float64], q: float) -> tuple[float, float]:
    """Compute a 95 % confidence interval of a quantile with a block bootstrap.

    Successive runs are correlated, so resampling single runs would give an interval that is too narrow.
    Instead, up to 100 non-overlapping blocks of the time series are resampled (Künsch 1989).

    Args:
        samples: samples [n] in the order of measurement.
        q: the quantile, 0..1.

    Returns:
        The 2.5 % and 97.5 % percentiles of the quantile over 1,000 resamples.
    """
    n = len(samples)
    blocks = min(n, _BLOCKS)
    order = np.argsort(samples, kind="stable")
    ranked = samples[order]
    block_of = (order * blocks) // n
    drawn = np.random.default_rng(0).multinomial(blocks, [1 / blocks] * blocks, _RESAMPLES)
    points = np.empty(_RESAMPLES)
    for index, times in enumerate(drawn):
        below = np.cumsum(times[block_of])
        points[index] = ranked[np.searchsorted(below, q * below[-1])]
    low, high = np.quantile(points, [0.025, 0.975])
    return float(low), float(high)


def combined(parts: Sequence[Latency]) -> Latency:
    """Combine the statistics of several processes: the median of each, and the union of intervals."""
    if len(parts) == 1:
        return parts[0]

    def middle(name: str) -> float:
        return float(median(getattr(part, name) for part in parts))

    def span(name: str) -> tuple[float, float]:
        intervals = [getattr(part, name) for part in parts]
        return min(low for low, _ in intervals), max(high for _, high in intervals)

    return Latency(
        n=sum(part.n for part in parts),
        min=min(part.min for part in parts),
        mean=middle("mean"),
        p50=middle("p50"),
        p90=middle("p90"),
        p99=None if any(part.p99 is None for part in parts) else middle("p99"),
        max=max(part.max for part in parts),
        p50_interval=span("p50_interval"),
        p90_interval=span("p90_interval"),
    )


def judge(
    profile: DeviceProfile, cell: Cell, other: Sequence[str], protocol: Protocol
) -> Iterator[Verdict]:
    """Yield the verdicts of a cell on the profile's latency and memory budgets.

    Args:
        profile: profile with the budgets.
        cell: the measured cell.
        other: differences between the machine and the profile's device.
        protocol: the measurement protocol; the verdicts mention it if it was not the full one.
    """
    limits = profile.budgets.latency
    for name in ("p50", "p90"):
        limit = None if limits is None else getattr(limits, name)
        yield judge_latency(name, limit, cell, other, protocol)
    yield _judge_memory(profile.budgets.memory, cell, other)


def _judge_memory(limit: float | None, cell: Cell, other: Sequence[str]) -> Verdict:
    word: VerdictWord = "PASS"
    note = "peak resident memory less that after the import"
    if limit is None:
        word = "UNCHECKED"
    elif any(one.startswith(EMULATED_BY) for one in other):
        word, note = "INCONCLUSIVE", f"{note}, of an emulator and the network together"
    elif cell.peak_over_import > limit:
        word = "FAIL"
    return Verdict(
        budget="memory",
        limit=limit,
        reached=cell.peak_over_import,
        unit="B",
        verdict=word,
        basis="measured",
        note=note,
    )


def judge_latency(
    name: str, limit: float | None, cell: Cell, other: Sequence[str], protocol: Protocol
) -> Verdict:
    """Judge a cell by one latency limit.

    Args:
        name: ``p50`` or ``p90``.
        limit: the limit in ms; None gives the verdict UNCHECKED.
        cell: the measured cell.
        other: differences between the machine and the profile's device.
        protocol: the measurement protocol.
    """
    low, high = getattr(cell.latency, f"{name}_interval")
    note = ""
    word: VerdictWord
    if limit is None:
        word = "UNCHECKED"
    elif other:
        word, note = "INCONCLUSIVE", f"measured on another machine: {'; '.join(other)}"
    elif cell.status == "INVALID":
        word, note = "INCONCLUSIVE", "the board was throttled or had under-voltage"
    elif cell.status == "NOISY":
        # Other load can only slow a run down: if even the fastest run exceeds the limit, it is a FAIL.
        word = "FAIL" if cell.latency.min > limit else "INCONCLUSIVE"
        note = "another load ran on the machine"
    elif high <= limit:
        word = "PASS"
    elif low > limit:
        word = "FAIL"
    else:
        word, note = (
            "INCONCLUSIVE",
            f"the limit lies in the interval {short(low)} – {short(high)} ms",
        )
    return Verdict(
        budget=f"latency.{name}",
        limit=limit,
        reached=getattr(cell.latency, name),
        unit="ms",
        verdict=word,
        basis="measured",
        note=note if protocol.full else "; ".join(filter(None, (note, "not --full"))),
    )


def doubts(profile: DeviceProfile, machine: Machine, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the reasons for which results may be inaccurate, one sentence each."""
    if machine.emulated:
        yield f"{EMULATED_BY}{machine.emulated}: no timing claim, neither for this machine nor for another"
    slow = [name for name in machine.governors if name != "performance"]
    if slow:
        yield f"frequency governor {', '.join(slow)}, not performance: times may vary"
    if machine.cpu_quota is not None and machine.cpu_quota < machine.physical_cores:
        yield f"this control group may use {machine.cpu_quota:g} cores only"
    for pin in sorted({f"{cell.runtime}=={cell.version}" for cell in cells}):
        if pin in profile.runtime.denylist:
            yield f"{pin} is on the denylist of {profile.id}: it does not work there"
    for cell in cells:
        name = f"{cell.network} {cell.precision} in {cell.runtime}, threads {cell.threads}"
        if cell.status == "NOISY":
            load = max(process.other_load for process in cell.processes)
            yield f"{name}: NOISY, other programs used {load:.2f} of a core"
        if cell.status == "INVALID":
            yield f"{name}: INVALID, the board was throttled or had under-voltage"
        if not all(process.warm_settled for process in cell.processes):
            yield f"{name}: the warm-up did not reach a steady latency in time"


def short(value: float) -> str:
    """Format a number with about three significant digits, without an exponent."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"
