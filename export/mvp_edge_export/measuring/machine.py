"""Reads the properties and the load of this machine from /proc and /sys."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring import probe
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.quantities import format_bytes

EMULATED_BY = "emulated by "
"""Beginning of the difference that is reported for an emulated machine."""

# The kernel reports ARM cores by number: arch/arm64/include/asm/cputype.h, implementer 0x41.
_ARM_CORES = {
    **{0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57"},
    **{0xD08: "cortex-a72", 0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76"},
    **{0xD0C: "neoverse-n1", 0xD0D: "cortex-a77", 0xD40: "neoverse-v1", 0xD41: "cortex-a78"},
    **{0xD42: "cortex-a78ae", 0xD46: "cortex-a510", 0xD47: "cortex-a710", 0xD49: "neoverse-n2"},
    **{0xC07: "cortex-a7", 0xC0F: "cortex-a15"},
}
# (family, model) of Intel's processors: arch/x86/include/asm/intel-family.h.
_INTEL_CORES = {("6", "190"): "gracemont"}
# The levels of the x86-64 psABI with the flags that each adds to the previous level.
_X86_LEVELS = {
    "x86-64-v2": {"cx16", "popcnt", "sse4_2", "ssse3"},
    "x86-64-v3": {"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
# The bits of AT_HWCAP in order: arch/arm64/include/uapi/asm/hwcap.h.
_ARM_HWCAPS = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp"),
    *("asimdhp", "cpuid", "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4"),
    *("asimddp", "sha512", "sve", "asimdfhm", "dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb"),
)
# Model names of emulated processors, and the emulator of each.
_EMULATED_PROCESSORS = {"QEMU TCG CPU": "qemu", "VirtualApple": "Rosetta"}
_FLAG_NAMES = {"neon": ("asimd", "neon"), "amx": ("amx_tile",)}


class Machine(BaseModel):
    """The properties of a machine that affect a measured latency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    cpu: str
    """Model name of the processor."""
    emulated: str | None
    """Name of the emulator if the processor is emulated, so that latencies are meaningless; else None."""
    cores: tuple[str, ...]
    """Known names of its microarchitectures, as device profiles use them."""
    flags: tuple[str, ...]
    """Processor flags as in /proc/cpuinfo."""
    physical_cores: int
    """Number of physical cores that this process may run on."""
    affinity: tuple[int, ...]
    """Numbers of the logical processors that this process may run on."""
    cpu_quota: float | None
    """Processor time that the control group may use, in cores; None if there is no limit."""
    ram: int
    """Memory in bytes that is available to the kernel."""
    board: str | None
    """Model in the device tree of an ARM board; None on other machines."""
    governors: tuple[str, ...]
    """Frequency governors in use; empty if unknown."""
    max_mhz: float | None
    """Highest frequency that the governor may select, in MHz; None if unknown."""
    mhz: float | None
    """Frequency in MHz at the time of reading; None if unknown."""
    os: str
    kernel: str
    python: str


def this_machine(root: Path = Path("/")) -> Machine:
    """Read the properties of the machine whose /proc and /sys are in ``root``.

    Raises:
        BadInput: there is no /proc, as on systems other than Linux.
    """
    if not (root / "proc/stat").is_file():
        raise BadInput("measuring needs Linux with /proc mounted")
    return machine_from(probe.look(str(root)))


def machine_from(told: Mapping[str, Any]) -> Machine:
    """Interpret the output of ``probe.look`` from this or another machine."""
    files: Mapping[str, str] = told["files"]
    arch: str = told["arch"]
    affinity: tuple[int, ...] = tuple(told["affinity"])
    text = files.get("proc/cpuinfo", "")
    emulated = _emulator(arch, text, told["program"])
    if emulated and not _is_of(arch, text):
        text = ""  # it describes the emulator's host
    flags = set((_first(text, "flags") or _first(text, "Features") or "").split())
    if not flags and arch == "aarch64":
        flags = {name for bit, name in enumerate(_ARM_HWCAPS) if told["hwcap"] >> bit & 1}
    memory = re.search(r"MemTotal:\s+(\d+) kB", files.get("proc/meminfo", ""))
    mhz = _first(text, "cpu MHz")

    def frequency(name: str) -> list[str]:
        places = [f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}" for cpu in affinity]
        return [files[place] for place in places if files.get(place)]

    def frequencies(name: str) -> list[float]:
        return [float(kilohertz) / 1000 for kilohertz in frequency(name)]

    board = files.get("proc/device-tree/model") or None
    cores = _core_names(text, flags)
    cpu = _first(text, "model name") or board or " + ".join(cores) or arch
    return Machine(
        arch=arch,
        cpu=f"{arch} {EMULATED_BY}{emulated}" if emulated else cpu,
        emulated=emulated,
        cores=cores,
        flags=tuple(sorted(flags)),
        physical_cores=_physical_cores(files, affinity),
        affinity=affinity,
        cpu_quota=_cpu_quota(files),
        ram=int(memory[1]) * 1024 if memory else 0,
        board=board,
        governors=tuple(sorted(set(frequency("scaling_governor")))),
        max_mhz=max(frequencies("scaling_max_freq"), default=None),
        mhz=max(frequencies("scaling_cur_freq"), default=float(mhz) if mhz else None),
        os=_os_name(files) or told["system"],
        kernel=told["kernel"],
        python=told["python"],
    )


