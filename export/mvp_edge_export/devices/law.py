"""How long a network takes, as a sum that can be read: a few figures for each sort of operator.

    ms = run + Σ over operators of  each + gmacs · padded multiply-adds + read · bytes read
                                         + written · bytes written + weights · bytes of weights
                                         + unrolled · bytes of the unrolled input

It is a roofline whose slopes add up instead of the larger one counting: a runtime overlaps loads and
arithmetic only in part. Channels count as filled up to whole vectors, for that is what kernels compute.

A convolution whose channels are no multiple of four is a sort of its own: ONNX Runtime (1.32, seen in
its optimised graphs and profiles) leaves it out of its blocked layout, unrolls its input and multiplies matrices.
So it does with a depthwise one of such channels, which takes six times as long as with four more channels (98
instead of 96, 32 × 32 pixels), and with a grouped one whose groups are no whole vectors.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mvp_edge_export.devices.operators import WEIGHTED, Kind, Operators

FLOAT_BYTES = 4
FEATURES = ("each", "gmacs", "read", "written", "weights", "unrolled")

Sort = Literal[Kind, "unaligned", "unaligned_grouped", "unaligned_depthwise"]
SORTS: tuple[Sort, ...] = get_args(Sort)
"""The kinds of operators, and convolutions of channels that do not divide into `BLOCK`, or groups into vectors."""
BLOCK = 4

_MOVED = ("each", "read", "written")
_MULTIPLIED = (*_MOVED, "gmacs", "weights")
FEATURES_OF: Mapping[Sort, tuple[str, ...]] = {
    **dict.fromkeys(SORTS, _MOVED),
    **dict.fromkeys(WEIGHTED, _MULTIPLIED),
    "matmul": (*_MOVED, "gmacs"),
    **dict.fromkeys(
        ("unaligned", "unaligned_grouped", "unaligned_depthwise"), (*_MULTIPLIED, "unrolled")
    ),
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
        while sort not in self.terms and sort in _EARLIER:
            sort = _EARLIER[sort]
        return self.terms.get(sort, Terms())


_EARLIER: Mapping[Sort, Sort] = {
    "unaligned_depthwise": "depthwise",
    "unaligned_grouped": "grouped",
    "depthwise": "grouped",
    "grouped": "conv",
}
"""Sort → what it was before it was a sort of its own, for calibrations from that time."""


def sorts(operators: Operators, lanes: int) -> NDArray[np.intp]:
    """[operators]: the place of each one's sort in `SORTS`."""
    kinds = _kinds(operators)
    unaligned = _unaligned(operators, lanes)
    places = np.array([SORTS.index(kind) for kind in kinds], dtype=np.intp)
    for kind, sort in _UNALIGNED.items():
        places[unaligned & (kinds == kind)] = SORTS.index(sort)
    return places


def features(operators: Operators, lanes: int) -> NDArray[np.float64]:
    """[operators, len(FEATURES)]: one, 10⁹ padded multiply-adds, then GB of each kind of bytes."""
    rows, outer, inner, taps, inputs = operators.shapes.T
    giga_bytes = FLOAT_BYTES / 1e9
    unaligned = _unaligned(operators, lanes)
    grouped = np.isin(_kinds(operators), ("grouped", "depthwise"))
    return np.stack(
        [
            np.ones(len(rows)),
            np.where(unaligned, operators.macs, operators.padded_macs(lanes)) / 1e9,
            inputs * giga_bytes,
            rows * outer * giga_bytes,
            operators.weights * giga_bytes,
            # Grouped convolutions have as many channels in as out.
            np.where(unaligned, rows * np.where(grouped, outer, inner) * taps, 0) * giga_bytes,
        ],
        axis=1,
    )


_UNALIGNED: Mapping[Kind, Sort] = {
    "conv": "unaligned",
    "conv1x1": "unaligned",
    "grouped": "unaligned_grouped",
    "depthwise": "unaligned_depthwise",
}


def _unaligned(operators: Operators, lanes: int) -> NDArray[np.bool_]:
    """Which are convolutions that fill no blocks; fewer channels than a vector has need none."""
    kinds = _kinds(operators)
    _, outer, inner, _, _ = operators.shapes.T
    dense = np.isin(kinds, ("conv", "conv1x1")) & (inner >= lanes) & (inner % BLOCK != 0)
    depthwise = (kinds == "depthwise") & (outer % BLOCK != 0)
    grouped = (kinds == "grouped") & (inner % lanes != 0)
    unaligned: NDArray[np.bool_] = dense | depthwise | grouped
    return unaligned


def _kinds(operators: Operators) -> NDArray[np.str_]:
    """Kinds, where a grouped convolution of which one group was kept is the dense one that it is then."""
    _, outer, inner, taps, _ = operators.shapes.T
    kinds = np.array(operators.kinds, dtype=np.str_)
    single = np.isin(kinds, ("grouped", "depthwise")) & (inner == outer)
    return np.where(single, np.where(taps == 1, "conv1x1", "conv"), kinds)


def roofline(macs_per_second: float, bytes_per_second: float) -> Law:
    """The law of a machine that is known by two figures alone."""
    slope = 1e3 / (bytes_per_second / 1e9)
    one = Terms(gmacs=1e12 / macs_per_second, read=slope, written=slope, weights=slope)
    return Law(lanes=1, terms=dict.fromkeys(SORTS, one))
