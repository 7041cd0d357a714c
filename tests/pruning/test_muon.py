"""Muon's update against singular values, and what it leaves to momentum."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mvp_edge.pruning.finetune import make_optimizer
from mvp_edge.pruning.muon import Muon, matrices, orthogonal, update_macs
from mvp_edge.pruning.training import Training
from mvp_edge.recipe import Recipe
from mvp_edge.structure.classifier import heads
from tests.support.networks import backbone, problem


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_the_way_has_the_gradients_singular_vectors_and_values_near_one(
    rows: int, columns: int, seed: int
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonal(matrix) @ v.T
    values = inside.diagonal()
    clear = s > 0.1 * s.max()  # tiny ones need more iterations
    assert bool(((values > 0.5) & (values < 1.3))[clear].all())
    torch.testing.assert_close(inside - values.diag(), torch.zeros_like(inside), atol=2e-2, rtol=0)


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 99))
def test_it_is_the_iteration_itself(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    # A tiny singular value is known to the square root of float32's precision only.
    torch.testing.assert_close(orthogonal(matrix).double(), x, atol=1e-2, rtol=0)


def test_a_step_turns_each_matrix_by_its_share_and_moves_the_rest_by_momentum() -> None:
    model = backbone("resnet18").with_head(3)
    recipe = Recipe(optimizer="muon", lr=0.1, relative_step=0.05, momentum=0.9, weight_decay=0.01)
    optimizer = make_optimizer(model.train(), recipe)
    assert isinstance(optimizer, Muon)
    for head in heads(model).values():  # a new one is zero, and nothing would reach the body
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    as_matrices = {id(p) for p in matrices(model)}
    named = dict(model.named_parameters())
    assert {n for n, p in named.items() if id(p) in as_matrices} == {
        n for n, p in named.items() if p.dim() == 4
    }
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    velocity = {n: torch.zeros_like(p) for n, p in named.items()}
    for rate in (0.1, 0.04):
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = {n: p.detach().clone() for n, p in named.items()}
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(16) % 3).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, p in named.items():
            moved = p.detach() - before[name]
            if id(p) in as_matrices:
                share = float(moved.norm() / before[name].norm())
                assert share == pytest.approx(0.05 * rate / 0.1, rel=1e-3), name
                assert p.grad is not None
                assert float((moved * p.grad).sum()) < 0, name
            else:
                assert p.grad is not None
                velocity[name] = 0.9 * velocity[name] + p.grad + 0.01 * before[name]
                torch.testing.assert_close(moved, -rate * velocity[name], rtol=1e-3, atol=1e-6)


def test_what_turning_costs_is_counted() -> None:
    base = problem("resnet18", steps=2)
    recipe = Recipe(
        optimizer="muon", relative_step=0.01, steps=2, batch=base.recipe.batch, updates=2
    )
    ours = Training(problem("resnet18", steps=2, recipe=recipe), base.backbone.with_head(3), {})
    theirs = Training(base, base.backbone.with_head(3), {})
    ours.run(2)
    theirs.run(2)
    cost = 0
    for p in matrices(ours.model):
        few, many = sorted((p.shape[0], p.numel() // p.shape[0]))
        cost += few * many * few + 17 * few**3 + few * few * many
    assert update_macs(ours.model) == cost > 0
    assert ours.ledger.training_flops == theirs.ledger.training_flops + 4 * cost
    assert np.isfinite([point["loss"] for point in ours.history.steps]).all()
