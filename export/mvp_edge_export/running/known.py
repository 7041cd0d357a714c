"""The shipped table of facts about wheels, processors and systems (``facts.yaml``), each with its source."""

import datetime
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from mvp_edge_export.measuring.machine import Machine
from mvp_edge_export.profile_sections import Bytes

_Arch = Literal["aarch64", "x86_64"]


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to be compared: (1, 21, 0) of 1.21.0; what follows them is left out."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(pattern=r"^https://")


class _Releases(_Row):
    """Releases of a package, the last one included; without it, all that follow."""

    package: str
    first: str = Field(alias="from")
    last: str | None = Field(default=None, alias="to")

    def covers(self, version: str) -> bool:
        """Whether ``version`` is one of them."""
        given = release(version)
        return release(self.first) <= given and (self.last is None or given <= release(self.last))


class Wheels(_Releases):
    """What the wheels of these releases need."""

    arch: tuple[_Arch, ...]
    python: tuple[str, str]
    """The oldest and the newest."""
    glibc: str

    def fits(self, python: tuple[int, ...], libc: str) -> bool:
        """Whether pip takes one for this Python, e.g. (3, 11), and C library, e.g. ``glibc 2.36``."""
        oldest, newest = map(release, self.python)
        name, _, version = libc.partition(" ")
        return (
            oldest <= python <= newest
            and name == "glibc"
            and release(version) >= release(self.glibc)
        )


class Trouble(_Releases):
    """Releases that fail, or may, on processors that lack something."""

    arch: _Arch
    lacks: str
    """A flag, as /proc/cpuinfo names it."""
    state: Literal["note", "blocked"]
    what: str
    """What they do, after "it"."""
    tried: str | None = None
    """What happened here, on an emulated processor."""

    def hits(self, machine: Machine) -> bool:
        """Whether the machine's processor is such a one; one whose flags are not known is not."""
        return self.arch == machine.arch and bool(machine.flags) and self.lacks not in machine.flags

    @property
    def avoided(self) -> str:
        """What keeps pip from these releases."""
        if self.last is None:
            return f"{self.package}<{self.first}"
        one = self.first == self.last
        return f"{self.package}!={self.first}" if one else f"{self.package}>{self.last}"


class System(_Row):
    """A kind of system that nothing can be installed on; what is not given fits all."""

    arch: tuple[str, ...] = ()
    bits: int | None = None
    """Of Python."""
    libc: str | None = None
    os: str | None = None
    """What the system's name begins with."""
    board: str | None = None
    """A part of the board's name."""
    python: str | None = None
    """The first Python with which it is not such a system any more."""
    what: str
    do: str

    def fits(self, machine: Machine, bits: int, libc: str, python: tuple[int, ...]) -> bool:
        """Whether the machine is one."""
        return (
            (not self.arch or machine.arch in self.arch)
            and self.bits in (None, bits)
            and (self.libc is None or libc.startswith(self.libc))
            and (self.os is None or machine.os.startswith(self.os))
            and (self.board is None or self.board in (machine.board or ""))
            and (self.python is None or python < release(self.python))
        )


class Temperature(_Row):
    """From where on a board slows down."""

    celsius: float


class Known(BaseModel):
    """The whole table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    date: datetime.date
    """When the sources were looked at."""
    wheels: tuple[Wheels, ...]
    trouble: tuple[Trouble, ...]
    systems: tuple[System, ...]
    resident: dict[str, Bytes]
    """Runtime → bytes that a Python with it and a small network takes."""
    temperature: Temperature

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes."""
        return tuple(self.resident)

    def trouble_of(self, package: str, machine: Machine) -> list[Trouble]:
        """The rows about a package that this machine's processor meets."""
        return [row for row in self.trouble if row.package == package and row.hits(machine)]


@cache
def known() -> Known:
    """The table that comes with the package."""
    text = (Path(__file__).parent / "facts.yaml").read_text(encoding="utf-8")
    return Known.model_validate(yaml.safe_load(text))
