"""How important each unit is: by its weights, or by what it does while the network trains."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.structure.units import Point, UnitGroup

Importance = Mapping[str, NDArray[np.float64]]
"""Unit group → one value a unit; the larger, the more important."""


def weight_norms(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, NDArray[np.float64]]:
    """Each unit's L2 norm, summed over the weights that produce it (axis 0), each normalised to mean 1."""
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


class Meter:
    """Accumulates each unit's importance while the network trains, as a context manager.

    activation: mean over images and positions of the map after normalisation and ReLU (Molchanov et al. 2016).
    taylor: (gate·∂L/∂gate)² = (Σ a·∂L/∂a)², accumulated over mini-batches (Molchanov et al. 2019).
    A group that is observed at several points has the sum of them, each normalised to mean 1.
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
        """One value a unit [size], for each group that has points and was observed."""
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
        others = tuple(axis for axis in range(value.dim()) if axis != point.axis % value.dim())
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


def least_important(
    importance: Importance, widths: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.int64]], dict[str, list[int]]]:
    """Each group's units that stay at these widths (ascending), and those that go (the least important first)."""
    stay, go = {}, {}
    for name, values in importance.items():
        order = np.argsort(values, kind="stable")
        surplus = max(0, len(order) - widths.get(name, len(order)))
        stay[name] = np.sort(order[surplus:])
        go[name] = [int(unit) for unit in order[:surplus]]
    return stay, go


def nested_ranking(
    removed: Mapping[str, Sequence[int]],
    kept: Mapping[str, NDArray[np.int64]],
    importance: Importance,
) -> dict[str, NDArray[np.int64]]:
    """All units of each group, the first to be removed first.

    The last m of them are the kept set at width m, so that one run serves every larger size.

    Args:
        removed: units of each group in the order of their removal.
        kept: the other units, ascending.
        importance: of the kept units; where a group has none, they stay in the order of their indices.
    """
    ranking = {}
    for name, units in kept.items():
        last = units[np.argsort(importance[name], kind="stable")] if name in importance else units
        ranking[name] = np.concatenate([np.asarray(removed[name], dtype=np.int64), last])
    return ranking
