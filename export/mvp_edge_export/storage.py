"""Writes files and directories atomically, and hashes them.

A file or directory is written next to its final place under a name that starts with a dot, flushed
and renamed, so that an interruption at any moment leaves either the old state or the new one. All of
mvp-edge's output is written this way. Content is identified by its sha256.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvp_edge_export.errors import BadInput


def cache_folder() -> Path | None:
    """The user's cache folder for mvp-edge; None if the system defines no home folder.

    The variables ``MVP_EDGE_CACHE`` and ``XDG_CACHE_HOME`` take precedence over the system's default.
    """
    if own := os.environ.get("MVP_EDGE_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "mvp-edge"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "mvp-edge" / "cache"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mvp-edge"


def sha256_file(path: Path) -> str:
    """Compute the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Compute the sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` at the end, or removed after an error.

    Raises:
        BadInput: the folder cannot be written or the disk is full.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
        partial = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to ``path`` at the end, or removed after an error.

    Args:
        path: the final path.
        force: whether to replace an existing directory, which happens at the very end.

    Raises:
        BadInput: ``path`` exists and ``force`` is not set, the folder cannot be written, or the
            disk is full.
    """
    if path.exists() and not force:
        raise BadInput(f"{path} exists: choose another place, or pass --force to replace it")
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        partial = Path(tempfile.mkdtemp(prefix=_partial(path), dir=path.parent))
        yield partial
        partial.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            partial.replace(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
        partial = None
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> str:
    return f".{path.name}.partial-"


def _sweep(path: Path) -> None:
    """Remove temporary directories for ``path`` that a killed process left more than a day ago."""
    for left in path.parent.iterdir():
        if left.name.startswith(_partial(path)) and time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; raises BadInput as ``atomic_file``."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: name of the kind of file for the error message, e.g. "run" or "zoo entry".

    Raises:
        BadInput: the file does not exist, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{what}: {path} does not exist") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{what}: {path}:{error.lineno} is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise BadInput(f"{what}: {path} is nested too deeply") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what}: {path} cannot be read ({error})") from error


def _cannot_write(path: Path, error: OSError) -> BadInput:
    reason = error.strerror or str(error)
    return BadInput(f"cannot write {path}: {reason}; no partial file was left")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
