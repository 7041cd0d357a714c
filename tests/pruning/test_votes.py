"""The vote: exact draws, entrywise averages, and what nobody voted for."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mvp_edge.methods.mvp import Voting, average_into, draw, hold_vote, mvp
from mvp_edge.pruning.importance import weight_norms
from mvp_edge.pruning.votes import Ballot, Voter
from mvp_edge.runs.record import group_votes
from mvp_edge.structure.units import UnitGroup
from tests.support.networks import backbone, problem, voter

# Drawing without replacement, p ∝ exp(v / τ).


def chances(logits: NDArray[np.float64], count: int) -> dict[tuple[int, ...], float]:
    """The exact probability of each set: draw one after the other, softmax over what is left."""
    weights = np.exp(logits - logits.max())
    total: dict[tuple[int, ...], float] = {}
    for order in permutations(range(len(logits)), count):
        chance, left = 1.0, weights.sum()
        for unit in order:
            chance *= weights[unit] / left
            left -= weights[unit]
        key = tuple(sorted(order))
        total[key] = total.get(key, 0.0) + chance
    return total


@pytest.mark.parametrize(("votes", "count"), [([3, 2, 1, 0, 0], 2), ([1, 1, 0, 2], 3), ([0, 1], 1)])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_draws_follow_the_sequential_softmax(votes: list[int], count: int, tau: float) -> None:
    from scipy.stats import chisquare

    logits = np.array(votes) / tau
    expected = chances(logits, count)
    assert sum(expected.values()) == pytest.approx(1)
    rng, seen = np.random.default_rng(0), dict.fromkeys(expected, 0)
    for _ in range(4000):
        seen[tuple(draw(logits, count, rng).tolist())] += 1
    common = [key for key in expected if expected[key] > 0.005]
    rare = [4000 - sum(seen[k] for k in common), 4000 * (1 - sum(expected[k] for k in common))]
    counts = [*([seen[k], 4000 * expected[k]] for k in common), rare]
    got, wanted = zip(*(row for row in counts if row[1] > 1e-9), strict=True)
    assert chisquare(got, wanted).pvalue > 1e-3


@given(votes=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_draw_is_a_set_of_that_many_units(votes: list[int], seed: int) -> None:
    for count in (1, len(votes)):
        drawn = draw(np.array(votes) / 0.2, count, np.random.default_rng(seed))
        assert len(drawn) == count
        assert (np.diff(drawn) > 0).all()
        assert drawn[0] >= 0
        assert drawn[-1] < len(votes)


def unvoted(tau: float) -> float:
    """The share of drawn units without a vote: three neighbours, a tenth of 512 units, alike by chance."""
    rng = np.random.default_rng(0)
    votes = np.zeros(512)
    for _ in range(3):
        votes[rng.permutation(512)[:51]] += 1
    drawn = [draw(votes / tau, 51, rng) for _ in range(200)]
    return float(np.mean([votes[units] == 0 for units in drawn]))


def test_a_temperature_of_one_would_ignore_the_vote() -> None:
    """Nearly half of the units that τ = 1 draws nobody voted for; at 0.2 hardly any."""
    assert 0.4 < unvoted(1.0) < 0.55
    assert unvoted(0.2) < 0.03


# The ballots.


def three(name: str = "resnet18d", keep: float = 0.25) -> list[Voter]:
    return [voter(name, seed, keep) for seed in range(3)]


def test_votes_are_counted_at_the_width_asked_for() -> None:
    """Whatever the entries kept: their nested rankings are read at the target's width."""
    voters = three(keep=0.5)
    for keep in (0.25, 0.75):
        task = problem(method="mvp")
        task = replace(task, widths={g.name: int(keep * g.size) for g in task.groups})
        for ballot in hold_vote(replace(task, voters=voters), Voting()):
            group, width = ballot.group, task.widths[ballot.group.name]
            expected = np.zeros(group.size, int)
            for one in voters:
                for unit in one.ranking[group.name][group.size - width :]:
                    expected[unit] += 1
            assert ballot.votes.tolist() == expected.tolist()
            assert len(ballot.kept) == width


