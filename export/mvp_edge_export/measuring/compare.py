"""Compares two measurements cell by cell.

    bench.json (before) ┐  same machine   ┌→ speed-ups with confidence intervals
    bench.json (after)  ┴→ and protocol? ─┴→ list of what changed between them

Latencies are only comparable if they were measured on the same machine (processor, its flags, usable
cores, frequency governor and limit) and with the same protocol. Other measurements are refused unless
the comparison is forced, and then the differences are listed. What may change on purpose is listed too:
the networks, the releases of runtime, Python and operating system, and the profile.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.result import BenchResult, Cell, Latency, Network, Status, short
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import parse

_MACHINE = {
    "arch": "architecture",
    "board": "board",
    "cpu": "processor",
    "flags": "processor flags",
    "physical_cores": "cores",
    "affinity": "processors that may be used",
    "cpu_quota": "quota of processor time",
    "governors": "frequency governor",
    "max_mhz": "highest frequency in MHz",
}
"""Fields of ``Machine`` that must be equal, with their names. Memory and current frequency may differ."""
_PROTOCOL = {
    "full": "the full protocol",
    "seconds": "timed seconds per process",
    "processes": "processes per cell",
}

Word = Literal["faster", "slower", "alike", "unsure"]
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Change(BaseModel):
    """One cell in both measurements."""

    model_config = _FROZEN

    network: Network
    runtime: str
    precision: NumberFormat
    threads: int
    arithmetic: tuple[str, str]
    p50: tuple[float, float]
    """Median latency in ms, before and after."""
    speedup: float
    """Ratio of the medians, before to after: above 1 means faster."""
    interval: tuple[float, float]
    """95 % confidence interval of ``speedup``; see ``ratio_interval``."""
    peak_over_import: tuple[int, int]
    """Memory that the network needed in bytes, before and after."""
    status: tuple[Status, Status]
    word: Word
    """``unsure`` if a cell was disturbed or throttled; ``alike`` if the interval contains 1."""

    @property
    def name(self) -> str:
        """Name of the cell for messages."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.network} {self.precision} in {self.runtime}, {threads}"


