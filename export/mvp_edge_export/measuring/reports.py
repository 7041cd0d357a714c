"""What the runtimes report about the layers that they ran; in the measuring process.

    ONNX Runtime   profile (µs of every operator of every run) + the graph as it runs it
    OpenVINO       counters (µs of every layer, mean of all runs) + its execution graph
        → Layer: time, multiply-adds and bytes, from the shapes that were really computed

A runtime fuses, reorders and pads: its layers are not those of the network. All comes from its own
reports, so that nothing but the runtime has to be installed. Both count whole microseconds, rounded
down; half of one is added for each rounding.
"""

import json
import mmap
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge_export.errors import BadInput
from mvp_edge_export.protobuf import fields, varint

Shape = tuple[int, ...]

_SKIPPED_RUNS = 20
"""Runs that do not count: kernels are made, caches filled."""


@dataclass(frozen=True)
class Layer:
    """A layer as a runtime ran it."""

    name: str
    op: str
    """In the runtime's words."""
    kernel: str
    """Which implementation of it, if the runtime says."""
    arithmetic: str
    """``f32``, ``bf16``, ``f16`` or ``i8``."""
    ms: float
    """The typical time of one run in milliseconds."""
    macs: int
    """Multiply-adds with the padding that the runtime adds; 0 where it only moves or compares."""
    weight_bytes: int
    activation_bytes: int
    """Read and written."""
    output: Shape


@dataclass(frozen=True)
class Tensor:
    """What is known about an input or output of a layer."""

    shape: Shape
    size: int
    """Bytes of an element."""

    @property
    def bytes(self) -> int:
        """Of the whole tensor."""
        return prod(self.shape) * self.size


def layers_of(session: Any, run: Callable[[], int], runs: int) -> dict[str, Any]:
    """Run a session that was opened with ``profile``, and say what its layers took.

    Args:
        session: of either runtime; it cannot run afterwards.
        run: runs it once and returns the nanoseconds.
        runs: how often.

    Returns:
        ``runs``; ``whole_ms`` and ``mean_ms``, median and mean of these same runs, slowed down by
        the profile; and the fields of every ``Layer``, in the order in which they ran.
    """
    read = {"onnxruntime": _onnxruntime, "openvino": _openvino}[session.name]
    whole, layers = read(session, run, runs)
    return {
        "runs": runs,
        "whole_ms": float(np.median(whole)) / 1e6,
        "mean_ms": float(np.mean(whole)) / 1e6,
        "layers": [vars(layer) for layer in layers],
    }


def _onnxruntime(session: Any, run: Callable[[], int], runs: int) -> tuple[list[int], list[Layer]]:
    for _ in range(_SKIPPED_RUNS):
        run()
    whole = [run() for _ in range(runs)]
    profile = Path(session.native.end_profiling())
    graph = graph_weights(profile.parent / "graph.onnx")
    times: dict[int, list[int]] = {}
    last: dict[int, dict[str, Any]] = {}
    for event in _events(profile):
        node = int(event["args"]["node_index"])
        times.setdefault(node, []).append(event["dur"])
        last[node] = event
    # The order of the last run: nodes are numbered in another one.
    ordered = sorted(last, key=lambda node: last[node]["ts"])
    return whole, [
        onnxruntime_layer(last[node], graph, typical_time(times[node][-runs:])) for node in ordered
    ]


def _events(profile: Path) -> Iterator[dict[str, Any]]:
    """Of the operators; one at a time, since the file has a kilobyte for each."""
    with profile.open() as lines:
        for line in lines:
            if '"Node"' in line and "_kernel_time" in line:
                yield json.loads(line.strip().rstrip(",").removesuffix("]"))


def typical_time(microseconds: Sequence[int]) -> float:
    """The mean of the middle half: as robust as a median, and finer than the clock's steps."""
    ranked = np.sort(microseconds)
    quarter = len(ranked) // 4
    return float(ranked[quarter : len(ranked) - quarter].mean()) + 0.5


_SIZES = {
    **{"float": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1},
    **{"int64": 8, "double": 8, "uint64": 8, "bool": 1, "int16": 2, "uint16": 2},
}


