"""A teacher's opinion of the training images, beside their labels or where they have none.

Where it knows the labels' own classes, the same outputs heed both. Otherwise what is taught has one head of two
parts, which share all that lies before it:

    outputs   0 … C−1     the labels' classes, by cross entropy where an image has a label
              C … C+K−1   the teacher's classes, by its logits at a temperature (Hinton et al. 2015)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mvp_edge.pruning.batches import Batch, Batches, LabelledImages, Recipe
from mvp_edge_export.images import Preprocess

UNLABELLED = -1
"""The label of an image that nobody labelled."""


@dataclass(frozen=True)
class Teacher:
    """What a network thinks of the training images, once for all steps: of each as it is, not augmented."""

    logits: torch.Tensor
    """float32 [N, K]."""
    share: float = 0.5
    """Of a labelled image's loss; an unlabelled one's is the teacher's alone."""
    temperature: float = 2.0
    """Temperature of its opinion."""
    own: bool = False
    """Whether its classes are the labels' own."""

    @property
    def classes(self) -> int:
        """K."""
        return self.logits.shape[1]

    def loss(
        self, outputs: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Mean over a batch.

        Args:
            outputs: [N, C + K]; [N, C] of a teacher of the labels' own classes.
            target: labels [N] and the teacher's logits [N, K].
        """
        labels, opinions = target
        ours = theirs = outputs.float()
        if not self.own:
            ours, theirs = ours.tensor_split([outputs.shape[1] - self.classes], 1)
        known = labels != UNLABELLED
        heeded = torch.where(known, self.share, 1.0)
        taught, said = (
            F.softmax(opinions / self.temperature, 1),
            F.log_softmax(theirs / self.temperature, 1),
        )
        apart = F.kl_div(said, taught, reduction="none").sum(1) * self.temperature**2
        value = (heeded * apart).mean()
        if not ours.shape[1]:
            return value
        wrong = F.cross_entropy(ours, labels, ignore_index=UNLABELLED, reduction="none")
        return value + ((1 - heeded) * wrong).mean()


class DistillationBatches(Batches):
    """Batches whose labels come with the logits of a teacher of other classes, or of their own."""

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
        """(images, (labels, logits)) of each update."""
        logits = self.teacher.logits[self.rows(step)].to(self.recipe.accelerator)
        parts = super().shares(step)
        opinions = logits.tensor_split(len(parts))
        return [(x, (y, theirs)) for (x, y), theirs in zip(parts, opinions, strict=True)]

    def parts(self, outputs: int) -> tuple[int, ...]:
        """The labels' classes and the teacher's, or the ones that are both's."""
        if self.teacher.own:
            return super().parts(outputs)
        return (outputs - self.teacher.classes, self.teacher.classes)

    def plain(self, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each image with its label, and with the teacher's choice of its other classes [n, 2]."""
        if self.teacher.own:
            yield from super().plain(limit)
            return
        choices = self.teacher.logits.argmax(1)
        for rows, (x, y) in zip(self.distinct(limit), super().plain(limit), strict=True):
            yield x, torch.stack([y, choices[torch.from_numpy(rows)].to(y.device)], 1)
