"""How the plots of the evidence draw their rows: lines with intervals, and horizontal bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.report.words import in_words, method_in_words
from benchmarks.study.rows import Rows, difference, interval, mean

# Okabe and Ito's colours, which colour-blind readers tell apart.
VERMILION, BLUE, GREEN, GREY, ORANGE = "#d55e00", "#0072b2", "#009e73", "#777777", "#e69f00"
PURPLE, SKY = "#cc79a7", "#56b4e9"


@dataclass(frozen=True)
class Point:
    """A mean with its interval at a place on the x axis, and an optional note beside it."""

    x: float
    mean: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class Series:
    """How a line looks and what the legend calls it."""

    label: str
    colour: str
    marker: str = "o"

    def draw(self, axes: Axes, points: Sequence[Point], joined: bool = True) -> None:
        """Draw the points with their intervals; nothing if there are none."""
        if not points:
            return
        x, middle, low, high = np.array([(p.x, p.mean, p.low, p.high) for p in points]).T
        axes.errorbar(
            x, middle, yerr=[middle - low, high - middle], color=self.colour, marker=self.marker, ms=4,
            lw=1.2, ls="-" if joined else "none", capsize=2, elinewidth=1.2, label=self.label,
        )  # fmt: skip
        for point in points:
            how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7}
            axes.annotate(point.note, (point.x, point.mean), (3, -9), color=self.colour, **how)


SERIES: Mapping[str, Series] = {
    method: Series(method_in_words(method), colour, marker)
    for method, colour, marker in (
        ("trunk", PURPLE, "P"),
        ("mvp", VERMILION, "o"),
        ("smsp", BLUE, "s"),
        ("ifp", GREEN, "^"),
        ("ahnp", GREEN, "^"),
        ("distill", SKY, "v"),
        ("magnitude", ORANGE, "D"),
        ("random", GREY, "x"),
    )
}
"""The look of each method, the same in all plots."""


def accuracy_point(x: float, rows: Sequence[Mapping[str, Any]]) -> Point:
    """Mean top-1 of the rows in per cent, with its 95 % interval."""
    own = 100 * np.array([row["accuracy"] for row in rows])
    return Point(x, float(own.mean()), *interval(own, mean))


def difference_bars(axes: Axes, rows: Rows, names: Sequence[str], base: str) -> bool:
    """Horizontal bars: each variant's mean paired difference to ``base`` in points, the best on top.

    Returns:
        Whether there was anything to draw.
    """
    found = [
        (name, got) for name in names if name != base and (got := difference(rows, name, base))
    ]
    found.sort(key=lambda one: one[1][0])
    for place, (_, (value, low, high, _count)) in enumerate(found):
        axes.barh(place, value, color=VERMILION if value < 0 else GREEN, height=0.6, alpha=0.8)
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], color="black", lw=1, capsize=2
        )
    labels = [f"{in_words(name)} ({got[3]})" for name, got in found]
    axes.set_yticks(range(len(found)), labels, fontsize=7)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel(f"top-1, points against {in_words(base)}")
    return bool(found)
