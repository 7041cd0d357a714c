"""A zoo's trunk: what it is made of, what it may not do to a zoo, and that new tasks start from it."""

import json
import shutil
import signal
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mvp_edge.cli.main import cli
from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.network import Network
from mvp_edge.tasks.task import Task, tasks_in
from mvp_edge.zoo import trunk as module
from mvp_edge.zoo.entries import Zoo, wide_enough
from mvp_edge.zoo.pool import Pool, pool
from mvp_edge.zoo.trunk import TrunkTraining
from tests.support.networks import backbone, digits, problem, prune_by
from tests.support.tiny import KNOWN, At, command, halve, prune, refused, tree, write_digits

TRUNK = ("zoo", "trunk", "zoo", "--tasks", "digits", "--sample", "4x3")
PRUNE = ("--steps", "0")


def grown(place: Path, *more: str, **options: Any) -> None:
    done = command(*TRUNK, "--steps", "20", *more, cwd=place, **options)
    assert done.code == 0, done.err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Network.load(folder).weights)


def test_a_pool_has_each_class_of_each_source_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = load_backbone(str(place / "backbone.json")).preprocess
    write_digits(place / "many/first", ("zero", "one"))
    write_digits(place / "many/second", ("one", "two"))
    first, second = tasks_in(place / "many")
    part = Task.open(place / "many/first", classes=["zero", "one"], name="again")
    pooled = pool([first, second, part], "train", preprocess)
    assert pooled.classes == ("first/one", "zero", "second/one", "two")
    expected = [
        images.pixels[images.labels == label]
        for images in (first.images("train", preprocess), second.images("train", preprocess))
        for label in (0, 1)
    ]
    for label, pixels in enumerate(expected):
        assert np.array_equal(pooled.images.pixels[pooled.images.labels == label], pixels)
    assert len(pooled.images) == sum(map(len, expected))

    less = pool([first, second], "val", preprocess, without=["one"])
    assert less.classes == ("zero", "two")
    assert set(less.images.labels) == {0, 1}
    monkeypatch.setattr("mvp_edge.zoo.pool.POOL_BYTES", 4 * 5 * 3 * preprocess.size**2)
    few = pool([first, second], "train", preprocess)
    assert Counter(few.images.labels.tolist()) == dict.fromkeys(range(4), 5)


def test_all_entries_vote_for_it(place: Path) -> None:
    whole, zoo = load_backbone(str(place / "backbone.json")), Zoo.open(place / "zoo")
    pooled = pool([Task.open(place / "digits")], "train", whole.preprocess)
    made, recipe = TrunkTraining(whole, zoo.policy, zoo.entries(), zoo.keep, steps=0).run(pooled)
    kept = [entry.network.kept for entry in zoo.entries()]
    for name, units in made.kept.items():
        votes = Counter(unit for one in kept for unit in one[name].tolist())
        least = min(votes[unit] for unit in units.tolist())
        assert all(count <= least for unit, count in votes.items() if unit not in units)
    assert pooled.classes == tuple(sorted(KNOWN))
    assert recipe.steps == 0
    passes = len(pooled.images) * module.EPOCHS / recipe.batch
    usual = TrunkTraining(whole, zoo.policy, zoo.entries(), zoo.keep).run(pooled)[1]
    assert usual.steps == max(module.LEAST_STEPS, round(passes))
    shown = CliRunner().invoke(cli, ["zoo", "trunk", "--help"]).output
    assert f"[{module.EPOCHS} passes through the images]" in " ".join(
        shown.split()
    )  # said without importing it


