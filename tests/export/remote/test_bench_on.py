"""`bench --on` against a real sshd: the result comes back, nothing is copied twice, nothing is left."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import load_profile
from mvp_edge_export.remote.bench import RemoteBench, usable
from mvp_edge_export.remote.host import connect
from mvp_edge_export.running.doctor import Facts, look_at
from tests.support.sshd import ALIAS, Device

QUICK = ["--seconds", "0.1", "--threads", "1"]
MAIN = "from mvp_edge.cli.main import main; main()"


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file is which: path → inode and time of the last change."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(one): (one.stat().st_ino, one.stat().st_mtime_ns) for one in files}


def command(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_result_comes_back_and_nothing_is_copied_twice(
    prepared: Device, bundle: Bundle
) -> None:
    told: list[tuple[str, float]] = []

    def measure() -> BenchResult:
        told.clear()
        return RemoteBench(bundle, QUICK, ["onnxruntime"]).run_on(
            ALIAS,
            offline=True,
            progress=lambda what, share: told.append((what, share)),
        )

    first = measure()
    assert {(cell.network, cell.runtime) for cell in first.cells} == {
        ("pruned", "onnxruntime"),
        ("baseline", "onnxruntime"),
    }
    assert first.fingerprint["models"]["model.onnx"] == bundle.manifest.files["model.onnx"].sha256
    assert any("measuring" in what for what, _ in told)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    there = contents(prepared.cache)
    second = measure()
    assert contents(prepared.cache) == there
    assert not any("copying" in what or "installing" in what for what, _ in told)
    assert second.fingerprint_sha256 == first.fingerprint_sha256
    assert prepared.left() == []


def test_the_command_line(prepared: Device, bundle_path: Path, tmp_path: Path) -> None:
    words = ("bench", str(bundle_path), "--on", ALIAS, "--offline", "--runtime", "onnxruntime")
    out = tmp_path / "there.json"
    ended = command(*words, *QUICK, "--json", "--quiet", "--out", str(out))
    printed, said = ended.communicate()
    assert ended.returncode == 0, said
    assert said == ""
    assert BenchResult.model_validate(json.loads(printed)).protocol.seconds == 0.1
    assert json.loads(out.read_text()) == json.loads(printed)


def test_another_profile_is_judged_by(prepared: Device, bundle: Bundle, tmp_path: Path) -> None:
    board = tmp_path / "board.yaml"
    board.write_text("schema: 1\nid: board\nextends: x86-laptop\nbudgets: {memory: 1MiB}\n")
    profile = load_profile(str(board))
    result = RemoteBench(bundle, QUICK, ["onnxruntime"], profile).run_on(ALIAS, offline=True)
    assert result.profile == "board"
    assert result.profile_sha256 == profile.sha256
    # The budget is missed, which is for the command that asked to say.
    assert [one.verdict for one in result.verdicts if one.budget == "memory"] == ["FAIL"]


def test_what_cannot_run_there_is_said_before_anything_is_copied(
    start: Callable[..., Device], bundle: Bundle
) -> None:
    one = start()
    cost = bundle.manifest.cost.model_copy(update={"weight_bytes": 8 * 2**40})
    huge = replace(bundle, manifest=bundle.manifest.model_copy(update={"cost": cost}))
    with pytest.raises(BadInput, match=rf"^{ALIAS}: memory: .* about 8 TiB are needed"):
        RemoteBench(huge, QUICK, ["onnxruntime"]).run_on(ALIAS)
    assert not (one.cache / "files").exists()


def test_runtimes_that_cannot_run_there_are_left_out(start: Callable[..., Device]) -> None:
    def with_libc(facts: Facts, libc: str) -> Facts:
        machine = facts.machine.model_copy(update={"arch": "aarch64"})
        python = facts.python.model_copy(update={"libc": libc})
        return facts.model_copy(update={"machine": machine, "python": python})

    start()
    told: list[str] = []
    both = ["openvino", "onnxruntime"]
    with connect(ALIAS, lambda what, share: told.append(what)) as host:
        facts = look_at(host)
        assert usable(host, facts, both, 0, all_of_them=True) == both
        # OpenVINO's wheels for ARM want a C library of 2.31, ONNX Runtime's one of 2.27.
        older, oldest = with_libc(facts, "glibc 2.28"), with_libc(facts, "glibc 2.20")
        assert usable(host, older, both, 0, all_of_them=False) == ["onnxruntime"]
        with pytest.raises(
            BadInput, match=rf"^{ALIAS}: openvino: no wheel for Python .* and glibc"
        ):
            usable(host, older, both, 0, all_of_them=True)
        with pytest.raises(
            BadInput, match=rf"^{ALIAS}: openvino: no wheel for Python .* and glibc"
        ):
            usable(host, oldest, both, 0, all_of_them=False)
    assert facts.machine.cpu == this_machine().cpu
    assert any("left out, openvino: no wheel" in line for line in told)


def test_a_runtime_that_the_bundle_has_no_file_for(bundle: Bundle) -> None:
    models = {"onnx": bundle.manifest.models["onnx"]}
    only = replace(bundle, manifest=bundle.manifest.model_copy(update={"models": models}))
    with pytest.raises(BadInput, match=r"it has no files for openvino \(only for onnxruntime\)"):
        RemoteBench(only, runtimes=["openvino"]).run_on("nowhere.invalid")
    with pytest.raises(BadInput, match=r"cortex-m runs none of the runtimes; --runtime decides"):
        RemoteBench(bundle, profile=load_profile("cortex-m")).run_on("nowhere.invalid")


def test_offline_is_about_a_host(bundle_path: Path) -> None:
    ended = command("bench", str(bundle_path), "--offline")
    _, said = ended.communicate()
    assert ended.returncode == 2
    assert said.splitlines() == ["mvp-edge: --offline is about a host: --on HOST --offline"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_process(
    prepared: Device, bundle_path: Path, number: signal.Signals
) -> None:
    words = ("--on", ALIAS, "--offline", "--runtime", "onnxruntime", "--seconds", "60")
    running = command("bench", str(bundle_path), *words)
    assert running.stderr is not None
    said = ""
    while "measuring" not in said:
        line = running.stderr.readline()
        assert line, said
        said += line
    assert any("measuring.child" in one for one in prepared.running().values())
    running.send_signal(number)
    _, rest = running.communicate(timeout=30)
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert "interrupted" in rest
        assert prepared.running() == {}  # at once: it waited for that
    assert prepared.nothing_runs()
    assert prepared.left() == []
