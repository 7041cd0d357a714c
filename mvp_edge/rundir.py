"""The run directory: a folder of whole files that commands hand each other.

`run.json` is there from the first moment with the arguments; it says `finished` when everything else is
in place. The same arguments find the same unfinished directory again.
"""

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mvp_edge import __version__
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import read_json, write_json

RUNS = Path("runs")
_FACTS = "run.json"
_NAMED = ("torch", "timm", "fvcore", "numpy", "pillow", "nltk", "safetensors")


@dataclass(frozen=True)
class RunDirectory:
    """A run in progress or done."""

    path: Path

    @classmethod
    def claim(
        cls, arguments: Mapping[str, Any], out: Path | None, *, force: bool
    ) -> "RunDirectory":
        """The directory for these arguments: ``out``, the unfinished one of the same, or the next number.

        Raises BadInput for a finished run, a run of other arguments, or a folder that is none.
        """
        if out is None:
            numbered = sorted(p for p in RUNS.glob("[0-9][0-9][0-9]") if p.is_dir())
            if numbered and not force and _goes_on(numbered[-1], arguments):
                return cls(numbered[-1])
            out = RUNS / f"{int(numbered[-1].name) + 1 if numbered else 1:03d}"
        elif _occupied(out):
            if not force and _goes_on(out, arguments):
                return cls(out)
            if not (out / _FACTS).exists():
                raise BadInput(
                    f"--out {out} exists and is not a run directory: choose another place"
                )
            if not force:
                state = "is finished" if _facts(out).get("finished") else "has other arguments"
                raise BadInput(
                    f"--out {out}: that run {state}; choose another place, or --force replaces it"
                )
            shutil.rmtree(out)
        write_json(
            out / _FACTS,
            {
                "schema": 1,
                "version": __version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": ["mvp-edge", *sys.argv[1:]],
                "arguments": dict(arguments),
                "versions": versions(),
                "machine": machine(),
                "phases": [],
                "finished": False,
            },
        )
        return cls(out)

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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside; run.json lists it with its seconds."""
        start = time.perf_counter()
        yield
        spent = {"name": name, "seconds": round(time.perf_counter() - start, 3)}
        self.update(phases=[*self.read(_FACTS)["phases"], spent])


def versions() -> dict[str, str]:
    """The releases of what computes."""
    found = {"python": platform.python_version(), "mvp-edge": __version__}
    for name in _NAMED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What it runs on, without the machine's name."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.release()}",
    }


def _occupied(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(path / _FACTS, "run")
    return facts


def _goes_on(path: Path, arguments: Mapping[str, Any]) -> bool:
    if not (path / _FACTS).exists():
        return False
    facts = _facts(path)
    return facts.get("arguments") == dict(arguments) and not facts.get("finished")