def onnxruntime_layer(
    event: Mapping[str, Any], graph: Mapping[str, list[Tensor]], microseconds: float
) -> Layer:
    """A layer from an event of ONNX Runtime's profile and the weights of the graph's nodes."""
    facts = event["args"]
    name = event["name"].removesuffix("_kernel_time")
    inputs, outputs = _tensors(facts["input_type_shape"]), _tensors(facts["output_type_shape"])
    op = facts["op_name"]
    # The profile does not show weights that were packed for the kernel when the network was loaded.
    weights = graph.get(name, [])
    narrow = any(one.size == 1 for one in inputs) and op in _CONVOLUTIONS | _PRODUCTS
    moved = int(facts["activation_size"]) + int(facts["output_size"])
    return Layer(
        name=name.removesuffix("_nchwc"),
        op=op,
        kernel="nchwc" if name.endswith("_nchwc") else "",
        arithmetic="i8" if narrow else "f32",
        ms=microseconds / 1000,
        macs=multiply_adds(op, inputs, weights, outputs[0].shape) if outputs else 0,
        weight_bytes=sum(one.bytes for one in weights),
        activation_bytes=0 if op in _MOVES_NOTHING else moved,
        output=outputs[0].shape if outputs else (),
    )


def _tensors(reported: Sequence[Mapping[str, list[int]]]) -> list[Tensor]:
    return [
        Tensor(tuple(shape), _SIZES.get(kind, 4)) for one in reported for kind, shape in one.items()
    ]


def _openvino(session: Any, run: Callable[[], int], runs: int) -> tuple[list[int], list[Layer]]:
    for _ in range(_SKIPPED_RUNS):
        run()
    before, earlier = _counters(session), 1 + _SKIPPED_RUNS  # one run was the first
    whole = [run() for _ in range(runs)]
    after = _counters(session)
    # A mean is all that is reported; a typical run is shorter by as much as all of it is.
    typical = float(np.median(whole) / np.mean(whole))
    layers: list[Layer] = []
    constants: set[str] = set()
    for node in session.native.get_compiled_model().get_runtime_model().get_ordered_ops():
        name = node.get_friendly_name()
        facts = {key: value.value for key, value in node.get_rt_info().items()}
        sources = [
            port.get_source_output().get_node().get_friendly_name() for port in node.inputs()
        ]
        op = facts["layerType"]
        if op == "Const" or (sources and constants.issuperset(sources)):
            constants.add(name)  # computed once, when the network was loaded
        elif op not in ("Input", "Output") and name in after:
            mean = mean_between(before.get(name, 0), earlier, after[name], earlier + runs)
            layers.append(openvino_layer(node, facts, constants, mean * typical))
    return whole, layers


def _counters(session: Any) -> dict[str, int]:
    """Layer → whole microseconds of a run, the mean of all runs so far."""
    return {one.node_name: _whole(one.real_time) for one in session.native.profiling_info}


def _whole(time: timedelta) -> int:
    return time // timedelta(microseconds=1)


def mean_between(before: int, runs_before: int, after: int, runs: int) -> float:
    """The mean of the later runs, from two means that were rounded down."""
    if after == 0:
        return 0.5
    total = (after + 0.5) * runs - (before + 0.5) * runs_before
    return max(0.5, total / (runs - runs_before) + 0.5)


def openvino_layer(
    node: Any, facts: Mapping[str, str], constants: Collection[str], microseconds: float
) -> Layer:
    """A layer from a node of OpenVINO's execution graph, its facts, and the names of constants."""
    kernel, narrowest = facts["primitiveType"], _openvino_size(facts["runtimePrecision"])
    inputs, weights = [], []
    for port in node.inputs():
        shape, size = tuple(port.get_shape()), int(port.get_element_type().size)
        if port.get_source_output().get_node().get_friendly_name() in constants:
            # Packed for the kernel, in its arithmetic, when the network was loaded.
            weights.append(Tensor(shape, min(size, narrowest)))
        else:
            inputs.append(Tensor(shape, size))
    outputs = [
        Tensor(tuple(port.get_shape()), int(port.get_element_type().size))
        for port in node.outputs()
    ]
    op = facts["layerType"]
    nothing = op in _MOVES_NOTHING
    return Layer(
        name=node.get_friendly_name().removesuffix("/WithoutBiases"),
        op=op,
        kernel=kernel,
        arithmetic="i8" if narrowest == 1 else facts["runtimePrecision"],
        ms=microseconds / 1000,
        macs=multiply_adds(op, inputs, weights, outputs[0].shape),
        weight_bytes=0 if nothing else sum(one.bytes for one in weights),
        activation_bytes=0 if nothing else sum(one.bytes for one in [*inputs, *outputs]),
        output=outputs[0].shape,
    )


