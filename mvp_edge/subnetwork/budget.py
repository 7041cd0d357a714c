"""From a device's budgets to the width of every unit group, before any training.

    uniform     the largest keep ratio, at most the ceiling, whose network meets every budget
    head_dim    (ViT) when heads and nodes are at their minimum and it is still too large
    fill        single groups get one quantum more while every budget holds

Each cost is a sum of items (one layer's multiply-adds, one tensor's bytes …; memory: a peak of such
sums), and each item is a monomial in the groups' widths: a convolution is c · w_in · w_out, the
scores of an attention are c · heads. The exponents are read from one count of a network whose
widths are distinct large primes: the prime factors of an item name the groups that it depends on.
After that a candidate costs a fraction of a millisecond. Latency follows in the same way: the channel
counts of its operators are such monomials, and the device's law gives the milliseconds.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from math import isqrt
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.subnetwork.cost import Bill, Shape, blank_copy, itemise
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.units import UnitGroup, unit_groups
from mvp_edge_export.devices.latency import LatencyLaw, Prediction, fastest, latency_laws
from mvp_edge_export.devices.operators import Operators
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
"""The budgets that bind before training, and what they count; latency where a law of it is known."""

LADDER = 16
"""The largest network of a front costs at least this many times the smallest."""

UNROUNDED = ("head", "head_dim")
"""Kinds of units that the profile's channel rounding does not concern."""

Widths = Mapping[str, int]


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


def solve(
    model: nn.Module,
    policy: str | None,
    shape: Shape,
    profile: DeviceProfile,
    ceiling: float,
    num_classes: int | None = None,
    laws: Sequence[LatencyLaw] | None = None,
) -> Plan:
    """The widths of the largest network that meets the profile's budgets.

    Filters and MLP nodes are rounded down to the profile's ``round_to`` and never go below its
    ``min_channels``; every block keeps a head; the dimensions of the heads are cut only when
    nothing else is left to cut. With no budget in the way the result is the ceiling's network.

    Args:
        model: the backbone; only its shapes matter (it may lie on the meta device).
        policy: the pruning policy; None is the family's default.
        shape: one input image, (channels, height, width).
        profile: budgets, rounding and batch.
        ceiling: the largest keep ratio wanted, in (0, 1].
        num_classes: classes of the task; None counts the head that the model has.
        laws: of the device's latency; what its profile says if None.

    Raises:
        BudgetMissed: even the smallest network misses a budget.
        BadInput: the ceiling is out of range, or the model cannot be pruned.
    """
    if not 0 < ceiling <= 1:
        raise BadInput(f"the keep ratio is {ceiling}: it must be above 0 and at most 1")
    laws = latency_laws(profile) if laws is None else laws
    search = _Search(model, policy, shape, profile, num_classes, laws)
    plan = search.plan(ceiling)
    if plan.binding is None and plan.limits:
        more = search.plan(1.0)
        if more.widths != plan.widths:
            plan = replace(plan, room=more)
    return plan


def ladder(
    model: nn.Module,
    policy: str | None,
    shape: Shape,
    profile: DeviceProfile,
    ceiling: float,
    count: int,
    *,
    small: float,
    num_classes: int | None = None,
) -> list[float]:
    """Keep ratios of networks from small to what the budgets allow, their costs a geometric series.

    The last is ``ceiling``; the first costs a sixteenth of it, or what the network at ``small`` does if
    that is less (never less than the smallest network possible). Ratios between which the rounded widths do
    not differ are one, so there may be fewer than ``count``.

    Raises:
        BudgetMissed: even the smallest network misses a budget.
    """
    search = _Search(model, policy, shape, profile, num_classes, latency_laws(profile))
    top = search.plan(ceiling)
    most, steps = search.price(top.widths), round(top.keep * GRID)
    least = search.price(search.uniform(0))
    if least >= most:
        return [ceiling]
    low = max(least, min(most / LADDER, search.price(search.uniform(small))))
    rungs = {tuple(top.widths.values()): ceiling}
    for price in np.geomspace(low, most, count)[-2::-1]:
        step = _largest(steps, lambda n: search.price(search.uniform(n / GRID)) <= price)  # noqa: B023
        rungs.setdefault(tuple(search.uniform(step / GRID).values()), step / GRID)
    return sorted(rungs.values())


def exact_widths(groups: Sequence[UnitGroup], keep: float) -> dict[str, int]:
    """Unrounded widths for zoo entries and studies: keep · size, half up, at least 1.

    The dimensions of the heads stay whole.
    """
    if not 0 < keep <= 1:
        raise BadInput(f"the keep ratio is {keep}: it must be above 0 and at most 1")
    return {g.name: g.size if g.kind == "head_dim" else _share(keep, g.size) for g in groups}


