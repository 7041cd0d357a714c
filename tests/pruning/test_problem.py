"""A network in training that shrinks, is killed, and goes on to the same bits."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.families.family import Family
from mvp_edge.families.resnet import RESNET
from mvp_edge.families.vit import VIT
from mvp_edge.methods.catalogue import METHODS, method_for, recipe_for
from mvp_edge.pruning import arithmetic
from mvp_edge.pruning.batches import Batch
from mvp_edge.pruning.finetune import make_optimizer, train_step
from mvp_edge.pruning.training import Training
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import extract, mask
from mvp_edge_export.errors import BadInput
from tests.support.networks import (
    backbone,
    digits,
    leave,
    problem,
    prune_by,
    random_kept,
    until_killed,
)


@pytest.mark.parametrize(("name", "method"), [("resnet18d", "ifp"), ("deit", "mvp")])
def test_the_momentum_is_cut_with_the_weights(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step after a shrink is the step that the full network would take with all removed units masked."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    task = problem(name, method)
    task = replace(task, recipe=replace(task.recipe, optimizer="sgd", lr=0.05))
    training = Training(task, task.backbone.with_head(3), {})
    training.run(3)
    kept = random_kept(training.model, 1)
    kept = {n: units for n, units in kept.items() if not n.endswith("head_dim")}
    full = mask(training.model, kept)
    momentum = copy.deepcopy(training.model)
    with torch.no_grad():
        for parameter, old in zip(momentum.parameters(), training.model.parameters(), strict=True):
            parameter.copy_(training.optimizer.state[old]["momentum_buffer"])
    momentum = mask(momentum, kept)
    optimizer = make_optimizer(full.train(), task.recipe)
    for parameter, value in zip(full.parameters(), momentum.parameters(), strict=True):
        optimizer.state[parameter]["momentum_buffer"] = value.detach().clone()

    training.shrink(kept, {})
    rate = task.recipe.rate(3)
    train_step(full, optimizer, training.batches.batch(3), rate, "cpu")
    before = {n: p.clone() for n, p in training.model.named_parameters()}
    training.run(4)
    expected = dict(extract(full, kept).named_parameters())
    for tensor, value in training.model.named_parameters():
        torch.testing.assert_close(value, expected[tensor], rtol=1e-4, atol=2e-5)
    moved = max(float((before[n] - p).detach().abs().max()) for n, p in expected.items())
    assert moved > 1e-3


def test_adams_state_is_cut_and_its_step_count_kept() -> None:
    task = problem("deit", "mvp")
    training = Training(task, task.backbone.with_head(3), {})
    training.run(2)
    name = "blocks.0.mlp.fc1.weight"
    before = training.optimizer.state[training.model.get_parameter(name)]
    training.shrink({"blocks.0.nodes": np.array([1, 5])}, {})
    after = training.optimizer.state[training.model.get_parameter(name)]
    assert torch.equal(after["exp_avg_sq"], before["exp_avg_sq"][[1, 5]])
    assert float(after["step"]) == 2


def test_shrinking_keeps_indices_in_the_backbone() -> None:
    task = problem("resnet18d")
    training = Training(task, task.backbone.with_head(3), {})
    name = "layer2.stream"
    training.shrink({name: np.array([0, 2, 5, 7])}, {name: [11, 1, 3, 4, 6, 8, 9, 10]})
    training.shrink({name: np.array([1, 3])}, {name: [2, 0]})
    assert training.kept[name].tolist() == [2, 7]
    assert training.removed[name] == [11, 1, 3, 4, 6, 8, 9, 10, 5, 0]
    assert training.macs == forward_macs(training.model, (3, 16, 16)) < training.dense_macs
    own = task.backbone.model.state_dict()["layer2.0.bn2.weight"]
    assert torch.equal(training.model.state_dict()["layer2.0.bn2.weight"], own[[2, 7]])
    pruned = training.finished({name: np.array([0.9, 0.1])})
    assert pruned.ranking[name].tolist() == [11, 1, 3, 4, 6, 8, 9, 10, 5, 0, 7, 2]


def test_history_ledger_and_progress_of_a_run() -> None:
    seen: list[tuple[str, int, int]] = []
    task = problem(steps=10, validation=digits(count=30), progress=lambda *p: seen.append(p))
    training = Training(task, task.backbone.with_head(3), {})
    training.run(10)
    assert [row["step"] for row in training.history.steps] == list(range(1, 11))
    assert [row["step"] for row in training.history.validation] == [2, 4, 6, 8, 10]
    assert all(0 <= row["top1"] <= 1 for row in training.history.validation)
    assert training.ledger.images == 10 * 64
    assert training.ledger.training_flops == 3 * 10 * 64 * training.dense_macs
    assert training.ledger.density_steps == pytest.approx(10)
    assert seen[-1] == ("tuning", 10, 10)
    assert not training.model.training
    quiet = Training(problem(steps=10), task.backbone.with_head(3), {})
    quiet.run(10)
    for a, b in zip(training.model.parameters(), quiet.model.parameters(), strict=True):
        assert torch.equal(a, b)  # looking at validation images changes nothing


def test_a_finer_step_is_so_many_updates_at_the_same_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    coarse = problem("resnet18", steps=2)
    recipe = replace(coarse.recipe, updates=4)
    ours = Training(replace(coarse, recipe=recipe), coarse.backbone.with_head(3), {})
    bare = Training(coarse, coarse.backbone.with_head(3), {})
    bare.model.load_state_dict(ours.model.state_dict())
    ours.run(2)
    bare.model.train()
    for step in range(2):
        x, y, _ = bare.batches.batch(step)
        losses = []
        for part, (some, labels) in enumerate(zip(x.chunk(4), y.chunk(4), strict=True)):
            rate = recipe.rate(step + part / 4)
            loss, _ = train_step(bare.model, bare.optimizer, Batch(some, labels), rate, "cpu")
            losses.append(float(loss))
        assert ours.history.steps[step]["loss"] == pytest.approx(np.mean(losses))
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, bare.model.state_dict()[name], rtol=1e-4, atol=1e-5)
    bare.run(2)
    assert ours.ledger == bare.ledger
    assert [point["step"] for point in ours.history.steps] == [1, 2]


def test_everything_before_step_1_is_counted() -> None:
    for method, passes in (("magnitude", 2), ("mvp", 2), ("ifp", 2)):
        pruned = prune_by(method, problem(method=method, steps=0 if method == "mvp" else 2))
        forward = forward_macs(pruned.model, (3, 16, 16))
        if method == "ifp":  # its statistics and head are the unpruned network's
            forward = forward_macs(backbone().with_head(3), (3, 16, 16))
        assert pruned.ledger.statistics_flops == passes * 64 * forward
        assert (pruned.ledger.training_flops == 0) == (method == "mvp")


def test_a_thin_resnet_is_not_trained_in_channels_last_where_that_corrupts_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """oneDNN's float32 kernels overrun with few channels into a strided 1×1 convolution (issue 6035)."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    thin, wide = backbone("resnet18").model, nn.Conv2d(16, 16, 1, stride=2)
    assert arithmetic.spoils_channels_last(thin, "cpu")
    assert not arithmetic.spoils_channels_last(wide, "cpu")
    assert not arithmetic.spoils_channels_last(backbone("vit").model, "cpu")
    assert not arithmetic.spoils_channels_last(thin, "cuda")
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: torch.bfloat16)
    assert not arithmetic.spoils_channels_last(thin, "cpu")
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)
    training = Training(problem("resnet18"), backbone("resnet18").with_head(3), {})
    plain: list[bool] = []
    for module in training.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _m, x: plain.append(x[0].is_contiguous()))
    training.run(1)
    assert plain
    assert all(plain)