def differences(machine: Machine, profile: DeviceProfile) -> list[str]:
    """List the differences between a machine and the profile's device; empty if it is such a device."""
    hardware = profile.hardware
    found: list[str] = []
    if machine.emulated:
        found.append(f"{EMULATED_BY}{machine.emulated}")
    if machine.arch != hardware.arch:
        found.append(f"architecture {machine.arch}, not {hardware.arch}")
    wanted = [part.strip().lower() for part in re.split(r"\band\b|[+,]", hardware.cpu)]
    plain = re.sub(r"\((?:r|tm)\)", "", machine.cpu.lower())
    if not all(part in machine.cores or part in plain for part in wanted):
        found.append(f"processor {machine.cpu}, not {hardware.cpu}")
    if machine.physical_cores != hardware.cores:
        found.append(f"{machine.physical_cores} cores, not {hardware.cores}")
    # The kernel, and on some boards the graphics processor, reserve a part of the memory.
    if not 0.75 * hardware.ram <= machine.ram <= 1.05 * hardware.ram:
        found.append(f"{format_bytes(machine.ram)} of memory, not {format_bytes(hardware.ram)}")
    found += [f"no {flag}" for flag in hardware.isa if not _has(machine, flag)]
    found += [f"has {flag}" for flag in hardware.lacks if _has(machine, flag)]
    return found


def busy_seconds(root: Path = Path("/")) -> float:
    """Total busy time of all processors since boot in seconds, including stolen time."""
    first = (root / "proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, first[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def available_memory(root: Path = Path("/")) -> int | None:
    """Memory in bytes that a new program can use without swapping; None if unknown.

    The limit of a control group is taken into account.
    """
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo") or "")
    if found is None:
        return None
    free = int(found[1]) * 1024
    limit = _read(root / "sys/fs/cgroup/memory.max") or "max"
    used = _read(root / "sys/fs/cgroup/memory.current")
    if limit != "max" and used is not None:
        free = min(free, max(0, int(limit) - int(used)))
    return free


def throttling() -> int | None:
    """Read the throttling flags of a Raspberry Pi; None on other machines.

    Bits 0 to 3 are the current state: under-voltage, frequency capped, throttled, soft temperature
    limit. Bits 16 to 19 tell whether each has occurred since boot.
    """
    return throttling_in(probe.throttled())


def throttling_in(answer: str | None) -> int | None:
    """Parse the output of ``vcgencmd get_throttled``; None if it contains no flags."""
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", answer or "")
    return int(match[1], 16) if match else None


def was_throttled(before: int | None, after: int | None) -> bool:
    """Whether a Raspberry Pi had under-voltage or was slowed down between two readings of its flags."""
    if before is None or after is None:
        return False
    return bool((before | after) & 0xF or (after & ~before) >> 16 & 0xF)


def _emulator(arch: str, cpuinfo: str, program: str | None) -> str | None:
    name = Path(program or "").name
    if name.startswith("qemu-"):
        return name
    for mark, emulator in _EMULATED_PROCESSORS.items():
        if mark in (_first(cpuinfo, "model name") or ""):
            return emulator
    if cpuinfo and not _is_of(arch, cpuinfo):
        return "another processor"
    return None


def _is_of(arch: str, cpuinfo: str) -> bool:
    """Whether a kernel of this architecture wrote the cpuinfo, which is not so under emulation."""
    key = {"x86_64": "vendor_id", "aarch64": "CPU implementer"}.get(arch)
    return key is None or _first(cpuinfo, key) is not None


def _first(cpuinfo: str, key: str) -> str | None:
    match = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


def _core_names(cpuinfo: str, flags: set[str]) -> tuple[str, ...]:
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)$", cpuinfo, re.MULTILINE)
    names = {_ARM_CORES[int(part, 16)] for part in parts if int(part, 16) in _ARM_CORES}
    family, model = _first(cpuinfo, "cpu family"), _first(cpuinfo, "model")
    if _first(cpuinfo, "vendor_id") == "GenuineIntel" and (family, model) in _INTEL_CORES:
        names.add(_INTEL_CORES[(family or "", model or "")])
    for level, needed in _X86_LEVELS.items():
        if not needed <= flags:
            break
        names.add(level)
    return tuple(sorted(names))


def _physical_cores(files: Mapping[str, str], affinity: tuple[int, ...]) -> int:
    cores: set[object] = set()
    for cpu in affinity:
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        core = files.get(f"{topology}/core_id")
        package = files.get(f"{topology}/physical_package_id")
        cores.add((package, core) if core is not None else cpu)
    return len(cores)


def _cpu_quota(files: Mapping[str, str]) -> float | None:
    quota, _, period = (files.get("sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _os_name(files: Mapping[str, str]) -> str | None:
    release = files.get("etc/os-release", "")
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', release, re.MULTILINE)
    return match[1] if match else None


def _has(machine: Machine, flag: str) -> bool:
    return any(name in machine.flags for name in _FLAG_NAMES.get(flag, (flag,)))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
