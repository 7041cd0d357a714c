"""A recipe, and the stream of training batches that it asks for.

A batch is a pure function of (seed, step), so nothing but tensors has to be saved for a run that is
killed to go on to the bit-same weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mvp_edge_export.images import Preprocess


class LabelledImages(Protocol):
    """Decoded images, uint8 [N, S, S, 3], and their labels, int64 [N]."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The index of each image's class."""


Batch = tuple[torch.Tensor, Any]
"""Images, and their labels or what else a loss compares the logits with: (labels, …)."""


SHRINKING = 0.8
"""Iterative methods reach their target after this share of the steps (METHOD §3)."""


LEAST_SHARE = 8
"""Images of an update: BatchNorm's statistics of fewer say little."""


AUGMENTATIONS = ("flip", "shift")
"""Mirrored; moved by up to an eighth."""


PLAIN_PASSES = 4
"""A run of no more passes over its images sees them as they are: so soon nothing is learned by heart, and
every step tells more (measured at one, three and six passes: benchmarks/trials.md)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned."""

    steps: int = 100
    batch: int = 128
    updates: int = 1
    """A step's batch is taken in so many equal shares, one update each: the same images, the same cost."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.01
    relative_step: float = 0.0
    """Of Muon: how far of its own length each matrix moves in an update at the full rate."""
    schedule: Literal["cosine", "hold", "constant"] = "cosine"
    """cosine: from lr to 0; hold: lr while the network shrinks (0.8 of the steps), then cosine."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: tuple[str, ...] | None = None
    """None: everything, but nothing in a run of few passes."""
    head: Literal["means", "zero", "random"] = "means"
    statistics: bool = True
    """Re-estimate BatchNorm's running statistics on the task before the first step."""
    accelerator: str = "cpu"

    def rate(self, step: float) -> float:
        """The learning rate at a step (0-based; a share of it: at one of its updates)."""
        done = step / self.steps
        if self.schedule == "hold":
            done = max(0.0, done - SHRINKING) / (1 - SHRINKING)
        elif self.schedule == "constant":
            done = 0.0
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def augmentation(self, images: int) -> tuple[str, ...]:
        """What is done to the images of a run over so many."""
        if self.augment is not None:
            return self.augment
        passes = self.steps * min(self.batch, images) / images
        return AUGMENTATIONS if passes > PLAIN_PASSES else ()


class Batches:
    """An endless, seeded stream of training batches as the recipe asks; ``batch(step)`` needs no history."""

    def __init__(self, images: LabelledImages, preprocess: Preprocess, recipe: Recipe, seed: int):
        self.images, self.preprocess, self.recipe, self.seed = images, preprocess, recipe, seed
        self.size = min(recipe.batch, len(images.labels))
        self.augmentation = recipe.augmentation(len(images.labels))
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which training images are the batch of a step."""
        first = step * self.size
        return np.array([self._at(position) for position in range(first, first + self.size)])

    def batch(self, step: int) -> Batch:
        """Images float32 [B, 3, S, S] in channels-last memory, and labels int64 [B]."""
        index = self.rows(step)
        pixels = self._augmented(
            self.images.pixels, index, np.random.default_rng([self.seed, 1, step])
        )
        x = to_input(pixels, self.preprocess).to(self.recipe.accelerator)
        return x, torch.from_numpy(self.images.labels[index]).to(self.recipe.accelerator)

    def shares(self, step: int) -> list[Batch]:
        """The batch of a step as the recipe's updates take it, one after the other."""
        x, y = self.batch(step)
        count = max(1, min(self.recipe.updates, len(y) // LEAST_SHARE))
        return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))

    def parts(self, outputs: int) -> tuple[int, ...]:
        """How many classes each part of a head of so many outputs tells apart: one part, all of them."""
        return (outputs,)

    def distinct(self, limit: int) -> list[NDArray[np.int64]]:
        """The rows of at most ``limit`` training images, each once, in batches of about equal size."""
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.images.labels))[:limit]
        batches = np.array_split(order, max(1, round(len(order) / self.size)))
        return [np.sort(rows) for rows in batches]

    def plain(self, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At most ``limit`` distinct training images, unaugmented, and their labels [n] (or [n, parts])."""
        for rows in self.distinct(limit):
            pixels = torch.from_numpy(np.ascontiguousarray(self.images.pixels[rows]))
            labels = torch.from_numpy(self.images.labels[rows])
            yield (
                to_input(pixels, self.preprocess).to(self.recipe.accelerator),
                labels.to(self.recipe.accelerator),
            )

    def _at(self, position: int) -> int:
        """The training image at a position of the endless stream of shuffled epochs."""
        total = len(self.images.labels)
        epoch, offset = divmod(position, total)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(total))
        return int(self._epoch[1][offset])

    def _augmented(
        self, pixels: NDArray[np.uint8], index: NDArray[np.int64], rng: np.random.Generator
    ) -> torch.Tensor:
        """Flip and shift by up to an eighth (edge pixels repeated), as one gather."""
        chosen = torch.from_numpy(np.ascontiguousarray(pixels[index]))
        if not self.augmentation:
            return chosen
        count, side = chosen.shape[:2]
        rows, columns = np.tile(np.arange(side), (count, 1)), np.tile(np.arange(side), (count, 1))
        if "flip" in self.augmentation:
            flipped = rng.random(count) < 0.5
            columns[flipped] = columns[flipped, ::-1]
        if "shift" in self.augmentation:
            reach = max(1, side // 8)
            dy, dx = rng.integers(-reach, reach + 1, (2, count, 1))
            rows, columns = np.clip(rows + dy, 0, side - 1), np.clip(columns + dx, 0, side - 1)
        picture = torch.arange(count)[:, None, None]
        return chosen[
            picture, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]
        ]


def to_input(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [N, S, S, 3] → normalised float32 [N, 3, S, S] (channels-last in memory, no copy)."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)
