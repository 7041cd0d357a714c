"""Depthwise convolutions in bfloat16 on a CPU, with fast gradients.

PyTorch's gradients (oneDNN, seen with 2.14) fall back to slow reference code for bfloat16 in two cases. Both are
computed here in another way, which gives the same values:

    gradient of the input, stride > 1    zeros between the gradient's pixels, then a stride-1 convolution with the
                                         kernel turned around
    gradient of a kernel over 3×3        3×3 parts of the kernel, each from a shifted view of the input
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PART = 3
"""Side of the kernels whose weight gradient is fast."""


class FastDepthwise(TorchFunctionMode):
    """A context in which depthwise convolutions that need gradients are computed in bfloat16 by `_Depthwise`."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and torch.is_grad_enabled():
            asked = _Convolution(*args, **(kwargs or {}))
            if asked.slow:
                return asked.faster()
        return func(*args, **(kwargs or {}))


@dataclass
class _Convolution:
    """The arguments of `F.conv2d`."""

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] | str = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1

    @property
    def slow(self) -> bool:
        """Whether it is depthwise, of a square kernel, and one of PyTorch's gradients is slow."""
        rows, columns = self.weight.shape[2:]
        return (
            self.groups == self.weight.shape[0] == self.input.shape[1] > 1
            and rows == columns
            and rows % 2 == 1
            and not isinstance(self.padding, str)
            and _pair(self.dilation) == (1, 1)
            and (rows > _PART or _pair(self.stride) != (1, 1))
        )

    def faster(self) -> torch.Tensor:
        """The same, in bfloat16."""
        assert not isinstance(self.padding, str)
        tensors = (self.input, self.weight, self.bias)
        half = [None if one is None else one.to(torch.bfloat16) for one in tensors]
        places = (*_pair(self.stride), *_pair(self.padding))
        result: torch.Tensor = _Depthwise.apply(*half, *places)
        return result


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of a square kernel, without dilation."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, *places: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places, ctx.biased = places, bias is not None
        stride, padding = places[:2], places[2:]
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        stride, padding = ctx.places[:2], ctx.places[2:]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _of_input(gradient, x, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(gradient, x, weight, stride, padding)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None, None


def _of_input(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any
) -> torch.Tensor:
    """The gradient of the input [N, C, H, W]."""
    if tuple(stride) == (1, 1):
        return _native(gradient, x, weight, stride, padding, (True, False, False))
    images, channels, height, width = x.shape
    side = weight.shape[-1]
    top, left = side - 1 - padding[0], side - 1 - padding[1]
    rows, columns = height + side - 1, width + side - 1
    spread = gradient.new_zeros(images, rows, columns, channels).permute(0, 3, 1, 2)
    down, across = gradient.shape[2] * stride[0], gradient.shape[3] * stride[1]
    spread[:, :, top : top + down : stride[0], left : left + across : stride[1]] = gradient
    return F.conv2d(spread, weight.flip(2, 3), groups=channels)


def _of_weight(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any
) -> torch.Tensor:
    """The gradient of the kernels [C, 1, K, K]."""
    side = weight.shape[-1]
    if side <= _PART:
        return _native(gradient, x, weight, stride, padding, (False, True, False))
    down, across = gradient.shape[2:]
    padded = F.pad(x, (padding[1], padding[1] + stride[1], padding[0], padding[0] + stride[0]))
    found, part = torch.empty_like(weight), weight[:, :, :_PART, :_PART].contiguous()
    starts = [*range(0, side - _PART, 2), side - _PART]
    height, width = stride[0] * (down - 1) + _PART, stride[1] * (across - 1) + _PART
    for i in starts:
        for j in starts:
            seen = padded[:, :, i : i + height, j : j + width]
            seen = seen.contiguous(memory_format=torch.channels_last)
            own = _native(gradient, seen, part, stride, (0, 0), (False, True, False))
            found[:, :, i : i + _PART, j : j + _PART] = own
    return found


def _native(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Any,
    padding: Any,
    wanted: tuple[bool, bool, bool],
) -> torch.Tensor:
    """PyTorch's own gradient of the one that is wanted of input, weight and bias."""
    found: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], wanted
    )
    return found[wanted.index(True)]
