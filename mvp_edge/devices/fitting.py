"""Fits a law to timed networks: least relative error, no coefficient below zero.

    operators of each network ─→ features by type of operator ─→ coefficients that all share
                                                           ─→ each sort's own, regularised towards those

Without regularisation, the coefficients of a sort that the networks do not contain, or contain only together
with another, would be arbitrary; with it, families that were not measured are predicted, too
(benchmarks/device/predictor.json has both).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mvp_edge_export.devices.law import FEATURES, FEATURES_OF, SORTS, Law, Terms, features, sorts
from mvp_edge_export.devices.operators import Operators

LANES = (1, 4, 8, 16)
"""Vector widths that a fit tries."""
PULL = 0.003
"""Strength of the regularisation towards the shared coefficients; chosen on families held out of the fit. With a
tenth of it, known families are predicted a little better, and an unknown one may be off by a factor of three."""
_LEAST_SHARE = 0.1
"""Share of the time that a coefficient may explain before it is regularised as strongly as the others, where the
shared one is zero."""
_FOLDS = 4
_PATIENCE = 10_000  # solver steps: by default it gives up early on nearly collinear columns

Floats = NDArray[np.float64]


def fit_law(
    networks: Sequence[Operators], milliseconds: Floats, lanes: Sequence[int] = LANES
) -> Law:
    """The law with the least relative error and no negative coefficient.

    The vector width is the one of ``lanes`` with the best predictions in cross-validation.
    """

    def left_out(width: int) -> float:
        table = feature_table(networks, width)
        errors = []
        for fold in range(_FOLDS):
            other = np.arange(len(networks)) % _FOLDS == fold
            figures = _figures(table[~other], milliseconds[~other])
            errors.append(np.abs(table[other] @ figures / milliseconds[other] - 1))
        return float(np.mean(np.concatenate(errors)))

    width = lanes[0] if len(lanes) == 1 else min(lanes, key=left_out)
    return _law(_figures(feature_table(networks, width), milliseconds), width)


def feature_table(networks: Sequence[Operators], lanes: int) -> Floats:
    """One row a network [networks, 1 + sorts · features]: 1, and each feature summed over each sort's operators."""
    rows = []
    for network in networks:
        sums = np.zeros((len(SORTS), len(FEATURES)))
        np.add.at(sums, sorts(network, lanes), features(network, lanes))
        rows.append(np.concatenate([[1.0], sums.ravel()]))
    return np.array(rows)


def _figures(table: Floats, times: Floats) -> Floats:
    """Coefficients [1 + sorts · features]: milliseconds a unit of each column of ``table``."""
    relative = table / times[:, None]
    # Which columns share a coefficient: the constant alone, and each feature over all sorts.
    common = np.zeros((table.shape[1], 1 + len(FEATURES)))
    common[0, 0] = 1.0
    common[1:, 1:] = np.tile(np.eye(len(FEATURES)), (len(SORTS), 1))
    pooled = relative @ common
    whole = np.sqrt(
        (pooled**2).mean(axis=0)
    )  # 1 / whole: the coefficient that explains all of the time
    whole[whole == 0] = 1.0
    ones = np.ones(len(times))
    shared = nnls(pooled / whole, ones, maxiter=_PATIENCE)[0] / whole
    scale = common @ np.maximum(shared, _LEAST_SHARE / whole)
    pull = PULL * np.sqrt(len(times))
    matrix = np.vstack([relative * scale, pull * np.eye(len(scale))])
    target = np.concatenate([ones, pull * (common @ shared) / scale])
    figures: Floats = nnls(matrix, target, maxiter=_PATIENCE)[0] * scale
    return figures


def _law(figures: Floats, lanes: int) -> Law:
    rows = figures[1:].reshape(len(SORTS), len(FEATURES))
    terms = {
        sort: Terms(
            **{
                feature: _short(value)
                for feature, value in zip(FEATURES, row, strict=True)
                if value > 0 and feature in FEATURES_OF[sort]
            }
        )
        for sort, row in zip(SORTS, rows, strict=True)
    }
    return Law(lanes=lanes, run=_short(float(figures[0])), terms=terms)


def _short(value: float) -> float:
    """Rounded to five digits: more than the measurement is good for, and few enough to read."""
    return float(f"{value:.5g}")
