"""The voters of a study's variant: which part of the zoo there is, and which of its entries are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvp_edge.methods.catalogue import METHODS
from mvp_edge.runs.settle import DEFAULT_NEIGHBOURS
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.similarity import SimilarTask


@dataclass(frozen=True)
class Ranking:
    """A zoo's entries by similarity to a target, the most similar first, and what the ranking cost."""

    candidates: tuple[SimilarTask, ...]
    flops: int
    seconds: float

    def among(self, entries: Sequence[Entry]) -> "Ranking":
        """The ranking of some of the entries, at their share of the cost; scores do not change."""
        names, share = {one.name for one in entries}, len(entries) / len(self.candidates)
        some = tuple(one for one in self.candidates if one.task in names)
        return Ranking(some, round(self.flops * share), self.seconds * share)


def asks_zoo(variant: Mapping[str, Any]) -> bool:
    """Whether a variant uses the zoo's entries, rather than none or a pooled network."""
    method = METHODS.get(variant["method"])
    return method is not None and method.asks != "nobody" and "start" not in variant


def smaller_zoo(entries: Sequence[Entry], count: int | None, target: int) -> Sequence[Entry]:
    """A zoo of ``count`` entries, drawn at random for each target; larger draws contain the smaller ones."""
    drawn = np.random.default_rng([target, 11]).permutation(len(entries))
    return [entries[i] for i in sorted(drawn[:count])]


def chosen_voters(
    ranked: Sequence[SimilarTask], variant: Mapping[str, Any], seed: int
) -> Sequence[SimilarTask]:
    """The entries whose networks a variant uses, of a ranking with the most similar first.

    The variant's ``who`` is "nearest" (the default), "farthest", "random", "zoo" (all of them), or
    "fifth-1" to "fifth-5": the most similar ones of that fifth of the ranking.
    """
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
    if who != "nearest":
        first = (int(who.removeprefix("fifth-")) - 1) * len(ranked) // 5
        return ranked[first : first + count]
    return ranked[:count]
