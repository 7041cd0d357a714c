"""What an ONNX graph computes and needs, read from its shapes; nothing is run."""

from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from mvp_edge_export.devices.operators import (
    Kind,
    Operators,
    Row,
    conv_kind,
    elementwise,
    pooled,
    table,
)
from mvp_edge_export.errors import BadInput

Shapes = Mapping[str, tuple[int, ...]]


def load_graph(path: Path) -> tuple[onnx.GraphProto, Shapes]:
    """An ONNX file's graph, and the shape of every tensor in it; see `with_shapes`.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return with_shapes(onnx.load(path))
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise BadInput(f"{path} is not an ONNX model: {str(error)[:200]}") from error


def with_shapes(model: onnx.ModelProto) -> tuple[onnx.GraphProto, Shapes]:
    """A model's graph, and the shape of every tensor in it; an open batch counts as 1."""
    closed = onnx.ModelProto()
    closed.CopyFrom(model)
    own = closed.graph
    inputs = [d for value in own.input for d in value.type.tensor_type.shape.dim]
    batch = {dimension.dim_param for dimension in inputs} - {""}
    others = (*own.value_info, *own.output)
    for dimension in (*inputs, *(d for v in others for d in v.type.tensor_type.shape.dim)):
        if dimension.dim_param in batch:
            dimension.dim_value = 1
    for dimension in inputs:
        dimension.dim_value = dimension.dim_value or 1
    graph = onnx.shape_inference.infer_shapes(closed).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return graph, shapes


def operators_of_graph(graph: onnx.GraphProto, shapes: Shapes) -> Operators:
    """What one inference of an ONNX graph computes.

    Raises:
        BadInput: a shape cannot be told, or there is nothing in it that takes time.
    """
    fixed = {one.name for one in graph.initializer}
    sigmoids = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Sigmoid"}
    found = [row for node in graph.node for row in _of_node(node, shapes, fixed, sigmoids)]
    if not found:
        raise BadInput("ONNX: no operator in it that takes time; is it an image classifier?")
    return table(found)


_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceL2")
_SIMPLE: Mapping[str, Kind] = {"Softmax": "softmax", "LayerNormalization": "norm", "Gelu": "gelu"}


def _of_node(node: Any, shapes: Shapes, fixed: set[str], sigmoids: Mapping[str, str]) -> list[Row]:
    """The operators of one node; ``sigmoids`` has what each sigmoid's output was computed from."""

    def shape(name: str) -> tuple[int, ...]:
        if 0 in shapes.get(name, (0,)):
            raise BadInput(
                f"ONNX node {node.name or node.op_type}: the shape of {name} is not known"
            )
        return shapes[name]

    kind = node.op_type
    if kind == "Mul" and not fixed & {*node.input}:
        x, y = (shape(name) for name in node.input)
        if not prod(x) > 1 < prod(y):
            return []
        a, b = node.input
        swish = sigmoids.get(a) == b or sigmoids.get(b) == a
        return [elementwise("silu" if swish else "gate", shape(node.output[0]))]
    if kind not in ("Conv", "Gemm", "MatMul", *_SIMPLE, *_POOLS):
        return []
    x, y = shape(node.input[0]), shape(node.output[0])
    if kind == "Conv":
        outer, inner, *kernel = shape(node.input[1])
        kind_of_conv = conv_kind(kernel, x[1] // inner, x[1])
        return [(kind_of_conv, prod(y) // outer, outer, inner, prod(kernel), prod(x))]
    if kind in ("Gemm", "MatMul"):
        if node.input[1] in fixed:
            return [("linear", prod(y) // y[-1], y[-1], x[-1], 1, prod(x))]
        return [("matmul", prod(y) // y[-1], y[-1], x[-1], 1, prod(x))]
    if kind in _SIMPLE:
        return [(_SIMPLE[kind], prod(y) // y[-1], y[-1], 0, 1, prod(x))]
    return pooled(x, y)


def live_numbers(graph: onnx.GraphProto, shapes: Shapes) -> int:
    """Activations that are alive at the same time, at their peak, when nodes run in the file's order."""
    change: Counter[int] = Counter()
    first = {value.name: 0 for value in graph.input}
    last = dict(first)
    for step, node in enumerate(graph.node):
        for name in node.output:
            first.setdefault(name, step)
            last[name] = step
        last |= {name: step for name in node.input if name in first}
    for name, begin in first.items():
        change[begin] += prod(shapes.get(name, (0,)))
        change[last[name] + 1] -= prod(shapes.get(name, (0,)))
    return max(accumulate(change[step] for step in sorted(change)), default=0)
