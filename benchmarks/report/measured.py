"""Figures and tables of similarity between tasks and of the tool's own speed, from the files of their scripts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.report import sources
from benchmarks.report.figure import Figure
from benchmarks.study.rows import MAIN, Values, by_fifth, interval, mean

RESNET = "ResNet-18, CIFAR-100, tied keep 0.1"


def measured_figures() -> Iterator[Figure]:
    """The figures of every measurement that there is."""
    for name, figures in (
        ("speed", speed_figures),
        ("step", step_figures),
        ("choice", choice_figures),
        (f"overlap-{MAIN}", overlap_figures),
    ):
        if facts := sources.measurement(name):
            yield from figures(facts, f"benchmarks/results/{name}.json")


def overlap_figures(facts: Mapping[str, Any], source: str) -> list[Figure]:
    """How much more of their units the most similar tasks share than the least, as intersection over union."""

    def iou(common: Values) -> Values:
        return common / (2 - common)  # of sets of one size

    fifths = np.array([by_fifth(row["others"], iou) for row in facts["rows"]])
    gap = (fifths[:, 0] - fifths[:, -1]).mean(1)
    text = (
        f"IoU of kept units, mean over unit groups, nearest fifth of tasks by LEEP − farthest; {RESNET}, "
        f"{len(gap)} targets"
    )
    command = f"python -m benchmarks.study.similarity overlap benchmarks/plans/{MAIN}.yaml"
    low, high = interval(gap, mean)
    name = "P11-iou-nearest-minus-farthest"
    return [Figure(name, float(gap.mean()), low, high, "", "stated", text, source, command)]


def choice_figures(facts: Mapping[str, Any], source: str) -> list[Figure]:
    """How well the similarity of three voters predicts the accuracy they lead to, and the seconds it takes."""
    rows: list[dict[str, Any]] = facts["rows"]
    found = []
    command = "python -m benchmarks.study.similarity choice benchmarks/plans/zoo-size.yaml"
    for measure in ("leep", "wordnet"):
        agreed = []
        for target in sorted({row["target"] for row in rows}):
            own = [row for row in rows if row["target"] == target]
            scores = [[row[key] for row in own] for key in (measure, "accuracy")]
            agreed.append(float(spearmanr(*scores).statistic))
        values = np.array(agreed)
        text = (
            f"rank correlation of {measure} with mvp@20 over choices of three voters, within a target; "
            f"{RESNET}, {len(agreed)} targets"
        )
        low, high = interval(values, mean)
        name = f"P11-rank-correlation-{measure}"
        found.append(
            Figure(name, float(values.mean()), low, high, "", "stated", text, source, command)
        )
        seconds = float(np.mean([row[f"{measure}_seconds"] for row in rows]))
        name, text = f"P11-seconds-{measure}", f"{measure} of a target over the zoo, one thread"
        found.append(Figure(name, seconds, None, None, "s", "stated", text, source, command))
    return found


def speed_figures(facts: Mapping[str, Any], source: str) -> list[Figure]:
    """Seconds of whole commands: start-up, pruning with export, and the ratio to the thousand-step methods."""
    rows, where = facts["rows"], facts["conditions"]

    def figure(id_: str, values: Sequence[float], unit: str, goal: str, conditions: str) -> Figure:
        text = f"{conditions}; median and range of {len(values)}"
        command, middle = "python -m benchmarks.timing.speed", float(np.median(values))
        return Figure(id_, middle, min(values), max(values), unit, goal, text, source, command)

    found = [
        figure("P10-help-seconds", facts["help"], "s", "≤ 0.3", "mvp-edge --help, fresh process")
    ]
    for way, suffix in (("mvp", ""), ("trunk", "-trunk")):
        own = [row[way] for row in rows]
        both = [one["prune"] + one["export"] for one in own]
        shares = [one["steps"] / sum(one["phases"].values()) for one in own]
        timed = [row for row in rows if "ifp" in row]
        walls = [_pruning(row["ifp"]) / _pruning(row[way]) for row in timed]
        whole = [row["ifp"]["prune"] / row[way]["prune"] for row in timed]
        distill = [row["distill"]["prune"] / row[way]["prune"] for row in rows if "distill" in row]
        how = f"{where}, {way}@100"
        found += [
            figure(f"P8-prune-export-seconds{suffix}", both, "s", "≤ 60",
                   f"{how}, fresh processes, imports included"),
            figure(f"P8-training-share{suffix}", shares, "", "≥ 0.8",
                   f"{how}, training steps over all phases of prune"),
        ]  # fmt: skip
        if distill:
            text = (
                f"{where}, distill@1000 over {way}@100, the whole command `prune`, imports included"
            )
            found.append(figure(f"P3-distill-command-ratio{suffix}", distill, "×", "stated", text))
        if not walls:
            continue
        found += [
            figure(f"P3-wall-ratio{suffix}", walls, "×", "≥ 20",
                   f"{where}, ifp@1000 over {way}@100, similarity and pruning alone"),
            figure(f"P3-command-ratio{suffix}", whole, "×", "stated",
                   f"{where}, ifp@1000 over {way}@100, the whole command `prune`, imports included"),
        ]  # fmt: skip
    return found


def _pruning(timed: Mapping[str, Any]) -> float:
    """Seconds of the phases that prune."""
    phases: Mapping[str, float] = timed["phases"]
    return phases["pruning"] + phases.get("similarity", 0.0)


def step_figures(facts: Mapping[str, Any], source: str) -> list[Figure]:
    """Time of one training step over that of a bare PyTorch loop, measured in alternation."""
    found = []
    for row in facts["rows"]:
        ratios = np.array(row["ours_ms"]) / np.array(row["bare_ms"])
        low, high = interval(ratios, lambda drawn: np.median(drawn, axis=-1))
        thin = row["keep"] == 0.1
        name = "P9-step-over-bare" + ("" if thin else f"-keep{row['keep']}")
        text = (
            f"ResNet-18, 32 px, tied keep {row['keep']}, batch 128 in four updates by Muon, "
            f"{facts['machine']['cores']} cores, interleaved; median of {len(ratios)} turns"
        )
        command = "python -m benchmarks.timing.step"
        value = float(np.median(ratios))
        found.append(Figure(name, value, low, high, "×", "≤ 1.05", text, source, command))
    return found


def leep_agreement(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Images → mean Spearman correlation with the whole split, mean share of its three nearest, seconds."""
    found: dict[str, dict[str, float]] = {}
    for images in facts["rows"][0]["rankings"]:
        agreed, shared, seconds = [], [], []
        for row in facts["rows"]:
            some, whole = (row["rankings"][n]["scores"] for n in (images, "whole"))
            names = sorted(whole)
            both = [[scores[n] for n in names] for scores in (some, whole)]
            agreed.append(float(spearmanr(*both).statistic))
            nearest = [set(sorted(names, key=scores.__getitem__)[-3:]) for scores in (some, whole)]
            shared.append(len(nearest[0] & nearest[1]) / 3)
            seconds.append(row["rankings"][images]["seconds"])
        found[images] = {
            "spearman": float(np.mean(agreed)),
            "top3": float(np.mean(shared)),
            "seconds": float(np.median(seconds)),
        }
    return found
