"""The studies' plots, from the committed rows: `python -m benchmarks.curves` → docs/evidence/ (needs matplotlib).

One figure a question; the numbers of each are in the tables of benchmarks/README.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.figures import interval, study_rows

OUT = Path(__file__).parents[1] / "docs" / "evidence"
COST = "total_flops"
# Okabe and Ito's colours, which colour-blind readers tell apart.
STYLES = {
    "mvp": ("MVP", "#d55e00", "o"),
    "smsp": ("SMSP", "#0072b2", "s"),
    "ifp": ("IFP", "#009e73", "^"),
    "random": ("random units", "#999999", "x"),
}
STUDIES = {
    "resnet18-cifar100": "ResNet-18, CIFAR-100, 1 % of the multiply-adds",
    "resnet18-keep0.32": "ResNet-18, CIFAR-100, 10 % of the multiply-adds",
}


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mvp-edge", "svg.fonttype": "none", "font.size": 9})
    OUT.mkdir(parents=True, exist_ok=True)
    for study, title in STUDIES.items():
        rows = study_rows(study)
        if rows:
            figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
            accuracy_against_cost(axes, rows)
            axes.set_title(title, fontsize=9)
            figure.savefig(OUT / f"cost-{study}.svg", metadata={"Date": None})
            plt.close(figure)


def accuracy_against_cost(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Mean top-1 with its 95 % interval against the mean cost: a line a method, a point a number of steps."""
    targets = list(rows.values())
    for method, (label, colour, marker) in STYLES.items():
        points = []
        for name in dict.fromkeys(name for row in targets for name in row):
            stem, _, steps = name.partition("@")
            own = [row[name] for row in targets if name in row]
            if stem == method and steps.isdecimal() and len(own) == len(targets):
                points.append((int(steps), own))
        if points:
            _line(axes, sorted(points, key=lambda point: point[0]), label, colour, marker)
    axes.set_xscale("log")
    axes.set_xlabel("training, multiply-adds (all that is spent)")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _line(
    axes: Axes, points: Sequence[tuple[int, list[Any]]], label: str, colour: str, marker: str
) -> None:
    cost = [np.mean([row[COST] for row in own]) for _, own in points]
    accuracy = [100 * np.array([row["accuracy"] for row in own]) for _, own in points]
    middle = np.array([one.mean() for one in accuracy])
    ends = np.array([interval(one, lambda v: float(v.mean())) for one in accuracy])
    spread = np.abs(ends.T - middle)
    axes.errorbar(
        cost, middle, yerr=spread, color=colour, marker=marker, ms=4, lw=1.2, capsize=2, label=label
    )
    for (steps, _), x, y in zip(points, cost, middle, strict=True):
        axes.annotate(
            f"{steps}", (x, y), (3, -9), textcoords="offset points", fontsize=7, color=colour
        )


if __name__ == "__main__":
    main()
