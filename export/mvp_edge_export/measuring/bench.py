"""Measures the latency and memory of a bundle's networks on this machine.

    for each runtime and number of threads:
        one process per network and precision:
            import → load → first run → warm-up → rounds of timed runs → memory

The rounds of the pruned and the unpruned network alternate, so that a drift of the machine's speed
affects both alike; only one process computes at a time. Other load on the machine is read from
/proc/stat: disturbed rounds are repeated, and a cell that stays disturbed is marked NOISY. A timed
run is one inference of batch 1, from float32 pixels to logits; decoding and preprocessing of the
image are not included.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.choice import judged_cell
from mvp_edge_export.measuring.layer_times import with_layers
from mvp_edge_export.measuring.machine import Machine, differences, this_machine
from mvp_edge_export.measuring.result import (
    BenchResult,
    Cell,
    Failure,
    Protocol,
    doubts,
    judge,
)
from mvp_edge_export.measuring.rounds import CellLength, Subject, measure
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.running.sessions import (
    FORMATS,
    RUNTIMES,
    import_runtime,
    installed_runtimes,
    memory_needed,
    nothing_to_run,
)
from mvp_edge_export.storage import sha256_json

_DEFAULT_SECONDS, _FULL_SECONDS, _FULL_RUNS, _FULL_PROCESSES = 15.0, 60.0, 1024, 3


@dataclass(frozen=True)
class BenchRequest:
    """What to measure of a bundle, for how long, and which profile's budgets to judge."""

    profile: DeviceProfile | None = None
    """Profile whose budgets are judged; None takes the bundle's own."""
    runtimes: Sequence[str] | None = None
    """Keys of ``sessions.RUNTIMES``; None takes the installed ones that the bundle has files for."""
    threads: Sequence[int] | None = None
    """Numbers of threads; None takes 1 and the number of physical cores."""
    precisions: Sequence[NumberFormat] | None = None
    """Number formats of the pruned network; None takes all that the bundle has files in.

    The unpruned network is always measured in fp32.
    """
    full: bool = False
    """Whether to use the full protocol: in each of three processes at least 1,024 runs and 60 s.

    The default is 15 s in one process.
    """
    seconds: float | None = None
    """Timed seconds per process, in place of 60 or 15; below 60 the protocol is not the full one."""
    layers: bool = False
    """Whether to time each layer too and compare it with the machine's roofline."""

    @property
    def length(self) -> CellLength:
        """How long each cell is measured."""
        return CellLength(
            seconds=self.seconds or (_FULL_SECONDS if self.full else _DEFAULT_SECONDS),
            runs=_FULL_RUNS if self.full else 1,
            processes=_FULL_PROCESSES if self.full else 1,
        )

    def thread_counts(self, machine: Machine) -> list[int]:
        """The numbers of threads to measure with on a machine, in ascending order.

        Raises:
            BadInput: a number is below 1.
        """
        counts = sorted(set(self.threads or (1, machine.physical_cores)))
        if counts[0] < 1:
            raise BadInput(f"{counts[0]}: at least 1", field="threads")
        return counts

    def subjects(self, bundle: Bundle) -> Iterator[tuple[str, list[Subject]]]:
        """Each runtime with the networks to measure in it, the unpruned one last.

        Raises:
            BadInput: a runtime is unknown or cannot be imported, or the bundle has no files for it.
        """
        manifest = bundle.manifest
        for name in self.runtimes or ():
            if name not in RUNTIMES:
                raise BadInput(f"unknown runtime {name!r}: choose some of {', '.join(RUNTIMES)}")
            import_runtime(name)
        found = False
        names = installed_runtimes() if self.runtimes is None else self.runtimes
        for runtime in dict.fromkeys(names):
            networks = list(self._pruned(bundle, runtime))
            if not networks:
                if self.runtimes is not None and self.precisions is None:
                    bundle.model(FORMATS[runtime]["fp32"])  # raises, and lists the formats it has
                continue
            found = True
            form = FORMATS[runtime]["fp32"]
            if form in manifest.baseline:
                needs = memory_needed(manifest.cost_baseline, runtime)
                model = bundle.model(form, baseline=True)
                networks.append(Subject("baseline", "fp32", model, needs))
            yield runtime, networks
        if not found:
            raise nothing_to_run(bundle, self.precisions)

    def _pruned(self, bundle: Bundle, runtime: str) -> Iterator[Subject]:
        needs = memory_needed(bundle.manifest.cost, runtime)
        for precision, form in FORMATS[runtime].items():
            wanted = self.precisions is None or precision in self.precisions
            if wanted and form in bundle.manifest.models:
                yield Subject("pruned", precision, bundle.model(form), needs)