def test_a_vit_has_one_too() -> None:
    whole = backbone("vit")
    images = digits(count=40)
    pooled = Pool(tuple(map(str, range(int(images.labels.max()) + 1))), images)
    made, recipe = TrunkTraining(whole, "heads-nodes", [], 0.5, steps=3).run(pooled)
    groups = unit_groups(whole.model, "heads-nodes")
    expected = exact_widths(groups, 0.5)
    assert {name: len(units) for name, units in made.kept.items()} == expected
    assert made.model(torch.zeros(2, 3, 16, 16)).shape == (2, len(pooled.classes))
    assert (recipe.optimizer, len(made.history.steps)) == ("adamw", 3)
    largest = prune_by("magnitude", problem("vit", "magnitude", steps=0, widths=expected))
    assert all(np.array_equal(made.kept[name], units) for name, units in largest.kept.items())


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(place: Path) -> None:
    shutil.copytree(place / "zoo", place / "clean")
    clean = command("zoo", "trunk", "clean", *TRUNK[3:], "--steps", "60", cwd=place)
    assert clean.code == 0, clean.err
    assert "5 classes on validation images" in clean.out
    for at in (At("tuning", 30), At("tuning", 55, signal=signal.SIGINT), At(file="0.5")):
        stopped = command(*TRUNK, "--steps", "60", cwd=place, at=at)
        assert stopped.code == (130 if at.signal == signal.SIGINT else -9), stopped.err
        assert not list((place / "zoo/trunks").glob("[0-9]*"))
    grown(place, "--steps", "60")
    ours, theirs = (weights(place / zoo / "trunks/0.5") for zoo in ("zoo", "clean"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not (place / "zoo/.work/trunk-0.5").exists()


def test_new_tasks_start_from_it(place: Path) -> None:
    before = prune(place, *PRUNE)
    assert "mvp (3 of the zoo's 4 tasks vote)" in before.err
    grown(place)
    done = prune(place, *PRUNE)
    assert done.code == 0, done.err
    assert "trunk (from the zoo's trunk of 5 classes)" in done.err
    run = place / "runs/002"
    facts = json.loads((run / "run.json").read_text())
    assert (facts["method"], facts["training"]["similarity_flops"]) == ("trunk", 0)
    assert not (run / "neighbours.json").exists()
    trunk, ours = (Network.load(folder) for folder in (place / "zoo/trunks/0.5", run))
    assert all(np.array_equal(ours.kept[name], units) for name, units in trunk.kept.items())
    body = [name for name in ours.weights if name.startswith("layer") and "conv" in name]
    assert len(body) >= 8
    assert all(torch.equal(ours.weights[name], trunk.weights[name]) for name in body)
    page = command("report", "runs/002", cwd=place)
    assert page.code == 0, page.err
    written = (run / "report.html").read_text()
    assert (
        "fine-tunes a network that was trained on many tasks (from the zoo&#39;s trunk of 5 classes)"
        in written
    )
    assert "from scratch" not in written

    narrow = prune(place, *PRUNE, keep="0.25")
    assert "trunk" in narrow.err
    smaller = Network.load(place / "runs/003")
    for name, units in smaller.kept.items():
        assert set(units) <= set(trunk.kept[name])
    for wider in (("--keep", "0.75"), ("--keep", "0.6", "--front", "2")):  # than the trunk
        said = f"its trunk of keep 0.5 is narrower than {wider[1]})"
        assert f"mvp (3 of the zoo's 4 tasks vote; {said}" in prune(place, *PRUNE, *wider).err
    asked = prune(place, *PRUNE, method="trunk", keep="0.75")
    assert "trunk (as asked; from the zoo's trunk of 5 classes)" in asked.err
    voted = prune(place, *PRUNE, neighbours="2")
    assert "mvp (2 of the zoo's 4 tasks vote)" in voted.err


def test_a_run_does_not_go_on_from_another_trunk(place: Path) -> None:
    grown(place)
    killed = command("prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo",
                     "--steps", "60", cwd=place, at=At("tuning", 40))  # fmt: skip
    assert killed.code == -9
    grown(place, "--force", "--seed", "1")
    again = prune(place, steps="60", out="runs/001")
    assert again.code == 2
    assert "the zoo's trunk" in again.error


def test_what_cannot_be_is_refused_and_nothing_changes(place: Path) -> None:
    before = tree(place)
    refused(prune(place, method="trunk"), place, "zoo trunk", "zoo zoo has none", before=before)
    grown(place)
    before = tree(place)
    refused(command(*TRUNK, cwd=place), place, "a trunk at keep 0.5", "--force", before=before)
    refused(prune(place, method="trunk", tau="0.5"), place, "--tau", "holds none", before=before)
    refused(
        command(*TRUNK[:4], "nowhere", "--keep", "0.25", cwd=place), place, "nowhere", before=before
    )
    fresh = ("zoo", "trunk", "fresh", "--tasks")
    refused(command(*fresh, "digits", "--sample", "4x3", cwd=place), place, "fresh is not a zoo",
            "--backbone", before=before)  # fmt: skip
    refused(command(*fresh, "nowhere", "--backbone", "backbone.json", cwd=place), place, "nowhere",
            before=before)  # fmt: skip


def test_without_a_zoo_the_largest_units_are_trained(place: Path) -> None:
    words = ("zoo", "trunk", "fresh", "--backbone", "backbone.json", "--tasks", "digits")
    done = command(*words, "--sample", "4x3", "--keep", "0.5", "--steps", "20", cwd=place)
    assert done.code == 0, done.err
    assert "units by the largest weights" in done.err
    trunk = Network.load(place / "fresh/trunks/0.5")
    largest = prune(place, *PRUNE, method="magnitude")
    assert largest.code == 0, largest.err
    expected = Network.load(place / "runs/001").kept
    assert all(np.array_equal(trunk.kept[name], units) for name, units in expected.items())
    run = prune(place, *PRUNE, zoo="fresh")
    assert "trunk (from the zoo's trunk of 5 classes)" in run.err
    assert "0 entries" in command("zoo", "list", "fresh", cwd=place).out


def test_images_without_labels_will_do(place: Path) -> None:
    loose = place / "loose"
    for number, file in enumerate(sorted((place / "digits").rglob("*.png"))):
        folder = loose / f"of/{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{number}.png")
    (loose / "of/broken.png").write_bytes(b"no image")
    (loose / "notes.txt").write_text("not looked at")
    count = len(list(loose.rglob("*.png"))) - 1
    words = ("zoo", "trunk", "fresh", "--backbone", "backbone.json", "--keep", "0.5", "--images")
    done = command(*words, "loose", "--steps", "20", cwd=place)
    assert done.code == 0, done.err
    assert f"{count - count // 20} images without labels" in done.err
    assert "of held-out images as the backbone does" in done.out
    (trunk,) = Zoo.open(place / "fresh").trunks()
    whole = load_backbone(str(place / "backbone.json"))
    assert trunk.classes == whole.classes
    forward = forward_macs(whole.model, whole.shape)
    assert trunk.cost["statistics"] > forward * (count - count // 20)  # the teacher's own work
    run = prune(place, *PRUNE, zoo="fresh")
    assert f"trunk (from the zoo's trunk of {count - count // 20} images)" in run.err
    assert f"{count - count // 20} images" in command("zoo", "list", "fresh", cwd=place).out

    grown(place, "--images", "loose", "--keep", "0.75")
    both = next(one for one in Zoo.open(place / "zoo").trunks() if one.keep == 0.75)
    assert len(both.classes) == 5  # the tasks' own, whatever the backbone tells apart
    assert set(both.classes) < set(KNOWN)
    with zipfile.ZipFile(place / "loose.zip", "w") as archive:
        for file in sorted(loose.rglob("*.png")):
            archive.write(file, file.relative_to(loose))
    assert command(*words, "loose.zip", "--steps", "20", "--force", cwd=place).code == 0
    zipped, before = weights(place / "fresh/trunks/0.5"), dict(trunk.network.weights)
    assert all(torch.equal(zipped[name], tensor) for name, tensor in before.items())


def test_images_that_cannot_be_used_are_refused(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "bad").mkdir()
    (place / "bad/one.png").write_bytes(b"no image")
    before = tree(place)
    fresh = ("zoo", "trunk", "zoo")
    refused(command(*fresh, cwd=place), place, "--tasks", "--images", before=before)
    refused(command(*fresh, "--images", "loose", "--sample", "2x3", cwd=place), place, "--sample 2x3",
            "--tasks", before=before)  # fmt: skip
    for folder, why in (
        ("empty", "no image that can be read"),
        ("bad", "one.png"),
        ("nowhere", "nowhere"),
    ):
        done = command(*fresh, "--images", folder, cwd=place)
        refused(done, place, why, before=before)


def test_it_is_listed_and_checked(place: Path) -> None:
    grown(place)
    grown(place, "--keep", "0.75")
    listed = command("zoo", "list", "zoo", "--json", cwd=place)
    trunks = json.loads(listed.out)["trunks"]
    assert [one["keep"] for one in trunks] == [0.5, 0.75]
    assert "trunk, keep 0.75" in command("zoo", "list", "zoo", cwd=place).out
    found = Zoo.open(place / "zoo").trunks()
    chosen = [wide_enough(found, keep, lambda one: one.keep) for keep in (0.1, 0.5, 0.6, 0.75, 1.0)]
    assert [one.keep for one in chosen] == [
        0.5, 0.5, 0.75, 0.75, 0.75
    ]  # fmt: skip
    assert command("zoo", "verify", "zoo", cwd=place).code == 0
    halve(place / "zoo/trunks/0.5/network.safetensors")
    checked = command("zoo", "verify", "zoo", cwd=place)
    assert checked.code == 2
    assert "the zoo's trunk 0.5 is broken" in checked.error
    (place / "zoo/trunks/0.75/entry.json").write_text("{}")  # concerns nobody who asks for a vote
    listed = command("zoo", "list", "zoo", "--json", cwd=place)
    assert [one["keep"] for one in json.loads(listed.out)["trunks"]] == [0.5]  # its facts are whole
    assert "0.75 is broken" in listed.err
    assert "as asked; 2 of" in prune(place, *PRUNE, method="mvp", neighbours="2").err
    assert "--force makes it anew" in checked.error
    grown(place, "--keep", "0.5", "--force")
    grown(place, "--keep", "0.75", "--force")
    assert command("zoo", "verify", "zoo", cwd=place).code == 0


def test_tasks_without_images_are_said(place: Path) -> None:
    done = command("zoo", "trunk", "zoo", "--tasks", "digits", "--sample", "2x3", "--steps", "20",
                   cwd=place)  # fmt: skip
    assert done.code == 0, done.err
    assert "2 of the zoo's 4 tasks have no images here" in done.err
