"""What the doctor says of machines that are not here: a Pi 4 and 5, a Zero W, Jetsons, old PCs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from mvp_edge.cli.main import main
from mvp_edge_export.profile import load_profile, shipped_profiles
from mvp_edge_export.running import doctor
from mvp_edge_export.running.doctor import Facts, Finding, examine, facts_from
from mvp_edge_export.running.known import known, release

ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
ARMV8_2 = f"{ARMV8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
PARTS = {"cortex-a72": "0xd08", "cortex-a53": "0xd03", "cortex-a57": "0xd07", "cortex-a76": "0xd0b"}


def _told(
    *,
    cpu: str = "cortex-a72",
    features: str = ARMV8_0,
    arch: str = "aarch64",
    board: str = "Raspberry Pi 4 Model B Rev 1.4",
    os: str = "Debian GNU/Linux 12 (bookworm)",
    cores: int = 4,
    ram: str = "3884000",
    free: str = "3300000",
    swap: str = "0",
    files: dict[str, str] | None = None,
    throttled: str | None = None,
    program: str = "/usr/bin/python3.11",
    system: str = "Linux",
    installed: dict[str, str] | None = None,
    tried: dict[str, tuple[int | None, str]] | None = None,
    **python: Any,
) -> dict[str, Any]:
    """What ``probe`` would print on a Raspberry Pi 4 in a fresh environment, but for this."""
    if arch == "x86_64":
        one = f"vendor_id : GenuineIntel\nmodel name : {cpu}\nflags : {features}\n\n"
    else:
        part = PARTS.get(cpu, "0x000")
        one = f"Features : {features}\nCPU implementer : 0x41\nCPU part : {part}\n\n"
    memory = f"MemTotal: {ram} kB\nMemAvailable: {free} kB\nSwapTotal: {swap} kB\n"
    text = {
        "proc/cpuinfo": one * cores,
        "proc/meminfo": memory,
        "etc/os-release": f'PRETTY_NAME="{os}"\n',
        "proc/device-tree/model": board,
        **(files or {}),
    }
    installed = installed or {}
    outcomes: dict[str, tuple[int | None, str]] = {
        name: (0, "") for name in ("onnxruntime", "openvino") if name in installed
    }
    outcomes |= tried or {}
    return {
        "machine": {
            "files": text,
            "system": system,
            "arch": arch,
            "kernel": "6.12.47",
            "python": "3.11.2",
            "affinity": list(range(cores)),
            "program": program,
            "hwcap": 0,
        },
        "python": {
            "version": "3.11.2",
            "executable": "/home/pi/mvp/bin/python",
            "implementation": "cpython",
            "free_threaded": False,
            "bits": 64,
            "libc": "glibc 2.36",
            "own_environment": True,
            "managed_by_system": False,
            "lacks": [],
            "installed": installed,
            "tried": {name: {"code": c, "said": said} for name, (c, said) in outcomes.items()},
            "disk_free": 10**10,
            **python,
        },
        "throttled": throttled,
    }


def _pi(**changes: Any) -> Facts:
    return facts_from(json.loads(json.dumps(_told(**changes))))


def _pi5(**changes: Any) -> Facts:
    board = "Raspberry Pi 5 Model B Rev 1.0"
    return _pi(**{"cpu": "cortex-a76", "features": ARMV8_2, "board": board, **changes})


def _pc(features: str = "ssse3 sse4_1 sse4_2 popcnt cx16 avx2", **changes: Any) -> Facts:
    return _pi(**{"cpu": "a PC", "features": features, "arch": "x86_64", "board": "", **changes})


def _of(facts: Facts, subject: str, device: str | None = None) -> Finding:
    """The one finding about a subject."""
    report = examine(facts, load_profile(device) if device else None)
    (finding,) = [one for one in report.findings if one.subject == subject]
    return finding


def _states(facts: Facts, device: str | None = None) -> dict[str, str]:
    report = examine(facts, load_profile(device) if device else None)
    return {one.subject: one.state for one in report.findings}


def test_a_fresh_raspberry_pi_4_is_told_what_to_install() -> None:
    report = examine(_pi())
    assert report.obstacles == ()
    assert {one.state for one in report.findings} == {"ok"}
    assert _of(_pi(), "onnxruntime").do == "pip install 'mvp-edge[onnxruntime]'"
    assert _of(_pi(), "openvino").text == "not installed"
    lines = [str(one) for one in report.findings]
    assert not any("\n" in line for line in lines)
    assert lines[0] == "ok       system       Debian GNU/Linux 12 (bookworm), aarch64, glibc 2.36"


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a57", "cortex-a72"])
def test_the_release_that_dies_on_armv8_0(cpu: str) -> None:
    facts = _pi(cpu=cpu, installed={"onnxruntime": "1.21.0"}, tried={"onnxruntime": (-4, "")})
    finding = _of(facts, "onnxruntime")
    assert finding.state == "blocked"
    assert "illegal instruction on Armv8.0 cores" in finding.text
    assert finding.do == "pip install --upgrade 'onnxruntime!=1.21.0'"
    assert finding.source == "https://github.com/microsoft/onnxruntime/issues/23957"
    for version in ("1.20.1", "1.21.1", "1.32.0"):
        assert _of(_pi(cpu=cpu, installed={"onnxruntime": version}), "onnxruntime").state == "ok"
    assert _of(_pi5(installed={"onnxruntime": "1.21.0"}), "onnxruntime").state == "ok"


def test_a_runtime_that_dies_of_something_nobody_knew() -> None:
    facts = _pi5(installed={"onnxruntime": "1.40.0"}, tried={"onnxruntime": (-4, "")})
    finding = _of(facts, "onnxruntime")
    assert (finding.state, finding.text) == (
        "blocked", "1.40.0 dies when it is imported: SIGILL",
    )  # fmt: skip
    assert "onnxruntime!=1.40.0" in finding.do
    facts = _pi5(installed={"openvino": "2026.4.1"}, tried={"openvino": (1, "libx: not found")})
    assert _of(facts, "openvino").text == "2026.4.1 cannot be imported: libx: not found"
    facts = _pi5(installed={"openvino": "2026.4.1"}, tried={"openvino": (None, "no answer")})
    assert _of(facts, "openvino").text == "2026.4.1 does not start: no answer"


def test_a_release_that_the_profile_denies() -> None:
    facts = _pi5(installed={"onnxruntime": "1.21.0"})
    assert _of(facts, "onnxruntime", "rpi4").text.endswith("is on the denylist of the profile")
    assert _of(facts, "onnxruntime", "rpi5").state == "ok"


@pytest.mark.parametrize(
    ("facts", "text", "do"),
    [
        (_pi(arch="armv6l", bits=32, features="half thumb vfp"), "ARMv6", "Zero 2 W"),
        (_pi(arch="armv7l", bits=32), "32-bit ARM", "64-bit Raspberry Pi OS"),
        (_pi(bits=32), "the kernel has 64 bits, but Python", "64-bit Raspberry Pi OS"),
        (_pi(libc="musl", os="Alpine Linux v3.20"), "musl", "glibc"),
        (_pi(arch="riscv64"), "no runtime has a wheel for riscv64", "x86_64 and aarch64"),
        (_pi(system="Darwin", arch="arm64"), "", "need Linux"),
        (
            _pi(
                board="NVIDIA Jetson Nano Developer Kit", os="Ubuntu 18.04.6 LTS", cpu="cortex-a57",
                version="3.6.9", libc="glibc 2.27",
            ),
            "JetPack 4", "1.28.0",
        ),
    ],
    ids=["zero-w", "pi-os-32", "pi-os-32-on-64", "alpine", "riscv", "mac", "jetpack-4"],
)  # fmt: skip
def test_systems_on_which_nothing_can_run(facts: Facts, text: str, do: str) -> None:
    finding = _of(facts, "system")
    assert finding.state == "blocked"
    assert text in finding.text
    assert do in finding.do
    assert "onnxruntime" not in _states(facts)


def test_an_old_glibc_gets_the_last_release_for_it() -> None:
    jetson = _pi(
        board="NVIDIA Jetson Nano Developer Kit", os="Ubuntu 18.04.6 LTS", cpu="cortex-a57",
        version="3.11.9", libc="glibc 2.27",
    )  # fmt: skip
    assert examine(jetson).obstacles == ()
    assert "1.28.0 is the last for glibc 2.27" in _of(jetson, "onnxruntime").text
    assert _of(jetson, "openvino").state == "note"
    assert "glibc from 2.31 on" in _of(jetson, "openvino").do
    jetpack5 = _pi5(os="Ubuntu 20.04.6 LTS", version="3.11.9", libc="glibc 2.31")
    assert "2025.2.0 is the last" in _of(jetpack5, "openvino").text
    assert _of(jetpack5, "onnxruntime").text == "not installed"


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({"version": "3.9.2"}, "blocked", "older than 3.11"),
        ({"version": "3.13.5"}, "ok", "3.13.5"),
        ({"implementation": "pypy"}, "blocked", "CPython"),
        ({"free_threaded": True, "version": "3.14.0"}, "note", "free-threaded"),
    ],
)
def test_pythons(changes: dict[str, Any], state: str, text: str) -> None:
    finding = _of(_pi(**changes), "Python")
    assert finding.state == state
    assert text in finding.text


def test_a_python_that_is_too_new_for_any_wheel() -> None:
    states = _states(_pi(version="3.16.0"))
    assert (states["onnxruntime"], states["openvino"]) == ("blocked", "blocked")
    assert "Python 3.10 to 3.14" in _of(_pi(version="3.16.0"), "onnxruntime").do
    installed = _pi(version="3.16.0", installed={"openvino": "2027.0.0"})
    assert (_states(installed)["onnxruntime"], _states(installed)["openvino"]) == ("note", "note")


def test_old_pcs() -> None:
    no_avx2 = _pc("ssse3 sse4_1 sse4_2 popcnt cx16 avx", installed={"openvino": "2026.4.0"})
    assert _of(no_avx2, "openvino").state == "note"
    assert "AVX2" in _of(no_avx2, "openvino").text
    core2 = _pc("ssse3 sse4_1", installed={"numpy": "2.4.6", "onnxruntime": "1.32.0"})
    assert _of(core2, "numpy").state == "blocked"
    assert _of(core2, "numpy").do == "pip install 'numpy<2.4.0'"
    assert _of(_pc("ssse3 sse4_1"), "numpy").state == "note"
    assert "numpy" not in _states(_pc("ssse3", installed={"numpy": "2.3.5"}))
    assert "numpy" not in _states(_pc())


def test_environments() -> None:
    system = {"own_environment": False, "managed_by_system": True}
    assert "python3 -m venv" in _of(_pi(**system), "environment").do
    assert "environment" not in _states(_pi(**system, installed={"mvp-edge": "0.1.0"}))
    lacking = _pi(own_environment=False, lacks=["venv", "ensurepip"])
    assert _of(lacking, "environment").do == "sudo apt install python3-venv"
    assert "300 MiB are needed" in _of(_pi(own_environment=False, disk_free=10**8), "disk").text


@pytest.mark.parametrize(
    ("changes", "device", "state"),
    [
        ({}, "rpi4", "ok"),
        ({"free": "150000"}, None, "ok"),
        ({"free": "100000"}, "rpi4", "blocked"),  # 77 MiB and the profile's 64
        ({"free": "100000", "swap": "200000"}, "rpi4", "note"),
        ({"free": "60000"}, None, "blocked"),
        ({"free": "100000", "installed": {"openvino": "2026.4.1"}}, None, "blocked"),
        ({"files": {"sys/fs/cgroup/memory.max": "50000000"}}, None, "blocked"),
        ({"files": {"sys/fs/cgroup/memory.max": "max"}}, None, "ok"),
    ],
)
def test_memory(changes: dict[str, Any], device: str | None, state: str) -> None:
    assert _of(_pi(**changes), "memory", device).state == state


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("throttled=0x50005", "the board reports: under-voltage, throttled"),
        ("throttled=0x80000", "the board reported since its start: soft temperature limit"),
        ("throttled=0x20002", "the board reports: frequency capped"),
    ],
)
def test_a_throttled_board(answer: str, text: str) -> None:
    finding = _of(_pi(throttled=answer), "throttling")
    assert (finding.state, finding.text) == ("note", text)


def test_what_makes_times_uncertain() -> None:
    place = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    facts = _pi(
        files={
            place: "ondemand",
            "sys/class/thermal/thermal_zone0/temp": "81200",
            "sys/class/thermal/thermal_zone1/temp": "41200",
        }
    )
    assert "ondemand, not performance" in _of(facts, "governor").text
    assert _of(facts, "temperature").text.startswith("81 °C")
    quiet = _states(_pi(files={place: "performance"}, throttled="throttled=0x0"))
    assert not {"governor", "temperature", "throttling"} & set(quiet)
    limited = _pi(files={"sys/fs/cgroup/cpu.max": "150000 100000"})
    texts = [one.text for one in examine(limited).findings if one.subject == "processor"]
    assert texts[1] == "this control group may use 1.5 cores only"
    emulated = _pi(program="/usr/bin/qemu-aarch64-static")
    texts = [one.text for one in examine(emulated).findings if one.state == "note"]
    assert texts == ["emulated by qemu-aarch64-static: labels are right, times say nothing"]


def test_the_machine_is_held_against_the_profile() -> None:
    assert _of(_pi(), "profile", "rpi4").state == "ok"
    finding = _of(_pi(), "profile", "intel-n100")
    assert finding.state == "note"
    assert "architecture aarch64, not x86_64" in finding.text


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    st.lists(st.integers(0, 3000), min_size=1),
)
def test_releases_are_ordered_as_pip_orders_them(one: list[int], other: list[int]) -> None:
    first, second = (".".join(map(str, numbers)) for numbers in (one, other))
    if len(one) == len(other):
        assert (release(first) < release(second)) is (Version(first) < Version(second))


def test_what_follows_the_numbers_of_a_release_is_left_out() -> None:
    assert release("2026.4.0-22959-abc") == (2026, 4, 0)
    assert release("1.24.0rc1") == (1, 24, 0)
    assert release("3.13.0+") == (3, 13, 0)


def test_the_table_and_the_profiles_agree() -> None:
    table = known()
    for row in (*table.wheels, *table.trouble):
        assert row.last is None or release(row.first) <= release(row.last)
    for runtime in table.runtimes:
        for arch in ("aarch64", "x86_64"):
            rows = [row for row in table.wheels if row.package == runtime and arch in row.arch]
            assert [row.last for row in rows].count(None) == 1, "one row holds for the newest"
            ends = [(release(row.first), release(row.last or "9999")) for row in rows]
            assert all(a[1] < b[0] for a, b in pairwise(ends))
    (row,) = [row for row in table.trouble if row.package == "onnxruntime"]
    for name in shipped_profiles():
        profile = load_profile(name)
        old = profile.hardware.arch == "aarch64" and "asimddp" in profile.hardware.lacks
        assert (f"onnxruntime=={row.first}" in profile.runtime.denylist) is old


def _run(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["mvp-edge", "doctor", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "look_here", _pi)
    assert _run("--device", "rpi4", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0].startswith("ok       system")
    assert told.out.splitlines()[-1].startswith("ok       profile")

    monkeypatch.setattr(doctor, "look_here", lambda: _pi(arch="armv6l", bits=32))
    assert _run("--json", monkeypatch=monkeypatch) == 2
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert facts["blocked"] is True
    assert facts["findings"][0]["state"] == "blocked"
    assert facts["findings"][0]["source"].startswith("https://")
    *_, line = told.err.splitlines()
    assert line.startswith("mvp-edge: nothing can run here: system: ")
    assert _run("--device", "rpi9", monkeypatch=monkeypatch) == 2
    assert "rpi9" in capsys.readouterr().err


def test_another_machine_is_asked_by_its_own_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Host:
        def python(self, program: str) -> str:
            command = [sys.executable, "-I", "-c", program]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @contextmanager
    def connect(target: str, progress: object) -> Iterator[Host]:
        assert target == "pi@board"
        yield Host()

    monkeypatch.setattr(doctor, "connect", connect)
    assert _run("--on", "pi@board", "--json", monkeypatch=monkeypatch) == 0
    subjects = [one["subject"] for one in json.loads(capsys.readouterr().out)["findings"]]
    assert {"system", "Python", "memory", "processor"} <= set(subjects)


def test_this_very_machine() -> None:
    facts = doctor.look_here()
    assert facts.python.tried["onnxruntime"].code == 0
    assert facts.python.installed["onnxruntime"]
    assert facts.ram_free > 2**20
    assert examine(facts).obstacles == ()
