"""The sources of images: a folder of class folders, a zip of one, or a list file.

    path ── scan ────▶ Scan: every image with its label and, where one is given, its split
    path ── opener ──▶ open(file) -> Path | BytesIO, for the image pipeline's ``open_rgb``

``scan`` reads names and sizes only; no image is opened. A zip is read without unpacking, and is refused if its
directory contains what no collection of images needs (links, ``../``, zip bombs).
"""

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

from mvp_edge.tasks.labels import (
    LIST_SUFFIXES,
    MAX_FILES,
    Found,
    Scan,
    Skipped,
    parts_of,
    read_folders,
    read_list,
)
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import IMAGE_SUFFIXES, Undecodable

MAX_MEMBER_BYTES = 256 * 2**20
MAX_ZIP_BYTES = 64 * 2**30
# Photographs hardly shrink in a zip; the ratio is checked only above this size.
_BOMB_RATIO, _BOMB_BYTES = 200, 100 * 10**6

Opener: TypeAlias = Callable[[str], Path | BytesIO]
"""Opens an image file of the source for ``open_rgb``; raises Undecodable."""


def scan(source: Path) -> Scan:
    """List the images of ``source`` with their labels; BadInput names the file at fault."""
    match kind_of(source):
        case "list":
            return read_list(source)
        case "zip":
            return read_folders(source, *_list_zip(source), [])
        case "folder":
            return read_folders(source, *_list_folder(source))


def list_images(source: Path) -> list[Found]:
    """Every image file of a folder or a zip, whatever its folders are called; BadInput if it cannot be read."""
    match kind_of(source):
        case "list":
            raise BadInput(
                f"{source} is a list of labelled images: give a folder or a zip of images"
            )
        case "zip":
            return _list_zip(source)[0]
        case "folder":
            return _list_folder(source)[0]


def opener(source: Path) -> Opener:
    """A function that opens an image of ``source`` by its ``Found.file``; safe in several threads."""
    match kind_of(source):
        case "list":
            return lambda file: source.parent / file
        case "zip":
            archive = _open_zip(source)
            return lambda file: _read_member(archive, file)
        case "folder":
            return lambda file: source / file


def kind_of(source: Path) -> Literal["folder", "zip", "list"]:
    """The kind of ``source``; BadInput if it does not exist or is none of the three."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:
        raise BadInput(
            f"task {source} does not exist: give a folder of class folders, a zip of one, "
            "or a list file (path,label)"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"task {str(source)!r} cannot be read: {_reason(error)}") from error
    suffix = source.suffix.lower()
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode) and suffix == ".zip":
        return "zip"
    if stat.S_ISREG(mode) and suffix in LIST_SUFFIXES:
        return "list"
    raise BadInput(
        f"task {source} is neither a folder, a .zip nor a list file ({', '.join(LIST_SUFFIXES)})"
    )


def is_image(file: str) -> bool:
    """Whether the file has the suffix of an image."""
    _, dot, suffix = file.rpartition(".")
    return dot + suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part[0] == "." or part == "__MACOSX" for part in parts)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "damaged"


# Folders


def _list_folder(root: Path) -> tuple[list[Found], set[str], list[Skipped]]:
    """Every image below ``root``, every folder, and the files that are neither.

    Links are followed, since the user chose this folder, except links to a folder above themselves.
    """
    listed: list[Found] = []
    folders: set[str] = set()
    skipped: list[Skipped] = []
    top = root.stat()
    pending = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while pending:
        inside, above = pending.pop()
        for entry in _entries(root / inside):
            file = f"{inside}/{entry.name}" if inside else entry.name
            if _is_hidden([entry.name]):
                continue
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise BadInput(f"{root}: the name {file!r} is not UTF-8: rename it") from None
            try:
                status = entry.stat()
            except OSError as error:
                why = "a broken link" if entry.is_symlink() else _reason(error)
                if is_image(file):
                    listed.append(Found(file, 0, 0, why))
                elif entry.is_symlink():
                    skipped.append(Skipped(file, why))
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    skipped.append(Skipped(file, "a link that leads back to a folder above it"))
                    continue
                folders.add(file)
                pending.append((file, above | {identity}))
            elif is_image(file):
                # Opening a named pipe would block for ever.
                problem = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
                listed.append(Found(file, status.st_size, status.st_mtime_ns, problem))
        if len(listed) > MAX_FILES:
            raise BadInput(f"{root} holds more than {MAX_FILES:,} images: is it the right folder?")
    return listed, folders, skipped


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {_reason(error)}") from error


# Zips


def _list_zip(path: Path) -> tuple[list[Found], set[str]]:
    listed: list[Found] = []
    folders: set[str] = set()
    for info in _open_zip(path).infolist():
        parts = parts_of(info.filename)
        if not parts or _is_hidden(parts):
            continue
        folder = parts if info.is_dir() else parts[:-1]
        if "/".join(folder) not in folders:
            folders.update("/".join(folder[:depth]) for depth in range(1, len(folder) + 1))
        if not info.is_dir() and is_image(info.filename):
            listed.append(Found(info.filename, info.file_size, info.CRC, ""))
    return listed, folders


def _open_zip(path: Path) -> zipfile.ZipFile:
    status = path.stat()
    return _checked_zip(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _checked_zip(path: Path, size: int, mtime_ns: int) -> zipfile.ZipFile:
    """The opened archive; cached, since a directory of 60,000 names takes 0.3 s to read.

    Raises BadInput for a zip that is damaged or contains what a collection of images never needs.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is not a zip or is damaged: {_reason(error)}") from error
    try:
        _refuse_hostile(path, size, archive.infolist())
    except BadInput:
        archive.close()
        raise
    return archive


def _refuse_hostile(path: Path, size: int, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_FILES:
        raise BadInput(f"{path} refused: {len(members):,} members, more than {MAX_FILES:,}")
    seen: set[str] = set()
    for info in members:
        if why := _hostile(info):
            raise BadInput(f"{path} refused: member {info.filename!r} {why}")
        if info.filename in seen:
            raise BadInput(f"{path} refused: member {info.filename!r} stands in it twice")
        seen.add(info.filename)
    packed = sum(info.compress_size for info in members)
    unpacked = sum(info.file_size for info in members)
    if packed > size:
        raise BadInput(f"{path} refused: its members overlap (a zip bomb)")
    if unpacked > MAX_ZIP_BYTES:
        raise BadInput(
            f"{path} refused: {unpacked / 2**30:,.0f} GiB unpacked, "
            f"more than {MAX_ZIP_BYTES // 2**30} GiB"
        )
    if unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed:
        raise BadInput(f"{path} refused: unpacks to over {_BOMB_RATIO} times its size (a zip bomb)")


def _hostile(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute name"
    if "\\" in name:
        return "has a backslash in its name; pack it again with '/' between folders"
    if ".." in name.split("/"):
        return "leads out of the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link; pack the file itself"
    if info.flag_bits & 0x1:
        return "is encrypted; pack it without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {info.compress_type}; use plain deflate"
    if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * info.compress_size:
        return f"unpacks to over {_BOMB_RATIO} times its size (a zip bomb)"
    if info.file_size > MAX_MEMBER_BYTES and is_image(name):
        return f"is an image of {info.file_size / 2**20:,.0f} MiB, over {MAX_MEMBER_BYTES >> 20}"
    return ""


def _read_member(archive: zipfile.ZipFile, file: str) -> BytesIO:
    try:
        return BytesIO(archive.read(file))
    except KeyError:
        raise Undecodable(file, "no longer in the zip") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise Undecodable(file, f"damaged in the zip: {_reason(error)}") from error
