"""Muon: momentum whose matrices are orthogonalised (https://kellerjordan.github.io/posts/muon)."""

from typing import Any

import torch
from torch import nn

from mvp_edge.subnetwork.backbone import heads


class Muon(torch.optim.Optimizer):
    """Matrices (convolutions, flattened) move along their orthogonalised momentum, scaled by their own length.

    Vectors and the head move by momentum as in SGD. The orthogonal factor is found by Newton and Schulz's
    iteration with the quintic of https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, model: nn.Module, relative: float, momentum: float = 0.9):
        classifiers = tuple(f"{name}." for name in heads(model))
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.dim() > 1 and not n.startswith(classifiers)]
        chosen = {id(p) for p in matrices}
        groups = [
            {"params": matrices, "relative": relative},
            {"params": [p for _, p in named if id(p) not in chosen], "relative": 0.0},
        ]
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step at each group's ``lr``."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                velocity = state.setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(p.grad)
                if not group["relative"]:
                    p.add_(velocity, alpha=-group["lr"])
                    continue
                ahead = p.grad + group["momentum"] * velocity
                way = orthogonal(ahead.flatten(1)).view_as(p)
                length = p.norm() / way.norm().clamp(min=1e-12)
                p.add_(way * length, alpha=-group["lr"] * group["relative"])


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U Vᵀ of the matrix's U Σ Vᵀ [rows, columns]."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-12)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    factor: torch.Tensor = x if matrix.shape[0] <= matrix.shape[1] else x.T
    return factor