class Comparison(BaseModel):
    """Comparison of two measurements."""

    model_config = _FROZEN

    before: str
    """File of the first measurement."""
    after: str
    """File of the second measurement."""
    forced: tuple[str, ...]
    """Differences of machine or protocol; only a forced comparison has any."""
    treatment: tuple[str, ...]
    """Other differences, which may be on purpose; empty for a repetition."""
    changes: tuple[Change, ...]
    only_before: tuple[str, ...]
    """Names of cells that only the first measurement has."""
    only_after: tuple[str, ...]
    """Names of cells that only the second measurement has."""
    notes: tuple[str, ...]
    """Reasons for which the speed-ups may be inaccurate."""

    def table(self) -> Table:
        """A table of the cells, at most 80 columns wide."""
        table = Table(
            title="p50 of one inference in ms, before and after",
            caption="faster: before / after with its 95 % interval",
            box=None,
            padding=(0, 2, 0, 0),
        )
        table.add_column("network")
        table.add_column("runtime x threads", no_wrap=True)
        for name in ("before", "after", "faster", "95 %"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for one in self.changes:
            low, high = one.interval
            table.add_row(
                one.network if one.precision == "fp32" else f"{one.network} {one.precision}",
                f"{one.runtime}{_arithmetics(one)} x{one.threads}",
                *map(short, one.p50),
                f"{short(one.speedup)}x",
                f"{short(low)} – {short(high)}",
                one.word,
            )
        return table


def compare(before: Path, after: Path, *, force_different: bool = False) -> Comparison:
    """Compare the results of two measurements.

    Args:
        before: ``bench.json`` of the first measurement.
        after: ``bench.json`` of the second measurement.
        force_different: whether to compare measurements of different machines or protocols.

    Raises:
        BadInput: a file is not a result of ``bench``, machine or protocol differ, or there is no
            cell that both have.
    """
    one, other = _read(before), _read(after)
    forced = tuple(_identity(one, other))
    if forced and not force_different:
        raise BadInput(
            f"{before} {after}: measured on different machines or by different protocols:"
            f" {'; '.join(forced)}; --force-different compares them anyway",
            field="compare",
        )
    keys = {_key(cell): cell for cell in other.cells}
    pairs = [(cell, keys[_key(cell)]) for cell in one.cells if _key(cell) in keys]
    if not pairs:
        raise BadInput(
            f"{before} {after}: no cell in common: {_names(one)} against {_names(other)}",
            field="compare",
        )
    shared = {_key(cell) for cell, _ in pairs}
    changes = tuple(_change(*pair) for pair in pairs)
    return Comparison(
        before=str(before),
        after=str(after),
        forced=forced,
        treatment=tuple(_treatment(one, other)),
        changes=changes,
        only_before=tuple(_name(cell) for cell in one.cells if _key(cell) not in shared),
        only_after=tuple(_name(cell) for cell in other.cells if _key(cell) not in shared),
        notes=tuple(_notes(one, other, changes)),
    )


def ratio_interval(before: Latency, after: Latency) -> tuple[float, float]:
    """Compute a 95 % confidence interval of the ratio of two independent medians, before to after.

    It is derived from the medians' own intervals by the method of variance estimates recovery (Zou and
    Donner 2008): on the logarithmic scale, the distances between each median and the ends of its
    interval are added in quadrature. This assumes neither symmetry nor a distribution, and is narrower
    than the ratio of opposite ends.
    """
    down, up = _spread(before)
    other_down, other_up = _spread(after)
    log = math.log(before.p50 / after.p50)
    return math.exp(log - math.hypot(down, other_up)), math.exp(log + math.hypot(up, other_down))


def _spread(latency: Latency) -> tuple[float, float]:
    low, high = latency.p50_interval
    return math.log(latency.p50 / low), math.log(high / latency.p50)


def _read(path: Path) -> BenchResult:
    result = parse(BenchResult, read_json(path, "bench"), "bench", path)
    if any(cell.latency.min <= 0 for cell in result.cells):
        raise BadInput(f"bench: {path}: cells: a latency is not above 0; bench again")
    return result


def _identity(one: BenchResult, other: BenchResult) -> Iterator[str]:
    for fields, a, b in (
        (_MACHINE, one.machine, other.machine),
        (_PROTOCOL, one.protocol, other.protocol),
    ):
        for field, words in fields.items():
            if (left := getattr(a, field)) != (right := getattr(b, field)):
                yield f"{words}: {_differing(left, right)}"


def _differing(left: Any, right: Any) -> str:
    """Describe two different values; of two tuples, only the elements that one of them lacks."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        removed, added = (_listed(set(a) - set(b)) for a, b in ((left, right), (right, left)))
        return " and ".join(
            f"{words} only in the {side} ({n})"
            for (words, n), side in ((removed, "first"), (added, "second"))
            if n
        )
    return f"{left} and {right}"


def _listed(values: set[Any], most: int = 6) -> tuple[str, int]:
    shown = ", ".join(map(str, sorted(values)[:most]))
    return shown + (", …" if len(values) > most else ""), len(values)


def _treatment(one: BenchResult, other: BenchResult) -> Iterator[str]:
    a, b = one.fingerprint, other.fingerprint
    models, others = a.get("models", {}), b.get("models", {})
    for network in ("pruned", "baseline"):
        if _files(models, network) != _files(others, network):
            yield f"the files of the {'unpruned' if network == 'baseline' else network} network"
    releases, later = a.get("versions", {}), b.get("versions", {})
    for name in dict.fromkeys((*releases, *later)):
        if name in releases and name in later and releases[name] != later[name]:
            yield f"{name} {releases[name]} → {later[name]}"
    if a.get("os") != b.get("os"):
        yield f"{a.get('os')} → {b.get('os')}"
    if one.profile_sha256 != other.profile_sha256:
        yield "the profile" + (
            f": {one.profile} → {other.profile}" if one.profile != other.profile else ""
        )


def _files(models: dict[str, str], network: str) -> dict[str, str]:
    """The sha256 of each file of one network, by file name."""
    inside = network == "baseline"
    return {name: sha for name, sha in models.items() if name.startswith("baseline/") == inside}


def _notes(one: BenchResult, other: BenchResult, changes: tuple[Change, ...]) -> Iterator[str]:
    for change in changes:
        for side, status in zip(("before", "after"), change.status, strict=True):
            if status == "NOISY":
                yield f"{change.name}: NOISY {side}, other load ran on the machine"
            if status == "INVALID":
                yield f"{change.name}: INVALID {side}, the board was throttled"
    a, b = one.fingerprint, other.fingerprint
    same = a.get("versions") == b.get("versions") and a.get("os") == b.get("os")
    if same and _files(a.get("models", {}), "baseline") == _files(b.get("models", {}), "baseline"):
        for change in changes:
            if change.network == "baseline" and change.word in ("faster", "slower"):
                low, high = change.interval
                yield (
                    f"{change.name} is the same file in the same release both times, but its speed-up is"
                    f" {change.speedup:.3g}x ({low:.3g} – {high:.3g}): the others may have the same drift"
                )
    if one.protocol.processes == 1 or other.protocol.processes == 1:
        yield "one process per cell: the intervals do not include differences between processes; use --full"


def _change(before: Cell, after: Cell) -> Change:
    interval = ratio_interval(before.latency, after.latency)
    word: Word = "alike"
    if before.status != "OK" or after.status != "OK":
        word = "unsure"
    elif interval[0] > 1:
        word = "faster"
    elif interval[1] < 1:
        word = "slower"
    return Change(
        network=before.network,
        runtime=before.runtime,
        precision=before.precision,
        threads=before.threads,
        arithmetic=(before.arithmetic, after.arithmetic),
        p50=(before.latency.p50, after.latency.p50),
        speedup=before.latency.p50 / after.latency.p50,
        interval=interval,
        peak_over_import=(before.peak_over_import, after.peak_over_import),
        status=(before.status, after.status),
        word=word,
    )


def _key(cell: Cell) -> tuple[Network, str, NumberFormat, int]:
    return cell.network, cell.runtime, cell.precision, cell.threads


def _name(cell: Cell) -> str:
    return f"{cell.network} {cell.precision} in {cell.runtime}, threads {cell.threads}"


def _names(result: BenchResult) -> str:
    return ", ".join(_name(cell) for cell in result.cells)


def _arithmetics(change: Change) -> str:
    before, after = change.arithmetic
    if before != after:
        return f" {before} → {after}"
    return "" if before == "f32" else f" {before}"
