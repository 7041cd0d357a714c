"""The studies' plots, from the committed rows: `make curves` → docs/evidence/ (needs matplotlib).

One figure a question; the numbers of each are in the tables of benchmarks/README.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.rows import MAIN, Rows, difference, interval, mean, study_rows
from benchmarks.study_figures import best_peer
from benchmarks.study_tables import CONTROLS, PEERS

OUT = Path(__file__).parents[1] / "docs" / "evidence"
# Okabe and Ito's colours, which colour-blind readers tell apart.
VERMILION, BLUE, GREEN, GREY, ORANGE = "#d55e00", "#0072b2", "#009e73", "#777777", "#e69f00"
PURPLE = "#cc79a7"
LOWEST = -25.0
"""Points: below it a curve says nothing but that it begins."""
METHODS = {
    "trunk": ("from a trunk", PURPLE, "P"),
    "mvp": ("MVP", VERMILION, "o"),
    "smsp": ("SMSP", BLUE, "s"),
    "ifp": ("IFP", GREEN, "^"),
    "ahnp": ("AHNP", GREEN, "^"),
    "magnitude": ("largest weights", ORANGE, "D"),
    "random": ("random units", GREY, "x"),
}
AT_A_HUNDRED = ("trunk", "mvp", "magnitude", "random")
"""Those that are compared at a hundred steps, over ratios and numbers of classes."""


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mvp-edge", "svg.fonttype": "none", "font.size": 9})
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (draw, title) in PLOTS.items():
        figure, axes = plt.subplots(figsize=(6.0, 3.5), layout="constrained")
        if draw(axes):
            axes.set_title(title, fontsize=9)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
            print(OUT / f"{name}.svg")
        plt.close(figure)


def accuracy_against_cost(study: str, base: str) -> Callable[[Axes], bool]:
    """A line a method, a point a number of steps: points of top-1 against ``base`` and all that is spent.

    Paired, so that points of fewer targets stand where they would with all of them. What is lower than
    ``LOWEST`` stands in the tables alone.
    """

    def draw(axes: Axes) -> bool:
        rows = study_rows(study)
        if not rows:
            return False
        for method, (label, colour, marker) in METHODS.items():
            points = []
            for steps, own in sorted(_by_number(rows, rf"{method}@(\d+)").items()):
                if got := difference(rows, f"{method}@{steps}", base):
                    spent = np.mean([row["total_flops"] for row in own])
                    points.append((spent, *got[:3], steps))
            _line(axes, [one for one in points if one[1] > LOWEST], label, colour, marker)
        axes.axhline(0, color=GREY, lw=0.8)
        if whole := difference(rows, "unpruned@100", base):
            axes.axhline(whole[0], color="black", lw=0.8, ls="--", label="unpruned, 100 steps")
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set_xlabel("multiply-adds for one task, zoo or trunk given (numbers: steps)")
        axes.set_ylabel(f"points of top-1 against {base}")
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        return True

    return draw


def zoo_size(axes: Axes) -> bool:
    """The lifelong curve: what a zoo of fewer entries loses against the whole one."""
    rows = study_rows("zoo-size")
    if not rows:
        return False
    ticks: set[int] = set()
    for steps, colour in ((100, VERMILION), (20, BLUE)):
        base = f"mvp@{steps}"
        whole = next((row[base]["zoo"] for row in rows.values() if base in row), None)
        counts = sorted(_by_number(rows, rf"{base}-zoo-(\d+)"))
        found = [(count, difference(rows, f"{base}-zoo-{count}", base)) for count in counts]
        points: list[Any] = [(count, *got[:3], None) for count, got in found if got]
        if points and whole is not None:
            points.append((whole, 0.0, 0.0, 0.0, None))
        ticks |= {point[0] for point in points}
        _line(axes, points, f"MVP@{steps}", colour, "o")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{tick}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("entries in the zoo")
    axes.set_ylabel("points of top-1 against the whole zoo")
    axes.legend(frameon=False)
    return True


def similarity(axes: Axes) -> bool:
    """Voters from each fifth of the zoo, by similarity: what is lost against the nearest three."""
    rows = study_rows("zoo-size")
    if not rows:
        return False
    for steps, colour in ((100, VERMILION), (20, BLUE)):
        points = [
            (fifth, *got[:3], None)
            for fifth in range(2, 6)
            if (got := difference(rows, f"mvp@{steps}-fifth-{fifth}", f"mvp@{steps}"))
        ]
        if points:
            _line(axes, [(1, 0.0, 0.0, 0.0, None), *points], f"MVP@{steps}", colour, "o")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xticks(range(1, 6), ["nearest", "2nd", "3rd", "4th", "farthest"])
    axes.set_xlabel("the fifth of the zoo that the three voters come from")
    axes.set_ylabel("points against the nearest three")
    axes.legend(frameon=False)
    return True


def controls(axes: Axes) -> bool:
    """Each control's difference to MVP@100."""
    rows = study_rows(MAIN)
    names = ["trunk@100", *(f"mvp@100-{name}" for name in CONTROLS)]
    names += ["magnitude@100", "random@100", "ifp@1000", "unpruned@100"]
    return _bars(axes, rows, names, "mvp@100")


