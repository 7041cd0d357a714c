"""How long a network takes, as a sum that can be read: a few figures for each kind of operator.

    ms = run + Σ over operators of  each + gmacs · padded multiply-adds + read · bytes read
                                         + written · bytes written + weights · bytes of weights

It is a roofline whose slopes add up instead of the larger one counting: a runtime overlaps loads and
arithmetic only in part. Channels count as filled up to whole vectors, for that is what kernels compute.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mvp_edge_export.devices.operators import KINDS, Kind, Operators

FLOAT_BYTES = 4
FEATURES = ("each", "gmacs", "read", "written", "weights")

_Cost = Field(default=0.0, ge=0, allow_inf_nan=False)


class Terms(BaseModel):
    """What one kind of operator costs."""

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


class Law(BaseModel):
    """The latency of any network in one runtime with one number of threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: int = Field(ge=1, le=64)
    """Channels of a vector, which thinner layers are filled up to."""
    run: float = _Cost
    """Milliseconds a run, whatever the network."""
    terms: Mapping[Kind, Terms]

    def per_operator(self, operators: Operators) -> NDArray[np.float64]:
        """Milliseconds of each operator; a kind without terms costs nothing."""
        table = np.array([[getattr(self._terms(k), f) for f in FEATURES] for k in KINDS])
        kinds = np.array([KINDS.index(kind) for kind in operators.kinds], dtype=np.intp)
        times: NDArray[np.float64] = (features(operators, self.lanes) * table[kinds]).sum(axis=1)
        return times

    def milliseconds(self, operators: Operators) -> float:
        """The time of one inference."""
        return self.run + float(self.per_operator(operators).sum())

    def scaled(self, factor: float) -> "Law":
        """The law of a machine, or of a kind of network, that takes ``factor`` times as long."""
        terms = {
            kind: Terms(**{name: factor * value for name, value in one})
            for kind, one in self.terms.items()
        }
        return Law(lanes=self.lanes, run=factor * self.run, terms=terms)

    def _terms(self, kind: Kind) -> Terms:
        return self.terms.get(kind, Terms())


def features(operators: Operators, lanes: int) -> NDArray[np.float64]:
    """[operators, 5]: one, 10⁹ padded multiply-adds, GB read, GB written, GB of weights."""
    rows, outer, _, _, inputs = operators.shapes.T
    giga_bytes = FLOAT_BYTES / 1e9
    return np.stack(
        [
            np.ones(len(rows)),
            operators.padded_macs(lanes) / 1e9,
            inputs * giga_bytes,
            rows * outer * giga_bytes,
            operators.weights * giga_bytes,
        ],
        axis=1,
    )


def roofline(macs_per_second: float, bytes_per_second: float) -> Law:
    """The law of a machine that is known by two figures alone."""
    slope = 1e3 / (bytes_per_second / 1e9)
    one = Terms(gmacs=1e12 / macs_per_second, read=slope, written=slope, weights=slope)
    return Law(lanes=1, terms=dict.fromkeys(KINDS, one))
