"""Pooled networks: small networks trained once on the images of many tasks, from which targets start.

    python -m benchmarks.study.pooled benchmarks/plans/resnet18-cifar100.yaml [trunk-0]

Each entry of the plan's ``pooled`` is one network:

    start    zoo: the product's trunk, with the units and weights of all entries; magnitude: the backbone's largest
             units, without a zoo; nothing: random weights
    images   those of so many tasks, or "all": all of the backbone's data
    apart    [first, past]: targets whose classes it does not see, and whose entries it does not use
    voters   the entries of so many of the first tasks (default: all)
    teach    true: distil the backbone's logits beside the labels
    labels   false: distil them without labels; its accuracy is then its agreement with the backbone
    keep     keep ratio (default: the zoo's)
    steps    training steps (default: the product's)

The network goes to `zoos/pooled/NAME/`, its cost and accuracy to `results/pooled/NAME.json`. Resumable.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import data_folder
from benchmarks.study.peers import first_units, thin
from benchmarks.study.plan import Study, pooled_folder, pooled_row
from mvp_edge.machine import this_computer, versions
from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.problem import Pruned
from mvp_edge.pruning.results import to_network
from mvp_edge.pruning.training import fine_tune
from mvp_edge.subnetwork.network import TENSORS
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.pool import Pool, pool
from mvp_edge.zoo.trunk import TrunkTraining, class_names, score
from mvp_edge.zoo.work import claim
from mvp_edge_export.storage import sha256_file, write_json


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("plan", type=Path, help="a file of benchmarks/plans/")
    arguments.add_argument("name", nargs="?", help="one of the plan's `pooled` (default: all)")
    arguments.add_argument(
        "--threads", type=int, default=1, help="CPU threads of PyTorch (default: 1)"
    )
    arguments.add_argument(
        "--accelerator", choices=["cpu", "cuda"], default="cpu", help="default: cpu"
    )
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan, options.accelerator)
    for name in study.plan["pooled"] if options.name is None else [options.name]:
        with claim(pooled_folder(name).parent / ".work", name) as claimed:
            if claimed is not None and not study.has_pooled(name):
                print(name, flush=True)
                make(study, name)


def make(study: Study, name: str) -> None:
    """Train one network of a plan, and record what it cost."""
    how = study.plan["pooled"][name]
    unseen = study.tasks[slice(*how.get("apart", [0, 0]))]
    folder = pooled_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {"checkpoint": folder / "making.checkpoint", "progress": _progress}
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
    classes = class_names(seen, study.backbone)
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
        "network_sha256": sha256_file(folder / TENSORS),
        "machine": this_computer(),
        "versions": versions(),
    }
    write_json(pooled_row(name), row)
    print(f"{100 * row['accuracy']:.1f} % of {row['classes']} classes")


def _made(
    study: Study, how: dict[str, Any], seen: Pool, entries: list[Entry], more: dict[str, Any]
) -> Pruned:
    """Train from the start that the plan names."""
    backbone, start = study.backbone, how["start"]
    keep = how.get("keep", study.zoo.keep)
    if start != "nothing":
        voters = entries if start == "zoo" else []
        training = TrunkTraining(
            backbone,
            study.zoo.policy,
            voters,
            keep,
            teach=how.get("teach"),
            steps=how.get("steps"),
            accelerator=study.accelerator,
        )
        return training.run(seen, **more)[0]
    recipe = recipe_for(
        None, backbone.family, steps=how["steps"], accelerator=study.accelerator
    )  # below: what random weights need
    recipe = replace(recipe, batch=256, lr=0.2, head="random", statistics=False)
    problem = study.problem(seen.images, len(seen.classes), recipe, keep, **more)
    return fine_tune(problem, thin(problem), first_units(problem))


def _progress(phase: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(f"{phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
