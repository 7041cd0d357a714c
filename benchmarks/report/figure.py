"""A figure: one number of the evidence, with its interval, and how a sentence or a table says it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FEW_TARGETS = 8
"""With fewer tasks an interval is only a range; the text then says how many tasks there were."""


@dataclass(frozen=True)
class Figure:
    """One figure, with the fields that it has in ``benchmarks/summary.json``.

    ``value``, ``low`` and ``high`` have the unit ``unit``; ``goal`` is a comparison such as ``≥ 1``, or
    ``stated`` for a figure that had no goal; ``targets`` counts the tasks that it is a mean of.
    """

    id: str
    value: float
    low: float | None
    high: float | None
    unit: str
    goal: str
    conditions: str
    source: str
    command: str
    targets: int | None = None
    statement: str = ""
    """What the figure says, in words. It stands in the generated tables, not in ``summary.json``."""
    signed: bool = True
    """Whether points are a difference, which is said with its sign."""

    @property
    def has_goal(self) -> bool:
        return self.goal.startswith(("≥", "≤"))

    @property
    def met(self) -> bool:
        """Whether the value itself, without regard to its interval, reaches the goal."""
        limit = float(self.goal[1:])
        return self.value >= limit if self.goal.startswith("≥") else self.value <= limit

    def as_json(self) -> dict[str, Any]:
        """The entry of ``summary.json``."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("statement", "signed")
        }

    def said(self) -> str:
        """Value, interval and unit as a sentence has them, and the number of tasks where it is small."""
        form = ".3g"
        if self.unit == "points":
            form = "+.1f" if self.signed else ".1f"
        elif self.unit == "%":
            form = ".0f" if self.value >= 10 else ".1f"
        unit = f" {self.unit}" if self.unit else ""
        few = self.targets is not None and self.targets < FEW_TARGETS
        text = f"{self.value:{form}}{self.spread(form)}{unit}"
        return text.replace("-", "−") + (f" [{self.targets} tasks]" if few else "")

    def spread(self, form: str) -> str:
        """The interval in brackets; empty if there is none, or none to be seen in so many digits."""
        if self.low is None or f"{self.low:{form}}" == f"{self.high:{form}}":
            return ""
        return f" ({self.low:{form}} … {self.high:{form}})"


def figures_table(found: Mapping[str, Figure]) -> str:
    """Markdown: all figures, with their ids, as they stand in ``summary.json``."""
    lines = ["| id | value (95 % interval) | goal | conditions |", "|---|---|---|---|"]
    for one in found.values():
        value = f"{one.value:.3g}{one.spread('.3g')} {one.unit}".rstrip()
        lines.append(f"| `{one.id}` | {value} | {one.goal} | {one.conditions} |")
    return "\n".join(lines)
