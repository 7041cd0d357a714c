"""The file that looks at a machine: any Python runs it, and it says how a runtime dies."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mvp_edge_export.measuring import probe
from mvp_edge_export.running.doctor import facts_from

VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def pythons() -> dict[str, str]:
    """The Pythons of this machine: those of pyenv, and on the PATH."""
    found: dict[str, str] = {}
    for version in VERSIONS:
        for own in (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python3"):
            found[version] = str(own)
        if version not in found and (path := shutil.which(f"python{version}")):
            found[version] = path
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_python_says_what_it_is(version: str) -> None:
    python = pythons().get(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    ended = subprocess.run(
        [python, "-I", "-c", Path(probe.__file__).read_text()],
        capture_output=True,
        env={"LC_ALL": "C"},
        check=True,
    )
    facts = facts_from(json.loads(ended.stdout))
    assert facts.python.version.startswith(f"{version}.")
    assert facts.system == "Linux"
    assert facts.machine.ram > 2**28
    assert facts.python.libc.startswith(("glibc 2.", "musl"))


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("pass", 0, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", -4, ""),
        ("raise ImportError('libgomp.so.1: not found')", 1, "ImportError: libgomp.so.1: not found"),
    ],
)
def test_how_an_import_ends(
    body: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe.try_import("runtime") == {"code": code, "said": said}


def test_an_import_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "PATIENCE", 0.2)
    assert probe.try_import("runtime") == {"code": None, "said": "no answer within 0 s"}


def test_the_firmware_is_asked_and_may_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.throttled() is None
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert probe.throttled() == "throttled=0x50005\n"
    program.write_text("#!/bin/sh\nexit 255\n")
    assert probe.throttled() is None


def test_what_the_kernel_handed_over_is_read(tmp_path: Path) -> None:
    assert probe.look(str(tmp_path))["hwcap"] == 0
    if sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64"):
        assert probe.look()["hwcap"] != 0
