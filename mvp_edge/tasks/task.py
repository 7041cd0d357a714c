"""A task: classes and their images, split into train, val and test, with a description in JSON.

    scan (source) ─▶ check_images (classes) ─▶ make_splits (splits) ─▶ Task ─▶ Images

Choices are made on validation images and figures are reported on test images, so every task has both.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mvp_edge.tasks.classes import check_images, choose_classes, refuse_unusable
from mvp_edge.tasks.decoded import Progress, decoded, identity
from mvp_edge.tasks.labels import SPLITS, Found, Skipped
from mvp_edge.tasks.source import is_image, scan
from mvp_edge.tasks.splits import make_splits, stratified_rows
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import sha256_json

# With up to this many possible tasks, ``sample_tasks`` shuffles them all instead of drawing.
_FEW = 10_000


@dataclass(frozen=True)
class Example:
    """One image of a split."""

    file: str
    """Its path inside the source."""
    label: int
    """Index into ``Task.classes``."""
    size: int
    """Bytes."""
    stamp: int
    """Modification time in ns, or in a zip the CRC-32."""


@dataclass(frozen=True)
class Images:
    """The decoded images of one split, in the order of ``Task.splits``."""

    pixels: NDArray[np.uint8]
    """[N, S, S, 3]; read-only where it is mapped from the cache."""
    labels: NDArray[np.int64]
    """[N], indices into ``Task.classes``."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Images":
        """A copy of the images at ``rows``."""
        return Images(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True)
