"""The rows that studies wrote, and statistics over their targets: paired differences, bootstrap intervals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from benchmarks.study.results import Results

RESULTS = Path(__file__).parents[1] / "results"
"""One JSON-lines file a study, and one JSON file each other measurement."""

Values = NDArray[np.float64]
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""target → variant → row."""

Statistic = Callable[[Values], Values]
"""From values [..., columns, targets], or [..., targets] of one column, to one number for each of [...]."""

MAIN = "resnet18-cifar100"
DEIT = "deit-tiny-imagenet"
_PART_OF = {
    **dict.fromkeys(("peers", "zoo-size", "ratios", "seeds"), MAIN),
    "zoo-distill": "zoo-size",
    "deit-trunk": DEIT,
}
"""Study → the study whose targets it shares, and whose rows count as its own."""
_RENAMED = {("ratios", "resnet18-keep0.32"): {"ifp@1000": "ifp@1000-keep0.32"}}
"""(study, other study of the same targets) → rows of the other that count as its own: name there → name here."""


def study_rows(study: str) -> dict[str, dict[str, dict[str, Any]]]:
    """All rows of a study, with those of the study whose targets it shares: target → variant → row."""
    found = Results(RESULTS / f"{study}.jsonl").rows()
    if study in _PART_OF:
        whole = study_rows(_PART_OF[study])
        found = {target: {**rows, **whole.get(target, {})} for target, rows in found.items()}
    for (own, other), names in _RENAMED.items():
        for target, rows in study_rows(other).items() if own == study else ():
            if target in found:
                found[target] |= {new: rows[old] for old, new in names.items() if old in rows}
    return found


def task_classes(study: str) -> dict[str, list[str]]:
    """The classes of each target of a study."""
    facts = Results(RESULTS / f"{study}.jsonl").targets()
    return {target: one["classes"] for target, one in facts.items()}


def paired(rows: Rows, ours: str, theirs: str, key: str = "accuracy") -> Values:
    """[targets with both, 2] values of two variants."""
    both = [(r[ours][key], r[theirs][key]) for r in rows.values() if ours in r and theirs in r]
    return np.array(both, dtype=np.float64).reshape(-1, 2)


def interval(values: Values, statistic: Statistic) -> tuple[float, float]:
    """95 % bootstrap percentile interval of a statistic over targets: 10,000 resamples, fixed seed.

    Args:
        values: [targets] or [targets, columns]; the columns of a target are resampled together.
        statistic: of the resampled values.
    """
    columns = tuple(np.atleast_2d(values.T))

    def resampled(*drawn: Values, axis: int) -> Values:
        assert axis == -1
        return statistic(np.stack(drawn, -2) if len(drawn) > 1 else drawn[0])

    found = bootstrap(
        columns,
        resampled,
        n_resamples=10_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def mean(values: Values) -> Values:
    """The mean over targets."""
    return np.asarray(values.mean(-1))


def difference(rows: Rows, ours: str, theirs: str) -> tuple[float, float, float, int] | None:
    """Mean paired difference in points of top-1 accuracy, its interval, and the number of targets."""
    return compared(
        paired(rows, ours, theirs), lambda both: mean(100 * (both[..., 0, :] - both[..., 1, :]))
    )


def ratio(rows: Rows, ours: str, theirs: str, key: str) -> tuple[float, float, float, int] | None:
    """Ratio of the mean costs, theirs / ours, its interval, and the number of targets."""
    return compared(
        paired(rows, ours, theirs, key), lambda both: mean(both[..., 1, :]) / mean(both[..., 0, :])
    )


def compared(both: Values, statistic: Statistic) -> tuple[float, float, float, int] | None:
    """A statistic of [targets, columns], its interval, and the number of targets; None of fewer than two."""
    if len(both) < 2:
        return None
    found = float(statistic(both.T)), *interval(both, statistic)
    value, low, high = (
        round(one, 9) for one in found
    )  # digits beyond depend on the order of summation
    return value, low, high, len(both)


def by_fifth(
    others: Mapping[str, Mapping[str, Any]], measure: Callable[[Values], Values] = lambda c: c
) -> Values:
    """[fifths, groups]: the mean share of units in common with each fifth of the others, the most similar first.

    Args:
        others: of one target: the share of units in common, group by group, and the similarity.
        measure: applied to that share [others, groups]; the identity by default.
    """
    ranked = sorted(others.values(), key=lambda other: -other["score"])
    parts = np.array_split(measure(np.array([other["common"] for other in ranked])), 5)
    return np.array([part.mean(0) for part in parts])
