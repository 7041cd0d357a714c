"""Checks whether a machine can run mvp-edge, and says what to do where it cannot.

    probe ── Facts ─┐
    facts.yaml ─────┼→ examine → Report: one Finding per line
    DeviceProfile ──┘

Collecting facts and judging them are separate: ``examine`` depends on the facts alone, so that it can
judge a remote machine, and tests can judge machines that are not available.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mvp_edge_export.measuring import probe
from mvp_edge_export.measuring.machine import Machine, differences, machine_from, throttling_in
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.quantities import format_bytes
from mvp_edge_export.remote.host import Host, Progress, connect
from mvp_edge_export.running.known import Known, known, release

OLDEST_PYTHON = (3, 11)
ROOM = 300 * 2**20
"""Disk space in bytes of an installation for a device with one runtime, rounded up."""

State = Literal["ok", "note", "blocked"]
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class Tried(BaseModel):
    """Result of importing a runtime."""

    model_config = _FROZEN

    code: int | None
    """Exit code; a negative number is the signal that ended it; None if it did not end in time."""
    said: str
    """Last line of the error output."""


class Python(BaseModel):
    """The machine's Python and the packages that are installed in it, as reported by ``probe``."""

    model_config = _FROZEN

    version: str
    executable: str
    implementation: str
    free_threaded: bool
    bits: int
    libc: str
    """C library, e.g. ``glibc 2.36`` or ``musl``; empty if unknown."""
    own_environment: bool
    """Whether it is a virtual environment."""
    managed_by_system: bool
    """Whether pip may not install into it (PEP 668)."""
    lacks: tuple[str, ...]
    """Missing modules that a virtual environment needs."""
    installed: dict[str, str]
    """Release of each installed package."""
    tried: dict[str, Tried]
    """Result of importing each installed runtime."""
    disk_free: int
    """Free disk space in bytes."""

    @property
    def minor(self) -> tuple[int, ...]:
        """Major and minor version, e.g. (3, 11)."""
        return release(self.version)[:2]


