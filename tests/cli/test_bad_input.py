"""Bad input, with otherwise valid arguments: exit code 2, one line that names the culprit, nothing written.

What each reader refuses is tested beside it (tasks, images, profiles, bundles); here is what a user of
the commands meets.
"""

import json
import os
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import GIVEN, IMAGES, board, command, halve, prune, refused, tree

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "keep 0": ({"keep": "0"}, "--keep 0"),
    "keep 1.5": ({"keep": "1.5"}, "--keep 1.5"),
    "keep nan": ({"keep": "nan"}, "--keep nan"),
    "keep inf": ({"keep": "inf"}, "--keep inf"),
    "keep a word": ({"keep": "most"}, "most"),
    "tau below 0": ({"tau": "-0.1"}, "--tau"),
    "tau nan": ({"tau": "nan"}, "nan"),
    "lr 0": ({"lr": "0"}, "--lr"),
    "lr inf": ({"lr": "inf"}, "inf"),
    "steps below 0": ({"steps": "-1"}, "--steps"),
    "steps a word": ({"steps": "ten"}, "'ten'"),
    "no neighbours": ({"neighbours": "0"}, "--neighbours"),
    "too many neighbours": ({"neighbours": "5"}, "--neighbours 5: zoo zoo has 4 tasks"),
    "too many of auto": ({"neighbours": "5", "method": "mvp"}, "--neighbours 5"),
    "unknown method": ({"method": "magic"}, "'magic'"),
    "another family's method": ({"method": "ahnp"}, "--method ahnp is not for resnet"),
    "unknown policy": ({"policy": "all"}, "'all'"),
    "another family's policy": ({"policy": "heads-nodes"}, "heads-nodes"),
    "unknown similarity": ({"similarity": "cosine"}, "'cosine'"),
    "unknown head": ({"head": "big"}, "'big'"),
    "unknown augmentation": ({"augment": "flip,rotate"}, "--augment flip,rotate"),
    "unknown accelerator": ({"accelerator": "tpu"}, "'tpu'"),
    "seed below 0": ({"seed": "-1"}, "--seed"),
    "unknown class": ({"classes": "seven,ten"}, "'ten'"),
    "one class": ({"classes": "seven"}, "seven"),
    "no class": ({"classes": ""}, "class"),
    "an input size that is too large": ({"input_size": "4096"}, "--input-size"),
    "input size 0": ({"input_size": "0"}, "--input-size"),
    "an input size that is not the zoo's": ({"input_size": "24"}, "24 px"),
    "a vote's option without a vote": ({"method": "random", "tau": "0.5"}, "--tau"),
    "no file of synsets": ({"synsets": "none.yaml"}, "none.yaml"),
    "synsets that are none": ({"synsets": "board.yaml"}, "board.yaml"),
    "a word of similarity without WordNet": ({"similarity": "wordnet"}, "WordNet 3.0"),
    "unknown device": ({"device": "rpi44"}, '"rpi44"'),
    "no such zoo": ({"zoo": "nowhere"}, "nowhere is not a zoo"),
    "no such task": ({"task": "nowhere"}, "nowhere"),
    "a task that is no task": ({"task": "backbone.json"}, "backbone.json"),
    "unknown backbone": ({"backbone": "resnet81"}, "resnet81"),
    "no such backbone": ({"backbone": "nothing.json"}, "nothing.json"),
    "a run that is no run": ({"out": "digits"}, "--out digits"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_is_named(case: str, place: Path) -> None:
    changed, culprit = OPTIONS[case]
    before = tree(place)
    refused(prune(place, **changed), place, culprit, before=before)


def test_a_zoo_whose_backbone_is_gone_or_damaged(place: Path) -> None:
    hint = "if it has moved, say where zoo zoo's backbone is with --backbone"
    (place / "backbone.json").rename(place / "elsewhere.json")
    before = tree(place)
    refused(prune(place), place, "backbone.json", hint, before=before)
    (place / "elsewhere.json").rename(place / "backbone.json")
    halve(place / "backbone.json")
    damaged = prune(place)
    refused(damaged, place, "backbone.json", before={*before, "backbone.json"} - {"elsewhere.json"})
    assert hint not in damaged.error


def test_arguments_that_belong_together(place: Path) -> None:
    before = tree(place)
    alone = prune(place, drop=("--zoo",))
    refused(alone, place, "--zoo", "--backbone", before=before)
    nowhere = prune(place, "--add-to-zoo", drop=("--zoo",), backbone="backbone.json")
    refused(nowhere, place, "--add-to-zoo", before=before)
    what = prune(place, drop=("--task",))
    refused(what, place, "--task", "--zoo", "make demo", before=before)
    refused(prune(place, "--fast"), place, "--fast", before=before)
    missing = command("prune", cwd=place)
    refused(missing, place, "--device", before=before)


PROFILES = {
    "typo": (board().replace("budgets", "budgts"), ("budgts",)),
    "unit": (board(file="12 parsecs"), ("board.yaml:8", "file", "12 parsecs")),
    "negative": (board(flops="-300M"), ("board.yaml:6", "flops", "-300M")),
    "absurd": (board(memory="100GiB"), ("board.yaml:9", "memory", "hardware.ram")),
    "10 MB": (board() + "#" * 10_000_000, ("board.yaml",)),
    "alias bomb": ("a: &a [x, x]\nb: [*a, *a]\n", ("board.yaml:1", "aliases")),
}


@pytest.mark.parametrize("case", PROFILES)
def test_a_profile_with_a_mistake(case: str, place: Path) -> None:
    text, culprits = PROFILES[case]
    (place / "board.yaml").write_text(text)
    before = tree(place)
    refused(prune(place), place, *culprits, before=before)
    checked = command("device", "check", "board.yaml", cwd=place)
    assert checked.code == 2
    assert all(culprit in checked.error for culprit in culprits)


def test_all_mistakes_of_a_profile_are_named_one_a_line(place: Path) -> None:
    (place / "board.yaml").write_text(board(flops="-1", file="12 parsecs") + "wings: 2\n")
    ended = prune(place)
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert len([line for line in lines if "board.yaml:" in line]) == len(lines) - 1 == 3
    checked = command("device", "check", "board.yaml", "--json", cwd=place)
    assert len(json.loads(checked.out)["mistakes"]) == 3


def _png(side: int) -> bytes:
    """The beginning of a PNG that says it is this large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + crc


def _one_class(place: Path) -> None:
    for name in ("seven", "eight"):
        (place / "task" / name).rename(place / name)


def _three_images(place: Path) -> None:
    for folder in (place / "task").iterdir():
        for image in sorted(folder.iterdir())[1:]:
            image.unlink()


def _none_left(place: Path) -> None:
    for image in (place / "task/nine").iterdir():
        image.write_bytes(b"no image at all")


def _empty(place: Path) -> None:
    (place / "task").rename(place / "photos")
    (place / "task").mkdir()


def _zip(*members: tuple[str, bytes]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        with zipfile.ZipFile(place / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for image in (place / "task").rglob("*.png"):
                archive.write(image, str(image.relative_to(place / "task")))
            for name, data in members:
                archive.writestr(name, data)

    return make


def _half_zip(place: Path) -> None:
    _zip()(place)
    halve(place / "task.zip")


TASKS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty folder": (_empty, "task", "task"),
    "one class": (_one_class, "task", "nine"),
    "three images": (_three_images, "task", "3 images are too few"),
    "a class with none left": (_none_left, "task", "nine"),
    "a zip that climbs": (_zip(("../x.png", b"x")), "task.zip", "../x.png"),
    "half a zip": (_half_zip, "task.zip", "task.zip"),
}


@pytest.mark.parametrize("case", TASKS)
def test_a_task_that_cannot_be_learned(case: str, place: Path) -> None:
    spoil, source, culprit = TASKS[case]
    spoil(place)
    before = tree(place)
    refused(prune(place, task=source), place, culprit, before=before)


def test_images_that_cannot_be_decoded_are_skipped_and_listed(place: Path) -> None:
    good = next((place / "task/seven").iterdir()).read_bytes()
    bad = {
        "cut.png": good[: len(good) // 2],
        "text.jpg": b"I am text",
        "huge.png": _png(20_000),
    }
    for name, data in bad.items():
        (place / "task/seven" / name).write_bytes(data)
    done = prune(place)
    assert done.code == 0, done.err
    facts = json.loads((place / "runs/001/run.json").read_text())["task"]
    assert {Path(one["file"]).name for one in facts["skipped"]} == set(bad)
    assert sum(facts["images"].values()) == 3 * IMAGES
    assert "skipped" in done.err
    assert "2 more" in done.err


def test_a_class_name_may_be_any_text(place: Path) -> None:
    (place / "task/seven").rename(place / "task/Größe 七 <b>")
    done = prune(place, steps="0")
    assert done.code == 0, done.err
    listed = (place / "list.jsonl").open("w", encoding="utf-8")
    with listed:
        for image in sorted((place / "task").rglob("*.png")):
            label = image.parent.name.replace("eight", "a/b")
            listed.write(json.dumps({"path": str(image.relative_to(place)), "label": label}) + "\n")
    slash = prune(place, task="list.jsonl", steps="0")
    if slash.code == 0:  # taken as it is, everywhere
        assert "a/b" in json.loads((place / "runs/002/run.json").read_text())["task"]["classes"]
    else:
        assert "a/b" in slash.error


BUILDS = {
    "a sample that is none": (("--sample", "many"), "--sample many"),
    "more tasks than there are": (("--sample", "99x3"), "--sample 99x3"),
    "a task of one class": (("--sample", "2x1"), "2x1"),
    "a folder that is itself a task": ((), "--sample"),
    "keep nan": (("--sample", "2x2", "--keep", "nan"), "nan"),
    "keep 0": (("--sample", "2x2", "--keep", "0"), "--keep"),
    "a snapshot below keep": (("--sample", "2x2", "--snapshots", "0.05"), "--snapshots 0.05"),
    "a snapshot that is none": (("--sample", "2x2", "--snapshots", "half"), "--snapshots half"),
    "a snapshot of nan": (("--sample", "2x2", "--snapshots", "nan"), "--snapshots nan"),
    "a method that needs a zoo": (("--sample", "2x2", "--method", "mvp"), "'mvp'"),
    "no steps": (("--sample", "2x2", "--steps", "0"), "--steps"),
}


@pytest.mark.parametrize("case", BUILDS)
def test_a_zoo_that_cannot_be_built(case: str, place: Path) -> None:
    words, culprit = BUILDS[case]
    before = tree(place)
    ended = command(
        "zoo", "build", "--backbone", "backbone.json", "--tasks", "digits", "--zoo", "new", *words,
        cwd=place,
    )  # fmt: skip
    refused(ended, place, culprit, before=before)


def test_folders_that_are_not_what_a_command_needs(place: Path) -> None:
    before = tree(place)
    for words in (
        ("export", "task"),
        ("report", "task"),
        ("bench", "task"),
        ("predict", "task", "task"),
        ("zoo", "list", "task"),
        ("zoo", "verify", "task"),
        ("zoo", "add", "zoo", "task"),
        ("zoo", "add", "task", "zoo"),
        ("device", "check", "task"),
        ("device", "show", "task"),
        ("demo", "--out", "board.yaml"),
    ):
        refused(
            command(*words, cwd=place),
            place,
            "task" if "task" in words else "board.yaml",
            before=before,
        )


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of 400 kB, where this user may make one."""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    made = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield disk if made else None
    if made:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_keeps_what_is_finished_and_goes_on(
    place: Path, small_disk: Path | None
) -> None:
    words = ("prune", *(word for item in GIVEN.items() for word in item), "--out")
    if small_disk is not None:
        (small_disk / "ballast").write_bytes(bytes(350_000))
        ended = command(*words, "disk/run", cwd=place)
        where, why = small_disk / "run", "No space left on device"
    else:
        ended = command(*words, "run", cwd=place, file_limit=30_000)
        where, why = place / "run", "File too large"
    assert ended.code == 2, ended.err
    assert why in ended.error
    assert where.name in ended.error
    assert {path.name for path in where.iterdir()} == {
        "run.json", "task.json", "profile.json", "neighbours.json",
    }  # fmt: skip
    if small_disk is not None:
        (small_disk / "ballast").unlink()
    done = command(*words, str(where.relative_to(place)), cwd=place)
    assert done.code == 0, done.err
    assert "similarity" not in done.err


@pytest.mark.parametrize("limit", [500, 3000])
def test_a_disk_that_is_full_from_the_beginning(limit: int, place: Path) -> None:
    before = tree(place)
    words = ("prune", *(word for item in GIVEN.items() for word in item))
    ended = command(*words, cwd=place, file_limit=limit)
    refused(ended, place, "runs/001", "File too large", before=before)
    build = ("zoo", "build", "--backbone", "backbone.json", "--tasks", "digits", "--sample", "1x3")
    # -q: the limit is that of what it says on standard error, too
    ended = command(*build, "--steps", "1", "--zoo", "new", "-q", cwd=place, file_limit=400)
    assert ended.code == 2
    assert "new" in ended.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write(place: Path) -> None:
    (place / "locked").mkdir(mode=0o555)
    before = tree(place)
    refused(prune(place, out="locked/run"), place, "locked/run", "Permission", before=before)
    build = ("zoo", "build", "--backbone", "backbone.json", "--tasks", "digits", "--sample", "1x3")
    ended = command(*build, "--steps", "1", "--zoo", "locked/zoo", cwd=place)
    refused(ended, place, "locked/zoo", before=before)
    place.chmod(0o555)
    try:
        refused(prune(place), place, "runs", "Permission", before=before)
    finally:
        place.chmod(0o755)
