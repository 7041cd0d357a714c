"""What the zoo says of units: who kept which, and in which order they fell.

Voter    a neighbour, as it votes
Ballot   the votes of one unit group, and what was kept in the end
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvp_edge.subnetwork.units import UnitGroup


@dataclass(frozen=True)
class Voter:
    """A neighbour as it votes: what it kept, in which order units fell, and its weights.

    ``kept`` belongs to the weights; it may be wider than what is voted for.
    """

    name: str
    kept: Mapping[str, NDArray[np.int64]]
    ranking: Mapping[str, NDArray[np.int64]]
    weights: Mapping[str, torch.Tensor]
    similarity: float = 0.0
    """Of its task to the new one; larger is nearer. LEEP's are mean log likelihoods."""

    def choice(self, group: UnitGroup, width: int) -> NDArray[np.int64]:
        """The units it would keep at ``width``: the nested ranking read at that size, ascending."""
        ranking = self.ranking[group.name]
        return np.sort(ranking[len(ranking) - width :])


@dataclass(frozen=True)
class Ballot:
    """The votes of one unit group and what was drawn."""

    group: UnitGroup
    votes: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def drawn(self) -> NDArray[np.int64]:
        """Kept units that nobody voted for."""
        nobody: NDArray[np.int64] = self.kept[self.votes[self.kept] == 0]
        return nobody

    def to_json(self) -> dict[str, Any]:
        """As it stands in votes.json."""
        return {
            "name": self.group.name,
            "kind": self.group.kind,
            "size": self.group.size,
            "kept": self.kept.tolist(),
            "votes": self.votes.tolist(),
            "drawn": self.drawn.tolist(),
        }

    @property
    def ranking(self) -> NDArray[np.int64]:
        """The ballot as a nested ranking, the first to go first: the unkept, then by votes."""
        kept = np.isin(np.arange(self.group.size), self.kept)
        return np.lexsort((self.votes, kept)).astype(np.int64)
