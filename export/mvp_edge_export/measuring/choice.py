"""Chooses the candidate that a bundle ships: the fastest on the device that meets all budgets.

    cells of a measurement ─ budgets, preferred format, latency ─→ shipped candidate
                           └ int8 that is not faster than fp32  ─→ not kept, with both latencies

The bundle is changed atomically by replacing its manifest; files that the new manifest does not list are
removed afterwards.
"""

import os
from collections.abc import Iterator, Sequence

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.manifest import (
    MANIFEST,
    Candidate,
    CandidateTiming,
    Manifest,
    Shipped,
    parts_of,
    quantisation_verdict,
)
from mvp_edge_export.measuring.machine import differences, this_machine
from mvp_edge_export.measuring.result import BenchResult, Cell, Protocol, judge, short
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.storage import write_json
from mvp_edge_export.verified import Verdict


def judged_cell(
    profile: DeviceProfile,
    cells: Sequence[Cell],
    other: Sequence[str],
    protocol: Protocol,
    shipped: Shipped | None = None,
) -> Cell:
    """The cell to which the verdicts of a measurement apply.

    This is the cell of the shipped candidate. If none is shipped yet or it was not measured, it is the
    cell that would be chosen: the fastest that meets the budgets, or the fastest if none does.

    Args:
        profile: profile with the budgets.
        cells: the measured cells, at least one of them of the pruned network.
        other: differences between the machine and the profile's device.
        protocol: the measurement protocol.
        shipped: the candidate that the bundle ships; None if undecided.
    """
    pruned = [cell for cell in cells if cell.network == "pruned"]
    if shipped is not None:
        chosen = (shipped.runtime, shipped.precision, shipped.threads)
        for cell in pruned:
            if (cell.runtime, cell.precision, cell.threads) == chosen:
                return cell
    fitting = _deployable(profile, pruned)
    meeting = [cell for cell in fitting if not _missed(profile, cell, other, protocol)]
    return _best(profile, meeting or fitting)


def is_device(profile: DeviceProfile) -> bool:
    """Whether this machine is the profile's device; False if it cannot be measured."""
    try:
        return not differences(this_machine(), profile)
    except BadInput:
        return False


def check_choosable(bundle: Bundle, profile: DeviceProfile, *, here: bool = True) -> None:
    """Check whether a choice is possible, before a measurement that takes minutes.

    Args:
        bundle: the bundle, from ``load_bundle``.
        profile: profile whose budgets the measurement will judge.
        here: whether this machine will be measured, and not a host.

    Raises:
        BadInput: this machine is not the bundle's device, or the bundle cannot be changed.
    """
    other = differences(this_machine(), profile) if here else ()
    _check_device(bundle.manifest.profile, profile.sha256, other)
    if not os.access(bundle.path, os.W_OK):
        raise BadInput(f"changes the bundle, and {bundle.path} cannot be written", field="choose")


