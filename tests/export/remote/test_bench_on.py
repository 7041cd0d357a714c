"""`bench --on` against a real sshd: the result comes back, nothing is copied twice, nothing is left."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import load_profile
from mvp_edge_export.remote.bench import bench_on
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
        return bench_on(
            ALIAS,
            bundle,
            QUICK,
            runtimes=["onnxruntime"],
            offline=True,
            progress=lambda what, share: told.append((what, share)),
        )

    first = measure()
    assert [(cell.network, cell.runtime) for cell in first.cells] == [
        ("pruned", "onnxruntime"),
        ("baseline", "onnxruntime"),
    ]
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
    result = bench_on(ALIAS, bundle, QUICK, runtimes=["onnxruntime"], profile=profile, offline=True)
    assert result.profile == "board"
    assert result.profile_sha256 == profile.sha256
    # The budget is missed, which is for the command that asked to say.
    assert [one.verdict for one in result.verdicts if one.budget == "memory"] == ["FAIL"]


def test_ctrl_c_leaves_no_process(prepared: Device, bundle_path: Path) -> None:
    words = ("--on", ALIAS, "--offline", "--runtime", "onnxruntime", "--seconds", "60")
    running = command("bench", str(bundle_path), *words)
    assert running.stderr is not None
    said = ""
    while "measuring" not in said:
        line = running.stderr.readline()
        assert line, said
        said += line
    assert any("measuring.child" in one for one in prepared.running().values())
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "interrupted" in rest
    assert prepared.running() == {}
    assert prepared.left() == []
