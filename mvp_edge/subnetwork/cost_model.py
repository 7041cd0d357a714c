"""How the cost of a network follows from the widths of its unit groups, so that a candidate costs no forward pass.

Each cost is a sum of items (one layer's multiply-adds, one tensor's bytes …; memory: a peak of such sums), and each
item is a monomial in the groups' widths: a convolution is c · w_in · w_out, the scores of an attention are
c · heads. The exponents are read from one count of a network whose widths are distinct large primes: the prime
factors of an item name the groups that it depends on. After that a candidate costs a fraction of a millisecond.
Latency follows in the same way: the channel counts of the operators are such monomials, and a law of the device
gives their milliseconds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import family_of
from mvp_edge.structure.classifier import heads
from mvp_edge.structure.shapes import Shape, blank_copy, follow_shapes
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.cost import Bill, itemise
from mvp_edge.subnetwork.operators import operators
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput

Widths = Mapping[str, int]
"""Units kept in each group."""

_FIELDS = ("flops", "flops_norm", "params", "weights", "file", "activations")


class CostModel:
    """Cost, file size and operators of a network by the widths of its unit groups.

    Args:
        blank: the network with the task's head, on the meta device.
        groups: its unit groups.
        shape: one input image, (channels, height, width).
        batch: images in one pass.

    Raises:
        BadInput: its cost is not a sum of monomials of the widths; that of known families is.
    """

    def __init__(self, blank: nn.Module, groups: Sequence[UnitGroup], shape: Shape, batch: int):
        self._names = [group.name for group in groups]
        longest = max(max(tensor.shape, default=1) for tensor in blank.state_dict().values())
        primes = list(islice(primes_above(max(4096, longest, *shape, batch)), len(groups)))
        outline = widened(blank, groups, primes)
        self._stretched = itemise(outline, shape, batch)
        self._laws = {name: _monomials(getattr(self._stretched, name), primes) for name in _FIELDS}
        self._template = operators(outline, shape, batch)
        self._shapes = _monomials(self._template.shapes.ravel().tolist(), primes)
        whole = {group.name: group.size for group in groups}
        if self.bill(whole) != itemise(blank, shape, batch):
            raise BadInput(
                f"{type(blank).__name__} cannot be planned for: its cost does not follow from the "
                "widths of its unit groups"
            )

    def bill(self, widths: Widths) -> Bill:
        """The cost of a network of these widths, item by item."""
        vector = self._vector(widths)
        items: dict[str, Any] = {
            name: tuple((c * vector[at].prod(axis=1)).tolist())
            for name, (c, at) in self._laws.items()
        }
        return replace(self._stretched, **items)

    def operators(self, widths: Widths) -> Operators:
        """The operators of a network of these widths, from which laws of latency predict its time."""
        constants, at = self._shapes
        own = constants * self._vector(widths)[at].prod(axis=1)
        return Operators(self._template.kinds, own.reshape(self._template.shapes.shape))

    def _vector(self, widths: Widths) -> NDArray[np.int64]:
        return np.array([*(widths[name] for name in self._names), 1], dtype=np.int64)


def with_classes(blank: nn.Module, num_classes: int | None) -> nn.Module:
    """A network without weights, with classifiers for the task (a distilled DeiT has two)."""
    if num_classes is not None:
        for name, head in heads(blank).items():
            bias = head.bias is not None
            own = nn.Linear(head.in_features, num_classes, bias, device="meta")
            blank.set_submodule(name, own)
    return blank


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
        for one in group.follows:
            setattr(stretched.get_submodule(one.module), one.attribute, width)
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = stretched.get_submodule(path)
        new = torch.empty(shape, dtype=getattr(owner, leaf).dtype, device="meta")
        setattr(owner, leaf, nn.Parameter(new) if leaf in owner._parameters else new)
    follow_shapes(stretched)
    family_of(stretched).follow(stretched)
    return stretched


def primes_above(above: int) -> Iterator[int]:
    """Primes larger than ``above``, ascending."""
    for n in count(above + 1):
        if all(n % d for d in range(2, isqrt(n) + 1)):
            yield n
