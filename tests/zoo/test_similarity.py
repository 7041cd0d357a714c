"""LEEP against its formula, and rankings against what they must be."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_edge.zoo.similarity import (
    Match,
    SimilarTask,
    leep,
    nearest,
    rank_by_leep,
    rank_by_wordnet,
    with_shared_meaning,
    wup_similarity,
)
from mvp_edge.zoo.synsets import WordNet
from mvp_edge_export.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def leep_by_loops(theta: Floats, labels: Ints) -> float:
    """Nguyen et al. 2020, section 3, one term at a time."""
    n, source_classes = theta.shape
    total = 0.0
    for i in range(n):
        expected = 0.0
        for z in range(source_classes):
            p_z = sum(theta[j, z] for j in range(n)) / n
            p_yz = sum(theta[j, z] for j in range(n) if labels[j] == labels[i]) / n
            if p_z > 0:
                expected += p_yz / p_z * theta[i, z]
        total += math.log(expected)
    return float(total / n)


def entropy(labels: Ints) -> float:
    shares = [count / len(labels) for count in Counter(labels.tolist()).values()]
    return -sum(p * math.log(p) for p in shares)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, source_classes = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    # From nearly uniform to nearly one-hot rows, with whole columns of zeros.
    logits = rng.normal(size=(n, source_classes)) * draw(st.sampled_from([0.1, 1.0, 10.0, 300.0]))
    theta = np.exp(logits - logits.max(axis=1, keepdims=True))
    theta[:, : draw(st.integers(0, source_classes - 1))] = 0
    theta += (theta.sum(axis=1, keepdims=True) == 0) * np.eye(source_classes)[-1]
    labels = rng.integers(-3, draw(st.integers(-2, 4)), size=n)
    return theta / theta.sum(axis=1, keepdims=True), labels


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_leep_is_its_formula_and_keeps_its_bounds(case: tuple[Floats, Ints]) -> None:
    theta, labels = case
    score = leep(theta, labels)
    assert score == pytest.approx(leep_by_loops(theta, labels), abs=1e-10)
    assert -entropy(labels) - 1e-10 <= score <= 0


@settings(max_examples=25, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_leep_does_not_ask_for_names_or_order(case: tuple[Floats, Ints], random: Any) -> None:
    theta, labels = case
    score = leep(theta, labels)
    columns = random.sample(range(theta.shape[1]), theta.shape[1])
    rows = random.sample(range(len(labels)), len(labels))
    assert leep(theta[:, columns][rows], 7 - 2 * labels[rows]) == pytest.approx(score, abs=1e-10)


@pytest.mark.parametrize("row", [[1.0], [0.2, 0.3, 0.5], [0.0, 1.0]])
def test_a_constant_predictor_gets_minus_the_entropy(row: list[float]) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    score = leep(np.tile(row, (6, 1)), labels)
    assert score == pytest.approx(-entropy(labels), abs=1e-14)
    assert score == pytest.approx(-1.0114042647073518, abs=1e-14)  # ½ln2 + ⅓ln3 + ⅙ln6


def test_a_predictor_that_tells_the_labels_apart_gets_0() -> None:
    labels = np.array([0, 1, 2, 2])
    assert leep(np.eye(5)[[3, 1, 0, 4]], labels) == 0


def test_leep_of_single_precision_rows_whose_sums_are_off() -> None:
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.ones(10), size=500)
    labels = rng.integers(0, 5, 500)
    single = leep(theta.astype(np.float32), labels.astype(np.uint8))
    assert single == pytest.approx(leep(theta, labels), abs=1e-6)
    assert isinstance(single, float)
    assert leep(theta * 1.0005, labels) == pytest.approx(leep(theta, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("theta", "labels"),
    [
        ([[0.5, 0.5], [np.nan, 1.0]], [0, 1]),
        ([[0.5, 0.5], [-0.5, 1.5]], [0, 1]),
        ([[0.5, 0.5], [3.0, 1.0]], [0, 1]),  # logits
        ([[0.5, 0.5]], [0, 1]),
        ([0.5, 0.5], [0, 1]),
        (np.zeros((0, 3)), []),
    ],
)
def test_leep_refuses_what_is_no_softmax(theta: Any, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        leep(np.asarray(theta), np.array(labels, dtype=np.int64))


# Rankings by LEEP


def test_rank_by_leep_orders_by_score_then_name() -> None:
    labels = np.array([0, 0, 1, 1])
    knows, blind = np.eye(2)[labels], np.full((4, 2), 0.5)
    theta = {"b": blind, "c": knows, "a": blind, "d": 0.5 * knows + 0.5 * blind}
    entries = {"b": ["x"], "c": ["y", "z"], "a": ["x"], "d": ["w"]}
    done: list[tuple[int, int]] = []
    ranking = rank_by_leep(theta.__getitem__, labels, entries, lambda *step: done.append(step))
    assert [candidate.task for candidate in ranking] == ["c", "d", "a", "b"]
    assert ranking[0] == SimilarTask("c", 0.0, ("y", "z"))
    assert ranking[-1].score == pytest.approx(-math.log(2))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_entry_without_probabilities_is_named() -> None:
    with pytest.raises(BadInput, match="zoo entry broken"):
        rank_by_leep(lambda _: np.full((2, 3), np.nan), np.array([0, 1]), {"broken": ["x"]})


# Rankings by WordNet


class Table(WordNet):
    """Similarities by a function, in place of a WordNet."""

    def __init__(self, value: Callable[[str, str], float]) -> None:
        super().__init__(None, "a table")
        self._value = value

    def wup(self, a: str, b: str) -> float:
        return 1.0 if a == b else self._value(*sorted((a, b)))


LETTERS = Table(lambda a, b: 1 / (2 + abs(ord(a) - ord(b))))
letters = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(letters, letters)
def test_wup_similarity_is_symmetric_and_1_for_the_same_meanings(
    ours: list[str], theirs: list[str]
) -> None:
    score, matches = wup_similarity(ours, theirs, LETTERS)
    forth = sum(max(LETTERS.wup(a, b) for b in theirs) for a in ours) / len(ours)
    back = sum(max(LETTERS.wup(a, b) for a in ours) for b in theirs) / len(theirs)
    assert score == pytest.approx((forth + back) / 2, abs=1e-12)
    assert score == pytest.approx(wup_similarity(theirs, ours, LETTERS)[0], abs=1e-12)
    assert (score == pytest.approx(1)) == (set(ours) == set(theirs))
    assert [match.ours for match in matches] == ours
    for match in matches:
        assert match.wup == LETTERS.wup(match.ours, match.theirs)
        assert match.wup == max(LETTERS.wup(match.ours, b) for b in theirs)


def test_wup_similarity_needs_classes() -> None:
    with pytest.raises(ValueError, match="without classes"):
        wup_similarity([], ["a"], LETTERS)


def test_rank_by_wordnet_names_classes_and_not_synsets() -> None:
    ours = {"first": "a", "fifth": "e", "one": "a"}
    entries = {
        "far": {"eighth": "h"},
        "twin": {"A": "a", "E": "e"},
        "near": {"second": "b", "fourth": "d", "again": "d"},
        "alike": {"A": "a", "E": "e"},
    }
    ranking = rank_by_wordnet(ours, entries, LETTERS)
    assert [candidate.task for candidate in ranking] == ["alike", "twin", "near", "far"]
    assert ranking[0].score == 1
    near = ranking[2]
    assert near.classes == ("second", "fourth", "again")
    assert near.shared == (
        Match("first", "second", 1 / 3),
        Match("fifth", "fourth", 1 / 3),
        Match("one", "second", 1 / 3),
    )
    bare = [SimilarTask(c.task, -1.0, c.classes) for c in ranking]
    explained = with_shared_meaning(bare, ours, entries, LETTERS)
    assert [c.shared for c in explained] == [c.shared for c in ranking]
    assert {c.score for c in explained} == {-1.0}


# Neighbours

RANKING = [
    SimilarTask("t1", -0.1, ("cat", "dog")),
    SimilarTask("t2", -0.2, ("bus", "car")),
    SimilarTask("t3", -0.3, ("dog", "bus")),
    SimilarTask("t4", -0.4, ("oak", "elm")),
]


def test_nearest_takes_the_first_or_the_first_without_common_classes() -> None:
    assert [c.task for c in nearest(RANKING, 3)] == ["t1", "t2", "t3"]
    assert [c.task for c in nearest(RANKING[::-1], 1)] == ["t4"]
    assert [c.task for c in nearest(RANKING, 2, disjoint_from=["dog", "fox"])] == ["t2", "t4"]
    assert nearest(RANKING, 4, disjoint_from=[]) == RANKING


@pytest.mark.parametrize(
    ("n", "disjoint_from", "message"),
    [
        (5, None, "5 neighbours were asked for, but the zoo has 4 other tasks:"),
        (3, ["dog"], r"has 2 other tasks without a class in common .*\(2 have one\)"),
        (2, ["dog", "bus"], "has 1 other task without"),
        (0, None, "neighbours 0: give at least 1"),
        (-1, None, "neighbours -1: give at least 1"),
    ],
)
def test_too_many_neighbours_says_how_many_there_are(
    n: int, disjoint_from: list[str] | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        nearest(RANKING, n, disjoint_from=disjoint_from)
