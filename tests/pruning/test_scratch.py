"""Pruning from scratch: the schedule, the importance of units, and what comes out."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mvp_edge.families import unit_groups
from mvp_edge.pruning import arithmetic
from mvp_edge.pruning.finetune import predict_logits
from mvp_edge.pruning.importance import Meter, least_important, weight_norms
from mvp_edge.pruning.schedule import drop_schedule
from mvp_edge.pruning.training import Training, prepare
from mvp_edge.pruning.votes import Voter
from mvp_edge.recipe import SHRINKING
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge_export.errors import BadInput
from tests.support.networks import backbone, digits, network, problem, prune_by

# The schedule.


@given(
    sizes=st.lists(st.integers(1, 600), min_size=1, max_size=5),
    keep=st.floats(0.02, 0.95),
    steps=st.integers(2, 1200),
)
@settings(max_examples=60, deadline=None)
def test_shrinking_ends_at_the_exact_widths_at_four_fifths(
    sizes: list[int], keep: float, steps: int
) -> None:
    named = {str(i): size for i, size in enumerate(sizes)}
    widths = {name: max(1, int(keep * size + 0.5)) for name, size in named.items()}
    drops = drop_schedule(named, widths, steps)
    assert drops[-1].widths == widths
    if widths == named:
        return
    assert drops[-1].step == max(1, int(SHRINKING * steps))
    for a, b in pairwise(drops):
        assert 0 < a.step < b.step
        assert all(a.widths[name] >= b.widths[name] for name in named)
    assert all(drop.widths[name] >= widths[name] for drop in drops for name in named)


def test_about_the_same_share_goes_at_each_drop_evenly_spaced() -> None:
    """1,000 steps to a tenth: 22 drops of a tenth of what remains, one every 36 steps."""
    drops = drop_schedule({"a": 10_000}, {"a": 1000}, 1000)
    assert len(drops) == 22
    shares = [b.widths["a"] / a.widths["a"] for a, b in pairwise(drops)]
    assert all(0.89 < share < 0.91 for share in shares)
    assert {b.step - a.step for a, b in pairwise(drops)} == {36, 37}
    assert drops[-1].step == 800


@given(
    ratios=st.lists(st.floats(0.11, 0.99), min_size=1, max_size=4, unique=True),
    steps=st.integers(20, 1000),
)
@settings(max_examples=60, deadline=None)
def test_snapshot_ratios_are_hit_exactly(ratios: list[float], steps: int) -> None:
    """Each is one drop's own, at the widths that a zoo of that ratio would have; also when two are near."""
    groups = unit_groups(backbone("vit").model)
    sizes = {g.name: g.size for g in groups} | {"wide": 1000}
    widths = exact_widths(groups, 0.1) | {"wide": 100}
    drops = drop_schedule(sizes, widths, steps, ratios)
    found = {drop.snapshot: drop.widths for drop in drops if drop.snapshot is not None}
    assert found.keys() == set(ratios)
    for ratio, at in found.items():
        assert at == exact_widths(groups, ratio) | {"wide": int(1000 * ratio + 0.5)}
    for a, b in pairwise(drops):
        assert a.step < b.step
        assert all(a.widths[name] >= b.widths[name] for name in sizes)
    assert drops[-1].widths == widths
    assert drops[-1].snapshot is None


def test_a_snapshot_that_is_a_drops_own_ratio_already() -> None:
    drops = drop_schedule({"a": 100}, {"a": 25}, 4, (0.5,))
    assert [drop.widths["a"] for drop in drops if drop.snapshot == 0.5] == [50]


@pytest.mark.parametrize(
    ("steps", "snapshots", "culprit"),
    [
        (100, (0.1,), "snapshot at 0.1 does not lie between 0.25 and 1"),
        (100, (1.0,), "snapshot at 1 "),
        (2, (0.5,), "2 steps are too few for 1 snapshots"),
    ],
)
def test_snapshots_that_cannot_be(steps: int, snapshots: tuple[float, ...], culprit: str) -> None:
    with pytest.raises(BadInput, match=culprit):
        drop_schedule({"a": 100}, {"a": 25}, steps, snapshots)


def test_nothing_to_drop() -> None:
    assert drop_schedule({"a": 4}, {"a": 4}, 100)[0].widths == {"a": 4}
    assert drop_schedule({"a": 4}, {}, 100)[0].widths == {}


# Importance.


def outputs_of(model: nn.Module) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """What each ReLU gives in the next forward pass, and the hooks that watch it."""
    outputs: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    return outputs, [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]


