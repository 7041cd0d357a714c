"""How a network is fine-tuned: steps, optimizer, learning rate, augmentation. Imports no PyTorch."""

import math
from dataclasses import dataclass
from typing import Literal

SHRINKING = 0.8
"""Iterative methods reach their target size after this share of the steps; the rest recovers accuracy."""

AUGMENTATIONS = ("flip", "shift")
"""Horizontal flips; shifts by up to an eighth of the side."""

PLAIN_PASSES = 4
"""Runs of at most this many passes over the images are not augmented by default: overfitting has not begun, and
unchanged images teach more per step (measured at one, three and six passes)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned."""

    steps: int = 100
    batch: int = 128
    updates: int = 1
    """Optimizer updates per step, each on an equal share of the batch: the same images at the same cost."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.01
    relative_step: float = 0.0
    """Muon only: length of an update of a matrix, relative to the matrix, at the full learning rate."""
    schedule: Literal["cosine", "hold", "constant"] = "cosine"
    """cosine: from lr to 0. hold: lr while the network shrinks (`SHRINKING` of the steps), then cosine."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    fused: bool = False
    """AdamW only: one kernel for each update, which is faster for networks of many small tensors."""
    augment: tuple[str, ...] | None = None
    """Some of `AUGMENTATIONS`. None: all of them, but none in a run of at most `PLAIN_PASSES` passes."""
    head: Literal["means", "zero", "random"] = "means"
    """Initial classifier: nearest class means of the network's own features, zeros, or small random values."""
    statistics: bool = True
    """Re-estimate BatchNorm's running statistics on the task before the first step."""
    accelerator: str = "cpu"

    def rate(self, step: float) -> float:
        """The learning rate at a step, counted from 0; fractions are updates within a step."""
        done = step / self.steps
        if self.schedule == "hold":
            done = max(0.0, done - SHRINKING) / (1 - SHRINKING)
        elif self.schedule == "constant":
            done = 0.0
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def augmentation(self, images: int) -> tuple[str, ...]:
        """The augmentations of a run over this many training images."""
        if self.augment is not None:
            return self.augment
        passes = self.steps * min(self.batch, images) / images
        return AUGMENTATIONS if passes > PLAIN_PASSES else ()
