"""A task from folder to arrays: splits, refusals, the written-down form, the cache."""

import json
import os
import resource
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from functools import cache as cache_once
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvp_edge.tasks import decoded as decoded_module
from mvp_edge.tasks.labels import Found
from mvp_edge.tasks.splits import make_splits, stratified_rows
from mvp_edge.tasks.task import Task, sample_tasks, tasks_in
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import cache_folder

HALF = (0.5, 0.5, 0.5)
EIGHT = Preprocess(8, HALF, HALF)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MVP_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(path: Path, colour: tuple[int, int, int] = (9, 80, 160), side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def pets(root: Path, counts: dict[str, int]) -> Path:
    """Folders with so many images each; the n-th image of the k-th folder has colour (n, k, 99)."""
    for k, (inside, count) in enumerate(counts.items()):
        for n in range(count):
            draw(root / inside / f"{n:03d}.png", (n, k, 99))
    return root


def sizes(task: Task) -> dict[str, int]:
    return {split: len(examples) for split, examples in task.splits.items()}


def files(task: Task, split: str) -> list[str]:
    return [one.file for one in task.splits[split]]


def refusal(source: Path, *, classes: Sequence[str] | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        Task.open(source, classes=classes)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


# Splits


def test_splits_are_made_where_none_are_given(tmp_path: Path) -> None:
    task = Task.open(pets(tmp_path / "pets", {"dog": 20, "cat": 10}))
    assert (task.name, task.classes) == ("pets", ("cat", "dog"))
    assert sizes(task) == {"train": 20, "val": 5, "test": 5}
    assert Counter(task.labels("test").tolist()) == {0: 2, 1: 3}
    assert "seed 0" in task.origin["val"]
    assert "15%" in task.origin["test"]


def test_train_and_test(tmp_path: Path) -> None:
    counts = {"train/cat": 20, "train/dog": 20, "test/cat": 2, "test/dog": 3}
    task = Task.open(pets(tmp_path / "pets", counts))
    assert sizes(task) == {"train": 34, "val": 6, "test": 5}
    assert task.origin["test"] == "as given"
    assert all(file.startswith("train/") for file in files(task, "val"))


def test_without_test_images_the_given_val_is_the_test_split(tmp_path: Path) -> None:
    counts = {"train/cat": 20, "train/dog": 20, "valid/cat": 2, "valid/dog": 3}
    task = Task.open(pets(tmp_path / "pets", counts))
    assert sizes(task) == {"train": 34, "val": 6, "test": 5}
    assert all(file.startswith("valid/") for file in files(task, "test"))
    assert all(file.startswith("train/") for file in files(task, "val"))
    assert task.origin["test"] == "the given val images"


def test_given_splits_are_kept(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 2 for split in ("train", "val", "test") for label in "ab"}
    task = Task.open(pets(tmp_path / "pets", counts))
    assert sizes(task) == {"train": 4, "val": 4, "test": 4}
    assert set(task.origin.values()) == {"as given"}


counts_by_class = st.dictionaries(
    st.sampled_from(["cat", "dog", "emu", "fox"]), st.integers(1, 40), min_size=1
)


def listed(counts: dict[str, int], split: str = "") -> list[Found]:
    return [
        Found(f"{split}{label}/{n}.png", 1, 1, "", label, split)
        for label, count in counts.items()
        for n in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(counts=counts_by_class, seed=st.integers(0, 99), layout=st.sampled_from(["", "val", "test"]))
def test_splits_are_disjoint_complete_and_stratified(
    counts: dict[str, int], seed: int, layout: str
) -> None:
    found = listed(counts, "train" if layout else "")
    given_too = listed(dict.fromkeys(counts, 2), layout) if layout else []
    splits, _ = make_splits(found + given_too, seed)
    dealt = [one for images in splits.values() for one in images]
    assert sorted(dealt) == sorted(found + given_too)
    shuffled = sorted(found + given_too, key=lambda one: one.file[::-1])
    assert make_splits(shuffled, seed)[0] == splits
    shares = {"train": 0.85, "val": 0.15} if layout else {"train": 0.7, "val": 0.15, "test": 0.15}
    for label, count in counts.items():
        for split, share in shares.items():
            mine = [one for one in splits[split] if one.label == label]
            # Of three images one is left to train on, not two.
            assert abs(len(mine) - share * count) <= (1 if count != 3 else 1.1)
            assert mine or split != "train"
    if layout:
        assert splits["test"] == sorted(given_too, key=lambda one: (one.label, one.file))


@settings(max_examples=20, deadline=None)
@given(counts=counts_by_class, seed=st.integers(0, 99))
def test_what_is_held_out_of_a_class_does_not_depend_on_the_others(
    counts: dict[str, int], seed: int
) -> None:
    found = listed({label: count + 2 for label, count in counts.items()})
    alone = [one for one in found if one.label == found[0].label]
    together = make_splits(found, seed)[0]
    for split, images in make_splits(alone, seed)[0].items():
        assert images == [one for one in together[split] if one in alone]


def test_the_seed_decides() -> None:
    found = listed({"cat": 40, "dog": 40})
    tests = {tuple(make_splits(found, seed)[0]["test"]) for seed in range(5)}
    assert len(tests) == 5


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    n=st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_subsamples_are_stratified(counts: list[int], n: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    names = [f"{row}.png" for row in range(len(labels))]
    rows = stratified_rows(labels, names, n, seed)
    assert len(rows) == min(n, len(labels))
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, stratified_rows(labels, names, n, seed))
    drawn = np.bincount(labels[rows], minlength=len(counts))
    present = np.count_nonzero(counts)
    for mine, count in zip(drawn, counts, strict=True):
        assert mine <= count
        assert mine or not count or n < present
        if n >= 2 * len(labels) * present:
            assert mine == count


def test_a_subsample_of_a_balanced_task(tmp_path: Path) -> None:
    task = Task.open(pets(tmp_path / "pets", {"cat": 20, "dog": 20, "emu": 20}))
    rows = task.subsample("train", 10, seed=1)
    assert sorted(Counter(task.labels("train")[rows].tolist()).values()) == [3, 3, 4]
    taken = task.images("train", EIGHT).take(rows)
    assert taken.pixels.shape == (10, 8, 8, 3)
    assert not np.array_equal(rows, task.subsample("train", 10, seed=2))


# Small and lopsided tasks


def test_four_images_are_enough_and_three_may_be(tmp_path: Path) -> None:
    four = Task.open(pets(tmp_path / "four", {"cat": 2, "dog": 2}))
    assert sizes(four) == {"train": 2, "val": 1, "test": 1}
    assert set(four.labels("train").tolist()) == {0, 1}
    three = refusal(pets(tmp_path / "three", {"cat": 2, "dog": 1}))
    assert "3 images are too few" in three


def test_an_imbalanced_task(tmp_path: Path) -> None:
    task = Task.open(pets(tmp_path / "pets", {"cat": 60, "dog": 3}))
    assert Counter(task.labels("train").tolist()) == {0: 42, 1: 1}
    assert Counter(task.labels("test").tolist()) == {0: 9, 1: 1}


# What is refused, and what is skipped


def test_one_class(tmp_path: Path) -> None:
    assert "one class only, 'cat'" in refusal(pets(tmp_path / "pets", {"cat": 5}))


def test_a_chosen_few_classes(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 5, "dog": 5, "emu": 5})
    (source / "fox").mkdir()
    assert Task.open(source, classes=["emu", "cat"]).classes == ("cat", "emu")
    assert "no class 'catt'" in refusal(source, classes=["catt", "dog"])
    assert "did you mean 'cat'" in refusal(source, classes=["catt", "dog"])
    assert "'dog' is named twice" in refusal(source, classes=["dog", "dog"])
    assert "one class only, 'dog'" in refusal(source, classes=["dog"])
    assert "'fox' has no image" in refusal(source, classes=["dog", "fox"])
    assert "'fox' has no image" in refusal(source)


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_splits_of_different_classes(lacking: str, tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 3 for split in ("train", "val", "test") for label in "abc"}
    del counts[f"{lacking}/b"]
    message = refusal(pets(tmp_path / "pets", counts))
    assert "class 'b'" in message
    assert f"not in {lacking}" in message


def test_no_train_images(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 3 for split in ("val", "test") for label in "ab"}
    assert "test and val, but no train" in refusal(pets(tmp_path / "pets", counts))


@cache_once
def huge_png() -> bytes:
    stream = BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def spoil(folder: Path) -> dict[str, str]:
    """Put undecodable images into ``folder``; their names and a word of the reason."""
    stream = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, "JPEG")
    (folder / "cut.jpg").write_bytes(stream.getvalue()[:1500])
    (folder / "text.jpg").write_text("not an image")
    (folder / "void.png").touch()
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {
        "cut.jpg": "truncated",
        "text.jpg": "not an image",
        "void.png": "not an image",
        "huge.png": "megapixels",
        "gone.png": "broken link",
    }


def test_what_cannot_be_decoded_is_skipped_by_name(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 10, "dog": 10})
    reasons = spoil(source / "cat")
    task = Task.open(source)
    assert sum(sizes(task).values()) == 20
    skipped = {one.file: one.why for one in task.skipped}
    assert skipped.keys() == {f"cat/{name}" for name in reasons}
    for name, word in reasons.items():
        assert word in skipped[f"cat/{name}"]
    assert Task.open(source) == task  # from what the cache knows


