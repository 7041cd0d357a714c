"""`mvp-edge prune`, from a request to a finished run: of one network, or of a front of several."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvp_edge.machine import within_limits
from mvp_edge.pruning.problem import Progress
from mvp_edge.runs.front import execute_front, plan_front
from mvp_edge.runs.request import Request
from mvp_edge.runs.run import Run, execute
from mvp_edge.runs.rundir import Claim, RunDirectory
from mvp_edge.runs.settle import settle
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Zoo
from mvp_edge_export.profile import DeviceProfile


def prune(
    device: str | Path | DeviceProfile,
    task: str | Path | Task,
    zoo: str | Path | Zoo | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Run:
    """Prune for a device and a task.

    Args:
        device: a profile, a shipped one's name, or a YAML file.
        task: a task, or the folder, zip or list file of one.
        zoo: whose entries vote, and whose backbone is used; without one give ``backbone``.
        out: the run directory; the next of ``runs/001``, ``runs/002``, … if None.
        force: replace another run at ``out``.
        progress: called with (phase, done, total).
        say: told what will be done.
        options: the other arguments of `mvp_edge.runs.request.Request`, e.g. ``backbone``, ``keep``, ``steps``.

    Returns:
        The finished run; with ``front`` the picked network's, whose others lie in its folder front/.

    Raises:
        BadInput: what cannot be understood, or does not fit.
        BudgetMissed: the budgets are infeasible (nothing is written), or were missed after training
            (the run is kept, with the verdict FAIL).
    """
    asked = Request(_given(device), _given(task), _given(zoo), **options)
    run = prune_for(asked, None if out is None else Path(out), force, progress, say)
    run.check()
    return run


def prune_for(
    request: Request,
    out: Path | None,
    force: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> Run:
    """The run of a request, whether its budgets were met or not."""
    began = time.perf_counter()
    settled = settle(request, progress, say)
    front = plan_front(settled) if request.front or settled.climbs else None
    settling = time.perf_counter() - began
    say(settled.describe())
    if front is not None:
        say(front.describe())
    identity = settled.identity if front is None else front.identity
    claim = Claim(request.arguments(), identity, request.command)
    with RunDirectory.claim(claim, out, force=force) as run, within_limits(run.path):
        run.spent("settling", settling)
        return (
            execute(settled, run, progress)
            if front is None
            else execute_front(front, run, progress)
        )


def _given(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
