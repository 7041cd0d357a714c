"""Ways to better Meta-Vote Pruning, each beside the default on the same targets.

    python -m benchmarks.trials benchmarks/plans/trials.yaml [--only NAME,…] [--steps 20,100] [--targets 8]

A trial changes one thing of the pipeline below and nothing else. What won is the product's default now, by
its own name there; the rows of the others stay (`results/trials-PLAN/`). Resumable; several processes may
share the work.

    voters, similar ─→ units ─→ weights ─→ statistics, head ─→ steps
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.study import HERE, Study
from benchmarks.teaching import Taught, teaching_step
from mvp_edge.pruning import problem as problems
from mvp_edge.pruning.finetune import (
    Ledger,
    Recipe,
    accuracy,
    compute,
    estimate_statistics,
    initialise_head,
    predict_logits,
)
from mvp_edge.pruning.methods import recipe_for
from mvp_edge.pruning.mvp import Voting, average_into, hold_vote
from mvp_edge.pruning.problem import Problem, Pruned, Training
from mvp_edge.pruning.scratch import Meter, least_important, weight_norms
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import extract, full_coordinates, kept_axes
from mvp_edge.subnetwork.units import unit_groups
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import claim
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.neighbours import LEEP_IMAGES, find_neighbours
from mvp_edge_export.storage import read_json, write_json

Kept = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Trial:
    """What is done otherwise; the defaults are the product's."""

    neighbours: int = 3
    weighted: float = 0.0
    """Votes and weights by exp(weighted · similarity); 0: all alike."""
    shrunk: float = 0.0
    """So many votes' worth of how often the whole zoo keeps a unit is added."""
    draws: int = 1
    """Masks drawn at τ = 0.2; the one with the least training loss before step 1 is taken."""
    widen: float = 1.0
    """Begin so many times as wide; after a fifth of the steps the least by Taylor go."""
    weights: Literal["average", "vectors"] = "average"
    rebuilt: float = 0.0
    """Each convolution is moved so far (1: all the way) towards the least-squares fit of what the backbone's
    gives at the kept channels, from what the thin network feeds it."""
    head: Literal["means", "lda", "ridge"] = "means"
    distil: float = 0.0
    """Share of the loss that is the unpruned backbone's opinion, its head by class means on the task."""
    warmth: float = 2.0
    """Temperature of that opinion."""
    smooth: float = 0.0
    """Label smoothing."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises."""
    nesterov: bool = False
    averaged: float = 0.0
    """The network's weights are averaged over this last share of the steps."""
    afterwards: bool = False
    """BatchNorm's statistics are re-estimated after the last step, too."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What is set otherwise in the recipe."""


