"""Meta-Vote Pruning with one part of it changed.

voters, most similar first ─→ units ─→ weights ─→ statistics, head ─→ steps
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.study.distillation import (
    as_module,
    committee_logits,
    distillation_loss,
    use_teacher,
)
from benchmarks.study.trials.rebuilding import rebuild
from mvp_edge.families import unit_groups
from mvp_edge.methods.distill import network_features, teacher_logits
from mvp_edge.methods.mvp import Voting, average_into, hold_vote
from mvp_edge.methods.smsp import global_widths, score_mask
from mvp_edge.pruning.arithmetic import compute
from mvp_edge.pruning.finetune import estimate_statistics, initialise_head
from mvp_edge.pruning.importance import Meter, least_important, weight_norms
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import Training
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.recipe import Recipe
from mvp_edge.structure.classifier import heads
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.subnet import extract, full_coordinates, kept_axes

Kept = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Trial:
    """The changes; the default of each field is what the product does."""

    start: str | None = None
    """Name of a pooled network (`benchmarks.study.pooled`) to start from, instead of voters."""
    neighbours: int = 3
    weighted: float = 0.0
    """Votes and weights count by exp(weighted · similarity); 0: all the same."""
    shrunk: float = 0.0
    """Add this many votes times the share of the whole zoo that keeps a unit."""
    joint: float = 0.0
    """A voter counts in a group by exp(joint · its agreement with the units kept in the other groups)."""
    draws: int = 1
    """Masks drawn at τ = 0.2, of which the one with the least training loss before step 1 is taken."""
    uneven: bool = False
    """Non-uniform widths: all groups cut at the same SMSP score, for the same multiply-adds."""
    widen: float = 1.0
    """Begin this many times as wide; after a fifth of the steps prune the rest by Taylor importance."""
    weights: Literal["average", "vectors"] = "average"
    rebuilt: float = 0.0
    """Move each convolution by this share towards the least-squares fit of the teachers' output at the kept
    channels, given the input that the small network feeds it."""
    teachers: Literal["backbone", "voters"] = "backbone"
    head: Literal["means", "lda", "ridge", "voters"] = "means"
    """voters: each class gets the rows of the voters' heads, weighted by their predictions on its images."""
    distil: float = 0.0
    """Weight of the distillation loss."""
    committee: int = 0
    """The teacher: this many of the most similar entries' networks together; 0: the unpruned backbone."""
    temperature: float = 2.0
    """Of the distillation loss."""
    smooth: float = 0.0
    """Label smoothing."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises."""
    nesterov: bool = False
    uncovered: Literal["backbone", "zero"] = "backbone"
    """What weights become between two kept units that no voter kept together."""
    averaged: float = 0.0
    """Average the network's weights over this last share of the steps."""
    afterwards: bool = False
    """Re-estimate BatchNorm's statistics after the last step, too."""
    closing: Literal["nothing", "lda"] = "nothing"
    """Fit the head again, in closed form, after the last step."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe that are overridden."""


@dataclass(frozen=True)
class Warm(Recipe):
    """A recipe whose learning rate rises first."""

    warmup: float = 0.0

    def rate(self, step: float) -> float:
        """The learning rate at a step: linear warm-up over the first share of the steps, then the usual one."""
        rise = self.warmup * self.steps
        return super().rate(step) * min(1.0, (step + 1) / (rise + 1))


