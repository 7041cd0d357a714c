"""Changes to Meta-Vote Pruning, each beside the default on the same targets.

    python -m benchmarks.study.trials benchmarks/plans/trials.yaml [--only NAME,…] [--steps 20,100] [--targets 8]

Each variant of the plan sets fields of `pipeline.Trial`. The changes that helped are the product's defaults now.
Rows go to `results/trials-STUDY.jsonl`. Resumable; several processes may share the work.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.conditions import arithmetic, is_current
from benchmarks.study.plan import Study, pooled_voter
from benchmarks.study.results import Results
from benchmarks.study.rows import RESULTS
from benchmarks.study.trials.pipeline import Trial, Warm, pruned_by
from mvp_edge.machine import this_computer, versions
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.votes import Voter
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.work import claim


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("plan", type=Path, help="a file of benchmarks/plans/")
    arguments.add_argument("--only", help="names of variants, with commas (default: all)")
    arguments.add_argument(
        "--steps", default="100", help="training steps, with commas (default: 100)"
    )
    arguments.add_argument("--targets", type=int, default=8, help="number of targets (default: 8)")
    arguments.add_argument(
        "--threads", type=int, default=1, help="CPU threads of PyTorch (default: 1)"
    )
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    results = Results(RESULTS / f"trials-{study.plan['study']}.jsonl")
    names = (options.only or ",".join(study.plan["variants"])).split(",")
    numbers = list(map(int, options.steps.split(",")))
    wanted = list(product(names, numbers, study.tasks[: options.targets]))
    while wanted:
        left = [one for one in wanted if not _made(study, *one, results)]
        if len(left) == len(wanted):
            time.sleep(5)
        wanted = left


def _made(study: Study, name: str, steps: int, task: Task, results: Results) -> bool:
    """Make the row of one trial on one target if it is missing; False if another process is at this target."""
    key = f"{name}@{steps}"
    with claim(study.zoo.path / ".work", f"trials-{study.plan['study']}-{task.name}") as work:
        if work is None:
            return False
        entries, settings = study.entries(task), study.plan["variants"][name] or {}
        now = {"trial": settings, "zoo": len(entries)}
        if is_current(results.of(task.name).get(key), now):
            return True
        row = {**run(study, task, entries, Trial(**settings), steps), **now}
        print(f"{task.name} {key}: {100 * row['accuracy']:.1f} %", flush=True)
        facts = {"last_written_by": {"machine": this_computer(), "versions": versions()}}
        results.keep(task.name, key, row, facts)
    return True


def run(
    study: Study, task: Task, entries: Sequence[Entry], trial: Trial, steps: int
) -> dict[str, Any]:
    """The row of one trial on one target: accuracy on test images, and the cost."""
    backbone, began = study.backbone, time.perf_counter()
    images = task.images("train", backbone.preprocess)
    usual = study.recipe({"method": "mvp", "steps": steps})
    recipe = Warm(**{**vars(usual), **trial.recipe}, warmup=trial.warmup)
    keep = study.zoo.keep
    zoo, spent = voters_of(study, task, entries, trial)
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


def voters_of(
    study: Study, task: Task, entries: Sequence[Entry], trial: Trial
) -> tuple[list[Voter], int]:
    """All possible voters, the most similar first, and the multiply-adds that ranking them took."""
    if trial.start:
        return [pooled_voter(trial.start)], 0
    found = study.ranking(task, entries, "leep")
    by_name = {entry.name: entry for entry in entries}
    return [by_name[c.task].voter(study.zoo.keep, c.score) for c in found.candidates], found.flops


if __name__ == "__main__":
    main()
