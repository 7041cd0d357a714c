"""One thin network for many tasks: the pruned ones' shape, trained once on the pooled images of many classes.

    python -m benchmarks.pooled benchmarks/plans/resnet18-cifar100.yaml [trunk-0]

The plan's ``pooled`` says how: ``start: zoo`` is the product's trunk, of all entries' votes and weights;
``magnitude`` starts from the backbone's largest units, without any zoo; ``nothing`` from random weights.
``images`` are those of so many tasks, or all of the backbone's data. ``teach: true``: the backbone's
opinion counts beside the labels; ``labels: false``: alone, and accuracy is how often it is shared.
``keep``: another ratio than the zoo's. ``voters``: so many of the first tasks' entries at most.
``apart: [first, past]`` keeps it from these targets: their entries do not vote, and none of their classes is seen.
What it cost is in its row. Resumable. It lies below `zoos/pooled/`; targets start from it by the product's method
`trunk`, or the study's `pooled`.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import data_folder
from benchmarks.peers import first_units, thin
from benchmarks.plan import POOLED, Study, pooled_row
from mvp_edge.pruning.methods import recipe_for
from mvp_edge.pruning.problem import Pruned
from mvp_edge.pruning.scratch import fine_tune
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import claim, to_network
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.trunk import Pool, pool, score, told_apart, train_trunk
from mvp_edge_export.storage import write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("name", nargs="?", help="of those below the plan's `pooled`; else all")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan, options.accelerator)
    for name in study.plan["pooled"] if options.name is None else [options.name]:
        with claim(POOLED / ".work", name) as claimed:
            if claimed is not None and not study.has_pooled(name):
                print(name, flush=True)
                make(study, name)


def make(study: Study, name: str) -> None:
    """Train one of them and keep it, and its row."""
    how = study.plan["pooled"][name]
    unseen = study.tasks[slice(*how.get("apart", [0, 0]))]
    folder = POOLED / name
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {"checkpoint": folder / "making.checkpoint", "progress": _said}
    own, theirs = {task.name for task in unseen}, {c for task in unseen for c in task.classes}
    if how["images"] == "all":
        whose = [Task.open(data_folder() / study.plan["draws"][0]["images"])]
    else:
        whose = [task for task in study.tasks[: how["images"]] if task.name not in own]
    seen, test = (
        pool(whose, split, study.backbone.preprocess, without=theirs) for split in ("train", "test")
    )
    voters = {task.name for task in study.tasks[: how.get("voters")]} - own
    entries = [one for one in study.zoo.entries() if one.name in voters]
    if how.get("labels") is False:
        seen, test = seen.unlabelled, test.unlabelled
    made = _made(study, how, seen, entries, more)
    classes = told_apart(seen, study.backbone)
    to_network(study.backbone, study.zoo.policy, classes, made).save(folder)
    more["checkpoint"].unlink(missing_ok=True)
    row = {
        "schema": 1,
        "name": name,
        **how,
        "steps": len(made.history.steps),
        "classes": len(classes),
        "seen": len(seen.images),
        "accuracy": score(made, test, study.backbone),
        "total_flops": made.ledger.total_flops,
        "seconds": made.seconds,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(pooled_row(name), row)
    print(f"{100 * row['accuracy']:.1f} % of {row['classes']} classes")


def _made(
    study: Study, how: dict[str, Any], seen: Pool, entries: list[Entry], more: dict[str, Any]
) -> Pruned:
    """Trained from what the plan says."""
    backbone, start = study.backbone, how["start"]
    keep = how.get("keep", study.zoo.keep)
    if start != "nothing":
        voters = entries if start == "zoo" else []
        return train_trunk(
            backbone,
            study.zoo.policy,
            voters,
            seen,
            keep,
            teach=how.get("teach"),
            steps=how.get("steps"),
            accelerator=study.accelerator,
            **more,
        )[0]
    recipe = recipe_for(
        None, backbone.family, steps=how["steps"], accelerator=study.accelerator
    )  # what random weights need:
    recipe = replace(recipe, batch=256, lr=0.2, head="random", statistics=False)
    problem = study.problem(seen.images, len(seen.classes), recipe, keep, **more)
    return fine_tune(problem, thin(problem), first_units(problem))


def _said(phase: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(f"{phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
