"""Latency and memory of a bundle on this machine, measured so that two people get the same answer.

    each runtime x thread count: all networks and precisions in turns, each in a fresh process, a *cell*
        import → load → first run → warm-up → rounds of timed runs → memory

The pruned and the unpruned network take turns, a round each, so that a drift of the machine meets
both alike; only one process computes at a time. Another load on the machine is seen in /proc/stat:
then the rounds are repeated, and a cell that stays disturbed is marked NOISY. Timed is one
inference of batch 1 from float32 pixels to logits; decoding and preprocessing are not in it.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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


def bench(
    bundle: Bundle,
    *,
    profile: DeviceProfile | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    precisions: Sequence[NumberFormat] | None = None,
    full: bool = False,
    seconds: float | None = None,
    layers: bool = False,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> BenchResult:
    """Measure a bundle on this machine; with a baseline in it, all networks in turns.

    What fails, a runtime that crashes included, is recorded, and the others are measured.

    Args:
        bundle: from ``load_bundle``.
        profile: whose budgets to judge; the bundle's own if None.
        runtimes: keys of ``sessions.RUNTIMES``; None takes those installed that it has files for.
        threads: thread counts; None takes 1 and all physical cores.
        precisions: of the pruned network; None takes all that it has files of. The unpruned one is
            measured in fp32 always.
        full: at least 1,024 runs and 60 s in each of three processes, instead of 15 s in one.
        seconds: timed seconds a process instead; then the protocol is not the full one.
        layers: also where the time goes, layer by layer, beside the machine's roofline.
        progress: told what is measured and the share of the work that is done, 0..1, never from
            within a timed round.

    Raises:
        BadInput: no Linux, a runtime that cannot be used, or nothing that runs.
    """
    profile = profile or bundle.manifest.profile
    machine = this_machine()
    length = CellLength(
        seconds=seconds or (_FULL_SECONDS if full else _DEFAULT_SECONDS),
        runs=_FULL_RUNS if full else 1,
        processes=_FULL_PROCESSES if full else 1,
    )
    threads = sorted(set(threads or (1, machine.physical_cores)))
    if threads[0] < 1:
        raise BadInput(f"{threads[0]}: at least 1", field="threads")
    groups = [
        (runtime, count, subjects)
        for runtime, subjects in _subjects(bundle, runtimes, precisions)
        for count in threads
    ]
    cells: list[Cell] = []
    failures: list[Failure] = []
    shape = (1, 3, bundle.preprocess.size, bundle.preprocess.size)
    for done, (runtime, count, subjects) in enumerate(groups):
        name = f"{runtime}, {count} thread{'s' * (count > 1)}"

        def step(what: str, share: float, done: int = done, name: str = name) -> None:
            progress(f"{name}: {what}", (done + share) / len(groups))

        found, failed = measure(subjects, shape, runtime, count, length, step)
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
    result = _result(bundle, profile, machine, length, cells, failures)
    if layers:
        result = with_layers(bundle, result, progress)
    progress("done", 1.0)
    return result


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
    subject = Subject("pruned", "fp32", model)
    cells, failures = measure(
        [subject], shape, runtime, threads, CellLength(seconds), lambda what, share: None
    )
    if failures:
        raise BadInput(f"{model}: {failures[subject]}")
    return cells[0]


def _subjects(
    bundle: Bundle,
    runtimes: Sequence[str] | None,
    precisions: Sequence[NumberFormat] | None,
) -> Iterator[tuple[str, list[Subject]]]:
    """For each runtime what is measured in it, the unpruned network last."""
    manifest = bundle.manifest
    for name in runtimes or ():
        if name not in RUNTIMES:
            raise BadInput(f"unknown runtime {name!r}: choose some of {', '.join(RUNTIMES)}")
        import_runtime(name)
    found = False
    for runtime in dict.fromkeys(installed_runtimes() if runtimes is None else runtimes):
        pruned = [
            Subject("pruned", precision, bundle.model(form), memory_needed(manifest.cost, runtime))
            for precision, form in FORMATS[runtime].items()
            if form in manifest.models and (precisions is None or precision in precisions)
        ]
        if not pruned:
            if runtimes is not None and precisions is None:
                bundle.model(FORMATS[runtime]["fp32"])  # says what there is
            continue
        found = True
        form = FORMATS[runtime]["fp32"]
        if form in manifest.baseline:
            needs = memory_needed(manifest.cost_baseline, runtime)
            pruned.append(Subject("baseline", "fp32", bundle.model(form, baseline=True), needs))
        yield runtime, pruned
    if not found:
        raise nothing_to_run(bundle, precisions)


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
