import os
import platform
import stat
from pathlib import Path

import pytest

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring import probe
from mvp_edge_export.measuring.machine import (
    Machine,
    busy_seconds,
    differences,
    machine_from,
    this_machine,
    throttling,
    was_throttled,
)
from mvp_edge_export.profile import load_profile

_PI_CPU = """processor\t: {cpu}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_N100_CPU = """processor\t: {cpu}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 190
model name\t: Intel(R) N100
cpu MHz\t\t: 799.998
flags\t\t: cx16 popcnt sse4_2 ssse3 abm avx2 bmi1 bmi2 f16c fma movbe avx_vnni

"""


def _machine(root: Path, cpuinfo: str, memory_kb: int, board: str | None = None) -> None:
    files = {
        "proc/stat": "cpu  100 20 30 4000 50 6 7 80 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n",
        "proc/cpuinfo": "".join(cpuinfo.format(cpu=cpu) for cpu in range(4)),
        "proc/meminfo": f"MemTotal:       {memory_kb} kB\nMemFree: 1 kB\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    for cpu in range(4):
        place = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{place}/topology/core_id"] = f"{cpu}\n"
        files[f"{place}/topology/physical_package_id"] = "0\n"
        files[f"{place}/cpufreq/scaling_governor"] = "ondemand\n"
        files[f"{place}/cpufreq/scaling_max_freq"] = "1800000\n"
        files[f"{place}/cpufreq/scaling_cur_freq"] = f"{600000 + cpu}\n"
    if board:
        files["proc/device-tree/model"] = f"{board}\0"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    _machine(tmp_path, _PI_CPU, 3_884_000, "Raspberry Pi 4 Model B Rev 1.4")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    return this_machine(tmp_path)


def test_the_facts_of_a_raspberry_pi(pi: Machine) -> None:
    assert pi.cpu == pi.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert (pi.cores, pi.physical_cores) == (("cortex-a72",), 4)
    assert (pi.governors, pi.max_mhz, pi.mhz) == (("ondemand",), 1800, 600.003)
    assert (pi.cpu_quota, pi.ram) == (1.5, 3_884_000 * 1024)
    assert pi.os == "Debian GNU/Linux 12 (bookworm)"


def test_a_raspberry_pi_is_its_own_profile_s_device_only(pi: Machine) -> None:
    assert differences(pi, load_profile("rpi4")) == []
    assert differences(pi, load_profile("rpi3")) == [
        "processor Raspberry Pi 4 Model B Rev 1.4, not cortex-a53",
        "3.7 GiB of memory, not 1 GiB",
    ]
    found = differences(pi, load_profile("intel-n100"))
    assert "architecture aarch64, not x86_64" in found
    assert "no avx2" in found


def test_an_intel_n100_is_known_by_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _machine(tmp_path, _N100_CPU, 7_900_000)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    facts = this_machine(tmp_path)

    assert facts.cores == ("gracemont", "x86-64-v2", "x86-64-v3")
    assert differences(facts, load_profile("intel-n100")) == []
    assert differences(facts, load_profile("x86-laptop")) == []


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, _N100_CPU, 7_900_000)
    for cpu in (2, 3):
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/core_id").write_text(f"{cpu - 2}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert this_machine(tmp_path).physical_cores == 2


@pytest.mark.parametrize(
    ("arch", "cpuinfo", "program", "emulator"),
    [
        ("aarch64", _N100_CPU, "/usr/bin/qemu-aarch64-static", "qemu-aarch64-static"),
        ("aarch64", _PI_CPU, "/usr/libexec/qemu-binfmt/qemu-aarch64", "qemu-aarch64"),
        ("aarch64", _N100_CPU, "/usr/bin/python3.11", "another processor"),
        ("x86_64", _PI_CPU, "/usr/bin/box64", "another processor"),
        ("x86_64", _N100_CPU.replace("Intel(R) N100", "QEMU TCG CPU version 2.5+"), None, "qemu"),
        ("x86_64", _N100_CPU.replace("Intel(R) N100", "VirtualApple @ 2.50GHz"), None, "Rosetta"),
        ("x86_64", _N100_CPU, "/usr/bin/python3.11", None),
        ("aarch64", _PI_CPU, "/usr/bin/python3.11", None),
        ("aarch64", "", None, None),
    ],
)
def test_an_emulated_machine_says_so(
    arch: str, cpuinfo: str, program: str | None, emulator: str | None, tmp_path: Path
) -> None:
    _machine(tmp_path, cpuinfo, 4_000_000)
    told = {**probe.look(str(tmp_path)), "arch": arch, "program": program, "hwcap": 0b11}
    facts = machine_from(told)

    assert facts.emulated == emulator
    if emulator:
        assert facts.cpu == f"{arch} emulated by {emulator}"
        assert f"emulated by {emulator}" in differences(facts, load_profile("rpi4"))
    # The host's flags are not those of the processor that is played.
    if arch == "aarch64" and cpuinfo == _N100_CPU:
        assert facts.flags == ("asimd", "fp")


def test_this_very_machine() -> None:
    facts = this_machine()
    assert facts.emulated is None
    assert facts.ram > 2**28
    assert 1 <= facts.physical_cores <= len(facts.affinity)
    assert facts.flags


def test_without_proc_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="measuring needs Linux"):
        this_machine(tmp_path)


def test_busy_is_all_but_idle_and_waiting(tmp_path: Path) -> None:
    _machine(tmp_path, _PI_CPU, 1)
    ticks = 100 + 20 + 30 + 6 + 7 + 80
    assert busy_seconds(tmp_path) == ticks / os.sysconf("SC_CLK_TCK")
    before = busy_seconds()
    sum(range(2_000_000))
    assert busy_seconds() >= before


def test_throttling_is_read_from_the_firmware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert throttling() is None
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert throttling() == 0x50005
    program.write_text("#!/bin/sh\necho VCHI initialization failed\nexit 255\n")
    assert throttling() is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, None, False),
        (0, 0, False),
        (0x50000, 0x50000, False),  # it happened earlier, since the start
        (0, 0x50000, True),  # it happened meanwhile
        (0x50000, 0x70000, True),
        (0x4, 0x40000, True),
        (0x50000, 0x50001, True),
    ],
)
def test_what_counts_as_throttled(before: int | None, after: int | None, expected: bool) -> None:
    assert was_throttled(before, after) is expected
