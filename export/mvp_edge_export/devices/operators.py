"""A network as the list of what a runtime has to compute: data, without weights.

Every operator is a sum of products over a grid:

    conv       rows = pixels out,       outer = channels out, inner = channels in, taps = k · k
               (of a grouped or depthwise one, inner = channels in of one group)
    linear     rows = tokens,           outer = outputs,      inner = inputs,      taps = 1
    matmul     rows = heads · tokens,   outer = columns,      inner = summed over, taps = 1
    others     rows · outer values made, nothing summed (inner = 0)

Pools include the squeeze of squeeze-and-excitation; its product of two activations is a gate. Additions, batch
normalisation and activations that follow a convolution are not in the list, for runtimes compute them while they
write the convolution's output; but GELU and SiLU are, which ONNX Runtime computes by themselves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mvp_edge_export.errors import BadInput

Kind = Literal[
    "conv",
    "conv1x1",
    "stem",
    "linear",
    "matmul",
    "softmax",
    "norm",
    "gelu",
    "pool",
    "grouped",
    "depthwise",
    "silu",
    "gate",
]
"""stem: the first convolution, of the image itself, whose few channels fill no vector register. depthwise: a
convolution with one filter for each channel in. grouped: one that sums over the channels of a group (in files of
earlier versions, a depthwise one, too)."""

KINDS: tuple[Kind, ...] = get_args(Kind)
WEIGHTED: tuple[Kind, ...] = ("conv", "conv1x1", "stem", "linear", "grouped", "depthwise")
"""Kinds of operators that have weights."""
FIELDS = ("rows", "outer", "inner", "taps", "inputs")


@dataclass(frozen=True)
class Operators:
    """What one inference computes, operator by operator, in the order of the forward pass."""

    kinds: tuple[Kind, ...]
    shapes: NDArray[np.int64]
    """[operators, 5]: rows, outer, inner, taps, and inputs, the activation values that are read (of a
    matmul those of its first operand)."""

    @property
    def macs(self) -> NDArray[np.int64]:
        """Multiply-adds of each operator."""
        rows, outer, inner, taps, _ = self.shapes.T
        macs: NDArray[np.int64] = rows * outer * inner * taps
        return macs

    @property
    def weights(self) -> NDArray[np.int64]:
        """Numbers of weights that each operator reads."""
        _, outer, inner, taps, _ = self.shapes.T
        own = np.array([kind in WEIGHTED for kind in self.kinds])
        weights: NDArray[np.int64] = outer * inner * taps * own
        return weights

    def padded_macs(self, lanes: int) -> NDArray[np.int64]:
        """Multiply-adds as they are when channels are filled up to vectors of ``lanes``."""
        rows, outer, inner, taps, _ = self.shapes.T
        few = np.array(
            [kind in ("stem", "grouped", "depthwise") for kind in self.kinds], dtype=bool
        )
        summed = np.where(few, inner, _filled(inner, lanes))
        macs: NDArray[np.int64] = rows * _filled(outer, lanes) * summed * taps
        return macs

    def to_json(self) -> list[list[Any]]:
        """One list an operator: its kind and the five numbers."""
        return [[k, *s] for k, s in zip(self.kinds, self.shapes.tolist(), strict=True)]

    @classmethod
    def from_json(cls, rows: Iterable[Sequence[Any]]) -> "Operators":
        """The reverse of `to_json`; BadInput when it is not that."""
        rows = list(rows)
        try:
            unknown = {row[0] for row in rows} - set(KINDS)
            if unknown:
                raise ValueError(f"unknown kind {min(map(str, unknown))}")
            shapes = np.array([row[1:] for row in rows], np.int64).reshape(len(rows), len(FIELDS))
            if (shapes < 0).any():
                raise ValueError("a shape below zero")
        except (IndexError, TypeError, ValueError) as error:
            raise BadInput(f"operators: not what mvp-edge writes ({error})") from error
        return cls(tuple(row[0] for row in rows), shapes)


Row = tuple[Kind, int, int, int, int, int]
"""Kind, rows, outer, inner, taps, inputs."""


def conv_kind(kernel: Sequence[int], groups: int, channels: int) -> Kind:
    """Which kind of convolution it is, but for the first one of a network.

    Args:
        kernel: its height and width.
        groups: number of groups; a convolution of one group is a dense one.
        channels: channels in.
    """
    if groups > 1:
        return "depthwise" if groups == channels else "grouped"
    return "conv1x1" if prod(kernel) == 1 else "conv"


def elementwise(kind: Kind, shape: Sequence[int]) -> Row:
    """A row of an operator that computes each value of an activation of this shape from one value."""
    return kind, prod(shape) // shape[-1], shape[-1], 0, 1, prod(shape)


def pooled(before: Sequence[int], after: Sequence[int]) -> list[Row]:
    """The row of a pool between activations of these shapes; none of one that pools channels together."""
    channels = before[1] if len(before) == 4 else before[-1]
    if prod(after) % channels:
        return []
    return [("pool", prod(after) // channels, channels, 0, 1, prod(before))]


def table(rows: Sequence[Row]) -> Operators:
    """Rows as operators; the first convolution is the stem."""
    kinds: list[Kind] = [row[0] for row in rows]
    convolutions = ("conv", "conv1x1", "stem")
    first = next((i for i, kind in enumerate(kinds) if kind in convolutions), None)
    if first is not None:
        kinds[first] = "stem"
    shapes = np.array([row[1:] for row in rows], np.int64).reshape(len(rows), len(FIELDS))
    return Operators(tuple(kinds), shapes)


def _filled(channels: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    return -(-channels // lanes) * lanes
