"""Networks in turns: each in a process of its own, one round after the other.

    each subject: import → load → first run → warm-up ┐
                          rounds in turns: A B C, C B A, … ─→ samples, other load, memory

A drift of the machine meets all alike; only one process computes at a time. A process that dies is
left out, with the reason, and the others go on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import (
    busy_seconds,
    throttling,
    was_throttled,
)
from mvp_edge_export.measuring.process import PATIENCE, Child, ChildDied, Nanoseconds, started
from mvp_edge_export.measuring.result import (
    MAX_OTHER_LOAD,
    Cell,
    Memory,
    Network,
    Process,
    Status,
    combined,
    summary,
)
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.running.sessions import check_memory

MAX_ATTEMPTS = 4
"""A disturbed cell is measured again at most three times."""

_ROUNDS = 10
_WARM_SECONDS, _WARM_CAP = 2.0, 30.0
_UNSHORTENED = 15.0
"""Timed seconds from which on the warm-up is not shortened with them."""


@dataclass(frozen=True)
class Subject:
    """A model file to be measured."""

    network: Network
    precision: NumberFormat
    model: Path
    needs: int = 0
    """Bytes of memory that it is predicted to need, the runtime's own included."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.network} network, {self.precision}"


@dataclass(frozen=True)
class CellLength:
    """How long a cell is measured."""

    seconds: float
    """Timed seconds a process."""
    runs: int = 1
    """The least number of timed runs a process."""
    processes: int = 1
    """A cell."""

    @property
    def round_seconds(self) -> float:
        """Of the ten rounds that are made at least."""
        return self.seconds / _ROUNDS

    @property
    def warm_seconds(self) -> float:
        """The least that the warm-up takes."""
        return _WARM_SECONDS * min(1.0, self.seconds / _UNSHORTENED)

    @property
    def warm_cap(self) -> float:
        """The most that it takes."""
        return _WARM_CAP * min(1.0, self.seconds / _UNSHORTENED)


Progress = Callable[[str, float], None]
"""Told what is being done, and the share of the group's work that is done."""


def measure(
    subjects: Sequence[Subject],
    shape: Sequence[int],
    runtime: str,
    threads: int,
    length: CellLength,
    progress: Progress,
) -> tuple[list[Cell], dict[Subject, str]]:
    """Measure models in one runtime with one number of threads, in turns.

    Returns:
        A cell for each that could be measured, in the order given, and for the others the reason.
    """
    turns: list[dict[Subject, _Measured]] = []
    failures: dict[Subject, str] = {}
    for turn in range(length.processes):

        def step(what: str, share: float, turn: int = turn) -> None:
            progress(what, (turn + min(1.0, share)) / length.processes)

        alive = [subject for subject in subjects if subject not in failures]
        turns.append(_one_turn(alive, shape, runtime, threads, length, step, failures))
    cells = [
        _cell(subject, runtime, threads, [turn[subject] for turn in turns])
        for subject in subjects
        if subject not in failures
    ]
    return cells, failures


@contextmanager
def one_after_another(
    runtime: str, threads: int, length: CellLength
) -> Iterator[Callable[[Path, Sequence[int]], Cell]]:
    """Measures models one by one in a single process, which imports its runtime but once.

    What their cells say of memory is that of all models so far.

    Yields:
        (model file, shape of its input) → cell; raises BadInput for what does not run.
    """
    with ExitStack() as stack:
        children: list[Child] = []

        def clock(model: Path, shape: Sequence[int]) -> Cell:
            if children:
                job = {"model": str(model), "runtime": runtime, "threads": threads}
                children[0].ready = children[0].ask({**job, "shape": list(shape)}, PATIENCE)
            else:
                children.append(stack.enter_context(started(model, shape, runtime, threads)))
            subject = Subject("pruned", "fp32", model)
            measured = _in_turns({subject: children[0]}, length, lambda what, share: None)
            return _cell(subject, runtime, threads, [measured[subject]])

        yield clock


@dataclass
class _Tally:
    """A child's rounds of one attempt."""

    samples: list[Nanoseconds] = field(default_factory=list)
    other: float = 0.0  # seconds of other work
    wall: float = 0.0
    steady: int = 0

    @property
    def n(self) -> int:
        return sum(map(len, self.samples))

    @property
    def load(self) -> float:
        return max(0.0, self.other / self.wall)


@dataclass(frozen=True)
class _Measured:
    ready: dict[str, Any]
    process: Process


