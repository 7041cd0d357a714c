"""Muon: momentum whose matrices are orthogonalised before they are added (https://kellerjordan.github.io/posts/muon)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mvp_edge.structure.classifier import heads

ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, from there: they bring singular values near 1 fast, not exactly to it."""


class Muon(torch.optim.Optimizer):
    """Matrices move along their orthogonalised momentum; vectors and the head as in SGD with momentum.

    A convolution's weight counts as a matrix [filters, inputs of each]. An update of a matrix is ``relative_step``
    times as long as the matrix itself: behind a normalisation only the direction of a weight matters, so this needs
    no learning rate of its own for each width.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        relative_step: float,
        momentum: float,
        weight_decay: float,
    ):
        moved = {id(p) for p in matrices(model)}
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in parameters if id(p) in moved],
                "relative_step": relative_step / lr,
            },
            {"params": [p for p in parameters if id(p) not in moved], "relative_step": 0.0},
        ]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update at each group's ``lr``; the relative step is proportional to it."""
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


def matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that count as matrices: all of two or more dimensions, except the heads'."""
    classifiers = tuple(f"{name}." for name in heads(model))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.requires_grad and not name.startswith(classifiers):
            yield parameter


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximately U Vᵀ of a matrix U Σ Vᵀ [rows, columns], by a quintic Newton-Schulz iteration.

    Each iteration multiplies by a polynomial of the Gram matrix, and all of them commute. So the polynomials are
    multiplied first, as squares of the shorter side, and the matrix itself twice instead of ten times.
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
    for parameter in matrices(model):
        rows, columns = sorted(parameter.flatten(1).shape)
        total += 2 * rows * rows * columns + squares * rows**3
    return total
