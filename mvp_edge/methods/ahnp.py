"""Automatic head & node pruning for ViT (paper, Alg. 3).

Every head and node is multiplied by a score S, 1 at first; loss = CE + λ·Σ|S|. Units of little importance are
removed on the way, and the remaining scores are folded into the linear map behind the unit.

The paper removes units whose score falls below a threshold, with plain gradients. Those are about 1e-4 for a node,
so λ alone would decide. Normalised per unit (as Adam does), useful and useless units move by equal steps, and the
units that survive are no better than randomly selected ones (measured, and worse on planted useless units). So here
gradients are normalised over their group, and the importance of a unit is its score times the loss's sensitivity
to it: |S|·√E[(∂L/∂S)²].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.pruning.importance import least_important, weight_norms
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.schedule import drop_schedule
from mvp_edge.pruning.training import SAVE_EVERY, Training, prepare
from mvp_edge.structure.units import UnitGroup


@dataclass(frozen=True)
class Scores:
    """How the scores are learned."""

    lr: float = 0.05
    l1: Mapping[str, float] = field(default_factory=lambda: {"head": 0.1, "node": 0.1})
    """λ for each kind of unit."""
    threshold: float = 0.5
    """Units of less importance may be removed. A score of 1 with its group's mean sensitivity has importance 1."""


def ahnp(problem: Problem, how: Scores | None = None) -> Pruned:
    """Learn which heads and nodes a task needs while fine-tuning, and remove the others on the way.

    The L1 term acts by the proximal step S ← soft(S − lr·ĝ, lr·λ). The schedule limits how many units are removed
    at once; where too many are left at its end, the least important ones go. Groups without a gate (head_dim, when
    a budget asks for it) are cut by the norm of their weights.
    """
    how = how or Scores()
    sizes = {g.name: g.size for g in problem.groups}
    drops = drop_schedule(sizes, problem.widths, problem.recipe.steps, problem.snapshots)
    full = problem.backbone.with_head(problem.classes)
    training = Training(problem, full, {}, f"ahnp {how}")
    if not training.restore():
        prepare(training)
        for group in problem.groups:
            if group.points:
                training.extra[f"score/{group.name}"] = torch.ones(group.size)
                training.extra[f"mean/{group.name}"] = torch.zeros(group.size)
                training.extra[f"square/{group.name}"] = torch.zeros(group.size)
    for before, drop in zip((None, *drops[:-1]), drops, strict=True):
        if drop.step <= training.step and training.step > 0:
            continue
        with Gates(training, how) as gates:
            training.run(drop.step, gates.update)
        if before is not None and before.snapshot is not None:
            keep_snapshot(training, before.snapshot)
        importance = _importance(training)
        last = drop is drops[-1]
        widths = dict(drop.widths)
        if not last and drop.snapshot is None:
            for group in gates.groups:
                strong = int((importance[group.name] >= how.threshold).sum())
                widths[group.name] = max(widths.get(group.name, 0), strong)
        local, order = least_important(importance, widths)
        for key, values in training.extra.items():
            training.extra[key] = values[torch.from_numpy(local[key.partition("/")[2]])].clone()
        training.shrink(local, order)
        if last:
            fold(training.model, unit_groups(training.model, problem.policy), training.extra)
        training.save()
    while training.step < problem.recipe.steps:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps))
        training.save()
    return training.finished(_importance(training))


class Gates:
    """Multiplies each unit by its score while the network trains, and learns the scores; a context manager."""

    def __init__(self, training: Training, how: Scores):
        self.training, self.how = training, how
        self.groups = [g for g in unit_groups(training.model, training.problem.policy) if g.points]
        device = next(training.model.parameters()).device
        self.scores = {
            g.name: training.extra[f"score/{g.name}"].clone().to(device).requires_grad_()
            for g in self.groups
        }
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
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
        """One proximal step on every score, after the network's own update."""
        step = self.training.step + 1
        how, extra = self.how, self.training.extra
        for group in self.groups:
            score = self.scores[group.name]
            assert score.grad is not None
            gradient = score.grad.cpu()
            mean, square = extra[f"mean/{group.name}"], extra[f"square/{group.name}"]
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square(), 0.01)
            usual = (square.mean() / (1 - 0.99**step)).sqrt() + 1e-12
            moved = score.detach().cpu() - how.lr * mean / (1 - 0.9**step) / usual
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


def _importance(training: Training) -> dict[str, NDArray[np.float64]]:
    """|S|·√E[(∂L/∂S)²], with the second factor relative to its group's mean.

    Where there is no score (head_dim), and before the first step, it is the norm of the weights.
    """
    groups = unit_groups(training.model, training.problem.policy)
    importance = weight_norms(training.model, groups)
    for group in groups:
        if group.points and training.step > 0:
            score = training.extra[f"score/{group.name}"].double().numpy()
            sensitivity = training.extra[f"square/{group.name}"].double().sqrt().numpy()
            importance[group.name] = np.abs(score) * sensitivity / max(sensitivity.mean(), 1e-30)
    return importance


def keep_snapshot(training: Training, ratio: float) -> None:
    """Keep the network with its scores folded in; training goes on with the scores apart."""
    groups = unit_groups(training.model, training.problem.policy)
    unfolded = {n: t.detach().clone() for n, t in training.model.state_dict().items()}
    fold(training.model, groups, training.extra)
    training.snapshot(ratio)
    training.model.load_state_dict(unfolded)