def test_a_class_with_none_left(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 10, "dog": 10})
    (source / "bad").mkdir()
    spoil(source / "bad")
    message = refusal(source)
    assert "class 'bad' has no image left" in message
    assert "cut.jpg" in message
    again = pets(tmp_path / "again", {"train/cat": 5, "train/dog": 5, "val/cat": 2, "val/dog": 2})
    for image in (again / "train" / "dog").iterdir():
        image.write_text("not an image")
    assert "class 'dog'" in refusal(again)


def test_a_damaged_member_of_a_zip_is_skipped(tmp_path: Path) -> None:
    source = tmp_path / "pets.zip"
    folder = pets(tmp_path / "pets", {"cat": 5, "dog": 5})
    with zipfile.ZipFile(source, "w") as archive:
        for image in sorted(folder.rglob("*.png")):
            archive.write(image, image.relative_to(folder))
    data = bytearray(source.read_bytes())
    data[data.index(b"PNG") + 20] ^= 1
    source.write_bytes(data)
    task = Task.open(source)
    assert [one.file for one in task.skipped] == ["cat/000.png"]
    assert sum(sizes(task).values()) == 9


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_skipped(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 5, "dog": 5})
    (source / "cat" / "003.png").chmod(0)
    task = Task.open(source)
    assert [(one.file, one.why) for one in task.skipped] == [("cat/003.png", "Permission denied")]


