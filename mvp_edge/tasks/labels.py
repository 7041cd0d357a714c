"""Reads the class and the split of each image from folder names or from a list file.

Layouts, each below any number of lone top-level folders (``cifar100/train/apple/000.webp``)::

    <class>/**/image              splits are made (mvp_edge.tasks.task)
    <split>/<class>/**/image      split: train | val, valid, validation | test

List files, one image a line: ``path,label[,split]`` as .csv, .tsv, .txt (columns separated by tabs,
commas or spaces) or .jsonl; the first line may name the columns. Paths are relative to the list's folder.
"""

import csv
import json
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import IMAGE_SUFFIXES

SPLITS: Mapping[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names that folders and columns may give a split, in lower case → the split."""

LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
MAX_FILES = 1_000_000

# Not accepted as names of splits, and unlikely names of classes.
_NEARLY_SPLITS = frozenset(
    {"training", "testing", "trainset", "testset", "dev", "eval", "evaluation", "holdout"}
)
_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split",),
}


class Found(NamedTuple):
    """One image of a source, before any decoding."""

    file: str
    """Its path inside the source: below the folder, in the zip, or as the list writes it."""
    size: int
    """Bytes."""
    stamp: int
    """Changes with the content: modification time in ns, or the CRC-32 that a zip keeps."""
    problem: str
    """Why it cannot be read (a broken link, ...); "" if no problem is known."""
    label: str = ""
    split: str = ""
    """train, val, test, or "" if the source has no splits."""


class Skipped(NamedTuple):
    """A file that is left out of a task, and the reason."""

    file: str
    why: str


class Scan(NamedTuple):
    """The images and folders found in a source."""

    found: tuple[Found, ...]
    """Sorted by name."""
    empty: tuple[str, ...]
    """Class folders without a single image file."""
    skipped: tuple[Skipped, ...]
    """Files and folders that belong to no class."""


def parts_of(file: str) -> tuple[str, ...]:
    """The parts of a path inside a source (pathlib takes ten times as long)."""
    return tuple([name for name in file.split("/") if name not in ("", ".")])


def class_name(raw: str, where: str) -> str:
    """``raw`` in Unicode's NFC form (macOS uses NFD); BadInput if it is not a valid name."""
    name = unicodedata.normalize("NFC", raw)
    if not name.strip() or name in (".", ".."):
        raise BadInput(f"{where}: class name {raw!r} is empty: every class needs a name")
    if "/" in name or "\\" in name:
        raise BadInput(f"{where}: class name {raw!r} has a slash in it: use another character")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise BadInput(f"{where}: class name {raw!r} has a control character in it: rename it")
    return name


def read_folders(
    source: Path, listed: Iterable[Found], folders: Iterable[str], skipped: Iterable[Skipped]
) -> Scan:
    """Read splits and classes from the folder names.

    Args:
        source: the source's path, for errors.
        listed: its images, without labels.
        folders: every folder in it, whether it holds images or not.
        skipped: files that are known not to belong to the task.
    """
    images = {one: parts_of(one.file) for one in sorted(listed)}
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise BadInput(f"{source} holds no image ({kinds}): one folder of images a class is needed")
    depth, deep = _lone_folders(images.values())
    inner = {parts[depth] for parts in images.values() if len(parts) > depth + 1}
    if not inner:
        raise BadInput(
            f"{source} holds images but no class folders: put the images of each class into a "
            "folder of its own, or give a list file (path,label)"
        )
    given = _given_splits(source, inner, deep)
    at = depth + 1 if given else depth
    found: list[Found] = []
    labels: dict[str, str] = {}
    stray, unused = list(skipped), Counter[str]()
    for one, parts in images.items():
        if given and parts[depth] in inner - given.keys():
            unused["/".join(parts[: depth + 1])] += 1
        elif len(parts) < at + 2:
            stray.append(Skipped(one.file, "not in a class folder"))
        else:
            raw = parts[at]
            label = labels[raw] = labels.get(raw) or class_name(raw, f"{source}: folder")
            split = given.get(parts[depth], "")
            found.append(one._replace(label=label, split=split))
    stray += (
        Skipped(f"{folder}/", f"neither train, val nor test: its {count} images are not used")
        for folder, count in unused.items()
    )
    top = next(iter(images.values()))[:depth]
    paths = map(parts_of, folders)
    class_folders = {
        unicodedata.normalize("NFC", parts[at])
        for parts in paths
        if len(parts) == at + 1 and parts[:depth] == top and (not given or parts[depth] in given)
    }
    empty = class_folders - {one.label for one in found}
    return Scan(tuple(found), tuple(sorted(empty)), tuple(sorted(stray)))


def _lone_folders(images: Iterable[tuple[str, ...]]) -> tuple[int, set[str]]:
    """How many nested top-level folders have no siblings, and the folders below that hold folders of images."""
    paths, depth = list(images), 0
    while True:
        tops = {parts[depth] for parts in paths}
        deep = {parts[depth] for parts in paths if len(parts) > depth + 2}
        if len(tops) > 1 or not deep or _split_names(tops):
            return depth, deep
        depth += 1


def _split_names(folders: Iterable[str]) -> set[str]:
    return {name for name in folders if name.lower() in SPLITS}


def _given_splits(source: Path, inner: set[str], deep: set[str]) -> dict[str, str]:
    """Folder name → split; empty if the folders are classes.

    ``inner`` are the folders that hold images, ``deep`` those that hold folders of images: a class
    may well be called "train" (one of CIFAR-100's is), but its images lie right inside it.
    """
    given = _split_names(deep)
    nearly = {name for name in deep if name.lower() in _NEARLY_SPLITS}
    if nearly and (given or nearly == inner):
        raise BadInput(
            f"{source}: folder {min(nearly)!r} is not the name of a split: "
            "rename it to train, val or test"
        )
    if not given and _split_names(inner) == inner and "train" in {name.lower() for name in inner}:
        raise BadInput(
            f"{source}: folder {min(inner)!r} holds images but no class folders: put the images "
            "of each class into a folder of its own"
        )
    for split in ("train", "val", "test"):
        same = sorted(name for name in given if SPLITS[name.lower()] == split)
        if len(same) > 1:
            raise BadInput(f"{source}: {' and '.join(same)} are both the {split} split: keep one")
    return {name: SPLITS[name.lower()] for name in given}


def read_list(path: Path) -> Scan:
    """Read a list file; BadInput names the line at fault. Missing images are listed with that problem.

    The paths may lead anywhere, since the list is the user's own.
    """
    found: list[Found] = []
    lines: dict[str, int] = {}
    for line, row in _rows(path):
        where = f"{path}:{line}"
        file, label, split = row.get("path", ""), row.get("label", ""), row.get("split", "")
        if not file or "\0" in file:
            raise BadInput(f"{where}: the image's path is missing (path,label[,split])")
        if file in lines:
            raise BadInput(f"{where}: {file!r} is listed twice, first in line {lines[file]}")
        if split and split.lower() not in SPLITS:
            raise BadInput(f"{where}: {split!r} is not a split: use train, val or test")
        if found and bool(split) != bool(found[0].split):
            raise BadInput(f"{where}: give the split in every line or in none")
        if len(found) == MAX_FILES:
            raise BadInput(f"{where}: more than {MAX_FILES:,} images")
        lines[file] = line
        found.append(
            _look_up(path.parent, file)._replace(
                label=class_name(label, where), split=SPLITS.get(split.lower(), "")
            )
        )
    if not found:
        raise BadInput(f"{path} lists no image: one a line is needed (path,label[,split])")
    return Scan(tuple(sorted(found)), (), ())


def _look_up(base: Path, file: str) -> Found:
    try:
        status = (base / file).stat()
    except FileNotFoundError:
        return Found(file, 0, 0, "does not exist")
    except OSError as error:
        return Found(file, 0, 0, error.strerror or str(error))
    problem = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
    return Found(file, status.st_size, status.st_mtime_ns, problem)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line's number, and its columns by name: path, label and optionally split."""
    columns: dict[str, int] = {}
    cut: str | None = None
    for number, text in _lines(path):
        where = f"{path}:{number}"
        if path.suffix.lower() == ".jsonl":
            yield number, _json_row(text, where)
            continue
        cut = cut or _delimiter(path.suffix.lower(), text)
        try:
            cells = text.split() if cut == " " else next(csv.reader([text], delimiter=cut))
        except csv.Error as error:
            raise BadInput(f"{where}: {error}") from error
        cells = [cell.strip() for cell in cells]
        if not columns:
            columns = _header(cells)
            if columns:
                continue
            columns = {name: at for at, name in enumerate(_COLUMNS) if at < len(cells)}
        if columns.keys() < {"path", "label"} or len(cells) <= max(columns.values()):
            raise BadInput(f"{where}: {len(cells)} columns where path,label[,split] are needed")
        yield number, {name: cells[at] for name, at in columns.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # Excel writes UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def _delimiter(suffix: str, first: str) -> str:
    """The separator of the columns; in a .txt file tab, comma or space, whichever comes first."""
    if suffix == ".txt":
        return next((cut for cut in "\t," if cut in first), " ")
    return "\t" if suffix == ".tsv" else ","


def _header(cells: Sequence[str]) -> dict[str, int]:
    """Column name → position if this row names the columns, else {}."""
    names = [cell.lower() for cell in cells]
    columns = {
        column: names.index(alias)
        for column, aliases in _COLUMNS.items()
        for alias in reversed(aliases)
        if alias in names
    }
    return columns if {"path", "label"} <= columns.keys() else {}


def _json_row(text: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadInput(f'{where}: {{"path": ..., "label": ...}} is needed')
    chosen = {key: row[key] for key in _COLUMNS if row.get(key) is not None}
    for key, value in chosen.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadInput(f"{where}: {key} must be a string, not {type(value).__name__}")
    return {key: str(value).strip() for key, value in chosen.items()}
