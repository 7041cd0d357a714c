"""How this machine trains: on which accelerator, in which precision and memory layout, on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mvp_edge.pruning.depthwise import FastDepthwise
from mvp_edge_export.errors import BadInput

STEP_MACS_A_THREAD = 1.5e9
"""Multiply-adds of a step's forward pass that keep one more thread busy."""


def choose_accelerator(wanted: str) -> str:
    """The device to train on, cpu or cuda, for auto, cpu or cuda; BadInput where CUDA is asked for and absent."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            "cuda: PyTorch sees no CUDA device here; use auto or cpu", field="accelerator"
        )
    return wanted


def faster_dtype(accelerator: str) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively, else None (plain float32)."""
    if accelerator == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    native = _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's
    return torch.bfloat16 if native else None


@contextmanager
def compute(accelerator: str) -> Iterator[None]:
    """A context in the precision that networks are trained in.

    On a CPU, bfloat16 alone makes depthwise networks slower than float32; with gradients of their own they are
    faster than in either (`python -m benchmarks.timing.arithmetic`).
    """
    dtype = faster_dtype(accelerator)
    own = FastDepthwise() if dtype is not None and accelerator == "cpu" else nullcontext()
    with torch.autocast(accelerator, dtype=dtype, enabled=dtype is not None), own:
        yield


def arithmetic_of(accelerator: str) -> str:
    """In which arithmetic networks are trained here: a resumed run has to be computed in the same one."""
    dtype = faster_dtype(accelerator)
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


@contextmanager
def worthwhile_threads(step_macs: int, accelerator: str) -> Iterator[None]:
    """A context with as many of PyTorch's threads as a step of ``step_macs`` multiply-adds can keep busy.

    A small network's step consists of thousands of short parallel sections. A second thread gains nothing there,
    and beside another busy process the threads wait for one another in each of them (measured). The number depends
    on the network alone, so that the same command gives the same bits.
    """
    before = torch.get_num_threads()
    worthwhile = min(before, max(1, round(step_macs / STEP_MACS_A_THREAD)))
    torch.set_num_threads(before if accelerator == "cuda" else worthwhile)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lay_out(
    model: nn.Module, accelerator: str, layout: torch.memory_format | None = None
) -> nn.Module:
    """Move to the accelerator, in the memory layout that trains faster there.

    Measured: channels-last is faster for depthwise convolutions, wide layers and on one thread, the default layout
    for narrow layers on several threads.
    """
    if layout is None and spoils_channels_last(model, accelerator):
        layout = torch.contiguous_format
    if layout is None:
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        wide = float(np.median([m.out_channels for m in convolutions] or [0])) >= 48
        depthwise = any(1 < m.groups == m.in_channels for m in convolutions)
        last = wide or depthwise or torch.get_num_threads() == 1 or accelerator == "cuda"
        layout = torch.channels_last if last else torch.contiguous_format
    moved: nn.Module = model.to(accelerator).to(memory_format=layout)
    return moved


def spoils_channels_last(model: nn.Module, accelerator: str) -> bool:
    """Whether a backward pass of this network in channels-last memory would corrupt the process.

    oneDNN's float32 kernels for the weight gradient of a strided 1×1 convolution write past their
    workspace where the input has fewer channels than a vector register holds (its issue 6035): wrong
    gradients, or a crash. The shortcuts of a thin ResNet are such convolutions.
    """
    if accelerator != "cpu" or faster_dtype(accelerator) is not None:
        return False
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(
        m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 16 for m in convolutions
    )


@cache
def _cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux lists them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())
