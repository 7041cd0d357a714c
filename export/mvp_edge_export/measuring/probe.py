"""Collects raw facts about a machine, which ``machine`` and ``doctor`` interpret.

This file is also sent to hosts and run there by whatever Python they have. Therefore it is a single file,
uses the standard library only, and has the syntax of Python 3.6, so that a host with an outdated Python can
be diagnosed. It changes nothing on the machine and leaves out what it cannot read.
"""

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

FILES = (
    "etc/os-release",
    "proc/cpuinfo",
    "proc/device-tree/model",
    "proc/meminfo",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu*/topology/core_id",
    "sys/devices/system/cpu/cpu*/topology/physical_package_id",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
)
PACKAGES = ("mvp-edge", "numpy", "onnxruntime", "openvino", "pillow", "pydantic")
RUNTIMES = ("onnxruntime", "openvino")
PATIENCE = 180.0
"""Seconds after which an import of a runtime is considered hanging, even on a slow device."""

# Prevents a runtime from sending telemetry (see `sessions.untold`).
_UNTOLD = "import sys; sys.modules['openvino_telemetry'] = None; "
_HWCAP = 16  # AT_HWCAP of <elf.h>


def look(root: str = "/") -> "dict[str, object]":
    """Collect the facts of the machine whose /proc, /sys and /etc are in ``root``."""
    files = {}
    for pattern in FILES:
        for path in Path(root).glob(pattern):
            with suppress(OSError):
                text = path.read_bytes()[: 1 << 20].decode(errors="replace")
                files[str(path.relative_to(root))] = text.strip("\0\n ")
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "files": files,
        "system": platform.system(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "affinity": sorted(affinity),
        # Under emulation, /proc/self/exe names the program; only this link names the emulator.
        "program": _link(Path(root) / "proc/thread-self/exe"),
        "hwcap": _auxiliary(Path(root) / "proc/self/auxv", _HWCAP),
    }


def look_at_python() -> "dict[str, object]":
    """Collect the facts of this Python and its packages; each runtime is imported in a new process."""
    installed = versions()
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "implementation": sys.implementation.name,
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "bits": 8 * struct.calcsize("P"),
        "libc": _libc(),
        "own_environment": sys.prefix != sys.base_prefix,
        "managed_by_system": managed.exists(),
        "lacks": [name for name in ("venv", "ensurepip", "ssl") if find_spec(name) is None],
        "installed": installed,
        "tried": {name: try_import(name) for name in RUNTIMES if name in installed},
        "disk_free": shutil.disk_usage(sys.prefix).free,
    }


def versions() -> "dict[str, str]":
    """Installed release of each of PACKAGES."""
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7 and older
        return {}
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def try_import(package: str) -> "dict[str, object]":
    """Import a package in a new process: exit code (negative: signal) and last line of its output."""
    environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1")
    with subprocess.Popen(
        [sys.executable, "-c", _UNTOLD + "import " + package],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        try:
            said = process.communicate(timeout=PATIENCE)[1].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            return {"code": None, "said": f"no answer within {PATIENCE:.0f} s"}
        finally:
            process.kill()
    return {"code": process.returncode, "said": said.splitlines()[-1] if said else ""}


def throttled() -> "str | None":
    """Ask a Raspberry Pi's firmware about under-voltage and throttling; None on other machines."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        return subprocess.check_output(
            [program, "get_throttled"], stderr=subprocess.DEVNULL, timeout=5
        ).decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None


def _libc() -> str:
    with suppress(ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return "musl" if list(Path("/lib").glob("ld-musl-*.so.1")) else ""


def _link(path: Path) -> "str | None":
    try:
        return os.readlink(str(path))  # noqa: PTH115 - Path has it since Python 3.9
    except OSError:
        return None


def _auxiliary(path: Path, key: int) -> int:
    """Value of an entry in the auxiliary vector of a process; 0 if it is missing."""
    pair = struct.Struct("PP")
    try:
        data = path.read_bytes()
    except OSError:
        return 0
    whole = data[: len(data) // pair.size * pair.size]
    return int(dict(pair.iter_unpack(whole)).get(key, 0))


if __name__ == "__main__":
    everything = {"machine": look(), "python": look_at_python(), "throttled": throttled()}
    print(json.dumps(everything))