TRIALS: dict[str, Trial] = {
    "base": Trial(),
    **{f"n{n}": Trial(neighbours=n) for n in (1, 2, 5, 8, 16, 99)},
    "weighted-5": Trial(neighbours=8, weighted=5.0),
    "weighted-20": Trial(neighbours=8, weighted=20.0),
    "shrunk-1": Trial(shrunk=1.0),
    "shrunk-3": Trial(shrunk=3.0),
    "draws-8": Trial(draws=8),
    "widen-2": Trial(widen=2.0),
    "vectors": Trial(weights="vectors"),
    "rebuilt-1": Trial(rebuilt=1.0),
    "rebuilt-0.5": Trial(rebuilt=0.5),
    "lda": Trial(head="lda"),
    "ridge": Trial(head="ridge"),
    "distil-0.5": Trial(distil=0.5),
    "distil-0.9": Trial(distil=0.9, warmth=4.0),
    "smooth-0.1": Trial(smooth=0.1),
    "nesterov": Trial(nesterov=True),
    "lr-0.04": Trial(recipe={"lr": 0.04}),
    "lr-0.04-warm": Trial(warmup=0.1, recipe={"lr": 0.04}),
    "lr-0.08-warm": Trial(warmup=0.2, recipe={"lr": 0.08}),
    "decay-0": Trial(recipe={"weight_decay": 0.0}),
    "decay-5e-3": Trial(recipe={"weight_decay": 5e-3}),
    "adamw-2e-3": Trial(
        warmup=0.1, recipe={"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05}
    ),
    "adamw-5e-3": Trial(
        warmup=0.1, recipe={"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.05}
    ),
    "batch-64x2": Trial(recipe={"batch": 64}),
    "averaged-0.3": Trial(averaged=0.3),
    "afterwards": Trial(afterwards=True),
}


@dataclass(frozen=True)
class Warm(Recipe):
    """A recipe whose rate rises first."""

    warmup: float = 0.0

    def rate(self, step: int) -> float:
        """Linear to the usual rate over the first share of the steps."""
        rise = self.warmup * self.steps
        return super().rate(step) * min(1.0, (step + 1) / (rise + 1))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    arguments.add_argument("--only", default=",".join(TRIALS))
    arguments.add_argument("--steps", default="100")
    arguments.add_argument("--targets", type=int, default=8)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan)
    out = HERE / "results" / f"trials-{study.plan['study']}"
    for name in options.only.split(","):
        for steps in map(int, options.steps.split(",")):
            for task in study.tasks[: options.targets]:
                _row(study, task, name, steps, out)


def _row(study: Study, task: Task, name: str, steps: int, out: Path) -> None:
    """One target's row of one trial, unless it is there."""
    key = f"{name}@{steps}"
    file = out / f"{task.name}.json"
    with claim(study.zoo.path / ".work", f"trials-{study.plan['study']}-{task.name}") as work:
        if work is None:
            return
        rows: dict[str, Any] = read_json(file, "rows")["rows"] if file.exists() else {}
        if key in rows:
            return
        entries = [entry for entry in study.zoo.entries() if entry.name != task.name]
        rows[key] = run(study, task, entries, TRIALS[name], steps)
        print(f"{task.name} {key}: {100 * rows[key]['accuracy']:.1f} %", flush=True)
        facts = {"schema": 1, "target": task.name, "machine": machine(), "versions": versions()}
        write_json(file, {**facts, "rows": rows})


def run(
    study: Study, task: Task, entries: Sequence[Entry], trial: Trial, steps: int
) -> dict[str, Any]:
    """Accuracy on test and validation images, and the cost."""
    backbone, ledger, began = study.backbone, Ledger(), time.perf_counter()
    images = task.images("train", backbone.preprocess)
    usual = recipe_for("mvp", backbone.family, steps=steps)
    recipe = Warm(**{**vars(usual), **trial.recipe}, warmup=trial.warmup)
    keep = study.zoo.keep
    found = find_neighbours(
        entries,
        backbone,
        images.take(task.subsample("train", LEEP_IMAGES, 0)),
        task.classes,
        1,
        ledger,
    )
    by_name = {entry.name: entry for entry in entries}
    zoo = [by_name[one.task].voter(keep, one.score) for one in found.candidates]
    problem = study.problem(task, images, recipe, keep, voters=zoo[: trial.neighbours])
    pruned = pruned_by(problem, trial, zoo)
    pruned.ledger.similarity_flops += ledger.similarity_flops
    scores = {}
    for split in ("val", "test"):
        held = task.images(split, backbone.preprocess)
        logits = predict_logits(pruned.model, held.pixels, backbone.preprocess)
        scores[split] = accuracy(logits, held.labels)
    return {
        "accuracy": scores["test"],
        "validation": scores["val"],
        "total_flops": pruned.ledger.total_flops,
        "seconds": time.perf_counter() - began,
        "zoo": len(entries),
    }


def pruned_by(problem: Problem, trial: Trial, zoo: Sequence[Voter]) -> Pruned:
    """The pipeline with the trial's change in it."""
    full = problem.backbone.with_head(problem.classes)
    if trial.weights == "vectors":
        add_vectors(full, problem.voters, problem.policy)
    else:
        average_into(full, problem.voters, problem.policy)
    training = best_of(
        [begin(problem, full, kept, trial) for kept in masks(problem, trial, zoo)], problem
    )
    if trial.nesterov:
        training.optimizer.param_groups[0]["nesterov"] = True
    steps = problem.recipe.steps
    with loss_of(training, trial):
        if trial.widen > 1:
            shrink_after(training, steps // 5)
        if trial.averaged:
            average_last(training, trial.averaged)
        training.run(steps)
    if trial.afterwards:
        estimate_statistics(training.model, training.batches, training.ledger)
    return training.finished({})


def masks(problem: Problem, trial: Trial, zoo: Sequence[Voter]) -> list[Kept]:
    """The units of each mask that is tried."""
    wide = {
        g.name: min(g.size, round(problem.widths.get(g.name, g.size) * trial.widen))
        for g in problem.groups
    }
    wider = replace(problem, widths=wide)
    if trial.draws > 1:
        return [
            _units(hold_vote(replace(wider, seed=seed), Voting(tau=0.2)))
            for seed in range(trial.draws)
        ]
    if not (trial.weighted or trial.shrunk):
        return [_units(hold_vote(wider, Voting()))]
    best = max(voter.similarity for voter in problem.voters)
    norms = weight_norms(problem.backbone.model, problem.groups)
    kept = {}
    for group in problem.groups:
        votes = np.zeros(group.size)
        for voter in problem.voters:
            share = np.exp(trial.weighted * (voter.similarity - best))
            votes[voter.choice(group, wide[group.name])] += share
        for voter in zoo:
            votes[voter.choice(group, wide[group.name])] += trial.shrunk / len(zoo)
        votes += 1e-6 * norms[group.name] / norms[group.name].max()
        kept[group.name] = np.sort(
            np.argsort(votes, kind="stable")[group.size - wide[group.name] :]
        )
    return [kept]


def _units(ballots: Sequence[Ballot]) -> Kept:
    return {ballot.group.name: ballot.kept for ballot in ballots}


@torch.no_grad()
def add_vectors(full: nn.Module, voters: Sequence[Voter], policy: str) -> None:
    """The backbone plus the mean over all voters of what training changed (nothing, where one kept nothing)."""
    own = {**dict(full.named_parameters()), **dict(full.named_buffers())}
    skipped = tuple(f"{name}." for name in heads(full))
    before = {n: t.clone() for n, t in own.items()}
    for voter in voters:
        for name, (values, index) in full_coordinates(
            full, voter.kept, voter.weights, policy
        ).items():
            if name in own and own[name].is_floating_point() and not name.startswith(skipped):
                place = tuple(torch.from_numpy(axis) for axis in np.ix_(*index))
                own[name][place] += (values - before[name][place]) / len(voters)


def begin(problem: Problem, full: nn.Module, kept: Kept, trial: Trial) -> Training:
    """A network before its first step."""
    training = Training(problem, extract(full, kept, problem.policy), kept)
    if trial.rebuilt:
        rebuild(training, trial.rebuilt)
    estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    if trial.head != "means":
        _closed_form(training, problem.classes, trial.head)
    return training


@torch.no_grad()
def rebuild(training: Training, share: float, images: int = 256, places: int = 16) -> None:
    """Fit each convolution, first to last, to the backbone's own outputs at some places of some images; counted."""
    problem = training.problem
    whole, thin = problem.backbone.with_head(problem.classes), training.model
    estimate_statistics(thin, training.batches, training.ledger)
    axes = kept_axes(problem.groups, training.kept, dict(whole.named_parameters()))
    x = torch.cat([x for x, _ in training.batches.plain(images)])
    rng = torch.Generator().manual_seed(problem.seed)
    for name, conv in thin.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        own = whole.get_submodule(name)
        inputs, target = _seen(thin, conv, x)[0], _seen(whole, own, x)[1]
        rows = axes.get((f"{name}.weight", 0), np.arange(target.shape[1]))
        target = target[:, torch.from_numpy(rows)].flatten(2)
        assert not isinstance(conv.padding, str)
        patches = F.unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        at = torch.randperm(patches.shape[2], generator=rng)[:places]
        a = patches[:, :, at].permute(0, 2, 1).flatten(0, 1).double()
        b = target[:, :, at].permute(0, 2, 1).flatten(0, 1).double()
        b = b - b.mean(0)
        a = a - a.mean(0)
        gram = a.T @ a
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        fitted = (
            torch.linalg.solve(gram, a.T @ b).T.reshape(conv.weight.shape).to(conv.weight.dtype)
        )
        conv.weight.lerp_(fitted, share)
        estimate_statistics(thin, training.batches, training.ledger, images)
    dense = forward_macs(problem.backbone.outline(problem.classes), problem.backbone.shape)
    training.ledger.statistics_flops += len(x) * dense


def _seen(
    model: nn.Module, module: nn.Module, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module when the network sees ``x``."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = module.register_forward_hook(lambda _m, i, o: found.append((i[0].float(), o.float())))
    model.eval()
    model(x)
    hook.remove()
    return found[0]


def best_of(candidates: Sequence[Training], problem: Problem) -> Training:
    """The one with the least training loss, which pays for the others."""
    if len(candidates) == 1:
        return candidates[0]

    def loss(one: Training) -> float:
        total = 0.0
        for x, y in one.batches.plain(512):
            with torch.no_grad(), compute(problem.recipe.accelerator):
                total += float(F.cross_entropy(one.model(x).float(), y, reduction="sum"))
            one.ledger.statistics_flops += one.macs * len(x)
        return total

    best = min(candidates, key=loss)
    best.ledger.statistics_flops = sum(one.ledger.statistics_flops for one in candidates)
    return best


@torch.no_grad()
def _closed_form(training: Training, classes: int, kind: str) -> None:
    """Linear discriminant analysis, or ridge regression to the one-hot labels, of the network's features."""
    (head,) = heads(training.model).values()
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
    labels = []
    training.model.eval()
    for x, y in training.batches.plain(1024):
        with compute("cpu"):
            training.model(x)
        labels.append(y)
    hook.remove()
    features, y = torch.cat(seen).double(), torch.cat(labels)
    onehot = F.one_hot(y, classes).double()
    centre = features.mean(0)
    if kind == "ridge":
        centred = features - centre
        gram = centred.T @ centred
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (onehot - onehot.mean(0))).T
        bias = onehot.mean(0) - weight @ centre
    else:
        means = (onehot.T @ features) / onehot.sum(0)[:, None]
        inside = features - means[y]
        spread = inside.T @ inside / len(y)
        spread += 0.1 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
        weight = torch.linalg.solve(spread, (means - centre).T).T
        bias = -((means + centre) * weight).sum(1) / 2
    scores = features @ weight.T + bias

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scale * scores, y))

    scale = min((10.0**exponent for exponent in np.arange(-3, 3.01, 0.1)), key=loss)
    head.weight.copy_(scale * weight)
    head.bias.copy_(scale * bias)