def test_argmax_keeps_the_most_votes_and_breaks_ties_by_weight() -> None:
    task, voters = problem(method="mvp"), three()
    norms = weight_norms(task.backbone.model, task.groups)
    first, second = (
        hold_vote(replace(task, seed=seed, voters=voters), Voting(tau=0)) for seed in (0, 1)
    )
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.kept, b.kept)
        others = np.setdiff1d(np.arange(a.group.size), a.kept)
        lowest = min((a.votes[u], norms[a.group.name][u]) for u in a.kept)
        assert all((a.votes[u], norms[a.group.name][u]) <= lowest for u in others)


def test_a_random_mask_ignores_the_votes_and_seeds_differ() -> None:
    task, voters = problem(method="mvp"), three()
    lots = [
        hold_vote(replace(task, voters=v), Voting(units="random")) for v in (voters, voters[:1])
    ]
    assert all(np.array_equal(a.kept, b.kept) for a, b in zip(*lots, strict=True))
    drawn = [hold_vote(replace(task, seed=s, voters=voters), Voting(tau=0.2)) for s in (0, 0, 1)]
    same, other = (
        [np.array_equal(a.kept, b.kept) for a, b in zip(drawn[0], d, strict=True)]
        for d in drawn[1:]
    )
    assert all(same)
    assert not all(other)


def test_a_ballot_in_votes_json() -> None:
    group = UnitGroup("g", "filter", 4, ())
    ballot = Ballot(group, np.array([0, 2, 0, 1]), np.array([1, 2]))
    assert ballot.without_votes.tolist() == [2]
    assert group_votes(ballot).model_dump() == {
        "name": "g",
        "kind": "filter",
        "size": 4,
        "kept": (1, 2),
        "votes": (0, 2, 0, 1),
        "drawn": (2,),
    }


# Averaging.


def by_loop(
    shape: torch.Size, own: torch.Tensor, voters: list[tuple[dict[tuple[int, ...], float]]]
) -> torch.Tensor:
    """Entry by entry: the mean over the voters that have it, else the backbone's."""
    result = own.double().clone()
    for place in np.ndindex(*shape):
        values = [entries[place] for (entries,) in voters if place in entries]
        if values:
            result[place] = sum(values) / len(values)
    return result


def entries(
    values: torch.Tensor, *kept: NDArray[np.int64], scale: Any = None
) -> tuple[dict[tuple[int, ...], float]]:
    """Place in the backbone → value, for a tensor that keeps these indices of its axes."""
    found = {}
    for place in np.ndindex(*values.shape):
        there = tuple(int(kept[axis][i]) if axis < len(kept) else i for axis, i in enumerate(place))
        factor = 1.0 if scale is None else scale(place[0])
        found[there] = float(values[place].double()) / factor
    return (found,)


def test_averaging_is_entrywise() -> None:
    """W[o, i] is the mean over the neighbours that keep both o and i; where none does, the backbone's."""
    voters = three("resnet18d", keep=0.4)
    full = backbone("resnet18d").with_head(3)
    before = {n: t.clone() for n, t in full.state_dict().items()}
    average_into(full, voters, "tied")
    after = full.state_dict()
    for name, out, into in (
        ("layer2.0.conv2.weight", "layer2.stream", "layer2.0.conv1.filters"),
        ("layer3.0.conv1.weight", "layer3.0.conv1.filters", "layer2.stream"),
        ("layer2.0.downsample.1.weight", "layer2.stream", "layer1.stream"),
    ):
        parts = [entries(v.weights[name], v.kept[out], v.kept[into]) for v in voters]
        expected = by_loop(before[name].shape, before[name], parts)
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-7)
        keepers = np.zeros(before[name].shape[:2], int)
        for v in voters:
            keepers[np.ix_(v.kept[out], v.kept[into])] += 1
        assert set(np.unique(keepers)) >= {0, 1, 2}
        nobody = torch.from_numpy(keepers == 0)
        assert torch.equal(after[name][nobody], before[name][nobody])
    for name in ("layer2.0.bn2.weight", "layer2.0.bn2.bias", "layer2.0.bn2.running_var"):
        parts = [entries(v.weights[name], v.kept["layer2.stream"]) for v in voters]
        expected = by_loop(before[name].shape, before[name], parts)
        torch.testing.assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(after["fc.weight"], before["fc.weight"])  # the classes are others