# Images


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    task = Task.open(pets(tmp_path / "pets", {"cat": 30, "dog": 30}))
    for split in ("train", "val", "test"):
        images = task.images(split, EIGHT)
        assert len(images) == len(task.splits[split])
        assert images.pixels.dtype == np.uint8
        assert images.labels.dtype == np.int64
        for pixels, label, one in zip(
            images.pixels, images.labels, task.splits[split], strict=True
        ):
            assert pixels[3, 3].tolist() == [int(Path(one.file).stem), label, 99]
            assert one.file.startswith(task.classes[label])


def test_the_margin_surrounds_the_networks_view(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 5})
    for n in range(5):
        noise = np.random.default_rng(n).integers(0, 256, (40, 40, 3), np.uint8)
        path = source / "dog" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(path)
    task = Task.open(source)
    cropped = Preprocess(20, HALF, HALF, crop_pct=0.5)
    plain = task.images("train", cropped).pixels
    wide = task.images("train", cropped, resize_margin=8).pixels
    assert wide.shape[1:] == (28, 28, 3)
    assert np.array_equal(wide[:, 4:-4, 4:-4], plain)
    # Where the crop leaves less than the margin, the whole image is taken.
    whole = task.images("train", Preprocess(20, HALF, HALF), resize_margin=8).pixels
    assert whole.shape[1:] == (28, 28, 3)


