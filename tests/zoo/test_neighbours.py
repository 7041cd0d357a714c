"""Who is similar: what is asked of the zoo's models, what it costs, and whom it may not be."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvp_edge.pruning.finetune import Ledger, predict_logits
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import Neighbours, NeighbourSearch, Target
from mvp_edge.zoo.similarity import leep
from mvp_edge_export.errors import BadInput
from tests.support.networks import backbone, digits, network, voter

WHOLE = backbone("resnet18d")
TASKS = {
    "a": ("cat", "dog", "horse"),
    "b": ("rose", "tulip", "daisy"),
    "c": ("dog", "wolf", "fox"),
    "d": ("car", "bus", "lorry"),
}
SYNSETS = {
    "cat": "cat.n.01", "dog": "dog.n.01", "horse": "horse.n.01", "rose": "rose.n.01",
    "tulip": "tulip.n.01", "daisy": "daisy.n.01", "wolf": "wolf.n.01", "fox": "fox.n.01",
    "car": "car.n.01", "bus": "bus.n.01", "lorry": "truck.n.01",
}  # fmt: skip
OURS = ("wolf", "lion", "tiger")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Four drawn models; c has one of our classes; d kept twice as much."""
    zoo = Zoo.create(tmp_path_factory.mktemp("zoo") / "z", WHOLE, "tied", 0.25)
    for seed, (name, classes) in enumerate(TASKS.items()):
        model = network(WHOLE, voter("resnet18d", seed, 0.5 if name == "d" else 0.25), classes)
        zoo.add(
            name,
            model,
            synsets=[SYNSETS[one] for one in classes],
            scores={},
            cost={},
            recipe={"method": "random", "steps": 0},
            keep=0.25,
        )
    return zoo.entries()


def find(
    entries: list[Entry], count: int = 2, progress: Any = lambda *p: None, **options: Any
) -> tuple[Neighbours, Ledger]:
    ledger, target = Ledger(), Target(digits(count=40), OURS)
    found = NeighbourSearch(entries, WHOLE, **options).find(target, count, ledger, progress)
    return found, ledger


def test_the_ranking_is_leep_of_each_models_own_predictions(entries: list[Entry]) -> None:
    """Modules are reused where shapes agree, never weights."""
    found, _ = find(entries)
    images = digits(count=40)
    for candidate in found.candidates:
        module = next(e for e in entries if e.name == candidate.task).network.module()
        logits = predict_logits(module, images.pixels, WHOLE.preprocess, fast=True)
        probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
        assert candidate.score == pytest.approx(leep(probabilities, images.labels), abs=2e-3)
    scores = [c.score for c in found.candidates]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert [c.task for c in found.chosen] == [c.task for c in found.candidates[:2]]


def test_every_forward_pass_is_in_the_ledger(entries: list[Entry]) -> None:
    _, ledger = find(entries)
    expected = sum(forward_macs(e.network.module(), WHOLE.shape) for e in entries)
    assert ledger.similarity_flops == 40 * expected
    assert ledger.total_flops == ledger.similarity_flops


def test_meanings_cost_nothing_and_rank_by_themselves(entries: list[Entry]) -> None:
    """Wolves and foxes are nearer to big cats than flowers or vehicles are."""
    pytest.importorskip("nltk")
    try:
        found, ledger = find(entries, similarity="wordnet")
    except BadInput as error:
        pytest.skip(f"no WordNet here: {error}")
    assert ledger == Ledger()
    assert {c.task for c in found.chosen} == {"a", "c"}
    assert {m.ours for m in found.chosen[0].shared} == set(OURS)


def test_disjoint_neighbours_share_no_class(entries: list[Entry]) -> None:
    found, _ = find(entries, 3, disjoint=True)
    assert {c.task for c in found.chosen} == {"a", "b", "d"}
    assert {c.task for c in found.candidates} == set(TASKS)


@pytest.mark.parametrize(
    ("count", "options", "problem"),
    [
        (5, {}, "5 neighbours were asked for, but the zoo has 4"),
        (4, {"disjoint": True}, "zoo has 3 other tasks without a class in common"),
        (0, {}, "give at least 1"),
        (5, {"similarity": "wordnet"}, "5 neighbours were asked for"),
    ],
)
def test_too_few_are_refused_before_any_forward_pass(
    count: int, options: dict[str, Any], problem: str, entries: list[Entry], monkeypatch: Any
) -> None:
    monkeypatch.setattr("mvp_edge.zoo.neighbours.predict_logits", None)
    with pytest.raises(BadInput, match=problem):
        find(entries, count, **options)


def test_progress_is_reported_for_every_entry(entries: list[Entry]) -> None:
    seen: list[tuple[str, int, int]] = []
    found, _ = find(entries, 1, progress=lambda *p: seen.append(p))
    assert seen == [("similarity", done, 4) for done in range(1, 5)]
    assert found.similarity == "leep"
    (only,) = found.chosen
    assert only.classes == TASKS[only.task]


def test_a_damaged_entry_is_named(entries: list[Entry], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(entries[1].directory, tmp_path / "entries" / "b"))
    (copy / "network.safetensors").write_bytes(b"")
    broken = [entries[0], replace(entries[1], directory=copy)]
    with pytest.raises(BadInput, match="zoo entry b is broken"):
        find(broken, 1)


def test_unknown_names_do_not_stop_leep(entries: list[Entry]) -> None:
    """Meanings are only described where there are any."""
    ledger, target = Ledger(), Target(digits(count=40), ("xqzzt1", "xqzzt2", "xqzzt3"))
    found = NeighbourSearch(entries, WHOLE).find(target, 1, ledger)
    assert found.chosen[0].shared == ()
    assert np.isfinite(found.chosen[0].score)
    with pytest.raises(BadInput):
        NeighbourSearch(entries, WHOLE, "wordnet").find(target, 1, ledger)
