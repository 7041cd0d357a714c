"""The light half where nothing else is: clean virtual environments, made by pip from the wheel.

``test_light_install`` holds the same without a package index, with links to what is installed here.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.device.light_install import (
    LIMIT,
    Unavailable,
    beside,
    environment,
    listing,
    wheel,
)

HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "fvcore", "nltk", "matplotlib"}
HEAVY |= {"nncf", "safetensors", "scikit-learn", "scipy", "jinja2"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


# The Pythons of the previous and of the current Raspberry Pi OS; every pair of Python and runtime
# is tried by `python -m benchmarks.device.light_install`.
@pytest.fixture(
    scope="module", params=[("3.11", "onnxruntime"), ("3.13", "openvino")], ids="-".join
)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runtime, and the Python of an environment with the light half and that runtime."""
    version, runtime = request.param
    folder = tmp_path_factory.mktemp("clean")
    try:
        python = environment(version, wheel(folder), runtime, folder / "venv")
    except Unavailable as error:
        pytest.skip(str(error))
    return runtime, python


@pytest.fixture
def run(device: Any, tmp_path: Path) -> Run:
    """Runs a program of the environment, in a folder where nothing is."""

    def run(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [device[1].with_name(program), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=own)

    return run


def test_nothing_heavy_comes_with_it_and_it_is_small(device: Any) -> None:
    runtime, python = device
    installed = listing(python)
    assert {"mvp-edge", "numpy", "pillow", "pydantic", runtime} <= set(installed)
    assert not HEAVY & set(installed)
    counted = beside(installed, runtime)
    assert {"mvp-edge", "pydantic-core", "rich"} <= set(counted)
    assert not {"numpy", "pillow", runtime, "protobuf"} & set(counted)
    assert sum(counted.values()) <= LIMIT


def test_a_bundle_is_opened_run_timed_and_the_machine_examined(
    device: Any, run: Run, bundle_path: Path, digits: Any, tmp_path: Path
) -> None:
    runtime, _ = device
    for index in range(3):
        Image.fromarray(digits.test[index]).save(tmp_path / f"{index}.png")
    predicted = run("mvp-edge", "predict", bundle_path, tmp_path, "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert len(json.loads(predicted.stdout)["predictions"]) == 3

    listed = run("mvp-edge", "device", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert len(json.loads(listed.stdout)["profiles"]) == 10

    examined = run("mvp-edge", "doctor", "--device", "rpi4", "--json")
    assert examined.returncode == 0, examined.stderr
    found = {one["subject"]: one for one in json.loads(examined.stdout)["findings"]}
    assert found[runtime]["state"] == "ok"
    assert found[runtime]["text"].endswith("starts")

    timed = run(
        "mvp-edge", "bench", bundle_path, "--seconds", "0.3", "--threads", "1", "--out", "b.json",
        "--json",
    )  # fmt: skip
    assert timed.returncode in (0, 3), timed.stderr  # 3: a budget of the fixture's board was missed
    cells = json.loads(timed.stdout)["cells"]
    assert {cell["runtime"] for cell in cells} == {runtime}
    assert all(cell["latency"]["p50"] > 0 for cell in cells)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("prune", "--device", "rpi4", "--task", "t"), "server"),
        (("zoo", "build", "--backbone", "resnet18", "--tasks", "t", "--zoo", "z"), "server"),
        (("export", "runs/001"), "server"),
        (("report", "runs/001"), "server"),
        (("demo",), "demo"),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else one,
)
def test_what_is_for_the_server_says_so_in_one_line(
    run: Run, words: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    ended = run("mvp-edge", *words, "--quiet")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mvp-edge: ")
    assert line.endswith(f"pip install 'mvp-edge[{extra}]'")
    assert list(tmp_path.iterdir()) == []
