"""Measures several networks side by side: each in its own process, in alternating rounds.

    each subject: import → load → first run → warm-up ┐
              alternating rounds: A B C, C B A, …  ───┴→ samples, other load, memory

Alternating makes a drift of the machine's speed affect all networks alike; only one process computes
at a time. A process that dies is left out, with the reason, and the others continue.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
"""Most attempts at a cell: if other load disturbs it, it is repeated up to three times."""

_ROUNDS = 10
_WARM_SECONDS, _WARM_CAP = 2.0, 30.0
_UNSHORTENED = 15.0
"""A process that is timed for fewer seconds than this has a proportionally shorter warm-up."""


@dataclass(frozen=True)
class Subject:
    """A model file to measure."""

    network: Network
    precision: NumberFormat
    model: Path
    needs: int = 0
    """Predicted memory in bytes that it needs, including the runtime's own."""

    @property
    def name(self) -> str:
        """Name for messages, e.g. ``pruned network, int8``."""
        return f"{self.network} network, {self.precision}"


@dataclass(frozen=True)
class CellLength:
    """How long one cell is measured."""

    seconds: float
    """Timed seconds per process."""
    runs: int = 1
    """Minimum number of timed runs per process."""
    processes: int = 1
    """Number of processes, one after the other, in which the cell is measured."""

    @property
    def round_seconds(self) -> float:
        """Duration of one round in seconds; there are at least ten."""
        return self.seconds / _ROUNDS

    @property
    def warm_seconds(self) -> float:
        """Minimum duration of the warm-up in seconds."""
        return _WARM_SECONDS * min(1.0, self.seconds / _UNSHORTENED)

    @property
    def warm_cap(self) -> float:
        """Maximum duration of the warm-up in seconds."""
        return _WARM_CAP * min(1.0, self.seconds / _UNSHORTENED)


Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the group's work that is done, 0..1."""


def measure(
    subjects: Sequence[Subject],
    shape: Sequence[int],
    runtime: str,
    threads: int,
    length: CellLength,
    progress: Progress,
) -> tuple[list[Cell], dict[Subject, str]]:
    """Measure models in one runtime with one number of threads, in alternating rounds.

    Args:
        subjects: the models.
        shape: shape of their input, [N, 3, S, S].
        runtime: a key of ``sessions.RUNTIMES``.
        threads: number of threads of one inference.
        length: how long each model is measured.
        progress: called before each round.

    Returns:
        A cell for each model that could be measured, in the given order, and for each of the others
        the reason why not.
    """
    setup = _Setup(shape, runtime, threads)
    repetitions: list[dict[Subject, _Measured]] = []
    failures: dict[Subject, str] = {}
    for done in range(length.processes):

        def step(what: str, share: float, done: int = done) -> None:
            progress(what, (done + min(1.0, share)) / length.processes)

        alive = [subject for subject in subjects if subject not in failures]
        measured, failed = _in_new_processes(alive, setup, length, step)
        repetitions.append(measured)
        failures |= failed
    cells = [
        _cell(subject, setup, [measured[subject] for measured in repetitions])
        for subject in subjects
        if subject not in failures
    ]
    return cells, failures


@contextmanager
def one_after_another(
    runtime: str, threads: int, length: CellLength
) -> Iterator[Callable[[Path, Sequence[int]], Cell]]:
    """Measure models one by one in a single process, which imports the runtime only once.

    The memory in a cell is therefore that of all models measured so far.

    Yields:
        A function from a model file and the shape of its input, [N, 3, S, S], to a cell. It raises
        BadInput for a model that does not run.
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
            measured = _alternating({subject: children[0]}, length, lambda what, share: None)
            return _cell(subject, _Setup(shape, runtime, threads), [measured[subject]])

        yield clock


@dataclass(frozen=True)
class _Setup:
    """What all models of one measurement share."""

    shape: Sequence[int]
    """Shape of the input, [N, 3, S, S]."""
    runtime: str
    threads: int

    def start(self, subject: Subject) -> AbstractContextManager[Child]:
        """A new process that has loaded the subject; the process ends with the context."""
        return started(subject.model, self.shape, self.runtime, self.threads)


@dataclass
class _Tally:
    """Sums over the rounds of one process in one attempt."""

    samples: list[Nanoseconds] = field(default_factory=list)
    other: float = 0.0  # processor seconds that other programs used
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


def _in_new_processes(
    subjects: Sequence[Subject], setup: _Setup, length: CellLength, progress: Progress
) -> tuple[dict[Subject, _Measured], dict[Subject, str]]:
    """Measure each subject in a new process; returns the measurements and why others failed."""
    failures: dict[Subject, str] = {}
    with ExitStack() as stack:
        children: dict[Subject, Child] = {}
        for subject in subjects:
            try:
                check_memory(subject.needs)
                progress(f"{subject.name}, loading", 0.0)
                children[subject] = stack.enter_context(setup.start(subject))
            except BadInput as error:
                failures[subject] = str(error)
        while children:
            try:
                return _alternating(children, length, progress), failures
            except ChildDied as died:
                subject = next(one for one, child in children.items() if child is died.child)
                failures[subject] = str(died)
                children.pop(subject).end()  # a process that hangs may still use the processor
    return {}, failures


def _alternating(
    children: dict[Subject, Child], length: CellLength, progress: Progress
) -> dict[Subject, _Measured]:
    """Warm each process up, then alternate rounds until an attempt is undisturbed or the last."""
    warm: dict[Subject, dict[str, Any]] = {}
    for subject, child in children.items():
        progress(f"{subject.name}, warming up", 0.0)
        order = {"do": "warm", "seconds": length.warm_seconds, "cap": length.warm_cap}
        warm[subject] = child.ask(order, 10 * length.warm_cap + PATIENCE)
    before = throttling()
    attempt = 1
    while (tallies := _attempt(children, length, progress, attempt)) is None:
        time.sleep(length.seconds / 3)  # by then the other load may have ended
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
    """All rounds of one attempt; None as soon as too much other load is certain, except in the last."""
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
        order.reverse()  # A B B A: a drift of the machine's speed affects both alike
        rounds += 1
    return tallies


def _round(child: Child, tally: _Tally, length: CellLength) -> None:
    time.sleep(0.02)  # let the threads of the previous process stop spinning
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


def _cell(subject: Subject, setup: _Setup, measured: Sequence[_Measured]) -> Cell:
    processes = tuple(one.process for one in measured)
    ready = measured[0].ready
    status: Status = "OK"
    if any(process.other_load > MAX_OTHER_LOAD for process in processes):
        status = "NOISY"
    if any(process.throttled for process in processes):
        status = "INVALID"
    return Cell(
        network=subject.network,
        runtime=setup.runtime,
        version=ready["version"],
        precision=subject.precision,
        arithmetic=ready["arithmetic"],
        threads=setup.threads,
        options=ready["options"],
        latency=combined([process.latency for process in processes]),
        peak_over_import=max(process.memory.peak_over_import for process in processes),
        status=status,
        processes=processes,
    )
