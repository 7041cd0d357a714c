"""What the members of a front are like, and which of them is picked: front.json.

The choice is made on validation images and, for the fastest, on measured time; figures on test images
stand beside it and decide nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.quantities import format_bytes, format_count, format_duration
from mvp_edge_export.storage import read_json, write_json
from mvp_edge_export.verified import parse

if TYPE_CHECKING:
    from rich.table import Table

FILE = "front.json"
Pick = Literal["smallest", "fastest", "best"]

NEAR_BEST = 1.0
"""Points of validation accuracy under the best member that count as no loss, where a profile says nothing."""


SLACK = 1e-9
"""For the last bit of a difference of two accuracies."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Timing(_Fact):
    """One member's time for an image in one runtime, measured on the machine that made the front."""

    runtime: str
    version: str
    threads: int
    p50: float = Field(gt=0)
    """Milliseconds, as all times here."""
    p50_interval: tuple[float, float]
    p90: float
    status: str
    """OK, NOISY or INVALID, as `mvp-edge bench` says."""


class Member(_Fact):
    """One network of a front; its run lies in the folder of its number."""

    number: int
    keep: float
    flops: int
    params: int
    file: int
    """Bytes of the exported model, predicted."""
    validation: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)
    timings: tuple[Timing, ...] = ()
    missed: tuple[str, ...] = ()
    """Budgets that it does not meet, its accuracy on test images aside."""

    @property
    def fastest(self) -> Timing | None:
        """Its time in the runtime that is fastest for it."""
        return min(self.timings, key=lambda timing: timing.p50, default=None)

    @property
    def price(self) -> float:
        """What its accuracy is weighed against: milliseconds, or multiply-adds where nothing was timed."""
        return self.fastest.p50 if self.fastest else float(self.flops)


class Limit(_Fact):
    """The validation accuracy that a picked member has to reach."""

    least: float
    rule: str
    """In words, as in "is within …"."""


class Front(_Fact):
    """front.json: the members from small to large, and the picked one."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    asked: int | None
    """Members that were asked for; rounding leaves fewer where two would have the same widths. None: sizes
    were tried from small to large, up to the first that is accurate enough."""
    pick: Pick
    picked: int
    """Its number."""
    why: str
    limit: Limit
    reference: float | None
    """The fine-tuned unpruned network's accuracy on validation images."""
    images: dict[str, int]
    """Images that the accuracies are of: validation and test."""
    timed: str
    """Where the times were measured, or why there are none."""
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
        """What to know about the figures."""
        bad = {t.status for m in self.members for t in m.timings} - {"OK"}
        noisy = " Another load ran meanwhile: NOISY." if "NOISY" in bad else ""
        slow = " The machine was throttled: INVALID." if "INVALID" in bad else ""
        return f"▶ picked, · worse and slower than another. {self.timed}{noisy}{slow}"

    def save(self, run: Path) -> None:
        """Write it into a run directory."""
        write_json(run / FILE, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(cls, run: Path) -> Self:
        """The front of a run directory; BadInput where it is missing or damaged."""
        return parse(cls, read_json(run / FILE, "front"), "front", run / FILE)

    def table(self) -> "Table":
        """The members for people, at most 80 columns wide."""
        from rich.table import Table

        table = Table(title=f"Front of {len(self.members)} networks", caption=self.caption)
        for name in ("", "keep", "mult.-adds", "params", "file", "val %", "test %", "latency"):
            table.add_column(name, justify="right")
        best = undominated(self.members)
        for member in self.members:
            mark = "▶" if member.number == self.picked else " " if member in best else "·"
            timing = member.fastest
            table.add_row(
                f"{mark} {member.number}",
                f"{member.keep:.3g}",
                format_count(member.flops),
                format_count(member.params),
                format_bytes(member.file),
                f"{100 * member.validation:.1f}",
                f"{100 * member.test:.1f}",
                format_duration(timing.p50) if timing else "–",
            )
        return table


def limit_for(profile: DeviceProfile, members: Sequence[Member], reference: float | None) -> Limit:
    """What counts as accurate enough: the profile's max_drop, or nearly as good as the best member."""
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
    """The picked member, and why it is.

    Members that miss a budget are passed over, unless all do.
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
    """Those that no other member beats in validation accuracy and time (else multiply-adds) at once."""
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
