"""Automatic head & node pruning: gates, scores, and that what it keeps is better than what a lot would keep."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.methods.ahnp import Gates, Scores, ahnp, fold, keep_snapshot
from mvp_edge.pruning import arithmetic
from mvp_edge.pruning.batches import Batches
from mvp_edge.pruning.finetune import accuracy, make_optimizer, predict_logits, train_step
from mvp_edge.pruning.importance import weight_norms
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.schedule import drop_schedule
from mvp_edge.pruning.training import Training
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.subnet import extract, full_coordinates, mask
from tests.support.networks import backbone, digits, problem

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def gated(name: str = "deit") -> Training:
    """A training with drawn scores."""
    task = problem(name, "ahnp")
    training = Training(task, task.backbone.with_head(3), {})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        training.model.get_parameter("head.weight").normal_(generator=generator)
    for group in task.groups:
        if group.points:
            training.extra[f"score/{group.name}"] = torch.randn(group.size, generator=generator)
            for key in ("mean", "square"):
                training.extra[f"{key}/{group.name}"] = torch.zeros(group.size)
    return training


@pytest.mark.parametrize("name", ["vit", "deit", "distilled"])
def test_folding_computes_what_the_gates_computed(name: str) -> None:
    training = gated(name)
    model = training.model.eval()
    with torch.no_grad():
        plain = model(X)
        with Gates(training, Scores()):
            expected = model(X)
        assert torch.equal(model(X), plain)  # the gates are gone
        fold(model, training.problem.groups, training.extra)
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 0.1


def test_a_step_of_the_scores_is_proximal(monkeypatch: pytest.MonkeyPatch) -> None:
    """S ← soft(S − lr·ĝ, lr·λ), ĝ the averaged gradient over its group's usual size."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    training, how = gated(), Scores(lr=0.1, l1={"head": 0.5, "node": 2.0})
    start = {n: t.clone() for n, t in training.extra.items()}
    seen: dict[str, torch.Tensor] = {}
    with Gates(training, how) as gates:

        def after() -> None:
            for name, score in gates.scores.items():
                assert score.grad is not None
                seen[name] = score.grad.clone()
            gates.update()

        training.run(1, after)
        for group in gates.groups:
            gradient, before = seen[group.name], start[f"score/{group.name}"]
            moved = before - 0.1 * gradient / gradient.square().mean().sqrt()
            expected = torch.sign(moved) * (moved.abs() - 0.1 * how.l1[group.kind]).clamp(min=0)
            after_step = training.extra[f"score/{group.name}"]
            torch.testing.assert_close(after_step, expected, rtol=1e-4, atol=1e-6)
            assert torch.equal(gates.scores[group.name], after_step)
    assert any((training.extra[f"score/{g.name}"] == 0).any() for g in gates.groups)


def test_the_loss_decides_not_lambda_alone() -> None:
    """The trap: raw gradients of a node are so small that all scores sink alike."""
    training = gated()
    for group in training.problem.groups:
        if group.points:
            training.extra[f"score/{group.name}"] = torch.ones(group.size)
    with Gates(training, Scores()) as gates:
        training.run(10, gates.update)
    nodes = training.extra["score/blocks.1.nodes"]
    assert float(nodes.std()) > 2 * 10 * 0.05 * 0.1 * 0.1  # against 10 steps of lr·λ


def test_it_ends_at_the_exact_widths_and_never_below_the_schedule() -> None:
    task = problem("deit", "ahnp", steps=12, snapshots=(0.5,))
    pruned = ahnp(task)
    assert {g.name: g.size for g in unit_groups(pruned.model)} == dict(task.widths)
    drops = drop_schedule({g.name: g.size for g in task.groups}, task.widths, 12, (0.5,))
    for row in pruned.history.steps:
        allowed = [d.widths for d in drops if d.step < row["step"]]
        if allowed:
            assert row["units"] >= sum(allowed[-1].values())
    last = [row["units"] for row in pruned.history.steps if row["step"] > drops[-1].step]
    assert set(last) == {sum(task.widths.values())}
    for group in task.groups:
        order = pruned.ranking[group.name]
        assert sorted(order.tolist()) == list(range(group.size))
        for kept, width in (
            (pruned.kept, task.widths[group.name]),
            (pruned.snapshots[0.5][0], exact_widths(task.groups, 0.5)[group.name]),
        ):
            assert kept[group.name].tolist() == sorted(order[group.size - width :].tolist())


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_few_steps_still_end_at_the_widths(steps: int) -> None:
    task = problem("deit", "ahnp", steps=steps)
    pruned = ahnp(task)
    assert {n: len(units) for n, units in pruned.kept.items()} == dict(task.widths)
    with torch.no_grad():
        assert torch.isfinite(pruned.model(X)).all()


