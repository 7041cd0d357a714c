"""Whom a variant of a study asks: a part of the zoo, and of its entries by similarity the nearest or others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvp_edge.pruning.methods import METHODS
from mvp_edge.runs.settle import DEFAULT_NEIGHBOURS
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.similarity import Candidate


@dataclass(frozen=True)
class Ranking:
    """A zoo's entries by similarity to a target, and what that cost."""

    candidates: tuple[Candidate, ...]
    flops: int
    seconds: float

    def among(self, entries: Sequence[Entry]) -> "Ranking":
        """Of some of the entries alone, whose scores are the same, at their share of the cost."""
        names, share = {one.name for one in entries}, len(entries) / len(self.candidates)
        some = tuple(one for one in self.candidates if one.task in names)
        return Ranking(some, round(self.flops * share), self.seconds * share)


def asks_zoo(variant: Mapping[str, Any]) -> bool:
    """Whether a variant asks the zoo's entries, and not nobody or a network of `benchmarks.pooled`."""
    method = METHODS.get(variant["method"])
    return method is not None and method.asks != "nobody" and "start" not in variant


def some_of(entries: Sequence[Entry], count: int | None, target: int) -> Sequence[Entry]:
    """A smaller zoo: ``count`` of the entries, drawn anew for each target, nested in its larger draws."""
    drawn = np.random.default_rng([target, 11]).permutation(len(entries))
    return [entries[i] for i in sorted(drawn[:count])]


def asked(ranked: Sequence[Candidate], variant: dict[str, Any], seed: int) -> Sequence[Candidate]:
    """Those of the ranked entries, the nearest first, whose networks a variant uses."""
    whole = METHODS[variant["method"]].asks == "zoo"
    count = variant.get("neighbours", len(ranked) if whole else DEFAULT_NEIGHBOURS)
    who = variant.get("who", "nearest")
    if who == "farthest":
        return ranked[-count:]
    if who == "random":
        rng = np.random.default_rng([seed, 7])
        return [ranked[i] for i in sorted(rng.permutation(len(ranked))[:count])]
    if who == "zoo":
        return ranked
    if who != "nearest":  # the nearest of a fifth of the zoo: "fifth-1" to "fifth-5"
        first = (int(who.removeprefix("fifth-")) - 1) * len(ranked) // 5
        return ranked[first : first + count]
    return ranked[:count]