def choose(bundle: Bundle, result: BenchResult) -> Bundle:
    """Choose the candidate to ship by a measurement on the device, and remove slower int8 variants.

    Args:
        bundle: the bundle, from ``load_bundle``.
        result: its measurement on the device, judged by the bundle's own profile.

    Returns:
        The changed bundle, loaded again.

    Raises:
        BadInput: the measured machine is not the device, or no usable cell was measured.
        BudgetMissed: no candidate meets the budgets.
    """
    manifest = decided(bundle.manifest, result)
    write_json(bundle.path / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
    for name in bundle.manifest.files.keys() - manifest.files.keys():
        (bundle.path / name).unlink(missing_ok=True)
    return load_bundle(bundle.path)


def decided(manifest: Manifest, result: BenchResult) -> Manifest:
    """A copy of the manifest with the choice, without the files of candidates that are not kept.

    Raises:
        BadInput: the measured machine is not the device, or no usable cell was measured.
        BudgetMissed: no candidate meets the budgets.
    """
    profile = manifest.profile
    _check_device(profile, result.profile_sha256, result.differences)
    chosen, why = _chosen(profile, result)
    shipped = Shipped(
        runtime=chosen.runtime, precision=chosen.precision, threads=chosen.threads, why=why
    )
    candidates = tuple(_settled(one, shipped, result) for one in manifest.candidates)
    models = {one.format: manifest.models[one.format] for one in candidates if one.kept}
    dropped = {
        part
        for form, name in manifest.models.items()
        if form not in models
        for part in parts_of(name)
    }
    changed = {
        "candidates": candidates,
        "models": models,
        "files": {name: file for name, file in manifest.files.items() if name not in dropped},
        "shipped": shipped,
        "undecided": "",
        "verdicts": tuple(_verdicts(manifest, candidates, shipped)),
    }
    return Manifest.model_validate(dict(manifest) | changed)


def _check_device(profile: DeviceProfile, judged_by: str, other: Sequence[str]) -> None:
    if judged_by != profile.sha256:
        raise BadInput("decides by the bundle's own profile: leave out --device", field="choose")
    if other:
        raise BadInput(
            f"must run on the device: this machine is not {profile.id} ({'; '.join(other)})",
            field="choose",
        )


def _deployable(profile: DeviceProfile, pruned: Sequence[Cell]) -> list[Cell]:
    """The cells in the profile's runtimes (in any runtime if it has none) with at most its threads."""
    named = [cell for cell in pruned if cell.runtime in profile.runtime.backends] or list(pruned)
    least = min(cell.threads for cell in named)
    most = max(profile.runtime.threads, least)
    return [cell for cell in named if cell.threads <= most]


def _chosen(profile: DeviceProfile, result: BenchResult) -> tuple[Cell, str]:
    """The cell to ship and the reason in one sentence."""
    usable = [
        cell
        for cell in result.cells
        if cell.network == "pruned"
        and cell.status != "INVALID"
        and f"{cell.runtime}=={cell.version}" not in profile.runtime.denylist
    ]
    if not usable:
        raise BadInput(
            "no choice can be made: nothing was measured that could be shipped"
            " (throttling, under-voltage, or a release that the profile denies)"
        )
    fitting = _deployable(profile, usable)
    why_not = [_missed(profile, cell, result.differences, result.protocol) for cell in fitting]
    meeting = [cell for cell, missed in zip(fitting, why_not, strict=True) if not missed]
    if not meeting:
        nearest = min(range(len(fitting)), key=lambda k: fitting[k].latency.p50)
        budgets = "; ".join(map(str, why_not[nearest]))
        raise BudgetMissed(f"no candidate meets the budgets; {_named(fitting[nearest])}: {budgets}")
    best, prefer = _best(profile, meeting), profile.precision.prefer
    reason = (
        f"the profile prefers {prefer}" if best.precision == prefer else "the fastest that passes"
    )
    noise = "; another load ran on the machine" if best.status == "NOISY" else ""
    return best, f"{reason}: {_speed(best)}{noise}"


def _best(profile: DeviceProfile, cells: Sequence[Cell]) -> Cell:
    """The fastest cell, of the preferred format if any; another format must clearly beat fp32."""

    def fastest(of: Sequence[Cell]) -> Cell:
        return min(of, key=lambda cell: cell.latency.p50)

    if preferred := [cell for cell in cells if cell.precision == profile.precision.prefer]:
        return fastest(preferred)
    best, exact = fastest(cells), [cell for cell in cells if cell.precision == "fp32"]
    if exact and best.precision != "fp32" and not _faster(best, fastest(exact)):
        return fastest(exact)
    return best


def _missed(
    profile: DeviceProfile, cell: Cell, other: Sequence[str], protocol: Protocol
) -> list[Verdict]:
    verdicts = judge(profile, cell, other, protocol)
    return [verdict for verdict in verdicts if verdict.verdict == "FAIL"]


def _faster(cell: Cell, than: Cell) -> bool:
    """Whether a cell is clearly faster: the confidence intervals of the medians do not overlap."""
    return cell.latency.p50_interval[1] < than.latency.p50_interval[0]


def _settled(candidate: Candidate, shipped: Shipped, result: BenchResult) -> Candidate:
    """The candidate with its timings; not kept if it is not faster than fp32 or does not run."""
    mine = [
        cell
        for cell in result.cells
        if (cell.network, cell.runtime, cell.precision)
        == ("pruned", candidate.runtime, candidate.precision)
    ]
    timed = candidate.model_copy(update={"timings": tuple(_timings(mine, result))})
    if (candidate.runtime, candidate.precision) == (shipped.runtime, shipped.precision):
        return timed.model_copy(update={"why": f"shipped, {shipped.why}"})
    if not candidate.kept or candidate.precision == "fp32":
        return timed
    exact = [
        cell
        for cell in result.cells
        if (cell.network, cell.runtime, cell.precision) == ("pruned", candidate.runtime, "fp32")
    ]
    if mine and exact:
        best, rival = (min(cells, key=lambda cell: cell.latency.p50) for cells in (mine, exact))
        if not _faster(best, rival):
            why = f"not faster than fp32: {_speed(best)}, fp32 {_speed(rival)}"
            return timed.model_copy(update={"kept": False, "why": why})
    if not mine:
        failed = (
            one.why
            for one in result.failures
            if (one.network, one.runtime, one.precision)
            == ("pruned", candidate.runtime, candidate.precision)
        )
        why = next(failed, "")
        return timed.model_copy(update={"kept": not why, "why": why or candidate.why})
    return timed


def _timings(cells: Sequence[Cell], result: BenchResult) -> Iterator[CandidateTiming]:
    for cell in cells:
        yield CandidateTiming(
            threads=cell.threads,
            p50=cell.latency.p50,
            p50_interval=cell.latency.p50_interval,
            p90=cell.latency.p90,
            p90_interval=cell.latency.p90_interval,
            peak_over_import=cell.peak_over_import,
            status=cell.status,
            machine=result.machine.cpu,
            protocol=result.protocol.statement,
        )


def _verdicts(
    manifest: Manifest, candidates: Sequence[Candidate], shipped: Shipped
) -> Iterator[Verdict]:
    """The manifest's verdicts, with those that depend on the candidate updated for the shipped one."""
    chosen = next(
        one
        for one in candidates
        if (one.runtime, one.precision) == (shipped.runtime, shipped.precision)
    )
    for verdict in manifest.verdicts:
        if verdict.budget == "file":
            yield verdict.model_copy(update={"reached": chosen.bytes, "note": chosen.format})
        elif verdict.budget != "accuracy.max_quant_drop":
            yield verdict
    yield from quantisation_verdict([chosen], manifest.profile)


def _named(cell: Cell) -> str:
    return f"{cell.precision} in {cell.runtime}, threads {cell.threads}"


def _speed(cell: Cell) -> str:
    low, high = cell.latency.p50_interval
    return (
        f"{short(cell.latency.p50)} ms ({short(low)} – {short(high)}) with threads {cell.threads}"
    )
