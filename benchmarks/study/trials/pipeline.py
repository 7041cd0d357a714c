"""The pipeline of MVP with one thing of it done otherwise.

voters, similar ─→ units ─→ weights ─→ statistics, head ─→ steps
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.teaching import (
    as_module,
    committee_opinions,
    teaching_loss,
)
from benchmarks.trials.rebuilding import rebuild
from mvp_edge.pruning.arithmetic import compute
from mvp_edge.pruning.batches import Recipe
from mvp_edge.pruning.distill import network_features, teacher_logits
from mvp_edge.pruning.distillation import Teacher
from mvp_edge.pruning.finetune import estimate_statistics, initialise_head
from mvp_edge.pruning.mvp import Voting, average_into, hold_vote
from mvp_edge.pruning.problem import Problem, Pruned, Training
from mvp_edge.pruning.scratch import Meter, least_important, weight_norms
from mvp_edge.pruning.smsp import global_widths, score_mask
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.subnet import extract, full_coordinates, kept_axes
from mvp_edge.subnetwork.units import UnitGroup, unit_groups

Kept = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Trial:
    """What is done otherwise; the defaults are the product's."""

    start: str | None = None
    """A network of `benchmarks.pooled` instead of voters."""
    neighbours: int = 3
    weighted: float = 0.0
    """Votes and weights by exp(weighted · similarity); 0: all alike."""
    shrunk: float = 0.0
    """So many votes' worth of how often the whole zoo keeps a unit is added."""
    joint: float = 0.0
    """A voter counts in a group by exp(joint · how far it agrees with what the other groups keep)."""
    draws: int = 1
    """Masks drawn at τ = 0.2; the one with the least training loss before step 1 is taken."""
    uneven: bool = False
    """Widths by how far the zoo agrees: all groups cut at one score of SMSP's, for the same multiply-adds."""
    widen: float = 1.0
    """Begin so many times as wide; after a fifth of the steps the least by Taylor go."""
    weights: Literal["average", "vectors"] = "average"
    rebuilt: float = 0.0
    """Each convolution is moved so far (1: all the way) towards the least-squares fit of what the teachers'
    give at the kept channels, from what the thin network feeds it."""
    teachers: Literal["backbone", "voters"] = "backbone"
    head: Literal["means", "lda", "ridge", "voters"] = "means"
    """voters: each class gets the rows of the voters' own heads, by what their networks say of its images."""
    distil: float = 0.0
    """Share of the loss that is a teacher's opinion."""
    committee: int = 0
    """The teacher: so many of the nearest entries' networks together; 0: the unpruned backbone."""
    temperature: float = 2.0
    """Temperature of that opinion."""
    smooth: float = 0.0
    """Label smoothing."""
    warmup: float = 0.0
    """Share of the steps in which the rate rises."""
    nesterov: bool = False
    uncovered: Literal["backbone", "zero"] = "backbone"
    """Weights between two kept units that no voter kept together."""
    averaged: float = 0.0
    """The network's weights are averaged over this last share of the steps."""
    afterwards: bool = False
    """BatchNorm's statistics are re-estimated after the last step, too."""
    closing: Literal["nothing", "lda"] = "nothing"
    """The head is fitted anew, in closed form, after the last step."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What is set otherwise in the recipe."""


@dataclass(frozen=True)
class Warm(Recipe):
    """A recipe whose rate rises first."""

    warmup: float = 0.0

    def rate(self, step: float) -> float:
        """Linear to the usual rate over the first share of the steps."""
        rise = self.warmup * self.steps
        return super().rate(step) * min(1.0, (step + 1) / (rise + 1))


def pruned_by(problem: Problem, trial: Trial, zoo: Sequence[Voter]) -> Pruned:
    """The pipeline with the trial's change in it."""
    if trial.uneven:
        asked = replace(problem, voters=zoo)
        problem = replace(problem, widths=global_widths(asked, score_mask(asked)[0]))
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
    heed(training, trial, zoo)
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
    """The units of a group with the most votes, of choices that count so much each; larger ones where they tie."""
    norms = weight_norms(problem.backbone.model, [group])[group.name]
    votes = 1e-6 * norms / norms.max()
    for units, share in choices:
        votes[units] += share
    return np.sort(np.argsort(votes, kind="stable")[group.size - problem.widths[group.name] :])


def _joint(problem: Problem, strength: float, rounds: int = 5) -> Kept:
    """All groups chosen together: in each, a voter counts by how far it goes along with the others.

    Networks are whole: who kept the units that one layer keeps, kept those of the next that go with them.
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
    """Convolutions to zero; voters' means replace what any of them kept."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()


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
        rebuild(training, trial.rebuilt, trial.teachers)
    estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    if trial.head == "voters":
        _rows_of_voters(training)
    elif trial.head != "means":
        _closed_form(training, problem.classes, trial.head)
    return training


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
def _closed_form(training: Training, classes: int, kind: str, limit: int = 1024) -> None:
    """Linear discriminant analysis, or ridge regression to the one-hot labels, of the network's features."""
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
    """Each class's row: what the voters' networks say of its images, over all classes', times their own rows.

    All networks are parts of one backbone, so that its coordinates align their heads; units that a voter
    did not keep get nothing from it.
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
    """Which of the backbone's features the head of a sub-network sees."""
    ((name, head),) = heads(full).items()
    axes = kept_axes(problem.groups, kept, full.state_dict())
    return torch.from_numpy(axes.get((f"{name}.weight", 1), np.arange(head.in_features)))


def _features(training: Training, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head sees of at most so many training images [n, D], and their labels; counted."""
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
    """A head of these rows, as sure of itself as is right on these images."""
    (head,) = heads(training.model).values()
    scores = features @ weight.T + bias

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scale * scores, labels))

    scale = min((10.0**exponent for exponent in np.arange(-3, 3.01, 0.1)), key=loss)
    head.weight.copy_(scale * weight)
    head.bias.copy_(scale * bias)


def heed(training: Training, trial: Trial, zoo: Sequence[Voter]) -> None:
    """Give the training the trial's loss, and its teacher's opinions."""
    if trial.distil:
        problem, ledger = training.problem, training.ledger
        if trial.committee:
            opinions = committee_opinions(problem, zoo[: trial.committee], ledger)
        else:
            opinions = teacher_logits(problem, ledger)
        training.batches = replace(problem, teacher=Teacher(opinions, own=True)).batches
    training.loss = teaching_loss(trial.distil, trial.temperature, trial.smooth)


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
