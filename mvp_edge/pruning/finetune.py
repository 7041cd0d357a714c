"""One training step and what precedes the first: BatchNorm statistics, the classifier, and what all of it costs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning.arithmetic import (
    compute,
    lay_out,
    spoils_channels_last,
    worthwhile_threads,
)
from mvp_edge.pruning.batches import Batch, Batches, to_input
from mvp_edge.pruning.muon import Muon, update_macs
from mvp_edge.recipe import Recipe
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge_export.images import Preprocess

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
"""Takes the network's outputs [B, C] and the batch; returns the loss, a scalar."""


def cross_entropy(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss of a run without a teacher."""
    return F.cross_entropy(outputs, batch.labels)


@dataclass
class Ledger:
    """Everything that a run spent, in multiply-adds, beside the cost as the paper counts it."""

    similarity_flops: int = 0
    statistics_flops: int = 0
    training_flops: int = 0
    density_steps: float = 0.0
    """Sum over steps of the network's multiply-adds relative to the unpruned network's, as in the paper's cost."""
    images: int = 0

    def training(self, macs: int, images: int, density: float) -> None:
        """Add one step: a forward and a backward pass cost as much as three forward passes."""
        self.training_flops += 3 * macs * images
        self.density_steps += density
        self.images += images

    @property
    def total_flops(self) -> int:
        """Similarity, statistics and training together."""
        return self.similarity_flops + self.statistics_flops + self.training_flops


@dataclass
class History:
    """The training curve."""

    steps: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, AdamW, or Muon; normalisation and biases are not decayed by AdamW."""
    if recipe.optimizer == "muon":
        return Muon(model, recipe.lr, recipe.relative_step, recipe.momentum, recipe.weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    decayed = [p for p in parameters if p.dim() > 1]
    plain = [p for p in parameters if p.dim() <= 1]
    sets = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(sets, recipe.lr, fused=recipe.fused or None)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    accelerator: str,
    loss: Loss = cross_entropy,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update on ``batch`` at learning rate ``rate``.

    Returns:
        The loss and the number of correct predictions, as tensors: reading them would wait for the accelerator.
    """
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    with compute(accelerator):
        outputs = model(batch.images)
        value = loss(outputs, batch)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # A teacher with classes of its own has outputs of its own, behind those of the labels' classes.
    theirs = 0 if batch.teacher_logits is None else batch.teacher_logits.shape[1]
    own = outputs.shape[1] - theirs or outputs.shape[1]
    return value.detach(), (outputs.detach()[:, :own].argmax(1) == batch.labels).sum()


class Stepper:
    """A network in the memory layout that trains fastest, its optimizer, and the cost of a step."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, shape: tuple[int, int, int], dense_macs: int
    ):
        self.recipe, self.dense_macs = recipe, dense_macs
        self.macs = forward_macs(model, shape)
        with self.threads():
            self.model = lay_out(model, recipe.accelerator)
        self.optimizer = make_optimizer(self.model, recipe)
        self._plain = spoils_channels_last(self.model, recipe.accelerator)
        self._muon_macs = update_macs(self.model) if recipe.optimizer == "muon" else 0

    def threads(self) -> AbstractContextManager[None]:
        """A context with as many threads as one update can keep busy."""
        update = self.macs * self.recipe.batch // self.recipe.updates
        return worthwhile_threads(update, self.recipe.accelerator)

    def step(
        self,
        batches: Batches,
        number: int,
        ledger: Ledger,
        loss: Loss = cross_entropy,
        after_update: Callable[[], None] | None = None,
    ) -> tuple[float, float]:
        """Take step ``number`` with all its updates and count it; returns mean loss and training accuracy."""
        shares = batches.shares(number)
        total = correct = 0.0
        for part, batch in enumerate(shares):
            rate = self.recipe.rate(number + part / len(shares))
            if self._plain:
                batch = batch._replace(images=batch.images.contiguous())
            mean, right = train_step(
                self.model, self.optimizer, batch, rate, self.recipe.accelerator, loss
            )
            if after_update is not None:
                after_update()
            total += float(mean) * len(batch.images) / batches.size
            correct += float(right)
        ledger.training(self.macs, batches.size, self.macs / self.dense_macs)
        ledger.training_flops += self._muon_macs * len(shares)
        return total, correct / batches.size


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, batches: Batches, ledger: Ledger, limit: int = 1024
) -> None:
    """Replace BatchNorm's running statistics by averages over at most ``limit`` training images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    macs = forward_macs(model, _shape(batches.preprocess))
    for x, _ in batches.plain(limit):
        with compute(batches.recipe.accelerator):
            model(x)
        ledger.statistics_flops += macs * len(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def initialise_head(
    model: nn.Module, batches: Batches, classes: int, ledger: Ledger, limit: int = 1024
) -> None:
    """Initialise the classifier, by default with the nearest-class-mean rule of the network's own features.

    W_c = s·(μ_c − μ̄), b_c = −s·‖μ_c‖²/2, where a line search on the training loss gives the scale s.
    """
    classifiers = heads(model)
    if batches.recipe.head == "zero":
        return
    if batches.recipe.head == "random":
        generator = torch.Generator().manual_seed(batches.seed)
        for head in classifiers.values():
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        return
    macs = forward_macs(model, _shape(batches.preprocess))
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in classifiers}
    hooks = [
        head.register_forward_pre_hook(_collector(seen[name])) for name, head in classifiers.items()
    ]
    labels = []
    model.eval()
    for x, y in batches.plain(limit):
        with compute(batches.recipe.accelerator):
            model(x)
        labels.append(y)
        ledger.statistics_flops += macs * len(x)
    for hook in hooks:
        hook.remove()
    y = torch.cat(labels)
    for name, head in classifiers.items():
        features, done = torch.cat(seen[name]).float(), 0
        for part, own in zip(batches.parts(classes), y.reshape(len(y), -1).unbind(1), strict=True):
            known = own >= 0
            if part and known.any():
                rule = class_means(features[known], own[known], part)
                for tensor, values in zip((head.weight, head.bias), rule, strict=True):
                    tensor[done : done + part] = values
            done += part


def class_means(
    features: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scaled nearest-class-mean classifier of features [N, D]: its weight [C, D] and bias [C]."""
    onehot = F.one_hot(labels, classes).float()
    counts = onehot.sum(0).clamp(min=1)
    centre = features.mean(0)
    means = (onehot.T @ features) / counts[:, None]
    means = torch.where(onehot.sum(0)[:, None] > 0, means, centre)
    # Subtracting the centre shifts the scores of all classes alike, and is better conditioned.
    weight, bias = means - centre, -(means.square().sum(1) - centre.square().sum()) / 2
    scores = features @ weight.T + bias

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scale * scores, labels))

    scale = min((10.0**exponent for exponent in np.arange(-4, 3.01, 0.25)), key=loss)
    scale = min((scale * 10.0**step for step in np.arange(-0.2, 0.21, 0.05)), key=loss)
    return scale * weight, scale * bias


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    pixels: NDArray[np.uint8],
    preprocess: Preprocess,
    *,
    batch: int = 250,
    fast: bool = False,
) -> NDArray[np.float32]:
    """Logits float32 [N, C] in eval mode, computed in float32 or, with ``fast``, in the training precision."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(pixels), batch):
        # A copy: the cache's file is read-only, which torch warns of.
        x = to_input(torch.from_numpy(np.array(pixels[start : start + batch])), preprocess)
        if fast:
            with compute(device.type):
                rows.append(model(x.to(device)).float().cpu())
        else:
            rows.append(model(x.to(device)).cpu())
    model.train(training)
    result: NDArray[np.float32] = torch.cat(rows).numpy()
    return result


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy, 0 … 1."""
    return float((logits.argmax(1) == labels).mean())


def _collector(into: list[torch.Tensor]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def collect(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        into.append(inputs[0].float())

    return collect


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return (3, preprocess.size, preprocess.size)
