"""From a device's budgets to the width of every unit group, before any training.

uniform     the largest keep ratio, at most the ceiling, whose network meets every budget
last resort groups that are cut only where all others are at their minimum and it is still too large (a ViT's
            head_dim)
fill        groups are widened one rounding step at a time while every budget holds
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.structure.shapes import Shape, blank_copy
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.cost_model import CostModel, Widths, with_classes
from mvp_edge_export.devices.latency import LatencyLaw, Prediction, fastest, latency_laws
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.verified import Cost

GRID = 10_000
"""Keep ratios are searched in steps of 1/GRID."""

UNITS = {
    "flops": "multiply-adds",
    "params": "parameters",
    "file": "bytes",
    "memory": "bytes",
    "latency.p50": "ms",
    "latency.p90": "ms",
}
"""Budgets that are checked before training → their units; latency only where a law of it is known."""

LADDER = 16
"""The largest network of a front costs at least this many times the smallest."""


@dataclass(frozen=True)
class Plan:
    """The widths that meet a device's budgets, and what they are predicted to cost."""

    widths: dict[str, int]
    """Units kept in each group."""
    keep: float
    """The uniform keep ratio behind the widths: the ceiling, or the largest within the budgets."""
    binding: str | None
    """The budget that asked for less than the ceiling; None when none did."""
    predicted: Cost
    """Counted on shapes; the activations at the profile's batch."""
    file: int
    """Predicted bytes of the exported model."""
    latency: Prediction | None
    """In the runtime in which it is fastest; None where nothing is known of the device's speed."""
    limits: dict[str, float]
    """The profile's budgets that are checked here; a null budget is absent."""
    room: "Plan | None" = None
    """What the budgets would allow without the ceiling; None when that is nothing more."""

    @property
    def reached(self) -> dict[str, float]:
        """The predicted figure of each kind of budget, checked or not."""
        return _reached(self.predicted, self.file, self.latency)

    def to_json(self) -> dict[str, Any]:
        """Everything but the widths, for run.json and the report."""
        return {
            "keep": self.keep,
            "binding": self.binding,
            "predicted": self.reached,
            "limits": self.limits,
            "room": self.room.to_json() if self.room else None,
        }


