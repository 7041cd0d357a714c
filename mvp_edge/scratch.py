"""Pruning from scratch: the zoo's own models, and the baselines.

    ifp        iterative filter pruning: fine-tune, drop the least important, repeat   (paper, Alg. 2)
    magnitude  one cut by the size of the weights, then fine-tuning
    random     one cut by lot, then fine-tuning

Automatic head & node pruning, the ViT's own, is in `ahnp`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.prune import Problem, Pruned, Training
from mvp_edge.subnet import extract
from mvp_edge.train import SHRINKING, estimate_statistics, initialise_head
from mvp_edge.units import Point, UnitGroup, unit_groups

DROP_SHARE = 0.1
"""About this share of the remaining units goes at each drop (the paper's p; our choice)."""
SAVE_EVERY = 50
"""Steps of plain fine-tuning between two checkpoints."""


def random(problem: Problem) -> Pruned:
    """Keep units drawn uniformly; the backbone's weights; fine-tune."""
    rng = np.random.default_rng([problem.seed, 3])
    return one_cut(problem, {g.name: rng.random(g.size) for g in problem.groups})


def magnitude(problem: Problem) -> Pruned:
    """Keep the units whose weights have the largest L2 norm in the backbone; fine-tune (Li et al. 2017)."""
    return one_cut(problem, weight_norms(problem.backbone.model, problem.groups))


def one_cut(problem: Problem, importance: Mapping[str, NDArray[np.float64]]) -> Pruned:
    """Keep each group's most important units at once, with the backbone's weights, and fine-tune."""
    order = {name: np.argsort(value, kind="stable") for name, value in importance.items()}
    kept = {
        name: np.sort(units[len(units) - problem.widths.get(name, len(units)) :])
        for name, units in order.items()
    }
    model = extract(problem.backbone.with_head(problem.classes), kept, problem.policy)
    pruned = fine_tune(problem, model, kept)
    pruned.ranking = order
    return pruned


def fine_tune(problem: Problem, model: nn.Module, kept: Mapping[str, NDArray[np.int64]]) -> Pruned:
    """Statistics, head, then ``problem.recipe.steps`` steps at a fixed shape; resumable."""
    training = Training(problem, model, kept)
    if not training.restore():
        prepare(training)
        training.save()
    while training.step < problem.recipe.steps:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps))
        training.save()
    return training.finished({})


def prepare(training: Training) -> None:
    """What precedes step 1, counted: BatchNorm's statistics on the task, and the head."""
    problem = training.problem
    problem.progress("statistics", 0, 1)
    if problem.recipe.statistics:
        estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    problem.progress("statistics", 1, 1)


@dataclass(frozen=True)
class Drop:
    """At ``step`` the network shrinks to ``widths``; ``snapshot``: the ratio reached, if it is asked for."""

    step: int
    widths: Mapping[str, int]
    snapshot: float | None = None


def drop_schedule(
    sizes: Mapping[str, int], widths: Mapping[str, int], steps: int, snapshots: Sequence[float] = ()
) -> list[Drop]:
    """Equal shares of what remains, evenly spaced, the target reached at 0.8 of the steps.

    A snapshot ratio replaces the nearest drop's own ratio, so that the weights at exactly that ratio
    exist (and are fine-tuned until the next drop).
    """
    final = min(width / sizes[name] for name, width in widths.items())
    if final >= 1 or steps < 2:
        return [Drop(0, dict(widths))]
    span = max(1, int(steps * SHRINKING))
    count = min(span, max(1, round(np.log(final) / np.log(1 - DROP_SHARE))))
    ratios = {k: final ** (k / count) for k in range(1, count + 1)}
    named: dict[int, float] = {}
    for ratio in snapshots:
        if ratio > final:
            nearest = min(
                (k for k in ratios if k < count), key=lambda k: abs(ratios[k] - ratio), default=None
            )
            if nearest is not None:
                named[nearest] = ratio
    drops = []
    for k in range(1, count + 1):
        share = np.log(named.get(k, ratios[k])) / np.log(final)
        now = {
            name: max(width, int(sizes[name] * (width / sizes[name]) ** share + 0.5))
            if k not in named
            else max(width, int(sizes[name] * named[k] + 0.5))
            for name, width in widths.items()
        }
        if k == count:
            now = dict(widths)
        drops.append(Drop(round(span * k / count), now, named.get(k)))
    return drops


