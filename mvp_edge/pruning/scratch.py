"""Pruning from scratch: the zoo's own models, and the baselines.

    ifp           iterative filter pruning: fine-tune, drop the least important, repeat   (paper, Alg. 2)
    conventional  train the whole network, cut it once by the size of its weights, train on
    magnitude     one cut by the size of the backbone's weights, then fine-tuning
    random        one cut by lot, then fine-tuning

Automatic head & node pruning, the ViT's own, is in `ahnp`; `distill` is `magnitude` with a teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.pruning.batches import SHRINKING
from mvp_edge.pruning.finetune import estimate_statistics, initialise_head
from mvp_edge.pruning.problem import Problem, Pruned, Training
from mvp_edge.subnetwork.subnet import extract
from mvp_edge.subnetwork.units import Point, UnitGroup, unit_groups
from mvp_edge_export.errors import BadInput

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


def conventional(problem: Problem) -> Pruned:
    """Half of the steps on the whole network, one cut by the L2 norm of its weights, the other half after it.

    Train, prune, fine-tune is how networks are mostly pruned (Han et al. 2015; filters: Li et al. 2017).
    """
    half = problem.recipe.steps // 2
    training = Training(problem, problem.backbone.with_head(problem.classes), {}, "conventional")
    if not training.restore():
        prepare(training)
        training.save()
    while training.step < problem.recipe.steps or not training.cut:
        if training.step == half and not training.cut:
            importance = weight_norms(training.model, unit_groups(training.model, problem.policy))
            training.shrink(*least_important(importance, problem.widths))
        upto = half if training.step < half else problem.recipe.steps
        training.run(min(training.step + SAVE_EVERY, upto))
        training.save()
    return training.finished(
        weight_norms(training.model, unit_groups(training.model, problem.policy))
    )


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

    A snapshot ratio replaces the nearest drop's own ratio, so that the network at exactly that ratio
    exists, and is fine-tuned until the next drop.
    Raises BadInput for a snapshot that does not lie on the way, or steps too few for all of them.
    """
    final = min((width / sizes[name] for name, width in widths.items()), default=1.0)
    wanted = sorted(set(snapshots), reverse=True)
    for ratio in wanted:
        if not final < ratio < 1:
            raise BadInput(f"a snapshot at {ratio:g} does not lie between {final:g} and 1")
    if final >= 1 or steps < 2:
        return [Drop(0, dict(widths))]
    span = max(1, int(steps * SHRINKING))
    if span <= len(wanted):
        raise BadInput(f"{steps} steps are too few for {len(wanted)} snapshots on the way")
    count = max(1, len(wanted) + 1, round(np.log(final) / np.log(1 - DROP_SHARE)))
    count = min(span, count)
    ratios = [final ** (k / count) for k in range(1, count)]
    for ratio in wanted:
        if ratio not in ratios:
            own = [r for r in ratios if r not in wanted]
            ratios[ratios.index(min(own, key=lambda r: abs(r - ratio)))] = ratio
    drops: list[Drop] = []
    now = {name: sizes[name] for name in widths}
    for k, ratio in enumerate(sorted(ratios, reverse=True), start=1):
        share = np.log(ratio) / np.log(final)
        for name, width in widths.items():
            size = sizes[name]
            left = ratio if ratio in wanted else (width / size) ** share
            now[name] = min(now[name], max(width, int(size * left + 0.5)))
        at = round(span * k / count)
        drops.append(Drop(at, dict(now), ratio if ratio in wanted else None))
    return [*drops, Drop(span, dict(widths))]


