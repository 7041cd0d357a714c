"""Times many model files one after the other, for a calibration.

All models of one runtime and number of threads are timed in one process, so that the runtime is started
and imported only once; each model takes about two seconds.
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
    """A model to time in one runtime with one number of threads."""

    model_config = _FROZEN

    name: str
    model: Path
    """Model file in a format that the runtime reads; relative to the folder of the job list."""
    shape: tuple[int, ...] = Field(min_length=4, max_length=4)
    """Shape of the input, [N, 3, S, S]."""
    runtime: str
    threads: int = Field(ge=1)


class JobTiming(BaseModel):
    """Latency of the model of a job."""

    model_config = _FROZEN

    name: str
    runtime: str
    version: str
    arithmetic: str
    threads: int
    p50: float = Field(gt=0)
    """Median latency in ms."""
    p50_interval: tuple[float, float]
    """95 % confidence interval of ``p50`` in ms."""
    p90: float = Field(gt=0)
    """90th percentile of the latency in ms."""
    runs: int
    """Number of timed runs."""
    status: Status


Told = Callable[[int, int], None]
"""Called with the number of finished jobs and the number of all jobs."""


class Place(Protocol):
    """A device on which models are timed: this machine or a host."""

    @property
    def name(self) -> str:
        """Name of the device for messages."""

    @property
    def machine(self) -> Machine:
        """The machine's properties."""

    def prepare(
        self, offered: Sequence[str], asked: Sequence[str], denied: Sequence[str]
    ) -> list[str]:
        """Make runtimes ready for timing.

        Args:
            offered: runtimes that may be used.
            asked: runtimes that must be used; if empty, all offered ones that work are used.
            denied: releases that must not be used, e.g. ``onnxruntime==1.21.0``.

        Returns:
            The runtimes that are ready.

        Raises:
            BadInput: no runtime can be used, or one of ``asked`` cannot.
        """

    def time(self, jobs: Sequence[Job], told: Told) -> list[JobTiming]:
        """Time each job, and call ``told`` after each.

        Raises:
            BadInput: a model does not run, or the device is throttled or has under-voltage.
        """


class ThisMachine:
    """The machine that this program runs on."""

    name = "this machine"

    @property
    def machine(self) -> Machine:
        """The machine's properties."""
        return this_machine()

    def prepare(
        self, offered: Sequence[str], asked: Sequence[str], denied: Sequence[str]
    ) -> list[str]:
        """Select the installed runtimes; see ``Place``."""
        chosen = list(asked) or [name for name in installed_runtimes() if name in offered]
        if not chosen:
            raise BadInput(f"none of the runtimes {', '.join(offered) or '(none)'} is installed")
        for name in chosen:
            pin = f"{name}=={import_runtime(name).__version__.split('-')[0]}"
            if pin in denied:
                raise BadInput(f"{pin} is in runtime.denylist: install another release")
        return chosen

    def time(self, jobs: Sequence[Job], told: Told) -> list[JobTiming]:
        """Time each job in a process of its runtime; see ``Place``."""
        return time_models(jobs, progress=told)


HERE = ThisMachine()


class _Jobs(BaseModel):
    model_config = _FROZEN

    jobs: tuple[Job, ...] = Field(min_length=1)


def read_jobs(path: Path) -> list[Job]:
    """Read a job list; raises BadInput if it is not valid. Model paths are relative to its folder."""
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
        jobs: models to time.
        seconds: timed seconds per job, in addition to loading and warm-up.
        progress: called with the number of finished jobs and the number of all jobs.

    Raises:
        BadInput: the machine does not run Linux, a runtime is not installed, a model does not run, or
            the board was throttled or had under-voltage.
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
            "the board was throttled or had under-voltage during the measurement: cool it, use a"
            " stronger power supply, and start again"
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
