"""Runs a study: plan (YAML) → zoo of every task → one JSON row a (target, variant).

    python -m benchmarks.study benchmarks/plans/resnet18-cifar100.yaml

Resumable: what is done is not repeated, and several processes may run one plan together. Everything goes
through the product's own functions; nothing here trains or prunes by itself.
"""

import argparse
import fcntl
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.peers import Outcome
from benchmarks.plan import Study, pooled_voter
from benchmarks.trials.pipeline import Trial, pruned_by
from benchmarks.voters import asked, asks_zoo, some_of
from mvp_edge.pruning.ahnp import Scores, ahnp
from mvp_edge.pruning.arithmetic import faster_dtype
from mvp_edge.pruning.batches import AUGMENTATIONS
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.methods import METHODS, recipe_for
from mvp_edge.pruning.mvp import Voting, mvp
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.smsp import smsp
from mvp_edge.pruning.votes import Voter
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.subnetwork.cost import forward_macs, paper_cost
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import build_zoo, claim
from mvp_edge.zoo.entries import Entry
from mvp_edge_export.storage import write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--only", choices=["zoo", "variants"])
    arguments.add_argument("--variants", default=".*", help="a regular expression of whole names")
    arguments.add_argument("--targets", type=int, help="only so many of the first of each draw")
    arguments.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument(
        "--list", action="store_true", help="say which rows are missing or of old conditions"
    )
    arguments.add_argument("--reverse", action="store_true", help="take the tasks from the end")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan, options.accelerator)
    for name, variant in study.plan["variants"].items():
        if "method" not in variant:
            sys.exit(
                f"{options.plan}: {name} names no method: a plan of `python -m benchmarks.trials`?"
            )
    tasks = study.tasks[::-1] if options.reverse else study.tasks
    targets = [
        task for task in tasks if options.targets is None or study.place(task) < options.targets
    ]
    if options.list:
        _list(study, targets, options.variants)
        return
    if options.only != "variants" and "zoo" not in study.plan:
        name = study.plan["scratch"]
        recipe = recipe_for(
            name,
            study.backbone.family,
            steps=study.plan.get("scratch_steps"),
            accelerator=study.accelerator,
        )
        build_zoo(study.zoo, study.backbone, tasks, method=name, recipe=recipe, progress=_said)
        if len(study.zoo.names()) < len(tasks):  # rows would ask a part of it
            sys.exit(f"{study.zoo.path}: another process is at its last entries: once more, then")
    if options.only != "zoo":
        for task in targets:
            run_variants(study, task, options.variants)


def _list(study: Study, tasks: Sequence[Task], only: str) -> None:
    """Print of each unfinished variant how many rows are current, of other conditions, or missing."""
    found: dict[str, Counter[str]] = {}
    for task in tasks:
        entries, rows = study.entries(task), study.rows(task)
        for name, variant in _chosen(study, task, only).items():
            if _missing(study, task, entries, variant):
                state = "waiting"
            elif name not in rows:
                state = "missing"
            else:
                now = study.conditions(task, entries, variant)
                state = "current" if is_current(rows[name], now) else "old"
            found.setdefault(name, Counter())[state] += 1
    for name, counts in found.items():
        if set(counts) != {"current"}:
            print(f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items())}")


def _chosen(study: Study, task: Task, only: str) -> dict[str, dict[str, Any]]:
    """The variants of one target whose names match ``only``."""
    return {
        name: variant
        for name, variant in study.plan["variants"].items()
        if re.fullmatch(only, name) and study.place(task) < variant.get("targets", math.inf)
    }


def run_variants(study: Study, task: Task, only: str = ".*") -> None:
    """All rows of one target whose variants match ``only``, but those that exist or that another process makes."""
    entries = study.entries(task)
    own = next((e for e in study.zoo.entries() if e.name == task.name), None)
    if own is None and "zoo" not in study.plan and not study.rows(task):
        return  # its baseline is not there yet
    chosen = _chosen(study, task, only)
    if chosen and own is not None and "scratch" in study.plan:
        keep_row(study, task, f"{study.plan['scratch']}@{own.recipe['steps']}", _scratch_row(own))
    for name, variant in chosen.items():
        if missing := _missing(study, task, entries, variant):
            print(f"{task.name}: {name} waits for {missing}", flush=True)
            continue
        work = study.zoo.path / ".work"
        with claim(work, f"row-{study.plan['study']}-{task.name}-{name}") as claimed:
            if claimed is None:
                continue
            row = study.rows(task).get(name)  # only now: another process may just have made it
            now = study.conditions(task, entries, variant)
            if not is_current(row, now):
                print(f"{task.name}: {name}", flush=True)
                try:
                    made = run_variant(study, task, entries, variant)
                except peers.CannotFitError as error:
                    print(f"{task.name}: {name} has no row: {error}", flush=True)
                else:
                    keep_row(study, task, name, {**made, **now})
            claimed.rmdir()


def _missing(
    study: Study, task: Task, entries: Sequence[Entry], variant: Mapping[str, Any]
) -> str | None:
    """What a variant would start from or ask, and is not there."""
    if "start" in variant:
        start = study.start(variant["start"], task)
        return None if study.has_pooled(start) else f"`python -m benchmarks.pooled` {start}"
    return "the zoo's entries" if asks_zoo(variant) and not entries else None