class Facts(BaseModel):
    """The facts about a machine that ``examine`` judges."""

    model_config = _FROZEN

    machine: Machine
    python: Python
    system: str
    ram_free: int
    """Memory in bytes that is available to programs, as estimated by the kernel."""
    ram_limit: int | None
    """Memory limit of the control group in bytes; None if there is no limit."""
    swap: int
    """Swap space in bytes."""
    celsius: float | None
    """Temperature of the hottest thermal zone in °C; None if unknown."""
    throttled: int | None
    """Throttling flags of a Raspberry Pi; see ``machine.throttling``."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    state: State
    text: str
    do: str = ""
    """What the user can do; empty if nothing needs to be done."""
    source: str = ""
    """URL of the source; empty if the machine itself is the source."""

    def __str__(self) -> str:
        remedy = f"; {self.do}" if self.do else ""
        return f"{self.state:<8} {self.subject:<12} {self.text}{remedy}"


@dataclass(frozen=True)
class Report:
    """All findings about a machine; later ones depend on earlier ones."""

    findings: tuple[Finding, ...]

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """The findings that make running impossible."""
        return tuple(one for one in self.findings if one.state == "blocked")

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {
            "blocked": bool(self.obstacles),
            "findings": [asdict(one) for one in self.findings],
        }


def look_here() -> Facts:
    """Collect the facts of this machine and this Python, which includes importing the runtimes."""
    return facts_from(
        {
            "machine": probe.look(),
            "python": probe.look_at_python(),
            "throttled": probe.throttled(),
        }
    )


def look_there(target: str, progress: Progress) -> Facts:
    """Collect the facts of a host and of its own Python; nothing is installed there.

    Args:
        target: host as `ssh` takes it, e.g. ``pi@raspberrypi``.
        progress: called with what is being done.

    Raises:
        BadInput: there is no connection, or the host has no Python 3.
    """
    with connect(target, progress) as host:
        return look_at(host)


def look_at(host: Host) -> Facts:
    """Collect the facts of a connected host."""
    return facts_from(json.loads(host.python(Path(probe.__file__).read_text("utf-8"))))


def facts_from(told: Mapping[str, Any]) -> Facts:
    """Parse the output of ``probe``, already read as JSON."""
    files: Mapping[str, str] = told["machine"]["files"]
    limit = files.get("sys/fs/cgroup/memory.max", "max")
    zones = [text for path, text in files.items() if "thermal_zone" in path]
    millidegrees = [int(text) for text in zones if re.fullmatch(r"-?\d+", text)]
    return Facts(
        machine=machine_from(told["machine"]),
        python=Python.model_validate(told["python"]),
        system=told["machine"]["system"],
        ram_free=_kilobytes(files, "MemAvailable"),
        ram_limit=int(limit) if limit.isdecimal() else None,
        swap=_kilobytes(files, "SwapTotal"),
        celsius=max(millidegrees) / 1000 if millidegrees else None,
        throttled=throttling_in(told["throttled"]),
    )


def examine(facts: Facts, profile: DeviceProfile | None = None) -> Report:
    """Judge a machine.

    Args:
        facts: the machine's facts.
        profile: device profile to compare the machine with; None compares with none.
    """
    table = known()
    findings = [*_system(facts, table), *_python(facts.python)]
    if not any(one.state == "blocked" for one in findings):
        findings += [*_environment(facts.python), *_packages(facts, table)]
        findings += _runtimes(facts, table, profile)
    findings += [*_memory(facts, table, profile), *_processor(facts, table)]
    if profile is not None:
        findings += _profile(facts, profile)
    return Report(tuple(findings))


def obstacles(facts: Facts, runtimes: Sequence[str], memory: int) -> tuple[Finding, ...]:
    """The obstacles to running runtimes in a new virtual environment; installed packages do not matter.

    Args:
        facts: the machine's facts.
        runtimes: runtimes to install and run.
        memory: memory in bytes that the networks need, without Python and the runtime.
    """
    table = known()
    found = [*_system(facts, table), *_python(facts.python)]
    if facts.python.lacks:
        text = f"Python {facts.python.version} lacks {', '.join(facts.python.lacks)}"
        found.append(Finding("environment", "blocked", text, "sudo apt install python3-venv"))
    if not any(one.state == "blocked" for one in found):
        found += [_installable(facts, table, name) for name in runtimes]
    needed = max(table.resident[name] for name in runtimes) + memory
    found.append(_enough(facts, needed))
    return Report(tuple(found)).obstacles


def avoided(facts: Facts, denied: Sequence[str]) -> list[str]:
    """Requirements that make pip avoid releases which this processor cannot run or a profile denies.

    Args:
        facts: the machine's facts.
        denied: denied releases as in a profile's ``runtime.denylist``.
    """
    rows = (row for row in known().trouble if row.state == "blocked" and row.hits(facts.machine))
    return [*(pin.replace("==", "!=") for pin in denied), *(row.avoided for row in rows)]


def _system(facts: Facts, table: Known) -> Iterator[Finding]:
    machine, python = facts.machine, facts.python
    name = f"{machine.os}, {machine.arch}, {python.libc or 'C library unknown'}"
    if facts.system != "Linux":
        yield Finding("system", "blocked", name, "predict and bench need Linux")
        return
    for row in table.systems:
        if row.fits(machine, python.bits, python.libc, python.minor):
            yield Finding("system", "blocked", f"{name}: {row.what}", row.do, row.source)
            return
    if machine.arch not in {arch for row in table.wheels for arch in row.arch}:
        text = f"{name}: no runtime has a wheel for {machine.arch}"
        yield Finding("system", "blocked", text, "x86_64 and aarch64 have")
        return
    yield Finding("system", "ok", name)
    if machine.emulated:
        text = f"emulated by {machine.emulated}: labels are right, times say nothing"
        yield Finding("system", "note", text, "measure on the device itself")


def _python(python: Python) -> Iterator[Finding]:
    name = f"{python.version} ({python.executable})"
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if python.minor < OLDEST_PYTHON:
        do = f"install {oldest} or newer, which Debian 12 and Raspberry Pi OS from it have"
        yield Finding("Python", "blocked", f"{name} is older than {oldest}", do)
    elif python.implementation != "cpython":
        text = f"{name} is {python.implementation}: the wheels are for CPython"
        yield Finding("Python", "blocked", text, "use CPython")
    elif python.free_threaded:
        text = f"{name} is free-threaded, for which this was never tried"
        yield Finding("Python", "note", text, "use the ordinary build")
    else:
        yield Finding("Python", "ok", name)


def _environment(python: Python) -> Iterator[Finding]:
    if "mvp-edge" in python.installed or python.own_environment:
        return
    if python.lacks:
        text = f"Python lacks {', '.join(python.lacks)}"
        yield Finding("environment", "note", text, "sudo apt install python3-venv")
    if python.managed_by_system:
        do = "python3 -m venv ~/mvp && . ~/mvp/bin/activate"
        yield Finding("environment", "note", "pip may not install into the system's Python", do)
    if python.disk_free < ROOM:
        text = f"{format_bytes(python.disk_free)} are free, {format_bytes(ROOM)} are needed"
        yield Finding("disk", "note", text, "make room")


def _packages(facts: Facts, table: Known) -> Iterator[Finding]:
    """Check packages other than the runtimes that do not run on every processor."""
    for row in table.trouble:
        if row.package in table.runtimes or not row.hits(facts.machine):
            continue
        there = facts.python.installed.get(row.package)
        wanted = f"pip install '{row.package}<{row.first}'"
        if there is not None and row.covers(there):
            text = f"{there} is installed: it {row.what}"
            yield Finding(row.package, row.state, text, wanted, row.source)
        elif there is None:
            text = f"from {row.first} on it {row.what}"
            yield Finding(row.package, "note", text, wanted, row.source)


def _runtimes(facts: Facts, table: Known, profile: DeviceProfile | None) -> list[Finding]:
    """Check the runtimes: installed ones must work; if none is installed, one must be installable."""
    denied = profile.runtime.denylist if profile else ()
    found: list[Finding] = []
    missing: list[Finding] = []
    for name in table.runtimes:
        there = facts.python.installed.get(name)
        if there is not None:
            found.append(_installed(facts, table, name, there, denied))
        else:
            missing.append(_installable(facts, table, name))
    if not found and all(one.state == "blocked" for one in missing):
        return missing
    return found + [
        Finding(one.subject, "note", one.text, one.do, one.source)
        if one.state == "blocked"
        else one
        for one in missing
    ]


def _installed(facts: Facts, table: Known, name: str, there: str, denied: Sequence[str]) -> Finding:
    tried = facts.python.tried.get(name)
    rows = [row for row in table.trouble_of(name, facts.machine) if row.covers(there)]
    another = f"pip install --upgrade '{name}!={there}'"
    for row in (row for row in rows if row.state == "blocked"):
        return Finding(name, "blocked", f"{there} {row.what}", another, row.source)
    if tried is not None and tried.code != 0:
        return Finding(name, "blocked", f"{there} {_ending(tried)}", another)
    if f"{name}=={there}" in denied:
        text = f"{there} is on the denylist of the profile"
        return Finding(name, "blocked", text, another)
    for row in rows:
        return Finding(name, "note", f"{there} starts here, but {row.what}", source=row.source)
    return Finding(name, "ok", f"{there} starts" if tried else f"{there} is installed")


def _installable(facts: Facts, table: Known, name: str) -> Finding:
    python, arch = facts.python, facts.machine.arch
    rows = [row for row in table.wheels if row.package == name and arch in row.arch]
    fitting = [row for row in rows if row.fits(python.minor, python.libc)]
    if not fitting:
        libcs = min((row.glibc for row in rows), key=release)
        oldest, newest = rows[0].python[0], rows[-1].python[1]
        text = f"no wheel for Python {python.version} and {python.libc}"
        do = f"there are some for Python {oldest} to {newest} and glibc from {libcs} on"
        return Finding(name, "blocked", text, do, rows[-1].source)
    best = max(fitting, key=lambda row: release(row.first))
    # pip takes the newest wheel for this Python and C library; it does not check the processor.
    avoid = [
        row.avoided
        for row in table.trouble_of(name, facts.machine)
        if row.state == "blocked" and (row.last is None or (best.last and row.covers(best.last)))
    ]
    asked = " ".join(f"'{one}'" for one in (f"mvp-edge[{name}]", *avoid))
    last = f"; {best.last} is the last for {python.libc} and this Python" if best.last else ""
    return Finding(name, "ok", f"not installed{last}", f"pip install {asked}", best.source)


def _ending(tried: Tried) -> str:
    if tried.code is None:
        return f"does not start: {tried.said}"
    if tried.code < 0:
        return f"dies when it is imported: {Signals(-tried.code).name}"
    return f"cannot be imported: {tried.said}"


def _memory(facts: Facts, table: Known, profile: DeviceProfile | None) -> Iterator[Finding]:
    names = [name for name in table.runtimes if name in facts.python.installed] or table.runtimes
    needed = min(table.resident[name] for name in names)
    if profile is not None and profile.budgets.memory is not None:
        needed += profile.budgets.memory
    yield _enough(facts, needed)


def _enough(facts: Facts, needed: int) -> Finding:
    free = facts.ram_free if facts.ram_limit is None else min(facts.ram_free, facts.ram_limit)
    text = f"{format_bytes(free)} of {format_bytes(facts.machine.ram)} are free"
    if facts.swap:
        text += f", and {format_bytes(facts.swap)} of swap"
    if needed <= free:
        return Finding("memory", "ok", text)
    if needed <= free + facts.swap:
        text += f"; about {format_bytes(needed)} are needed, so it will swap, and be slow"
        return Finding("memory", "note", text, "end other programs")
    text += f"; about {format_bytes(needed)} are needed"
    return Finding("memory", "blocked", text, "end other programs, or add swap")


def _processor(facts: Facts, table: Known) -> Iterator[Finding]:
    machine = facts.machine
    cores = f"{machine.physical_cores} core{'s' * (machine.physical_cores != 1)}"
    yield Finding("processor", "ok", f"{machine.cpu}, {cores}")
    slow = [name for name in machine.governors if name != "performance"]
    if slow:
        text = f"{', '.join(slow)}, not performance: times will vary"
        do = "while measuring: echo performance | sudo tee"
        do += " /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield Finding("governor", "note", text, do)
    if machine.cpu_quota is not None and machine.cpu_quota < machine.physical_cores:
        text = f"this control group may use {machine.cpu_quota:g} cores only"
        yield Finding("processor", "note", text)
    if facts.throttled:
        now, since = facts.throttled & 0xF, facts.throttled >> 16 & 0xF
        words = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
        text = ", ".join(word for bit, word in enumerate(words) if (now or since) >> bit & 1)
        text = f"the board {'reports' if now else 'reported since its start'}: {text}"
        yield Finding("throttling", "note", text, "use a stronger power supply, and cool it")
    if facts.celsius is not None and facts.celsius >= table.temperature.celsius:
        text = (
            f"{facts.celsius:.0f} °C; at {table.temperature.celsius:.0f} a Raspberry Pi slows down"
        )
        yield Finding("temperature", "note", text, "cool it", table.temperature.source)


def _profile(facts: Facts, profile: DeviceProfile) -> Iterator[Finding]:
    other = differences(facts.machine, profile)
    if other:
        text = f"this is not a {profile.name}: {'; '.join(other)}"
        do = "its latency budgets cannot be judged here"
        yield Finding("profile", "note", text, do)
    else:
        yield Finding("profile", "ok", f"this is a {profile.name}, as far as it can be seen")


def _kilobytes(files: Mapping[str, str], key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", files.get("proc/meminfo", ""), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