# Killed at any moment.


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ifp", {"snapshots": (0.6, 0.4)}),
        ("ahnp", {"snapshots": (0.6,)}),
        ("mvp", {}),
        ("magnitude", {}),
        ("distill", {}),
        ("smsp", {}),
        ("conventional", {}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    steps = 12
    whole = tmp_path / "whole"
    whole.mkdir()
    family = "deit" if method == "ahnp" else "resnet18d"
    leave(prune_by(method, problem(family, method, steps=steps, **changes)), whole / "result.json")
    kills = np.random.default_rng(len(method)).integers(1, steps + 1, 2)
    killed = tmp_path / "killed"
    killed.mkdir()
    for at in sorted(kills.tolist()):
        assert until_killed(method, killed, at, steps=steps, **changes) == -9
        assert not (killed / "result.json").exists()
    with safe_open(killed / "checkpoint", framework="pt") as file:
        assert '"step"' in file.metadata()["facts"]
    assert until_killed(method, killed, None, steps=steps, **changes) == 0
    for file in ("result.json", "result.tensors"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


def test_every_checkpoint_is_a_whole_state(tmp_path: Path) -> None:
    """Going on from each saved state in turn, as if the process had died right behind it."""
    states: list[bytes] = []
    path = tmp_path / "checkpoint"

    def remember(_phase: str, _done: int, _total: int) -> None:
        if path.exists() and (not states or path.read_bytes() != states[-1]):
            states.append(path.read_bytes())

    task = problem(steps=7, snapshots=(0.5,), checkpoint=path, progress=remember)
    whole = prune_by("ifp", task)
    leave(whole, tmp_path / "whole")
    assert len(states) >= 3
    for state in states:
        path.write_bytes(state)
        pruned = prune_by("ifp", replace(task, progress=lambda *_: None))
        leave(pruned, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()
        assert pruned.snapshots.keys() == whole.snapshots.keys() == {0.5}
        tensors = [(tmp_path / f"{n}.tensors").read_bytes() for n in ("again", "whole")]
        assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 13},
        {"seed": 1},
        {"snapshots": (0.5,)},
        {"train": digits((0, 1, 3))},
        {"widths": {}},
        {"policy": "inner"},
        {"backbone": backbone("resnet18d", 7)},
        {"method": "taylor"},
        {"kept": [0, 1]},
    ],
)
def test_a_checkpoint_of_another_problem_is_not_gone_on_with(
    other: dict[str, Any], tmp_path: Path
) -> None:
    """The same folder, another command: what lies there would end at other widths, or other bits."""

    def training(steps: int = 12, method: str = "", kept: Any = (), **changes: Any) -> Training:
        task = problem(steps=steps, checkpoint=tmp_path / "checkpoint", **changes)
        units = {"layer1.stream": np.array(kept)} if kept else {}
        model = extract(task.backbone.with_head(3), units, task.policy)
        return Training(task, model, units, method)

    assert not training().restore()
    training().save()
    assert training().restore()
    assert not training(**other).restore()


