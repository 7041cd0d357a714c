"""A training step on one thread as the product computes it, against plain PyTorch: float32 in its default layout.

    python -m benchmarks.timing.arithmetic          on an idle machine

Steps of 32 images: forward, loss, gradients, AdamW. Four ways run in turn in one process, and the ratios of each
round's times count: plain; channels-last memory; bfloat16 in channels-last memory; and the product's own, with
gradients of its own for depthwise convolutions and, for most families, a fused optimizer. Whole networks, and those
with half of the units. Results go to results/arithmetic.json.
"""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.study.rows import RESULTS
from mvp_edge.families import family_of, unit_groups
from mvp_edge.machine import this_computer, versions
from mvp_edge.pruning.arithmetic import arithmetic_of, compute, faster_dtype, lay_out
from mvp_edge.pruning.finetune import make_optimizer
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.storage import write_json

NETWORKS = (
    ("tf_efficientnet_lite0", 64),
    ("tf_efficientnet_lite0", 128),
    ("mobilenetv3_large_100", 64),
    ("mobilenetv3_large_100", 128),
    ("mobilenetv3_small_100", 64),
    ("mobilenetv3_small_100", 128),
    ("mobilenetv2_100", 128),
    ("regnety_002", 128),
    ("seresnet18", 128),
    ("convnext_atto", 128),
    ("resnet18", 128),
    ("deit_tiny_patch16_224", 112),
)
KEEPS = (1.0, 0.5)
IMAGES, ROUNDS = 32, 7

Context = Callable[[], AbstractContextManager[Any]]


def bfloat16() -> AbstractContextManager[Any]:
    """Autocast where the processor multiplies bfloat16, as a user would write it."""
    dtype = faster_dtype("cpu")
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


WAYS: dict[str, tuple[torch.memory_format | None, Context]] = {
    "plain": (torch.contiguous_format, nullcontext),
    "channels-last": (torch.channels_last, nullcontext),
    "bfloat16": (torch.channels_last, bfloat16),
    "product": (None, lambda: compute("cpu")),
}
"""Name → memory layout (None: the product's choice) and the context of the forward pass."""


def step_of(
    source: nn.Module,
    side: int,
    layout: torch.memory_format | None,
    context: Context,
    recipe: Recipe,
) -> Callable[[], float]:
    """A function that takes one training step and returns its seconds."""
    model = lay_out(copy.deepcopy(source), "cpu", layout).train()
    optimizer = make_optimizer(model, recipe)
    images = torch.randn(IMAGES, 3, side, side)
    if layout != torch.contiguous_format:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (IMAGES,))

    def step() -> float:
        began = time.perf_counter()
        with context():
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - began

    return step


def measured(name: str, side: int, keep: float) -> dict[str, Any]:
    """One network's row: seconds of a plain step, and how many times faster each way is, median of the rounds."""
    torch.manual_seed(0)
    model = Architecture(name, {}, {}, side).build(10)
    if keep < 1:
        model = resize(model, exact_widths(unit_groups(model), keep))
    own = replace(family_of(model).recipe, optimizer="adamw", lr=1e-4)
    recipes = {way: own if way == "product" else replace(own, fused=False) for way in WAYS}
    steps = {way: step_of(model, side, *how, recipes[way]) for way, how in WAYS.items()}
    for step in steps.values():
        step()  # warm
    times = [{way: step() for way, step in steps.items()} for _ in range(ROUNDS)]
    return {
        "network": name,
        "family": family_of(model).name,
        "side": side,
        "keep": keep,
        "plain_seconds": round(float(np.median([one["plain"] for one in times])), 4),
        "faster": {
            way: round(float(np.median([one["plain"] / one[way] for one in times])), 2)
            for way in WAYS
            if way != "plain"
        },
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, side in NETWORKS:
        for keep in KEEPS:
            rows.append(measured(name, side, keep))
            print(rows[-1], flush=True)
    facts = {
        "schema": 1,
        "machine": this_computer(),
        "versions": versions(),
        "arithmetic": arithmetic_of("cpu"),
        "images": IMAGES,
        "rows": rows,
    }
    write_json(RESULTS / "arithmetic.json", facts)


if __name__ == "__main__":
    main()
