"""Latency and memory of a bundle on this machine, measured so that two people get the same answer.

    each network x runtime x thread count, a *cell*, in a fresh process:
        import → load → first run → warm-up → rounds of timed runs → memory

The pruned and the unpruned network take turns, a round each, so that a drift of the machine meets
both alike; only one process computes at a time. Another load on the machine is seen in /proc/stat:
then the rounds are repeated, and a cell that stays disturbed is marked NOISY. Timed is one
inference of batch 1 from float32 pixels to logits; decoding and preprocessing are not in it.
"""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import (
    Machine,
    busy_seconds,
    differences,
    this_machine,
    throttling,
    was_throttled,
)
from mvp_edge_export.measuring.process import PATIENCE, Child, Nanoseconds, started
from mvp_edge_export.measuring.result import (
    MAX_OTHER_LOAD,
    BenchResult,
    Cell,
    Memory,
    Network,
    Process,
    Protocol,
    Status,
    combined,
    doubts,
    judge,
    judged_cell,
    summary,
)
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.sessions import (
    RUNTIMES,
    choose_runtime,
    format_of,
    import_runtime,
    installed_runtimes,
)
from mvp_edge_export.storage import sha256_json

MAX_ATTEMPTS = 4
"""A disturbed cell is measured again at most three times."""

_DEFAULT_SECONDS, _FULL_SECONDS, _FULL_RUNS, _FULL_PROCESSES = 15.0, 60.0, 1024, 3
_ROUNDS = 10
_WARM_SECONDS, _WARM_CAP = 2.0, 30.0


