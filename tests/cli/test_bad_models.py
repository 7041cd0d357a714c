"""Backbones and zoos that are damaged, of something else, or hostile: refused by name, nothing written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny import command, halve, prune, refused, tree


def _weights(place: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Save the backbone's tensors again, changed, with a description that fits."""
    from tests.support.tiny import in_process

    in_process(_rewrite, place, change)


def _rewrite(place: Path, change: Callable[[dict[str, object]], None]) -> None:
    from safetensors.torch import load_file, save_file

    from mvp_edge_export.storage import sha256_file, write_json

    path = place / "backbone.safetensors"
    tensors = load_file(path)
    change(tensors)  # type: ignore[arg-type]
    save_file(tensors, path)
    facts = json.loads((place / "backbone.json").read_text())
    write_json(place / "backbone.json", {**facts, "sha256": sha256_file(path)})


def _nan(tensors: dict[str, object]) -> None:
    tensors["layer1.0.conv1.weight"][0] = float("nan")  # type: ignore[index]


def _other(tensors: dict[str, object]) -> None:
    tensors["surplus.weight"] = tensors.pop("layer1.0.conv1.weight")


def _pickled(place: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, ("touch owned",))

    (place / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))


BACKBONES: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "NaN": (lambda p: _weights(p, _nan), "backbone.json", ("layer1.0.conv1.weight", "NaN")),
    "another architecture": (
        lambda p: _weights(p, _other), "backbone.json", ("layer1.0.conv1.weight", "resnet18"),
    ),
    "truncated": (
        lambda p: halve(p / "backbone.safetensors"), "backbone.json", ("backbone.safetensors",),
    ),
    "pickled code": (_pickled, "resnet18@evil.pth", ("evil.pth", "pickled code")),
    "half a description": (
        lambda p: halve(p / "backbone.json"), "backbone.json", ("backbone.json",),
    ),
    "a description that lacks a key": (
        lambda p: (p / "backbone.json").write_text('{"schema": 1}'),
        "backbone.json", ("backbone.json", "name: Field required"),
    ),
    "no description": (
        lambda p: (p / "backbone.json").write_text("[]"), "backbone.json",
        ("backbone.json",),
    ),
    "other images": (lambda p: None, "digits", ("digits",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BACKBONES)
def test_a_backbone_that_is_none(case: str, place: Path) -> None:
    spoil, source, culprits = BACKBONES[case]
    spoil(place)
    before = tree(place)
    ended = prune(place, drop=("--zoo",), backbone=source)
    refused(ended, place, *culprits, before=before)
    built = command(
        "zoo", "build", "--backbone", source, "--tasks", "digits", "--sample", "2x2",
        "--zoo", "new", cwd=place,
    )  # fmt: skip
    refused(built, place, *culprits, before=before)


ENTRY = "digits-3c-s0-002"


def _flipped(place: Path) -> None:
    path = place / "zoo/entries" / ENTRY / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-50] ^= 8
    path.write_bytes(data)


ZOOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (_flipped, ENTRY),
    "a half-copied entry": (
        lambda p: (p / "zoo/entries" / ENTRY / "network.safetensors").unlink(), ENTRY,
    ),
    "an entry without facts": (
        lambda p: (p / "zoo/entries" / ENTRY / "entry.json").unlink(), ENTRY,
    ),
    "an entry with half its facts": (
        lambda p: halve(p / "zoo/entries" / ENTRY / "entry.json"), ENTRY,
    ),
    "an entry that is none": (
        lambda p: (p / "zoo/entries" / ENTRY / "entry.json").write_text("[]"), ENTRY,
    ),
    "half a zoo.json": (lambda p: halve(p / "zoo/zoo.json"), "zoo.json"),
    "a zoo.json of nothing": (
        lambda p: (p / "zoo/zoo.json").write_text('{"schema": 1}'), "zoo.json",
    ),
    "a zoo.json that is none": (
        lambda p: (p / "zoo/zoo.json").write_text("[]"), "zoo.json",
    ),
    "a backbone that moved": (lambda p: (p / "backbone.json").unlink(), "backbone.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", ZOOS)
def test_a_zoo_that_is_damaged(case: str, place: Path) -> None:
    spoil, culprit = ZOOS[case]
    spoil(place)
    before = tree(place)
    refused(prune(place), place, culprit, before=before)


def test_a_moved_backbone_can_be_named(place: Path) -> None:
    (place / "backbone.json").unlink()
    refused(prune(place), place, "backbone.json", "--backbone", before=tree(place))