class _Search:
    """One model, one profile: the candidates and their costs."""

    def __init__(
        self,
        model: nn.Module,
        policy: str | None,
        shape: Shape,
        profile: DeviceProfile,
        num_classes: int | None,
        laws: Sequence[LatencyLaw],
    ) -> None:
        blank = _with_classes(blank_copy(model), num_classes)
        self.groups = unit_groups(blank, policy)
        self.bill = _laws(blank, self.groups, shape, profile.input.batch, laws)
        self.profile = profile
        self.limits = {name: limit for name, limit in _limits(profile) if laws or "." not in name}

    def plan(self, ceiling: float) -> Plan:
        """The largest network under ``ceiling`` that fits, by the stages named above."""
        top = self.uniform(ceiling)
        if self.fits(top):
            return self._plan(top, ceiling, binds=False)
        if self.fits(self.uniform(0)):
            steps = _largest(int(ceiling * GRID), lambda n: self.fits(self.uniform(n / GRID)))
            return self._plan(self.fill(self.uniform(steps / GRID), top), steps / GRID, binds=True)
        if not self.fits(self.uniform(0, inside=0)):
            raise self.infeasible()
        least = self.uniform(0)
        steps = _largest(int(ceiling * GRID), lambda n: self.uniform(n / GRID) == least)
        inside = _largest(GRID, lambda n: self.fits(self.uniform(0, inside=n / GRID)))
        widths = self.fill(self.uniform(0, inside=inside / GRID), top)
        return self._plan(widths, steps / GRID, binds=True)

    def uniform(self, keep: float, inside: float = 1.0) -> dict[str, int]:
        """Each group's width at ``keep``, rounded; ``inside`` is the keep ratio of head_dim."""
        widths = {}
        for group in self.groups:
            if group.kind == "head_dim":
                widths[group.name] = _share(inside, group.size)
            else:
                widths[group.name] = self._rounded(group, _share(keep, group.size))
        return widths

    def price(self, widths: Widths) -> float:
        """What sizes are set apart by: milliseconds where they are limited, else multiply-adds."""
        cost, _, latency = self.bill(widths)
        timed = latency is not None and any(name.startswith("latency.") for name in self.limits)
        return latency.p50 if timed and latency is not None else cost.flops

    def fits(self, widths: Widths) -> bool:
        """Whether every budget of the profile holds."""
        return not self.missed(widths)

    def missed(self, widths: Widths) -> dict[str, float]:
        """The budgets that do not hold, with the figure that they would have to allow."""
        reached = _reached(*self.bill(widths))
        return {name: reached[name] for name, limit in self.limits.items() if reached[name] > limit}

    def fill(self, widths: dict[str, int], top: Widths) -> dict[str, int]:
        """Widen one group by one quantum at a time, the relatively narrowest first, while it fits.

        Costs grow with every width, so a group that does not fit now will not fit later.
        """
        unfilled = [group for group in self.groups if widths[group.name] < top[group.name]]
        while unfilled:
            group = min(unfilled, key=lambda g: widths[g.name] / g.size)
            name, quantum = group.name, self._quantum(group)
            width = min((widths[name] // quantum + 1) * quantum, top[name])
            wider = {**widths, name: width}
            fits = self.fits(wider)
            if fits:
                widths = wider
            if not fits or width == top[name]:
                unfilled.remove(group)
        return widths

    def infeasible(self) -> BudgetMissed:
        """The error that names what is missed, by how much, and the smallest network."""
        smallest = self.uniform(0, inside=0)
        cost, file, latency = self.bill(smallest)
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
        cost, file, latency = self.bill(widths)
        reached = _reached(cost, file, latency)
        tightest = max(
            self.limits, key=lambda name: reached[name] / self.limits[name], default=None
        )
        return Plan(widths, keep, tightest if binds else None, cost, file, latency, self.limits)

    def _rounded(self, group: UnitGroup, width: int) -> int:
        """Down to a multiple of the quantum, not below min_channels; a whole group stays whole."""
        if group.kind in UNROUNDED or width == group.size:
            return width
        multiple = width - width % self._quantum(group)
        return max(multiple, min(self.profile.prune.min_channels, group.size))

    def _quantum(self, group: UnitGroup) -> int:
        return 1 if group.kind in UNROUNDED else self.profile.prune.round_to


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


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n in 0 … most for which ``holds``, which is true at 0 and up to some n."""
    return bisect_left(range(most + 1), True, key=lambda n: not holds(n)) - 1


def _with_classes(blank: nn.Module, num_classes: int | None) -> nn.Module:
    """The weightless network with the task's classifier (both of them for a distilled DeiT)."""
    if num_classes is not None:
        found: Any = cast(Any, blank).get_classifier()
        classifiers = found if isinstance(found, tuple) else (found,)
        for name, module in list(blank.named_modules()):
            if isinstance(module, nn.Linear) and any(module is one for one in classifiers):
                bias = module.bias is not None
                blank.set_submodule(
                    name, nn.Linear(module.in_features, num_classes, bias, device="meta")
                )
    return blank


def _laws(
    blank: nn.Module,
    groups: Sequence[UnitGroup],
    shape: Shape,
    batch: int,
    latency_laws: Sequence[LatencyLaw],
) -> Callable[[Widths], tuple[Cost, int, Prediction | None]]:
    """How cost, file size and latency follow from the widths.

    Raises BadInput where they are not monomials of the widths; known families are.
    """
    longest = max(max(tensor.shape, default=1) for tensor in blank.state_dict().values())
    primes = list(islice(primes_above(max(4096, longest, *shape, batch)), len(groups)))
    outline = widened(blank, groups, primes)
    stretched = itemise(outline, shape, batch)
    fields = ("flops", "flops_norm", "params", "weights", "file", "activations")
    laws = {name: _monomials(getattr(stretched, name), primes) for name in fields}

    template = operators(outline, shape, batch)
    shapes, at_shapes = _monomials(template.shapes.ravel().tolist(), primes)

    def vector_of(widths: Widths) -> NDArray[np.int64]:
        return np.array([*(widths[group.name] for group in groups), 1], dtype=np.int64)

    def bill(widths: Widths) -> Bill:
        vector = vector_of(widths)
        items: dict[str, Any] = {
            name: tuple((c * vector[at].prod(axis=1)).tolist()) for name, (c, at) in laws.items()
        }
        return replace(stretched, **items)

    if bill({group.name: group.size for group in groups}) != itemise(blank, shape, batch):
        raise BadInput(
            f"{type(blank).__name__} cannot be planned for: its cost does not follow from the "
            "widths of its unit groups"
        )

    def law(widths: Widths) -> tuple[Cost, int, Prediction | None]:
        found = bill(widths)
        own = (shapes * vector_of(widths)[at_shapes].prod(axis=1)).reshape(template.shapes.shape)
        latency = fastest(latency_laws, Operators(template.kinds, own))
        return found.cost(), sum(found.file) + found.file_overhead, latency

    return law


def _monomials(
    items: Sequence[int], primes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each item as c · Π w: the constants [items] and the factors' groups [items, most factors].

    Unused places name the group after the last one, whose width is 1.
    """
    constants, factors = [], []
    for item in items:
        found = []
        for group, prime in enumerate(primes):
            while item and item % prime == 0:
                item //= prime
                found.append(group)
        constants.append(item)
        factors.append(found)
    most = max(map(len, factors), default=0)
    padded = [found + [len(primes)] * (most - len(found)) for found in factors]
    return np.array(constants, np.int64), np.array(padded, np.int64).reshape(len(items), most)


def widened(blank: nn.Module, groups: Sequence[UnitGroup], widths: Sequence[int]) -> nn.Module:
    """The network with these widths, which may be larger than its own: shapes only."""
    stretched = blank_copy(blank)
    full = {name: t.shape for name, t in (*blank.named_parameters(), *blank.named_buffers())}
    shapes = {name: list(shape) for name, shape in full.items()}
    for group, width in zip(groups, widths, strict=True):
        owned: Counter[tuple[str, int]] = Counter()
        for cut in group.cuts:
            owned[cut.tensor, cut.axis] += cut.width * cut.repeat * group.size
        for (tensor, axis), length in owned.items():
            if length != full[tensor][axis]:  # an axis shared side by side is no monomial
                raise BadInput(f"{group.name} owns a part of {tensor}: it cannot be planned for")
            shapes[tensor][axis] = shapes[tensor][axis] // group.size * width
        if group.attention is not None:
            attention: Any = stretched.get_submodule(group.attention)
            setattr(attention, "num_heads" if group.kind == "head" else "head_dim", width)
            attention.attn_dim = attention.num_heads * attention.head_dim
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = stretched.get_submodule(path)
        new = torch.empty(shape, dtype=getattr(owner, leaf).dtype, device="meta")
        setattr(owner, leaf, nn.Parameter(new) if leaf in owner._parameters else new)
    return stretched


def primes_above(above: int) -> Iterator[int]:
    """Primes larger than ``above``, ascending."""
    for n in count(above + 1):
        if all(n % d for d in range(2, isqrt(n) + 1)):
            yield n
