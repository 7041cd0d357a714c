"""Fit the convolutions of a small network, one after the other, to the outputs of other networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.study.distillation import as_module
from mvp_edge.pruning.finetune import estimate_statistics
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.training import Training
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import Kept, kept_axes


@dataclass(frozen=True)
class Teacher:
    """A network to whose convolutions' outputs the small network is fitted."""

    outputs: Mapping[str, torch.Tensor]
    """Convolution → its output [N, channels, H · W]."""
    rows: Mapping[str, NDArray[np.int64]]
    """Convolution → indices of those channels in the backbone; all channels where it is not named."""


@torch.no_grad()
def rebuild(
    training: Training,
    share: float,
    teachers_are: Literal["backbone", "voters"],
    images: int = 256,
    places: int = 16,
) -> None:
    """Move each convolution, first to last, by a ``share`` towards the least-squares fit to its teachers.

    The target of the fit is the teachers' output, at some places of some images; its input is what the small
    network, as rebuilt so far, feeds the convolution. All passes are counted.
    """
    problem, thin = training.problem, training.model
    whole = problem.backbone.with_head(problem.classes)
    estimate_statistics(thin, training.batches, training.ledger, images)
    x = torch.cat([x for x, _ in training.batches.plain(images)])
    models = {"": whole}
    if teachers_are == "voters":
        models = {one.name: as_module(problem, one) for one in problem.voters}
    kept = {one.name: one.kept for one in problem.voters}
    teachers = [_teacher(problem, model, x, kept.get(name, {})) for name, model in models.items()]
    shape = problem.backbone.shape
    training.ledger.statistics_flops += len(x) * sum(
        forward_macs(m, shape) for m in models.values()
    )
    parameters = whole.state_dict()
    axes = kept_axes(problem.groups, training.kept, parameters)
    rng = torch.Generator().manual_seed(problem.seed)
    for name, conv in thin.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        inputs = _inputs(thin, conv, x)
        training.ledger.statistics_flops += len(x) * training.macs
        rows = axes.get((f"{name}.weight", 0), np.arange(conv.out_channels))
        target, has_target = _targets(teachers, name, rows)
        assert not isinstance(conv.padding, str)
        patches = F.unfold(inputs, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        at = torch.randperm(patches.shape[2], generator=rng)[:places]
        a = patches[:, :, at].permute(0, 2, 1).flatten(0, 1).double()
        b = target[:, :, at].permute(0, 2, 1).flatten(0, 1).double()
        a, b = a - a.mean(0), b - b.mean(0)
        gram = a.T @ a
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        fitted = torch.linalg.solve(gram, a.T @ b).T
        before = conv.weight.flatten(1)
        # BatchNorm makes the scale irrelevant to the output; kept, it leaves the step sizes as they were.
        fitted *= before.norm(dim=1, keepdim=True) / fitted.norm(dim=1, keepdim=True).clamp(1e-12)
        fitted[~has_target] = before[~has_target].double()
        conv.weight.lerp_(fitted.reshape(conv.weight.shape).to(conv.weight.dtype), share)
        estimate_statistics(thin, training.batches, training.ledger, images)


def _targets(
    teachers: Sequence[Teacher], name: str, rows: NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean standardised output [N, rows, places] of the teachers that have a channel, and whether any has it."""
    first = teachers[0].outputs[name]
    total = torch.zeros(first.shape[0], len(rows), first.shape[2])
    count = torch.zeros(len(rows))
    for one in teachers:
        given = one.outputs[name]
        channels = one.rows.get(name, np.arange(given.shape[1]))
        both = np.isin(rows, channels)
        own = given[:, torch.from_numpy(np.searchsorted(channels, rows[both]))]
        own = own - own.mean((0, 2), keepdim=True)
        own = own / own.square().mean((0, 2), keepdim=True).sqrt().clamp(min=1e-6)
        place = torch.from_numpy(np.flatnonzero(both))
        total[:, place] += own
        count[place] += 1
    return total / count.clamp(min=1)[:, None], count > 0


def _teacher(problem: Problem, model: nn.Module, x: torch.Tensor, kept: Kept) -> Teacher:
    outputs: dict[str, torch.Tensor] = {}
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}

    def remember(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.float().flatten(2))

    hooks = [m.register_forward_hook(remember(name)) for name, m in convolutions.items()]
    model.eval()
    model(x)
    for hook in hooks:
        hook.remove()
    parameters = problem.backbone.with_head(problem.classes).state_dict()
    axes = kept_axes(problem.groups, kept, parameters)
    rows = {n: axes[f"{n}.weight", 0] for n in convolutions if (f"{n}.weight", 0) in axes}
    return Teacher(outputs, rows)


def _inputs(model: nn.Module, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The input of a module when the network's input is ``x``."""
    found: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0].float()))
    model.eval()
    model(x)
    hook.remove()
    return found[0]
