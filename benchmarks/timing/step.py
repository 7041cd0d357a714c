"""The training step of the one-shot methods against a bare PyTorch loop on the same module.

    python -m benchmarks.timing.step

The bare loop is what one would write by hand: batches prepared in memory, the same precision, layout and
optimizer, nothing recorded. Both run alternately, ten steps at a time, in one process. Also measured: the memory
layouts that `arithmetic.lay_out` chooses between, and the gain of a second thread, alone and beside a busy process.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mvp_edge.families import unit_groups
from mvp_edge.families.resnet import RESNET
from mvp_edge.machine import this_computer, versions
from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.arithmetic import compute, lay_out, spoils_channels_last
from mvp_edge.pruning.batches import Batch
from mvp_edge.pruning.finetune import make_optimizer, train_step
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.training import Training
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.subnet import resize
from mvp_edge.tasks.task import Images
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import write_json

CIFAR = {
    "conv1": "Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)",
    "maxpool": "Identity()",
}
ROUNDS, STEPS = 12, 10


def main() -> None:
    architecture = Architecture("resnet18", CIFAR, {}, 32)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    backbone = Backbone("resnet18", architecture, architecture.build(5), preprocess, (), "", "")
    rng = np.random.default_rng(0)
    images = Images(
        rng.integers(0, 256, (2125, 32, 32, 3), dtype=np.uint8),
        rng.integers(0, 5, 2125).astype(np.int64),
    )
    rows = []
    for keep, steps in ((0.1, STEPS), (0.5, 4)):
        widths = exact_widths(unit_groups(backbone.model), keep)
        recipe = replace(recipe_for("mvp", RESNET), steps=10**6)
        problem = Problem(backbone, "tied", 5, images, None, widths, recipe)
        training = Training(problem, resize(backbone.with_head(5), widths), {})
        bare = _bare_loop(resize(backbone.with_head(5), widths), training, recipe)
        ours, theirs = alternate(training, bare, steps)
        ratios = np.array(ours) / np.array(theirs)
        rows.append(
            {
                "keep": keep,
                "ours_ms": [1000 * s for s in ours],
                "bare_ms": [1000 * s for s in theirs],
            }
        )
        print(f"keep {keep}: {1000 * np.median(ours):.1f} ms, ratio {np.median(ratios):.3f}")
    facts = {
        "schema": 1,
        "machine": this_computer(),
        "versions": versions(),
        "rows": rows,
    }
    write_json(
        Path(__file__).parents[1] / "results" / "step.json",
        {**facts, "layouts": layouts(backbone), "threads": threads_compared(backbone)},
    )


def alternate(
    training: Training, bare: Callable[[int], Any], steps: int
) -> tuple[list[float], list[float]]:
    """Seconds a step of each loop, round by round; the first round warms up and does not count."""
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):
        ours.append(_seconds(lambda: training.run(training.step + steps), steps))
        theirs.append(_seconds(lambda: [bare(step) for step in range(steps)], steps))
    return ours[1:], theirs[1:]


def _bare_loop(module: torch.nn.Module, training: Training, recipe: Recipe) -> Callable[[int], Any]:
    model = lay_out(module, "cpu").train()
    optimizer = make_optimizer(model, recipe)
    ready = [training.batches.shares(step) for step in range(STEPS)]
    if spoils_channels_last(model, "cpu"):
        ready = [[b._replace(images=b.images.contiguous()) for b in shares] for shares in ready]

    def step(number: int) -> None:
        for x, y, _ in ready[number]:
            with compute("cpu"):
                loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def layouts(backbone: Backbone) -> list[dict[str, Any]]:
    """Milliseconds of a step by keep ratio, memory layout and precision, best of three."""
    rows = []
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 5, (128,))
    for keep in (1.0, 0.5, 0.25, 0.1):
        for name, layout in (
            ("default", torch.contiguous_format),
            ("channels-last", torch.channels_last),
        ):
            small = resize(backbone.with_head(5), exact_widths(unit_groups(backbone.model), keep))
            model = lay_out(small, "cpu", layout).train()
            optimizer = make_optimizer(model, Recipe())
            batch = Batch(x.contiguous(memory_format=layout), y)

            def step(m: Any = model, o: Any = optimizer, b: Any = batch) -> None:
                train_step(m, o, b, 0.01, "cpu")

            step()
            rows.append(
                {
                    "keep": keep,
                    "layout": name,
                    "ms": 1000 * min(_seconds(step, 1) for _ in range(3)),
                }
            )
    return rows


def threads_compared(backbone: Backbone) -> list[dict[str, Any]]:
    """Milliseconds of a step by keep ratio and threads, alone and beside a process in a busy loop."""
    rows = []
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 5, (128,))
    before = torch.get_num_threads()
    for keep in (0.1, 0.2, 0.32):
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            small = resize(backbone.with_head(5), exact_widths(unit_groups(backbone.model), keep))
            model = lay_out(small, "cpu").train()
            optimizer = make_optimizer(model, Recipe())

            def step(m: Any = model, o: Any = optimizer) -> None:
                batch = Batch(x.contiguous(memory_format=torch.channels_last), y)
                train_step(m, o, batch, 0.01, "cpu")

            row: dict[str, Any] = {"keep": keep, "threads": threads}
            step()
            row["alone_ms"] = 1000 * float(np.median([_seconds(step, 1) for _ in range(20)]))
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                row["beside_ms"] = 1000 * float(np.median([_seconds(step, 1) for _ in range(20)]))
                busy.kill()
            rows.append(row)
            print(row, flush=True)
    torch.set_num_threads(before)
    return rows


def _seconds(run: Callable[[], Any], steps: int) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