def bench(
    bundle: Bundle,
    *,
    profile: DeviceProfile | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    full: bool = False,
    seconds: float | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> BenchResult:
    """Measure a bundle on this machine; with a baseline in it, both networks in turns.

    Args:
        bundle: from ``load_bundle``.
        profile: whose budgets to judge; the bundle's own if None.
        runtimes: keys of ``sessions.RUNTIMES``; None takes those installed that it has files for.
        threads: thread counts; None takes 1 and all physical cores.
        full: at least 1,024 runs and 60 s in each of three processes, instead of 15 s in one.
        seconds: timed seconds a process instead.
        progress: told what is measured and the share of the work that is done, 0..1, never from
            within a timed round.

    Raises:
        BadInput: no Linux, a runtime that cannot be used, or a network that does not run.
    """
    profile = profile or bundle.manifest.profile
    machine = this_machine()
    plan = _Plan(
        seconds=seconds or (_FULL_SECONDS if full else _DEFAULT_SECONDS),
        runs=_FULL_RUNS if full else 1,
        processes=_FULL_PROCESSES if full else 1,
    )
    runtimes = _usable(bundle, runtimes)
    threads = sorted(set(threads or (1, machine.physical_cores)))
    if threads[0] < 1:
        raise BadInput(f"--threads {threads[0]}: at least 1")
    networks: list[Network] = ["pruned", "baseline"] if bundle.manifest.baseline else ["pruned"]
    pairs = [(runtime, count) for runtime in runtimes for count in threads]
    cells: list[Cell] = []
    shape = (1, 3, bundle.preprocess.size, bundle.preprocess.size)
    for done, (runtime, count) in enumerate(pairs):
        models = {n: bundle.model(format_of(runtime), baseline=n == "baseline") for n in networks}
        turns: list[dict[Network, _Measured]] = []
        for turn in range(plan.processes):
            share = (done + turn / plan.processes) / len(pairs)
            what = f"{runtime}, {count} thread{'s' * (count > 1)}"
            with started(models, shape, runtime, count) as children:
                steps = _Steps(progress, what, share, 1 / len(pairs) / plan.processes)
                turns.append(_measure(children, plan, steps))
        cells += [_cell(network, runtime, count, turns) for network in networks]
    progress("done", 1.0)
    return _result(bundle, profile, machine, plan, full, cells)


def time_model(
    model: Path, shape: Sequence[int], runtime: str, threads: int, *, seconds: float = 2.0
) -> Cell:
    """Time one model file by itself on this machine: a cell of one process.

    Args:
        model: in a format that ``runtime`` reads.
        shape: of its input, [N, 3, S, S].
        runtime: a key of ``sessions.RUNTIMES``.
        threads: threads of one inference.
        seconds: timed seconds.

    Raises:
        BadInput: no Linux, a runtime that cannot be used, or a network that does not run.
    """
    with started({"pruned": model}, shape, runtime, threads) as children:
        steps = _Steps(lambda what, share: None, "", 0.0, 1.0)
        turn = _measure(children, _Plan(seconds=seconds, runs=1, processes=1), steps)
    return _cell("pruned", runtime, threads, [turn])


@dataclass(frozen=True)
class _Plan:
    seconds: float
    runs: int
    processes: int

    @property
    def round_seconds(self) -> float:
        return self.seconds / _ROUNDS

    @property
    def statement(self) -> str:
        processes = "one process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.seconds:g} s in {processes} a cell"


@dataclass(frozen=True)
class _Steps:
    """The progress of one group of cells, whose own share of the whole is known."""

    report: Callable[[str, float], None]
    what: str
    start: float
    width: float

    def __call__(self, what: str, share: float) -> None:
        self.report(f"{self.what}: {what}", self.start + self.width * min(1.0, share))


def _usable(bundle: Bundle, asked: Sequence[str] | None) -> list[str]:
    if asked is None:
        found = [name for name in installed_runtimes() if format_of(name) in bundle.manifest.models]
        choose_runtime(bundle)  # says what to install when there is none
        return found
    for name in asked:
        if name not in RUNTIMES:
            raise BadInput(f"unknown runtime {name!r}: choose some of {', '.join(RUNTIMES)}")
        bundle.model(format_of(name))
        import_runtime(name)
    return list(dict.fromkeys(asked))


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


def _measure(
    children: dict[Network, Child], plan: _Plan, progress: _Steps
) -> dict[Network, _Measured]:
    """Warm each child up, then rounds in turns; the quietest of the attempts counts."""
    scale = min(1.0, plan.seconds / _DEFAULT_SECONDS)
    warm: dict[Network, dict[str, Any]] = {}
    for network, child in children.items():
        progress(f"{network} network, warming up", 0.0)
        order = {"do": "warm", "seconds": _WARM_SECONDS * scale, "cap": _WARM_CAP * scale}
        warm[network] = child.ask(order, 10 * _WARM_CAP + PATIENCE)
    before = throttling()
    attempt = 1
    while (tallies := _attempt(children, plan, progress, attempt)) is None:
        time.sleep(plan.seconds / 3)  # the other load may be over by then
        attempt += 1
    throttled = was_throttled(before, throttling())
    return {
        network: _Measured(
            child.ready,
            _process(child, warm[network], tallies[network], attempt, throttled),
        )
        for network, child in children.items()
    }


def _attempt(
    children: dict[Network, Child], plan: _Plan, progress: _Steps, attempt: int
) -> dict[Network, _Tally] | None:
    """All rounds; None as soon as the cell cannot be quiet any more, but for the last attempt."""
    tallies = {network: _Tally() for network in children}
    order = list(children)
    what = "measuring"
    if attempt > 1:
        what += f" again, another load ran on the machine (attempt {attempt} of {MAX_ATTEMPTS})"
    rounds = 0
    while rounds < _ROUNDS or min(tally.n for tally in tallies.values()) < plan.runs:
        progress(what, (rounds + 1) / (_ROUNDS + 1))
        for network in order:
            tally = tallies[network]
            _round(children[network], tally, plan)
            if attempt < MAX_ATTEMPTS and tally.other > MAX_OTHER_LOAD * max(
                plan.seconds, tally.wall
            ):
                return None
        order.reverse()  # A B B A: a drift of the machine weighs on both alike
        rounds += 1
    return tallies


def _round(child: Child, tally: _Tally, plan: _Plan) -> None:
    time.sleep(0.02)  # until the other child's threads have stopped spinning
    busy, begin = busy_seconds(), time.monotonic()
    limit = 10 * plan.round_seconds + PATIENCE
    facts = child.ask({"do": "round", "seconds": plan.round_seconds}, limit)
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


def _cell(
    network: Network, runtime: str, threads: int, turns: Sequence[dict[Network, _Measured]]
) -> Cell:
    measured = [turn[network] for turn in turns]
    processes = tuple(one.process for one in measured)
    ready = measured[0].ready
    status: Status = "OK"
    if any(process.other_load > MAX_OTHER_LOAD for process in processes):
        status = "NOISY"
    if any(process.throttled for process in processes):
        status = "INVALID"
    return Cell(
        network=network,
        runtime=runtime,
        version=ready["version"],
        arithmetic=ready["arithmetic"],
        threads=threads,
        options=ready["options"],
        latency=combined([process.latency for process in processes]),
        peak_over_import=max(process.memory.peak_over_import for process in processes),
        status=status,
        processes=processes,
    )


def _result(
    bundle: Bundle,
    profile: DeviceProfile,
    machine: Machine,
    plan: _Plan,
    full: bool,
    cells: Sequence[Cell],
) -> BenchResult:
    other = tuple(differences(machine, profile))
    judged = judged_cell(profile, cells)
    versions = {cell.runtime: cell.version for cell in cells}
    fingerprint = {
        "models": {name: file.sha256 for name, file in bundle.manifest.files.items()},
        "cpu": machine.cpu,
        "flags": list(machine.flags),
        "os": f"{machine.os}, {machine.kernel}",
        "versions": {
            "python": machine.python,
            "mvp-edge": importlib.metadata.version("mvp-edge"),
            **versions,
        },
        "profile_sha256": profile.sha256,
    }
    return BenchResult(
        protocol=Protocol(
            full=full, seconds=plan.seconds, processes=plan.processes, statement=plan.statement
        ),
        machine=machine,
        profile=profile.id,
        profile_sha256=profile.sha256,
        differences=other,
        cells=tuple(cells),
        judged=f"{judged.runtime} {judged.version}, threads {judged.threads}",
        verdicts=tuple(judge(profile, judged, other)),
        warnings=tuple(doubts(profile, machine, cells)),
        fingerprint=fingerprint,
        fingerprint_sha256=sha256_json(fingerprint),
    )
