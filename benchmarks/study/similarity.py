"""Does the similarity of tasks matter? Three questions to a study's zoo.

    python -m benchmarks.study.similarity overlap benchmarks/plans/resnet18-cifar100.yaml
        Do similar tasks keep the same units? Measured is the share of a target's kept units that another task's
        network keeps too, for each unit group. Chance is the keep ratio.
    python -m benchmarks.study.similarity choice benchmarks/plans/zoo-size.yaml
        Does it help to choose neighbours by similarity? For rows in which three entries vote that were chosen
        in different ways (most similar, other fifths, at random): their similarity by LEEP and by WordNet.
    python -m benchmarks.study.similarity images benchmarks/plans/resnet18-cifar100.yaml
        How many images does LEEP need? Its ranking of the zoo on a few images against that on all of them.

The entries are ranked for each target, on its training images only.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study.plan import Study
from benchmarks.study.rows import RESULTS, study_rows
from mvp_edge.families import unit_groups
from mvp_edge.machine import this_computer, versions
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.neighbours import NeighbourSearch, Target
from mvp_edge_export.storage import write_json

CHOSEN = ("mvp@20", *(f"mvp@20-fifth-{n}" for n in range(2, 6)), "mvp@20-at-random")
SUBSETS = (60, 125, 250, 500)
TARGETS = 12
"""Targets whose rankings on different numbers of images are compared."""


def main() -> None:
    questions = {"overlap": overlap, "choice": choice, "images": images}
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("question", choices=questions, help="see above")
    arguments.add_argument("plan", type=Path, help="a file of benchmarks/plans/")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    study = Study.open(options.plan)
    name, facts = questions[options.question](study)
    heading = {"schema": 1, "machine": this_computer(), "versions": versions()}
    write_json(RESULTS / f"{name}.json", {**heading, **facts})


def overlap(study: Study) -> tuple[str, dict[str, Any]]:
    """The result file's name and content: for each target the other entries, their similarity and overlap."""
    groups = unit_groups(study.backbone.model, study.zoo.policy)
    kept = {entry.name: entry.network.kept for entry in study.zoo.entries()}
    rows: list[dict[str, Any]] = []
    for task in study.tasks:
        if task.name not in kept:
            continue
        own = kept[task.name]
        others = {
            one.task: {
                "score": one.score,
                "common": [
                    round(float(np.isin(own[g.name], kept[one.task][g.name]).mean()), 4)
                    for g in groups
                ],
            }
            for one in study.ranking(task, study.entries(task), "leep").candidates
        }
        rows.append({"target": task.name, "others": others})
        print(task.name, flush=True)
    some = next(iter(kept.values()))
    return f"overlap-{study.plan['study']}", {
        "study": study.plan["study"],
        "groups": [{"name": g.name, "size": g.size, "kept": len(some[g.name])} for g in groups],
        "rows": rows,
    }


def choice(study: Study) -> tuple[str, dict[str, Any]]:
    """The result file's name and content: the similarity of each row's voters, and the row's accuracy."""
    found = study_rows(study.plan["study"])
    rows: list[dict[str, Any]] = []
    for task in study.tasks:
        own = found.get(task.name, {})
        meanings = study.ranking(task, study.entries(task), "wordnet")
        wordnet = {one.task: one.score for one in meanings.candidates}
        for name in CHOSEN:
            if name not in own:
                continue
            voters = own[name]["neighbours"]
            rows.append(
                {
                    "target": task.name,
                    "variant": name,
                    "accuracy": own[name]["accuracy"],
                    "leep": float(np.mean([one["score"] for one in voters])),
                    "wordnet": float(np.mean([wordnet[one["task"]] for one in voters])),
                    "leep_seconds": own[name]["similarity_seconds"],
                    "leep_flops": own[name]["similarity_flops"],
                    "wordnet_seconds": meanings.seconds,
                }
            )
        print(task.name, len(rows), flush=True)
    return "choice", {"rows": rows}


def images(study: Study) -> tuple[str, dict[str, Any]]:
    """The result file's name and content: each target's rankings of the zoo, by number of images."""
    rows = []
    for task in study.tasks[:TARGETS]:
        whole = len(task.splits["train"])
        rankings = {str(count): _ranking(study, task, count) for count in SUBSETS}
        rankings["whole"] = _ranking(study, task, whole)
        rows.append({"target": task.name, "train_images": whole, "rankings": rankings})
        print(task.name, {n: round(r["seconds"], 2) for n, r in rankings.items()}, flush=True)
    return "leep", {
        "study": study.plan["study"],
        "zoo": len(study.zoo.names()),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def _ranking(study: Study, task: Task, count: int) -> dict[str, Any]:
    """Scores of all other entries, best first, on ``count`` stratified training images."""
    whole = task.images("train", study.backbone.preprocess)
    subset = whole.take(task.subsample("train", count, 0))
    start = time.perf_counter()
    search = NeighbourSearch(study.entries(task), study.backbone)
    found = search.find(Target(subset, task.classes), 3, Ledger())
    return {
        "seconds": time.perf_counter() - start,
        "scores": {one.task: one.score for one in found.candidates},
    }


if __name__ == "__main__":
    main()
