"""A zoo's trunk: one thin network of all its tasks, from which a new task starts.

Which units are kept depends little on the task that asks (benchmarks/README.md, *How similar must the tasks
be*). So the whole zoo votes once, and what it keeps is trained once on the pooled images of its tasks. A new
task's network starts from there instead of from its neighbours' mean: the same steps reach further.

    tasks ─ pool ─→ images of all their classes ┐
    entries ─ vote, average (mvp) ──────────────┴─ steps ─→ zoo/trunks/<keep>/
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvp_edge.pruning.finetune import Recipe
from mvp_edge.pruning.methods import recipe_for
from mvp_edge.pruning.mvp import mvp
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.units import unit_groups
from mvp_edge.tasks.task import Images, Task
from mvp_edge.zoo.entries import Entry
from mvp_edge_export.images import Preprocess

EPOCHS = 16
"""How often a trunk sees the pooled images, where the user does not say."""
LEAST_STEPS = 100
POOL_BYTES = 2**31
"""Decoded images that a pool holds at most: as many of each class as fit."""


@dataclass(frozen=True)
class Pool:
    """The images of many tasks as one task."""

    classes: tuple[str, ...]
    images: Images


def pool(
    tasks: Sequence[Task],
    split: str,
    preprocess: Preprocess,
    *,
    without: Collection[str] = (),
    progress: Progress = lambda phase, done, total: None,
) -> Pool:
    """Each class of each source once, with its images of ``split``.

    Classes of two sources are two classes, whatever they are called: "good" cables are no "good" apples.

    Args:
        tasks: of one backbone.
        split: train, val or test.
        preprocess: the backbone's.
        without: names of classes that are left out.
        progress: told of the images that have to be decoded.
    """
    sources = {(task.source, name) for task in tasks for name in task.classes}
    image = 3 * preprocess.size**2
    most = max(1, POOL_BYTES // (image * max(1, len(sources))))
    parts: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for task in tasks:
        images = task.images(
            split, preprocess, progress=partial(progress, f"{task.name}: decoding {split}")
        )
        for label, name in enumerate(task.classes):
            if (task.source, name) not in parts and name not in without:
                parts[task.source, name] = images.pixels[
                    np.flatnonzero(images.labels == label)[:most]
                ]
    names = [name for _, name in parts]
    classes = [
        name if names.count(name) == 1 else f"{Path(source).stem}/{name}" for source, name in parts
    ]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    pixels = np.concatenate([*parts.values(), np.empty((0, *[preprocess.size] * 2, 3), np.uint8)])
    return Pool(tuple(classes), Images(pixels, labels.astype(np.int64)))


def train_trunk(
    backbone: Backbone,
    policy: str,
    entries: Sequence[Entry],
    pooled: Pool,
    keep: float,
    *,
    steps: int | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[Pruned, Recipe]:
    """All entries vote and are averaged; what they keep is trained on the pool.

    Args:
        backbone: the zoo's.
        policy: the zoo's.
        entries: who votes.
        pooled: the images.
        keep: of each unit group.
        steps: so many; by default ``EPOCHS`` passes through the pool.
        seed: of the batches.
        more: of Problem's fields (checkpoint, progress).
    """
    count, recipe = len(pooled.images), recipe_for("mvp", backbone.family)
    if steps is None:
        steps = max(LEAST_STEPS, round(EPOCHS * count / recipe.batch))
    recipe = recipe_for("mvp", backbone.family, steps=steps)
    problem = Problem(
        backbone=backbone,
        policy=policy,
        classes=len(pooled.classes),
        train=pooled.images,
        validation=None,
        widths=exact_widths(unit_groups(backbone.model, policy), keep),
        recipe=recipe,
        seed=seed,
        voters=[entry.voter(keep) for entry in entries],
        **more,
    )
    return mvp(problem), recipe
