"""Muon: momentum whose matrices are orthogonalised before they are added (https://kellerjordan.github.io/posts/muon)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mvp_edge.subnetwork.backbone import heads

ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, from there: they bring singular values near 1 fast, not exactly to it."""


class Muon(torch.optim.Optimizer):
    """Matrices turn along their orthogonalised momentum; vectors and the head move as in SGD with momentum.

    A convolution's weight counts as a matrix [filters, what each sees]. Its step is as long as the matrix itself
    times ``relative_step``, since behind a normalisation only a weight's direction matters: thus no rate of its
    own has to be found for each width.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        relative_step: float,
        momentum: float,
        weight_decay: float,
    ):
        matrices = {id(p) for p in turned(model)}
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in parameters if id(p) in matrices],
                "relative_step": relative_step / lr,
            },
            {"params": [p for p in parameters if id(p) not in matrices], "relative_step": 0.0},
        ]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update at each group's ``lr``, which scales ``relative_step`` alike."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                decay = 0.0 if group["relative_step"] else group["weight_decay"]
                velocity.mul_(group["momentum"]).add_(p.grad).add_(p, alpha=decay)
                if not group["relative_step"]:
                    p.add_(velocity, alpha=-group["lr"])
                    continue
                ahead = p.grad + group["momentum"] * velocity
                way = orthogonal(ahead.flatten(1)).view_as(p)
                length = p.norm() / way.norm().clamp(min=1e-12)
                p.add_(way * length, alpha=-group["lr"] * group["relative_step"])


def turned(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that count as matrices: all of two or more dimensions but the heads'."""
    classifiers = tuple(f"{name}." for name in heads(model))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.requires_grad and not name.startswith(classifiers):
            yield parameter


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About U Vᵀ of a matrix U Σ Vᵀ [rows, columns], by Newton and Schulz's iteration with a quintic.

    Each iteration multiplies by a polynomial of the Gram matrix, and all of them commute. So they are gathered
    in a square of the shorter side, and the matrix itself is multiplied twice instead of ten times.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-12)
    a, b, c = QUINTIC
    gram, gathered = x @ x.T, None
    for last in range(ITERATIONS - 1, -1, -1):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        gathered = polynomial if gathered is None else polynomial @ gathered
        if last:
            gram = polynomial @ gram @ polynomial
    factor: torch.Tensor = gathered @ x
    return factor if matrix.shape[0] <= matrix.shape[1] else factor.T


def update_macs(model: nn.Module) -> int:
    """Multiply-adds of one update's orthogonalisations."""
    squares = (
        4 * ITERATIONS - 3
    )  # a polynomial, its place among the others and the next Gram matrix
    total = 0
    for parameter in turned(model):
        rows, columns = sorted(parameter.flatten(1).shape)
        total += 2 * rows * rows * columns + squares * rows**3
    return total
