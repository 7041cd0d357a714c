"""What the benchmarks compare with: at equal multiply-adds, with everything counted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.study import peers
from mvp_edge.methods.distill import network_features
from mvp_edge.pruning.finetune import Ledger, predict_logits
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.tasks.task import Images
from tests.support.networks import problem

TASK = problem("resnet18", method="magnitude", steps=2)
SHAPE = TASK.backbone.shape
WHOLE = forward_macs(TASK.backbone.outline(3), SHAPE)
IMAGES = len(TASK.train.labels)


@pytest.mark.parametrize(
    ("importance", "scope", "rounds"),
    [
        *(
            (importance, scope, rounds)
            for importance in ("magnitude", "taylor", "bn-scale")
            for scope, rounds in (("local", 1), ("global", 1), ("isomorphic", 1), ("local", 2))
        ),
        ("fpgm", "local", 1),
        ("lamp", "global", 1),
    ],
)
def test_torch_pruning_ends_just_below_the_allowed_multiply_adds(
    importance: Any, scope: Any, rounds: int
) -> None:
    made = peers.torch_pruning(TASK, importance, scope=scope, rounds=rounds)
    ours, allowed = forward_macs(made.model, SHAPE), peers.allowed(TASK)
    assert 0.5 * allowed < ours <= allowed
    thin, spent = 3 * 64 * 2 * ours, made.ledger.training_flops
    if rounds == 1:
        assert thin <= spent < 1.05 * thin  # Muon's own share
    else:
        assert 1.5 * thin < spent < 3 * 64 * (WHOLE + ours)  # the first step at a size between
    looked = importance == "taylor"
    assert made.ledger.statistics_flops >= (3 * IMAGES * WHOLE if looked else 2 * IMAGES * ours)
    assert np.isfinite(
        predict_logits(made.model, TASK.train.pixels, TASK.backbone.preprocess)
    ).all()


def test_a_network_that_no_ratio_makes_small_enough_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "allowed", lambda _problem: 1000)
    with pytest.raises(peers.CannotFitError, match="by magnitude, local: no ratio leaves 1,000"):
        peers.torch_pruning(TASK, "magnitude", scope="local", rounds=1)


def test_no_update_takes_the_gradients_that_importance_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carried: list[bool] = []

    def train(outcome: peers.Outcome, *_: Any) -> None:
        carried.append(any(p.grad is not None for p in outcome.model.parameters()))

    monkeypatch.setattr(peers, "_train", train)
    peers.torch_pruning(TASK, "taylor", scope="local", rounds=2)
    assert carried == [False, False]


def test_a_distilled_network_pays_for_its_teachers_opinions() -> None:
    alone = peers.distilled(TASK, peers.thin(TASK), weight=0.0, temperature=1.0)
    distilled = peers.distilled(TASK, peers.thin(TASK), weight=0.5, temperature=2.0)
    assert distilled.ledger.statistics_flops == IMAGES * WHOLE
    assert alone.ledger.statistics_flops == 0
    assert distilled.ledger.training_flops == alone.ledger.training_flops
    assert forward_macs(distilled.model, SHAPE) == peers.allowed(TASK)
    ours, theirs = (one.model.state_dict()["conv1.weight"] for one in (alone, distilled))
    assert not torch.equal(ours, theirs)


def test_an_off_the_shelf_student_sees_the_images_enlarged() -> None:
    small, large = (peers.off_the_shelf("mobilenetv3_small_050", 3, pixels) for pixels in (32, 96))
    assert forward_macs(large, SHAPE) > 4 * forward_macs(small, SHAPE)
    x = torch.rand(2, *SHAPE)
    seen = F.interpolate(x, (96, 96), mode="bilinear")
    network = list(large.eval().children())[-1]
    assert torch.equal(large(x), network(seen))


def test_the_probe_is_logistic_regression_on_the_frozen_backbones_features() -> None:
    made = peers.probe(TASK)
    fresh = TASK.backbone.with_head(3)
    for name, value in made.model.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, fresh.state_dict()[name]), name
    features = network_features(TASK.backbone.with_head(3), TASK, Ledger())
    weight, bias = (made.model.get_parameter(f"fc.{part}") for part in ("weight", "bias"))
    guessed = (features @ weight.T + bias).argmax(1).numpy()
    assert (guessed == TASK.train.labels).mean() > 0.6
    assert made.ledger.total_flops == IMAGES * WHOLE


def test_the_probe_tells_two_classes_apart_as_its_library_does() -> None:
    two = TASK.train.labels < 2
    images = Images(TASK.train.pixels[two], TASK.train.labels[two])
    task = replace(TASK, classes=2, train=images)
    made = peers.probe(task)
    logits = predict_logits(made.model, images.pixels, TASK.backbone.preprocess)
    assert (logits.argmax(1) == images.labels).mean() > 0.6
    assert set(logits.argmax(1)) == {0, 1}


def test_a_pooled_network_goes_on_from_its_own_weights() -> None:
    before = peers.thin(replace(TASK, seed=5))
    made = peers.pooled(replace(TASK, recipe=replace(TASK.recipe, steps=0)), before.state_dict())
    for name, value in before.named_parameters():
        if not name.startswith("fc."):
            assert torch.equal(made.model.get_parameter(name), value), name
    assert forward_macs(made.model, SHAPE) == peers.allowed(TASK)
