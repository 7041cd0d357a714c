"""One-shot pruning by a score mask: scores by hand, ties, budgets served per group or over all groups."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mvp_edge.methods.smsp import global_widths, score_mask, smsp
from mvp_edge.pruning.importance import weight_norms
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import resize
from tests.support.networks import FAMILIES, backbone, problem, voter


def alike(name: str, similarities: list[float]) -> list[Voter]:
    return [replace(voter(name, i), similarity=s) for i, s in enumerate(similarities)]


def task(name: str = "resnet18d", steps: int = 0) -> Problem:
    return problem(name, method="smsp", steps=steps, voters=alike(name, [-0.4, -0.9, -2.0, -0.5]))


def test_a_score_is_the_similarity_of_those_who_kept_the_unit() -> None:
    asked = task()
    scores, counts = score_mask(asked)
    likelihoods = np.exp([-0.4, -0.9, -2.0, -0.5])
    for group in asked.groups:
        for unit in range(group.size):
            who = [unit in v.ranking[group.name][-asked.widths[group.name] :] for v in asked.voters]
            expected = likelihoods[who].sum() / likelihoods.sum()
            assert scores[group.name][unit] == pytest.approx(expected, abs=1e-8)
            assert counts[group.name][unit] == sum(who)


def test_equals_are_ordered_by_weights_and_the_best_are_kept() -> None:
    asked = task()
    norms = weight_norms(asked.backbone.model, asked.groups)
    scores, _ = score_mask(asked)
    for ballot in smsp(asked).ballots:
        name = ballot.group.name
        rank = list(zip(scores[name].round(8), norms[name], strict=True))
        worst = min(rank[unit] for unit in ballot.kept)
        others = np.setdiff1d(np.arange(ballot.group.size), ballot.kept)
        assert all(rank[unit] <= worst for unit in others)
        assert len(ballot.kept) == asked.widths[name]


def test_the_weights_are_the_backbones() -> None:
    asked = task()
    pruned = smsp(asked)
    rows, columns = (
        torch.from_numpy(pruned.kept[name]) for name in ("layer1.0.conv1.filters", "layer1.stream")
    )
    whole = asked.backbone.model.state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(pruned.model.state_dict()["layer1.0.conv1.weight"], whole[rows][:, columns])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_global_cut_is_the_largest_within_the_same_multiply_adds(name: str) -> None:
    asked = task(name)
    scores, _ = score_mask(asked)
    widths = global_widths(asked, scores)
    outline, shape = asked.backbone.outline(3), asked.backbone.shape

    def macs(chosen: dict[str, int]) -> int:
        return forward_macs(resize(outline, chosen, asked.policy), shape)

    allowed = macs(dict(asked.widths))
    assert macs(widths) <= allowed
    free = [g for g in asked.groups if g.kind != "head_dim"]
    next_best = {g.name: np.sort(scores[g.name])[::-1][widths[g.name]] for g in free
                 if widths[g.name] < g.size}  # fmt: skip
    best = max(next_best, key=lambda group: next_best[group])
    assert macs(widths | {best: widths[best] + 1}) > allowed
    # One threshold: what stays anywhere scores no less than what goes anywhere (but for a last unit).
    for group in free:
        if widths[group.name] > 1:
            assert np.sort(scores[group.name])[::-1][widths[group.name] - 1] >= next_best[best]
    pruned = smsp(asked, spread="global")
    assert {n: len(k) for n, k in pruned.kept.items() if n in widths} == widths


def test_a_ranking_from_one_round_serves_every_budget() -> None:
    """The kept set of a smaller network is the tail of the same ranking, at the widths it was scored at."""
    pruned = smsp(task())
    for name, kept in pruned.kept.items():
        assert sorted(pruned.ranking[name][-len(kept) :].tolist()) == kept.tolist()


def test_it_learns() -> None:
    asked = replace(task(steps=30), backbone=backbone("resnet18d"), policy="tied")
    losses = [step["loss"] for step in smsp(asked).history.steps]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
