"""Bundles that lie, are from elsewhere, or hostile: one clear line, whoever computed the hashes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.running.sessions import FORMATS, open_session
from mvp_edge_export.storage import sha256_file


def _edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    listing = bundle / "manifest.json"
    manifest = json.loads(listing.read_text())
    change(manifest)
    listing.write_text(json.dumps(manifest))


def _rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Change a file, and list it as it now is."""
    (bundle / name).write_bytes(content)
    entry = {"sha256": sha256_file(bundle / name), "bytes": len(content)}
    _edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def _onnx(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / "model.onnx")
    change(model)
    _rewrite(bundle, "model.onnx", model.SerializeToString())


def _xml(bundle: Path, old: str, new: str) -> None:
    text = (bundle / "model.xml").read_text()
    assert old in text
    _rewrite(bundle, "model.xml", text.replace(old, new, 1).encode())


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].op_type = "Launch"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def _second_input(model: onnx.ModelProto) -> None:
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])
    model.graph.input.append(more)


def _second_output(model: onnx.ModelProto) -> None:
    first = next(iter(model.graph.node)).output[0]
    model.graph.output.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, None))


ONNX: dict[str, tuple[Callable[[Path], object], str]] = {
    "a custom operator": (lambda b: _onnx(b, _custom), "com.example"),
    "an opset of the future": (
        lambda b: _onnx(b, lambda m: setattr(m.opset_import[0], "version", 99)), "Opset 99",
    ),
    "a file format of the future": (
        lambda b: _onnx(b, lambda m: setattr(m, "ir_version", 99)), "IR version: 99",
    ),
    "an operator that is none": (
        lambda b: _onnx(b, lambda m: setattr(m.graph.node[0], "op_type", "Convolve")), "Convolve",
    ),
    "two inputs": (lambda b: _onnx(b, _second_input), "2 inputs or outputs"),
    "two outputs": (lambda b: _onnx(b, _second_output), "2 inputs or outputs"),
    "noise": (lambda b: _rewrite(b, "model.onnx", bytes(range(256)) * 4), "not an ONNX model"),
}  # fmt: skip
OPENVINO: dict[str, tuple[Callable[[Path], object], str]] = {
    "an IR of the past": (lambda b: _xml(b, 'version="11"', 'version="7"'), "an IR of version 7; openvino"),
    "an IR of the future": (lambda b: _xml(b, 'version="11"', 'version="99"'), "an IR of version 99"),
    "an operator that is none": (
        lambda b: _xml(b, 'type="Convolution"', 'type="Launch"'), "Launch",
    ),
    "an opset of the future": (lambda b: _xml(b, '"opset1"', '"opset99"'), "opset99"),
    "weights that end early": (
        lambda b: _rewrite(b, "model.bin", (b / "model.bin").read_bytes()[:100]), "model.xml",
    ),
    "noise": (lambda b: _rewrite(b, "model.xml", b"<net" * 9), "model.xml"),
}  # fmt: skip
BOTH: dict[str, tuple[Callable[[Path], object], str]] = {
    "too few labels": (
        lambda b: _edit(b, lambda m: m["labels"].pop()), "2 labels for a network of 3 classes",
    ),
    "too many labels": (
        lambda b: _edit(b, lambda m: m["labels"].append("three")),
        "4 labels for a network of 3 classes",
    ),
    "images of another size": (
        lambda b: _edit(b, lambda m: m["preprocess"].update(size=24)),
        "takes images of 3 x 16 x 16, but the manifest prepares them as 3 x 24 x 24",
    ),
}  # fmt: skip
CASES = [
    *(("onnxruntime", case, *what) for case, what in (ONNX | BOTH).items()),
    *(("openvino", case, *what) for case, what in (OPENVINO | BOTH).items()),
]


@pytest.mark.parametrize(
    ("runtime", "case", "spoil", "culprit"), CASES, ids=[f"{one[0]}-{one[1]}" for one in CASES]
)
def test_a_network_that_cannot_be_run(
    runtime: str, case: str, spoil: Callable[[Path], object], culprit: str, copied: Path
) -> None:
    spoil(copied)
    with pytest.raises(BadInput) as caught:
        open_session(load_bundle(copied), runtime, precision="fp32")
    message = str(caught.value)
    assert culprit in message
    assert len(message.splitlines()) == 1
    assert copied.name in message
    # The other runtime's file is whole: it runs.
    if case in BOTH:
        return
    (other,) = set(FORMATS) - {runtime}
    if case != "noise" or runtime == "openvino":
        assert open_session(load_bundle(copied), other, precision="fp32").gives == (1, 3)


def _pipe(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "of the future": (lambda b: _edit(b, lambda m: m.update(schema=99)), "later mvp-edge"),
    "of the past": (lambda b: _edit(b, lambda m: m.update(schema=1)), "earlier mvp-edge"),
    "weights that are not listed": (
        lambda b: _edit(b, lambda m: m["files"].pop("model.bin")),
        "model.bin is a model but not among files",
    ),
    "no labels": (lambda b: _edit(b, lambda m: m.update(labels=[])), "labels: "),
    "nested without end": (
        lambda b: (b / "manifest.json").write_text("[" * 100_000), "nested too deeply",
    ),
    "no text": (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe{}"), "cannot be read"),
    "a list": (lambda b: (b / "manifest.json").write_text("[]"), "manifest.json"),
    "a pipe": (_pipe, "no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_is_none(case: str, copied: Path) -> None:
    spoil, culprit = MANIFESTS[case]
    spoil(copied)
    with pytest.raises(BadInput) as caught:
        load_bundle(copied)
    message = str(caught.value)
    assert culprit in message
    assert "manifest.json" in message
    assert len(message.splitlines()) == 1
