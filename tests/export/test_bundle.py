import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.model_files import has_external_data
from mvp_edge_export.storage import sha256_file


def _edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    listing = bundle / "manifest.json"
    manifest = json.loads(listing.read_text())
    change(manifest)
    listing.write_text(json.dumps(manifest))


def _relist(bundle: Path, name: str) -> None:
    """Lists the file as it now is: an attacker can compute hashes too."""
    path = bundle / name
    entry = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    _edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def _refused(bundle: Path, *words: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_bundle_opens_with_all_that_a_device_needs(
    bundle: Bundle, labels: tuple[str, ...], preprocess: Any
) -> None:
    assert bundle.labels == labels
    assert bundle.preprocess == preprocess
    assert bundle.model("onnx") == bundle.path / "model.onnx"
    assert bundle.model("openvino", baseline=True) == bundle.path / "baseline" / "model.xml"
    assert bundle.manifest.kept == {"layer1": (0, 2, 5)}
    with pytest.raises(BadInput, match=r"no network in format tflite \(it has onnx, openvino"):
        bundle.model("tflite")


def test_the_input_is_the_shared_preprocessing(bundle: Bundle, digits: Any) -> None:
    pixels = digits.test[:4]
    np.testing.assert_array_equal(bundle.tensor(pixels), bundle.preprocess.normalise(pixels))


def test_not_a_bundle(tmp_path: Path) -> None:
    _refused(tmp_path / "missing", "missing is not a directory")
    _refused(tmp_path, "manifest.json does not exist")
    (tmp_path / "manifest.json").write_text('{"schema": 1,')
    _refused(tmp_path, "manifest.json:1 is not JSON")
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    _refused(tmp_path, "manifest.json: labels: Field required")


@pytest.mark.parametrize("name", ["model.onnx", "model.bin", "baseline/model.xml"])
def test_a_damaged_file_is_named(copied: Path, name: str) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _refused(copied, name, "is damaged")

    path.write_bytes(content[:-1])
    _refused(copied, name, f"{len(content) - 1} bytes instead of {len(content)}")

    path.unlink()
    _refused(copied, name, "is missing")


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "a/../../b", "a\\b", "./a"])
def test_no_path_leads_out(copied: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["model.onnx"]
        manifest["models"]["onnx"] = name

    _edit(copied, change)
    _refused(copied, "leads out of the bundle")


def test_no_link_is_followed(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (copied / "baseline").rename(outside)
    (copied / "baseline").symlink_to(outside)
    _refused(copied, "baseline is a symbolic link")

    (copied / "model.onnx").rename(tmp_path / "model.onnx")
    (copied / "model.onnx").symlink_to(tmp_path / "model.onnx")
    _refused(copied, "is a symbolic link")

    (copied / "manifest.json").rename(tmp_path / "manifest.json")
    (copied / "manifest.json").symlink_to(tmp_path / "manifest.json")
    _refused(copied, "manifest.json is a symbolic link")


def test_a_file_that_is_not_listed_is_not_looked_at(copied: Path) -> None:
    os.mkfifo(copied / "pipe")
    (copied / "extra.onnx").write_bytes(b"anything")
    assert load_bundle(copied).labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["models"].update(onnx="other.onnx"), "other.onnx is a model but not among"),
        (lambda m: m["preprocess"].update(size=0), "size is 0"),
        (lambda m: m["profile"]["budgets"].update(file=1), "profile_sha256"),
        (lambda m: m.update(code="import os"), "code: Extra inputs"),
        (lambda m: m.update(schema="2"), "schema: "),
        (
            lambda m: m.update(schema=3),
            "written by a later mvp-edge (its schema is 3, this version",
        ),
        (lambda m: m.update(schema=1), "written by an earlier mvp-edge (its schema is 1"),
        (lambda m: m["models"].pop("onnx-int8"), "models and the candidates that were kept"),
        (
            lambda m: m.update(
                undecided="",
                shipped={"runtime": "tflite", "precision": "fp32", "threads": 1, "why": ""},
            ),
            "shipped is not a candidate that was kept",
        ),
    ],
)
def test_an_edited_manifest(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(copied, change)
    _refused(copied, message)


def test_weights_in_another_file_are_refused(copied: Path, tmp_path: Path) -> None:
    model = onnx.load(copied / "model.onnx")
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    onnx.external_data_helper.set_external_data(largest, location="../../etc/shadow")
    largest.ClearField("raw_data")
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    _relist(copied, "model.onnx")

    _refused(copied, "model.onnx stores its weights in another file")


def _model(tensor: TensorProto, *, place: str) -> onnx.ModelProto:
    """A model with the tensor in one of the places where ONNX allows one."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    if place == "initializer":
        nodes = [helper.make_node("Identity", ["t"], ["y"])]
        return helper.make_model(helper.make_graph(nodes, "g", [], [out], [tensor]))
    if place == "attribute":
        return helper.make_model(helper.make_graph([constant], "g", [], [out]))
    branch = helper.make_graph([constant], "branch", [], [out])
    condition = helper.make_node(
        "Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([condition, choice], "g", [], [out]))
    if place == "function":
        opsets = [helper.make_opsetid("", 20)]
        function = helper.make_function("local", "f", [], ["y"], [constant], opsets)
        model = helper.make_model(helper.make_graph([], "g", [], []), functions=[function])
    return model


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function"])
def test_external_data_is_found_wherever_it_may_lie(tmp_path: Path, place: str) -> None:
    path = tmp_path / "model.onnx"
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    path.write_bytes(_model(tensor, place=place).SerializeToString())
    assert not has_external_data(path)

    onnx.external_data_helper.set_external_data(tensor, location="elsewhere")
    path.write_bytes(_model(tensor, place=place).SerializeToString())
    assert has_external_data(path)


@given(content=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_answered_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{os.getpid()}.onnx"
    path.write_bytes(content)
    with suppress(BadInput):  # nothing else may come out
        assert has_external_data(path) in (True, False)


def test_the_light_half_imports_nothing_heavy() -> None:
    heavy = "torch torchvision timm onnx onnxscript onnxruntime openvino safetensors fvcore"
    program = (
        "import sys; from mvp_edge_export import bundle, verified;"
        "from mvp_edge_export.running import predict, sessions;"
        "from mvp_edge_export.measuring import bench;"
        f"print(*(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_it_prints_what_it_holds(bundle: Bundle) -> None:
    first, *models, choice = repr(bundle).splitlines()
    assert str(bundle.path) in first
    assert "3 labels, the unpruned network beside it" in first
    assert [line.split()[0] for line in models] == [*bundle.manifest.models]
    assert all("% top-1 in" in line for line in models)
    assert "to ship: undecided: measured on no test-board yet" in choice
