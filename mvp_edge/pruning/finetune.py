"""Fine-tuning that can be interrupted: batches, statistics, head, steps, and what they cost.

A batch is a pure function of (seed, step), so nothing but tensors has to be saved for a run that is
killed to go on to the bit-same weights.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

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
from mvp_edge.pruning.muon import Muon, update_macs
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge_export.images import Preprocess


class LabelledImages(Protocol):
    """Decoded images, uint8 [N, S, S, 3], and their labels, int64 [N]."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The images."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The index of each image's class."""


Batch = tuple[torch.Tensor, Any]
"""Images, and their labels or what else a loss compares the logits with: (labels, …)."""

Loss = Callable[[torch.Tensor, Any], torch.Tensor]
"""Of logits [N, C] and the second half of a batch."""


SHRINKING = 0.8
"""Iterative methods reach their target after this share of the steps (METHOD §3)."""


LEAST_SHARE = 8
"""Images of an update: BatchNorm's statistics of fewer say little."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned."""

    steps: int = 100
    batch: int = 128
    updates: int = 1
    """A step's batch is taken in so many equal shares, one update each: the same images, the same cost."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.01
    turn: float = 0.0
    """Of Muon: how far of its own length each matrix moves in an update at the full rate."""
    schedule: Literal["cosine", "hold", "constant"] = "cosine"
    """cosine: from lr to 0; hold: lr while the network shrinks (0.8 of the steps), then cosine."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: tuple[str, ...] = ("flip", "shift")
    head: Literal["means", "zero", "random"] = "means"
    statistics: bool = True
    """Re-estimate BatchNorm's running statistics on the task before the first step."""
    accelerator: str = "cpu"

    def rate(self, step: float) -> float:
        """The learning rate at a step (0-based; a share of it: at one of its updates)."""
        done = step / self.steps
        if self.schedule == "hold":
            done = max(0.0, done - SHRINKING) / (1 - SHRINKING)
        elif self.schedule == "constant":
            done = 0.0
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Ledger:
    """Everything spent, in multiply-adds (METHOD: cost), and the paper's own count beside it."""

    similarity_flops: int = 0
    statistics_flops: int = 0
    training_flops: int = 0
    density_steps: float = 0.0
    """Σ over steps of the fraction of the unpruned multiply-adds (the paper's cost is linear in it)."""
    images: int = 0

    def training(self, macs: int, images: int, density: float) -> None:
        """One step: forward and backward, three forward passes' worth."""
        self.training_flops += 3 * macs * images
        self.density_steps += density
        self.images += images

    @property
    def total_flops(self) -> int:
        """All of it."""
        return self.similarity_flops + self.statistics_flops + self.training_flops


@dataclass
class History:
    """The training curve."""

    steps: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it stands in history.json."""
        return {"schema": 1, **asdict(self)}


class Batches:
    """An endless, seeded stream of augmented training batches; ``batch(step)`` needs no history."""

    def __init__(self, images: LabelledImages, preprocess: Preprocess, recipe: Recipe, seed: int):
        self.images, self.preprocess, self.recipe, self.seed = images, preprocess, recipe, seed
        self.size = min(recipe.batch, len(images.labels))
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batch(self, step: int) -> Batch:
        """Images float32 [B, 3, S, S] in channels-last memory, and labels int64 [B]."""
        first = step * self.size
        index = np.array([self._at(position) for position in range(first, first + self.size)])
        pixels = self._augmented(
            self.images.pixels, index, np.random.default_rng([self.seed, 1, step])
        )
        x = to_input(pixels, self.preprocess).to(self.recipe.accelerator)
        return x, torch.from_numpy(self.images.labels[index]).to(self.recipe.accelerator)

    def shares(self, step: int) -> list[Batch]:
        """The batch of a step as the recipe's updates take it, one after the other."""
        x, y = self.batch(step)
        count = max(1, min(self.recipe.updates, len(y) // LEAST_SHARE))
        return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))

    def plain(self, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """At most ``limit`` distinct training images, unaugmented, in batches of about equal size."""
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.images.labels))[:limit]
        for index in np.array_split(order, max(1, round(len(order) / self.size))):
            pixels = torch.from_numpy(np.ascontiguousarray(self.images.pixels[np.sort(index)]))
            labels = torch.from_numpy(self.images.labels[np.sort(index)])
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
        if not self.recipe.augment:
            return chosen
        count, side = chosen.shape[:2]
        rows, columns = np.tile(np.arange(side), (count, 1)), np.tile(np.arange(side), (count, 1))
        if "flip" in self.recipe.augment:
            flipped = rng.random(count) < 0.5
            columns[flipped] = columns[flipped, ::-1]
        if "shift" in self.recipe.augment:
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


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, AdamW, or Muon; normalisation and biases are not decayed by AdamW."""
    if recipe.optimizer == "muon":
        return Muon(model, recipe.lr, recipe.turn, recipe.momentum, recipe.weight_decay)
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
    return torch.optim.AdamW(sets, recipe.lr)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rate: float,
    accelerator: str,
    loss: Loss = F.cross_entropy,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update on ``batch`` at learning rate ``rate``; returns loss and correct predictions (tensors)."""
    x, y = batch
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    with compute(accelerator):
        logits = model(x)
        value = loss(logits, y)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    labels = y[0] if isinstance(y, tuple) else y
    return value.detach(), (logits.detach().argmax(1) == labels).sum()


