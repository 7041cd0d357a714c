"""A front: several networks of one task, from small to what the budgets allow; similarity is found once.

    members     the same request at each ratio, their costs a geometric series
    share       the images, neighbours.json, reference.json: found once
    prune       RUN/front/1 … N, each a complete run of its own, as `--keep` at its ratio would make it
    time        each exported to a temporary file, and timed on this machine
    choose      by validation images: front.json
    adopt       the picked one's files become the run's own

Files are written atomically; completed steps are skipped when a run is resumed.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from mvp_edge.methods.catalogue import DEFAULT_KEEP, METHODS
from mvp_edge.pruning.problem import Progress
from mvp_edge.runs.choice import SLACK, Front, Images, Member, MemberLatency, choose, limit_for
from mvp_edge.runs.files import NeighboursFile, PrunedFile, ReferenceFile
from mvp_edge.runs.run import (
    Run,
    ask_neighbours,
    begin,
    check_addable,
    conclude,
    execute,
    tune_reference,
)
from mvp_edge.runs.run_file import BegunRun, RunFile
from mvp_edge.runs.rundir import Claim, RunDirectory
from mvp_edge.runs.settle import Settled
from mvp_edge.runs.sizing import sized
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.bench import time_model
from mvp_edge_export.measuring.machine import differences, this_machine
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import format_of, installed_runtimes
from mvp_edge_export.server.convert import NetworkWriter, frozen
from mvp_edge_export.storage import atomic_file, sha256_json

FOLDER = "front"
RUNGS = 5
"""Sizes that are tried where the profile's max_drop decides."""
SECONDS = 2.0
"""Timed seconds for each member in each runtime."""
_SHARED = (NeighboursFile, ReferenceFile)


@dataclass(frozen=True)
class Bench:
    """Where the members are timed: the profile's runtimes and threads, as far as this machine has them."""

    runtimes: tuple[str, ...]
    threads: int
    told: str

    @classmethod
    def here(cls, profile: DeviceProfile) -> Self:
        """This machine."""
        wanted = profile.runtime
        runtimes = tuple(name for name in installed_runtimes() if name in wanted.backends)
        if not runtimes:
            named = ", ".join(wanted.backends) or "none"
            return cls((), 1, f"Not timed: no runtime of the profile ({named}) is installed here.")
        try:
            machine = this_machine()
        except BadInput as error:
            return cls((), 1, f"Not timed: {error}.")
        threads = min(wanted.threads, machine.physical_cores)
        other = differences(machine, profile)
        where = f"Timed on this machine, {threads} thread{'s' * (threads > 1)}"
        if other:
            where += f", which is not the {profile.id}: {'; '.join(other)}"
        return cls(runtimes, threads, f"{where}.")


@dataclass(frozen=True)
class FrontPlan:
    """A front before anything is written: its members, each a settled request of its own."""

    settled: Settled
    members: tuple[Settled, ...]
    bench: Bench

    @property
    def identity(self) -> dict[str, str]:
        """As `Settled.identity`, of all members."""
        widths = [member.identity["widths"] for member in self.members]
        return {**self.settled.identity, "widths": sha256_json(widths)}

    def describe(self) -> str:
        """One line for the user, which follows `Settled.describe`."""
        keeps = ", ".join(f"{member.plan.keep:.3g}" for member in self.members)
        if self.settled.climbs:
            drop = self.settled.profile.accuracy.max_drop
            return f"keep {keeps}, up to the first that loses at most {drop:g} points; {self.bench.told}"
        asked = self.settled.request.front
        fewer = f" (of {asked}: no more differ)" if asked != len(self.members) else ""
        return f"a front of {len(self.members)}{fewer}, keep {keeps}; {self.bench.told}"


def plan_front(settled: Settled) -> FrontPlan:
    """The members of a settled request; BadInput if the request cannot produce a front."""
    request, profile = settled.request, settled.profile
    count = request.front or RUNGS
    if not METHODS[settled.method].one_shot:
        raise BadInput(
            f"{count} with {settled.method} ({settled.source.reason}): this method needs a full training for "
            "each size: give a --zoo that can vote, take a one-shot method (--method distill), or run --keep R "
            "for each",
            field="front",
        )
    if not settled.task.splits["val"]:
        raise BadInput(
            f"{count}: {settled.task.source} has no validation image to choose by: give more images a class, "
            "or a val split",
            field="front",
        )
    bounded = request.pick != "best" and profile.accuracy.max_drop is not None
    if bounded and not request.reference:
        raise BadInput(
            f"{request.pick or 'smallest'}: profile {profile.id} sets accuracy.max_drop, which is measured against "
            "the fine-tuned unpruned network: add --reference, or --pick best",
            field="pick",
        )
    bench = Bench.here(profile)
    if request.pick == "fastest" and not bench.runtimes:
        raise BadInput(f"fastest: {bench.told[:1].lower()}{bench.told[1:-1]}", field="pick")
    small = settled.zoo.keep if settled.zoo else DEFAULT_KEEP
    keeps = settled.sizer.ladder(settled.ceiling, count, small=small)
    if len(keeps) == 1 and not settled.climbs:
        raise BadInput(
            f"{count}: the budgets of {profile.id} and --keep leave room for one network "
            "only: leave --front out",
            field="front",
        )
    alone = replace(request, front=None, pick=None, add_to_zoo=False)
    members = tuple(
        replace(
            settled,
            request=replace(alone, keep=keep),
            ceiling=keep,
            climbs=False,
            plan=settled.sizer.solve(keep),
        )
        for keep in keeps
    )
    return FrontPlan(settled, members, bench)