def test_a_run_over_another_runs_checkpoint_is_as_if_there_were_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    prune_by("ifp", problem(steps=12, checkpoint=path))
    assert path.exists()
    with_old = prune_by("ifp", problem(steps=6, checkpoint=path))
    without = prune_by("ifp", problem(steps=6))
    assert with_old.history == without.history
    for a, b in zip(with_old.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for content in (b"", b"no tensors"):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=f"checkpoint {path} is broken.*delete it"):
            prune_by("ifp", problem(steps=5, checkpoint=path))


# Equal chances.


def test_all_methods_share_what_is_not_their_own() -> None:
    for family in (RESNET, VIT):
        recipes = [recipe_for(name, family) for name in family.methods]
        assert len(recipes) >= 4
        for name in (
            "batch",
            "momentum",
            "weight_decay",
            "augment",
            "head",
            "statistics",
        ):
            assert len({getattr(recipe, name) for recipe in recipes}) == 1
        for one_shot in (True, False):
            alike = [
                recipe_for(name, family).optimizer
                for name in family.methods
                if METHODS[name].one_shot == one_shot
            ]
            assert len(set(alike)) == 1
    recipe = recipe_for("mvp", RESNET)
    assert (recipe.batch, recipe.momentum, recipe.weight_decay, recipe.steps) == (
        128,
        0.9,
        5e-4,
        100,
    )
    assert recipe_for("ifp", RESNET).steps == recipe_for("ahnp", VIT).steps == 1000
    assert recipe_for("mvp", VIT).lr == 2e-4
    own = recipe_for("ifp", RESNET, steps=0, lr=1.0, augment=())
    assert (own.steps, own.lr, own.augment) == (0, 1.0, ())
    faster = recipe_for("mvp", RESNET, lr=2 * recipe.lr)
    assert (faster.lr, faster.relative_step) == pytest.approx(
        (2 * recipe.lr, 2 * recipe.relative_step)
    )


@pytest.mark.parametrize(
    ("name", "family", "culprit"),
    [
        ("ahnp", RESNET, "ahnp is not for resnet backbones: choose trunk, mvp, smsp, ifp"),
        ("ifp", VIT, "ifp is not for vit backbones: choose trunk, mvp, smsp, ahnp"),
        ("best", VIT, "best: choose one of auto, trunk, mvp"),
    ],
)
def test_a_method_that_does_not_fit(name: str, family: Family, culprit: str) -> None:
    with pytest.raises(BadInput, match=culprit):
        method_for(name, family)


def test_the_groups_of_the_problem_are_the_backbones() -> None:
    task = problem("vit", "ahnp")
    assert task.groups == unit_groups(task.backbone.model)
