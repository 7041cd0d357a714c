"""The stream of training batches of a task.

A batch is a pure function of (seed, step): a resumed run reaches bit-identical weights without any state of the
data loader.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mvp_edge.recipe import Recipe
from mvp_edge_export.images import Preprocess


class LabelledImages(Protocol):
    """Decoded images, uint8 [N, S, S, 3], and their labels, int64 [N]."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The index of each image's class."""


class Batch(NamedTuple):
    """What one update learns from."""

    images: torch.Tensor
    """Network input, float32 [B, 3, S, S]."""
    labels: torch.Tensor
    """int64 [B]."""
    teacher_logits: torch.Tensor | None = None
    """float32 [B, K], where a teacher's logits count beside the labels."""


LEAST_SHARE = 8
"""Least number of images of an update: batch statistics of fewer images are too noisy."""


class Batches:
    """An endless, seeded stream of training batches; a batch depends on nothing but the seed and the step."""

    def __init__(self, images: LabelledImages, preprocess: Preprocess, recipe: Recipe, seed: int):
        self.images, self.preprocess, self.recipe, self.seed = images, preprocess, recipe, seed
        self.size = min(recipe.batch, len(images.labels))
        self.augmentation = recipe.augmentation(len(images.labels))
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Indices of the training images of a step's batch."""
        first = step * self.size
        return np.array([self._at(position) for position in range(first, first + self.size)])

    def batch(self, step: int) -> Batch:
        """The batch of a step; images lie in channels-last memory."""
        index = self.rows(step)
        pixels = self._augmented(
            self.images.pixels, index, np.random.default_rng([self.seed, 1, step])
        )
        x = to_input(pixels, self.preprocess).to(self.recipe.accelerator)
        return Batch(x, torch.from_numpy(self.images.labels[index]).to(self.recipe.accelerator))

    def shares(self, step: int) -> list[Batch]:
        """The batch of a step in equal shares, one for each update of the recipe."""
        images, labels, _ = self.batch(step)
        count = max(1, min(self.recipe.updates, len(labels) // LEAST_SHARE))
        parts = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        return [Batch(x, y) for x, y in parts]

    def parts(self, outputs: int) -> tuple[int, ...]:
        """Number of classes of each part of a head with this many outputs; here a single part."""
        return (outputs,)

    def distinct(self, limit: int) -> list[NDArray[np.int64]]:
        """Indices of at most ``limit`` different training images, in batches of about equal size."""
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.images.labels))[:limit]
        batches = np.array_split(order, max(1, round(len(order) / self.size)))
        return [np.sort(rows) for rows in batches]

    def plain(self, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At most ``limit`` different training images without augmentation, and their labels [n] or [n, parts]."""
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
