"""Reads properties of model files without loading them in a runtime.

``has_external_data`` tells whether an ONNX file stores weights in another file, and ``ir_version`` reads
the version of an OpenVINO IR.
"""

import mmap
import re
from pathlib import Path

from mvp_edge_export.errors import BadInput
from mvp_edge_export.protobuf import fields

IR_VERSIONS = ("10", "11")
"""Versions of the IR that OpenVINO 2026.4 can read; versions 7 to 12 were tested."""


def ir_version(model: Path) -> str | None:
    """Read the version of an OpenVINO IR; None if the file has none.

    OpenVINO's own error for an unsupported version does not name the version.
    """
    with model.open("rb") as stream:
        head = stream.read(4096).decode(errors="replace")
    match = re.search(r'<net\b[^>]*\bversion="([^"]{1,20})"', head)
    return match[1] if match else None


# Messages of onnx.proto that can contain tensors: message → {field number: contained message}.
_ONNX: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
_MAX_DEPTH = 64


def has_external_data(path: Path) -> bool:
    """Whether an ONNX file stores a tensor in another file.

    Only the structure of the protobuf is read, because the onnx package is not installed on devices.

    Raises:
        BadInput: the file is not protobuf.
    """
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise BadInput(f"{path}: empty; not an ONNX model")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _external(data, 0, len(data), "model", 0)
            except (IndexError, ValueError) as error:
                raise BadInput(f"{path}: not an ONNX model ({error})") from error


def _external(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    for field, wire, low, high in fields(data, start, end):
        if message == "tensor":
            if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and low != 0):
                return True
            continue
        inside = _ONNX[message].get(field) if wire == 2 else None
        if inside and _external(data, low, high, inside, depth + 1):
            return True
    return False
