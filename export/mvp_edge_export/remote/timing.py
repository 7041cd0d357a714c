"""Models timed on another machine, a batch at a time: what a calibration over ssh asks of a device.

jobs ─ 24 a batch ─→ files sent ─ `mvp-edge device time` there ─→ timings;  files removed again
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import parts_of
from mvp_edge_export.measuring.machine import Machine
from mvp_edge_export.measuring.timing import Job, JobTiming, Told
from mvp_edge_export.remote.bench import usable
from mvp_edge_export.remote.host import Host, Progress, connect
from mvp_edge_export.running.doctor import avoided, look_at
from mvp_edge_export.storage import write_json
from mvp_edge_export.verified import parse

_BATCH = 24
"""Jobs: a device's card need not hold the files of more."""
_MOST_MEMORY = 2**28
"""Bytes that the largest of a calibration's networks takes, beside the runtime."""


class _Timings(BaseModel):
    timings: tuple[JobTiming, ...]


class ThatHost:
    """A connected host, as a place where models are timed; made by ``place_on``."""

    def __init__(self, host: Host, offline: bool) -> None:
        self.name = host.target
        self._host, self._offline = host, offline
        host.require()
        self._facts = look_at(host)

    @property
    def machine(self) -> Machine:
        """What it is."""
        return self._facts.machine

    def prepare(
        self, offered: Sequence[str], asked: Sequence[str], denied: Sequence[str]
    ) -> list[str]:
        """Install the runtimes that can run there; see ``measuring.timing.Place``."""
        if not (asked or offered):
            raise BadInput(f"{self.name}: its profile has no runtime")
        ready = usable(
            self._host, self._facts, asked or offered, _MOST_MEMORY, all_of_them=bool(asked)
        )
        avoid = avoided(self._facts, denied)
        self._host.install(ready, avoid=avoid, offline=self._offline)
        return ready

    def time(self, jobs: Sequence[Job], told: Told) -> list[JobTiming]:
        """Send the models, time them there, and remove them; see ``measuring.timing.Place``."""
        found: list[JobTiming] = []
        for first in range(0, len(jobs), _BATCH):

            def heard(done: int, first: int = first) -> None:
                told(first + done, len(jobs))

            found += self._timed(jobs[first : first + _BATCH], heard)
        told(len(jobs), len(jobs))
        return found

    def _timed(self, jobs: Sequence[Job], told: Callable[[int], None]) -> Sequence[JobTiming]:
        def hear(line: str) -> None:
            if match := re.search(r"timing: (\d+) of", line):
                told(int(match[1]))

        with TemporaryDirectory() as scratch:
            models = {job.model: f"models/{job.model.name}" for job in jobs}
            files = {
                part: model.with_name(Path(part).name)
                for model, name in models.items()
                for part in parts_of(name)
            }
            relative = [
                job.model_copy(update={"model": Path(models[job.model])}).model_dump(mode="json")
                for job in jobs
            ]
            files["jobs.json"] = Path(scratch) / "jobs.json"
            write_json(files["jobs.json"], {"jobs": relative})
            folder = self._host.send(files)
            try:
                printed = self._host.mvp_edge(
                    ["device", "time", f"{folder}/jobs.json", "--json"], hear=hear
                )
            finally:
                self._host.forget(folder)
        where = f"device time on {self.name}"
        return parse(_Timings, json.loads(printed), where, Path("stdout")).timings


@contextmanager
def place_on(
    target: str, *, offline: bool = False, progress: Progress = lambda what, share: None
) -> Iterator[ThatHost]:
    """A host as a place where models are timed, for the length of a ``with`` block.

    Args:
        target: what `ssh` takes, e.g. ``pi@raspberrypi``.
        offline: the host reaches no package index.
        progress: told what is done.

    Raises:
        BadInput: no connection, or nothing of ours can run there.
    """
    with connect(target, progress) as host:
        yield ThatHost(host, offline)
