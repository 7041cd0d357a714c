"""Files that are either whole or absent.

Everything mvp-edge leaves on disk goes through here: a file or a directory is written beside its
final place under a name that starts with a dot, flushed, and renamed, so that an interruption at
any moment leaves either the old state or the new one. Content is identified by its sha256.
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
    """Where what only saves time is kept; None on a system that names no home for them."""
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
    """The file's sha256 as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on a clean exit it becomes ``path``, on any error it vanishes.

    Raises BadInput when the folder cannot be written or the disk is full.
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
    """Yield a temporary directory that becomes ``path`` on a clean exit.

    An existing ``path`` is refused, or with ``force`` replaced at the very end.
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
    """Remove what killed processes left on the way to ``path`` more than a day ago."""
    for left in path.parent.iterdir():
        if left.name.startswith(_partial(path)) and time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ``what`` names it in the error ("run", "zoo entry", ...)."""
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
    return BadInput(f"cannot write {path}: {reason}; nothing was left there")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