def _openvino_size(precision: str) -> int:
    """Bytes of an element of e.g. ``bf16``."""
    return max(1, int(re.sub(r"\D", "", precision) or 32) // 8)


_MOVES_NOTHING = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_PRODUCTS = {"Gemm", "MatMul", "FusedMatMul", "FusedGemm", "QGemm", "QLinearMatMul"} | {
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FullyConnected"),
}
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "Convolution"}


def multiply_adds(
    op: str, inputs: Sequence[Tensor], weights: Sequence[Tensor], output: Shape
) -> int:
    """Multiply-adds of a layer, by what its shapes say; those of normalisations are not counted.

    Args:
        op: in either runtime's words.
        inputs: what it reads, as far as the runtime shows it.
        weights: its constants.
        output: what it writes.
    """
    if op in _CONVOLUTIONS:
        kernel = max(weights, key=lambda one: prod(one.shape), default=None)
        if kernel is None or len(kernel.shape) < len(output):
            return 0
        # [O, I, k, k], or [groups, O, I, k, k]; the output's channels stand first or last.
        grouped = len(kernel.shape) > len(output)
        channels = kernel.shape[0] * (kernel.shape[1] if grouped else 1)
        return prod(kernel.shape) * (prod(output) // channels)
    if op in _PRODUCTS and inputs:
        matrix = max(weights, key=lambda one: prod(one.shape), default=None)
        inner = inputs[0].shape[-1]
        if matrix is not None and len(matrix.shape) == 2:
            inner = prod(matrix.shape) // output[-1]
        return prod(output) * inner
    if op in ("Subgraph", "ScaledDotProductAttention") and len(inputs) > 2:
        return _attention([inputs[0].shape, inputs[1].shape, inputs[-1].shape], output)
    return 0


def _attention(shapes: Sequence[Shape], output: Shape) -> int:
    """Of a fused attention; 0 if the shapes are not those of one."""
    query, key, value = shapes
    if min(map(len, shapes)) < 3 or len(output) < 3 or value[-2] < 2:
        return 0
    length, width, positions = query[-2], query[-1], value[-2]
    if {*key[-2:]} != {width, positions} or output[-2:] != (length, value[-1]):
        return 0
    return prod(output[:-2]) * length * positions * (width + value[-1])


# Numbers of fields, from onnx.proto.
_GRAPH, _NODE, _TENSOR = 7, 1, 5
_NODE_INPUT, _NODE_NAME, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 3, 1, 2, 8
_ONNX_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


def graph_weights(path: Path) -> dict[str, list[Tensor]]:
    """Node name → its weights, from an ONNX file.

    Raises:
        BadInput: the file is not protobuf.
    """
    weights: dict[str, Tensor] = {}
    nodes: dict[str, list[str]] = {}
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for field, _, low, high in fields(data, 0, len(data)):
                if field != _GRAPH:
                    continue
                for part, _, start, end in fields(data, low, high):
                    if part == _TENSOR:
                        name, tensor = _weight(data, start, end)
                        weights[name] = tensor
                    elif part == _NODE:
                        found = list(fields(data, start, end))
                        inputs = [data[a:b].decode() for f, _, a, b in found if f == _NODE_INPUT]
                        named = [data[a:b].decode() for f, _, a, b in found if f == _NODE_NAME]
                        nodes["".join(named)] = inputs
        except (IndexError, ValueError) as error:
            raise BadInput(f"{path}: not an ONNX model ({error})") from error
    return {
        node: [weights[name] for name in inputs if name in weights]
        for node, inputs in nodes.items()
    }


def _weight(data: mmap.mmap, start: int, end: int) -> tuple[str, Tensor]:
    name, kind = "", 1
    shape: list[int] = []
    for field, wire, low, high in fields(data, start, end):
        if field == _TENSOR_DIMS and wire == 0:
            shape.append(low)
        elif field == _TENSOR_DIMS:  # packed into one field
            while low < high:
                dimension, low = varint(data, low)
                shape.append(dimension)
        elif field == _TENSOR_TYPE:
            kind = low
        elif field == _TENSOR_NAME:
            name = data[low:high].decode()
    return name, Tensor(tuple(shape), _ONNX_SIZES.get(kind, 4))
