"""A teacher's part of the loss and of the head, against formulas written out."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mvp_edge.methods import distill
from mvp_edge.methods.distill import TEMPERATURE, WEIGHT, teacher_logits
from mvp_edge.pruning import arithmetic
from mvp_edge.pruning.batches import Batch, Batches, to_input
from mvp_edge.pruning.distillation import UNLABELLED, DistillationBatches, Teacher
from mvp_edge.pruning.finetune import Ledger, class_means, initialise_head, predict_logits
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.tasks.task import Images
from tests.support.networks import backbone, digits, problem, prune_by

PREPROCESS = backbone("resnet18").preprocess


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared here; bfloat16 would hide mistakes."""
    monkeypatch.setattr(arithmetic, "faster_dtype", lambda _accelerator: None)


def batch_of(labels: torch.Tensor, logits: torch.Tensor) -> Batch:
    """A batch whose images do not matter."""
    return Batch(torch.empty(len(labels), 0), labels, logits)


def test_the_loss_is_the_mean_over_images_of_weighted_terms() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, logits = torch.randn(6, 5, generator=generator), torch.randn(6, 2, generator=generator)
    labels = torch.tensor([0, 2, UNLABELLED, 1, UNLABELLED, 2])
    teacher = Teacher(logits, weight=0.3, temperature=2.0)
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        theirs, ours = torch.softmax(logits[row] / 2, 0), torch.softmax(outputs[row, 3:] / 2, 0)
        apart = 4 * float((theirs * (theirs / ours).log()).sum())
        if label == UNLABELLED:
            expected += apart / 6
        else:
            wrong = -float(torch.log_softmax(outputs[row, :3], 0)[label])
            expected += (0.3 * apart + 0.7 * wrong) / 6
    assert float(teacher.loss(outputs, batch_of(labels, logits))) == pytest.approx(
        expected, rel=1e-5
    )


def test_without_labels_the_teacher_alone_counts_and_agreement_costs_nothing() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    nobody, teacher = torch.full((4,), UNLABELLED), Teacher(logits)
    outputs = logits.clone().requires_grad_()
    loss = teacher.loss(outputs, batch_of(nobody, logits))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert outputs.grad is not None
    assert outputs.grad.abs().max() < 1e-6
    assert float(teacher.loss(logits.flip(1), batch_of(nobody, logits))) > 0.1


def test_a_teacher_of_the_same_classes_shares_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, logits = torch.randn(2, 4, 3, generator=generator)
    labels = torch.tensor([0, 2, UNLABELLED, 1])
    teacher = Teacher(logits, weight=0.3, temperature=2.0, same_classes=True)
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        theirs, ours = torch.softmax(logits[row] / 2, 0), torch.softmax(outputs[row] / 2, 0)
        apart = 4 * float((theirs * (theirs / ours).log()).sum())
        wrong = -float(torch.log_softmax(outputs[row], 0)[label])
        expected += (apart if label == UNLABELLED else 0.3 * apart + 0.7 * wrong) / 4
    assert float(teacher.loss(outputs, batch_of(labels, logits))) == pytest.approx(
        expected, rel=1e-5
    )


def test_the_head_of_both_is_the_class_means_of_the_labels() -> None:
    given = problem("resnet18", "magnitude", steps=0)
    logits = torch.randn(len(given.train.labels), 3, generator=torch.Generator().manual_seed(1))
    found = []
    for teacher in (None, Teacher(logits, same_classes=True)):
        model = given.backbone.with_head(3)
        initialise_head(model, replace(given, teacher=teacher).batches, 3, Ledger())
        (head,) = heads(model).values()
        found.append((head.weight, head.bias))
    for plain, both in zip(*found, strict=True):
        assert torch.equal(plain, both)


