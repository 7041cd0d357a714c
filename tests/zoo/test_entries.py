"""A zoo belongs to one backbone, and an entry is whole or not there."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.network import TENSORS, Network
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge_export.errors import BadInput
from tests.support.networks import backbone, described, network, voter

FACTS: dict[str, Any] = {
    "synsets": [],
    "scores": {"test": 0.9},
    "cost": {"forward": 10},
    "recipe": {"method": "random", "steps": 5, "lr": 0.1},
    "keep": 0.25,
}


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo.create(tmp_path / "zoo", backbone("resnet18d"), "tied", 0.25)


def add(zoo: Zoo, name: str = "fruit", seed: int = 0, **changes: Any) -> Entry:
    whole = backbone("resnet18d")
    return zoo.add(name, network(whole, voter("resnet18d", seed)), **FACTS | changes)


def test_an_entry_is_read_as_it_was_written(zoo: Zoo) -> None:
    own = voter("resnet18d", 0)
    add(zoo, "trees", 1)
    entry = add(zoo)
    assert entry == Zoo.open(zoo.path).entry("fruit")
    assert [e.name for e in zoo.entries()] == zoo.names() == ["fruit", "trees"]
    assert entry.classes == ("a", "b", "c")
    assert entry.scores == {"test": 0.9}
    read = entry.voter(0.25)
    for a, b in ((read.kept, own.kept), (read.ranking, own.ranking)):
        assert all(np.array_equal(a[n], b[n]) for n in b)
    assert all(torch.equal(read.weights[n], t) for n, t in own.weights.items())
    assert zoo.verify(backbone("resnet18d")) == {}


def test_a_voter_brings_the_weights_of_its_smallest_sufficient_snapshot(zoo: Zoo) -> None:
    whole = backbone("resnet18d")
    larger = {ratio: network(whole, voter("resnet18d", 0, ratio)) for ratio in (0.75, 0.5)}
    entry = add(zoo, snapshots=larger)
    assert entry.snapshots == ("0.75", "0.5")
    for keep, expected in (
        (0.1, 0.25),
        (0.25, 0.25),
        (0.3, 0.5),
        (0.5, 0.5),
        (0.6, 0.75),
        (0.9, 0.75),
    ):
        read = entry.voter(keep)
        assert len(read.kept["layer4.stream"]) == int(expected * 24)
        assert np.array_equal(read.ranking["layer4.stream"], entry.network.ranking["layer4.stream"])
    assert zoo.verify(whole) == {}
    (entry.directory / "0.5" / TENSORS).write_bytes(b"")
    assert "0.5" in zoo.verify(whole)["fruit"]
    with pytest.raises(BadInput, match=r"zoo entry fruit is broken.*half-copied"):
        entry.voter(0.5)


def test_another_backbone_or_policy_or_ratio_is_refused(zoo: Zoo) -> None:
    other = backbone("resnet18d", 7)
    with pytest.raises(BadInput, match=r"belongs to the backbone resnet18d .*16 px.*, not to"):
        zoo.check(backbone("resnet18d", size=32))
    with pytest.raises(BadInput, match="policy 'tied', not 'inner'"):
        zoo.check(backbone("resnet18d"), "inner")
    with pytest.raises(BadInput, match=r"keep 0\.25, not 0\.5"):
        Zoo.create(zoo.path, backbone("resnet18d"), "tied", 0.5)
    own = network(backbone("resnet18d"), voter("resnet18d", 0))
    for model in (replace(own, policy="inner"), replace(own, backbone_sha256=other.sha256 + "x")):
        with pytest.raises(BadInput, match=r"was built with policy|belongs to another backbone"):
            zoo.add("fruit", model, **FACTS)
    assert zoo.names() == []
    assert Zoo.create(zoo.path, backbone("resnet18d"), "tied", 0.25).facts == zoo.facts


def test_an_existing_entry_is_replaced_only_by_force(zoo: Zoo) -> None:
    add(zoo)
    with pytest.raises(BadInput, match=r"exists.*--force"):
        add(zoo, seed=1)
    add(zoo, seed=1, force=True)
    assert np.array_equal(
        zoo.entry("fruit").network.ranking["layer1.stream"],
        voter("resnet18d", 1).ranking["layer1.stream"],
    )


def test_an_interrupted_add_leaves_nothing(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks, and wherever: the entry is there with all its files, or not at all."""
    saved = Network.save
    for stop in range(3):
        calls = iter(range(9))

        def save(self: Network, directory: Path, stop: int = stop, calls: Any = calls) -> str:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return saved(self, directory)

        monkeypatch.setattr(Network, "save", save)
        larger = {0.5: network(backbone("resnet18d"), voter("resnet18d", 0, 0.5))}
        larger |= {0.75: network(backbone("resnet18d"), voter("resnet18d", 0, 0.75))}
        with pytest.raises(KeyboardInterrupt):
            add(zoo, snapshots=larger)
        assert zoo.names() == []
        assert list((zoo.path / "entries").iterdir()) == []
    monkeypatch.setattr(Network, "save", saved)
    add(zoo)
    (zoo.path / "entries" / ".fruit.abc123").mkdir()  # what SIGKILL would leave
    assert zoo.names() == ["fruit"]


def flip_a_bit(entry: Path) -> None:
    data = bytearray((entry / TENSORS).read_bytes())
    data[-10] ^= 4
    (entry / TENSORS).write_bytes(data)


