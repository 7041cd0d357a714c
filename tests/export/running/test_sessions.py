import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.running import sessions
from mvp_edge_export.running.sessions import (
    RUNTIMES,
    OnnxRuntimeSession,
    OpenVinoSession,
    choose_runtime,
    installed_runtimes,
    open_session,
)


def test_the_runtimes_agree_in_float32(bundle: Bundle, digits: Any) -> None:
    inputs = bundle.tensor(digits.test[:9])
    onnx, vino = bundle.model("onnx"), bundle.model("openvino")

    plain = OnnxRuntimeSession(onnx, optimise=False).run(inputs)
    optimised = OnnxRuntimeSession(onnx, threads=2).run(inputs)
    openvino = OpenVinoSession(vino, threads=2, arithmetic="f32")

    assert plain.shape == (9, 3)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(optimised, plain, atol=1e-4)
    np.testing.assert_allclose(openvino.run(inputs), plain, atol=1e-4)
    assert openvino.arithmetic == "f32"


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_session_says_what_it_is(bundle: Bundle, digits: Any, runtime: str) -> None:
    session = open_session(bundle, runtime, threads=2)

    assert session.name == runtime
    assert session.version == __import__(runtime).__version__.split("-")[0]
    assert session.arithmetic in ("f32", "bf16", "f16")
    assert session.options["threads"] == 2
    # One result does not lie in the memory of the next.
    first, second = (session.run(bundle.tensor(digits.test[k : k + 1])) for k in (0, 1))
    assert not np.array_equal(first, second)


def test_the_unpruned_network_is_another_one(bundle: Bundle, digits: Any) -> None:
    inputs = bundle.tensor(digits.test[:1])
    pruned = open_session(bundle, "onnxruntime").run(inputs)
    unpruned = open_session(bundle, "onnxruntime", baseline=True).run(inputs)
    assert not np.allclose(pruned, unpruned)


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_missing_runtime_names_its_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)

    with pytest.raises(BadInput) as caught:
        open_session(bundle, runtime)

    assert str(caught.value) == (f"{runtime} is not installed: pip install 'mvp-edge[{runtime}]'")


def test_a_runtime_for_another_machine_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('GLIBC_2.34 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)

    with pytest.raises(BadInput, match="cannot be imported on this machine: GLIBC"):
        open_session(bundle, "onnxruntime")


def test_the_first_installed_runtime_is_taken(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_runtime(bundle) == installed_runtimes()[0] == "onnxruntime"
    monkeypatch.setattr(sessions, "installed_runtimes", lambda: ["openvino"])
    assert open_session(bundle).name == "openvino"
    monkeypatch.setattr(sessions, "installed_runtimes", list)
    with pytest.raises(BadInput, match=r"'mvp-edge\[onnxruntime\]' or .*'mvp-edge\[openvino\]'"):
        open_session(bundle)


def test_float16_weights_are_openvinos(bundle: Bundle, digits: Any) -> None:
    inputs = bundle.tensor(digits.test[:1])
    halved, whole = open_session(bundle, precision="fp16"), open_session(bundle, "openvino")
    assert halved.name == "openvino"
    apart = np.abs(halved.run(inputs) - whole.run(inputs)).max()
    assert 0 < apart < 0.2  # another file, the same network
    with pytest.raises(BadInput, match=r"^precision fp16: onnxruntime has fp32, int8"):
        open_session(bundle, "onnxruntime", precision="fp16")
    with pytest.raises(BadInput, match="no unpruned network in format openvino-fp16"):
        open_session(bundle, "openvino", baseline=True, precision="fp16")


def test_an_unknown_runtime(bundle: Bundle) -> None:
    with pytest.raises(BadInput, match="unknown runtime 'tflite': choose one of onnxruntime, ope"):
        open_session(bundle, "tflite")


@pytest.mark.parametrize(("runtime", "suffix"), [("onnxruntime", "onnx"), ("openvino", "xml")])
def test_a_file_that_is_no_model(tmp_path: Path, runtime: str, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x00 not a model")

    with pytest.raises(BadInput) as caught:
        RUNTIMES[runtime](path)

    assert f"{path}: {runtime} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ctrl_c_after_several_sessions_is_an_interruption_not_a_crash(bundle: Bundle) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from mvp_edge_export.running.sessions import OpenVinoSession\n"
        "for _ in range(3): session = OpenVinoSession(Path(sys.argv[1]))\n"  # the next before the last is gone
        "del session\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(bundle.model("openvino"))],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "interrupted\n", "")