@pytest.mark.parametrize("family", ["resnet18", "vit"])
def test_distill_keeps_magnitudes_units_and_weights_in_the_backbones_class_means(
    family: str,
) -> None:
    given = problem(family, "distill", steps=6)
    made, plain = prune_by("distill", given), prune_by("magnitude", given)
    for name, units in plain.kept.items():
        assert np.array_equal(made.kept[name], units)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(made.model.parameters(), plain.model.parameters(), strict=True)
    )
    whole = given.backbone.with_head(3)
    asked = forward_macs(whole, given.backbone.shape) * len(given.train.labels)
    spent = made.ledger.statistics_flops - plain.ledger.statistics_flops
    assert spent == asked
    assert made.ledger.training_flops == plain.ledger.training_flops
    assert made.seconds > made.step_seconds

    initialise_head(whole, given.batches, 3, Ledger(), limit=10**6)
    logits = predict_logits(whole, given.train.pixels, given.backbone.preprocess)
    found = teacher_logits(given, Ledger()).numpy()
    assert np.allclose(found, logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())
    teacher = Teacher(torch.from_numpy(found), WEIGHT, TEMPERATURE, same_classes=True)
    again = prune_by("magnitude", replace(given, teacher=teacher))
    for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_teachers_time_is_in_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*given: Any) -> torch.Tensor:
        time.sleep(0.5)
        return teacher_logits(*given)

    monkeypatch.setattr(distill, "teacher_logits", slow)
    monkeypatch.setattr(
        distill, "magnitude", lambda _problem: SimpleNamespace(ledger=Ledger(), seconds=1.0)
    )
    made = prune_by("distill", problem("resnet18", "distill", steps=1))
    assert made.seconds > 1.5


def test_each_image_comes_with_its_own_logits() -> None:
    given = problem("resnet18", "magnitude", steps=4)
    images, count = given.train, len(given.train.labels)
    numbered = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 2)
    how = (images, PREPROCESS, replace(given.recipe, augment=()), 3)
    plain, distilled = Batches(*how), DistillationBatches(*how, Teacher(numbered))
    for step in (0, 1, 7):
        for (x, y, none), (same, labels, own) in zip(
            plain.shares(step), distilled.shares(step), strict=True
        ):
            assert torch.equal(x, same)
            assert torch.equal(y, labels)
            assert none is None
            assert own is not None
            rows = own[:, 0].long().tolist()
            assert [int(images.labels[row]) for row in rows] == labels.tolist()
            assert torch.equal(x, to_input(torch.from_numpy(images.pixels[rows]), PREPROCESS))


def test_each_part_of_the_head_is_the_class_means_of_its_own_classes() -> None:
    given = problem("resnet18", "magnitude", steps=0)
    labels = given.train.labels.copy()
    labels[::3] = UNLABELLED
    images = Images(given.train.pixels, labels)
    whole = given.backbone
    logits = torch.from_numpy(predict_logits(whole.model, images.pixels, whole.preprocess))
    classes = int(labels.max()) + 1
    batches = DistillationBatches(images, whole.preprocess, given.recipe, 0, Teacher(logits))
    model = whole.with_head(classes + logits.shape[1])
    initialise_head(model, batches, classes + logits.shape[1], Ledger(), limit=10**6)
    (head,) = heads(model).values()

    features: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _m, inputs: features.append(inputs[0]))
    predict_logits(model, images.pixels, whole.preprocess)
    hook.remove()
    seen, known = torch.cat(features), torch.from_numpy(labels >= 0)
    first = class_means(seen[known], torch.from_numpy(labels)[known], classes)
    second = class_means(seen, logits.argmax(1), logits.shape[1])
    for got, parts in zip((head.weight, head.bias), zip(first, second, strict=True), strict=True):
        expected = torch.cat(parts)
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_distilled_network_comes_to_agree_with_its_teacher() -> None:
    whole, images = backbone("resnet18"), digits()
    logits = predict_logits(whole.model, images.pixels, whole.preprocess)
    logits = 4 * (logits - logits.mean(0)) / logits.std(0)
    given = problem("resnet18", "magnitude", steps=0)
    unlabelled = Images(images.pixels, np.full(len(images), UNLABELLED))
    given = replace(
        given, train=unlabelled, classes=logits.shape[1], teacher=Teacher(torch.from_numpy(logits))
    )

    def agreement(steps: int) -> float:
        recipe = replace(given.recipe, steps=steps, augment=())
        made = prune_by("magnitude", replace(given, recipe=recipe))
        ours = predict_logits(made.model, images.pixels, whole.preprocess)
        return float((ours.argmax(1) == logits.argmax(1)).mean())

    before, after = agreement(0), agreement(60)
    assert after > before + 0.1
    assert after > 0.6
