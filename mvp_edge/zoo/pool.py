"""The training images of a trunk: those of many tasks, and images without labels."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvp_edge.pruning.distillation import UNLABELLED
from mvp_edge.pruning.problem import Progress
from mvp_edge.tasks.task import Images, Task
from mvp_edge_export.images import Preprocess

MOST_HELD_OUT = 1000
"""At most this many unlabelled images are held out to judge a trunk."""
POOL_BYTES = 2**31
"""Limit for the decoded images of a pool, in bytes; beyond it each class gives an equal number of images."""


@dataclass(frozen=True)
class Pool:
    """The images of many tasks as one task; those without a label have the label ``UNLABELLED``."""

    classes: tuple[str, ...]
    images: Images

    @property
    def unlabelled(self) -> "Pool":
        """The same images without their labels."""
        return Pool((), Images(self.images.pixels, np.full(len(self.images), UNLABELLED)))

    @property
    def counts(self) -> dict[str, int]:
        """Number of images with and without a label."""
        known = int((self.images.labels != UNLABELLED).sum())
        return {"labelled": known, "unlabelled": len(self.images) - known}

    def __str__(self) -> str:
        known, unknown = self.counts.values()
        parts = [f"{known} images of {len(self.classes)} classes"] if known else []
        return " and ".join(parts + ([f"{unknown} images without labels"] if unknown else []))


def pool(
    tasks: Sequence[Task],
    split: str,
    preprocess: Preprocess,
    *,
    without: Collection[str] = (),
    progress: Progress = lambda phase, done, total: None,
) -> Pool:
    """The images of one split of all tasks; a class that several tasks share is taken once.

    Classes of two sources are different classes even where their names agree ("good" cables, "good" apples).

    Args:
        tasks: tasks for one backbone.
        split: train, val or test.
        preprocess: the backbone's preprocessing.
        without: names of classes to leave out.
        progress: told after each task.
    """
    first = {(task.source, name): task.name for task in reversed(tasks) for name in task.classes}
    first = {one: task for one, task in first.items() if one[1] not in without}
    most = max(1, POOL_BYTES // (3 * preprocess.size**2 * max(1, len(first))))
    parts: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for number, task in enumerate(tasks, 1):
        images = task.images(split, preprocess)
        progress(f"decoding {split} of all tasks", number, len(tasks))
        for label, name in enumerate(task.classes):
            if first.get((task.source, name)) == task.name:
                rows = np.flatnonzero(images.labels == label)[:most]
                parts[task.source, name] = images.pixels[rows]
    names = Counter(name for _, name in parts)
    classes = [one[1] if names[one[1]] == 1 else f"{first[one]}/{one[1]}" for one in parts]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    pixels = np.concatenate([*parts.values(), np.empty((0, *[preprocess.size] * 2, 3), np.uint8)])
    return Pool(tuple(classes), Images(pixels, labels.astype(np.int64)))


def with_unlabelled(
    seen: Pool, unseen: Pool, pixels: NDArray[np.uint8], seed: int
) -> tuple[Pool, Pool]:
    """Add images without labels to the training pool; returns the training and the held-out pool.

    Where nothing is held out yet, a twentieth of the new images is.
    """
    if not seen.classes:
        order = np.random.default_rng([seed, 5]).permutation(len(pixels))
        out = min(MOST_HELD_OUT, len(pixels) // 20)
        held, pixels = pixels[np.sort(order[:out])], pixels[np.sort(order[out:])]
        unseen = Pool((), Images(held, np.full(len(held), UNLABELLED)))
    labels = np.concatenate([seen.images.labels, np.full(len(pixels), UNLABELLED)])
    together = Images(np.concatenate([seen.images.pixels, pixels]), labels)
    return Pool(seen.classes, together), unseen
