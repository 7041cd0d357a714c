"""Runtimes that die, hang or find no memory: really, in the measuring processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.bench import bench
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.running import sessions
from mvp_edge_export.running.sessions import memory_needed, open_session

Faked = Callable[[str], None]

AT_IMPORT = "import os, signal; os.kill(os.getpid(), signal.{signal})"

REAL = """
import importlib, os, signal, sys, time
sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules["onnxruntime"]
import onnxruntime as real

class InferenceSession(real.InferenceSession):
    runs = 0

    def __init__(self, path, *args, **kwargs):
        self.bad = "int8" in path
        super().__init__(path, *args, **kwargs)

    def run(self, *args, **kwargs):
        self.runs += 1
        if self.bad and self.runs == 40:
            {act}
        return super().run(*args, **kwargs)

{before}
real.InferenceSession = InferenceSession
"""


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faked:
    """Puts an onnxruntime of this content first on the path of the measuring processes."""

    def write(content: str) -> None:
        (tmp_path / "fake" / "onnxruntime").mkdir(parents=True)
        (tmp_path / "fake" / "onnxruntime" / "__init__.py").write_text(content)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"), prepend=":")

    return write


def _bench(bundle: Bundle, **changes: Any) -> BenchResult:
    return bench(bundle, **{"threads": [1], "seconds": 0.05, **changes})


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        ("SIGILL", "illegal instruction: this release of onnxruntime needs instructions that the"),
        ("SIGSEGV", "segmentation fault"),
        ("SIGKILL", "was killed, as the kernel does when memory runs out"),
        ("SIGXCPU", "was ended by signal 24"),
    ],
)
def test_a_runtime_that_dies_is_recorded_and_the_others_are_measured(
    bundle: Bundle, faked: Faked, signal: str, words: str
) -> None:
    faked(AT_IMPORT.format(signal=signal))

    result = _bench(bundle)

    assert {cell.runtime for cell in result.cells} == {"openvino"}
    failed = [(one.network, one.precision, one.threads) for one in result.failures]
    assert failed == [("pruned", "fp32", 1), ("pruned", "int8", 1), ("baseline", "fp32", 1)]
    assert all(words in one.why for one in result.failures)
    assert "openvino" in result.judged
    assert BenchResult.model_validate(result.model_dump(mode="json", by_alias=True)) == result


def test_when_nothing_runs_it_is_an_error(bundle: Bundle, faked: Faked) -> None:
    faked(AT_IMPORT.format(signal="SIGILL"))
    with pytest.raises(BadInput) as caught:
        _bench(bundle, runtimes=["onnxruntime"])
    assert "nothing could be measured: pruned fp32 in onnxruntime, 1 thread: onnxruntime died" in (
        str(caught.value)
    )
    assert "see mvp-edge doctor" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_dies_in_the_middle_of_a_round_does_not_stop_the_others(
    bundle: Bundle, faked: Faked
) -> None:
    faked(REAL.format(act="os.kill(os.getpid(), signal.SIGBUS)", before=""))

    result = _bench(bundle, runtimes=["onnxruntime"])

    (failure,) = result.failures
    assert (failure.precision, failure.network) == ("int8", "pruned")
    assert "bus error" in failure.why
    measured = [(cell.network, cell.precision) for cell in result.cells]
    assert measured == [("pruned", "fp32"), ("baseline", "fp32")]
    assert all(cell.latency.n >= 10 for cell in result.cells)


def test_one_that_hangs_is_given_up(
    bundle: Bundle, faked: Faked, monkeypatch: pytest.MonkeyPatch
) -> None:
    faked(REAL.format(act="time.sleep(1000)", before=""))
    monkeypatch.setattr("mvp_edge_export.measuring.rounds.PATIENCE", 5)

    result = _bench(bundle, runtimes=["onnxruntime"])

    (failure,) = result.failures
    assert failure.precision == "int8"
    assert "hangs" in failure.why
    assert len(result.cells) == 2


def test_an_address_space_too_small_is_said(bundle: Bundle, faked: Faked) -> None:
    limit = (
        "import resource\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20),) * 2)"
    )
    faked(REAL.format(act="pass", before=limit))

    result = _bench(bundle)

    assert {cell.runtime for cell in result.cells} == {"openvino"}
    assert len(result.failures) == 3
    assert all("memory" in one.why for one in result.failures), result.failures


def test_what_memory_does_not_suffice_for_is_not_started(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = memory_needed(bundle.manifest.cost, "onnxruntime")
    monkeypatch.setattr(sessions, "available_memory", lambda: needed)
    # OpenVINO's own part is larger.
    result = _bench(bundle)
    assert {cell.runtime for cell in result.cells} == {"onnxruntime"}
    assert {one.runtime for one in result.failures} == {"openvino"}
    assert all("of memory are needed, 78 MiB are free" in one.why for one in result.failures)

    monkeypatch.setattr(sessions, "available_memory", lambda: needed - 1)
    started: list[Any] = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(a))
    with pytest.raises(BadInput, match=r"nothing could be measured: .* of memory are needed"):
        _bench(bundle)
    with pytest.raises(BadInput, match=r"of memory are needed, .* are free: close other"):
        open_session(bundle)
    assert started == []


def test_a_kernel_that_does_not_say_what_is_free_stops_nothing(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "available_memory", lambda: None)
    assert open_session(load_bundle(bundle_path)).name == "onnxruntime"
