"""front.json: the cost and accuracy of a front's members, and which member is picked.

A member is picked by its accuracy on validation images and, for the fastest, by its measured latency. The
accuracy on test images is reported only.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mvp_edge.runs.run_file import RunJson
from mvp_edge.schema import Part
from mvp_edge_export.profile import DeviceProfile

FILE = "front.json"
Pick = Literal["smallest", "fastest", "best"]

NEAR_BEST = 1.0
"""A member is accurate enough within this many percentage points of the best, if the profile sets no limit."""


SLACK = 1e-9
"""Tolerance for rounding in the difference of two accuracies."""


class MemberLatency(Part):
    """The latency of one member in one runtime, measured on the machine that made the front."""

    runtime: str
    version: str
    threads: int
    p50: float = Field(gt=0)
    """Median in milliseconds for one image."""
    p50_interval: tuple[float, float]
    """95 % interval of the median, in milliseconds."""
    p90: float
    """90th percentile in milliseconds."""
    status: str
    """OK, NOISY or INVALID, with the same meaning as in `mvp-edge bench`."""


class Member(Part):
    """One network of a front. Its run directory is front/<number>."""

    number: int
    keep: float
    flops: int
    params: int
    file: int
    """Predicted size of the exported model in bytes."""
    validation: float = Field(ge=0, le=1)
    """Top-1 on the validation images."""
    test: float = Field(ge=0, le=1)
    """Top-1 on the test images."""
    timings: tuple[MemberLatency, ...] = ()
    missed: tuple[str, ...] = ()
    """Budgets that it does not meet, except the accuracy budget."""

    @property
    def fastest(self) -> MemberLatency | None:
        """Its latency in the runtime where the median is lowest; None if it was not timed."""
        return min(self.timings, key=lambda timing: timing.p50, default=None)

    @property
    def price(self) -> float:
        """Its cost: the lowest median latency in milliseconds, or multiply-adds if nothing was timed."""
        return self.fastest.p50 if self.fastest else float(self.flops)


class Images(Part):
    """Numbers of images that the accuracies were measured on."""

    validation: int = Field(ge=1)
    test: int


class Limit(Part):
    """The validation accuracy that a picked member has to reach."""

    least: float
    rule: str
    """The same in words, to follow "the smallest that is …"."""


class Front(RunJson):
    """front.json: the members from small to large, and the picked one."""

    kind: ClassVar[str] = "front"
    file_name: ClassVar[str] = FILE

    asked: int | None
    """Members that were asked for; there are fewer if two would have had the same widths. None: sizes
    were tried from small to large, up to the first that is accurate enough."""
    pick: Pick
    picked: int
    """Number of the picked member."""
    why: str
    """Why it was picked, in words."""
    limit: Limit
    reference: float | None
    """Top-1 of the fine-tuned unpruned network on validation images."""
    images: Images
    timed: str
    """Where the latencies were measured, or why there are none."""
    members: tuple[Member, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _picked_is_a_member(self) -> Self:
        if self.picked not in {member.number for member in self.members}:
            raise ValueError(f"picked: there is no member {self.picked}")
        return self

    @property
    def choice(self) -> Member:
        """The picked member."""
        return next(member for member in self.members if member.number == self.picked)

    @property
    def caption(self) -> str:
        """How to read the table of members."""
        bad = {t.status for m in self.members for t in m.timings} - {"OK"}
        noisy = " Another load ran meanwhile: NOISY." if "NOISY" in bad else ""
        slow = " The machine was throttled: INVALID." if "INVALID" in bad else ""
        return f"▶ picked, · worse and slower than another. {self.timed}{noisy}{slow}"


def limit_for(profile: DeviceProfile, members: Sequence[Member], reference: float | None) -> Limit:
    """Which accuracy is enough: the profile's max_drop, or within `NEAR_BEST` points of the best member."""
    drop = profile.accuracy.max_drop
    if drop is not None and reference is not None:
        rule = (
            f"at most {drop:g} points under the fine-tuned unpruned network's "
            f"{100 * reference:.1f} % on validation images (accuracy.max_drop)"
        )
        return Limit(least=reference - drop / 100, rule=rule)
    best = max(member.validation for member in members)
    rule = (
        f"at most {NEAR_BEST:g} point under the best member's {100 * best:.1f} % on validation images "
        "(the profile sets no accuracy.max_drop)"
    )
    return Limit(least=best - NEAR_BEST / 100, rule=rule)


def choose(members: Sequence[Member], pick: Pick, limit: Limit) -> tuple[Member, str]:
    """The picked member, and why it was picked.

    Members that miss a budget are left out, unless all of them do.
    """
    fitting = [member for member in members if not member.missed] or list(members)
    enough = [member for member in fitting if member.validation >= limit.least - SLACK]
    best = max(fitting, key=lambda member: (member.validation, -member.flops))
    if pick == "best":
        return best, "the highest validation accuracy"
    if not enough:
        return best, f"the highest validation accuracy, since none is {limit.rule}"
    if pick == "fastest":
        return min(enough, key=lambda member: member.price), f"the fastest that is {limit.rule}"
    return min(enough, key=lambda member: member.flops), f"the smallest that is {limit.rule}"


def undominated(members: Sequence[Member]) -> list[Member]:
    """The Pareto front: members with no other at least as accurate and as cheap, and better in one."""
    return [
        one
        for one in members
        if not any(
            other.validation >= one.validation
            and other.price <= one.price
            and (other.validation, other.price) != (one.validation, one.price)
            for other in members
        )
    ]
