"""A small network that is not pruned at all: the shape of the pruned ones, trained on all of the backbone's data.

    python -m benchmarks.small benchmarks/plans/resnet18-cifar100.yaml [--epochs 30]

What a user would take off the shelf instead of pruning, if somebody had trained it. It starts from random
weights and sees every training image of every class; what that costs is in its row. Resumable. Its weights
stay below `zoos/` and are fine-tuned for a target by the study's method `small`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.peers import first_units, thin
from benchmarks.study import HERE, Study
from mvp_edge.pruning.finetune import Recipe, accuracy, predict_logits
from mvp_edge.pruning.scratch import fine_tune
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.tasks.task import Task
from mvp_edge_export.storage import atomic_file, write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("--epochs", type=int, default=30)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    task = Task.open(Path(os.environ["MVP_EDGE_DATA"]) / study.plan["draws"][0]["images"])
    images = task.images("train", study.backbone.preprocess)
    batch = 256
    recipe = Recipe(
        steps=options.epochs * len(images) // batch,
        batch=batch,
        lr=0.2,
        head="random",
        statistics=False,
    )
    weights = study.small
    problem = study.problem(
        task,
        images,
        recipe,
        study.zoo.keep,
        checkpoint=weights.with_suffix(".checkpoint"),
        progress=_said,
    )
    made = fine_tune(problem, thin(problem), first_units(problem))
    with atomic_file(weights) as partial:
        save_file(made.model.state_dict(), partial)
    test = task.images("test", study.backbone.preprocess)
    logits = predict_logits(made.model, test.pixels, study.backbone.preprocess)
    row: dict[str, Any] = {
        "schema": 1,
        "study": study.plan["study"],
        "epochs": options.epochs,
        "classes": len(task.classes),
        "accuracy": accuracy(logits, test.labels),
        "total_flops": made.ledger.total_flops,
        "seconds": made.seconds,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(HERE / "results" / f"small-{study.plan['study']}.json", row)
    print(f"{100 * row['accuracy']:.1f} % of {len(task.classes)} classes")


def _said(phase: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(f"{phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
