"""Which of two networks of one cost is more accurate: large images and few units, or small images and many?

    python -m benchmarks.study.sides BACKBONE [--tasks trashnet,clothing,rssc_aerial]     needs MVP_EDGE_DATA

Each task of photographs is learned at each side of the image and each keep ratio: the units with the largest
weights, then a hundred steps of 32 images. The images that are held out, validation and test, are predicted.
Rows go to results/sides.jsonl; what is there is not repeated.
"""

import argparse
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch

from benchmarks.data import below_data, data_folder
from benchmarks.study.rows import RESULTS
from mvp_edge.families import unit_groups
from mvp_edge.methods.magnitude import magnitude
from mvp_edge.pruning.finetune import predict_logits
from mvp_edge.pruning.problem import Problem
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.sides import at_side
from mvp_edge.tasks.task import Task

ROWS = RESULTS / "sides.jsonl"
DEVELOPMENT = ("trashnet", "clothing", "rssc_aerial")
BACKBONES = {
    "efficientnet-lite0": ("efficientnet-lite0", (32, 48, 64, 96, 128), 1e-3),
    "deit-tiny": (
        "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
        (48, 64, 96, 128),
        2e-4,
    ),
}
"""Source, sides in pixels, peak learning rate."""
KEEPS = (1.0, 0.75, 0.5, 0.35)
STEPS, BATCH = 100, 32


def photo_task(name: str) -> Task:
    """One of the tasks of photographs, with its usual splits."""
    folder = Path(gettempdir()) / "mvp-edge-photo-tasks"
    if not (folder / "photo_tasks" / name).exists():
        with zipfile.ZipFile(data_folder() / "photo_tasks.zip") as archive:
            archive.extractall(folder)
    return Task.open(folder / "photo_tasks" / name)


def measured(backbone: Backbone, task: Task, keep: float, lr: float) -> dict[str, Any]:
    """Learn the task with this share of the units, and predict what was held out."""
    recipe = Recipe(steps=STEPS, batch=BATCH, optimizer="adamw", lr=lr, weight_decay=0.05)
    widths = exact_widths(unit_groups(backbone.model), keep)
    problem = Problem(
        backbone=backbone,
        policy=backbone.family.policies[0],
        classes=len(task.classes),
        train=task.images("train", backbone.preprocess),
        validation=None,
        widths=widths,
        recipe=recipe,
    )
    started = time.perf_counter()
    pruned = magnitude(problem)
    right: list[np.ndarray[Any, Any]] = []
    labels: list[np.ndarray[Any, Any]] = []
    for split in ("val", "test"):
        images = task.images(split, backbone.preprocess)
        logits = predict_logits(pruned.model, images.pixels, backbone.preprocess)
        right.append(logits.argmax(1) == images.labels)
        labels.append(images.labels)
    hit, of = np.concatenate(right), np.concatenate(labels)
    return {
        "macs": forward_macs(pruned.model, backbone.shape),
        "params": sum(p.numel() for p in pruned.model.parameters()),
        "accuracy": float(np.mean([hit[of == label].mean() for label in np.unique(of)])),
        "images": len(of),
        "seconds": round(time.perf_counter() - started, 1),
    }


def missing(name: str, tasks: tuple[str, ...]) -> Iterator[tuple[str, int, float]]:
    """The task, side and keep ratio of each row that is not there, the cheapest first."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(r["backbone"], r["task"], r["side"], r["keep"]) for r in rows}
    every = [(t, s, k) for s in BACKBONES[name][1] for k in KEEPS for t in tasks]
    for task, side, keep in sorted(every, key=lambda one: one[1] * one[2]):
        if (name, task, side, keep) not in done:
            yield task, side, keep


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", choices=list(BACKBONES), help="the backbone to cut")
    parser.add_argument(
        "--tasks",
        default=",".join(DEVELOPMENT),
        help="tasks of photo_tasks.zip (default: the development tasks)",
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    source, _, lr = BACKBONES[given.backbone]
    whole = load_backbone(below_data(source) if "@" in source else source)
    tasks = tuple(given.tasks.split(","))
    opened = {name: photo_task(name) for name in tasks}
    for name, side, keep in missing(given.backbone, tasks):
        row = {
            "backbone": given.backbone,
            "task": name,
            "side": side,
            "keep": keep,
            "steps": STEPS,
            **measured(at_side(whole, side), opened[name], keep, lr),
        }
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
