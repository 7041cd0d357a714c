"""The contract of a pruning method: a `Problem` goes in, a `Pruned` network comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.pruning.batches import Batches, LabelledImages
from mvp_edge.pruning.distillation import DistillationBatches, Teacher
from mvp_edge.pruning.finetune import History, Ledger, Loss, cross_entropy
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.recipe import Recipe
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.backbone import Backbone

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""

Snapshot = tuple[dict[str, NDArray[np.int64]], dict[str, torch.Tensor]]
"""An intermediate network of iterative pruning: the kept units of each group, and the weights."""


@dataclass(frozen=True)
class Problem:
    """One network to be made: from which backbone, for which images, how wide, how long."""

    backbone: Backbone
    policy: str
    classes: int
    """Number of outputs of the new head. Where a teacher has classes of its own, they are included."""
    train: LabelledImages
    validation: LabelledImages | None
    widths: Mapping[str, int]
    """Units to keep in each group; groups that are not named stay whole."""
    recipe: Recipe
    teacher: Teacher | None = None
    """The teacher whose logits are an additional training target."""
    voters: Sequence[Voter] = ()
    """The zoo's networks that the method uses, the most similar task first."""
    seed: int = 0
    snapshots: Sequence[float] = ()
    """Larger keep ratios at which an iterative method also keeps the network."""
    checkpoint: Path | None = None
    """Where a killed run finds its state; the caller removes it when the result is safe."""
    progress: Progress = lambda phase, done, total: None

    @property
    def groups(self) -> tuple[UnitGroup, ...]:
        """The backbone's unit groups under the policy."""
        return unit_groups(self.backbone.model, self.policy)

    @property
    def batches(self) -> Batches:
        """The seeded stream of training batches."""
        how = (self.train, self.backbone.preprocess, self.recipe, self.seed)
        return DistillationBatches(*how, self.teacher) if self.teacher else Batches(*how)

    @property
    def loss(self) -> Loss:
        """The loss that the batches are made for."""
        return self.teacher.loss if self.teacher else cross_entropy


@dataclass
class Pruned:
    """What a method returns."""

    model: nn.Module
    kept: dict[str, NDArray[np.int64]]
    ranking: dict[str, NDArray[np.int64]]
    """All units of each group, the first to be removed first: the last m units are the kept set at width m."""
    ledger: Ledger
    history: History
    seconds: float
    """Wall time of the method on this machine."""
    step_seconds: float
    """The part of ``seconds`` that was spent in training steps."""
    snapshots: dict[float, Snapshot] = field(default_factory=dict)
    """Keep ratio → the network as it was at that ratio."""
    ballots: tuple[Ballot, ...] = ()
    """The votes, from methods that ask the zoo."""
