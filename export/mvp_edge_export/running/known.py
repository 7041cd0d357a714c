"""The shipped table ``facts.yaml`` of facts about wheels, processors and systems, with their sources."""

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
    """The leading numbers of a version for comparisons: (1, 21, 0) for ``1.21.0rc1``."""
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
    """A range of releases of a package, ends included; without a last one it is open."""

    package: str
    first: str = Field(alias="from")
    last: str | None = Field(default=None, alias="to")

    def covers(self, version: str) -> bool:
        """Whether the range contains ``version``."""
        given = release(version)
        return release(self.first) <= given and (self.last is None or given <= release(self.last))


class Wheels(_Releases):
    """Requirements of the wheels of a range of releases."""

    arch: tuple[_Arch, ...]
    python: tuple[str, str]
    """Oldest and newest supported Python, e.g. ``("3.11", "3.14")``."""
    glibc: str
    """Oldest supported glibc."""

    def fits(self, python: tuple[int, ...], libc: str) -> bool:
        """Whether a wheel supports a Python, e.g. (3, 11), and a C library, e.g. ``glibc 2.36``."""
        oldest, newest = map(release, self.python)
        name, _, version = libc.partition(" ")
        return (
            oldest <= python <= newest
            and name == "glibc"
            and release(version) >= release(self.glibc)
        )


class Trouble(_Releases):
    """Releases that fail or may fail on processors without a certain feature."""

    arch: _Arch
    lacks: str
    """The missing feature: a processor flag as in /proc/cpuinfo."""
    state: Literal["note", "blocked"]
    what: str
    """What the releases do, as a phrase that continues "it"."""
    tried: str | None = None
    """What happened in a test on an emulated processor; None if not tested."""

    def hits(self, machine: Machine) -> bool:
        """Whether the machine's processor lacks the feature; False if its flags are unknown."""
        return self.arch == machine.arch and bool(machine.flags) and self.lacks not in machine.flags

    @property
    def avoided(self) -> str:
        """Requirement that makes pip avoid these releases, e.g. ``onnxruntime!=1.21.0``."""
        if self.last is None:
            return f"{self.package}<{self.first}"
        one = self.first == self.last
        return f"{self.package}!={self.first}" if one else f"{self.package}>{self.last}"


class System(_Row):
    """A kind of system on which mvp-edge cannot be installed; a field that is not set fits any system."""

    arch: tuple[str, ...] = ()
    bits: int | None = None
    """Pointer width of Python: 32 or 64."""
    libc: str | None = None
    os: str | None = None
    """Beginning of the operating system's name."""
    board: str | None = None
    """Part of the board's name."""
    python: str | None = None
    """First Python version that works; older ones do not."""
    what: str
    """Description of the problem."""
    do: str
    """What the user can do."""

    def fits(self, machine: Machine, bits: int, libc: str, python: tuple[int, ...]) -> bool:
        """Whether the machine is such a system."""
        return (
            (not self.arch or machine.arch in self.arch)
            and self.bits in (None, bits)
            and (self.libc is None or libc.startswith(self.libc))
            and (self.os is None or machine.os.startswith(self.os))
            and (self.board is None or self.board in (machine.board or ""))
            and (self.python is None or python < release(self.python))
        )


class Temperature(_Row):
    """Temperature in °C from which on a board reduces its frequency."""

    celsius: float


class Known(BaseModel):
    """The table as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(alias="schema")
    date: datetime.date
    """Date on which the sources were consulted."""
    wheels: tuple[Wheels, ...]
    trouble: tuple[Trouble, ...]
    systems: tuple[System, ...]
    resident: dict[str, Bytes]
    """Resident memory in bytes of Python with each runtime and a small network."""
    temperature: Temperature

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes."""
        return tuple(self.resident)

    def trouble_of(self, package: str, machine: Machine) -> list[Trouble]:
        """The rows about a package that apply to this machine's processor."""
        return [row for row in self.trouble if row.package == package and row.hits(machine)]


@cache
def known() -> Known:
    """Read the table that is part of the package."""
    text = (Path(__file__).parent / "facts.yaml").read_text(encoding="utf-8")
    return Known.model_validate(yaml.safe_load(text))
