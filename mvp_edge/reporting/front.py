"""A front in the report: its members as a table, and accuracy against time and against size.

The page describes the picked member; the others are run directories in the run's folder front/.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvp_edge.reporting import charts, printed
from mvp_edge.reporting.charts import Axis, Series
from mvp_edge.reporting.measures import RUNTIMES
from mvp_edge.runs.choice import Front, Member, MemberLatency, undominated


@dataclass(frozen=True)
class FrontRow:
    """One member, ready to be printed."""

    member: Member
    picked: bool
    beaten: bool
    """Whether another member is at least as accurate and as fast, and better in one of the two."""
    flops: str
    file: str
    latency: tuple[str, ...]
    """Latency in each of the front's runtimes."""


@dataclass(frozen=True)
class FrontPart:
    """What the report says of a front."""

    front: Front
    rows: tuple[FrontRow, ...]
    runtimes: tuple[str, ...]
    doubts: str
    """The status of the latencies that are marked with an asterisk."""
    latency: Markup | None
    """None if nothing was timed."""
    size: Markup


def front_part(front: Front) -> FrontPart:
    """The table and the drawings of a front."""
    best = undominated(front.members)
    runtimes = tuple(dict.fromkeys(t.runtime for m in front.members for t in m.timings))
    rows = tuple(
        FrontRow(
            member=one,
            picked=one.number == front.picked,
            beaten=one not in best,
            flops=printed.count(one.flops),
            file=printed.size(one.file),
            latency=tuple(_time(_timing(one, runtime)) for runtime in runtimes),
        )
        for one in front.members
    )
    timed = [member for member in front.members if member.fastest is not None]
    return FrontPart(
        front=front,
        rows=rows,
        runtimes=tuple(RUNTIMES.get(name, name) for name in runtimes),
        doubts=", ".join(sorted(_bad(front))),
        latency=_drawn(front, "ms for one image", lambda m: m.price, lambda v: f"{v:g}")
        if len(timed) == len(front.members)
        else None,
        size=_drawn(front, "multiply-adds", lambda m: float(m.flops), printed.count),
    )


def _bad(front: Front) -> set[str]:
    return {timing.status for member in front.members for timing in member.timings} - {"OK"}


def _timing(member: Member, runtime: str) -> MemberLatency | None:
    return next((timing for timing in member.timings if timing.runtime == runtime), None)


def _time(timing: MemberLatency | None) -> str:
    if timing is None:
        return "–"
    return printed.duration(timing.p50) + ("" if timing.status == "OK" else "*")


def _drawn(
    front: Front, label: str, cost: Callable[[Member], float], show: Callable[[float], str]
) -> Markup:
    """Validation accuracy against a cost: the picked member is filled, the required accuracy is a dashed line."""
    members, n = front.members, front.images.validation
    x = charts.span_axis(f"{label}, logarithmic", [cost(member) for member in members], show)
    spans = {member.number: printed.wilson(member.validation, n) for member in members}
    low = min([front.limit.least, *(low for low, _ in spans.values())])
    y = Axis(
        "accuracy on validation images, %",
        max(0.0, math.floor(20 * low - 0.2) / 20),
        1,
        show=lambda share: f"{100 * share:.0f}",
    )
    others = [member for member in members if member.number != front.picked]

    def dots(style: str, chosen: Sequence[Member], told: str) -> Series:
        return Series(
            style,
            [(cost(member), member.validation) for member in chosen],
            spans=[spans[member.number] for member in chosen],
            labels=[f"{member.number}{told}" for member in chosen],
        )

    edge = sorted((cost(member), member.validation) for member in undominated(members))
    series = [Series("unpruned", edge, line=True)]
    if front.pick != "best":
        least = max(y.low, front.limit.least)
        series.append(Series("floor", [(x.low, least), (x.high, least)], line=True))
    series += [dots("unpruned", others, ""), dots("pruned", [front.choice], ", picked")]
    return charts.plot(f"Accuracy on validation images against {label}", x, y, series, height=240)