class Task:
    """Classes and where their images lie; every listed image has been decoded once."""

    name: str
    source: str
    """Absolute path of the folder, zip or list file."""
    classes: tuple[str, ...]
    """Sorted, in Unicode's NFC form; a label is an index into them."""
    splits: Mapping[str, tuple[Example, ...]]
    """train, val and test, each sorted by label, then file."""
    origin: Mapping[str, str]
    """Split → a description of where its images come from."""
    skipped: tuple[Skipped, ...]
    """Image files that are left out, each with the reason."""
    seed: int

    def __repr__(self) -> str:
        images = " + ".join(f"{len(examples)} {split}" for split, examples in self.splits.items())
        names = ", ".join(self.classes[:5]) + (", …" if len(self.classes) > 5 else "")
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"Task {self.name}: {len(self.classes)} classes ({names}), {images} images{skipped}, "
            f"from {self.source}"
        )

    @classmethod
    def open(
        cls,
        source: Path | str,
        *,
        classes: Sequence[str] | None = None,
        name: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Read a folder of class folders, a zip of one, or a list file (.csv .tsv .txt .jsonl).

        Args:
            source: the folder, zip or list file.
            classes: use only these classes; all if None.
            name: defaults to the source's name without suffix.
            seed: of the splits that have to be made.
            progress: called with (done, total) while images are checked for the first time.

        Raises:
            BadInput: the source cannot be used; the message names the class, file or line.
        """
        path = Path(source).absolute()
        scanned = scan(path)
        chosen = choose_classes(path, scanned, classes)
        found = check_images(path, (one for one in scanned.found if one.label in chosen), progress)
        return cls._make(path, name or _name(path), chosen, found, scanned.skipped, seed)

    @classmethod
    def _make(
        cls,
        path: Path,
        name: str,
        classes: tuple[str, ...],
        found: Sequence[Found],
        skipped: Iterable[Skipped],
        seed: int,
    ) -> Self:
        refuse_unusable(path, classes, found)
        usable = [one for one in found if not one.problem]
        splits, origin = make_splits(usable, seed)
        if not splits["val"] or not splits["test"]:
            raise BadInput(
                f"task {path}: {len(usable)} images are too few: beside one image a class to train "
                "on, one is needed to validate and one to test"
            )
        index = {label: n for n, label in enumerate(classes)}
        return cls(
            name=name,
            source=str(path),
            classes=classes,
            splits={
                split: tuple(Example(one.file, index[one.label], one.size, one.stamp) for one in of)
                for split, of in splits.items()
            },
            origin=origin,
            skipped=(*(Skipped(one.file, one.problem) for one in found if one.problem), *skipped),
            seed=seed,
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the classes and every image's name, size, stamp, label and split.

        For a folder or a list, whose stamps are times, its path counts, too.
        """
        return sha256_json([identity(Path(self.source)), list(self.classes), self._written()])

    def images(
        self,
        split: str,
        preprocess: Preprocess,
        *,
        resize_margin: int = 0,
        progress: Progress | None = None,
    ) -> Images:
        """Decode a split, or read it from the cache.

        Args:
            split: train, val or test.
            preprocess: the network's.
            resize_margin: pixels that are left around the network's view for random crops: the
                array's side is ``preprocess.size + resize_margin``, at the same scale as without
                margin as long as ``crop_pct`` leaves that much, and its centre is then what the
                network sees without augmentation.
            progress: called with (done, total) while images are decoded.
        """
        size = preprocess.size + resize_margin
        crop_pct = min(1.0, size / round(preprocess.size / preprocess.crop_pct))
        view = replace(preprocess, size=size, crop_pct=crop_pct) if resize_margin else preprocess
        examples = self.splits[split]
        pixels = decoded(
            Path(self.source),
            {one.file: one.size for one in examples},
            view,
            f"{self.fingerprint} {split}",
            progress,
        )
        return Images(pixels, self.labels(split))

    def labels(self, split: str) -> NDArray[np.int64]:
        """[N] class indices of a split."""
        return np.array([one.label for one in self.splits[split]], np.int64)

    def subsample(self, split: str, n: int, seed: int) -> NDArray[np.int64]:
        """Rows of a stratified subset of at most ``n`` images, ascending.

        Every class keeps its share to within one image, and at least one image where ``n`` allows it.
        """
        files = [one.file for one in self.splits[split]]
        return stratified_rows(self.labels(split), files, n, seed)

    def to_json(self) -> dict[str, Any]:
        """The whole task, so that a later command has exactly these splits (see ``from_json``)."""
        return {
            "schema": 1,
            "name": self.name,
            "source": self.source,
            "seed": self.seed,
            "classes": list(self.classes),
            "origin": dict(self.origin),
            "splits": self._written(),
            "skipped": [one._asdict() for one in self.skipped],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of ``to_json``. The source is read only when images are needed."""
        try:
            if value["schema"] != 1:
                raise BadInput(f"task: schema {value['schema']!r} is unknown to this version")
            classes = tuple(map(str, value["classes"]))
            index = {label: n for n, label in enumerate(classes)}
            splits = {
                split: tuple(
                    Example(file, index[label], *map(int, content.split()))
                    for label, files in value["splits"][split].items()
                    for file, content in files.items()
                )
                for split in ("train", "val", "test")
            }
            task = cls(
                name=str(value["name"]),
                source=str(value["source"]),
                classes=classes,
                splits=splits,
                origin=dict(value["origin"]),
                skipped=tuple(Skipped(one["file"], one["why"]) for one in value["skipped"]),
                seed=int(value["seed"]),
            )
            written = value["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"task: not a task as it was written down ({error!r})") from error
        if task.fingerprint != written:
            raise BadInput(f"task {task.name!r}: what was written down has been edited since")
        return task

    def _written(self) -> dict[str, dict[str, dict[str, str]]]:
        """Split → class → file → "bytes stamp"."""
        written: dict[str, dict[str, dict[str, str]]] = {}
        for split, examples in self.splits.items():
            of_class = written.setdefault(split, {label: {} for label in self.classes})
            for one in examples:
                of_class[self.classes[one.label]][one.file] = f"{one.size} {one.stamp}"
        return written


def sample_tasks(
    source: Path | str,
    count: int,
    classes: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """Draw ``count`` tasks of ``classes`` classes each from one source; no two have the same classes.

    The n-th task of a source, number of classes and seed is always the same one, under the same
    name, however many are drawn.
    """
    path = Path(source).absolute()
    scanned = scan(path)
    labels = sorted({one.label for one in scanned.found} | set(scanned.empty))
    possible = math.comb(len(labels), classes) if classes >= 2 else 0
    if not 1 <= count <= possible:
        raise BadInput(
            f"{count}x{classes}: {path} has {len(labels)} classes, "
            f"of which {possible:,} tasks of {classes} classes can be made",
            field="sample",
        )
    sets = _class_sets(labels, count, classes, random.Random(seed))
    used = sorted({label for one in sets for label in one})
    choose_classes(path, scanned, used)
    found = check_images(path, (one for one in scanned.found if one.label in used), progress)
    return [
        Task._make(
            path,
            f"{_name(path)}-{classes}c-s{seed}-{n:03d}",
            chosen,
            [one for one in found if one.label in chosen],
            scanned.skipped,
            seed,
        )
        for n, chosen in enumerate(sets)
    ]


def tasks_in(folder: Path | str, seed: int = 0, progress: Progress | None = None) -> list[Task]:
    """Open every sub-folder and every zip of ``folder`` as a task, sorted by name.

    Raises:
        BadInput: one of them is not a task, or ``folder`` looks like a task itself.
    """
    path = Path(folder).absolute()
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise BadInput(f"tasks {path}: {error.strerror}: give a folder of tasks") from error
    found = [
        one
        for one in inside
        if not one.name.startswith(".")
        and one.name != "__MACOSX"
        and (one.is_dir() or one.suffix.lower() == ".zip")
    ]
    if not found:
        raise BadInput(f"tasks {path}: no task in it: it needs one folder, or one zip, a task")
    if all(one.name.lower() in SPLITS for one in found):
        raise _itself_a_task(path, found[0])
    tasks: dict[str, Task] = {}
    for one in found:
        if one.is_dir() and _is_class_folder(one):
            raise _itself_a_task(path, one)
        task = Task.open(one, seed=seed, progress=progress)
        if task.name in tasks:
            raise BadInput(f"tasks {path}: two tasks are called {task.name!r}: rename one")
        tasks[task.name] = task
    return list(tasks.values())


def find_tasks(
    source: Path,
    sample: str | None,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> list[Task]:
    """The tasks in a folder of tasks, or tasks drawn from the classes of one source.

    Args:
        source: a folder of tasks; with ``sample`` a folder or zip of classes.
        sample: "NxK" for N tasks of K classes each.
        seed: of the sample and the splits.
        progress: called with (phase, done, total).
    """
    checking = partial(progress, "checking images")
    if sample is None:
        return tasks_in(source, seed=seed, progress=checking)
    count, _, classes = sample.partition("x")
    if not (count.isdecimal() and classes.isdecimal()):
        raise BadInput(f"{sample}: write NxK, e.g. 20x5 for 20 tasks of 5 classes", field="sample")
    return sample_tasks(source, int(count), int(classes), seed, progress=checking)


def _name(path: Path) -> str:
    place = path.resolve()
    return (place.name if place.is_dir() else place.stem) or "task"


def _class_sets(
    labels: Sequence[str], count: int, size: int, draw: random.Random
) -> list[tuple[str, ...]]:
    """``count`` different sets of ``size`` labels; a larger count appends sets at the end."""
    if math.comb(len(labels), size) <= _FEW:
        every = list(combinations(labels, size))
        draw.shuffle(every)
        return every[:count]
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < count:
        drawn[tuple(sorted(draw.sample(labels, size)))] = None
    return list(drawn)


def _is_class_folder(folder: Path) -> bool:
    try:
        inside = list(folder.iterdir())
    except OSError:
        return False  # opening it as a task says why
    return any(is_image(one.name) for one in inside) and not any(one.is_dir() for one in inside)


def _itself_a_task(path: Path, culprit: Path) -> BadInput:
    return BadInput(
        f"tasks {path}: {culprit.name!r} is no task but a part of one: is {path.name} itself the "
        "task? Then give --sample, such as 20x5, to draw tasks from its classes"
    )
