"""Gradients of depthwise convolutions in bfloat16, against PyTorch's in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mvp_edge.pruning.arithmetic import compute
from mvp_edge.pruning.depthwise import FastDepthwise


@pytest.mark.parametrize("padding", ["same", "none"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("side", [9, 12])
def test_gradients_are_those_of_float64(side: int, kernel: int, stride: int, padding: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, side, side, generator=drawn).bfloat16()
    weight = torch.randn(6, 1, kernel, kernel, generator=drawn).bfloat16()
    bias = torch.randn(6, generator=drawn).bfloat16()
    pad = kernel // 2 if padding == "same" else 0

    def gradients(dtype: torch.dtype, *, fast: bool) -> list[torch.Tensor]:
        leaves = [one.detach().to(dtype).requires_grad_() for one in (x, weight, bias)]
        layout, w, b = leaves[0].contiguous(memory_format=torch.channels_last), *leaves[1:]
        if fast:
            with FastDepthwise():
                out = F.conv2d(layout, w, b, stride=stride, padding=pad, groups=6)
        else:
            out = F.conv2d(layout, w, b, stride=stride, padding=pad, groups=6)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        torch.autograd.backward(out, upstream.bfloat16().to(out.dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    exact = gradients(torch.float64, fast=False)
    ours = gradients(torch.float32, fast=True)
    assert len(ours) == len(exact) == 4
    for name, own, true in zip(("y", "x", "weight", "bias"), ours, exact, strict=True):
        error = float((own.double() - true).abs().max() / true.abs().max())
        assert error < 0.01, f"{name}: {error}"  # bfloat16 rounds to 1/256


def test_other_convolutions_are_left_alone() -> None:
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    for layer in (
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 5, groups=4, dilation=2, padding=4),
        nn.Conv2d(4, 4, 5, groups=4, padding="same"),
    ):
        with FastDepthwise():
            inside = layer(x)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, layer(x))
    with FastDepthwise(), torch.no_grad():
        assert nn.Conv2d(4, 4, 5, groups=4)(x).dtype == torch.float32  # nothing to be gained


def test_a_network_learns_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the context that training uses, whatever this processor multiplies natively."""
    monkeypatch.setattr(
        "mvp_edge.pruning.arithmetic.faster_dtype", lambda _accelerator: torch.bfloat16
    )
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4)
    target = F.conv2d(
        x := torch.randn(8, 4, 8, 8), torch.ones(4, 1, 5, 5), stride=2, padding=2, groups=4
    )
    optimizer = torch.optim.AdamW(layer.parameters(), 0.05)
    losses = []
    for _ in range(60):
        with compute("cpu"):
            loss = (layer(x) - target).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
    assert layer.weight.dtype == torch.float32
