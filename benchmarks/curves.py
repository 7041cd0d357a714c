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

from benchmarks.peer_figures import best_peer
from benchmarks.study.rows import MAIN, Rows, difference, interval, mean, paired, study_rows
from benchmarks.study_tables import CONTROLS, FEW, PEERS

OUT = Path(__file__).parents[1] / "docs" / "evidence"
# Okabe and Ito's colours, which colour-blind readers tell apart.
VERMILION, BLUE, GREEN, GREY, ORANGE = "#d55e00", "#0072b2", "#009e73", "#777777", "#e69f00"
PURPLE, SKY = "#cc79a7", "#56b4e9"
LOWEST = -25.0
"""Points: below it a curve says nothing but that it begins."""
BARS = "bars: 95 % over targets"
TASKS = "5-class tasks of CIFAR-100"
METHODS = {
    "trunk": ("from a trunk", PURPLE, "P"),
    "mvp": ("MVP", VERMILION, "o"),
    "smsp": ("SMSP", BLUE, "s"),
    "ifp": ("IFP", GREEN, "^"),
    "ahnp": ("AHNP", GREEN, "^"),
    "taught": ("largest weights, taught by the backbone", SKY, "v"),
    "magnitude": ("largest weights", ORANGE, "D"),
    "random": ("random units", GREY, "x"),
}
AT_A_HUNDRED = ("trunk", "mvp", "magnitude", "random")
"""Those that are compared at a hundred steps, over ratios and numbers of classes."""
WORDS = {
    "trunk@100": "from a trunk",
    "mvp@100-random-mask": "voters' weights, random units",
    "mvp@100-random-mask-fast": "voters' weights, random units, faster rate",
    "mvp@100-backbone-weights": "voted units, backbone's weights",
    "mvp@100-backbone-weights-fast": "voted units, backbone's weights, faster rate",
    "mvp@100-one": "one voter",
    "mvp@100-disjoint": "voters without a common class",
    "mvp@100-random-neighbours": "any three voters",
    "mvp@100-farthest": "the least similar three",
    "mvp@100-zoo-votes": "units voted by the whole zoo",
    "mvp@100-zoo-mean": "units and weights of the whole zoo",
    "magnitude@100": "backbone's largest units",
    "random@100": "random units",
    "ifp@1000": "IFP from scratch, 1,000 steps",
    "unpruned@20": "unpruned, 20 steps",
    "unpruned@100": "unpruned",
    "probe": "unpruned and frozen, logistic regression",
    "small@0": "small network of all classes, no step",
    "small@20": "small network of all classes, 20 steps",
    "small@100": "small network of all classes",
    "small@1000": "small network of all classes, 1,000 steps",
    "thin-from-nothing@100": "same shape, random weights",
    "thin-from-nothing@1000": "same shape, random weights, 1,000 steps",
    "thin-distilled@100": "same shape, random weights, distilled",
    "thin-distilled@1000": "same shape, random weights, distilled, 1,000 steps",
    "mobilenet-distilled@1000": "MobileNetV3-small-050, distilled, 1,000 steps",
}
"""What bars are called, where method and steps do not say it; a hundred steps unless they say otherwise."""


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mvp-edge", "svg.fonttype": "none", "font.size": 9})
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (draw, title) in PLOTS.items():
        figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
        if draw(axes):
            figure.suptitle(title, fontsize=9)  # over all of it: names of bars take much room
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
            axes.axhline(
                whole[0],
                color="black",
                lw=0.8,
                ls="--",
                label=f"unpruned, 100 steps\n({whole[3]} targets)",
            )
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set_xlabel("multiply-adds a task (numbers: steps),\nwithout the zoo's or trunk's own")
        axes.set_ylabel(f"top-1, points above or below\n{_in_words(base)}")
        axes.annotate(
            f"{BARS}; lower than {LOWEST:g}: not drawn",
            (1.02, 0.02),
            xycoords="axes fraction",
            fontsize=6,
        )
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
        _line(axes, points, f"MVP, {steps} steps", colour, "o")
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
            _line(axes, [(1, 0.0, 0.0, 0.0, None), *points], f"MVP, {steps} steps", colour, "o")
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
    """How much may go: what a hundred steps from each start lose against the unpruned backbone's, by ratio."""
    rows, whole = study_rows("ratios"), "unpruned@100"
    ticks: dict[float, str] = {}
    for place, method in enumerate(AT_A_HUNDRED):
        names = {0.1: f"{method}@100"}  # the main study's keep ratio
        names |= {
            keep: f"{method}@100-keep{keep}"
            for keep in _by_number(rows, rf"{method}@100-keep([\d.]+)", float)
        }
        beside = 1.02 ** (place - 1.5)  # so that bars do not cover one another
        points = []
        for keep, name in sorted(names.items()):
            if got := difference(rows, name, whole):
                points.append((keep * beside, *got[:3], None))
                share = mean(paired(rows, name, whole, "forward_flops").T)
                ticks[keep] = f"{keep:g}\n{100 * share[0] / share[1]:.2g} %"
        label, colour, marker = METHODS[method]
        _line(axes, points, f"{label}, 100 steps", colour, marker)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [ticks[keep] for keep in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("kept share of the units; of the multiply-adds")
    axes.set_ylabel("top-1, points below the unpruned\nbackbone, fine-tuned for 100 steps")
    axes.legend(frameon=False)
    return bool(ticks)


def classes(axes: Axes) -> bool:
    """How many classes a task has."""
    rows = study_rows("classes")
    if not rows:
        return False
    numbers = (3, 5, 10, 20)
    of = {f"{n}": [row for name, row in rows.items() if f"-{n}c-" in name] for n in numbers}
    _at_a_hundred(axes, {**of, "5": _first_of_main()})
    chance = [100 / number for number in numbers]
    axes.plot(range(len(numbers)), chance, color=GREY, lw=0.8, ls=":", label="chance")
    axes.set_xlabel("classes of a task (of three and five the trunk has seen none, of more some)")
    axes.legend(frameon=False)
    return True


def few(axes: Axes) -> bool:
    """How many images a task has."""
    columns = {f"{each}": list(study_rows(f"few-{each}").values()) for each in FEW}
    if not all(columns.values()):
        return False
    _at_a_hundred(axes, {**columns, "425 (all)": _first_of_main()})
    axes.set_xlabel("training images a class")
    axes.legend(frameon=False)
    return True


def _first_of_main() -> Sequence[Mapping[str, Any]]:
    """The main study's rows of as many targets as the other studies have."""
    return list(study_rows(MAIN).values())[:8]


def _at_a_hundred(axes: Axes, columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A line a method, a column a kind of tasks: top-1 after a hundred steps."""
    for beside, method in enumerate(AT_A_HUNDRED):
        points = []
        for place, targets in enumerate(columns.values()):
            if own := [row[f"{method}@100"] for row in targets if f"{method}@100" in row]:
                points.append((place + 0.05 * beside, *_spread(own), None))
        label, colour, marker = METHODS[method]
        _line(axes, points, f"{label}, 100 steps", colour, marker)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_ylabel("top-1, %")


_WHERE = f"\nResNet-18, {TASKS}, keep 0.1; {BARS}"
PLOTS: Mapping[str, tuple[Callable[[Axes], bool], str]] = {
    "cost-resnet18": (
        accuracy_against_cost(MAIN, "ifp@1000"),
        f"ResNet-18, {TASKS}, 1 % of the multiply-adds",
    ),
    "cost-resnet18-keep0.32": (
        accuracy_against_cost("resnet18-keep0.32", "ifp@1000"),
        f"ResNet-18, {TASKS}, 10 % of the multiply-adds (the paper's recipe)",
    ),
    "cost-deit-tiny": (
        accuracy_against_cost("deit-trunk", "ahnp@500"),
        "DeiT-Tiny, 5-class tasks of Tiny-ImageNet at 64 px, keep 0.25",
    ),
    "zoo-size": (zoo_size, f"How large must the zoo be?{_WHERE}"),
    "similarity": (similarity, f"How similar must the tasks be?{_WHERE}"),
    "controls": (controls, f"What is it that helps?{_WHERE}"),
    "peers": (peers, f"What else could one do?{_WHERE}"),
    "ratios": (ratios, f"How much may go?\nResNet-18, {TASKS}; {BARS}"),
    "classes": (classes, f"How many classes?\nResNet-18, CIFAR-100, keep 0.1; {BARS}"),
    "few": (few, f"How many images?{_WHERE}"),
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
        range(len(found)),
        [f"{_in_words(name)} ({got[3]})" for name, got in reversed(found)],
        fontsize=7,
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel(f"top-1, points above or below\n{_in_words(base)} (in brackets: targets)")
    return bool(found)


def _in_words(name: str) -> str:
    """A variant as a reader would call it; as it is in the tables, where nobody has thought of words."""
    if name in WORDS:
        return WORDS[name]
    method, _, steps = name.partition("@")
    if not steps.isdigit():
        return name
    if method.startswith("tp-"):
        return f"Torch-Pruning ({method.removeprefix('tp-')}), {int(steps):,} steps"
    return f"{METHODS[method][0]}, {int(steps):,} steps" if method in METHODS else name


if __name__ == "__main__":
    main()
