"""The panels of the plots: each draws the rows of one question, and says whether there were any."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.report.device_figures import speedups
from benchmarks.report.device_tables import prediction_errors
from benchmarks.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SERIES,
    SKY,
    VERMILION,
    Point,
    Series,
    accuracy_point,
    difference_bars,
)
from benchmarks.report.figures import BEST, resolved
from benchmarks.report.grid_tables import RUNTIMES, grids, speed_rows
from benchmarks.report.sources import device_measurement, pooled_networks, study_rows
from benchmarks.report.words import in_words
from benchmarks.study.rows import MAIN, Rows, difference, mean, paired

LOWEST = -25.0
"""Points below the base; what is lower is left to the tables."""
AT_A_HUNDRED = ("trunk", "mvp", "magnitude", "random")
"""The methods that are compared at a hundred steps over sizes, numbers of classes and images."""


def accuracy_against_cost(study: str, base: str) -> Callable[[Axes], bool]:
    """A line a method, a point a number of steps: points of top-1 against ``base``, over the training spent.

    Differences are paired by task, so that points of fewer tasks stand where they would with all of them.
    """

    def draw(axes: Axes) -> bool:
        rows = study_rows(study)
        if not rows:
            return False
        for method, series in SERIES.items():
            points = []
            for steps, own in sorted(_by_number(rows, rf"{method}@(\d+)").items()):
                if got := difference(rows, f"{method}@{steps}", base):
                    spent = float(np.mean([row["total_flops"] for row in own]))
                    points.append(Point(spent, *got[:3], f"{steps}"))
            series.draw(axes, [one for one in points if one.mean > LOWEST])
        axes.axhline(0, color=GREY, lw=0.8)
        if whole := difference(rows, "unpruned@100", base):
            label = f"unpruned, 100 steps\n({whole[3]} tasks)"
            axes.axhline(whole[0], color="black", lw=0.8, ls="--", label=label)
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set_xlabel("training of a task, multiply-adds (numbers at points: steps)")
        axes.set_ylabel(f"top-1, points against\n{in_words(base)}")
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        return True

    return draw


def training_of_many_tasks(axes: Axes) -> bool:
    """All training for a number of tasks, a trunk's own included."""
    rows = study_rows(MAIN)
    trunks = [one["total_flops"] for one in pooled_networks("trunk-?-plain")]
    if not rows or not trunks:
        return False
    tasks = np.array([1, 2, 3, 5, 10, 20, 50, 100])
    for variant, once, series in (
        ("ifp@1000", 0.0, SERIES["ifp"]),
        ("distill@1000", 0.0, SERIES["distill"]),
        ("trunk-plain@100", float(np.mean(trunks)), SERIES["trunk"]),
    ):
        spent = [row[variant]["total_flops"] for row in rows.values() if variant in row]
        if not spent:
            return False
        name = in_words(variant) + (", with its own training" if once else "")
        look: dict[str, Any] = {"color": series.colour, "marker": series.marker, "ms": 4, "lw": 1.2}
        axes.plot(tasks, once + tasks * np.mean(spent), label=name, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(tasks, [f"{count}" for count in tasks])
    axes.minorticks_off()
    axes.set_xlabel("number of tasks")
    axes.set_ylabel("training of all of them,\nmultiply-adds")
    axes.legend(frameon=False, fontsize=8)
    return True


def zoo_size(axes: Axes) -> bool:
    """What a zoo of fewer entries loses against the whole one."""
    rows = study_rows("zoo-size")
    if not rows:
        return False
    ticks: set[float] = set()
    for steps, colour in ((100, VERMILION), (20, BLUE)):
        base = f"mvp@{steps}"
        whole = next((row[base]["zoo"] for row in rows.values() if base in row), None)
        counts = sorted(_by_number(rows, rf"{base}-zoo-(\d+)"))
        found = [(count, difference(rows, f"{base}-zoo-{count}", base)) for count in counts]
        points = [Point(count, *got[:3]) for count, got in found if got]
        if points and whole is not None:
            points.append(Point(whole, 0.0, 0.0, 0.0))
        ticks |= {point.x for point in points}
        Series(f"MVP, {steps} steps", colour).draw(axes, points)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("entries in the zoo")
    axes.set_ylabel("top-1, points against the whole zoo")
    axes.legend(frameon=False)
    return True


def similarity(axes: Axes) -> bool:
    """What voters from the less similar fifths of the zoo lose against the nearest three."""
    rows = study_rows("zoo-size")
    if not rows:
        return False
    for steps, colour in ((100, VERMILION), (20, BLUE)):
        points = [
            Point(fifth, *got[:3])
            for fifth in range(2, 6)
            if (got := difference(rows, f"mvp@{steps}-fifth-{fifth}", f"mvp@{steps}"))
        ]
        if points:
            nearest = Point(1, 0.0, 0.0, 0.0)
            Series(f"MVP, {steps} steps", colour).draw(axes, [nearest, *points])
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_xticks(range(1, 6), ["most", "2nd", "3rd", "4th", "least"])
    axes.set_xlabel("fifth of the zoo that the voters come from, by similarity")
    axes.set_ylabel("top-1, points against the nearest three")
    axes.legend(frameon=False)
    return True


def votes(axes: Axes) -> bool:
    """One change to MVP each, and other starts."""
    controls = (
        "random-mask-fast", "backbone-weights-fast", "one", "disjoint", "random-neighbours", "farthest",
        "zoo-votes", "zoo-mean",
    )  # fmt: skip
    names = ["trunk@100", *(f"mvp@100-{name}" for name in controls), "magnitude@100", "random@100"]
    return difference_bars(axes, study_rows(MAIN), names, "mvp@100")


def trunks(axes: Axes) -> bool:
    """Trunks of different making against iterative pruning from scratch."""
    kinds = ("trunk", "trunk-plain", "trunk-short", "trunk-long", "trunk-magnitude", "trunk-images")
    names = [*(f"{kind}@100" for kind in kinds), "trunk-everything@100", "mvp@100", "trunk@20"]
    return difference_bars(axes, study_rows(MAIN), names, "ifp@1000")


def peers(axes: Axes) -> bool:
    """Other ways, against MVP; of Torch-Pruning's variants the best of each number of steps."""
    rows = study_rows("peers")
    best = [resolved(rows, rf"{BEST}tp-.*@{steps}") for steps in (100, 1000)]
    others = (
        "trunk@100", "small@0", "small@100", "thin-from-nothing@100", "thin-from-nothing@1000",
        "thin-distilled@100", "thin-distilled@1000", "mobilenet-distilled@1000", "probe", "unpruned@100",
        "ifp@1000",
    )  # fmt: skip
    return difference_bars(axes, rows, [*(name for name in best if name), *others], "mvp@100")


def tried(axes: Axes) -> bool:
    """Changes to MVP that were tried, against its default."""
    rows = study_rows("trials-resnet18")
    names = {name for row in rows.values() for name in row if re.fullmatch(r"now-.*@100", name)}
    return difference_bars(axes, rows, sorted(names), "now@100")


def sizes(axes: Axes) -> bool:
    """What a hundred steps from each start lose against the unpruned backbone's, by keep ratio."""
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
                points.append(Point(keep * beside, *got[:3]))
                share = mean(paired(rows, name, whole, "forward_flops").T)
                ticks[keep] = f"{keep:g}\n{100 * share[0] / share[1]:.2g} %"
        SERIES[method].draw(axes, points)
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [ticks[keep] for keep in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("keep ratio of the units, and what is left of the multiply-adds")
    axes.set_ylabel("top-1, points against\nthe unpruned backbone, 100 steps")
    axes.legend(frameon=False)
    return bool(ticks)


def classes(axes: Axes) -> bool:
    """Top-1 by the number of classes of a task."""
    rows = study_rows("classes")
    if not rows:
        return False
    numbers = (3, 5, 10, 20)
    of = {f"{n}": [row for name, row in rows.items() if f"-{n}c-" in name] for n in numbers}
    _after_a_hundred_steps(axes, {**of, "5": _first_of_main()})
    chance = [100 / number for number in numbers]
    axes.plot(range(len(numbers)), chance, color=GREY, lw=0.8, ls=":", label="chance")
    axes.set_xlabel("classes of a task")
    axes.legend(frameon=False, fontsize=8)
    return True


def few_images(axes: Axes) -> bool:
    """Top-1 by the number of training images."""
    columns = {f"{each}": list(study_rows(f"few-{each}").values()) for each in (10, 30, 100)}
    if not all(columns.values()):
        return False
    _after_a_hundred_steps(axes, {**columns, "425 (all)": _first_of_main()})
    axes.set_xlabel("training images a class")
    axes.legend(frameon=False, fontsize=8)
    return True


def unseen(axes: Axes) -> bool:
    """Top-1 on data sets that backbone, zoo and trunk have seen or not."""
    rows = study_rows("unseen")
    columns = {
        "CIFAR-100\n(the zoo's own)": _first_of_main(),
        "Tiny-ImageNet": [row for name, row in rows.items() if name.startswith("tiny_imagenet")],
        "photographs": [row for name, row in rows.items() if name.startswith("imagenette")],
    }
    if not all(columns.values()):
        return False
    variants = ("trunk@100", "mvp@100", "magnitude@100", "random@100", "distill@1000", "ifp@1000")
    for beside, variant in enumerate(variants):
        series = SERIES[variant.partition("@")[0]]
        points = [
            accuracy_point(place + 0.08 * (beside - 2.5), own)
            for place, targets in enumerate(columns.values())
            if (own := [row[variant] for row in targets if variant in row])
        ]
        Series(in_words(variant), series.colour, series.marker).draw(axes, points, joined=False)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_ylabel("top-1, %")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return True


def speed(axes: Axes) -> bool:
    """How many times faster, against how many times fewer multiply-adds."""
    colours = dict(zip(("ResNet-18, 32 px", "ResNet-18, 224 px", "ResNet-50, 224 px", "DeiT-Tiny, 224 px"),
                       (VERMILION, ORANGE, BLUE, GREEN), strict=True))  # fmt: skip
    markers = dict(zip(RUNTIMES, ("o", "s"), strict=True))
    largest = 1.0
    for grid in grids():
        found: dict[str, list[tuple[float, float]]] = {}
        for row in speed_rows(grid):
            for runtime, (value, _, _) in speedups(row).items():
                found.setdefault(runtime, []).append((row["flops_ratio"], value))
        for runtime, points in found.items():
            x, y = np.array(sorted(points)).T
            largest = max(largest, *x, *y)
            name = f"{grid.facts['network']}, {RUNTIMES[runtime]}"
            style = "-" if runtime == "onnxruntime" else "--"
            colour = colours.get(grid.facts["network"], GREY)
            axes.plot(x, y, color=colour, marker=markers[runtime], ms=4, lw=1.2, ls=style, label=name)  # fmt: skip
    axes.plot([1, largest], [1, largest], color=GREY, lw=0.8, ls=":", label="as many times faster")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("times fewer multiply-adds")
    axes.set_ylabel("times faster")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return largest > 1


def prediction(axes: Axes) -> bool:
    """Median error of the predicted latency, for each architecture that was held out."""
    facts = device_measurement("predictor")
    if not facts:
        return False
    errors = prediction_errors(facts, "law")
    names = list(dict.fromkeys(name for name, _ in errors))
    for beside, (runtime, colour) in enumerate(zip(RUNTIMES, (BLUE, SKY), strict=True)):
        places = [place + 0.36 * (0.5 - beside) for place in range(len(names))]
        values = [float(np.median(errors[name, runtime])) for name in names]
        axes.barh(places, values, height=0.34, color=colour, label=RUNTIMES[runtime])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("median error of the predicted latency, %")
    axes.legend(frameon=False, fontsize=8)
    return True


def _first_of_main() -> Sequence[Mapping[str, Any]]:
    """The main study's rows of as many tasks as the other studies have."""
    return list(study_rows(MAIN).values())[:8]


def _after_a_hundred_steps(axes: Axes, columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A line a method, a column a kind of tasks: top-1 after a hundred steps."""
    for beside, method in enumerate(AT_A_HUNDRED):
        points = [
            accuracy_point(place + 0.05 * beside, own)
            for place, targets in enumerate(columns.values())
            if (own := [row[f"{method}@100"] for row in targets if f"{method}@100" in row])
        ]
        SERIES[method].draw(axes, points)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_ylabel("top-1, %")


def _by_number(rows: Rows, pattern: str, kind: type = int) -> dict[Any, list[Any]]:
    """The pattern's number in a variant's name → the rows of all targets."""
    found: dict[Any, list[Any]] = {}
    for row in rows.values():
        for name, one in row.items():
            match = re.fullmatch(pattern, name)
            if match:
                found.setdefault(kind(match[1]), []).append(one)
    return found
