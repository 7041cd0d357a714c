"""What `pip install mvp-edge[onnxruntime]` brings is enough for a device, and all that it uses."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[2]
START = "import sys; sys.path[:0] = sys.argv.pop(1).split(','); from mvp_edge.cli.main import main; main()"


def brought_by(name: str, extras: frozenset[str]) -> dict[str, Distribution]:
    """All distributions that pip would install for ``name[extras]``, itself included."""
    try:
        found: dict[str, Distribution] = {canonicalize_name(name): distribution(name)}
    except PackageNotFoundError:  # for another platform or Python
        return {}
    for text in requires(name) or []:
        one = Requirement(text)
        markers = one.marker is None or any(
            one.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        if markers and canonicalize_name(one.name) not in found:
            found |= brought_by(one.name, frozenset(one.extras))
    return found


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `mvp-edge` where only the distributions of the light install can be imported."""
    there = brought_by("mvp-edge", frozenset({request.param}))
    site = tmp_path_factory.mktemp("site")
    for name, installed in there.items():
        for top in {file.parts[0] for file in installed.files or () if name != "mvp-edge"}:
            if top != ".." and not (site / top).exists():  # google/ belongs to several
                (site / top).symlink_to(str(installed.locate_file(top)))
    names = {path.stem for path in site.iterdir()}
    assert {"numpy", "pydantic", request.param} <= names
    assert not {"torch", "timm", "onnx", "nltk", "fvcore", "safetensors"} & names

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = ",".join(map(str, (ROOT, ROOT / "export", site)))
        command = [sys.executable, "-S", "-c", START, path, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_a_device_predicts_with_the_light_half_alone(
    device: Any, bundle_path: Path, digits: Any, tmp_path: Path
) -> None:
    Image.fromarray(digits.test[0]).save(tmp_path / "0.png")
    ended = device("predict", str(bundle_path), str(tmp_path), "--json")
    assert ended.returncode == 0, ended.stderr
    (prediction,) = json.loads(ended.stdout)["predictions"]
    assert prediction["label"]


def test_a_device_reads_profiles_and_is_told_what_pruning_needs(
    device: Any, tmp_path: Path
) -> None:
    listed = device("device", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    refused = device("prune", "--device", "rpi4", "--task", str(tmp_path))
    assert refused.returncode == 2
    assert "mvp-edge[server]" in refused.stderr
    assert "Traceback" not in refused.stderr