def _one_turn(
    subjects: Sequence[Subject],
    shape: Sequence[int],
    runtime: str,
    threads: int,
    length: CellLength,
    progress: Progress,
    failures: dict[Subject, str],
) -> dict[Subject, _Measured]:
    """A process a subject; what fails is added to ``failures``."""
    with ExitStack() as stack:
        children: dict[Subject, Child] = {}
        for subject in subjects:
            try:
                check_memory(subject.needs)
                progress(f"{subject.name}, loading", 0.0)
                child = started(subject.model, shape, runtime, threads)
                children[subject] = stack.enter_context(child)
            except BadInput as error:
                failures[subject] = str(error)
        while children:
            try:
                return _in_turns(children, length, progress)
            except ChildDied as died:
                subject = next(one for one, child in children.items() if child is died.child)
                failures[subject] = str(died)
                children.pop(subject).end()  # one that hangs may compute on
    return {}


def _in_turns(
    children: dict[Subject, Child], length: CellLength, progress: Progress
) -> dict[Subject, _Measured]:
    """Warm each child up, then rounds in turns; the quietest of the attempts counts."""
    warm: dict[Subject, dict[str, Any]] = {}
    for subject, child in children.items():
        progress(f"{subject.name}, warming up", 0.0)
        order = {"do": "warm", "seconds": length.warm_seconds, "cap": length.warm_cap}
        warm[subject] = child.ask(order, 10 * length.warm_cap + PATIENCE)
    before = throttling()
    attempt = 1
    while (tallies := _attempt(children, length, progress, attempt)) is None:
        time.sleep(length.seconds / 3)  # the other load may be over by then
        attempt += 1
    throttled = was_throttled(before, throttling())
    return {
        subject: _Measured(
            child.ready,
            _process(child, warm[subject], tallies[subject], attempt, throttled),
        )
        for subject, child in children.items()
    }


def _attempt(
    children: dict[Subject, Child], length: CellLength, progress: Progress, attempt: int
) -> dict[Subject, _Tally] | None:
    """All rounds; None as soon as the cell cannot be quiet any more, but for the last attempt."""
    tallies = {subject: _Tally() for subject in children}
    order = list(children)
    what = "measuring"
    if attempt > 1:
        what += f" again, another load ran on the machine (attempt {attempt} of {MAX_ATTEMPTS})"
    rounds = 0
    while rounds < _ROUNDS or min(tally.n for tally in tallies.values()) < length.runs:
        progress(what, (rounds + 1) / (_ROUNDS + 1))
        for subject in order:
            tally = tallies[subject]
            _round(children[subject], tally, length)
            if attempt < MAX_ATTEMPTS and tally.other > MAX_OTHER_LOAD * max(
                length.seconds, tally.wall
            ):
                return None
        order.reverse()  # A B B A: a drift of the machine weighs on both alike
        rounds += 1
    return tallies


def _round(child: Child, tally: _Tally, length: CellLength) -> None:
    time.sleep(0.02)  # until the other child's threads have stopped spinning
    busy, begin = busy_seconds(), time.monotonic()
    limit = 10 * length.round_seconds + PATIENCE
    facts = child.ask({"do": "round", "seconds": length.round_seconds}, limit)
    tally.wall += time.monotonic() - begin
    tally.other += busy_seconds() - busy - facts["cpu"]
    tally.samples.append(child.samples(facts["n"], limit))
    tally.steady = facts["rss"]


def _process(
    child: Child, warm: dict[str, Any], tally: _Tally, attempts: int, throttled: bool
) -> Process:
    ready = child.ready
    peak = child.ask({"do": "memory"}, PATIENCE)["peak"]
    return Process(
        import_ms=ready["import_ms"],
        load_ms=ready["load_ms"],
        first_ms=ready["first_ms"],
        warm_runs=warm["runs"],
        warm_seconds=warm["seconds"],
        warm_settled=warm["settled"],
        latency=summary(np.concatenate(tally.samples) / 1e6),
        memory=Memory(
            after_import=ready["rss"]["import"],
            after_load=ready["rss"]["load"],
            after_first=ready["rss"]["first"],
            steady=tally.steady,
            peak=peak,
        ),
        other_load=round(tally.load, 4),
        attempts=attempts,
        throttled=throttled,
    )


def _cell(subject: Subject, runtime: str, threads: int, measured: Sequence[_Measured]) -> Cell:
    processes = tuple(one.process for one in measured)
    ready = measured[0].ready
    status: Status = "OK"
    if any(process.other_load > MAX_OTHER_LOAD for process in processes):
        status = "NOISY"
    if any(process.throttled for process in processes):
        status = "INVALID"
    return Cell(
        network=subject.network,
        runtime=runtime,
        version=ready["version"],
        precision=subject.precision,
        arithmetic=ready["arithmetic"],
        threads=threads,
        options=ready["options"],
        latency=combined([process.latency for process in processes]),
        peak_over_import=max(process.memory.peak_over_import for process in processes),
        status=status,
        processes=processes,
    )