def pruned_by(problem: Problem, trial: Trial, zoo: Sequence[Voter]) -> Pruned:
    """Meta-Vote Pruning with the trial's changes.

    Args:
        problem: with the voters, the most similar first.
        trial: the changes.
        zoo: all entries that could vote, the most similar first.
    """
    if trial.uneven:
        whole = replace(problem, voters=zoo)
        problem = replace(problem, widths=global_widths(whole, score_mask(whole)[0]))
    full = problem.backbone.with_head(problem.classes)
    if trial.uncovered == "zero":
        _clear(full)
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
    _set_loss(training, trial, zoo)
    if trial.widen > 1:
        shrink_after(training, steps // 5)
    if trial.averaged:
        average_last(training, trial.averaged)
    training.run(steps)
    if trial.afterwards:
        estimate_statistics(training.model, training.batches, training.ledger)
    if trial.closing != "nothing":
        _closed_form(training, problem.classes, trial.closing, len(problem.train.labels))
    return training.finished({})


def masks(problem: Problem, trial: Trial, zoo: Sequence[Voter]) -> list[Kept]:
    """The kept units of each mask that is tried."""
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
    if trial.joint:
        return [_joint(wider, trial.joint)]
    if not (trial.weighted or trial.shrunk):
        return [_units(hold_vote(wider, Voting()))]
    best = max(voter.similarity for voter in problem.voters)
    kept = {}
    for group in problem.groups:
        shares = [
            (voter.choice(group, wide[group.name]), share)
            for voter, share in [
                *((v, np.exp(trial.weighted * (v.similarity - best))) for v in problem.voters),
                *((v, trial.shrunk / len(zoo)) for v in zoo),
            ]
        ]
        kept[group.name] = _most_voted(wider, group, shares)
    return [kept]


def _most_voted(
    problem: Problem, group: UnitGroup, choices: Sequence[tuple[NDArray[np.int64], float]]
) -> NDArray[np.int64]:
    """The units of a group with the most votes, larger ones where they tie.

    ``choices`` are the units that each voter keeps, and the weight of its vote.
    """
    norms = weight_norms(problem.backbone.model, [group])[group.name]
    votes = 1e-6 * norms / norms.max()
    for units, weight in choices:
        votes[units] += weight
    return np.sort(np.argsort(votes, kind="stable")[group.size - problem.widths[group.name] :])


def _joint(problem: Problem, strength: float, rounds: int = 5) -> Kept:
    """Choose the units of all groups together: a voter counts more in a group the more it agrees in the others.

    The reason: a voter that kept the chosen units of one layer also kept the units of the next that fit them.
    """
    choices = {
        group.name: [voter.choice(group, problem.widths[group.name]) for voter in problem.voters]
        for group in problem.groups
    }
    weights = {name: np.ones(len(problem.voters)) for name in choices}
    for _ in range(rounds):
        kept = {
            group.name: _most_voted(
                problem, group, list(zip(choices[group.name], weights[group.name], strict=True))
            )
            for group in problem.groups
        }
        agreed = {
            name: np.array([np.isin(one, kept[name]).mean() for one in own])
            for name, own in choices.items()
        }
        total = np.sum(list(agreed.values()), axis=0)
        for name in weights:
            elsewhere = (total - agreed[name]) / (len(weights) - 1)
            weights[name] = np.exp(strength * (elsewhere - elsewhere.max()))
    return kept


def _units(ballots: Sequence[Ballot]) -> Kept:
    return {ballot.group.name: ballot.kept for ballot in ballots}


@torch.no_grad()
def _clear(model: nn.Module) -> None:
    """Set convolutions to zero, so that weights that no voter kept are zero after averaging."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()


@torch.no_grad()
def add_vectors(full: nn.Module, voters: Sequence[Voter], policy: str) -> None:
    """Add to the backbone the mean over all voters of what training changed (task vectors).

    A voter that did not keep a weight counts as no change.
    """
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
    """The training of one mask, before its first step."""
    training = Training(problem, extract(full, kept, problem.policy), kept)
    if trial.rebuilt:
        rebuild(training, trial.rebuilt, trial.teachers)
    estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    if trial.head == "voters":
        _rows_of_voters(training)
    elif trial.head != "means":
        _closed_form(training, problem.classes, trial.head)
    return training


def best_of(candidates: Sequence[Training], problem: Problem) -> Training:
    """The one with the least training loss; the cost of the others is added to its own."""
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
def _closed_form(training: Training, classes: int, kind: str, limit: int = 1024) -> None:
    """Fit the head by linear discriminant analysis, or by ridge regression to the one-hot labels."""
    features, y = _features(training, limit)
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
    _put(training, weight, bias, features, y)


@torch.no_grad()
def _rows_of_voters(training: Training, limit: int = 1024) -> None:
    """Head from the voters' heads: for each class their rows, weighted by their mean prediction on its images.

    The mean over all classes is subtracted. All networks are parts of one backbone, whose coordinates align
    their heads; a voter adds nothing at units that it did not keep.
    """
    problem = training.problem
    whole = problem.backbone.with_head(problem.classes)
    ((name, head),) = heads(whole).items()
    full = torch.zeros(problem.classes, head.in_features, dtype=torch.float64)
    labels = torch.from_numpy(problem.train.labels)
    onehot = F.one_hot(labels, problem.classes).double()
    for voter in problem.voters:
        weight, bias = (voter.weights[f"{name}.{part}"].double() for part in ("weight", "bias"))
        seen = network_features(as_module(problem, voter), problem, training.ledger).double()
        said = F.softmax(seen @ weight.T + bias, 1)
        means = (onehot.T @ said) / onehot.sum(0)[:, None]
        units = _seen_by_head(problem, whole, voter.kept)
        full[:, units] += (means - means.mean(0)) @ weight / len(problem.voters)
    rows = full[:, _seen_by_head(problem, whole, training.kept)]
    features, y = _features(training, limit)
    _put(training, rows, -rows @ features.mean(0), features, y)


def _seen_by_head(
    problem: Problem, full: nn.Module, kept: Mapping[str, NDArray[np.int64]]
) -> torch.Tensor:
    """Indices of the backbone's features that the head of a sub-network has as inputs."""
    ((name, head),) = heads(full).items()
    axes = kept_axes(problem.groups, kept, full.state_dict())
    return torch.from_numpy(axes.get((f"{name}.weight", 1), np.arange(head.in_features)))


def _features(training: Training, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the head [n, D] on at most ``limit`` training images, and their labels [n]; the cost is counted."""
    (head,) = heads(training.model).values()
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
    labels = []
    training.model.eval()
    for x, y in training.batches.plain(limit):
        with compute("cpu"):
            training.model(x)
        training.ledger.statistics_flops += training.macs * len(x)
        labels.append(y)
    hook.remove()
    return torch.cat(seen).double(), torch.cat(labels)


def _put(
    training: Training,
    weight: torch.Tensor,
    bias: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """Set the head, scaled so that the cross entropy on these images is least."""
    (head,) = heads(training.model).values()
    scores = features @ weight.T + bias

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scale * scores, labels))

    scale = min((10.0**exponent for exponent in np.arange(-3, 3.01, 0.1)), key=loss)
    head.weight.copy_(scale * weight)
    head.bias.copy_(scale * bias)


def _set_loss(training: Training, trial: Trial, zoo: Sequence[Voter]) -> None:
    """Give the training the trial's loss, and the logits of its teacher."""
    if trial.distil:
        problem, ledger = training.problem, training.ledger
        if trial.committee:
            logits = committee_logits(problem, zoo[: trial.committee], ledger)
        else:
            logits = teacher_logits(problem, ledger)
        use_teacher(training, logits)
    training.loss = distillation_loss(trial.distil, trial.temperature, trial.smooth)


def shrink_after(training: Training, step: int) -> None:
    """Train the wider network up to ``step``, then prune it by Taylor importance."""
    groups = unit_groups(training.model, training.problem.policy)
    training.run(max(1, step // 2))
    with Meter(training.model, groups, "taylor") as meter:
        training.run(step)
    training.shrink(*least_important(meter.importance(), training.problem.widths))


def average_last(training: Training, share: float) -> None:
    """Train to the end, and average the weights over the last share of the steps."""
    steps = training.problem.recipe.steps
    training.run(round(steps * (1 - share)))
    mean = torch.optim.swa_utils.AveragedModel(training.model)
    training.model.train()
    while training.step < steps:
        training.run(training.step + 1)
        mean.update_parameters(training.model)
    training.model.load_state_dict(mean.module.state_dict())
    estimate_statistics(training.model, training.batches, training.ledger)
