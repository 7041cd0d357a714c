"""Automatic head & node pruning for ViT (paper, Alg. 3).

Every head and node carries a score S = 1 that multiplies it; loss = CE + λ·Σ|S|. Units whose score sinks
below a threshold fall, and what is left of S at the end is folded into the linear map behind the unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.prune import Problem, Pruned, Training
from mvp_edge.scratch import SAVE_EVERY, drop_schedule, least_important, prepare, weight_norms
from mvp_edge.units import UnitGroup, unit_groups

_KINDS = ("score", "mean", "square")


@dataclass(frozen=True)
class Scores:
    """How the scores are learned."""

    lr: float = 0.05
    l1: Mapping[str, float] = None  # type: ignore[assignment]
    """λ for each kind of unit."""
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.l1 is None:
            object.__setattr__(self, "l1", {"head": 0.1, "node": 0.1})


def ahnp(problem: Problem, how: Scores | None = None) -> Pruned:
    """Learn which heads and nodes a task needs while fine-tuning, dropping the others on the way.

    The gradient of S is normalised as Adam does (raw, it is about 1e-4, so λ alone would decide) and the
    L1 term acts by the proximal step S ← soft(S − lr·ĝ, lr·λ). Never more units fall than the schedule
    allows; what it still lacks at its end falls by rank. Groups without a gate (head_dim, when a budget
    asks) fall by the size of their weights.
    """
    how = how or Scores()
    sizes = {g.name: g.size for g in problem.groups}
    drops = drop_schedule(sizes, problem.widths, problem.recipe.steps, problem.snapshots)
    training = Training(problem, problem.backbone.with_head(problem.classes), {})
    if not training.restore():
        prepare(training)
        for group in problem.groups:
            if group.points:
                training.extra[f"score/{group.name}"] = torch.ones(group.size)
                training.extra[f"mean/{group.name}"] = torch.zeros(group.size)
                training.extra[f"square/{group.name}"] = torch.zeros(group.size)
    by_weight = weight_norms(problem.backbone.model, [g for g in problem.groups if not g.points])
    final = drops[-1].step
    for drop in drops:
        if drop.step <= training.step and training.step > 0:
            continue
        with Gates(training, how) as gates:
            training.run(drop.step, gates.update)
        groups = unit_groups(training.model, problem.policy)
        importance, widths = {}, {}
        for group in groups:
            allowed = drop.widths.get(group.name, group.size)
            if group.points:
                importance[group.name] = _importance(training, group)
                strong = int((importance[group.name] >= how.threshold).sum())
                forced = drop.step == final or drop.snapshot is not None
                widths[group.name] = allowed if forced else max(allowed, strong)
            else:
                importance[group.name] = by_weight[group.name][training.kept[group.name]]
                widths[group.name] = allowed
        local, order = least_important(importance, widths)
        for key in [k for k in training.extra if k.partition("/")[0] in _KINDS]:
            stay = torch.from_numpy(local[key.partition("/")[2]])
            training.extra[key] = training.extra[key][stay].clone()
        training.shrink(local, order)
        if drop.step == final:
            fold(training.model, unit_groups(training.model, problem.policy), training.extra)
        elif drop.snapshot is not None:
            _snapshot(training, drop.snapshot)
        training.save()
    while training.step < problem.recipe.steps:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps))
        training.save()
    last = {g.name: _importance(training, g) for g in problem.groups if g.points}
    return training.finished(last)


class Gates:
    """Multiplies each unit by its score while the network trains, and learns the scores."""

    def __init__(self, training: Training, how: Scores):
        self.training, self.how = training, how
        self.groups = [g for g in unit_groups(training.model, training.problem.policy) if g.points]
        device = next(training.model.parameters()).device
        self.scores = {
            g.name: training.extra[f"score/{g.name}"].to(device).requires_grad_()
            for g in self.groups
        }
        self._hooks: list[Any] = []
        self._step = training.step

    def __enter__(self) -> "Gates":
        for group in self.groups:
            module = self.training.model.get_submodule(group.points[0].module)
            self._hooks.append(module.register_forward_pre_hook(self._gate(group)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _gate(self, group: UnitGroup) -> Any:
        def gate(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            score = self.scores[group.name].to(inputs[0].dtype)
            return (inputs[0] * score.repeat_interleave(group.width), *inputs[1:])

        return gate

    @torch.no_grad()
    def update(self) -> None:
        """One proximal step on every score."""
        self._step += 1
        how, extra = self.how, self.training.extra
        for group in self.groups:
            score = self.scores[group.name]
            assert score.grad is not None
            gradient = score.grad.cpu()
            mean, square = extra[f"mean/{group.name}"], extra[f"square/{group.name}"]
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square(), 0.001)
            direction = (mean / (1 - 0.9**self._step)) / (
                (square / (1 - 0.999**self._step)).sqrt() + 1e-12
            )
            moved = score.detach().cpu() - how.lr * direction
            shrunk = moved.sign() * (moved.abs() - how.lr * how.l1[group.kind]).clamp(min=0)
            extra[f"score/{group.name}"] = shrunk
            score.copy_(shrunk)
            score.grad = None


@torch.no_grad()
def fold(model: nn.Module, groups: Sequence[UnitGroup], extra: Mapping[str, torch.Tensor]) -> None:
    """Multiply each score into the columns of the linear map that reads its unit."""
    for group in groups:
        key = f"score/{group.name}"
        if key in extra and group.points:
            reader = model.get_submodule(group.points[0].module)
            assert isinstance(reader, nn.Linear)
            reader.weight.mul_(extra[key].to(reader.weight.device).repeat_interleave(group.width))


def _importance(training: Training, group: UnitGroup) -> NDArray[np.float64]:
    """|S|; units whose scores are equal are told apart by how much the loss still pulls at them."""
    score = training.extra[f"score/{group.name}"].abs().double()
    pull = training.extra[f"mean/{group.name}"].abs().double()
    result: NDArray[np.float64] = (score + 1e-3 * pull / pull.max().clamp(min=1e-30)).numpy()
    return result


def _snapshot(training: Training, ratio: float) -> None:
    """Remember the network with its scores folded in; training goes on with them apart."""
    groups = unit_groups(training.model, training.problem.policy)
    unfolded = {n: t.detach().clone() for n, t in training.model.state_dict().items()}
    fold(training.model, groups, training.extra)
    training.snapshot(ratio)
    training.model.load_state_dict(unfolded)
