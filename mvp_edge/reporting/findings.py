"""What the report says of one run: verdict, budgets, votes, training.

Every figure here is in the run's files or is computed from them; every text is ready to be printed, with its
unit. The templates decide how it looks.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from mvp_edge.reporting.measures import Accuracy, accuracy
from mvp_edge.reporting.printed import count, percent, shown, size, times
from mvp_edge.reporting.results import RunResult
from mvp_edge.runs.files import GroupVotes, RankedTask
from mvp_edge_export.verified import Verdict

BUDGETS = {
    "flops": "Multiply-adds",
    "params": "Parameters",
    "file": "File",
    "memory": "Memory",
    "latency.p50": "Latency, median",
    "latency.p90": "Latency, 90th percentile",
    "accuracy.max_drop": "Accuracy lost by pruning",
    "accuracy.max_quant_drop": "Accuracy lost by int8",
}
PHRASES = {
    "counted": "counted",
    "predicted": "predicted, not measured",
    "estimate": "an estimate, not measured",
    "measured": "measured",
    "none": "",
}


@dataclass(frozen=True)
class Budget:
    """One budget of the device, and what the network reached."""

    label: str
    verdict: Verdict

    @property
    def reached(self) -> str:
        """What was reached, with its unit."""
        return shown(self.verdict.reached, self.verdict.unit)

    @property
    def limit(self) -> str:
        """The limit, with its unit."""
        return shown(self.verdict.limit, self.verdict.unit)

    @property
    def basis(self) -> str:
        """How the figure was obtained, e.g. counted or measured."""
        return PHRASES[self.verdict.basis]

    @property
    def share(self) -> float | None:
        """What was reached as a share of the limit."""
        if self.verdict.limit is None or self.verdict.reached is None or self.verdict.limit <= 0:
            return None
        return max(0.0, self.verdict.reached / self.verdict.limit)

    @property
    def sentence(self) -> str:
        """The verdict in words, for a budget that is missed or undecided."""
        known = self.verdict.reached is not None
        text = (
            f"{self.label}: {self.reached} of {self.limit}"
            if known
            else f"{self.label}: limit {self.limit}"
        )
        if self.verdict.verdict == "FAIL" and self.share is not None and self.share > 1:
            over = (
                f"{times(self.share)} the limit"
                if self.share > 2
                else f"{percent(self.share - 1)} over"
            )
            text += f", {over}"
        return f"{text}; {self.verdict.note}." if self.verdict.note else f"{text}."


@dataclass(frozen=True)
class VotedGroup:
    """The units of one group, counted by their votes."""

    group: GroupVotes
    neighbours: int

    def units(self, votes: int, *, kept: bool) -> tuple[int, ...]:
        """The units with that many votes that were kept, or were not."""
        chosen = frozenset(self.group.kept)
        return tuple(
            unit
            for unit, found in enumerate(self.group.votes)
            if found == votes and (unit in chosen) == kept
        )

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """How many units were kept with N, …, 1, 0 votes."""
        return tuple(len(self.units(votes, kept=True)) for votes in range(self.neighbours, -1, -1))


@dataclass(frozen=True)
class Findings:
    """What the report says of one run."""

    result: RunResult

    @property
    def device(self) -> str:
        """The device's name."""
        return self.result.run.profile.name

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy of the pruned network on the test images."""
        return accuracy(self.result)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """The latest verdict on every budget: a later measurement replaces a prediction."""
        latest = {verdict.budget: verdict for verdict in self.result.verified.verdicts}
        manifest = self.result.manifest
        for later in (manifest, self.result.bench if self.benched_for_device else None):
            latest |= {verdict.budget: verdict for verdict in later.verdicts} if later else {}
        order = [*BUDGETS, *latest]
        return tuple(
            Budget(BUDGETS.get(name, name), latest[name])
            for name in sorted(latest, key=order.index)
        )

    @property
    def benched_for_device(self) -> bool:
        """Whether the benchmark judged the budgets of the run's own profile."""
        bench = self.result.bench
        return bench is not None and bench.profile_sha256 == self.result.run.profile.sha256

    def having(self, word: str) -> tuple[Budget, ...]:
        """The budgets with this verdict."""
        return tuple(budget for budget in self.budgets if budget.verdict.verdict == word)

    @cached_property
    def checked(self) -> tuple[Budget, ...]:
        """The budgets that have a limit."""
        return tuple(budget for budget in self.budgets if budget.verdict.verdict != "UNCHECKED")

    @property
    def verdict(self) -> str:
        """The run's verdict: the worst verdict of its budgets."""
        return next((w for w in ("FAIL", "INCONCLUSIVE", "PASS") if self.having(w)), "UNCHECKED")

    @property
    def headline(self) -> str:
        """The verdict in words."""
        some = len(self.checked)
        noun = "budget" if some == 1 else "budgets"
        failed, unsure = len(self.having("FAIL")), len(self.having("INCONCLUSIVE"))
        if failed:
            return f"Misses {failed} of {some} {noun} of {self.device}"
        if unsure:
            return f"INCONCLUSIVE: {unsure} of {some} {noun} of {self.device} undecided"
        if some:
            which = f"all {some} {noun}" if some > 1 else "the one budget"
            return f"Meets {which} of {self.device}"
        return f"No budget of {self.device} was checked"

    @property
    def flops_left(self) -> float:
        """The share of the multiply-adds that is left."""
        return self.result.verified.cost.flops / self.result.verified.cost_baseline.flops

    @property
    def voted(self) -> tuple[VotedGroup, ...]:
        """The unit groups that lost units, with their votes; empty without votes."""
        votes = self.result.votes
        found = [group for group in votes.groups if len(group.kept) < group.size] if votes else []
        return tuple(VotedGroup(group, self.voters) for group in found)

    @property
    def kept_whole(self) -> str:
        """Which groups kept all their units, in words; they are not shown."""
        widths = self.result.run.widths
        whole = [name for name, width in widths.items() if width.kept == width.size]
        if not whole:
            return ""
        some = ", ".join(whole[:3]) + (" …" if len(whole) > 3 else "")
        if len(whole) == 1:
            return f"The group {some} kept all its units and is not shown."
        return f"{len(whole)} groups kept all their units and are not shown: {some}"

    @property
    def voters(self) -> int:
        """How many neighbours had a vote."""
        return len(self.result.votes.neighbours) if self.result.votes else 0

    @property
    def kept_by_votes(self) -> tuple[int, ...]:
        """Kept units of all groups with N, …, 1, 0 votes."""
        return tuple(map(sum, zip(*(group.kept for group in self.voted), strict=True)))

    @property
    def leep_floor(self) -> str:
        """LEEP of a model with uninformative predictions, for C equally frequent classes: −ln C."""
        return self.score(-math.log(len(self.result.run.task.classes)))

    @staticmethod
    def score(value: float) -> str:
        """A similarity to three decimals."""
        return f"{value:.3f}".replace("-", "−")

    @property
    def passed_over(self) -> tuple[RankedTask, ...]:
        """The tasks that were compared and not chosen, the most similar first."""
        asked = self.result.neighbours
        chosen = {one.task for one in asked.neighbours} if asked else set()
        rest = [one for one in asked.candidates if one.task not in chosen] if asked else []
        return tuple(sorted(rest, key=lambda one: -one.score))

    @property
    def training_total(self) -> float:
        """Multiply-adds spent on the run."""
        spent = self.result.run.training
        return spent.similarity_flops + spent.statistics_flops + spent.training_flops

    @property
    def keep_sentence(self) -> str:
        """The keep ratio that was used, and why."""
        keep = self.result.run.keep
        asked = keep.asked if isinstance(keep.asked, str) else f"{keep.asked:g}"
        text = f"Keep ratio {keep.chosen:.3g}"
        if self.result.front is not None:
            return f"{text}, picked from a front of {len(self.result.front.members)}."
        if asked != "auto":
            text += f" (requested: {asked})"
        elif keep.zoo is not None:
            text += f"; the zoo's is {keep.zoo:.3g}"
        if keep.binding is not None:
            text += f"; limited by the budget {BUDGETS.get(keep.binding, keep.binding).lower()}"
        return f"{text}."

    @property
    def latency_limit(self) -> float | None:
        """The latency budget in ms, the 90th percentile's before the median's."""
        limits = {budget.verdict.budget: budget.verdict.limit for budget in self.budgets}
        return limits.get("latency.p90") or limits.get("latency.p50")

    @property
    def bench_lines(self) -> tuple[str, ...]:
        """How and where the latencies were measured, and reasons to doubt them."""
        bench = self.result.bench
        if bench is None:
            return ()
        lines = [f"{bench.machine.cpu}, {bench.machine.os}; {bench.protocol.statement}."]
        if bench.differences:
            lines.append(f"Not the device itself: {'; '.join(bench.differences)}.")
        if not self.benched_for_device:
            lines.append(
                f"Measured for another profile, {bench.profile}: its verdicts are left out here."
            )
        noisy = sum(cell.status == "NOISY" for cell in bench.cells)
        if noisy:
            lines.append(
                f"NOISY: another load ran during {noisy} of {len(bench.cells)} cells, so the times may "
                "be too long."
            )
        # One line for each disturbed cell would hide the others; bench.json has them all.
        others = [warning for warning in bench.warnings if "NOISY" not in warning]
        return (*lines, *(f"{warning}." for warning in others))

    @property
    def parity(self) -> str | None:
        """How closely the exported model reproduces the logits of the verified network."""
        manifest = self.result.manifest
        if manifest is None or not manifest.parity:
            return None
        worst = max(manifest.parity, key=lambda one: one.max_difference / one.tolerance)
        images = f"{worst.real_images} real and {worst.random_images} random images"
        return (
            f"On {images} the largest difference from PyTorch's logits is {worst.max_difference:.1e} "
            f"({worst.runtime}, {worst.setting}; allowed: {worst.tolerance:.1e})."
        )

    @property
    def created(self) -> str:
        """When the run began, to the minute."""
        return self.result.run.created[:16].replace("T", " ")

    @property
    def machine(self) -> str:
        """The machine that the run was computed on."""
        machine = self.result.run.machine
        cores = machine.get("cores")
        found = [machine.get("cpu"), f"{cores} cores" if cores else None, machine.get("os")]
        return ", ".join(str(fact) for fact in found if fact)

    @property
    def hashes(self) -> tuple[tuple[str, str], ...]:
        """Hashes that identify the inputs and the result."""
        run = self.result.run
        return (
            ("backbone", run.backbone.sha256),
            (f"profile {run.profile.id}", run.profile.sha256),
            ("network.safetensors", self.result.verified.weights_sha256),
        )

    @property
    def room(self) -> str | None:
        """What a larger keep ratio would use; None if the budgets allow none."""
        room = self.result.run.keep.room
        if room is None:
            return None
        formats = {"flops": count, "params": count, "file": size, "memory": size}
        uses = [
            f"{show(reached)} of {show(limit)} {BUDGETS[name].lower()}"
            for name, show in formats.items()
            if (reached := room.predicted.get(name)) is not None
            and (limit := room.limits.get(name)) is not None
        ]
        text = f"The budgets allow a larger network: a keep ratio of {room.keep:.3g}"
        return f"{text} would use {', '.join(uses)}." if uses else f"{text} would fit."