def remembered(
    training: Training, steps: int
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Module → (output, gradient of the loss by it) at each of these steps of the same training."""
    twin = Training(training.problem, training.problem.backbone.with_head(3), {})
    twin.model.load_state_dict(training.model.state_dict())
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    twin.model.train()
    for step in range(steps):
        outputs, hooks = outputs_of(twin.model)
        x, y, _ = twin.batches.batch(step)
        twin.optimizer.zero_grad()
        F.cross_entropy(twin.model(x), y).backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()
        for group in twin.optimizer.param_groups:
            group["lr"] = twin.problem.recipe.rate(step)
        twin.optimizer.step()
        for name, output in outputs.items():
            assert output.grad is not None
            seen.setdefault(name, []).append((output.detach(), output.grad))
    return seen


@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_importance_is_what_stored_activations_and_gradients_give(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean map after BN and ReLU, or (Σ a·∂L/∂a)² a mini-batch; a stream's points in equal shares."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    task = problem("resnet18d", steps=10, validation=digits(count=20))
    training = Training(task, task.backbone.with_head(3), {})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        training.model.get_parameter("fc.weight").normal_(generator=generator)
    seen = remembered(training, 3)
    groups = unit_groups(training.model)
    with Meter(training.model, groups, criterion) as meter:
        training.run(3)  # a validation in between is not observed
    importance = meter.importance()
    assert importance.keys() == {g.name for g in groups}
    for group in groups:
        expected = torch.zeros(group.size)
        for point in group.points:
            values = torch.zeros(group.size)
            for output, gradient in seen[point.module]:
                if criterion == "activation":
                    values += output.mean((0, 2, 3))
                else:
                    values += (output * gradient).sum((0, 2, 3)).square()
            expected += values / values.mean()
        np.testing.assert_allclose(importance[group.name], expected.numpy(), rtol=2e-3)
    before = {n: t.clone() for n, t in meter.sums.items()}
    training.run(4)
    assert all(torch.equal(before[n], t) for n, t in meter.sums.items())  # the hooks are gone


def test_a_heads_taylor_importance_is_of_its_one_gate() -> None:
    """The channels of a head are summed before the square: (Σ a·g)², not Σ (a·g)²."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    (heads,) = [g for g in unit_groups(backbone("deit").model) if g.name == "blocks.0.heads"]
    point = type(heads.points[0])("1", "input", -1)
    group = type(heads)("heads", "head", 2, (), (point,), width=2)
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    with Meter(model, [group], "taylor") as meter:
        model[1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        model(x).square().sum().backward()
        (hidden,) = seen
    gradient = torch.autograd.grad(model[1](hidden).square().sum(), hidden)[0]
    gates = (hidden * gradient).sum((0, 1)).reshape(2, 2).sum(1).square()
    expected = (gates / gates.mean()).detach().numpy()
    np.testing.assert_allclose(meter.importance()["heads"], expected, rtol=1e-4)


def test_the_least_important_fall_in_order() -> None:
    values = {"a": np.array([0.5, 0.1, 0.9, 0.3]), "b": np.array([2.0, 1.0])}
    stay, fall = least_important(values, {"a": 2})
    assert stay["a"].tolist() == [0, 2]
    assert fall["a"] == [1, 3]
    assert stay["b"].tolist() == [0, 1]
    assert fall["b"] == []


@pytest.mark.parametrize("name", ["resnet26", "vit"])
def test_weight_norms_are_those_of_the_rows_that_write_a_unit(name: str) -> None:
    model = backbone(name).model
    groups = {g.name: g for g in unit_groups(model)}
    norms = weight_norms(model, list(groups.values()))
    own = dict(model.named_parameters())

    def rows(tensor: str, *index: Any) -> torch.Tensor:
        weight = own[tensor].detach()
        return weight.flatten(1) if not index else weight.reshape(*index)

    if name == "vit":
        q, k, v = (rows("blocks.0.attn.qkv.weight", 3, 3, 8, 24)[i] for i in range(3))
        for kind, axes in (("heads", (1, 2)), ("head_dim", (0, 2))):
            parts = [part.square().sum(axes).sqrt() for part in (q, k, v)]
            expected = sum((part / part.mean() for part in parts), torch.zeros(1))
            np.testing.assert_allclose(norms[f"blocks.0.{kind}"], expected.numpy(), rtol=1e-5)
    else:
        parts = [rows(f"layer2.0.{conv}.weight").norm(dim=1) for conv in ("conv3", "downsample.0")]
        expected = sum((part / part.mean() for part in parts), torch.zeros(1))
        np.testing.assert_allclose(norms["layer2.stream"], expected.numpy(), rtol=1e-5)


# The methods.


@pytest.mark.parametrize(
    "method", ["ifp", "ifp-taylor", "distill", "conventional", "magnitude", "random"]
)
def test_the_ranking_is_nested(method: str) -> None:
    """Its last m units are the kept set at any m that the run passed, snapshots included."""
    ratios = (0.7, 0.4) if method.startswith("ifp") else ()
    task = problem(steps=12, snapshots=ratios)
    pruned = prune_by(method, task)
    assert pruned.snapshots.keys() == set(ratios)
    stations = [(pruned.kept, task.widths)]
    for ratio, (kept, _) in pruned.snapshots.items():
        stations.append((kept, exact_widths(task.groups, ratio)))
    for group in task.groups:
        order = pruned.ranking[group.name]
        assert sorted(order.tolist()) == list(range(group.size))
        for kept, widths in stations:
            width = widths[group.name]
            assert kept[group.name].tolist() == sorted(order[group.size - width :].tolist())


def test_a_snapshot_is_a_working_network_between_two_drops() -> None:
    """It is what the training was just before the next drop, statistics and all."""
    task = problem(steps=12, snapshots=(0.5,))
    pruned = prune_by("ifp", task)
    kept, weights = pruned.snapshots[0.5]
    module = network(task.backbone, Voter("", kept, pruned.ranking, weights)).module()
    logits = predict_logits(module, task.train.pixels, task.backbone.preprocess)
    assert np.isfinite(logits).all()
    drops = drop_schedule({g.name: g.size for g in task.groups}, task.widths, 12, (0.5,))
    after = next(b for a, b in pairwise(drops) if a.snapshot == 0.5)
    untouched = problem(steps=12)
    # The tracked statistics count the steps: statistics' one batch, then one a step.
    assert int(weights["layer2.0.bn1.num_batches_tracked"]) == 1 + after.step
    assert prune_by("ifp", untouched).snapshots == {}


def test_ifp_ends_at_the_widths_and_each_step_costs_what_the_network_is() -> None:
    task = problem(steps=20)
    pruned = prune_by("ifp", task)
    assert {g.name: g.size for g in unit_groups(pruned.model)} == dict(task.widths)
    units = [row["units"] for row in pruned.history.steps]
    assert all(a >= b for a, b in pairwise(units))
    assert units[16] == units[-1] == sum(task.widths.values())
    assert units[15] > units[16]
    dense = 3 * 20 * 64 * Training(task, task.backbone.with_head(3), {}).dense_macs
    assert pruned.ledger.training_flops < 0.7 * dense


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_few_steps_still_end_at_the_widths(steps: int) -> None:
    """With no step to observe, the weights decide."""
    task = problem(steps=steps)
    pruned = prune_by("ifp", task)
    assert {name: len(units) for name, units in pruned.kept.items()} == dict(task.widths)
    assert len(pruned.history.steps) == steps
    if steps == 0:
        norms = weight_norms(task.backbone.model, task.groups)
        kept = pruned.kept["layer4.stream"]
        others = np.setdiff1d(np.arange(24), kept)
        assert norms["layer4.stream"][kept].min() >= norms["layer4.stream"][others].max()


def test_ifp_keeps_what_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that the backbone silences (γ = 0, β < 0) fall first."""
    whole = backbone("resnet18d").with_head(3)
    silent = {"layer1.0.bn1": [0, 2, 5], "layer3.0.bn1": [1, 4, 7, 8, 15]}
    with torch.no_grad():
        for name, units in silent.items():
            whole.get_parameter(f"{name}.weight")[units] = 0
            whole.get_parameter(f"{name}.bias")[units] = -1
    task = problem(steps=10)
    monkeypatch.setattr(type(task.backbone), "with_head", lambda _self, _classes: whole)
    pruned = prune_by("ifp", task)
    for name, units in silent.items():
        group = name.replace("bn1", "conv1") + ".filters"
        assert set(pruned.ranking[group][: len(units)].tolist()) == set(units)


def test_conventional_pruning_trains_the_whole_network_and_cuts_it_once() -> None:
    task = problem(steps=12)
    whole = Training(task, task.backbone.with_head(3), {})
    prepare(whole)
    whole.run(6)
    norms = weight_norms(whole.model, unit_groups(whole.model))
    pruned = prune_by("conventional", task)
    assert [row["units"] for row in pruned.history.steps] == [
        *[sum(g.size for g in task.groups)] * 6, *[sum(task.widths.values())] * 6
    ]  # fmt: skip
    for group in task.groups:
        largest = np.argsort(norms[group.name], kind="stable")[-task.widths[group.name] :]
        assert pruned.kept[group.name].tolist() == sorted(largest.tolist())


def test_magnitude_and_random_cut_the_backbone_once() -> None:
    task = problem(steps=0)
    own = task.backbone.model.state_dict()
    magnitude, lot = (prune_by(name, task) for name in ("magnitude", "random"))
    other = prune_by("random", problem(steps=0, seed=1))
    name = "layer4.0.conv1"
    for pruned in (magnitude, lot):
        kept = torch.from_numpy(pruned.kept[f"{name}.filters"])
        into = torch.from_numpy(pruned.kept["layer3.stream"])
        expected = own[f"{name}.weight"][kept][:, into]
        assert torch.equal(pruned.model.state_dict()[f"{name}.weight"], expected)
    norms = weight_norms(task.backbone.model, task.groups)[f"{name}.filters"]
    largest = magnitude.kept[f"{name}.filters"]
    assert set(largest) == set(np.argsort(norms)[-len(largest) :])
    assert any(not np.array_equal(lot.kept[n], other.kept[n]) for n in lot.kept)