def ifp(problem: Problem, criterion: str = "activation") -> Pruned:
    """Iterative filter pruning, ``criterion`` "activation" or "taylor"; the network shrinks physically.

    The importance is accumulated over the training batches of the last steps before each drop (about
    one pass over the data), so it costs no extra forward passes.
    """
    sizes = {g.name: g.size for g in problem.groups}
    drops = drop_schedule(sizes, problem.widths, problem.recipe.steps, problem.snapshots)
    training = Training(problem, problem.backbone.with_head(problem.classes), {})
    if not training.restore():
        prepare(training)
    one_pass = max(1, -(-len(problem.train.labels) // training.batches.size))
    for number, drop in enumerate(drops):
        if drop.step <= training.step and training.step > 0:
            continue
        training.run(max(training.step, drop.step - one_pass))
        with Meter(training.model, unit_groups(training.model, problem.policy), criterion) as meter:
            training.run(drop.step)
        local, order = least_important(meter.importance(), drop.widths)
        training.shrink(local, order)
        training.save()
        if drop.snapshot is not None:
            # A snapshot ratio is never the last drop's: it is tuned until just before the next one.
            training.run(max(training.step, drops[number + 1].step - one_pass))
            training.snapshot(drop.snapshot)
    while training.step < problem.recipe.steps - one_pass:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps - one_pass))
        training.save()
    with Meter(training.model, unit_groups(training.model, problem.policy), criterion) as meter:
        training.run(problem.recipe.steps)
    importance = meter.importance() if meter.seen else {}
    return training.finished(importance)


def least_important(
    importance: Mapping[str, NDArray[np.float64]], widths: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.int64]], dict[str, list[int]]]:
    """Split each group's units into those that stay (ascending) and those that fall (least first)."""
    stay, fall = {}, {}
    for name, values in importance.items():
        order = np.argsort(values, kind="stable")
        surplus = max(0, len(order) - widths.get(name, len(order)))
        stay[name] = np.sort(order[surplus:])
        fall[name] = [int(unit) for unit in order[:surplus]]
    return stay, fall


class Meter:
    """Accumulates each unit's importance while the network trains, as a context manager.

    activation: mean over images and positions of the map after normalisation and ReLU (Molchanov
    2016); taylor: (Σ a·∂L/∂a)², accumulated over mini-batches (Molchanov 2019). A group seen at several
    points sums them, each normalised to mean 1.
    """

    def __init__(self, model: nn.Module, groups: Sequence[UnitGroup], criterion: str):
        self.groups, self.criterion = groups, criterion
        self.sums: dict[Point, torch.Tensor] = {}
        self.seen = 0
        self._hooks: list[Any] = []
        for group in groups:
            for point in group.points:
                module = model.get_submodule(point.module)
                if point.side == "output":
                    self._hooks.append(module.register_forward_hook(self._output_hook(point)))
                else:
                    self._hooks.append(module.register_forward_pre_hook(self._input_hook(point)))

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def importance(self) -> dict[str, NDArray[np.float64]]:
        """Group → one value a unit [size], for groups that have points and were seen."""
        result = {}
        for group in self.groups:
            rows = []
            for point in group.points:
                if point in self.sums:
                    values = self.sums[point].double().cpu().numpy()
                    values = values.reshape(group.size, group.width).sum(1)
                    rows.append(values / max(values.mean(), 1e-30))
            if rows:
                result[group.name] = np.sum(rows, axis=0)
        return result

    def _output_hook(self, point: Point) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self._observe(point, output)

        return hook

    def _input_hook(self, point: Point) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._observe(point, inputs[0])

        return hook

    def _observe(self, point: Point, value: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        self.seen += 1
        others = (0, 2, 3) if value.dim() == 4 else tuple(range(value.dim() - 1))
        if self.criterion == "activation":
            self._add(point, value.detach().abs().sum(others, dtype=torch.float32))
        else:
            kept = value.detach()
            value.register_hook(  # type: ignore[no-untyped-call]
                lambda g: self._add(point, (kept * g).sum(others, dtype=torch.float32).square())
            )

    def _add(self, point: Point, value: torch.Tensor) -> None:
        self.sums[point] = self.sums[point] + value if point in self.sums else value


def weight_norms(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, NDArray[np.float64]]:
    """Each unit's L2 norm over the tensors that write it (axis 0 of weights), each normalised to mean 1."""
    tensors = dict(model.named_parameters())
    norms = {}
    for group in groups:
        total = np.zeros(group.size)
        for cut in group.cuts:
            if cut.axis == 0 and cut.tensor in tensors and tensors[cut.tensor].dim() > 1:
                index = cut.indices(np.arange(group.size))
                rows = (
                    tensors[cut.tensor].detach()[torch.from_numpy(index)].flatten(1).square().sum(1)
                )
                values = rows.double().numpy().reshape(group.size, -1).sum(1) ** 0.5
                total += values / max(values.mean(), 1e-30)
        norms[group.name] = total
    return norms
