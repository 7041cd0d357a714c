"""The run directory: a folder of files that one command writes and the next one reads.

    run.json     written first, with the arguments; says `finished` when all other files are there
    <file>.json  one or more for each phase, written when the phase is done (`mvp_edge.runs.files`)

A command with the same arguments finds its unfinished directory again and resumes it. While a process works
on a run it holds a lock on the folder, so that no two processes work on the same run.
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
from typing import Any, TypeVar

from mvp_edge import __version__
from mvp_edge.machine import this_computer, versions
from mvp_edge.runs.run_file import BegunRun, Outcome, Phase, RunFile, RunJson
from mvp_edge_export.errors import BadInput, BudgetMissed

RUNS = Path("runs")
_FACTS = BegunRun.file_name
_File = TypeVar("_File", bound=RunJson)
_WORK = ("neighbours.json", ".checkpoint.safetensors", "pruned.json", "front")
"""What takes long to make: a run directory without any of these is removed after an error."""


@dataclass(frozen=True)
class Claim:
    """What a command asks for: an unfinished run is resumed only if it was begun with the same claim."""

    arguments: Mapping[str, Any]
    identity: Mapping[str, str]
    """Hashes of what the arguments refer to: the profile, the images, …"""
    command: Callable[[Path], list[str]]
    """Run directory → the command line of this run."""


@dataclass(frozen=True)
class RunDirectory:
    """A run in progress or done."""

    path: Path

    @classmethod
    @contextmanager
    def claim(cls, claim: Claim, out: Path | None, *, force: bool) -> "Iterator[RunDirectory]":
        """Lock the run directory of this claim: ``out``, the unfinished one of the same claim, or the next number.

        ``force`` replaces another run at ``out``. If an error shows before anything was computed, a new
        directory is removed, and a replaced one is restored.

        Raises:
            BadInput: ``out`` is a finished run, a run with other arguments, a run that another process
                works on, or not a run directory.
        """
        if force and out is None:
            raise BadInput("replaces the run at --out: give --out as well", field="force")
        path, aside, made = _place(claim, out, force=force)
        lock = _locked(path)
        if lock is None:
            raise BadInput(f"run {path}: another process is working on it")
        run = cls(path)
        try:
            if not (path / _FACTS).exists():
                run.write(_beginning(claim, path))
            yield run
        except (BadInput, BudgetMissed):
            if not any((path / name).exists() for name in _WORK):
                _empty(path)
                for folder in made:
                    with suppress(OSError):  # another process may use it by now
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
        """Open a finished run; BadInput if there is none."""
        if not (path / _FACTS).exists():
            raise BadInput(
                f"{path} is not a run directory ({_FACTS} is missing): mvp-edge prune makes one"
            )
        if not BegunRun.load(path).finished:
            raise BadInput(f"run {path} is not finished: repeat its command to resume it")
        return cls(path)

    @staticmethod
    def finished(path: Path) -> bool:
        """Whether ``path`` is a finished run."""
        return (path / _FACTS).exists() and BegunRun.load(path).finished

    def has(self, file: type[RunJson]) -> bool:
        """Whether the run has this file."""
        return (self.path / file.file_name).exists()

    def read(self, file: type[_File]) -> _File:
        """Read one of its files; BadInput says which key is wrong."""
        return file.load(self.path)

    def write(self, content: RunJson) -> None:
        """Write one of its files, whole."""
        content.save(self.path)

    def finish(self, outcome: Outcome) -> None:
        """Write in run.json that the run is finished, and remove what killed processes left half-written."""
        self.write(RunFile.of(self.read(BegunRun), outcome))
        for leftover in self.path.glob(".*"):
            if leftover.is_file():
                leftover.unlink()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time that is spent inside the ``with`` block to the phase in run.json."""
        start = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - start)

    def spent(self, name: str, seconds: float) -> None:
        """Add ``seconds`` to the phase in run.json, which lists each phase once."""
        begun = self.read(BegunRun)
        phases = {phase.name: phase.seconds for phase in begun.phases}
        phases[name] = round(phases.get(name, 0.0) + seconds, 3)
        listed = tuple(Phase(name=name, seconds=seconds) for name, seconds in phases.items())
        self.write(begun.model_copy(update={"phases": listed}))


def _place(claim: Claim, out: Path | None, *, force: bool) -> tuple[Path, Path | None, list[Path]]:
    """The folder to work in, where a replaced run was put, and the folders that were made, innermost first."""
    try:
        if out is None:
            return _next(claim)
        aside = None
        if _occupied(out):
            if not (out / _FACTS).is_file():
                raise BadInput(
                    f"{out} exists and is not a run directory: choose another place", field="out"
                )
            differs = _differs(out, claim)
            if differs is None:
                return out, None, []
            if not force:
                raise BadInput(
                    f"{out}: that run {differs}; choose another place, or --force replaces it",
                    field="out",
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
        with suppress(BadInput):  # a damaged run cannot be resumed
            if _differs(path, claim) is None and _free(path):
                return path, None, []
    number = max(numbered, default=0)
    while True:
        number += 1
        path = RUNS / f"{number:03d}"
        with suppress(FileExistsError):  # another process took that number just now
            path.mkdir()
            return path, None, [path, *made]


def _beginning(claim: Claim, path: Path) -> BegunRun:
    return BegunRun(
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(claim.command(path)),
        arguments=dict(claim.arguments),
        identity=dict(claim.identity),
        versions=versions(),
        machine=this_computer(),
    )


def _differs(path: Path, claim: Claim) -> str | None:
    """Why the run at ``path`` cannot be resumed, as in "that run …"; None if it can be."""
    begun = BegunRun.load(path)
    if begun.finished:
        return "is finished"
    theirs = begun.arguments
    names = sorted({*claim.arguments, *theirs})  # a run of an earlier version has fewer
    other = [name for name in names if theirs.get(name) != claim.arguments.get(name)]
    if other:
        return f"has other arguments ({', '.join(other)})"
    changed = [name for name, value in claim.identity.items() if begun.identity.get(name) != value]
    return f"began before this changed: {', '.join(changed)}" if changed else None


def _locked(folder: Path) -> int | None:
    """A file descriptor that holds the folder's lock; None while another process holds it."""
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
