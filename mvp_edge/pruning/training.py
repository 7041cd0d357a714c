"""A network in training that may shrink on the way, and the plain fine-tuning that most methods end with."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.pruning.arithmetic import lay_out
from mvp_edge.pruning.checkpoint import Checkpoint
from mvp_edge.pruning.finetune import (
    History,
    Ledger,
    Stepper,
    accuracy,
    estimate_statistics,
    initialise_head,
    predict_logits,
)
from mvp_edge.pruning.importance import Importance, nested_ranking
from mvp_edge.pruning.problem import Problem, Pruned, Snapshot
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import Kept, compose, extract, kept_axes

SAVE_EVERY = 50
"""Steps of plain fine-tuning between two checkpoints."""


class Training:
    """A network in training that may shrink on the way.

    All state is serialisable: a run that is resumed from its checkpoint gives a bit-identical result.

    Args:
        problem: what is to be made.
        model: the network to begin with.
        kept: its units as indices in the backbone; groups that are not named are whole.
        method: how the network is made, beyond what the problem says. A checkpoint of another method or problem is
            ignored.
    """

    def __init__(self, problem: Problem, model: nn.Module, kept: Kept, method: str = ""):
        self.problem = problem
        whole = problem.backbone.outline(problem.classes)
        self.dense_macs = forward_macs(whole, problem.backbone.shape)
        self.batches, self.loss = problem.batches, problem.loss
        self.kept = {
            g.name: np.asarray(kept.get(g.name, np.arange(g.size))) for g in problem.groups
        }
        self.removed: dict[str, list[int]] = {g.name: [] for g in problem.groups}
        """The removed units of each group as indices in the backbone, the first removed first."""
        self.snapshots: dict[float, Snapshot] = {}
        self.step = 0
        self.ledger, self.history = Ledger(), History()
        self.extra: dict[str, torch.Tensor] = {}
        """Tensors of the method's own (AHNP's scores), saved with the rest."""
        self.step_seconds = 0.0
        self._earlier, self._clock = 0.0, time.perf_counter()
        self._checkpoint = Checkpoint.of(problem, model, self.kept, method)
        self.adopt(model)

    def adopt(self, model: nn.Module) -> None:
        """Train ``model`` from here on, with a new optimizer."""
        problem = self.problem
        self.stepper = Stepper(model, problem.recipe, problem.backbone.shape, self.dense_macs)

    @property
    def model(self) -> nn.Module:
        """The network as it is now."""
        return self.stepper.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The network's optimizer; its momentum is cut when the network is."""
        return self.stepper.optimizer

    @property
    def macs(self) -> int:
        """Multiply-adds of one image through the network as it is now."""
        return self.stepper.macs

    @property
    def seconds(self) -> float:
        """Wall time so far, that of earlier processes included."""
        return self._earlier + time.perf_counter() - self._clock

    @seconds.setter
    def seconds(self, earlier: float) -> None:
        self._earlier, self._clock = earlier, time.perf_counter()

    def save(self) -> None:
        """Write the checkpoint, if the problem has a place for one."""
        if self._checkpoint is not None:
            self._checkpoint.save(self)

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one of this very problem; True when there was."""
        return self._checkpoint is not None and self._checkpoint.restore(self)

    def run(self, until: int, after_update: Callable[[], None] | None = None) -> None:
        """Train up to step ``until``; validation accuracy is noted five times over the recipe's steps."""
        with self.stepper.threads():
            self._run(until, after_update)

    def _run(self, until: int, after_update: Callable[[], None] | None) -> None:
        recipe, problem = self.problem.recipe, self.problem
        self.model.train()
        every = max(1, recipe.steps // 5)
        while self.step < until:
            began = time.perf_counter()
            loss, right = self.stepper.step(
                self.batches, self.step, self.ledger, self.loss, after_update
            )
            self.history.steps.append(
                {
                    "step": self.step + 1,
                    "loss": loss,
                    "lr": recipe.rate(self.step),
                    "train_accuracy": right,
                    "units": sum(len(units) for units in self.kept.values()),
                }
            )
            self.step += 1
            self.step_seconds += time.perf_counter() - began
            problem.progress("tuning", self.step, recipe.steps)
            if self.step % every == 0:
                self._validate()
        self.model.eval()

    def _validate(self) -> None:
        images = self.problem.validation
        if images is not None and len(images.labels):
            logits = predict_logits(
                self.model, images.pixels, self.problem.backbone.preprocess, fast=True
            )
            self.history.validation.append(
                {"step": self.step, "top1": accuracy(logits, images.labels)}
            )

    @property
    def cut(self) -> bool:
        """Whether the network has its final widths."""
        widths = self.problem.widths
        return all(len(kept) <= widths.get(name, len(kept)) for name, kept in self.kept.items())

    def shrink(self, local: Kept, order: Mapping[str, Sequence[int]]) -> None:
        """Remove units; the optimizer's momentum is cut like the weights it belongs to.

        Args:
            local: the units that stay, as indices in the present network.
            order: the units that go, in the order of their removal.
        """
        policy = self.problem.policy
        groups = unit_groups(self.model, policy)
        old = dict(self.model.named_parameters())
        state = {name: self.optimizer.state.get(p, {}) for name, p in old.items()}
        axes = kept_axes(groups, local, {**old, **dict(self.model.named_buffers())})
        for name, units in order.items():
            self.removed[name] += [int(self.kept[name][unit]) for unit in units]
        self.kept.update(compose(self.kept, local))
        self.adopt(extract(self.model, local, policy))
        for name, parameter in self.model.named_parameters():
            cut = {}
            for key, value in state[name].items():
                if isinstance(value, torch.Tensor) and value.shape == old[name].shape:
                    value = _cut(value, name, axes)
                cut[key] = value
            if cut:
                self.optimizer.state[parameter] = cut

    def snapshot(self, ratio: float) -> None:
        """Remember the network as it is now."""
        tensors = {n: t.detach().cpu().clone() for n, t in self.model.state_dict().items()}
        self.snapshots[ratio] = ({n: u.copy() for n, u in self.kept.items()}, tensors)

    def finished(self, importance: Importance) -> Pruned:
        """The result; the units that survived are ranked by ``importance`` (one value a kept unit)."""
        return Pruned(
            lay_out(self.model, "cpu", torch.contiguous_format).eval(),
            self.kept,
            nested_ranking(self.removed, self.kept, importance),
            self.ledger,
            self.history,
            self.seconds,
            self.step_seconds,
            snapshots=self.snapshots,
        )


def _cut(
    value: torch.Tensor, parameter: str, axes: Mapping[tuple[str, int], NDArray[np.int64]]
) -> torch.Tensor:
    """An optimizer's tensor, cut like the parameter of its shape."""
    for axis in range(value.dim()):
        if (parameter, axis) in axes:
            index = torch.from_numpy(axes[parameter, axis]).to(value.device)
            value = value.index_select(axis, index)
    return value


def prepare(training: Training) -> None:
    """What precedes step 1, counted as cost: BatchNorm statistics of the task, and the head."""
    problem = training.problem
    problem.progress("statistics", 0, 1)
    if problem.recipe.statistics:
        estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    problem.progress("statistics", 1, 1)


def fine_tune(problem: Problem, model: nn.Module, kept: Kept) -> Pruned:
    """Statistics, head, then ``problem.recipe.steps`` steps at a fixed shape; resumable."""
    training = Training(problem, model, kept)
    if not training.restore():
        prepare(training)
        training.save()
    while training.step < problem.recipe.steps:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps))
        training.save()
    return training.finished({})
