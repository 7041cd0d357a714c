"""Teachers (the unpruned backbone, or a committee of the zoo's networks) and a loss that heeds them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning.distill import network_features
from mvp_edge.pruning.finetune import Ledger, Loss
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.subnet import resize


def teaching_loss(share: float, temperature: float, smooth: float = 0.0) -> Loss:
    """The loss of plain batches or of those with a teacher of the same classes, and of smoothed labels.

    Args:
        share: of the loss that is the teacher's opinion.
        temperature: temperature of that opinion.
        smooth: label smoothing.
    """

    def loss(logits: torch.Tensor, y: Any) -> torch.Tensor:
        y, theirs = y if isinstance(y, tuple) else (y, None)
        logits = logits.float()
        value = (1 - share) * F.cross_entropy(logits, y, label_smoothing=smooth)
        if theirs is not None:
            ours, target = (
                F.log_softmax(logits / temperature, 1),
                F.softmax(theirs / temperature, 1),
            )
            value = value + share * temperature**2 * F.kl_div(ours, target, reduction="batchmean")
        return value

    return loss


FOLDS = 5


def committee_opinions(problem: Problem, voters: Sequence[Voter], ledger: Ledger) -> torch.Tensor:
    """Logits of the training images [N, C] by what all the voters' networks see together; counted.

    Linear discriminant analysis of the concatenated features; each fifth of the images is judged by the
    other four.
    """
    own = [network_features(as_module(problem, voter), problem, ledger) for voter in voters]
    features = torch.cat(own, 1).double()
    labels = torch.from_numpy(problem.train.labels)
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    logits = torch.empty(len(labels), problem.classes, dtype=torch.float64)
    for one in range(FOLDS):
        rest = fold != one
        weight, bias = discriminant(features[rest], labels[rest], problem.classes)
        logits[~rest] = features[~rest] @ weight.T + bias
    scale = min(
        (10.0**exponent for exponent in np.arange(-2, 1.01, 0.1)),
        key=lambda scale: float(F.cross_entropy(scale * logits, labels)),
    )
    opinions: torch.Tensor = (scale * logits).float()
    return opinions


def discriminant(
    features: torch.Tensor, labels: torch.Tensor, classes: int, shrinkage: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, D] and bias [C] of linear discriminant analysis, of standardised features."""
    centre, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    x = (features - centre) / spread
    onehot = F.one_hot(labels, classes).double()
    means = (onehot.T @ x) / onehot.sum(0)[:, None]
    inside = x - means[labels]
    within = inside.T @ inside / len(labels) + shrinkage * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(within, means.T).T
    bias = -(means * weight).sum(1) / 2
    weight = weight / spread
    return weight, bias - weight @ centre


def as_module(problem: Problem, voter: Voter) -> nn.Module:
    """The voter's own network, with a head that nobody looks at."""
    full = problem.backbone.with_head(problem.classes)
    widths = {name: len(units) for name, units in voter.kept.items()}
    model = resize(full, widths, problem.policy)
    skipped = tuple(f"{name}." for name in heads(model))
    own = {n: t for n, t in voter.weights.items() if not n.startswith(skipped)}
    model.load_state_dict(own, strict=False)
    return model.eval()
