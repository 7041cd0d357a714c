"""One thin network for many tasks: the pruned ones' shape, trained once on the pooled images of many classes.

    python -m benchmarks.pooled benchmarks/plans/resnet18-cifar100.yaml trunk-0

The plan's ``pooled`` says how: ``start: zoo`` is the product's trunk, of all entries' votes and weights;
``magnitude`` starts from the backbone's largest units, without any zoo; ``nothing`` from random weights.
``images`` are those of the zoo's tasks, or all of the backbone's data. ``taught: T``: by the backbone's logits of
them at temperature T, without labels; its accuracy is then how often it agrees with the backbone.
``apart: [first, past]`` keeps it from these targets: their entries do not vote, and none of their classes is seen.
What it cost is in its row. Resumable. It lies below `zoos/pooled/`; targets start from it by the product's method
`trunk`, or the study's `pooled`.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import first_units, thin
from benchmarks.study import HERE, POOLED, Study
from benchmarks.teaching import Taught, teaching_loss
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.methods import METHODS, recipe_for
from mvp_edge.pruning.problem import Pruned, Training
from mvp_edge.pruning.scratch import fine_tune
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.tasks.task import Images, Task
from mvp_edge.zoo.build import to_network
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.trunk import Pool, pool, train_trunk, usual_steps
from mvp_edge_export.storage import write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("name", help="of those below the plan's `pooled`")
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    how = study.plan["pooled"][options.name]
    unseen = study.tasks[slice(*how.get("apart", [0, 0]))]
    folder = POOLED / options.name
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {"checkpoint": folder / "making.checkpoint", "progress": _said}
    own, classes = {task.name for task in unseen}, {c for task in unseen for c in task.classes}
    whose = [task for task in study.tasks if task.name not in own]
    if how["images"] == "all":
        whose = [Task.open(Path(os.environ["MVP_EDGE_DATA"]) / study.plan["draws"][0]["images"])]
    seen, test = (
        pool(whose, split, study.backbone.preprocess, without=classes)
        for split in ("train", "test")
    )
    entries = [one for one in study.zoo.entries() if one.name not in own]
    if "taught" in how:
        test, _ = _as_the_backbone_sees(study, test)
    made = _made(study, how, seen, entries[: study.plan.get("first")], more)
    to_network(study.backbone, study.zoo.policy, test.classes, made).save(folder)
    more["checkpoint"].unlink(missing_ok=True)
    logits = predict_logits(made.model, test.images.pixels, study.backbone.preprocess)
    row = {
        "schema": 1,
        "name": options.name,
        **how,
        "steps": len(made.history.steps),
        "classes": len(test.classes),
        "seen": len(seen.images),
        "accuracy": accuracy(logits, test.images.labels),
        "total_flops": made.ledger.total_flops,
        "seconds": made.seconds,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(HERE / "results" / "pooled" / f"{options.name}.json", row)
    print(f"{100 * row['accuracy']:.1f} % of {row['classes']} classes")


def _made(
    study: Study, how: dict[str, Any], seen: Pool, entries: list[Entry], more: dict[str, Any]
) -> Pruned:
    """Trained from what the plan says."""
    backbone, keep, start = study.backbone, study.zoo.keep, how["start"]
    if "taught" in how:
        return _taught(study, how, seen)
    if start != "nothing":
        voters = entries if start == "zoo" else []
        return train_trunk(
            backbone, study.zoo.policy, voters, seen, keep, steps=how.get("steps"), **more
        )[0]
    recipe = recipe_for(None, backbone.family, steps=how["steps"])  # what random weights need:
    recipe = replace(recipe, batch=256, lr=0.2, head="random", statistics=False)
    problem = study.problem(seen.images, len(seen.classes), recipe, keep, **more)
    return fine_tune(problem, thin(problem), first_units(problem))


def _as_the_backbone_sees(study: Study, pooled: Pool) -> tuple[Pool, NDArray[np.float32]]:
    """The same images, labelled by the backbone with what it was trained to tell apart, and its logits of them."""
    backbone, pixels = study.backbone, pooled.images.pixels
    logits = predict_logits(backbone.model, pixels, backbone.preprocess, fast=True)
    return Pool(backbone.classes, Images(pixels, logits.argmax(1).astype(np.int64))), logits


def _taught(study: Study, how: dict[str, Any], pooled: Pool) -> Pruned:
    """From the backbone's largest units, by the backbone's opinion of the images alone: nobody labelled them."""
    backbone, (seen, logits) = study.backbone, _as_the_backbone_sees(study, pooled)
    recipe = recipe_for("magnitude", backbone.family)
    recipe = replace(recipe, steps=how.get("steps", usual_steps(len(seen.images), recipe.batch)))
    problem = study.problem(seen.images, len(seen.classes), recipe, study.zoo.keep)
    start = METHODS["magnitude"].prune(replace(problem, recipe=replace(recipe, steps=0)))
    training = Training(replace(problem, progress=_said), start.model, start.kept)
    training.ledger = start.ledger
    macs = forward_macs(backbone.model, backbone.shape)
    training.ledger.statistics_flops += macs * len(seen.images)
    training.batches = Taught(problem, torch.from_numpy(logits))
    training.loss = teaching_loss(1.0, how["taught"])
    training.run(recipe.steps)
    made = training.finished({})
    made.ranking = start.ranking
    return made


def _said(phase: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(f"{phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
