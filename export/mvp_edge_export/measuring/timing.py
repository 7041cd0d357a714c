"""Many model files timed one after the other: what a calibration asks of a device.

One process a runtime and number of threads takes them all, so that import and start are paid once; a
network is a matter of two seconds.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import Machine, this_machine
from mvp_edge_export.measuring.result import Cell, Status
from mvp_edge_export.measuring.rounds import CellLength, one_after_another
from mvp_edge_export.running.sessions import import_runtime, installed_runtimes
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import parse

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Job(BaseModel):
    """One model in one runtime with one number of threads."""

    model_config = _FROZEN

    name: str
    model: Path
    """In a format that the runtime reads; a relative path is seen from the list's folder."""
    shape: tuple[int, ...] = Field(min_length=4, max_length=4)
    """Of the input, [N, 3, S, S]."""
    runtime: str
    threads: int = Field(ge=1)


class JobTiming(BaseModel):
    """What a job took."""

    model_config = _FROZEN

    name: str
    runtime: str
    version: str
    arithmetic: str
    threads: int
    p50: float = Field(gt=0)
    """Milliseconds."""
    p50_interval: tuple[float, float]
    p90: float = Field(gt=0)
    runs: int
    status: Status


Told = Callable[[int, int], None]
"""Told how many of how many are done."""


class Place(Protocol):
    """A device on which models are timed."""

    @property
    def name(self) -> str:
        """In a sentence."""

    @property
    def machine(self) -> Machine:
        """What it is."""

    def prepare(
        self, offered: Sequence[str], asked: Sequence[str], denied: Sequence[str]
    ) -> list[str]:
        """Have runtimes ready.

        Args:
            offered: that could be used.
            asked: that must be; empty: as many of those offered as can.
            denied: releases that must not be, e.g. ``onnxruntime==1.21.0``.

        Returns:
            Those that are ready.

        Raises:
            BadInput: none can be, or not all that must.
        """

    def time(self, jobs: Sequence[Job], told: Told) -> list[JobTiming]:
        """Time each job; ``told`` follows.

        Raises:
            BadInput: a model does not run, or the device is not fit to be measured.
        """


class ThisMachine:
    """The machine that this program runs on."""

    name = "this machine"

    @property
    def machine(self) -> Machine:
        """What it is."""
        return this_machine()

    def prepare(
        self, offered: Sequence[str], asked: Sequence[str], denied: Sequence[str]
    ) -> list[str]:
        """Those that are installed; see ``Place``."""
        chosen = list(asked) or [name for name in installed_runtimes() if name in offered]
        if not chosen:
            raise BadInput(f"none of the runtimes {', '.join(offered) or '(none)'} is installed")
        for name in chosen:
            pin = f"{name}=={import_runtime(name).__version__.split('-')[0]}"
            if pin in denied:
                raise BadInput(f"{pin} stands in runtime.denylist: install another release")
        return chosen

    def time(self, jobs: Sequence[Job], told: Told) -> list[JobTiming]:
        """See ``Place``."""
        return time_models(jobs, progress=told)


HERE = ThisMachine()


class _Jobs(BaseModel):
    model_config = _FROZEN

    jobs: tuple[Job, ...] = Field(min_length=1)


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a list file; their models are found from its folder."""
    listed = parse(_Jobs, read_json(path, "jobs"), "jobs", path)
    return [job.model_copy(update={"model": path.parent / job.model}) for job in listed.jobs]


def time_models(
    jobs: Sequence[Job],
    *,
    seconds: float = 1.0,
    progress: Told = lambda done, total: None,
) -> list[JobTiming]:
    """Time each job on this machine.

    Args:
        jobs: what to time.
        seconds: timed seconds a job, beside starting and warming up.
        progress: told how many of how many are done.

    Raises:
        BadInput: no Linux, a runtime that is not installed, or a model that does not run.
    """
    with ExitStack() as stack:
        clocks: dict[tuple[str, int], Callable[[Path, Sequence[int]], Cell]] = {}
        found = []
        for done, job in enumerate(jobs):
            progress(done, len(jobs))
            place = job.runtime, job.threads
            if place not in clocks:
                clocks[place] = stack.enter_context(one_after_another(*place, CellLength(seconds)))
            found.append(_timing(job, clocks[place](job.model, job.shape)))
    progress(len(jobs), len(jobs))
    return found


def _timing(job: Job, cell: Cell) -> JobTiming:
    if cell.status == "INVALID":
        raise BadInput(
            "the board was throttled or short of voltage while it was timed: cool it, give it a"
            " stronger supply, and start again"
        )
    latency = cell.latency
    return JobTiming(
        name=job.name,
        runtime=job.runtime,
        version=cell.version,
        arithmetic=cell.arithmetic,
        threads=job.threads,
        p50=latency.p50,
        p50_interval=latency.p50_interval,
        p90=latency.p90,
        runs=latency.n,
        status=cell.status,
    )
