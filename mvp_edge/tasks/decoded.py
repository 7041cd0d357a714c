"""Decodes image files to one uint8 array a split, which is kept in the user's cache folder.

    $MVP_EDGE_CACHE | the platform's cache folder
        checked/<key>.json    which images of one class cannot be decoded, and why
        decoded/<key>.npy     uint8 [N, S, S, 3]: a plain .npy, followed by the CRC-32 of its data

The cache only saves time: a damaged file is replaced, and if the folder cannot be written or its disk is full,
nothing is cached and nothing fails. It can be deleted at any time.
"""

import io
import json
import math
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from mvp_edge.tasks.labels import Found
from mvp_edge.tasks.source import opener
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess, Undecodable, open_rgb
from mvp_edge_export.storage import atomic_file, cache_folder, sha256_json, write_json

IN_MEMORY_BYTES = 32 * 2**20
"""Arrays of at least this size are mapped from the cache file instead of read."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_SPARE_BYTES = 2**30
_CHUNK = 8
_SPAN = 2**24
# Everything else that determines the pixels; an update of either invalidates the cache.
_DECODER = ("mvp-edge 1", PIL.__version__)

T = TypeVar("T")
R = TypeVar("R")


def undecodable(
    source: Path, found: Sequence[Found], progress: Progress | None = None
) -> dict[str, str]:
    """Find the images that cannot be decoded, by decoding every image once.

    The findings are cached class by class, so that tasks with a common class share them.

    Returns:
        File → reason, for the images that cannot be decoded.
    """
    problems: dict[str, str] = {}
    unknown: dict[str, list[Found]] = {}
    notes: dict[str, Path | None] = {}
    classes: dict[str, list[Found]] = {}
    for one in found:
        classes.setdefault(one.label, []).append(one)
    for label, images in classes.items():
        key = [_DECODER, identity(source), [one[:3] for one in images]]
        notes[label] = _cached("checked", f"{sha256_json(key)}.json")
        if (known := _read_note(notes[label], images)) is None:
            unknown[label] = images
        else:
            problems |= known
    if not unknown:
        return problems
    open_ = opener(source)

    def check(files: Sequence[str]) -> dict[str, str]:
        reasons = {}
        for file in files:
            try:
                open_rgb(open_(file), file)
            except Undecodable as error:
                reasons[file] = str(error)
        return reasons

    files = [one.file for images in unknown.values() for one in images]
    for reasons in _in_parallel(check, files, progress):
        problems |= reasons
    for label, images in unknown.items():
        if path := notes[label]:
            bad = {one.file: problems[one.file] for one in images if one.file in problems}
            with suppress(BadInput):
                write_json(path, {"schema": 1, "undecodable": bad})
    return problems


def decoded(
    source: Path,
    files: Mapping[str, int],
    preprocess: Preprocess,
    key: str,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Decode and resize images, or read them from the cache.

    Args:
        source: the task's folder, zip or list.
        files: its images, each with its size in bytes when the task was opened.
        preprocess: the result of its ``pixels`` is cached; mean and standard deviation are not used.
        key: identifies the content and order of the images.
        progress: called with (done, total); not called if nothing has to be decoded.

    Returns:
        uint8 [len(files), size, size, 3]: in memory, or mapped read-only from the cache.

    Raises:
        BadInput: an image has changed since the task was opened.
    """
    shape = (len(files), preprocess.size, preprocess.size, 3)
    how = [preprocess.size, preprocess.interpolation, preprocess.crop_pct]
    path = _cached("decoded", f"{sha256_json([_DECODER, key, how])}.npy")
    if path and (kept := _read_array(path, shape)) is not None:
        return kept
    open_ = opener(source)

    def decode(chunk: Sequence[str]) -> NDArray[np.uint8]:
        return np.stack([_pixels(open_(file), file, files[file], preprocess) for file in chunk])

    names = list(files)
    if path and math.prod(shape) >= IN_MEMORY_BYTES and _has_room(path, math.prod(shape)):
        # If the disk fills up meanwhile, everything is decoded again in memory; if an image has
        # changed, that raises the same error again.
        with suppress(BadInput):
            _write_array(path, shape, _in_parallel(decode, names, progress))
            if (kept := _read_array(path, shape)) is not None:
                return kept
    pixels = np.empty(shape, np.uint8)
    done = 0
    for chunk in _in_parallel(decode, names, progress):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
    if path and pixels.nbytes < IN_MEMORY_BYTES:
        with suppress(BadInput):
            _write_array(path, shape, [pixels])
    return pixels


