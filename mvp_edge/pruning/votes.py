"""Votes: which units the networks of the zoo kept, and in which order they removed the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mvp_edge.structure.units import UnitGroup


@dataclass(frozen=True)
class Voter:
    """A network of the zoo as it votes: the units it kept, its ranking of all units, and its weights.

    ``kept`` belongs to the weights; it may be wider than the network that is voted for.
    """

    name: str
    kept: Mapping[str, NDArray[np.int64]]
    ranking: Mapping[str, NDArray[np.int64]]
    weights: Mapping[str, torch.Tensor]
    similarity: float = 0.0
    """Similarity of its task to the new one; larger is more similar. For LEEP it is a mean log likelihood."""

    def choice(self, group: UnitGroup, width: int) -> NDArray[np.int64]:
        """The units it would keep at ``width``, ascending: the last ones of its ranking."""
        ranking = self.ranking[group.name]
        return np.sort(ranking[len(ranking) - width :])


@dataclass(frozen=True)
class Ballot:
    """The votes on one unit group, and the units that were kept."""

    group: UnitGroup
    votes: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def without_votes(self) -> NDArray[np.int64]:
        """Kept units without a vote."""
        unvoted: NDArray[np.int64] = self.kept[self.votes[self.kept] == 0]
        return unvoted

    @property
    def ranking(self) -> NDArray[np.int64]:
        """All units, the first to be removed first: units that were not kept, then kept ones by their votes."""
        kept = np.isin(np.arange(self.group.size), self.kept)
        return np.lexsort((self.votes, kept)).astype(np.int64)
