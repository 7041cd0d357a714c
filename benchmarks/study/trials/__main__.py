"""Ways to better Meta-Vote Pruning, each beside the default on the same targets.

    python -m benchmarks.trials benchmarks/plans/trials.yaml [--only NAME,…] [--steps 20,100] [--targets 8]

The plan's variants say what is done otherwise (`pipeline.Trial`). What won is the product's default now, by
its own name there; the rows of the others stay (`results/trials-PLAN/`). Resumable; several processes may
share the work.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan import HERE, Study, pooled_voter
from benchmarks.study import arithmetic, is_current
from benchmarks.trials.pipeline import Trial, Warm, pruned_by
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.votes import Voter
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import claim
from mvp_edge.zoo.entries import Entry
from mvp_edge_export.storage import read_json, write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("--only", help="all of the plan's, unless said")
    arguments.add_argument("--steps", default="100")
    arguments.add_argument("--targets", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    out = HERE / "results" / f"trials-{study.plan['study']}"
    names = (options.only or ",".join(study.plan["variants"])).split(",")
    numbers = list(map(int, options.steps.split(",")))
    wanted = list(product(names, numbers, study.tasks[: options.targets]))
    while wanted:
        left = [one for one in wanted if not _row(study, *one, out)]
        if len(left) == len(wanted):
            time.sleep(5)
        wanted = left


def _row(study: Study, name: str, steps: int, task: Task, out: Path) -> bool:
    """See that one target's row of one trial is there; False: another process is at this target."""
    key = f"{name}@{steps}"
    file = out / f"{task.name}.json"
    with claim(study.zoo.path / ".work", f"trials-{study.plan['study']}-{task.name}") as work:
        if work is None:
            return False
        rows: dict[str, Any] = read_json(file, "rows")["rows"] if file.exists() else {}
        entries, settings = study.entries(task), study.plan["variants"][name] or {}
        now = {"trial": settings, "zoo": len(entries)}
        if is_current(rows.get(key), now):
            return True
        rows[key] = {**run(study, task, entries, Trial(**settings), steps), **now}
        print(f"{task.name} {key}: {100 * rows[key]['accuracy']:.1f} %", flush=True)
        facts = {"schema": 1, "target": task.name, "machine": machine(), "versions": versions()}
        write_json(file, {**facts, "rows": rows})
    return True


def run(
    study: Study, task: Task, entries: Sequence[Entry], trial: Trial, steps: int
) -> dict[str, Any]:
    """Accuracy on test images, and the cost."""
    backbone, began = study.backbone, time.perf_counter()
    images = task.images("train", backbone.preprocess)
    usual = study.recipe({"method": "mvp", "steps": steps})
    recipe = Warm(**{**vars(usual), **trial.recipe}, warmup=trial.warmup)
    keep = study.zoo.keep
    zoo, spent = asked(study, task, entries, trial)
    problem = study.problem(images, len(task.classes), recipe, keep, voters=zoo[: trial.neighbours])
    pruned = pruned_by(problem, trial, zoo)
    pruned.ledger.similarity_flops += spent
    test = task.images("test", backbone.preprocess)
    logits = predict_logits(pruned.model, test.pixels, backbone.preprocess)
    return {
        "accuracy": accuracy(logits, test.labels),
        "total_flops": pruned.ledger.total_flops,
        "seconds": time.perf_counter() - began,
        "arithmetic": arithmetic("cpu"),
    }


def asked(
    study: Study, task: Task, entries: Sequence[Entry], trial: Trial
) -> tuple[list[Voter], int]:
    """Who votes, the most similar first, and what it took to rank them."""
    if trial.start:
        return [pooled_voter(trial.start)], 0
    found = study.ranking(task, entries, "leep")
    by_name = {entry.name: entry for entry in entries}
    return [by_name[c.task].voter(study.zoo.keep, c.score) for c in found.candidates], found.flops


if __name__ == "__main__":
    main()