class Stepper:
    """A network laid out for training, with its optimizer, and what a step of it costs."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, shape: tuple[int, int, int], dense_macs: int
    ):
        self.recipe, self.dense_macs = recipe, dense_macs
        self.macs = forward_macs(model, shape)
        with self.threads():
            self.model = lay_out(model, recipe.accelerator)
        self.optimizer = make_optimizer(self.model, recipe)
        self._plain = spoils_channels_last(self.model, recipe.accelerator)
        self._turning = update_macs(self.model) if recipe.optimizer == "muon" else 0

    def threads(self) -> AbstractContextManager[None]:
        """Within it, as many threads as an update has work for."""
        update = self.macs * self.recipe.batch // self.recipe.updates
        return worthwhile_threads(update, self.recipe.accelerator)

    def step(
        self,
        batches: Batches,
        number: int,
        ledger: Ledger,
        loss: Loss = F.cross_entropy,
        after_update: Callable[[], None] | None = None,
    ) -> tuple[float, float]:
        """Step ``number`` with all its updates, counted; returns its mean loss and training accuracy."""
        shares = batches.shares(number)
        total = correct = 0.0
        for part, (x, y) in enumerate(shares):
            rate = self.recipe.rate(number + part / len(shares))
            x = x.contiguous() if self._plain else x
            mean, right = train_step(
                self.model, self.optimizer, (x, y), rate, self.recipe.accelerator, loss
            )
            if after_update is not None:
                after_update()
            total += float(mean) * len(x) / batches.size
            correct += float(right)
        ledger.training(self.macs, batches.size, self.macs / self.dense_macs)
        ledger.training_flops += self._turning * len(shares)
        return total, correct / batches.size


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, batches: Batches, ledger: Ledger, limit: int = 1024
) -> None:
    """Replace BatchNorm's running statistics by averages over ≤ ``limit`` training images."""
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
    """Give the classifier(s) the nearest-class-mean rule of the network's own features.

    W_c = s·(μ_c − μ̄), b_c = −s·‖μ_c‖²/2, with s by a line search on the training loss (METHOD §4).
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
        weight, bias = class_means(torch.cat(seen[name]).float(), y, classes)
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def class_means(
    features: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, D] and bias [C] of the scaled nearest-class-mean rule of features [N, D]."""
    onehot = F.one_hot(labels, classes).float()
    counts = onehot.sum(0).clamp(min=1)
    centre = features.mean(0)
    means = (onehot.T @ features) / counts[:, None]
    means = torch.where(onehot.sum(0)[:, None] > 0, means, centre)
    # Offset by the centre: the same rule (it shifts all classes alike), better conditioned.
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
    """Logits float32 [N, C] in eval mode; ``fast``: in the training precision instead of float32."""
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
    """Top-1, 0 … 1."""
    return float((logits.argmax(1) == labels).mean())


def _collector(into: list[torch.Tensor]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def collect(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        into.append(inputs[0].float())

    return collect


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return (3, preprocess.size, preprocess.size)
