"""The unpruned backbone as a teacher: what it sees in a task's training images, and a step that heeds it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning.finetune import Batches, Ledger, class_means, compute, to_input
from mvp_edge.pruning.problem import Problem
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.cost import forward_macs

Step = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Taught(Batches):
    """Batches whose labels come with the teacher's logits of the image as it is, before it is augmented."""

    def __init__(self, problem: Problem, ledger: Ledger) -> None:
        super().__init__(problem.train, problem.backbone.preprocess, problem.recipe, problem.seed)
        self.opinions = _opinions(problem, ledger)

    def batch(self, step: int) -> Any:
        """(images, (labels, logits))."""
        first = step * self.size
        rows = [self._at(position) for position in range(first, first + self.size)]
        x, y = super().batch(step)
        return x, (y, self.opinions[rows])


def teaching_step(share: float, warmth: float, smooth: float = 0.0) -> Step:
    """A training step as `finetune.train_step`, of plain batches or of ``Taught`` ones.

    Args:
        share: of the loss that is the teacher's opinion.
        warmth: temperature of that opinion.
        smooth: label smoothing.
    """

    def step(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Any,
        rate: float,
        accelerator: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch
        y, theirs = y if isinstance(y, tuple) else (y, None)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        with compute(accelerator):
            logits = model(x)
        logits = logits.float()
        loss = (1 - share) * F.cross_entropy(logits, y, label_smoothing=smooth)
        if theirs is not None:
            ours, target = F.log_softmax(logits / warmth, 1), F.softmax(theirs / warmth, 1)
            loss = loss + share * warmth**2 * F.kl_div(ours, target, reduction="batchmean")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), (logits.detach().argmax(1) == y).sum()

    return step


def _opinions(problem: Problem, ledger: Ledger) -> torch.Tensor:
    """The backbone's logits of the training images [N, C], its head by class means."""
    features = backbone_features(problem, ledger)
    weight, bias = class_means(features, torch.from_numpy(problem.train.labels), problem.classes)
    return features @ weight.T + bias


@torch.no_grad()
def backbone_features(problem: Problem, ledger: Ledger) -> torch.Tensor:
    """What the backbone's classifier sees of every training image [N, D]; counted."""
    model = problem.backbone.with_head(problem.classes).eval()
    seen: list[torch.Tensor] = []
    head = next(iter(heads(model).values()))
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
    for start in range(0, len(problem.train.labels), 250):
        pixels = torch.from_numpy(np.array(problem.train.pixels[start : start + 250]))
        with compute("cpu"):
            model(to_input(pixels, problem.backbone.preprocess))
    hook.remove()
    macs = forward_macs(model, problem.backbone.shape)
    ledger.statistics_flops += macs * len(problem.train.labels)
    return torch.cat(seen)