def test_head_dims_fall_by_their_weights_when_a_budget_asks() -> None:
    """And the ranking of dimensions that nobody cut is by weight too, for a later vote to read."""
    task = problem("deit", "ahnp", steps=5)
    narrow = {g.name: 3 for g in task.groups if g.kind == "head_dim"}
    cut = ahnp(problem("deit", "ahnp", steps=5, widths={**task.widths, **narrow}))
    assert all(len(cut.kept[name]) == 3 for name in narrow)
    whole = ahnp(task)
    groups = unit_groups(whole.model)
    norms = weight_norms(whole.model, groups)
    for name in narrow:
        assert (np.diff(norms[name][whole.ranking[name]]) >= 0).all()


def test_a_snapshot_has_its_scores_folded_in() -> None:
    """Training itself goes on with scores and weights apart."""
    training = gated()
    with Gates(training, Scores()), torch.no_grad():
        expected = training.model.eval()(X)
    before = {n: t.clone() for n, t in training.model.state_dict().items()}
    keep_snapshot(training, 0.5)
    assert all(torch.equal(before[n], t) for n, t in training.model.state_dict().items())
    _, weights = training.snapshots[0.5]
    folded = training.problem.backbone.with_head(3)
    folded.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(folded(X), expected, rtol=1e-4, atol=1e-5)


# Planted: half of the heads and nodes do the work, the outputs of the others were made faint.


def planted(seed: int) -> tuple[Problem, dict[str, NDArray[np.int64]]]:
    """A network that tells three digits apart with the units named, and a problem that has room for them."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    architecture = backbone("deit").architecture
    large = architecture.build(3)
    groups = unit_groups(large)
    gates = [g for g in groups if g.points]
    useful = {g.name: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in gates}
    small, preprocess = extract(large, useful), backbone("deit").preprocess
    recipe = Recipe(batch=64, optimizer="adamw", lr=3e-3, augment=("shift",), steps=100)
    batches = Batches(digits(count=300), preprocess, recipe, 0)
    optimizer = make_optimizer(small.train(), recipe)
    for step in range(recipe.steps):
        train_step(small, optimizer, batches.batch(step), recipe.rate(step), "cpu")
    own = large.state_dict()
    for name, (values, index) in full_coordinates(large, useful, small.state_dict()).items():
        own[name][tuple(torch.from_numpy(i) for i in np.ix_(*index))] = values
    for group in gates:
        (reader,) = (cut for cut in group.cuts if cut.axis == 1)
        useless = np.setdiff1d(np.arange(group.size), useful[group.name])
        own[reader.tensor][:, torch.from_numpy(reader.indices(useless))] *= 0.1
    whole = Backbone("planted", architecture, large, preprocess, (), "", "")
    widths = {g.name: g.size // 2 if g.points else g.size for g in groups}
    task = problem("deit", "ahnp", steps=40, backbone=whole, widths=widths, train=digits(count=192))
    return task, useful


def test_the_kept_set_beats_a_random_one() -> None:
    task, useful = planted(0)
    pruned = ahnp(task)
    shares = {n: np.isin(pruned.kept[n], units).mean() for n, units in useful.items()}
    assert min(shares.values()) >= 0.8, shares  # a random selection would keep half
    images = digits(count=300)

    def top1(kept: Any) -> float:
        model: nn.Module = mask(task.backbone.model, kept)
        return accuracy(
            predict_logits(model, images.pixels, task.backbone.preprocess), images.labels
        )

    drawn = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        gates = [g for g in task.groups if g.points]
        drawn.append(top1({g.name: np.sort(rng.permutation(g.size)[: g.size // 2]) for g in gates}))
    assert top1(pruned.kept) > np.mean(drawn) + 0.05
    assert top1(pruned.kept) >= top1({}) - 0.05