class Sizer:
    """The networks of one backbone, their costs, and a profile's budgets: reusable for several keep ratios.

    Args:
        model: the backbone; only its shapes matter (it may lie on the meta device).
        policy: the pruning policy; None is the family's default.
        shape: one input image, (channels, height, width).
        profile: budgets, rounding and batch.
        num_classes: classes of the task; None counts the head that the model has.
        laws: laws of the device's latency; None: what its profile says.

    Raises:
        BadInput: the model cannot be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | None,
        shape: Shape,
        profile: DeviceProfile,
        num_classes: int | None = None,
        laws: Sequence[LatencyLaw] | None = None,
    ) -> None:
        blank = with_classes(blank_copy(model), num_classes)
        self.groups = unit_groups(blank, policy)
        self.profile = profile
        self.laws = tuple(latency_laws(profile) if laws is None else laws)
        self._costs = CostModel(blank, self.groups, shape, profile.input.batch)
        self.limits = {
            name: limit for name, limit in _limits(profile) if self.laws or "." not in name
        }

    def with_laws(self, laws: Sequence[LatencyLaw]) -> "Sizer":
        """The same sizer for other laws of latency."""
        other = copy(self)
        other.laws = tuple(laws)
        return other

    def solve(self, ceiling: float) -> Plan:
        """The widths of the largest network that meets the profile's budgets.

        Filters and MLP nodes are rounded down to the profile's ``round_to`` and never go below its
        ``min_channels``; every block keeps a head; groups of the last resort (the dimensions of
        the heads) are cut only when nothing else is left to cut. Where no budget binds, the result
        is the network at the ceiling.

        Args:
            ceiling: the largest keep ratio wanted, in (0, 1].

        Raises:
            BudgetMissed: even the smallest network misses a budget.
            BadInput: the ceiling is out of range.
        """
        _check_ratio(ceiling)
        plan = self._largest_within(ceiling)
        if plan.binding is None and plan.limits:
            more = self._largest_within(1.0)
            if more.widths != plan.widths:
                plan = replace(plan, room=more)
        return plan

    def ladder(self, ceiling: float, count: int, *, small: float) -> list[float]:
        """Keep ratios of networks from small to what the budgets allow, their costs a geometric series.

        The last is ``ceiling``. The first costs a sixteenth of it, or as much as the network at keep ratio
        ``small`` if that is less, but never less than the smallest network possible. Ratios whose rounded widths
        are the same count as one, so there may be fewer than ``count``.

        Raises:
            BudgetMissed: even the smallest network misses a budget.
        """
        top = self._largest_within(ceiling)
        most, steps = self.price(top.widths), round(top.keep * GRID)
        least = self.price(self.uniform(0))
        if least >= most:
            return [ceiling]
        low = max(least, min(most / LADDER, self.price(self.uniform(small))))
        rungs = {tuple(top.widths.values()): ceiling}
        for price in np.geomspace(low, most, count)[-2::-1]:
            step = largest(steps, lambda n: self.price(self.uniform(n / GRID)) <= price)  # noqa: B023
            rungs.setdefault(tuple(self.uniform(step / GRID).values()), step / GRID)
        return sorted(rungs.values())

    def _largest_within(self, ceiling: float) -> Plan:
        """The largest network under ``ceiling`` that meets the budgets, by the stages named above."""
        top = self.uniform(ceiling)
        if self.fits(top):
            return self._plan(top, ceiling, binds=False)
        if self.fits(self.uniform(0)):
            steps = largest(int(ceiling * GRID), lambda n: self.fits(self.uniform(n / GRID)))
            return self._plan(self.fill(self.uniform(steps / GRID), top), steps / GRID, binds=True)
        if not self.fits(self.uniform(0, inside=0)):
            raise self.infeasible()
        least = self.uniform(0)
        steps = largest(int(ceiling * GRID), lambda n: self.uniform(n / GRID) == least)
        inside = largest(GRID, lambda n: self.fits(self.uniform(0, inside=n / GRID)))
        widths = self.fill(self.uniform(0, inside=inside / GRID), top)
        return self._plan(widths, steps / GRID, binds=True)

    def uniform(self, keep: float, inside: float = 1.0) -> dict[str, int]:
        """Each group's width at ``keep``, rounded; ``inside`` is that of the last resort."""
        widths = {}
        for group in self.groups:
            if group.last_resort:
                widths[group.name] = _share(inside, group.size)
            else:
                widths[group.name] = self._rounded(group, _share(keep, group.size))
        return widths

    def price(self, widths: Widths) -> float:
        """The cost that sizes are compared by: milliseconds where they are limited, else multiply-adds."""
        cost, _, latency = self.predict(widths)
        timed = latency is not None and any(name.startswith("latency.") for name in self.limits)
        return latency.p50 if timed and latency is not None else cost.flops

    def predict(self, widths: Widths) -> tuple[Cost, int, Prediction | None]:
        """Cost, bytes of the exported file, and latency of a network of these widths."""
        bill = self._costs.bill(widths)
        latency = fastest(self.laws, self._costs.operators(widths))
        return bill.cost(), sum(bill.file) + bill.file_overhead, latency

    def fits(self, widths: Widths) -> bool:
        """Whether every budget of the profile holds."""
        return not self.missed(widths)

    def missed(self, widths: Widths) -> dict[str, float]:
        """The budgets that do not hold, each with the figure that is reached."""
        reached = _reached(*self.predict(widths))
        return {name: reached[name] for name, limit in self.limits.items() if reached[name] > limit}

    def fill(self, widths: dict[str, int], top: Widths) -> dict[str, int]:
        """Widen one group by one quantum at a time, the relatively narrowest first, while it fits.

        Costs grow with every width, so a group that does not fit now will not fit later.
        """
        unfilled = [group for group in self.groups if widths[group.name] < top[group.name]]
        while unfilled:
            group = min(unfilled, key=lambda g: widths[g.name] / g.size)
            name, quantum = group.name, group.quantum(self.profile.prune.round_to)
            width = min((widths[name] // quantum + 1) * quantum, top[name])
            wider = {**widths, name: width}
            fits = self.fits(wider)
            if fits:
                widths = wider
            if not fits or width == top[name]:
                unfilled.remove(group)
        return widths

    def infeasible(self) -> BudgetMissed:
        """The error: which budgets are missed, by how much, and the smallest network possible."""
        smallest = self.uniform(0, inside=0)
        cost, file, latency = self.predict(smallest)
        missed = "; ".join(
            f"{name} {self.limits[name]:,.10g} {UNITS[name]}, but the smallest network needs {needs:,.10g} "
            f"({needs / self.limits[name]:.2f} ×{', ' + str(latency.by) if latency and '.' in name else ''})"
            for name, needs in self.missed(smallest).items()
        )
        figures = (
            f"{cost.flops:,} multiply-adds, {cost.params:,} parameters, a file of {file:,} bytes, "
        )
        return BudgetMissed(
            f"profile {self.profile.id}: budgets that cannot be met: {missed}. Smallest network "
            f"possible: {figures}{cost.memory_bytes:,} bytes of memory. Raise the budget, lower "
            f"prune.min_channels ({self.profile.prune.min_channels}), or use smaller images or a "
            "smaller backbone"
        )

    def _plan(self, widths: dict[str, int], keep: float, *, binds: bool) -> Plan:
        cost, file, latency = self.predict(widths)
        reached = _reached(cost, file, latency)
        tightest = max(
            self.limits, key=lambda name: reached[name] / self.limits[name], default=None
        )
        return Plan(widths, keep, tightest if binds else None, cost, file, latency, self.limits)

    def _rounded(self, group: UnitGroup, width: int) -> int:
        """Down to a multiple of the quantum, not below min_channels; a whole group stays whole."""
        if not group.rounded or width == group.size:
            return width
        multiple = width - width % group.quantum(self.profile.prune.round_to)
        return max(multiple, min(group.quantum(self.profile.prune.min_channels), group.size))


def exact_widths(groups: Sequence[UnitGroup], keep: float) -> dict[str, int]:
    """Unrounded widths for zoo entries and studies: keep · size, half up, at least 1.

    Groups of the last resort stay whole.
    """
    _check_ratio(keep)
    return {g.name: g.size if g.last_resort else _share(keep, g.size) for g in groups}


def _limits(profile: DeviceProfile) -> Iterator[tuple[str, float]]:
    """The budgets that the profile sets, by the names of `UNITS`."""
    for name in UNITS:
        value: Any = profile.budgets
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            yield name, value


def _reached(cost: Cost, file: int, latency: Prediction | None) -> dict[str, float]:
    reached: dict[str, float] = {
        "flops": cost.flops,
        "params": cost.params,
        "file": file,
        "memory": cost.memory_bytes,
    }
    if latency is not None:
        reached |= {"latency.p50": latency.p50, "latency.p90": latency.p90}
    return reached


def _share(keep: float, size: int) -> int:
    """The units of ``size`` that ``keep`` asks for: half up, at least 1."""
    return max(1, int(keep * size + 0.5))


def largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n in 0 … most for which ``holds``, which is true at 0 and up to some n."""
    return bisect_left(range(most + 1), True, key=lambda n: not holds(n)) - 1


def _check_ratio(keep: float) -> None:
    if not 0 < keep <= 1:
        raise BadInput(f"the keep ratio is {keep}: it must be above 0 and at most 1")
