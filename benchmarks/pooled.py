"""One thin network for many tasks: the pruned ones' shape, trained once on the pooled images of many classes.

    python -m benchmarks.pooled benchmarks/plans/peers.yaml small-apart

What a user could prepare once, instead of or beside a zoo, if the images of many tasks lie in one place. The
plan's ``pooled`` says what it starts from (nothing, or the zoo's votes and averaged weights), for how long it is
trained, and of how many targets it must not see a class (``apart``); what that cost is in its row. Resumable.
Targets are fine-tuned from it by the study's method `pooled`.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers import first_units, thin
from benchmarks.study import HERE, Study
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.methods import recipe_for
from mvp_edge.pruning.mvp import mvp
from mvp_edge.pruning.scratch import fine_tune
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.tasks.task import Task
from mvp_edge_export.storage import atomic_file, write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("name", help="of those below the plan's `pooled`")
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    how = study.plan["pooled"][options.name]
    unseen = study.tasks[: how.get("apart", 0)]
    task = everything_but(study, unseen)
    from_zoo = how["start"] == "zoo"
    recipe = recipe_for("mvp" if from_zoo else None, study.backbone.family, steps=how["steps"])
    if not from_zoo:
        recipe = replace(recipe, batch=256, lr=0.2, head="random", statistics=False)
    weights = study.pooled(options.name)
    problem = study.problem(
        task,
        task.images("train", study.backbone.preprocess),
        recipe,
        study.zoo.keep,
        checkpoint=weights.with_suffix(".checkpoint"),
        progress=_said,
    )
    if from_zoo:
        own = {one.name for one in unseen}
        zoo = [one for one in study.zoo.entries() if one.name not in own]
        made = mvp(replace(problem, voters=[one.voter(study.zoo.keep) for one in zoo]))
    else:
        made = fine_tune(problem, thin(problem), first_units(problem))
    with atomic_file(weights) as partial:
        save_file(made.model.state_dict(), partial)
    test = task.images("test", study.backbone.preprocess)
    logits = predict_logits(made.model, test.pixels, study.backbone.preprocess)
    row = {
        "schema": 1,
        "name": options.name,
        **how,
        "classes": len(task.classes),
        "accuracy": accuracy(logits, test.labels),
        "total_flops": made.ledger.total_flops,
        "seconds": made.seconds,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(HERE / "results" / "pooled" / f"{options.name}.json", row)
    print(f"{100 * accuracy(logits, test.labels):.1f} % of {len(task.classes)} classes")


def everything_but(study: Study, unseen: list[Task]) -> Task:
    """All classes of the study's images that none of ``unseen`` has, as one task."""
    source = Path(os.environ["MVP_EDGE_DATA"]) / study.plan["draws"][0]["images"]
    whole = Task.open(source)
    seen = {name for one in unseen for name in one.classes}
    return Task.open(source, classes=[name for name in whole.classes if name not in seen])


def _said(phase: str, done: int, total: int) -> None:
    if done % 200 == 0:
        print(f"{phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