def identity(source: Path) -> str:
    """What distinguishes files of two sources that agree in name, size and stamp.

    A zip's stamps are checksums of the content. A folder's are times, which reproducible archives set
    to the same second everywhere, so the folder's path counts, too.
    """
    return "zip" if source.suffix.lower() == ".zip" else str(source)


def _pixels(
    image: Path | io.BytesIO, file: str, size: int, preprocess: Preprocess
) -> NDArray[np.uint8]:
    try:
        now = image.stat().st_size if isinstance(image, Path) else image.getbuffer().nbytes
        if now != size:
            raise Undecodable(file, f"{size} bytes then, {now} now")
        return preprocess.pixels(open_rgb(image, file))
    except (Undecodable, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise BadInput(
            f"image {file!r} has changed since the task was opened ({reason}): "
            "restore it, or begin a new run"
        ) from None


def _in_parallel(
    work: Callable[[Sequence[T]], R], items: Sequence[T], progress: Progress | None
) -> Iterator[R]:
    """The results of ``work`` on chunks of ``items``, in order, computed in threads (Pillow releases the GIL).

    At most a few chunks are computed ahead of the consumer, so that a slow disk does not fill the memory.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pending: deque[tuple[int, Future[R]]] = deque()
    ahead = 4 * (workers or 1)

    def oldest() -> R:
        done, future = pending.popleft()
        result = future.result()
        if progress:
            progress(done, len(items))
        return result

    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(items), _CHUNK):
                chunk = items[start : start + _CHUNK]
                pending.append((start + len(chunk), pool.submit(work, chunk)))
                if len(pending) == ahead:
                    yield oldest()
            while pending:
                yield oldest()
        finally:
            for _, future in pending:
                future.cancel()


# Cache files


def _cached(kind: str, name: str) -> Path | None:
    folder = cache_folder()
    return folder / kind / name if folder else None


def _has_room(path: Path, needed: int) -> bool:
    try:
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        return shutil.disk_usage(existing).free > needed + _SPARE_BYTES
    except (OSError, StopIteration):
        return False


def _read_note(path: Path | None, images: Iterable[Found]) -> dict[str, str] | None:
    if path is None:
        return None
    try:
        bad = json.loads(path.read_bytes())["undecodable"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(bad, dict) or not bad.keys() <= {one.file for one in images}:
        return None
    return bad if all(isinstance(why, str) for why in bad.values()) else None


def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def _write_array(path: Path, shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]) -> None:
    # Written rather than mapped: on a full disk a write fails, while a mapped page kills the process.
    checksum = 0
    with atomic_file(path) as partial, partial.open("wb") as stream:
        stream.write(_header(shape))
        for chunk in chunks:
            data = np.ascontiguousarray(chunk).data
            checksum = zlib.crc32(data, checksum)
            stream.write(data)
        stream.write(checksum.to_bytes(4, "little"))


def _read_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The array, or None if the file is missing or damaged."""
    header, nbytes = _header(shape), math.prod(shape)
    try:
        with path.open("rb") as stream:
            if stream.read(len(header)) != header:
                return None
            if os.fstat(stream.fileno()).st_size != len(header) + nbytes + 4:
                return None
            mapped = np.memmap(stream, np.uint8, "r", offset=len(header), shape=shape)
            stream.seek(len(header) + nbytes)
            checksum = int.from_bytes(stream.read(4), "little")
    except (OSError, ValueError):
        return None
    flat, actual = np.asarray(mapped).reshape(-1), 0
    for start in range(0, nbytes, _SPAN):
        actual = zlib.crc32(flat[start : start + _SPAN].data, actual)
    if actual != checksum:
        return None
    return np.array(mapped) if nbytes < IN_MEMORY_BYTES else np.asarray(mapped)
