"""The run directory: a folder of whole files that commands hand each other.

    run.json     there from the first moment, with the arguments; says `finished` when all else is there
    <file>.json  one or more a phase, each whole when its phase is done

The same arguments find the same unfinished directory again. While a process works on a run it holds a
lock on the folder, so that two never work on one.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mvp_edge import __version__
from mvp_edge.machine import this_computer, versions
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.storage import read_json, write_json

RUNS = Path("runs")
_FACTS = "run.json"
_WORK = ("neighbours.json", ".checkpoint.safetensors", "pruned.json", "front")
"""Files that took work: a run that has none of them is no loss."""


@dataclass(frozen=True)
class Claim:
    """Whose run it is: what an unfinished one must agree in to be gone on with."""

    arguments: Mapping[str, Any]
    identity: Mapping[str, str]
    """What the arguments meant when the run began: hashes of the profile, the images, …"""
    command: Callable[[Path], list[str]]
    """The command line for a run at that place."""


@dataclass(frozen=True)
class RunDirectory:
    """A run in progress or done."""

    path: Path

    @classmethod
    @contextmanager
    def claim(cls, claim: Claim, out: Path | None, *, force: bool) -> "Iterator[RunDirectory]":
        """Hold the directory for these arguments: ``out``, the unfinished one of the same, or the next number.

        With ``force`` another run at ``out`` is replaced. Bad input that comes to light before anything
        was computed takes a new directory away again, and puts a replaced one back.

        Raises:
            BadInput: a finished run, a run of other arguments, one that another process works on, or a
                folder that is none.
        """
        if force and out is None:
            raise BadInput("--force replaces the run at --out: say which")
        path, aside, made = _place(claim, out, force=force)
        lock = _locked(path)
        if lock is None:
            raise BadInput(f"run {path}: another process is working on it")
        run = cls(path)
        try:
            if not (path / _FACTS).exists():
                write_json(path / _FACTS, _beginning(claim, path))
            yield run
        except (BadInput, BudgetMissed):
            if not any(run.has(name) for name in _WORK):
                _empty(path)
                for folder in made:
                    with suppress(OSError):  # others may have come to use it
                        folder.rmdir()
                if aside is not None:
                    path.rmdir()
                    aside.replace(path)
            raise
        finally:
            os.close(lock)
            if aside is not None:
                shutil.rmtree(aside.parent)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """A finished run; BadInput otherwise."""
        if not (path / _FACTS).exists():
            raise BadInput(
                f"{path} is not a run directory ({_FACTS} is missing): mvp-edge prune makes one"
            )
        if not _facts(path).get("finished"):
            raise BadInput(f"run {path} is not finished: repeat its command to go on")
        return cls(path)

    @staticmethod
    def finished(path: Path) -> bool:
        """Whether a finished run lies there."""
        return (path / _FACTS).exists() and bool(_facts(path).get("finished"))

    def has(self, name: str) -> bool:
        """Whether a phase's file is there."""
        return (self.path / name).exists()

    def read(self, name: str) -> Any:
        """One of its JSON files."""
        return read_json(self.path / name, "run")

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of its JSON files, whole."""
        write_json(self.path / name, {"schema": 1, **value})

    def update(self, **facts: Any) -> None:
        """Add to run.json."""
        self.write(_FACTS, {**self.read(_FACTS), **facts})

    def finish(self, **facts: Any) -> None:
        """Add to run.json that all is there, and remove what killed processes left half-written."""
        self.update(**facts, finished=True)
        for leftover in self.path.glob(".*"):
            if leftover.is_file():
                leftover.unlink()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside; run.json lists each phase once, with the seconds of all its parts."""
        start = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - start)

    def spent(self, name: str, seconds: float) -> None:
        """Add to what a phase has taken."""
        phases = {phase["name"]: phase["seconds"] for phase in self.read(_FACTS)["phases"]}
        phases[name] = round(phases.get(name, 0.0) + seconds, 3)
        self.update(phases=[{"name": n, "seconds": s} for n, s in phases.items()])


def _place(claim: Claim, out: Path | None, *, force: bool) -> tuple[Path, Path | None, list[Path]]:
    """The folder to work in, where another run was put aside, and the folders made for it, inmost first."""
    try:
        if out is None:
            return _next(claim)
        aside = None
        if _occupied(out):
            if not (out / _FACTS).is_file():
                raise BadInput(
                    f"--out {out} exists and is not a run directory: choose another place"
                )
            differs = _differs(out, claim)
            if differs is None:
                return out, None, []
            if not force:
                raise BadInput(
                    f"--out {out}: that run {differs}; choose another place, or --force replaces it"
                )
            if not _free(out):
                raise BadInput(f"run {out}: another process is working on it")
            aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent)) / out.name
            out.replace(aside)
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        return out, aside, [] if aside else made
    except OSError as error:
        place = out or RUNS
        raise BadInput(f"cannot make the run directory {place}: {error.strerror}") from error


def _next(claim: Claim) -> tuple[Path, None, list[Path]]:
    """The latest unfinished run of the same claim, or the next number."""
    made = [] if RUNS.exists() else [RUNS]
    RUNS.mkdir(exist_ok=True)
    numbered = {int(p.name): p for p in RUNS.iterdir() if re.fullmatch(r"\d{3,}", p.name)}
    for _, path in sorted(numbered.items(), reverse=True):
        with suppress(BadInput):  # a broken run is nobody's to go on with
            if _differs(path, claim) is None and _free(path):
                return path, None, []
    number = max(numbered, default=0)
    while True:
        number += 1
        path = RUNS / f"{number:03d}"
        with suppress(FileExistsError):  # another process took that number just now
            path.mkdir()
            return path, None, [path, *made]


def _beginning(claim: Claim, path: Path) -> dict[str, Any]:
    return {
        "schema": 1,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": claim.command(path),
        "arguments": dict(claim.arguments),
        "identity": dict(claim.identity),
        "versions": versions(),
        "machine": this_computer(),
        "phases": [],
        "finished": False,
    }


def _differs(path: Path, claim: Claim) -> str | None:
    """Why the run there cannot be gone on with, as in "that run …"; None if it can."""
    facts = _facts(path)
    if facts.get("finished"):
        return "is finished"
    theirs: Any = facts.get("arguments") or {}
    if theirs != dict(claim.arguments):
        names = sorted({*claim.arguments, *theirs})
        other = [name for name in names if theirs.get(name) != claim.arguments.get(name)]
        return f"has other arguments ({', '.join(other)})"
    theirs = facts.get("identity", {})
    changed = [name for name, value in claim.identity.items() if theirs.get(name) != value]
    return f"began before this changed: {', '.join(changed)}" if changed else None


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None while another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return handle  # a file system without locks
        os.close(handle)
        return None
    return handle


def _free(folder: Path) -> bool:
    """Whether no process works on the run there."""
    lock = _locked(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        if inside.is_dir():
            shutil.rmtree(inside)
        else:
            inside.unlink()


def _occupied(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _facts(path: Path) -> dict[str, Any]:
    facts = read_json(path / _FACTS, "run")
    if not isinstance(facts, dict):
        raise BadInput(f"run: {path / _FACTS} is not what mvp-edge prune writes")
    return facts
