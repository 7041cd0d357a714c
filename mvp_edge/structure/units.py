"""What can be pruned, declared as data.

A *unit* is one filter, head or MLP node. A *unit group* is a set of units of one layer (or, for a
residual stream, of one stage) that are kept or removed one by one. A *cut* names the slice of a
tensor that goes with each unit. The families in `mvp_edge.families` yield these data, `subnet` interprets them.

    layer1.stream ─┬─ conv1.weight          axis 0     the stem writes the stream
                   ├─ bn1.{weight, …}       axis 0
                   ├─ layer1.0.conv1.weight axis 1     every block reads it …
                   ├─ layer1.0.conv2.weight axis 0     … and adds to it
                   └─ layer2.0.conv1.weight axis 1     as does the next stage
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """The slice of one tensor's axis that belongs to each unit of a group.

    Unit k owns the indices ``offset + k·width + i + r·period`` for ``i < width``, ``r < repeat``:
    a filter has width 1; a head of a fused qkv has width head_dim and one cut for each of q, k, v;
    a row of every head has width 1, repeat = heads, period = head_dim.
    """

    tensor: str
    axis: int
    offset: int = 0
    width: int = 1
    repeat: int = 1
    period: int = 0

    def indices(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Axis indices owned by ``units`` [m] as one flat array [m · width · repeat]."""
        inner = np.arange(self.width) + self.period * np.arange(self.repeat)[:, None]
        return (self.offset + self.width * units[:, None] + inner.reshape(-1)).reshape(-1)


@dataclass(frozen=True)
class Point:
    """Where a group's units can be observed or scaled: a module's output, or its first input."""

    module: str
    side: Literal["output", "input"] = "output"
    axis: int = 1
    """The axis of the channels: 1 of a feature map, −1 of a sequence of tokens."""


@dataclass(frozen=True)
class Rescaled:
    """A cut whose values are multiplied by (kept / size) ** ``power`` when only ``kept`` units stay.

    Attention divides by √head_dim, so its queries are multiplied by √(kept / size). A layer that divides by a mean
    over its channels then divides by more, so its scale is multiplied by size / kept.
    """

    cut: Cut
    power: float


@dataclass(frozen=True)
class Follows:
    """A size attribute of a module that is set to the number of units that stay."""

    module: str
    attribute: str
    """num_heads, head_dim."""


@dataclass(frozen=True)
class UnitGroup:
    """A set of units that are kept or removed one by one."""

    name: str
    kind: str
    """What a unit is called in files and reports: "filter", "head", "node" or "head_dim"."""
    size: int
    cuts: tuple[Cut, ...]
    points: tuple[Point, ...] = ()
    width: int = 1
    """Channels of a unit at its points: 1 for a filter or node, head_dim for a head."""
    rescaled: tuple[Rescaled, ...] = ()
    """Weights that make up for what the network divides by when units are removed."""
    follows: tuple[Follows, ...] = ()
    """What else follows a cut; the size attributes of PyTorch's own layers follow their weights by themselves."""
    rounded: bool = True
    """Whether its width is rounded to the device's multiple of channels."""
    last_resort: bool = False
    """Whether it stays whole as long as cutting the other groups is enough."""

    def quantum(self, channels: int) -> int:
        """The units that fill ``channels`` channels: steps in which a rounded width grows."""
        return -(-channels // self.width) if self.rounded else 1