def peers(axes: Axes) -> bool:
    """What else a user could do, against MVP@100; of Torch-Pruning's variants the best of each number of steps."""
    rows = study_rows("peers")
    best = [best_peer(rows, rf"tp-.*@{steps}") for steps in (100, 1000)]
    others = "|".join(name for name in PEERS if not name.startswith("tp-"))
    names = [name for name in best if name]
    names += sorted(n for n in {n for r in rows.values() for n in r} if re.fullmatch(others, n))
    return _bars(axes, rows, names, "mvp@100")


def ratios(axes: Axes) -> bool:
    """How much may go: a hundred steps from a trunk, a vote, the largest weights, random units at each ratio."""
    rows = study_rows("ratios")
    if not rows:
        return False
    ticks: set[float] = set()
    for place, method in enumerate(AT_A_HUNDRED):
        found = _by_number(rows, rf"{method}@100-keep([\d.]+)", float)
        if main := [row[f"{method}@100"] for row in rows.values() if f"{method}@100" in row]:
            found[0.1] = main  # the main study's keep ratio
        ticks |= set(found)
        label, colour, marker = METHODS[method]
        beside = 1.02 ** (place - 1.5)  # so that bars do not cover one another
        points = [(keep * beside, *_spread(own), None) for keep, own in sorted(found.items())]
        _line(axes, points, f"{label} @100", colour, marker)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("kept share of the units")
    axes.set_ylabel("top-1, %")
    axes.legend(frameon=False)
    return True


def classes(axes: Axes) -> bool:
    """How many classes a task has: a hundred steps of each method, the main study's tasks among them."""
    rows = study_rows("classes")
    if not rows:
        return False
    numbers = (3, 5, 10, 20)
    main = dict(list(study_rows(MAIN).items())[:8])
    for beside, method in enumerate(AT_A_HUNDRED):
        points = []
        for place, number in enumerate(numbers):
            of = main if number == 5 else {t: r for t, r in rows.items() if f"-{number}c-" in t}
            if own := [row[f"{method}@100"] for row in of.values() if f"{method}@100" in row]:
                points.append((place + 0.05 * beside, *_spread(own), None))
        label, colour, marker = METHODS[method]
        _line(axes, points, f"{label} @100", colour, marker)
    axes.set_xticks(range(len(numbers)), [f"{number}" for number in numbers])
    axes.set_xlabel("classes of a task")
    axes.set_ylabel("top-1, %")
    axes.legend(frameon=False)
    return True


PLOTS: Mapping[str, tuple[Callable[[Axes], bool], str]] = {
    "cost-resnet18": (
        accuracy_against_cost(MAIN, "ifp@1000"),
        "ResNet-18, CIFAR-100, 1 % of the multiply-adds",
    ),
    "cost-resnet18-keep0.32": (
        accuracy_against_cost("resnet18-keep0.32", "ifp@1000"),
        "ResNet-18, CIFAR-100, 10 % of the multiply-adds (older recipe)",
    ),
    "cost-deit-tiny": (
        accuracy_against_cost("deit-trunk", "ahnp@500"),
        "DeiT-Tiny, 64 px, keep 0.25",
    ),
    "zoo-size": (zoo_size, "How large must the zoo be?"),
    "similarity": (similarity, "How similar must the tasks be? (the nearest: 0 by definition)"),
    "controls": (controls, "What is it that helps? Points against MVP@100"),
    "peers": (peers, "What else could one do? Points against MVP@100"),
    "ratios": (ratios, "How much may go?"),
    "classes": (classes, "How many classes?"),
}


def _by_number(rows: Rows, pattern: str, kind: type = int) -> dict[Any, list[Any]]:
    """The pattern's number in a variant's name → the rows of all targets."""
    found: dict[Any, list[Any]] = {}
    for row in rows.values():
        for name, one in row.items():
            match = re.fullmatch(pattern, name)
            if match:
                found.setdefault(kind(match[1]), []).append(one)
    return found


def _spread(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Mean top-1 in per cent, and its interval."""
    own = 100 * np.array([row["accuracy"] for row in rows])
    return float(own.mean()), *interval(own, mean)


def _line(
    axes: Axes,
    points: Sequence[tuple[Any, float, float, float, Any]],
    label: str,
    colour: str,
    marker: str,
) -> None:
    """Through (x, mean, low, high, what stands beside it); nothing, where there are none."""
    if not points:
        return
    x, middle, low, high = np.array([point[:4] for point in points], dtype=float).T
    axes.errorbar(
        x, middle, yerr=[middle - low, high - middle], color=colour, marker=marker, ms=4, lw=1.2,
        capsize=2, label=label,
    )  # fmt: skip
    for place, height, _, _, note in points:
        if note is not None:
            how: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": colour}
            axes.annotate(f"{note}", (place, height), (3, -9), **how)


def _bars(axes: Axes, rows: Rows, names: Sequence[str], base: str) -> bool:
    """Horizontal: each variant's mean paired difference to ``base``, the best on top."""
    found = [
        (name, got) for name in names if name != base and (got := difference(rows, name, base))
    ]
    found.sort(key=lambda one: -one[1][0])
    for place, (_, (value, low, high, _count)) in enumerate(reversed(found)):
        axes.barh(place, value, color=VERMILION if value < 0 else GREEN, height=0.6, alpha=0.8)
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], color="black", lw=1, capsize=2
        )
    axes.set_yticks(
        range(len(found)), [f"{name} ({got[3]})" for name, got in reversed(found)], fontsize=7
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel(f"points of top-1 against {base} (targets)")
    return bool(found)


if __name__ == "__main__":
    main()
