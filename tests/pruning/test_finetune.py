"""Batches, statistics, head and steps against what they should be, computed the slow way."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning import arithmetic
from mvp_edge.pruning.arithmetic import lay_out, worthwhile_threads
from mvp_edge.pruning.batches import LEAST_SHARE, Batches, to_input
from mvp_edge.pruning.finetune import (
    Ledger,
    accuracy,
    class_means,
    estimate_statistics,
    initialise_head,
    make_optimizer,
    predict_logits,
    train_step,
)
from mvp_edge.recipe import Recipe
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.tasks.task import Images
from mvp_edge_export.images import Preprocess
from tests.support.networks import backbone, digits

PREPROCESS = Preprocess(8, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7))


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared here; bfloat16 would hide mistakes."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)


def numbered(count: int) -> Images:
    """Images that tell which they are."""
    pixels = np.zeros((count, 8, 8, 3), np.uint8)
    pixels[:] = np.arange(count)[:, None, None, None]
    return Images(pixels, np.arange(count, dtype=np.int64) % 3)


def which(x: torch.Tensor) -> list[int]:
    red = x[:, 0, 0, 0] * PREPROCESS.std[0] + PREPROCESS.mean[0]
    return [int(n) for n in (255 * red).round().tolist()]


# Batches.


@given(count=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_each_epoch_is_a_permutation_of_the_images(count: int, size: int, seed: int) -> None:
    batches = Batches(numbered(count), PREPROCESS, Recipe(batch=size, augment=()), seed)
    steps = 3 * count // batches.size + 1
    stream: list[int] = []
    for step in range(steps):
        x, labels, _ = batches.batch(step)
        assert len(x) == batches.size == min(size, count)
        assert [n % 3 for n in which(x)] == labels.tolist()
        stream += which(x)
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(step=st.integers(0, 30), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_batch_is_a_pure_function_of_seed_and_step(step: int, seed: int) -> None:
    """Whatever was drawn before: nothing about batches has to be saved."""
    images = digits(count=50)
    used = Batches(images, PREPROCESS, Recipe(batch=16), seed)
    for other in (7, 30, 2):
        used.batch(other)
    fresh = Batches(images, PREPROCESS, Recipe(batch=16), seed)
    again, first = used.batch(step), fresh.batch(step)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)


@given(count=st.integers(1, 60), size=st.integers(1, 50), steps=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_what_is_seen_a_few_times_is_not_augmented(count: int, size: int, steps: int) -> None:
    """Unless that is asked for: by default a run of at most four passes draws each image as it is."""
    recipe = Recipe(steps=steps, batch=size)
    short = steps * min(size, count) <= 4 * count
    assert recipe.augmentation(count) == (() if short else ("flip", "shift"))
    for asked in ((), ("shift",)):
        assert replace(recipe, augment=asked).augmentation(count) == asked
    used = Batches(numbered(count), PREPROCESS, recipe, 0)
    plain = Batches(numbered(count), PREPROCESS, replace(recipe, augment=()), 0)
    assert used.augmentation == recipe.augmentation(count)
    if short:
        assert torch.equal(used.batch(steps - 1)[0], plain.batch(steps - 1)[0])


def test_seeds_epochs_and_steps_differ() -> None:
    def stream(seed: int) -> list[int]:
        batches = Batches(numbered(30), PREPROCESS, Recipe(batch=30, augment=()), seed)
        return [n for step in range(2) for n in which(batches.batch(step)[0])]

    assert stream(0)[:30] != stream(0)[30:]
    assert stream(0) != stream(1)


@pytest.mark.parametrize("augment", [(), ("flip",), ("shift",), ("flip", "shift")])
def test_augmentation_is_what_a_loop_over_pixels_gives(augment: tuple[str, ...]) -> None:
    """A shift by up to an eighth with the edge repeated, then a flip; the flips are drawn first."""
    side, count = 16, 12
    pixels = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    images = Images(pixels, np.arange(40, dtype=np.int64))
    preprocess = replace(PREPROCESS, size=side)
    batches = Batches(images, preprocess, Recipe(batch=count, augment=augment), 3)
    x, labels, _ = batches.batch(5)
    rng = np.random.default_rng([3, 1, 5])
    flips = rng.random(count) < 0.5 if "flip" in augment else np.zeros(count, bool)
    shifts = np.zeros((2, count, 1), int)
    if "shift" in augment:
        shifts = rng.integers(-2, 3, (2, count, 1))
        assert len(set(shifts.ravel().tolist())) == 5
    for i, label in enumerate(labels.tolist()):
        dy, dx = int(shifts[0, i, 0]), int(shifts[1, i, 0])
        expected = np.empty((side, side, 3), np.uint8)
        for row in range(side):
            for column in range(side):
                seen = side - 1 - column if flips[i] else column
                r, c = np.clip(row + dy, 0, side - 1), np.clip(seen + dx, 0, side - 1)
                expected[row, column] = pixels[label, r, c]
        np.testing.assert_allclose(
            x[i].permute(1, 2, 0).numpy() * preprocess.std + preprocess.mean,
            expected / 255,
            atol=1e-6,
        )


def test_normalisation_is_the_pipelines_own() -> None:
    pixels = digits(count=5, size=8).pixels
    ours = to_input(torch.from_numpy(pixels), PREPROCESS)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(ours.numpy(), PREPROCESS.normalise(pixels), atol=1e-6)


def test_plain_batches_are_distinct_images_in_about_equal_parts() -> None:
    batches = Batches(numbered(100), PREPROCESS, Recipe(batch=16), 0)
    parts = [which(x) for x, _ in batches.plain(90)]
    assert len({n for part in parts for n in part}) == 90
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [which(x) for x, _ in batches.plain(90)] == parts
    assert sum(len(x) for x, _ in batches.plain(1000)) == 100


# Recipe.


def test_learning_rates() -> None:
    cosine = [Recipe(steps=10, lr=2.0).rate(step) for step in range(11)]
    assert cosine[0] == 2.0
    assert cosine[5] == pytest.approx(1.0)
    assert cosine[10] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(cosine))
    hold = [Recipe(steps=10, lr=2.0, schedule="hold").rate(step) for step in range(11)]
    assert hold[:9] == [2.0] * 9
    assert hold[9] == pytest.approx(1.0)
    assert hold[10] == pytest.approx(0.0)
    assert {Recipe(steps=10, lr=2.0, schedule="constant").rate(s) for s in range(11)} == {2.0}


def test_adamw_does_not_decay_normalisation_and_biases() -> None:
    optimizer = make_optimizer(backbone("vit").model, Recipe(optimizer="adamw", weight_decay=0.05))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0
    assert {p.dim() for p in plain["params"]} == {1}
    everything = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    assert everything == sum(p.numel() for p in backbone("vit").model.parameters())


def test_a_step_is_plain_sgd_with_momentum_and_decay() -> None:
    model = backbone("resnet18").with_head(3)
    recipe = Recipe(batch=32, momentum=0.9, weight_decay=5e-4)
    batches = Batches(digits(count=64), replace(PREPROCESS, size=16), recipe, 0)
    with torch.no_grad():
        initialise_head(model, batches, 3, Ledger())
    bare = backbone("resnet18").with_head(3)
    bare.load_state_dict(model.state_dict())
    optimizer = make_optimizer(lay_out(model.train(), "cpu", torch.contiguous_format), recipe)
    momentum = {n: torch.zeros_like(p) for n, p in bare.named_parameters()}
    bare.train()
    for step in range(2):
        batch = batches.batch(step)
        x, y, _ = batch
        loss, correct = train_step(model, optimizer, batch, 0.1, "cpu")
        logits = bare(x)
        bare.zero_grad()
        expected = F.cross_entropy(logits, y)
        expected.backward()  # type: ignore[no-untyped-call]
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
        assert int(correct) == int((logits.argmax(1) == y).sum())
        with torch.no_grad():
            for name, p in bare.named_parameters():
                assert p.grad is not None
                momentum[name] = 0.9 * momentum[name] + p.grad + 5e-4 * p
                p.sub_(0.1 * momentum[name])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, bare.get_parameter(name), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 70), st.integers(1, 64), st.integers(1, 12))
def test_updates_share_the_images_of_a_step(count: int, size: int, updates: int) -> None:
    recipe = Recipe(batch=size, updates=updates)
    batches = Batches(digits(count=count), replace(PREPROCESS, size=8), recipe, 0)
    x, y, _ = batches.batch(1)
    shares = batches.shares(1)
    assert len(shares) == max(1, min(updates, len(y) // LEAST_SHARE))
    lengths = [len(share.labels) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert torch.equal(torch.cat([share.images for share in shares]), x)
    assert torch.equal(torch.cat([share.labels for share in shares]), y)


# What precedes step 1.


def test_statistics_are_the_averages_over_the_tasks_batches() -> None:
    model = backbone("resnet18").with_head(3)
    recipe = Recipe(batch=20)
    batches = Batches(digits(count=90), replace(PREPROCESS, size=16), recipe, 0)
    ledger = Ledger()
    estimate_statistics(model, batches, ledger, limit=80)
    shadow = backbone("resnet18").with_head(3).train()
    seen: dict[str, list[torch.Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(name, []).append(inputs[0].detach())

        return hook

    norms = {n: m for n, m in shadow.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, module in norms.items():
        module.register_forward_pre_hook(remember(name))
    for x, _ in batches.plain(80):
        shadow(x)
    for name in norms:
        assert len(seen[name]) == 4
        means = torch.stack([x.mean((0, 2, 3)) for x in seen[name]]).mean(0)
        variances = torch.stack([x.var((0, 2, 3)) for x in seen[name]]).mean(0)
        ours: Any = model.get_submodule(name)
        torch.testing.assert_close(ours.running_mean, means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.running_var, variances, rtol=1e-4, atol=1e-5)
        assert ours.momentum == 0.1
    assert not model.training
    assert ledger.statistics_flops == 80 * forward_macs(model, (3, 16, 16))
    nothing = Ledger()
    estimate_statistics(backbone("vit").with_head(3), batches, nothing)
    assert nothing == Ledger()


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_:UserWarning")
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_the_head_is_the_nearest_class_mean(name: str) -> None:
    from sklearn.neighbors import NearestCentroid

    model = backbone(name).with_head(3)
    images = digits(count=120)
    recipe = Recipe(batch=64)
    batches = Batches(images, replace(PREPROCESS, size=16), recipe, 0)
    ledger = Ledger()
    initialise_head(model, batches, 3, ledger)
    (head,) = heads(model).values()
    features: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0].clone()))
    logits = predict_logits(model, images.pixels, batches.preprocess)
    known = torch.cat(features).double().numpy()
    centroids = NearestCentroid().fit(known, images.labels)
    distances = ((known[:, None] - centroids.centroids_) ** 2).sum(-1)
    nearest, second, _ = np.sort(distances, axis=1).T
    clear = second - nearest > 1e-5 * (known**2).sum(1)  # float32 can tell them apart
    assert clear.mean() > 0.95
    assert (logits.argmax(1) == centroids.predict(known))[clear].all()
    assert ledger.statistics_flops == 120 * forward_macs(model, (3, 16, 16))
    assert accuracy(logits, images.labels) > 0.5


def test_the_heads_scale_minimises_the_training_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.randn(60, 5, generator=generator) + labels[:, None]
    weight, bias = class_means(features, labels, 3)

    def loss(scale: float) -> float:
        return float(F.cross_entropy(scale * (features @ weight.T + bias), labels))

    best = loss(1.0)
    assert all(best <= loss(scale) + 1e-6 for scale in (0.01, 0.1, 0.5, 0.85, 1.18, 2, 10, 100))
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    direction = (means - features.mean(0)).flatten()
    assert torch.cosine_similarity(weight.flatten(), direction, dim=0) > 0.99999


def test_a_class_without_images_takes_no_part() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    weight, bias = class_means(features, torch.tensor([0, 2]), 3)
    assert torch.equal(weight[1], torch.zeros(2))
    assert float(bias[1]) == 0
    assert torch.isfinite(weight).all()


def test_a_distilled_vit_gets_both_heads() -> None:
    model = backbone("distilled").with_head(3)
    batches = Batches(digits(count=60), replace(PREPROCESS, size=16), Recipe(batch=60), 0)
    initialise_head(model, batches, 3, Ledger())
    assert len(heads(model)) == 2
    assert all(head.weight.abs().sum() > 0 for head in heads(model).values())


@pytest.mark.parametrize("kind", ["zero", "random"])
def test_other_heads(kind: Any) -> None:
    model, ledger = backbone("resnet18").with_head(3), Ledger()
    recipe = Recipe(batch=8, head=kind)
    batches = Batches(digits(count=8), replace(PREPROCESS, size=16), recipe, 4)
    initialise_head(model, batches, 3, ledger)
    assert ledger == Ledger()
    fc = heads(model)["fc"]
    assert bool((fc.weight == 0).all()) == (kind == "zero")
    assert bool((fc.bias == 0).all())


# Cost and prediction.


def test_the_ledger_counts_three_forward_passes_an_image() -> None:
    ledger = Ledger(similarity_flops=5, statistics_flops=7)
    ledger.training(macs=100, images=8, density=0.5)
    ledger.training(macs=10, images=8, density=0.05)
    assert ledger.training_flops == 3 * 8 * 110
    assert ledger.density_steps == pytest.approx(0.55)
    assert ledger.images == 16
    assert ledger.total_flops == 5 + 7 + 3 * 8 * 110


def test_prediction_leaves_the_mode_and_does_not_depend_on_the_batch() -> None:
    model = backbone("resnet18").with_head(3)
    images = digits(count=30)
    batches = Batches(images, replace(PREPROCESS, size=16), Recipe(batch=30), 0)
    initialise_head(model, batches, 3, Ledger())
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    images.pixels.setflags(write=False)  # as the cache's files are
    at_once = predict_logits(model, images.pixels, batches.preprocess)
    parts = predict_logits(model, images.pixels, batches.preprocess, batch=7)
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    np.testing.assert_allclose(at_once, parts, rtol=1e-4, atol=1e-5)
    assert at_once.shape == (30, 3)
    assert accuracy(at_once, at_once.argmax(1)) == 1.0


def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for flags, expected in (
        ({"avx2"}, None),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"bf16"}, torch.bfloat16),
    ):
        monkeypatch.setattr(arithmetic, "_cpu_flags", lambda flags=flags: frozenset(flags))
        assert arithmetic.faster_dtype("cpu") is expected


def test_a_thin_network_trains_on_one_thread_and_a_wide_one_on_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for macs, threads in ((5_500_000, 1), (20_000_000, 2), (55_000_000, 4), (550_000_000, 4)):
            with worthwhile_threads(128 * macs, "cpu"):
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 4
        with worthwhile_threads(1, "cuda"):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
