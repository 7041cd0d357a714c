"""The rows of a study: each variant of the plan on each target, by mvp_edge's own functions.

plan → the zoo's entries by similarity → voters, or a pooled network → pruned network → accuracy and cost
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from benchmarks.study import peers
from benchmarks.study.conditions import arithmetic, is_current, processor
from benchmarks.study.distillation import mvp_with_teacher
from benchmarks.study.peers import Outcome
from benchmarks.study.plan import Study, pooled_voter
from benchmarks.study.voters import asks_zoo, chosen_voters, smaller_zoo
from mvp_edge.machine import this_computer, versions
from mvp_edge.methods.ahnp import Scores, ahnp
from mvp_edge.methods.catalogue import METHODS
from mvp_edge.methods.mvp import Voting, mvp
from mvp_edge.methods.smsp import smsp
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.cost import forward_macs, paper_cost
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.work import claim

State = Literal["current", "old", "missing", "waiting"]
"""Of a row: made under the plan's conditions, under others, not made, or not possible yet."""


def run_variants(study: Study, task: Task, only: str = ".*") -> None:
    """Make the rows of one target whose variants match ``only``.

    Rows that are current are left alone, and so are those that another process is making.
    """
    own = next((e for e in study.zoo.entries() if e.name == task.name), None)
    if own is None and "zoo" not in study.plan and not study.rows(task):
        return  # its baseline is not there yet
    chosen = variants_of(study, task, only)
    if chosen and own is not None and "scratch" in study.plan:
        keep_row(study, task, f"{study.plan['scratch']}@{own.recipe['steps']}", _scratch_row(own))
    for name, variant in chosen.items():
        state = state_of(study, task, name)
        if state == "waiting":
            print(f"{task.name}: {name} waits for {_lacking(study, task, variant)}", flush=True)
        elif state != "current":
            _make_row(study, task, name)


def _make_row(study: Study, task: Task, name: str) -> None:
    """Make one row, unless another process is working on it."""
    with claim(study.zoo.path / ".work", f"row-{study.plan['study']}-{task.name}-{name}") as work:
        if work is None:
            return
        if state_of(study, task, name) != "current":  # another process may just have made it
            print(f"{task.name}: {name}", flush=True)
            variant, entries = study.plan["variants"][name], study.entries(task)
            now = study.conditions(task, entries, variant)
            try:
                made = run_variant(study, task, entries, variant)
            except peers.CannotFitError as error:
                print(f"{task.name}: {name} has no row: {error}", flush=True)
            else:
                keep_row(study, task, name, {**made, **now})
        work.rmdir()


def variants_of(study: Study, task: Task, only: str) -> dict[str, dict[str, Any]]:
    """The variants that the plan wants of one target and whose names match ``only``."""
    return {
        name: variant
        for name, variant in study.plan["variants"].items()
        if re.fullmatch(only, name) and study.place(task) < variant.get("targets", math.inf)
    }


def state_of(study: Study, task: Task, name: str) -> State:
    """The state of one row."""
    row, variant = study.rows(task).get(name), study.plan["variants"][name]
    if is_current(row, study.conditions(task, study.entries(task), variant)):
        return "current"
    if _lacking(study, task, variant):
        return "waiting"
    return "missing" if row is None else "old"


def _lacking(study: Study, task: Task, variant: Mapping[str, Any]) -> str | None:
    """The missing network that a variant would start from or ask, or None."""
    if "start" in variant:
        start = study.start(variant["start"], task)
        return None if study.has_pooled(start) else f"`python -m benchmarks.study.pooled` {start}"
    return "the zoo's entries" if asks_zoo(variant) and not study.entries(task) else None


def keep_row(study: Study, task: Task, name: str, row: Mapping[str, Any]) -> None:
    """Put one row into the study's file, to which other processes write, too."""
    facts = {
        "classes": list(task.classes),
        "images": {split: len(rows) for split, rows in task.splits.items()},
        "last_written_by": {"machine": this_computer(), "versions": versions()},
    }
    study.results.keep(task.name, name, row, facts)


def run_variant(
    study: Study, task: Task, entries: Sequence[Entry], variant: dict[str, Any]
) -> dict[str, Any]:
    """One row: accuracy on test images, and all that it cost."""
    backbone = study.backbone
    recipe = study.recipe(variant)
    images = task.images("train", backbone.preprocess)
    keep = variant.get("keep", study.zoo.keep)
    problem = study.problem(images, len(task.classes), recipe, keep, seed=study.seed(task, variant))
    row: dict[str, Any] = {}
    selected = _select(study, task, entries, variant, problem.seed) if asks_zoo(variant) else None
    clock = time.perf_counter()
    pruned: Pruned | Outcome
    if "start" in variant:
        row["start"] = study.start(variant["start"], task)
        pruned = _from_pooled(variant, row["start"], problem)
    elif selected is not None:
        clock -= selected.seconds
        row |= {"similarity_seconds": selected.seconds, "neighbours": selected.neighbours}
        pruned = _method(variant, selected.zoo)(replace(problem, voters=selected.voters))
    elif variant["method"] in METHODS:
        pruned = _method(variant)(problem)
    else:
        pruned = peers.by_name(variant, problem)
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
        **_spent(study, pruned, selected.flops if selected else 0, problem),
    }


@dataclass(frozen=True)
class Selection:
    """The voters of a target, and what it cost to rank the zoo's entries by similarity."""

    voters: list[Voter]
    """The chosen ones, the most similar first."""
    zoo: list[Voter]
    """All entries that could have been chosen."""
    neighbours: list[dict[str, Any]]
    """Name and similarity of each chosen entry, for the row."""
    flops: int
    seconds: float


def _select(
    study: Study,
    task: Task,
    entries: Sequence[Entry],
    variant: dict[str, Any],
    seed: int,
) -> Selection:
    """Choose the voters of a variant on one target."""
    whole = study.ranking(task, entries, variant.get("similarity", "leep"))
    first = entries[: variant.get("first")]
    zoo = smaller_zoo(first, variant.get("entries"), study.tasks.index(task))
    found = whole.among(zoo)
    ranked = found.candidates
    if variant.get("disjoint"):
        ranked = tuple(one for one in ranked if not set(one.classes) & set(task.classes))
    chosen = chosen_voters(ranked, variant, seed)
    by_name, keep = {entry.name: entry for entry in entries}, variant.get("keep", study.zoo.keep)
    return Selection(
        [by_name[one.task].voter(keep, one.score) for one in chosen],
        [by_name[one.task].voter(keep, one.score) for one in ranked],
        [{"task": one.task, "score": one.score} for one in chosen],
        found.flops,
        found.seconds,
    )


def _from_pooled(variant: Mapping[str, Any], start: str, problem: Problem) -> Pruned:
    """Fine-tune a pooled network: by the product's method, distillation, or as a peer."""
    voter = pooled_voter(start)
    problem = replace(problem, voters=[voter])
    if variant.get("teach"):
        return mvp_with_teacher(problem)
    if variant["method"] in METHODS:
        return mvp(problem)
    return peers.pooled(problem, voter.weights)


def _method(variant: dict[str, Any], zoo: Sequence[Voter] = ()) -> Callable[[Problem], Pruned]:
    """The product's function of a method, with the variant's own settings."""
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
    """The multiply-adds of a row, by what they were spent on."""
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
    """The row of the zoo's own model of the target, which is the baseline."""
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