@contextmanager
def loss_of(training: Training, trial: Trial) -> Iterator[None]:
    """Within this block steps use the trial's loss."""
    if not (trial.distil or trial.smooth):
        yield
        return
    if trial.distil:
        training.batches = Taught(training.problem, training.ledger)
    step = teaching_step(trial.distil, trial.warmth, trial.smooth)
    with patch.object(problems, "train_step", step):
        yield


def shrink_after(training: Training, step: int) -> None:
    """Train wide up to ``step``, then drop the least by Taylor."""
    groups = unit_groups(training.model, training.problem.policy)
    training.run(max(1, step // 2))
    with Meter(training.model, groups, "taylor") as meter:
        training.run(step)
    training.shrink(*least_important(meter.importance(), training.problem.widths))


def average_last(training: Training, share: float) -> None:
    """Train to the end and take the mean of the weights over the last share of the steps."""
    steps = training.problem.recipe.steps
    training.run(round(steps * (1 - share)))
    mean = torch.optim.swa_utils.AveragedModel(training.model)
    training.model.train()
    while training.step < steps:
        training.run(training.step + 1)
        mean.update_parameters(training.model)
    training.model.load_state_dict(mean.module.state_dict())
    estimate_statistics(training.model, training.batches, training.ledger)


if __name__ == "__main__":
    main()
