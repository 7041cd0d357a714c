"""The rows of one study: a JSON-lines file, one row a line, sorted by target and variant (mvp@20 before mvp@100).

    {"target": "t-000", "classes": […], "images": {…}, "last_written_by": {…}}     the facts of a target
    {"target": "t-000", "name": "mvp@100", "accuracy": 0.9, …}                     a row: a variant on that target

Several processes may add rows to one file: each addition happens under a lock, and replaces the file whole.
"""

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvp_edge_export.storage import write_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A study's file of rows, which may not exist yet."""

    path: Path

    def rows(self) -> dict[str, dict[str, Row]]:
        """All rows: target → variant → row. A target without rows has an empty entry."""
        found: dict[str, dict[str, Row]] = {}
        for line in self._lines():
            own = found.setdefault(line.pop("target"), {})
            if "name" in line:
                own[line.pop("name")] = line
        return found

    def of(self, target: str) -> dict[str, Row]:
        """The rows of one target: variant → row."""
        return {
            line.pop("name"): {key: value for key, value in line.items() if key != "target"}
            for line in self._lines(target)
            if "name" in line
        }

    def targets(self) -> dict[str, Row]:
        """The facts of each target: its classes, its number of images, and who wrote its last row."""
        return {line.pop("target"): line for line in self._lines() if "name" not in line}

    def keep(
        self, target: str, name: str, row: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        """Add or replace one row, and with it the facts of its target; a row that is equal changes nothing."""
        with self._locked():
            if self.of(target).get(name) == row:
                return
            lines = {(one["target"], one.get("name", "")): one for one in self._lines()}
            lines[target, ""] = {"target": target, **facts}
            lines[target, name] = {"target": target, "name": name, **row}
            text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines, key=_natural))
            write_text(self.path, text)

    def _lines(self, target: str | None = None) -> Iterator[Row]:
        """The parsed lines, of all targets or of one."""
        if not self.path.exists():
            return
        start = "{" if target is None else f'{{"target": {json.dumps(target)},'
        for line in self.path.read_text().splitlines():
            if line.startswith(start):
                yield json.loads(line)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock, which lies beside it."""
        work = self.path.parent / ".work"
        work.mkdir(parents=True, exist_ok=True)
        with (work / f"{self.path.stem}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _natural(key: tuple[str, str]) -> list[list[str | int]]:
    """A sort key of (target, variant) that orders numbers by their value."""
    return [
        [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", word)] for word in key
    ]
