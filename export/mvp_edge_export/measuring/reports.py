"""Reads the runtimes' reports on the layers that they executed; runs in the measuring process.

    ONNX Runtime   profile (µs of every operator in every run) + optimised graph
    OpenVINO       counters (µs of every layer, mean of all runs) + execution graph
        → Layer: time, multiply-adds and bytes, from the shapes that were computed

Runtimes fuse, reorder and pad operators, so their layers differ from those of the network. Everything is
taken from the runtime's own reports, so that no other package is needed. Both runtimes round down to whole
microseconds; half a microsecond is added to compensate.
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
"""First runs that are ignored, because kernels are created and caches filled in them."""


@dataclass(frozen=True)
class Layer:
    """A layer as the runtime executed it."""

    name: str
    op: str
    """Type of the operator as the runtime names it."""
    kernel: str
    """Implementation of the operator; empty if the runtime does not report it."""
    arithmetic: str
    """``f32``, ``bf16``, ``f16`` or ``i8``."""
    ms: float
    """Typical time of one run in ms."""
    macs: int
    """Multiply-adds including the runtime's padding; 0 for operators without multiply-adds."""
    weight_bytes: int
    activation_bytes: int
    """Bytes of activations read and written."""
    output: Shape


@dataclass(frozen=True)
class Tensor:
    """An input or output of a layer."""

    shape: Shape
    size: int
    """Size of an element in bytes."""

    @property
    def bytes(self) -> int:
        """Size of the whole tensor in bytes."""
        return prod(self.shape) * self.size


def layers_of(session: Any, run: Callable[[], int], runs: int) -> dict[str, Any]:
    """Run a session that was opened with ``profile``, and report the times of its layers.

    Args:
        session: session of either runtime; it cannot run afterwards.
        run: function that runs it once and returns the time in ns.
        runs: number of runs.

    Returns:
        A dict with ``runs``, with ``whole_ms`` and ``mean_ms``, the median and mean time of these runs
        (slowed down by profiling), and with ``layers``, the fields of each ``Layer`` in the order of
        execution.
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
    # Sort by time of execution in the last run; node numbers have another order.
    ordered = sorted(last, key=lambda node: last[node]["ts"])
    return whole, [
        onnxruntime_layer(last[node], graph, typical_time(times[node][-runs:])) for node in ordered
    ]


def _events(profile: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of operators one by one, because the file has a kilobyte for each."""
    with profile.open() as lines:
        for line in lines:
            if '"Node"' in line and "_kernel_time" in line:
                yield json.loads(line.strip().rstrip(",").removesuffix("]"))


def typical_time(microseconds: Sequence[int]) -> float:
    """Mean of the middle half: robust as a median, but not limited to whole microseconds."""
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
    """Make a layer from an event of ONNX Runtime's profile.

    Args:
        event: event of the operator.
        graph: weights of each node of the optimised graph, from ``graph_weights``.
        microseconds: typical time of the operator.
    """
    facts = event["args"]
    name = event["name"].removesuffix("_kernel_time")
    inputs, outputs = _tensors(facts["input_type_shape"]), _tensors(facts["output_type_shape"])
    op = facts["op_name"]
    # The profile omits weights that were packed for the kernel on loading, so take them from the graph.
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
    before, earlier = _counters(session), 1 + _SKIPPED_RUNS  # plus the first run after loading
    whole = [run() for _ in range(runs)]
    after = _counters(session)
    # Only means are reported; scale them by the ratio of median to mean of the whole runs.
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
            constants.add(name)  # computed only once, on loading
        elif op not in ("Input", "Output") and name in after:
            mean = mean_between(before.get(name, 0), earlier, after[name], earlier + runs)
            layers.append(openvino_layer(node, facts, constants, mean * typical))
    return whole, layers


def _counters(session: Any) -> dict[str, int]:
    """Mean time of each layer over all runs so far, in whole microseconds."""
    return {one.node_name: _whole(one.real_time) for one in session.native.profiling_info}


def _whole(time: timedelta) -> int:
    return time // timedelta(microseconds=1)


def mean_between(before: int, runs_before: int, after: int, runs: int) -> float:
    """Compute the mean time of later runs from means over all runs that were rounded down.

    Args:
        before: mean of the earlier runs in whole microseconds.
        runs_before: number of the earlier runs.
        after: mean of all runs in whole microseconds.
        runs: number of all runs.

    Returns:
        Mean of the runs after the earlier ones in microseconds, at least 0.5.
    """
    if after == 0:
        return 0.5
    total = (after + 0.5) * runs - (before + 0.5) * runs_before
    return max(0.5, total / (runs - runs_before) + 0.5)


def openvino_layer(
    node: Any, facts: Mapping[str, str], constants: Collection[str], microseconds: float
) -> Layer:
    """Make a layer from a node of OpenVINO's execution graph.

    Args:
        node: the node.
        facts: its runtime information.
        constants: names of the nodes that are constants.
        microseconds: typical time of the layer.
    """
    kernel, narrowest = facts["primitiveType"], _openvino_size(facts["runtimePrecision"])
    inputs, weights = [], []
    for port in node.inputs():
        shape, size = tuple(port.get_shape()), int(port.get_element_type().size)
        if port.get_source_output().get_node().get_friendly_name() in constants:
            # Weights are converted to the kernel's number format on loading.
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
    """Size of an element in bytes, e.g. 2 for ``bf16``."""
    return max(1, int(re.sub(r"\D", "", precision) or 32) // 8)


_MOVES_NOTHING = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_PRODUCTS = {"Gemm", "MatMul", "FusedMatMul", "FusedGemm", "QGemm", "QLinearMatMul"} | {
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FullyConnected"),
}
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "Convolution"}


def multiply_adds(
    op: str, inputs: Sequence[Tensor], weights: Sequence[Tensor], output: Shape
) -> int:
    """Count the multiply-adds of a layer from its shapes; normalisations count as 0.

    Args:
        op: type of the operator as either runtime names it.
        inputs: inputs that the runtime reports.
        weights: constant inputs.
        output: shape of the output.
    """
    if op in _CONVOLUTIONS:
        kernel = max(weights, key=lambda one: prod(one.shape), default=None)
        if kernel is None or len(kernel.shape) < len(output):
            return 0
        # [O, I, k, k] or [groups, O, I, k, k]; the output has its channels first or last.
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
    """Count the multiply-adds of a fused attention; 0 if the shapes are not those of an attention."""
    query, key, value = shapes
    if min(map(len, shapes)) < 3 or len(output) < 3 or value[-2] < 2:
        return 0
    length, width, positions = query[-2], query[-1], value[-2]
    if {*key[-2:]} != {width, positions} or output[-2:] != (length, value[-1]):
        return 0
    return prod(output[:-2]) * length * positions * (width + value[-1])


# Field numbers from onnx.proto.
_GRAPH, _NODE, _TENSOR = 7, 1, 5
_NODE_INPUT, _NODE_NAME, _TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 3, 1, 2, 8
_ONNX_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


def graph_weights(path: Path) -> dict[str, list[Tensor]]:
    """Read the weights of each node of an ONNX file, by the node's name.

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
        elif field == _TENSOR_DIMS:  # all dimensions are packed into one field
            while low < high:
                dimension, low = varint(data, low)
                shape.append(dimension)
        elif field == _TENSOR_TYPE:
            kind = low
        elif field == _TENSOR_NAME:
            name = data[low:high].decode()
    return name, Tensor(tuple(shape), _ONNX_SIZES.get(kind, 4))
