"""The operators of a network, from the shapes in its module.

`mvp_edge_export.server.graph` reads the same list from an exported file (a test compares them), so the
prediction of a network's latency is the same before and after its export.
"""

from math import prod
from typing import Any

import torch
from torch import nn

from mvp_edge.families import rule_for
from mvp_edge.structure.shapes import Shape, blank_copy
from mvp_edge_export.devices.operators import Operators, Row, conv_kind, table


def operators(module: nn.Module, shape: Shape, batch: int = 1) -> Operators:
    """The operators of one inference of ``module``.

    Args:
        module: a network of a supported family; may be on the meta device.
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
    return table(found)


def _of_layer(layer: Any, x: torch.Tensor, y: torch.Tensor) -> list[Row]:
    if isinstance(layer, nn.Conv2d):
        outer, inner, *kernel = layer.weight.shape
        kind = conv_kind(kernel, layer.groups)
        return [(kind, y.numel() // outer, outer, inner, prod(kernel), x.numel())]
    if isinstance(layer, nn.Linear):
        outer, inner = layer.weight.shape
        return [("linear", y.numel() // outer, outer, inner, 1, x.numel())]
    if (rule := rule_for(layer)) is not None:
        return rule.operators(layer, x)
    if isinstance(layer, nn.LayerNorm):
        return [("norm", y.numel() // y.shape[-1], y.shape[-1], 0, 1, x.numel())]
    if isinstance(layer, nn.GELU):
        return [("gelu", y.numel() // y.shape[-1], y.shape[-1], 0, 1, x.numel())]
    if isinstance(layer, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
        return [("pool", y.numel() // y.shape[1], y.shape[1], 0, 1, x.numel())]
    return []
