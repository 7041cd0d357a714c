"""The trials' pipeline is the product's, but for what a trial changes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.study.distillation import mvp_with_teacher
from benchmarks.study.trials.pipeline import Trial, Warm, pruned_by
from mvp_edge.methods.mvp import mvp
from mvp_edge.subnetwork.cost import forward_macs
from tests.support.networks import problem, voter

TASK = problem("resnet18", method="mvp", steps=3)
TASK = replace(
    TASK,
    voters=[
        replace(voter("resnet18", seed, whole=TASK.backbone), similarity=-float(seed))
        for seed in (1, 2, 3)
    ],
    recipe=Warm(**vars(TASK.recipe)),
)


def test_without_a_change_it_is_the_product_bit_by_bit() -> None:
    ours, theirs = pruned_by(TASK, Trial(), ()), mvp(TASK)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    assert ours.ledger.total_flops == theirs.ledger.total_flops


def test_distillation_alone_is_the_studys_own_method_bit_by_bit() -> None:
    ours, theirs = pruned_by(TASK, Trial(distil=0.5), ()), mvp_with_teacher(TASK)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    assert ours.ledger.total_flops == theirs.ledger.total_flops


@pytest.mark.parametrize(
    "trial",
    [
        Trial(weighted=20.0),
        Trial(weights="vectors"),
        Trial(head="lda"),
        Trial(distil=0.5),
        Trial(widen=2.0),
        Trial(uncovered="zero"),
        Trial(averaged=0.5),
        Trial(afterwards=True),
        Trial(smooth=0.1),
        Trial(warmup=0.5),
    ],
    ids=lambda trial: ", ".join(
        f"{k}={v}" for k, v in vars(trial).items() if v != getattr(Trial(), k)
    ),
)
def test_a_change_changes_the_network(trial: Trial) -> None:
    task = replace(TASK, recipe=replace(TASK.recipe, warmup=trial.warmup))  # type: ignore[call-arg]
    ours, theirs = pruned_by(task, trial, ()), mvp(TASK)
    assert any(
        own.shape != value.shape or not torch.equal(own, value)
        for own, value in zip(
            ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True
        )
    )


def test_uneven_widths_cost_no_more_than_even_ones() -> None:
    zoo = [replace(one, similarity=0.0) for one in TASK.voters]  # all alike: scores of three steps
    even, uneven = (pruned_by(TASK, Trial(uneven=how), zoo) for how in (False, True))
    shape = TASK.backbone.shape
    assert {n: len(u) for n, u in uneven.kept.items()} != {n: len(u) for n, u in even.kept.items()}
    assert forward_macs(uneven.model, shape) <= forward_macs(even.model, shape)
