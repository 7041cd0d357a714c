"""Widths that meet a latency budget: predicted, measured, corrected, before anything is trained.

    plan by the law ─ network of these widths, random weights ─ timed on this machine
      → the law scaled by measured / predicted → plan again        at most three rounds

The time of an inference depends on the widths and not on the weights. It is measured only where this
machine is the profile's device; elsewhere the prediction stands, and the verdict stays open.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mvp_edge.pruning.problem import Progress
from mvp_edge.runs.files import SizingFile, SizingRound
from mvp_edge.runs.rundir import RunDirectory
from mvp_edge.runs.settle import Settled
from mvp_edge.subnetwork.budget import Plan
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.devices.latency import LatencyLaw, latency_laws
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.measuring.bench import time_model
from mvp_edge_export.measuring.machine import differences, this_machine
from mvp_edge_export.measuring.result import Cell, Protocol
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import installed_runtimes

ROUNDS = 3
SECONDS = 2.0
"""Timed for each runtime and number of threads in a round."""
PROTOCOL = Protocol(
    full=False, seconds=SECONDS, processes=1, statement=f"{SECONDS:g} s in one process"
)
ENOUGH = 0.9
"""A network that uses this share of the budget is not made larger."""
MARGIN = 0.99
"""After a measurement the plan aims a little below the limit: two measurements differ by as much."""


def sized(settled: Settled, run: RunDirectory, progress: Progress) -> Settled:
    """The same with the widths that were measured to meet the latency budget, if there is one.

    Raises:
        BudgetMissed: no network that was measured meets it.
    """
    laws = latency_laws(settled.profile)
    if not _limits(settled.profile) or not laws or not _is_here(settled.profile):
        return settled
    if not run.has(SizingFile):
        with run.phase("sizing"):
            run.write(_rounds(settled, laws, progress))
    factors = run.read(SizingFile).choice.factors
    sizer = settled.sizer.with_laws(_scaled(laws, factors))
    return replace(settled, plan=sizer.solve(settled.ceiling))


def _rounds(settled: Settled, laws: Sequence[LatencyLaw], progress: Progress) -> SizingFile:
    """sizing.json: every round's widths, what was predicted and measured, and which is taken."""
    limits = _limits(settled.profile)
    plan, factors = settled.plan, {_place(law): 1.0 for law in laws}
    rounds: list[SizingRound] = []
    while len(rounds) < ROUNDS:
        progress("sizing", len(rounds), ROUNDS)
        network, cells = _timed(settled, plan, laws)
        best = min(cells, key=lambda cell: cell.latency.p50)
        used = max(getattr(best.latency, f"{name}_interval")[1] / limit for name, limit in limits)
        rounds.append(
            SizingRound(
                widths=dict(plan.widths),
                keep=plan.keep,
                factors=dict(factors),
                predicted={k: v for k, v in plan.reached.items() if k.startswith("latency.")},
                measured=tuple(cells),
                best=cells.index(best),
                used=used,
            )
        )
        bound = plan.binding is not None and plan.binding.startswith("latency.")
        if used <= 1 and (used >= ENOUGH or not bound):
            break
        factors = factors | _corrections(network, laws, cells)
        plan = settled.sizer.with_laws(_scaled(laws, factors)).solve(settled.ceiling)
        if any(plan.widths == one.widths for one in rounds):
            break
    progress("sizing", ROUNDS, ROUNDS)
    fitting = [i for i, one in enumerate(rounds) if one.used <= 1]
    if not fitting:
        least = min(rounds, key=lambda one: one.used)
        raise BudgetMissed(
            f"profile {settled.profile.id}: latency measured in {len(rounds)} rounds, and the best network "
            f"still takes {least.used:.2f} × the budget; raise it, or allow smaller networks "
            f"(prune.min_channels is {settled.profile.prune.min_channels})"
        )
    return SizingFile(rounds=tuple(rounds), chosen=max(fitting, key=lambda i: rounds[i].used))


def chosen_cell(run: RunDirectory) -> Cell | None:
    """What was measured of the widths that were taken; None where nothing was."""
    if not run.has(SizingFile):
        return None
    chosen = run.read(SizingFile).choice
    return chosen.measured[chosen.best]


def _timed(
    settled: Settled, plan: Plan, laws: Sequence[LatencyLaw]
) -> tuple[Operators, list[Cell]]:
    """A network of these widths in each runtime, with each number of threads, that a law speaks of."""
    from mvp_edge_export.server.convert import frozen, onnx_graph, save_openvino

    backbone = settled.backbone
    small = resize(backbone.with_head(len(settled.task.classes)), plan.widths, settled.policy)
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        onnx, xml = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        graph, _ = onnx_graph(frozen(small, None), torch.zeros(1, *backbone.shape), False)
        onnx.write_bytes(graph.SerializeToString())
        for runtime, threads in _places(settled.profile, laws):
            if runtime == "openvino" and not xml.exists():
                save_openvino(onnx, xml)
            model = xml if runtime == "openvino" else onnx
            shape = (1, *backbone.shape)
            cells.append(time_model(model, shape, runtime, threads, seconds=SECONDS))
    return operators(small, backbone.shape), cells


def _places(profile: DeviceProfile, laws: Sequence[LatencyLaw]) -> list[tuple[str, int]]:
    known = [(law.runtime, law.threads) for law in laws if law.runtime is not None]
    estimated = [(runtime, profile.runtime.threads) for runtime in profile.runtime.backends]
    return [place for place in known or estimated if place[0] in installed_runtimes()]


def _corrections(
    network: Operators, laws: Sequence[LatencyLaw], cells: Sequence[Cell]
) -> dict[str, float]:
    """By what each law has to be multiplied to say a little more than was measured of ``network``."""
    found = {}
    for law in laws:
        own = [cell for cell in cells if law.runtime in (None, cell.runtime)]
        own = [cell for cell in own if cell.threads == law.threads] or own
        if own:
            measured, predicted = min(cell.latency.p50 for cell in own), law.predict(network).p50
            if predicted <= 0:
                raise BadInput(
                    "the profile's calibration says that a network takes no time: mvp-edge device calibrate"
                )
            found[_place(law)] = measured / predicted / MARGIN
    return found


def _scaled(laws: Sequence[LatencyLaw], factors: Mapping[str, float]) -> list[LatencyLaw]:
    return [law.scaled(factors[_place(law)]) for law in laws]


def _place(law: LatencyLaw) -> str:
    return f"{law.runtime or 'estimate'}/{law.threads}"


def _limits(profile: DeviceProfile) -> list[tuple[str, float]]:
    latency = profile.budgets.latency
    both = [(name, getattr(latency, name, None)) for name in ("p50", "p90")]
    return [(name, limit) for name, limit in both if limit is not None]


def _is_here(profile: DeviceProfile) -> bool:
    try:
        return not differences(this_machine(), profile)
    except BadInput:  # no Linux: nothing can be measured here
        return False