def keep_row(study: Study, task: Task, name: str, row: dict[str, Any]) -> None:
    """Put one row among a target's, whose file other processes write, too."""
    path, work = study.file(task), study.zoo.path / ".work"
    for folder in (path.parent, work):
        folder.mkdir(parents=True, exist_ok=True)
    with (work / "rows.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = study.rows(task)
        if rows.get(name) == row:
            return
        write_json(
            path,
            {
                "schema": 1,
                "study": study.plan["study"],
                "target": task.name,
                "classes": list(task.classes),
                "images": {split: len(e) for split, e in task.splits.items()},
                "last_written_by": {"machine": machine(), "versions": versions()},
                "rows": {**rows, name: row},
            },
        )


_UNSAID = {"augmented": list(AUGMENTATIONS), "seed": 0, "turn": 0.0}
"""What is true of rows that are older than these words."""


def is_current(row: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether there is a row, made under the conditions that hold now."""
    return row is not None and all(
        row.get(key, _UNSAID.get(key)) == value for key, value in now.items()
    )


def run_variant(
    study: Study, task: Task, entries: list[Entry], variant: dict[str, Any]
) -> dict[str, Any]:
    """One row: accuracy on test images and everything it cost."""
    backbone, name = study.backbone, variant["method"]
    similarity_flops = 0
    named = name in METHODS
    recipe = study.recipe(variant)
    images = task.images("train", backbone.preprocess)
    keep = variant.get("keep", study.zoo.keep)
    problem = study.problem(images, len(task.classes), recipe, keep, seed=study.seed(task, variant))
    clock = time.perf_counter()
    row: dict[str, Any] = {}
    pruned: Pruned | Outcome
    if "start" in variant:
        row["start"] = study.start(variant["start"], task)
        voter = pooled_voter(row["start"])
        problem = replace(problem, voters=[voter])
        if variant.get("teach"):  # by the unpruned backbone, beside the labels
            pruned = pruned_by(problem, Trial(distil=0.5), ())
        else:
            pruned = mvp(problem) if named else peers.pooled(problem, voter.weights)
    elif asks_zoo(variant):
        whole = study.ranking(task, entries, variant.get("similarity", "leep"))
        first = entries[: variant.get("first")]
        zoo = some_of(first, variant.get("entries"), study.tasks.index(task))
        found = whole.among(zoo)
        similarity_flops, row["similarity_seconds"] = found.flops, found.seconds
        clock = time.perf_counter() - found.seconds
        ranked = found.candidates
        if variant.get("disjoint"):
            ranked = tuple(one for one in ranked if not set(one.classes) & set(task.classes))
        chosen = asked(ranked, variant, problem.seed)
        by_name = {entry.name: entry for entry in entries}
        voters = [[by_name[c.task].voter(keep, c.score) for c in some] for some in (ranked, chosen)]
        problem = replace(problem, voters=voters[1])
        row["neighbours"] = [{"task": c.task, "score": c.score} for c in chosen]
        pruned = _method(variant, voters[0])(problem)
    else:
        pruned = _method(variant)(problem) if named else peers.by_name(variant, problem)
    seconds = time.perf_counter() - clock
    test = task.images("test", backbone.preprocess)
    top1 = accuracy(predict_logits(pruned.model, test.pixels, backbone.preprocess), test.labels)
    return {
        **row,
        "accuracy": top1,
        "n": len(test),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "arithmetic": arithmetic(study.accelerator),
        "processor": processor(study.accelerator),
        "torch": torch.__version__,
        **_spent(study, pruned, similarity_flops, problem),
    }


def arithmetic(accelerator: str) -> str:
    """What this machine trains in: processors differ, and the last digits of a result with them."""
    return str(faster_dtype(accelerator) or torch.float32).removeprefix("torch.")


def processor(accelerator: str) -> str:
    """What this machine trains on."""
    return torch.cuda.get_device_name() if accelerator == "cuda" else str(machine()["cpu"])


def _method(variant: dict[str, Any], zoo: Sequence[Voter] = ()) -> Callable[[Problem], Pruned]:
    """The product's function with what a variant sets otherwise."""
    name = variant["method"]
    if name == "mvp":
        voting = Voting(
            tau=variant.get("tau", Voting.tau),
            weights=variant.get("weights", "average"),
            units=variant.get("units", "votes"),
            electorate=zoo if variant.get("electorate") == "zoo" else (),
        )
        return partial(mvp, voting=voting)
    if name == "smsp":
        return partial(smsp, spread=variant.get("spread", "layer"))
    if "l1" in variant:
        return partial(ahnp, how=Scores(l1=dict.fromkeys(("head", "node"), variant["l1"])))
    return METHODS[name].prune


def _spent(
    study: Study, pruned: Pruned | Outcome, similarity_flops: int, problem: Problem
) -> dict[str, Any]:
    dense = forward_macs(study.backbone.outline(problem.classes), study.backbone.shape)
    return {
        "similarity_flops": similarity_flops,
        "statistics_flops": pruned.ledger.statistics_flops,
        "training_flops": pruned.ledger.training_flops,
        "total_flops": similarity_flops + pruned.ledger.total_flops,
        "paper_flops": paper_cost(dense, problem.recipe.batch, [pruned.ledger.density_steps]),
        "forward_flops": forward_macs(pruned.model, study.backbone.shape),
    }


def _scratch_row(entry: Entry) -> dict[str, Any]:
    """The zoo's own model of the target, which is the baseline."""
    return {
        "method": entry.recipe["method"],
        "steps": entry.recipe["steps"],
        "accuracy": entry.scores["test"],
        "seconds": entry.recipe["seconds"],
        "similarity_flops": 0,
        "statistics_flops": entry.cost["statistics"],
        "training_flops": entry.cost["training"],
        "total_flops": entry.cost["statistics"] + entry.cost["training"],
        "forward_flops": entry.cost["forward"],
    }


_LAST: list[float] = [0.0]


def _said(phase: str, done: int, total: int) -> None:
    if time.monotonic() - _LAST[0] > 60 or done == total:
        _LAST[0] = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
