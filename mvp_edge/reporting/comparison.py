"""Several runs in one table: what they have in common, reasons not to compare them, their figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mvp_edge.reporting.findings import Findings
from mvp_edge.reporting.measures import measures
from mvp_edge.reporting.printed import count, seconds, size

CHOSEN = ("Task", "Device", "Backbone", "Method", "Keep ratio", "Seed", "Test images")


@dataclass(frozen=True)
class Comparison:
    """What the report says of several runs together."""

    runs: Sequence[Findings]

    @property
    def headline(self) -> str:
        """How many runs meet all their budgets."""
        met = sum(run.verdict == "PASS" for run in self.runs)
        tasks, devices = self._distinct("task"), self._distinct("device")
        where = f" of {tasks[0]}" if len(tasks) == 1 else ""
        device = f" on {devices[0]}" if len(devices) == 1 else ""
        some = f"{met} of {len(self.runs)}" if met else "None"
        return f"{len(self.runs)} runs{where}{device}: {some} meet all budgets"

    @property
    def cautions(self) -> tuple[str, ...]:
        """Reasons why the runs are hard to compare."""
        lines = []
        if len(self._distinct("task")) > 1:
            lines.append(
                "The runs have different tasks: their accuracies were not measured on the same images."
            )
        if len({run.result.run.profile.sha256 for run in self.runs}) > 1:
            lines.append("The runs were made for different devices or budgets.")
        return tuple(lines)

    @property
    def common(self) -> tuple[tuple[str, str], ...]:
        """Settings that are the same in all runs: label and text."""
        same = [(label, texts) for label, texts in self._facts if len(set(texts)) == 1]
        return tuple((label, texts[0]) for label, texts in same if label in CHOSEN)

    @property
    def rows(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Settings that differ, and measured figures: a label, and a text for each run."""
        alike = {label for label, _ in self.common}
        return tuple((label, texts) for label, texts in self._facts if label not in alike)

    @cached_property
    def _facts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        result: dict[str, list[str]] = {}
        for index, run in enumerate(self.runs):
            facts, cost = run.result.run, run.result.verified.cost
            cells = {
                "Task": facts.task.name,
                "Device": run.device,
                "Backbone": facts.backbone.name,
                "Method": f"{facts.method.upper()}, {facts.training.steps} steps",
                "Keep ratio": f"{facts.keep.chosen:.3g}",
                "Seed": str(facts.seed),
                "Accuracy": str(run.accuracy),
                "95 % interval": run.accuracy.spread,
                "Test images": str(run.accuracy.n),
                "Multiply-adds": count(cost.flops),
                "Parameters": count(cost.params),
                "Memory, predicted": size(cost.memory_bytes),
                "Training, multiply-adds": count(run.training_total),
                "Training, time": seconds(facts.training.seconds),
            }
            measured = ("File", "Latency", "Peak memory")
            cells |= {
                row.label: row.pruned
                for row in measures(run.result)
                if row.label.startswith(measured)
            }
            for label, text in cells.items():
                result.setdefault(label, ["–"] * len(self.runs))[index] = text
        return tuple((label, tuple(texts)) for label, texts in result.items())

    def _distinct(self, what: str) -> list[str]:
        names = [run.result.run.task.name if what == "task" else run.device for run in self.runs]
        return list(dict.fromkeys(names))
