"""Knowledge distillation from the unpruned backbone (Hinton et al. 2015): its logits are an additional target.

Where the teacher's classes are the labels' own, student and teacher share their outputs. Otherwise the student has
one head of two parts, and everything before it is shared:

    outputs   0 … C−1     the labels' classes: cross entropy, for images that have a label
              C … C+K−1   the teacher's classes: divergence from its softmax at a temperature
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mvp_edge.pruning.batches import Batch, Batches, LabelledImages
from mvp_edge.recipe import Recipe
from mvp_edge_export.images import Preprocess

UNLABELLED = -1
"""The label of an image without a label."""


@dataclass(frozen=True)
class Teacher:
    """The teacher's logits of all training images, computed once on the images without augmentation."""

    logits: torch.Tensor
    """float32 [N, K]."""
    weight: float = 0.5
    """Weight of the distillation term in the loss of a labelled image; it is 1 for an unlabelled one."""
    temperature: float = 2.0
    """Both softmaxes of the distillation term are taken at this temperature."""
    same_classes: bool = False
    """Whether the teacher's classes are those of the labels."""

    @property
    def classes(self) -> int:
        """K, the number of the teacher's classes."""
        return self.logits.shape[1]

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean over a batch of ``weight`` · distillation + (1 − ``weight``) · cross entropy.

        Args:
            outputs: the student's, [B, C + K]; [B, C] where the classes are the same.
            batch: with the teacher's logits.
        """
        assert batch.teacher_logits is not None
        labels = batch.labels
        ours = theirs = outputs.float()
        if not self.same_classes:
            ours, theirs = ours.tensor_split([outputs.shape[1] - self.classes], 1)
        known = labels != UNLABELLED
        weight = torch.where(known, self.weight, 1.0)
        target = F.softmax(batch.teacher_logits / self.temperature, 1)
        student = F.log_softmax(theirs / self.temperature, 1)
        divergence = F.kl_div(student, target, reduction="none").sum(1) * self.temperature**2
        value = (weight * divergence).mean()
        if not ours.shape[1]:
            return value
        error = F.cross_entropy(ours, labels, ignore_index=UNLABELLED, reduction="none")
        return value + ((1 - weight) * error).mean()


class DistillationBatches(Batches):
    """Training batches that carry the teacher's logits."""

    def __init__(
        self,
        images: LabelledImages,
        preprocess: Preprocess,
        recipe: Recipe,
        seed: int,
        teacher: Teacher,
    ):
        super().__init__(images, preprocess, recipe, seed)
        self.teacher = teacher

    def shares(self, step: int) -> list[Batch]:
        """The batch of a step in equal shares, each with the teacher's logits of its images."""
        logits = self.teacher.logits[self.rows(step)].to(self.recipe.accelerator)
        parts = super().shares(step)
        logits_of_parts = logits.tensor_split(len(parts))
        return [
            Batch(part.images, part.labels, own)
            for part, own in zip(parts, logits_of_parts, strict=True)
        ]

    def parts(self, outputs: int) -> tuple[int, ...]:
        """Number of classes of each part of the head: the labels' and the teacher's, or those that both share."""
        if self.teacher.same_classes:
            return super().parts(outputs)
        return (outputs - self.teacher.classes, self.teacher.classes)

    def plain(self, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images with their labels [n]; where the teacher has classes of its own, with its top-1 as well [n, 2]."""
        if self.teacher.same_classes:
            yield from super().plain(limit)
            return
        choices = self.teacher.logits.argmax(1)
        for rows, (x, y) in zip(self.distinct(limit), super().plain(limit), strict=True):
            yield x, torch.stack([y, choices[torch.from_numpy(rows)].to(y.device)], 1)