def test_progress_is_told_and_nothing_is_decoded_twice(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 30, "dog": 30})
    told: list[tuple[int, int]] = []

    def progress(done: int, of: int) -> None:
        told.append((done, of))

    task = Task.open(source, progress=progress)
    assert told[-1] == (60, 60)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    told.clear()
    first = task.images("train", EIGHT, progress=progress)
    assert told[-1] == (40, 40)
    told.clear()
    again = Task.open(source, progress=progress).images("train", EIGHT, progress=progress)
    assert told == []
    assert np.array_equal(first.pixels, again.pixels)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_cache_is_made_anew(
    mapped: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:
        monkeypatch.setattr(decoded_module, "IN_MEMORY_BYTES", 0)
    task = Task.open(pets(tmp_path / "pets", {"cat": 20, "dog": 20}))
    pixels = task.images("train", EIGHT).pixels
    assert pixels.flags.writeable != mapped
    truth = np.array(pixels)
    del pixels  # the file is cut below: a page that is mapped from it would be gone
    (kept,) = (cache / "decoded").iterdir()
    assert np.array_equal(np.load(kept), truth)
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damaged in (b"", whole[:100], whole[:-1], bytes(flipped), b"x" * len(whole)):
        kept.write_bytes(damaged)
        assert np.array_equal(task.images("train", EIGHT).pixels, truth)
        assert kept.read_bytes() == whole
    for note in (cache / "checked").iterdir():
        note.write_text('{"undecodable": {"cat/999.png": "no such image"}}')
    assert Task.open(task.source) == task


@pytest.mark.parametrize("mapped", [False, True])
def test_a_cache_that_cannot_be_written_is_no_error(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:
        monkeypatch.setattr(decoded_module, "IN_MEMORY_BYTES", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MVP_EDGE_CACHE", str(tmp_path / "file" / "below"))
    task = Task.open(pets(tmp_path / "pets", {"cat": 20, "dog": 20}))
    assert task.images("val", EIGHT).pixels.shape == (6, 8, 8, 3)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_full_disk_is_no_error(
    mapped: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mapped:
        monkeypatch.setattr(decoded_module, "IN_MEMORY_BYTES", 0)
    task = Task.open(pets(tmp_path / "pets", {"cat": 20, "dog": 20}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # a write beyond it fails
    try:
        starved = task.images("val", EIGHT).pixels
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((cache / "decoded").iterdir()) == []
    assert np.array_equal(task.images("val", EIGHT).pixels, starved)
    assert len(list((cache / "decoded").iterdir())) == 1


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MVP_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mvp-edge"


def test_two_folders_alike_in_names_sizes_and_times_are_told_apart(tmp_path: Path) -> None:
    tasks = []
    for name, red in (("one", 10), ("two", 20)):
        for label in ("cat", "dog"):
            for n in range(4):
                path = tmp_path / name / "pets" / label / f"{n}.bmp"
                draw(path, (red, 0, 0))
                os.utime(path, (0, 0))
        tasks.append(Task.open(tmp_path / name / "pets"))
    reds = [set(task.images("train", EIGHT).pixels[..., 0].ravel().tolist()) for task in tasks]
    assert reds == [{10}, {20}]
    assert tasks[0].fingerprint != tasks[1].fingerprint


# Written down


def test_a_task_that_was_written_down_has_exactly_these_splits(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"č at": 12, "dog": 12})
    spoil(source / "dog")
    task = Task.open(source, name="mine", seed=3)
    written = json.loads(json.dumps(task.to_json()))
    images = task.images("test", EIGHT)
    draw(source / "dog" / "new.png")
    again = Task.from_json(written)
    assert again == task
    assert again.fingerprint == task.fingerprint != Task.open(source, seed=3).fingerprint
    assert np.array_equal(again.images("test", EIGHT).pixels, images.pixels)
    source.rename(tmp_path / "moved")
    absent = Task.from_json(written)
    with pytest.raises(BadInput, match="pets does not exist"):
        absent.images("train", Preprocess(16, HALF, HALF))


def test_an_image_that_changed_is_named(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", {"cat": 6, "dog": 6})
    task = Task.open(source)
    culprit = files(task, "train")[2]
    draw(source / culprit, side=64)
    with pytest.raises(BadInput, match=rf"'{culprit}' has changed"):
        task.images("train", EIGHT)
    (source / culprit).unlink()
    with pytest.raises(BadInput, match=rf"'{culprit}' has changed"):
        task.images("train", EIGHT)


@pytest.mark.parametrize("key", ["schema", "classes", "splits", "fingerprint", "skipped"])
def test_a_damaged_record_is_refused(key: str, tmp_path: Path) -> None:
    written = Task.open(pets(tmp_path / "pets", {"cat": 6, "dog": 6})).to_json()
    with pytest.raises(BadInput, match=f"task: .*{key}"):
        Task.from_json({name: value for name, value in written.items() if name != key})
    with pytest.raises(BadInput, match="task"):
        Task.from_json({**written, key: 7})


def test_a_record_that_was_edited_is_refused(tmp_path: Path) -> None:
    written = Task.open(pets(tmp_path / "pets", {"cat": 6, "dog": 6})).to_json()
    moved = written["splits"]["test"]["cat"].popitem()
    written["splits"]["train"]["cat"][moved[0]] = moved[1]
    with pytest.raises(BadInput, match=r"'pets'.* edited"):
        Task.from_json(written)


# Many tasks


def test_samples_are_distinct_and_stable(tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", dict.fromkeys("abcdef", 4))
    ten = sample_tasks(source, 10, 3, seed=1)
    assert len({task.classes for task in ten}) == len({task.name for task in ten}) == 10
    assert {len(task.classes) for task in ten} == {3}
    assert sample_tasks(source, 4, 3, seed=1) == ten[:4]
    assert len({task.classes for task in sample_tasks(source, 20, 3)}) == 20
    assert [task.classes for task in sample_tasks(source, 10, 3, seed=2)] != [
        task.classes for task in ten
    ]
    # A class's test images are the same wherever it occurs.
    tests: dict[str, set[tuple[str, ...]]] = {}
    for task in ten:
        for n, label in enumerate(task.classes):
            mine = tuple(one.file for one in task.splits["test"] if one.label == n)
            tests.setdefault(label, set()).add(mine)
    assert all(len(ways) == 1 for ways in tests.values())
    assert Task.open(source, classes=ten[0].classes, name=ten[0].name, seed=1) == ten[0]


@pytest.mark.parametrize(("count", "classes"), [(21, 3), (1, 7), (0, 3), (1, 1), (1, 0)])
def test_impossible_samples(count: int, classes: int, tmp_path: Path) -> None:
    source = pets(tmp_path / "pets", dict.fromkeys("abcdef", 1))
    with pytest.raises(BadInput, match=rf"sample {count}x{classes}: .* has 6 classes"):
        sample_tasks(source, count, classes)


def test_samples_from_many_classes(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    lines = []
    for label in range(60):
        for n in range(2):
            image = tmp_path / f"{label}-{n}.png"
            image.write_bytes((tmp_path / "0.png").read_bytes())
            lines.append(f"{image.name},class{label}")
    (tmp_path / "many.csv").write_text("\n".join(lines))
    tasks = sample_tasks(tmp_path / "many.csv", 5, 5)
    assert len({task.classes for task in tasks}) == 5
    assert sample_tasks(tmp_path / "many.csv", 3, 5) == tasks[:3]
    (tmp_path / "few.csv").write_text("\n".join(lines[::2]))
    with pytest.raises(BadInput, match=r"few.csv: 5 images are too few"):
        sample_tasks(tmp_path / "few.csv", 5, 5)


def test_tasks_in_a_folder(tmp_path: Path) -> None:
    home = tmp_path / "tasks"
    pets(home / "pets", {"cat": 6, "dog": 6})
    pets(home / "cars", {"train/car": 6, "train/bus": 6, "test/car": 2, "test/bus": 2})
    with zipfile.ZipFile(home / "birds.ZIP", "w") as archive:
        for label in ("emu", "owl"):
            for n in range(5):
                archive.write(home / "pets" / "cat" / f"{n:03d}.png", f"birds/{label}/{n}.png")
    (home / "notes.txt").write_text("not a task")
    (home / ".hidden").mkdir()
    assert [task.name for task in tasks_in(home)] == ["birds", "cars", "pets"]
    pets(home / "one", {"cat": 6})
    with pytest.raises(BadInput, match="one class only, 'cat'"):
        tasks_in(home)


def test_a_folder_that_is_no_folder_of_tasks(tmp_path: Path) -> None:
    single = pets(tmp_path / "pets", {"cat": 6, "dog": 6})
    with pytest.raises(BadInput, match=r"'cat' is no task .* is pets itself the task"):
        tasks_in(single)
    split = pets(tmp_path / "cars", {"train/car": 6, "train/bus": 6, "val/car": 2, "val/bus": 2})
    with pytest.raises(BadInput, match=r"'train' is no task .* is cars itself the task"):
        tasks_in(split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: no task in it"):
        tasks_in(tmp_path / "empty")
    with pytest.raises(BadInput, match="absent: No such file"):
        tasks_in(tmp_path / "absent")


def test_loading_needs_no_torch() -> None:
    code = "import sys, mvp_edge.tasks.task; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert told.stdout.strip() == "False"


@pytest.mark.skipif("MVP_EDGE_DATA" not in os.environ, reason="MVP_EDGE_DATA is not set")
def test_photographs_of_the_shared_data() -> None:
    task = Task.open(
        Path(os.environ["MVP_EDGE_DATA"]) / "imagenette_photos.zip",
        classes=["tench", "church"],
    )
    assert sizes(task) == {"train": 170, "val": 30, "test": 60}
    assert task.skipped == ()
    images = task.images("test", Preprocess(32, HALF, HALF))
    assert images.pixels.std() > 20
