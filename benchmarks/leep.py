"""How many images LEEP needs: its ranking of the zoo on a subset against the ranking on the whole split.

    python -m benchmarks.leep benchmarks/plans/resnet18-cifar100.yaml [--targets 12]

Each target ranks all other entries of the study's zoo, on its training images only.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan import Study
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.neighbours import find_neighbours
from mvp_edge_export.storage import write_json

SUBSETS = (60, 125, 250, 500)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("--targets", type=int, default=12)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    study = Study.open(options.plan)
    rows = []
    for task in study.tasks[: options.targets]:
        whole = len(task.splits["train"])
        rankings = {str(count): ranking(study, task, count) for count in SUBSETS}
        rankings["whole"] = ranking(study, task, whole)
        rows.append({"target": task.name, "train_images": whole, "rankings": rankings})
        print(task.name, {n: round(r["seconds"], 2) for n, r in rankings.items()}, flush=True)
    facts = {
        "schema": 1,
        "machine": machine(),
        "versions": versions(),
        "study": study.plan["study"],
        "zoo": len(study.zoo.names()),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    write_json(Path(__file__).parent / "results" / "leep.json", facts)


def ranking(study: Study, task: Task, count: int) -> dict[str, Any]:
    """Scores of all other entries, best first, on ``count`` stratified training images."""
    others = [entry for entry in study.zoo.entries() if entry.name != task.name]
    images = task.images("train", study.backbone.preprocess)
    subset = images.take(task.subsample("train", count, 0))
    start = time.perf_counter()
    found = find_neighbours(others, study.backbone, subset, task.classes, 3, Ledger())
    return {
        "seconds": time.perf_counter() - start,
        "scores": {one.task: one.score for one in found.candidates},
    }


if __name__ == "__main__":
    main()