def bench(
    bundle: Bundle,
    *,
    progress: Callable[[str, float], None] = lambda what, share: None,
    **options: Any,
) -> BenchResult:
    """Measure a bundle's networks on this machine, the unpruned one too if the bundle contains it.

    What fails is recorded with the reason, a crash of the runtime included, and the other cells are
    measured.

    Args:
        bundle: the bundle, from ``load_bundle``.
        progress: called with what is being measured and the share of the work that is done, 0..1;
            never during a timed round.
        options: the fields of ``BenchRequest``: ``profile``, ``runtimes``, ``threads``,
            ``precisions``, ``full``, ``seconds``, ``layers``.

    Raises:
        BadInput: the machine does not run Linux, a runtime cannot be used, or no pruned network
            could be measured.
    """
    request = BenchRequest(**options)
    machine = this_machine()
    counts = request.thread_counts(machine)
    groups = [
        (runtime, count, subjects)
        for runtime, subjects in request.subjects(bundle)
        for count in counts
    ]
    cells: list[Cell] = []
    failures: list[Failure] = []
    shape = (1, 3, bundle.preprocess.size, bundle.preprocess.size)
    for done, (runtime, count, subjects) in enumerate(groups):
        name = f"{runtime}, {count} thread{'s' * (count > 1)}"

        def step(what: str, share: float, done: int = done, name: str = name) -> None:
            progress(f"{name}: {what}", (done + share) / len(groups))

        found, failed = measure(subjects, shape, runtime, count, request.length, step)
        cells += found
        failures += [
            Failure(
                network=one.network,
                runtime=runtime,
                precision=one.precision,
                threads=count,
                why=why,
            )
            for one, why in failed.items()
        ]
    if not any(cell.network == "pruned" for cell in cells):
        raise BadInput(f"{bundle.path}: nothing could be measured: {_in_words(failures)}")
    profile = request.profile or bundle.manifest.profile
    result = _result(bundle, profile, machine, request.length, cells, failures)
    if request.layers:
        result = with_layers(bundle, result, progress)
    progress("done", 1.0)
    return result


def time_model(
    model: Path, shape: Sequence[int], runtime: str, threads: int, *, seconds: float = 2.0
) -> Cell:
    """Time a single model file on this machine, in one process.

    Args:
        model: model file in a format that ``runtime`` reads.
        shape: shape of its input, [N, 3, S, S].
        runtime: a key of ``sessions.RUNTIMES``.
        threads: number of threads of one inference.
        seconds: duration of the timed runs in seconds.

    Raises:
        BadInput: the machine does not run Linux, the runtime cannot be used, or the network does
            not run.
    """
    subject = Subject("pruned", "fp32", model)
    cells, failures = measure(
        [subject], shape, runtime, threads, CellLength(seconds), lambda what, share: None
    )
    if failures:
        raise BadInput(f"{model}: {failures[subject]}")
    return cells[0]


def _result(
    bundle: Bundle,
    profile: DeviceProfile,
    machine: Machine,
    length: CellLength,
    cells: Sequence[Cell],
    failures: Sequence[Failure],
) -> BenchResult:
    other = tuple(differences(machine, profile))
    protocol = _protocol(length)
    judged = judged_cell(profile, cells, other, protocol, bundle.manifest.shipped)
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
        protocol=protocol,
        machine=machine,
        profile=profile.id,
        profile_sha256=profile.sha256,
        differences=other,
        cells=tuple(cells),
        failures=tuple(failures),
        judged=f"{judged.precision} in {judged.runtime} {judged.version}, threads {judged.threads}",
        verdicts=tuple(judge(profile, judged, other, protocol)),
        warnings=tuple(doubts(profile, machine, cells)),
        fingerprint=fingerprint,
        fingerprint_sha256=sha256_json(fingerprint),
    )


def _protocol(length: CellLength) -> Protocol:
    full = length.seconds >= _FULL_SECONDS and length.processes >= _FULL_PROCESSES
    processes = "one process" if length.processes == 1 else f"{length.processes} processes"
    kind = f"full protocol, at least {length.runs:,} runs" if full else "not --full"
    warm = f"warm-up from {length.warm_seconds:.1g} s"
    return Protocol(
        full=full,
        seconds=length.seconds,
        processes=length.processes,
        statement=f"{kind}: {length.seconds:g} s in {processes} a cell, {warm}",
    )


def _in_words(failures: Sequence[Failure]) -> str:
    return "; ".join(dict.fromkeys(str(one) for one in failures))
