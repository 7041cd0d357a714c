"""The rows that studies wrote, and statistics over their targets: paired differences, bootstrap intervals."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"

Values = NDArray[np.float64]
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""target → variant → row."""

Statistic = Callable[[Values], Values]
"""Of values [..., columns, rows], or [..., rows] where there is one column alone: one number for each of [...]."""

MAIN = "resnet18-cifar100"
DEIT = "deit-tiny-imagenet"
_PART_OF = {
    **dict.fromkeys(("peers", "zoo-size", "ratios", "seeds"), MAIN),
    "zoo-taught": "zoo-size",
    "deit-trunk": DEIT,
}
"""Studies of another one's targets: what that has measured already is not measured again."""
_NAMED_HERE = {("ratios", "resnet18-keep0.32"): {"ifp@1000": "ifp@1000-keep0.32"}}
"""(study, other study of the same targets) → which of the other's rows are its own, too, by which names."""


def study_rows(study: str) -> dict[str, dict[str, dict[str, Any]]]:
    """All rows of a study, with those of the study that it is a part of, of the same targets."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted((RESULTS / study).glob("*.json")):
        facts = json.loads(path.read_text())
        found[facts["target"]] = facts["rows"]
    if study in _PART_OF:
        whole = study_rows(_PART_OF[study])
        found = {target: {**rows, **whole.get(target, {})} for target, rows in found.items()}
    for (own, other), names in _NAMED_HERE.items():
        for target, rows in study_rows(other).items() if own == study else ():
            if target in found:
                found[target] |= {new: rows[old] for old, new in names.items() if old in rows}
    return found


def paired(rows: Rows, ours: str, theirs: str, key: str = "accuracy") -> Values:
    """[targets with both, 2] values of two variants."""
    both = [(r[ours][key], r[theirs][key]) for r in rows.values() if ours in r and theirs in r]
    return np.array(both, dtype=np.float64).reshape(-1, 2)


def interval(values: Values, statistic: Statistic) -> tuple[float, float]:
    """95 % bootstrap interval of ``statistic`` over the rows of ``values``, 10,000 resamples, fixed seed."""
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(statistic(np.moveaxis(values[draws], 1, -1)), [2.5, 97.5])
    return float(low), float(high)


def mean(values: Values) -> Values:
    """The statistic that most intervals are of."""
    return np.asarray(values.mean(-1))


def difference(rows: Rows, ours: str, theirs: str) -> tuple[float, float, float, int] | None:
    """Mean paired difference in points of top-1, its interval, and how many targets."""
    return compared(
        paired(rows, ours, theirs), lambda both: mean(100 * (both[..., 0, :] - both[..., 1, :]))
    )


def ratio(rows: Rows, ours: str, theirs: str, key: str) -> tuple[float, float, float, int] | None:
    """Ratio of means theirs / ours of a cost, its interval, and how many targets."""
    return compared(
        paired(rows, ours, theirs, key), lambda both: mean(both[..., 1, :]) / mean(both[..., 0, :])
    )


def compared(both: Values, statistic: Statistic) -> tuple[float, float, float, int] | None:
    """A statistic of [targets, columns], its interval, and how many targets; None of fewer than two."""
    if len(both) < 2:
        return None
    found = float(statistic(both.T)), *interval(both, statistic)
    value, low, high = (round(one, 9) for one in found)  # beyond it, the summation's order
    return value, low, high, len(both)


def by_fifth(
    others: Mapping[str, Mapping[str, Any]], measure: Callable[[Values], Values] = lambda c: c
) -> Values:
    """[fifths, groups]: how much is in common with the others of each fifth, the most similar first.

    Args:
        others: of one target: the share of units in common, group by group, and the score of similarity.
        measure: of that share [others, groups]; itself unless said.
    """
    ranked = sorted(others.values(), key=lambda other: -other["score"])
    parts = np.array_split(measure(np.array([other["common"] for other in ranked])), 5)
    return np.array([part.mean(0) for part in parts])
