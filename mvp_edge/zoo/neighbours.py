"""Who is similar: the zoo's tasks ranked for a new one.

LEEP runs each entry's model once over at most `LEEP_IMAGES` stratified training images of the new task; WordNet
compares the meanings of the class names alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    Candidate,
    nearest,
    rank_by_leep,
    rank_by_wordnet,
    with_shared_meaning,
)
from mvp_edge.zoo.synsets import wordnet
from mvp_edge_export.errors import BadInput

Similarity = Literal["leep", "wordnet"]
LEEP_IMAGES = 250
"""Twice as many rank the zoo hardly better, for twice the time (benchmarks/results/leep.json)."""


@dataclass(frozen=True)
class Neighbours:
    """The tasks that vote, and the ranking that they were taken from."""

    similarity: str
    chosen: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in neighbours.json."""
        return {
            "schema": 1,
            "similarity": self.similarity,
            "neighbours": [
                {
                    "task": c.task,
                    "score": c.score,
                    "classes": list(c.classes),
                    "shared": [
                        {"ours": m.ours, "theirs": m.theirs, "wup": m.wup} for m in c.shared
                    ],
                }
                for c in self.chosen
            ],
            "candidates": [{"task": c.task, "score": c.score} for c in self.candidates],
        }


def find_neighbours(
    entries: Sequence[Entry],
    backbone: Backbone,
    images: LabelledImages,
    classes: Sequence[str],
    count: int,
    ledger: Ledger,
    *,
    similarity: Similarity = "leep",
    overrides: Mapping[str, str] | None = None,
    disjoint: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> Neighbours:
    """Rank ``entries`` for the task with these training ``images`` and take the ``count`` nearest.

    ``images`` should be at most `LEEP_IMAGES`, stratified; what the forward passes cost goes to
    ``ledger``. ``disjoint`` leaves out entries that share a class with the task.
    Raises BadInput when there are fewer entries than neighbours, or a class name has no synset and
    WordNet is the measure; the shared meanings are only described where every name has one.
    """
    # Too few are refused before the forward passes, which may take a while.
    unranked = [Candidate(entry.name, 0.0, entry.classes) for entry in entries]
    nearest(unranked, count, disjoint_from=classes if disjoint else None)
    if similarity == "leep":
        predict = _Predictor(entries, backbone, images, ledger)
        names = {entry.name: entry.classes for entry in entries}
        candidates = rank_by_leep(
            predict, images.labels, names, lambda done, total: progress("similarity", done, total)
        )
    meanings = _meanings(entries, classes, overrides, required=similarity == "wordnet")
    if similarity == "wordnet":
        assert meanings is not None
        candidates = rank_by_wordnet(*meanings)
    chosen = nearest(candidates, count, disjoint_from=classes if disjoint else None)
    if meanings is not None:
        chosen = with_shared_meaning(chosen, *meanings)
    return Neighbours(similarity, tuple(chosen), tuple(candidates))


class _Predictor:
    """Entry name → that model's softmax on the images [n, Z]; one module serves all of one shape."""

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


def _meanings(
    entries: Sequence[Entry],
    classes: Sequence[str],
    overrides: Mapping[str, str] | None,
    *,
    required: bool,
) -> tuple[dict[str, str], dict[str, dict[str, str]], Any] | None:
    """Synsets of our classes and of every entry's, and the WordNet they are from."""
    try:
        ours = {m.class_name: m.synset for m in wordnet().meanings(classes, overrides)}
        theirs = {
            entry.name: dict(zip(entry.classes, entry.synsets, strict=True))
            if entry.synsets
            else {m.class_name: m.synset for m in wordnet().meanings(entry.classes, overrides)}
            for entry in entries
        }
        return ours, theirs, wordnet()
    except BadInput:
        if required:
            raise
        return None
