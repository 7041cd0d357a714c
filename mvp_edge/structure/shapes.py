"""Networks of which only the shapes matter: copies without weights, and the size attributes that follow a shape."""

import copy

import torch
from torch import nn

Shape = tuple[int, int, int]
"""One input image: channels, height, width."""

SINGLE_GROUP = "single_group"
"""Attribute of a grouped convolution of which a single group is left, so that it looks like any other."""


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def blank_copy(module: nn.Module, device: str = "meta") -> nn.Module:
    """A float32 copy in eval mode whose tensors are zeros on ``device``; only shapes are copied."""

    def blank(tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        empty = torch.zeros(tensor.shape, dtype=dtype, device=device)
        return (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )

    memo = {id(tensor): blank(tensor) for tensor in tensors_of(module).values()}
    replica = copy.deepcopy(module, memo).eval()
    for part in replica.modules():  # hooks are for the original alone
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return replica


def follow_shapes(module: nn.Module) -> None:
    """Set the size attributes of PyTorch's layers to the shapes of their weights.

    Each group of a grouped convolution keeps its width, so the number of groups follows the number of filters.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            outputs, inputs = layer.weight.shape[:2]
            if layer.groups > 1:
                layer.groups = layer.groups * outputs // layer.out_channels
                setattr(layer, SINGLE_GROUP, layer.groups == 1)
            layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = layer.weight.shape[0]


def is_grouped(module: nn.Module) -> bool:
    """Whether a convolution is grouped, or was before it was cut to a single group."""
    return isinstance(module, nn.Conv2d) and (
        module.groups > 1 or getattr(module, SINGLE_GROUP, False)
    )
