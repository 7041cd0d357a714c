"""What a measurement says: its figures, the verdicts on a profile's budgets, and the table.

    samples → Latency → Process → Cell → BenchResult (JSON, table)

A *cell* is one network of one precision in one runtime with one number of threads.
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
"""Cores' worth of other work during a cell from which on it counts as disturbed."""
P99_SAMPLES = 1000
"""Samples under which no 99th percentile is given."""

_BLOCKS, _RESAMPLES = 100, 1000

Network = Literal["pruned", "baseline"]
Status = Literal["OK", "NOISY", "INVALID"]

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Latency(BaseModel):
    """The distribution of one inference's time, in milliseconds; nothing is trimmed."""

    model_config = _FROZEN

    n: int
    min: float
    mean: float
    p50: float
    p90: float
    p99: float | None
    """None under 1,000 samples."""
    max: float
    p50_interval: tuple[float, float]
    """95 %, by a block bootstrap; over several processes the smallest that holds all of theirs."""
    p90_interval: tuple[float, float]


class Memory(BaseModel):
    """Resident memory of the measuring process in bytes."""

    model_config = _FROZEN

    after_import: int
    after_load: int
    after_first: int
    steady: int
    peak: int
    """The largest it ever was (VmHWM)."""

    @property
    def peak_over_import(self) -> int:
        """What the network needed: the peak less what Python and the runtime take by themselves."""
        return max(0, self.peak - self.after_import)


class Process(BaseModel):
    """One process's measurement of a cell."""

    model_config = _FROZEN

    import_ms: float
    load_ms: float
    first_ms: float
    warm_runs: int
    warm_seconds: float
    warm_settled: bool
    """Whether two successive medians of 10 runs came within 2 % before the cap."""
    latency: Latency
    memory: Memory
    other_load: float
    """Cores' worth of work that others did on the machine meanwhile."""
    attempts: int
    throttled: bool


class Cell(BaseModel):
    """One network of one precision in one runtime with one number of threads."""

    model_config = _FROZEN

    network: Network
    runtime: str
    version: str
    precision: NumberFormat
    """Number format of the network's file."""
    arithmetic: str
    """What the runtime computes in, int8 layers aside."""
    threads: int
    options: dict[str, Any]
    latency: Latency
    """Over all processes: the median of each figure."""
    peak_over_import: int
    """Bytes; the largest of the processes."""
    status: Status
    """NOISY: another load stayed; INVALID: the board was throttled or short of voltage."""
    processes: tuple[Process, ...]


class Failure(BaseModel):
    """A cell that could not be measured."""

    model_config = _FROZEN

    network: Network
    runtime: str
    precision: NumberFormat
    threads: int
    why: str
    """In words for the user, with what to do."""

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.network} {self.precision} in {self.runtime}, {threads}: {self.why}"


class Protocol(BaseModel):
    """How it was measured."""

    model_config = _FROZEN

    full: bool
    """Whether it was the protocol whose figures two people may compare."""
    seconds: float
    """Timed seconds a process."""
    processes: int
    """A cell."""
    statement: str