def test_neighbours_of_other_head_dims_are_averaged_without_their_temperature() -> None:
    """A zoo's q carries √(d_new/d_old); what is averaged is q as the backbone would have it."""
    whole = backbone("vit")
    voters = []
    for seed, dims in enumerate(([0, 1, 2, 5], [2, 3], list(range(8)))):
        one = voter("vit", seed)
        from mvp_edge.subnetwork.subnet import extract

        kept = dict(one.kept) | {f"blocks.{b}.head_dim": np.array(dims) for b in range(2)}
        voters.append(replace(one, kept=kept, weights=extract(whole.model, kept).state_dict()))
    full = whole.with_head(3)
    before = {n: t.clone() for n, t in full.state_dict().items()}
    average_into(full, voters, "heads-nodes")
    for name, value in full.state_dict().items():
        if not name.startswith("head."):  # all voters are cuts of the backbone itself
            torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for one in voters:
            one.weights["blocks.0.attn.qkv.weight"].add_(1.0)
    average_into(full, voters, "heads-nodes")
    parts = []
    for one in voters:
        heads, left = one.kept["blocks.0.heads"], one.kept["blocks.0.head_dim"]
        rows = np.array(
            [24 * part + 8 * head + dim for part in range(3) for head in heads for dim in left]
        )
        queries, factor = len(heads) * len(left), (len(left) / 8) ** 0.5
        values = one.weights["blocks.0.attn.qkv.weight"]
        parts.append(
            entries(values, rows, scale=lambda i, q=queries, f=factor: f if i < q else 1.0)
        )
    name = "blocks.0.attn.qkv.weight"
    expected = by_loop(before[name].shape, before[name], parts)
    torch.testing.assert_close(full.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_one_neighbours_network_is_taken_over_whole() -> None:
    """With N = 1 and its own votes the draw is its kept set, its weights are kept to the bit."""
    one = voter("resnet18d", 5)
    pruned = mvp(problem(method="mvp", steps=0, voters=[one]), Voting(tau=0))
    assert all(np.array_equal(b.kept, one.kept[b.group.name]) for b in pruned.ballots)
    for name, tensor in pruned.model.state_dict().items():
        if "running" not in name and "num_batches" not in name and not name.startswith("fc."):
            assert torch.equal(tensor, one.weights[name])


def test_a_unit_without_a_vote_has_the_backbones_weights() -> None:
    """At a high temperature many units are drawn that no neighbour kept."""
    task = problem(method="mvp", steps=0, voters=[voter("resnet18d", 1)])
    pruned = mvp(task, Voting(tau=50.0))
    (ballot,) = (b for b in pruned.ballots if b.group.name == "layer4.0.conv1.filters")
    assert len(ballot.without_votes) >= 2
    rows = torch.from_numpy(np.searchsorted(ballot.kept, ballot.without_votes))
    own = task.backbone.model.state_dict()["layer4.0.conv1.weight"]
    into = torch.from_numpy(pruned.kept["layer3.stream"])
    expected = own[torch.from_numpy(ballot.without_votes)][:, into]
    assert torch.equal(pruned.model.state_dict()["layer4.0.conv1.weight"][rows], expected)


def test_backbone_weights_under_the_voted_mask() -> None:
    task = problem(method="mvp", steps=0, voters=three())
    pruned, averaged = mvp(task, Voting(weights="backbone")), mvp(task)
    pairs = zip(pruned.ballots, averaged.ballots, strict=True)
    assert all(np.array_equal(a.kept, b.kept) for a, b in pairs)
    name, kept = "layer1.0.conv1", pruned.kept
    own = task.backbone.model.state_dict()[f"{name}.weight"]
    expected = own[torch.from_numpy(kept[f"{name}.filters"])][
        :, torch.from_numpy(kept["layer1.stream"])
    ]
    assert torch.equal(pruned.model.state_dict()[f"{name}.weight"], expected)
    assert not torch.equal(averaged.model.state_dict()[f"{name}.weight"], expected)


def test_the_voted_networks_ranking_is_nested_and_by_votes() -> None:
    """So that it can itself be a neighbour."""
    pruned = mvp(problem(method="mvp", steps=0, voters=three()))
    for ballot in pruned.ballots:
        order = pruned.ranking[ballot.group.name]
        assert sorted(order.tolist()) == list(range(ballot.group.size))
        width = len(ballot.kept)
        assert np.array_equal(np.sort(order[len(order) - width :]), ballot.kept)
        assert (np.diff(ballot.votes[order[len(order) - width :]]) >= 0).all()
