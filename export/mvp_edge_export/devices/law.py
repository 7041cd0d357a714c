"""How long a network takes, as a sum that can be read: a few figures for each sort of operator.

    ms = run + Σ over operators of  each + gmacs · padded multiply-adds + read · bytes read
                                         + written · bytes written + weights · bytes of weights
                                         + unrolled · bytes of the unrolled input

It is a roofline whose slopes add up instead of the larger one counting: a runtime overlaps loads and
arithmetic only in part. Channels count as filled up to whole vectors, for that is what kernels compute.

A convolution whose channels are no multiple of four is a sort of its own: ONNX Runtime (1.32, seen in
its optimised graphs) leaves it out of its blocked layout, unrolls its input and multiplies matrices.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mvp_edge_export.devices.operators import KINDS, Kind, Operators

FLOAT_BYTES = 4
FEATURES = ("each", "gmacs", "read", "written", "weights", "unrolled")

Sort = Literal[Kind, "unaligned"]
SORTS: tuple[Sort, ...] = get_args(Sort)
"""The kinds of operators, and convolutions of channels that do not divide into `BLOCK`."""
BLOCK = 4

_MOVED = ("each", "read", "written")
_MULTIPLIED = (*_MOVED, "gmacs", "weights")
FEATURES_OF: Mapping[Sort, tuple[str, ...]] = {
    **dict.fromkeys(SORTS, _MOVED),
    **dict.fromkeys(("conv", "conv1x1", "stem", "linear", "grouped"), _MULTIPLIED),
    "matmul": (*_MOVED, "gmacs"),
    "unaligned": (*_MULTIPLIED, "unrolled"),
}
"""What a sort has any of: the features that its terms are about."""

_Cost = Field(default=0.0, ge=0, allow_inf_nan=False)


class Terms(BaseModel):
    """What one sort of operator costs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    each: float = _Cost
    """Milliseconds an operator, whatever its size."""
    gmacs: float = _Cost
    """Milliseconds a thousand million multiply-adds, channels filled up."""
    read: float = _Cost
    """Milliseconds a GB of activations read."""
    written: float = _Cost
    """Milliseconds a GB of activations written."""
    weights: float = _Cost
    """Milliseconds a GB of weights read."""
    unrolled: float = _Cost
    """Milliseconds a GB of the matrix that an unaligned convolution's input is unrolled into."""


class Law(BaseModel):
    """The latency of any network in one runtime with one number of threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: int = Field(ge=1, le=64)
    """Channels of a vector, which thinner layers are filled up to."""
    run: float = _Cost
    """Milliseconds a run, whatever the network."""
    terms: Mapping[Sort, Terms]

    def per_operator(self, operators: Operators) -> NDArray[np.float64]:
        """Milliseconds of each operator; a sort without terms costs nothing."""
        table = np.array([[getattr(self._terms(sort), f) for f in FEATURES] for sort in SORTS])
        own = table[sorts(operators, self.lanes)]
        times: NDArray[np.float64] = (features(operators, self.lanes) * own).sum(axis=1)
        return times

    def milliseconds(self, operators: Operators) -> float:
        """The time of one inference."""
        return self.run + float(self.per_operator(operators).sum())

    def scaled(self, factor: float) -> "Law":
        """The law of a machine, or of a kind of network, that takes ``factor`` times as long."""
        terms = {
            sort: Terms(**{name: factor * value for name, value in one})
            for sort, one in self.terms.items()
        }
        return Law(lanes=self.lanes, run=factor * self.run, terms=terms)

    def _terms(self, sort: Sort) -> Terms:
        if (
            sort == "grouped" and sort not in self.terms
        ):  # calibrated before there were such networks
            sort = "conv"
        return self.terms.get(sort, Terms())


def sorts(operators: Operators, lanes: int) -> NDArray[np.intp]:
    """[operators]: the place of each one's sort in `SORTS`."""
    kinds = np.array([KINDS.index(kind) for kind in operators.kinds], dtype=np.intp)
    return np.where(_unaligned(operators, lanes), SORTS.index("unaligned"), kinds)


def features(operators: Operators, lanes: int) -> NDArray[np.float64]:
    """[operators, len(FEATURES)]: one, 10⁹ padded multiply-adds, then GB of each kind of bytes."""
    rows, outer, inner, taps, inputs = operators.shapes.T
    giga_bytes = FLOAT_BYTES / 1e9
    unaligned = _unaligned(operators, lanes)
    return np.stack(
        [
            np.ones(len(rows)),
            np.where(unaligned, operators.macs, operators.padded_macs(lanes)) / 1e9,
            inputs * giga_bytes,
            rows * outer * giga_bytes,
            operators.weights * giga_bytes,
            np.where(unaligned, rows * inner * taps, 0) * giga_bytes,
        ],
        axis=1,
    )


def _unaligned(operators: Operators, lanes: int) -> NDArray[np.bool_]:
    """Which are convolutions that fill no blocks; fewer channels than a vector has need none."""
    inner = operators.shapes[:, 2]
    convolutions = np.array([kind in ("conv", "conv1x1") for kind in operators.kinds], dtype=bool)
    unaligned: NDArray[np.bool_] = convolutions & (inner >= lanes) & (inner % BLOCK != 0)
    return unaligned


def roofline(macs_per_second: float, bytes_per_second: float) -> Law:
    """The law of a machine that is known by two figures alone."""
    slope = 1e3 / (bytes_per_second / 1e9)
    one = Terms(gmacs=1e12 / macs_per_second, read=slope, written=slope, weights=slope)
    return Law(lanes=1, terms=dict.fromkeys(SORTS, one))