def execute_front(plan: FrontPlan, run: RunDirectory, progress: Progress) -> Run:
    """Make every member that is not there yet, time them, and make the picked one the run's own."""
    settled = plan.settled
    check_addable(settled, run)
    problem = begin(settled, run, progress)
    ask_neighbours(settled, problem, run)
    tune_reference(settled, problem, run)
    runs = []
    with run.phase("front"):
        for number, member in enumerate(plan.members, 1):
            runs.append(_member(member, run, number, len(plan.members), progress))
            if settled.climbs and _enough(settled, runs[-1], run):
                break
    if not run.has(Front):
        with run.phase("latency"):
            timings = _timed(runs, plan.bench, progress)
        _chosen(plan, runs, timings, run).save(run.path)
    picked = Front.load(run.path).picked
    _adopt(runs[picked - 1], run)
    member = sized(plan.members[picked - 1], run, progress)  # as its own sizing.json says
    return conclude(replace(member, request=settled.request), run)


def _member(
    settled: Settled, run: RunDirectory, number: int, count: int, progress: Progress
) -> Run:
    """One member's run, with what all of them share put there before."""
    path = run.path / FOLDER / str(number)
    if RunDirectory.finished(path):
        return Run.load(path)
    request = settled.request
    claim = Claim(request.arguments(), settled.identity, request.command)

    def named(phase: str, done: int, total: int) -> None:
        progress(f"{number} of {count}: {phase}", done, total)

    with RunDirectory.claim(claim, path, force=False) as member:
        for file in _SHARED:
            if run.has(file) and not member.has(file):
                member.write(run.read(file))
        return execute(settled, member, named)


def _enough(settled: Settled, member: Run, run: RunDirectory) -> bool:
    """Whether it loses no more than accuracy.max_drop, on validation images."""
    reference = run.read(ReferenceFile).validation
    limit = limit_for(settled.profile, (), reference)
    return _validation(member) >= limit.least - SLACK


def _validation(run: Run) -> float:
    return PrunedFile.load(run.path).scores["val"]


def _timed(
    runs: Sequence[Run], bench: Bench, progress: Progress
) -> list[tuple[MemberLatency, ...]]:
    """Each member's times, one after another, close together."""
    timings = []
    for done, run in enumerate(runs):
        progress("latency", done, len(runs))
        timings.append(time_member(run, bench))
    progress("latency", len(runs), len(runs))
    return timings


def time_member(run: Run, bench: Bench) -> tuple[MemberLatency, ...]:
    """Latency of one network in each of the runtimes; empty where none is installed."""
    if not bench.runtimes:
        return ()
    size = run.network.preprocess.size
    found = []
    with tempfile.TemporaryDirectory() as folder:
        writer = NetworkWriter(size, [format_of(runtime) for runtime in bench.runtimes])
        module = frozen(run.network.module(), None)
        written = writer.write(Path(folder), "pruned", module, metadata={})
        for runtime in bench.runtimes:
            model = Path(folder) / written.models[format_of(runtime)]
            shape = (1, 3, size, size)
            cell = time_model(model, shape, runtime, bench.threads, seconds=SECONDS)
            found.append(
                MemberLatency(
                    runtime=runtime,
                    version=cell.version,
                    threads=cell.threads,
                    p50=cell.latency.p50,
                    p50_interval=cell.latency.p50_interval,
                    p90=cell.latency.p90,
                    status=cell.status,
                )
            )
    return tuple(found)


def _chosen(
    plan: FrontPlan,
    runs: Sequence[Run],
    timings: Sequence[tuple[MemberLatency, ...]],
    run: RunDirectory,
) -> Front:
    """The table, and the choice that follows from it."""
    settled = plan.settled
    request, splits = settled.request, settled.task.splits
    members = [
        _figures(number, made, times)
        for number, (made, times) in enumerate(zip(runs, timings, strict=True), 1)
    ]
    reference = run.read(ReferenceFile).validation if request.reference else None
    limit = limit_for(settled.profile, members, reference)
    pick = request.pick or "smallest"
    picked, why = choose(members, pick, limit)
    return Front(
        asked=request.front,
        pick=pick,
        picked=picked.number,
        why=why,
        limit=limit,
        reference=reference,
        images=Images(validation=len(splits["val"]), test=len(splits["test"])),
        timed=plan.bench.told,
        members=tuple(members),
    )


def _figures(number: int, run: Run, timings: tuple[MemberLatency, ...]) -> Member:
    verified = run.verified
    file = next(verdict.reached for verdict in verified.verdicts if verdict.budget == "file")
    missed = [verdict.budget for verdict in verified.failed]
    return Member(
        number=number,
        keep=RunFile.load(run.path).keep.chosen,
        flops=verified.cost.flops,
        params=verified.cost.params,
        file=int(file or 0),
        validation=_validation(run),
        test=verified.accuracy,
        timings=timings,
        missed=tuple(budget for budget in missed if budget != "accuracy.max_drop"),
    )


def _adopt(member: Run, run: RunDirectory) -> None:
    """Copy a member's files to the top of the run."""
    for source in sorted(member.path.iterdir()):
        if source.is_file() and source.name != BegunRun.file_name:
            with atomic_file(run.path / source.name) as partial:
                shutil.copyfile(source, partial)