def rewrite(entry: Path, **changes: Any) -> None:
    facts = json.loads((entry / "entry.json").read_text()) | changes
    (entry / "entry.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "listed", "problem"),
    [
        (flip_a_bit, True, "was changed or half-copied"),
        (lambda e: (e / TENSORS).unlink(), True, "cannot be read"),
        (lambda e: (e / "network.json").unlink(), True, "does not exist"),
        (lambda e: (e / "entry.json").unlink(), False, "does not exist"),
        (lambda e: (e / "entry.json").write_text('{"schema": 1'), False, "is not JSON"),
        (
            lambda e: (e / "entry.json").write_text('{"schema": 1}'),
            False,
            "classes: Field required",
        ),
        (lambda e: (e / "entry.json").write_text("[1]"), False, "broken"),
        (lambda e: rewrite(e, keep="much"), False, "keep: Input should be a valid number"),
        (lambda e: rewrite(e, synsets=["a.n.01"]), False, "1 synsets for 3 classes"),
        (lambda e: rewrite(e, schema=2), False, "schema 2 is unknown"),
    ],
)
def test_a_damaged_entry_is_named_with_the_way_out(
    damage: Any, listed: bool, problem: str, zoo: Zoo
) -> None:
    whole = add(zoo, "trees")
    entry = add(zoo)
    damage(entry.directory)
    found = zoo.verify(backbone("resnet18d"))
    assert found.keys() == {"fruit"}
    assert problem in found["fruit"]
    if listed:
        assert len(zoo.entries()) == 2
        with pytest.raises(BadInput) as caught:
            zoo.entry("fruit").voter(0.25)
    else:
        with pytest.raises(BadInput) as caught:
            zoo.entries()
    line = str(caught.value)
    assert line.startswith("zoo entry fruit is broken: ")
    assert f"mvp-edge zoo rm {zoo.path} fruit" in line
    assert "\n" not in line
    zoo.remove("fruit")
    assert zoo.entries() == [whole]


def test_a_network_of_another_backbone_inside_an_entry(zoo: Zoo) -> None:
    entry = add(zoo)
    network(backbone("resnet18d", 7), voter("resnet18d", 1)).save(entry.directory)
    assert "another backbone" in zoo.verify(backbone("resnet18d"))["fruit"]


def test_removing(zoo: Zoo) -> None:
    add(zoo)
    for name in ("nuts", "..", "", ".fruit"):
        with pytest.raises(BadInput, match="has no entry"):
            zoo.remove(name)
    zoo.remove("fruit")
    assert zoo.names() == []
    assert list((zoo.path / "entries").iterdir()) == []
    with pytest.raises(BadInput, match="has no entry 'fruit'"):
        zoo.entry("fruit")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", ""])
def test_entry_names_are_plain(name: str, zoo: Zoo) -> None:
    with pytest.raises(BadInput, match="must be a plain folder name"):
        add(zoo, name)


# Where it is, and where its backbone is.


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "valid dictionary"),
        ('{"schema": 2}', "schema 2 is unknown"),
        ('{"schema": 1}', r"zoo\.json: backbone: Field required"),
        (
            '{"schema": 1, "backbone": {"name": "x"}, "policy": "tied", "keep": 0.1}',
            "backbone.sha256",
        ),
    ],
)
def test_a_zoo_file_that_is_not_one(content: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"zoo\.json is missing.*zoo build"):
        Zoo.open(tmp_path)
    (tmp_path / "zoo.json").write_text(content)
    with pytest.raises(BadInput, match=problem):
        Zoo.open(tmp_path)


def test_a_zoo_is_made_in_an_empty_folder(tmp_path: Path) -> None:
    whole = backbone("resnet18d")
    (tmp_path / ".zoo.json.x1").touch()  # an interrupted write of an earlier one
    assert Zoo.create(tmp_path, whole, "tied", 0.25).entries() == []
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "notes.txt").touch()
    file.touch()
    with pytest.raises(BadInput, match="neither empty nor a zoo"):
        Zoo.create(used, whole, "tied", 0.25)
    with pytest.raises(BadInput, match="is a file"):
        Zoo.create(file, whole, "tied", 0.25)


@pytest.mark.parametrize("prefix", ["", "resnet18@"])
def test_a_zoo_finds_its_backbone_after_a_move(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may move together, be reached through a link, and be used from any folder."""
    before, after = tmp_path / "before", tmp_path / "deep" / "after"
    before.mkdir()
    source = described(before)
    if prefix:
        source = str(before / "w.safetensors")
    whole = replace(backbone("resnet18"), source=prefix + source)
    Zoo.create(before / "zoos" / "z", whole, "tied", 0.25)
    after.parent.mkdir()
    before.rename(after)
    (tmp_path / "link").symlink_to(after / "zoos" / "z")
    for path in (after / "zoos" / "z", tmp_path / "link"):
        found = Zoo.open(path).backbone_source
        assert found.startswith(prefix)
        assert Path(found.removeprefix(prefix)).samefile(after / Path(source).name)
        if not prefix:
            assert load_backbone(found).preprocess.size == 16
    monkeypatch.chdir(after)
    assert os.path.normpath(Zoo.open(Path("zoos/z")).backbone_source).endswith(Path(source).name)


def test_a_zoo_of_a_backbone_by_name_says_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder in which something is called like it."""
    (tmp_path / "resnet18d").mkdir()
    monkeypatch.chdir(tmp_path)
    zoo = Zoo.create(Path("zoo"), backbone("resnet18d"), "tied", 0.25)
    assert zoo.backbone_source == "resnet18d"
