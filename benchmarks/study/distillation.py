"""Knowledge distillation (Hinton et al. 2015) from the unpruned backbone, or from several of the zoo's networks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mvp_edge.methods.distill import network_features, teacher_logits
from mvp_edge.methods.mvp import Voting, average_into, hold_vote
from mvp_edge.pruning.batches import Batch
from mvp_edge.pruning.distillation import Teacher
from mvp_edge.pruning.finetune import Ledger, Loss, estimate_statistics, initialise_head
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import Training
from mvp_edge.pruning.votes import Voter
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.subnet import extract, resize

WEIGHT, TEMPERATURE = 0.5, 2.0
"""Of the teacher, in the variants that start from a pooled network."""


def mvp_with_teacher(problem: Problem) -> Pruned:
    """Meta-Vote Pruning whose fine-tuning distils the unpruned backbone's logits beside the labels."""
    kept = {ballot.group.name: ballot.kept for ballot in hold_vote(problem, Voting())}
    full = problem.backbone.with_head(problem.classes)
    average_into(full, problem.voters, problem.policy)
    training = Training(problem, extract(full, kept, problem.policy), kept)
    estimate_statistics(training.model, training.batches, training.ledger)
    initialise_head(training.model, training.batches, problem.classes, training.ledger)
    use_teacher(training, teacher_logits(problem, training.ledger))
    training.loss = distillation_loss(WEIGHT, TEMPERATURE)
    training.run(problem.recipe.steps)
    return training.finished({})


def use_teacher(training: Training, logits: torch.Tensor) -> None:
    """Let the training's batches carry a teacher's logits [N, C] of the training images."""
    training.batches = replace(training.problem, teacher=Teacher(logits, same_classes=True)).batches


def distillation_loss(weight: float, temperature: float, smooth: float = 0.0) -> Loss:
    """Cross entropy with the labels, and the divergence from a teacher of the same classes where there is one.

    Args:
        weight: of the divergence; the cross entropy has the rest.
        temperature: of both distributions in the divergence.
        smooth: label smoothing of the cross entropy.
    """

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        theirs, logits = batch.teacher_logits, logits.float()
        value = (1 - weight) * F.cross_entropy(logits, batch.labels, label_smoothing=smooth)
        if theirs is not None:
            ours, target = (
                F.log_softmax(logits / temperature, 1),
                F.softmax(theirs / temperature, 1),
            )
            value = value + weight * temperature**2 * F.kl_div(ours, target, reduction="batchmean")
        return value

    return loss


FOLDS = 5
"""Of the cross-validation by which several networks together judge the training images."""


def committee_logits(problem: Problem, voters: Sequence[Voter], ledger: Ledger) -> torch.Tensor:
    """Logits float32 [N, C] of the training images, from the features of all voters' networks together.

    Linear discriminant analysis of the concatenated features, cross-validated: the logits of each fifth of
    the images come from a fit to the other four. The multiply-adds go into ``ledger``.
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
    scaled: torch.Tensor = (scale * logits).float()
    return scaled


def discriminant(
    features: torch.Tensor, labels: torch.Tensor, classes: int, shrinkage: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, D] and bias [C] of a linear discriminant analysis of features [N, D], standardised first."""
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
    """The voter's own network; its head is not trained and not used."""
    full = problem.backbone.with_head(problem.classes)
    widths = {name: len(units) for name, units in voter.kept.items()}
    model = resize(full, widths, problem.policy)
    skipped = tuple(f"{name}." for name in heads(model))
    own = {n: t for n, t in voter.weights.items() if not n.startswith(skipped)}
    model.load_state_dict(own, strict=False)
    return model.eval()
