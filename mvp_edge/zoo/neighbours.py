"""The neighbours of a new task: the most similar tasks of a zoo.

LEEP runs each entry's model once over at most `LEEP_IMAGES` stratified training images of the new task; WordNet
compares the class names only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.pruning.arithmetic import lay_out
from mvp_edge.pruning.batches import LabelledImages
from mvp_edge.pruning.finetune import Ledger, predict_logits
from mvp_edge.pruning.problem import Progress
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.zoo.entries import Entry
from mvp_edge.zoo.similarity import (
    SimilarTask,
    nearest,
    rank_by_leep,
    rank_by_wordnet,
    with_shared_meaning,
)
from mvp_edge.zoo.synsets import WordNet, wordnet
from mvp_edge_export.errors import BadInput

Similarity = Literal["leep", "wordnet"]
LEEP_IMAGES = 250
"""With twice as many images the ranking is hardly better and takes twice as long (benchmarks/results/leep.json)."""


@dataclass(frozen=True)
class Target:
    """The new task, as it is compared with the zoo's."""

    images: LabelledImages
    """Training images, stratified; at most `LEEP_IMAGES` are enough."""
    classes: Sequence[str]
    overrides: Mapping[str, str] | None = None
    """Class name → synset, where the class name alone does not give the right one."""


@dataclass(frozen=True)
class Neighbours:
    """The tasks that vote, and the ranking that they were taken from."""

    similarity: Similarity
    chosen: tuple[SimilarTask, ...]
    candidates: tuple[SimilarTask, ...]
    """All tasks of the zoo, the most similar first."""


@dataclass(frozen=True)
class NeighbourSearch:
    """Ranks a zoo's entries by their similarity to a new task."""

    entries: Sequence[Entry]
    backbone: Backbone
    similarity: Similarity = "leep"
    disjoint: bool = False
    """Whether entries that share a class with the task are left out."""

    def find(
        self,
        target: Target,
        count: int,
        ledger: Ledger,
        progress: Progress = lambda phase, done, total: None,
    ) -> Neighbours:
        """The ``count`` entries nearest to ``target``; the cost of forward passes is added to ``ledger``.

        Each neighbour is described with its shared meanings if every class name has a synset.

        Raises:
            BadInput: there are fewer entries than neighbours, or a class name has no synset and
                WordNet is the measure.
        """
        forbidden = target.classes if self.disjoint else None
        # Refuse too few entries before the forward passes, which may take a while.
        unranked = [SimilarTask(entry.name, 0.0, entry.classes) for entry in self.entries]
        nearest(unranked, count, disjoint_from=forbidden)
        if self.similarity == "leep":
            candidates = self._by_leep(target.images, ledger, progress)
        meanings = self._meanings(target)
        if self.similarity == "wordnet":
            assert meanings is not None
            candidates = rank_by_wordnet(*meanings)
        chosen = nearest(candidates, count, disjoint_from=forbidden)
        if meanings is not None:
            chosen = with_shared_meaning(chosen, *meanings)
        return Neighbours(self.similarity, tuple(chosen), tuple(candidates))

    def _by_leep(
        self, images: LabelledImages, ledger: Ledger, progress: Progress
    ) -> list[SimilarTask]:
        predict = _Predictor(self.entries, self.backbone, images, ledger)
        names = {entry.name: entry.classes for entry in self.entries}
        return rank_by_leep(
            predict, images.labels, names, lambda done, total: progress("similarity", done, total)
        )

    def _meanings(
        self, target: Target
    ) -> tuple[dict[str, str], dict[str, dict[str, str]], WordNet] | None:
        """Synsets of the target's classes and of every entry's, and the WordNet that they are from.

        None if a class has no synset; BadInput if WordNet is the measure.
        """
        try:
            known = wordnet()
            ours = {
                m.class_name: m.synset for m in known.meanings(target.classes, target.overrides)
            }
            theirs = {
                entry.name: dict(zip(entry.classes, entry.synsets, strict=True))
                if entry.synsets
                else {
                    m.class_name: m.synset for m in known.meanings(entry.classes, target.overrides)
                }
                for entry in self.entries
            }
        except BadInput:
            if self.similarity == "wordnet":
                raise
            return None
        return ours, theirs, known


class _Predictor:
    """Entry name → softmax of its model on the images, [n, Z]; models of equal shape share one module."""

    def __init__(
        self, entries: Sequence[Entry], backbone: Backbone, images: LabelledImages, ledger: Ledger
    ):
        self._entries = {entry.name: entry for entry in entries}
        self._backbone, self._images, self._ledger = backbone, images, ledger
        self._modules: dict[tuple[tuple[str, int], ...], tuple[nn.Module, int]] = {}

    def __call__(self, name: str) -> NDArray[np.float64]:
        network = self._entries[name].network
        shape = (*sorted(network.widths.items()), ("classes", len(network.classes)))
        if shape not in self._modules:
            module = lay_out(network.module(), "cpu")
            self._modules[shape] = (module, forward_macs(module, self._backbone.shape))
        module, macs = self._modules[shape]
        module.load_state_dict(dict(network.weights))
        logits = predict_logits(module, self._images.pixels, self._backbone.preprocess, fast=True)
        self._ledger.similarity_flops += macs * len(logits)
        probabilities: NDArray[np.float64] = torch.from_numpy(logits).double().softmax(1).numpy()
        return probabilities
