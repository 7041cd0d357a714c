"""The operators of a network, from the shapes in its module.

`mvp_edge_export.server.graph` reads the same list from an exported file (a test compares them), so the
prediction of a network's latency is the same before and after its export.
"""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvp_edge.families import rule_for
from mvp_edge.structure.shapes import Shape, blank_copy
from mvp_edge_export.devices.operators import (
    Kind,
    Operators,
    Row,
    conv_kind,
    elementwise,
    pooled,
    table,
)


def operators(module: nn.Module, shape: Shape, batch: int = 1) -> Operators:
    """The operators of one inference of ``module``.

    Args:
        module: a network of a supported family; may be on the meta device.
        shape: one image, (channels, height, width).
        batch: images in one inference.
    """
    replica = blank_copy(module)
    found: list[Row] = []
    watcher = _Watcher((*replica.parameters(), *replica.buffers()), found.append)

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.extend(_of_layer(layer, inputs[0], output))

    for layer in replica.modules():
        if rule_for(layer) is not None:  # what it computes itself is in its rule
            layer.register_forward_pre_hook(watcher.pause)
            layer.register_forward_hook(watcher.go_on)
        layer.register_forward_hook(record)
    with torch.no_grad(), watcher:
        replica(torch.empty(batch, *shape, device="meta"))
    return table(found)


def _of_layer(layer: Any, x: torch.Tensor, y: torch.Tensor) -> list[Row]:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        outer, inner, *kernel = layer.weight.shape
        kind = conv_kind(kernel, layer.groups, layer.in_channels)
        return [(kind, y.numel() // outer, outer, inner, prod(kernel), x.numel())]
    if isinstance(layer, nn.Linear):
        outer, inner = layer.weight.shape
        return [("linear", y.numel() // outer, outer, inner, 1, x.numel())]
    if (rule := rule_for(layer)) is not None:
        return rule.operators(layer, x)
    if isinstance(layer, nn.LayerNorm):
        outer = prod(layer.normalized_shape)
        return [("norm", y.numel() // outer, outer, 0, 1, x.numel())]
    return []


_AT = torch.ops.aten
_ACTIVATIONS: Mapping[Any, Kind] = {_AT.gelu: "gelu", _AT.silu: "silu", _AT.silu_: "silu"}
_POOLS = (
    *(_AT.mean, _AT.linalg_vector_norm, _AT._adaptive_avg_pool2d),
    *(_AT.avg_pool2d, _AT.max_pool2d_with_indices),
)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Tells of the operators that are functions in some families and modules in others.

    Args:
        weights: all parameters and buffers; what is multiplied by one of them is part of a layer.
        tell: called with the row of each operator.
    """

    def __init__(self, weights: Iterable[torch.Tensor], tell: Callable[[Row], None]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {tensor.untyped_storage() for tensor in weights}
        self._tell = tell
        self._paused = 0

    def pause(self, *_: Any) -> None:
        """Tell of nothing until `go_on`."""
        self._paused += 1

    def go_on(self, *_: Any) -> None:
        """The reverse of `pause`."""
        self._paused -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            for row in self._rows(func.overloadpacket, args, result):
                self._tell(row)
        return result

    def _rows(self, operation: Any, args: Any, result: Any) -> list[Row]:
        if operation in _ACTIVATIONS:
            return [elementwise(_ACTIVATIONS[operation], result.shape)]
        if operation in _POOLS:
            y = result[0] if isinstance(result, tuple) else result
            return pooled(args[0].shape, y.shape)
        if operation in (_AT.mul, _AT.mul_) and all(map(self._is_activation, args)):
            return [elementwise("gate", result.shape)]
        return []

    def _is_activation(self, value: Any) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.numel() > 1
            and value.untyped_storage() not in self._weights
        )