class BenchResult(BaseModel):
    """All that was measured, on what, and what it means for the profile's budgets."""

    model_config = _FROZEN

    schema_: Literal[2] = Field(default=2, alias="schema")
    protocol: Protocol
    machine: Machine
    profile: str
    profile_sha256: str
    differences: tuple[str, ...]
    """In what this machine is not the profile's device; latency is judged only when in nothing."""
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    """What could not be measured, and why."""
    judged: str
    """The cell that the verdicts are about, in words."""
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerProfile, ...] = ()
    """Where the time of each cell goes, if that was asked for."""
    rooflines: tuple[Roofline, ...] = ()
    """What the machine can do with as many threads; with ``layers``."""
    fingerprint: dict[str, Any]
    """What must be equal for two results to be comparable."""
    fingerprint_sha256: str

    def cell(
        self, network: Network, runtime: str, threads: int, precision: NumberFormat = "fp32"
    ) -> Cell | None:
        """The cell, if it was measured."""
        wanted = (network, runtime, threads, precision)
        for cell in self.cells:
            if (cell.network, cell.runtime, cell.threads, cell.precision) == wanted:
                return cell
        return None

    def speedup(self, cell: Cell) -> float | None:
        """How many times faster than the unpruned network's fp32 median, of the same rounds."""
        baseline = self.cell("baseline", cell.runtime, cell.threads)
        if baseline is None or cell.network == "baseline":
            return None
        return baseline.latency.p50 / cell.latency.p50

    def explanations(self) -> Iterator[tuple[LayerProfile, list[str]]]:
        """Each pruned network's layers, with why they take their time and what would help."""
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
        """The heaviest layers of the pruned network's cells, each with its explanation."""
        for profile, sentences in self.explanations():
            yield profile.table()
            yield "\n".join([*sentences, ""])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.model_dump(mode="json", by_alias=True))

    def table(self) -> Table:
        """The cells for people, at most 80 columns wide."""
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
    """The figures of one process's samples, which are in the order in which they were taken."""
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
    """A 95 % interval of a quantile by a block bootstrap.

    Successive runs resemble each other, so whole stretches of the time series are drawn (Künsch
    1989, blocks that do not overlap), up to 100 of them; drawing single runs would give an interval
    that is too narrow.

    Args:
        samples: in the order in which they were taken.
        q: the quantile, 0..1.

    Returns:
        The 2.5 % and 97.5 % points of the quantile over 1,000 resamples.
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
    """The figures of several processes together: the median of each, and the widest interval."""
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
    """Hold a cell against the profile's latency and memory budgets.

    Args:
        profile: the budgets.
        cell: what was measured.
        other: in what the machine is not the profile's device.
        protocol: how it was measured; the verdicts say so if it was not the full one.
    """
    limits = profile.budgets.latency
    for name in ("p50", "p90"):
        limit = None if limits is None else getattr(limits, name)
        yield judge_latency(name, limit, cell, other, protocol)
    yield _judge_memory(profile.budgets.memory, cell, other)


def _judge_memory(limit: float | None, cell: Cell, other: Sequence[str]) -> Verdict:
    word: VerdictWord = "PASS"
    note = "peak resident memory over that after the import"
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
    """Hold a cell against a latency limit; see `judge`."""
    low, high = getattr(cell.latency, f"{name}_interval")
    note = ""
    word: VerdictWord
    if limit is None:
        word = "UNCHECKED"
    elif other:
        word, note = "INCONCLUSIVE", f"measured on another machine: {'; '.join(other)}"
    elif cell.status == "INVALID":
        word, note = "INCONCLUSIVE", "the board was throttled or short of voltage"
    elif cell.status == "NOISY":
        # Another load only ever slows down: what even the fastest run missed is missed.
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
    """What makes the figures less certain than they look, one sentence each."""
    if machine.emulated:
        yield f"{EMULATED_BY}{machine.emulated}: no timing claim, of this machine or any other"
    slow = [name for name in machine.governors if name != "performance"]
    if slow:
        yield f"frequency governor {', '.join(slow)}, not performance: times may vary"
    if machine.cpu_quota is not None and machine.cpu_quota < machine.physical_cores:
        yield f"this control group may use {machine.cpu_quota:g} cores only"
    for pin in sorted({f"{cell.runtime}=={cell.version}" for cell in cells}):
        if pin in profile.runtime.denylist:
            yield f"{pin} does not work on {profile.id}, says its profile"
    for cell in cells:
        name = f"{cell.network} {cell.precision} in {cell.runtime}, threads {cell.threads}"
        if cell.status == "NOISY":
            load = max(process.other_load for process in cell.processes)
            yield f"{name}: NOISY, others used {load:.2f} of a core meanwhile"
        if cell.status == "INVALID":
            yield f"{name}: INVALID, the board was throttled or short of voltage"
        if not all(process.warm_settled for process in cell.processes):
            yield f"{name}: the warm-up did not settle within its cap"


def short(value: float) -> str:
    """Three figures or so, never in powers of ten."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"
