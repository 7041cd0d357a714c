"""The operators of a network, from its module by shapes alone, or from an ONNX file.

Both give the same list for the same network (a test holds them together), so a prediction does not
depend on whether the network was exported yet.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp_edge.subnetwork.cost import Shape, blank_copy
from mvp_edge_export.devices.operators import Kind, Operators
from mvp_edge_export.errors import BadInput

Row = tuple[Kind, int, int, int, int, int]


def operators(module: nn.Module, shape: Shape, batch: int = 1) -> Operators:
    """What one inference of ``module`` computes.

    Args:
        module: a ResNet or ViT of timm; may lie on the meta device.
        shape: one image, (channels, height, width).
        batch: images in one inference.
    """
    replica = blank_copy(module)
    found: list[Row] = []

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.extend(_of_layer(layer, inputs[0], output))

    for layer in replica.modules():
        layer.register_forward_hook(record)
    with torch.no_grad():
        replica(torch.empty(batch, *shape, device="meta"))
    return _table(found)


def _of_layer(layer: Any, x: torch.Tensor, y: torch.Tensor) -> list[Row]:
    if isinstance(layer, nn.Conv2d):
        outer, inner, *kernel = layer.weight.shape
        return [(_conv(kernel), y.numel() // outer, outer, inner, prod(kernel), x.numel())]
    if isinstance(layer, nn.Linear):
        outer, inner = layer.weight.shape
        return [("linear", y.numel() // outer, outer, inner, 1, x.numel())]
    if type(layer).__name__ == "Attention":
        return _attention(x.shape[0] * layer.num_heads, x.shape[1], layer.head_dim)
    if isinstance(layer, nn.LayerNorm):
        return [("norm", y.numel() // y.shape[-1], y.shape[-1], 0, 1, x.numel())]
    if isinstance(layer, nn.GELU):
        return [("gelu", y.numel() // y.shape[-1], y.shape[-1], 0, 1, x.numel())]
    if isinstance(layer, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
        return [("pool", y.numel() // y.shape[1], y.shape[1], 0, 1, x.numel())]
    return []


def _attention(heads: int, tokens: int, dim: int) -> list[Row]:
    """q·kᵀ, softmax, and the sum over values; its hook runs after that of the projection in it."""
    rows = heads * tokens
    return [
        ("matmul", rows, tokens, dim, 1, rows * dim),
        ("softmax", rows, tokens, 0, 1, rows * tokens),
        ("matmul", rows, dim, tokens, 1, rows * tokens),
    ]


def load_graph(path: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """An ONNX file's graph, and the shape of every tensor in it; an open batch counts as 1.

    Raises:
        BadInput: it cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        for value in model.graph.input:
            for dimension in value.type.tensor_type.shape.dim:
                dimension.dim_value = dimension.dim_value or 1
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise BadInput(f"{path} is not an ONNX model: {str(error)[:200]}") from error
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return graph, shapes


def operators_of_graph(graph: Any, shapes: Mapping[str, tuple[int, ...]], path: Path) -> Operators:
    """What one inference of an ONNX graph computes.

    Raises:
        BadInput: a shape cannot be told, or there is nothing in it that takes time.
    """
    fixed = {one.name for one in graph.initializer}
    try:
        found = [row for node in graph.node for row in _of_node(node, shapes, fixed)]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    if not found:
        raise BadInput(f"{path}: no operator in it that takes time; is it an image classifier?")
    return _table(found)


def _of_node(node: Any, shapes: Mapping[str, tuple[int, ...]], fixed: set[str]) -> list[Row]:
    def shape(name: str) -> tuple[int, ...]:
        if 0 in shapes.get(name, (0,)):
            raise BadInput(
                f"ONNX node {node.name or node.op_type}: the shape of {name} is not known"
            )
        return shapes[name]

    kind = node.op_type
    simple: dict[str, Kind] = {"Softmax": "softmax", "LayerNormalization": "norm", "Gelu": "gelu"}
    pools = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
    if kind not in ("Conv", "Gemm", "MatMul", *simple, *pools):
        return []
    x, y = shape(node.input[0]), shape(node.output[0])
    if kind == "Conv":
        outer, inner, *kernel = shape(node.input[1])
        return [(_conv(kernel), prod(y) // outer, outer, inner, prod(kernel), prod(x))]
    if kind in ("Gemm", "MatMul"):
        if node.input[1] in fixed:
            return [("linear", prod(y) // y[-1], y[-1], x[-1], 1, prod(x))]
        return [("matmul", prod(y) // y[-1], y[-1], x[-1], 1, prod(x))]
    if kind in simple:
        return [(simple[kind], prod(y) // y[-1], y[-1], 0, 1, prod(x))]
    return [("pool", prod(y) // x[1], x[1], 0, 1, prod(x))]


def _conv(kernel: Sequence[int]) -> Kind:
    return "conv1x1" if prod(kernel) == 1 else "conv"


def _table(rows: list[Row]) -> Operators:
    """The rows as a table; the first convolution is the stem."""
    first = next((i for i, row in enumerate(rows) if row[0] in ("conv", "conv1x1")), None)
    if first is not None:
        rows[first] = ("stem", *rows[first][1:])
    shapes = np.array([row[1:] for row in rows], np.int64).reshape(len(rows), 5)
    return Operators(tuple(row[0] for row in rows), shapes)