def ifp(problem: Problem, criterion: str = "activation") -> Pruned:
    """Iterative filter pruning, ``criterion`` "activation" or "taylor"; the network shrinks physically.

    The importance is accumulated over the training batches of the last steps before each drop (about
    one pass over the data), so it costs no extra forward passes.
    """
    sizes = {g.name: g.size for g in problem.groups}
    drops = drop_schedule(sizes, problem.widths, problem.recipe.steps, problem.snapshots)
    full = problem.backbone.with_head(problem.classes)
    training = Training(problem, full, {}, f"ifp {criterion}")
    if not training.restore():
        prepare(training)
    one_pass = max(1, -(-len(problem.train.labels) // training.batches.size))
    for before, drop in zip((None, *drops[:-1]), drops, strict=True):
        if drop.step <= training.step and training.step > 0:
            continue
        training.run(max(training.step, drop.step - one_pass))
        importance = _metered(training, criterion, drop.step)
        if before is not None and before.snapshot is not None:
            training.snapshot(before.snapshot)
        training.shrink(*least_important(importance, drop.widths))
        training.save()
    while training.step < problem.recipe.steps - one_pass:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps - one_pass))
        training.save()
    return training.finished(_metered(training, criterion, problem.recipe.steps))


def _metered(training: Training, criterion: str, until: int) -> dict[str, NDArray[np.float64]]:
    """Train up to ``until`` and say what each unit was worth; by its weights where there is no step."""
    groups = unit_groups(training.model, training.problem.policy)
    with Meter(training.model, groups, criterion) as meter:
        training.run(until)
    return meter.importance() or weight_norms(training.model, groups)


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
    2016); taylor: (gate·∂L/∂gate)² = (Σ a·∂L/∂a)², accumulated over mini-batches (Molchanov 2019). A
    group seen at several points sums them, each normalised to mean 1.
    """

    def __init__(self, model: nn.Module, groups: Sequence[UnitGroup], criterion: str):
        self.model, self.groups, self.criterion = model, groups, criterion
        self.sums: dict[Point, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for group in self.groups:
            for point in group.points:
                self._hooks.append(self._watch(point, group.width))
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
                    rows.append(values / max(values.mean(), 1e-30))
            if rows:
                result[group.name] = np.sum(rows, axis=0)
        return result

    def _watch(self, point: Point, width: int) -> Any:
        def seen(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any = None) -> None:
            if torch.is_grad_enabled():  # not in validation
                self._observe(point, width, inputs[0] if output is None else output)

        module = self.model.get_submodule(point.module)
        if point.side == "output":
            return module.register_forward_hook(seen)
        return module.register_forward_pre_hook(seen)

    def _observe(self, point: Point, width: int, value: torch.Tensor) -> None:
        others = (0, 2, 3) if value.dim() == 4 else tuple(range(value.dim() - 1))
        seen = value.detach()
        if self.criterion == "activation":
            self._add(point, _by_unit(seen.abs().sum(others, dtype=torch.float32), width))
            return

        def gated(gradient: torch.Tensor) -> None:
            effect = (seen * gradient).sum(others, dtype=torch.float32)
            self._add(point, _by_unit(effect, width).square())

        value.register_hook(gated)  # type: ignore[no-untyped-call]

    def _add(self, point: Point, value: torch.Tensor) -> None:
        self.sums[point] = self.sums[point] + value if point in self.sums else value


def _by_unit(channels: torch.Tensor, width: int) -> torch.Tensor:
    """[units · width] summed to [units]."""
    return channels.reshape(-1, width).sum(1)


def weight_norms(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, NDArray[np.float64]]:
    """Each unit's L2 norm over the tensors that write it (axis 0 of weights), each normalised to mean 1."""
    tensors = dict(model.named_parameters())
    norms = {}
    for group in groups:
        total = np.zeros(group.size)
        for cut in group.cuts:
            if cut.axis == 0 and cut.tensor in tensors and tensors[cut.tensor].dim() > 1:
                index = cut.indices(np.arange(group.size))
                rows = tensors[cut.tensor].detach().cpu()[torch.from_numpy(index)]
                squares = rows.flatten(1).square().sum(1).double().numpy()
                values = squares.reshape(group.size, -1).sum(1) ** 0.5
                total += values / max(values.mean(), 1e-30)
        norms[group.name] = total
    return norms
