"""Backbones of every family small enough for a test, real handwritten digits, and what to do with them.

Nothing here is trained: weights are drawn, and so are the statistics and scales of normalisation, since a
network as timm initialises it has residual branches that are switched off.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.families.resnet import RESNET
from mvp_edge.families.vit import VIT
from mvp_edge.methods import ahnp
from mvp_edge.methods.catalogue import METHODS, recipe_for
from mvp_edge.pruning import training
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.subnet import extract
from mvp_edge.tasks.task import Images
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import sha256_file, write_json

torch.set_num_threads(1)  # the layout, and with it the last bits, follow the number of threads

CIFAR = {"conv1": "Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)"}
SLOW = {"conv1.0": "Conv2d(3, 4, kernel_size=3, stride=1, padding=1, bias=False)"}
"""Stems that keep the size of small images."""
THIN = {"layers": [2, 1, 1, 1], "channels": [8, 12, 16, 24]}
SHALLOW = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 4}
FAMILIES: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, Any]]] = {
    "resnet18": ("resnet18", CIFAR | {"maxpool": "Identity()"}, THIN),
    "resnet18d": ("resnet18d", SLOW | {"maxpool": "Identity()"}, THIN | {"stem_width": 4}),
    "resnet26": ("resnet26", CIFAR, THIN),
    "resnet26d": ("resnet26d", SLOW, THIN | {"stem_width": 4}),
    "resnet50": ("resnet50", CIFAR, {"layers": [1, 2, 1, 1], "channels": [4, 6, 8, 10]}),
    "resnetaa50d": ("resnetaa50d", SLOW, THIN | {"layers": [1, 1, 1, 1], "stem_width": 4}),
    "vit": ("vit_tiny_patch16_224", {}, SHALLOW),
    "deit": ("deit_tiny_patch16_224", {}, SHALLOW | {"num_heads": 4}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, SHALLOW),
}
"""Name → timm's name, changes and arguments."""

CASES = [
    (name, policy)
    for name in FAMILIES
    for policy in (RESNET if name.startswith("resnet") else VIT).policies
]
"""Every family under each of its policies."""


@cache
def backbone(name: str = "resnet18d", classes: int = 6, size: int = 16) -> Backbone:
    """One of `FAMILIES`; shared by the tests, so not to be changed."""
    timm_name, changes, arguments = FAMILIES[name]
    architecture = Architecture(timm_name, changes, arguments, size)
    torch.manual_seed(0)
    model = shaken(architecture.build(classes))
    preprocess = Preprocess(size, (0.3, 0.3, 0.3), (0.4, 0.4, 0.4))
    digest = f"{name} {classes} {size}"
    return Backbone(name, architecture, model, preprocess, (), digest, name)


def shaken(model: nn.Module) -> nn.Module:
    """The same model with drawn scales, offsets and running statistics."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("running_var", "norm1.weight", "norm2.weight")) or "bn" in name:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) - 0.3)
            elif name.startswith(("blocks.", "patch_embed.")):
                tensor.mul_(10)  # timm starts with so little that every image looks alike
    return model


Describe = Callable[..., str]
"""`described` in a folder of the test's own."""


def described(folder: Path, name: str = "resnet18", tensors: Any = None, **changes: Any) -> str:
    """Write a description and its weights, with changes to either; returns the description's path."""
    whole = backbone(name)
    weights = folder / "w.safetensors"
    save_file(whole.model.state_dict() if tensors is None else tensors, weights)
    facts = {
        "schema": 1,
        "name": name,
        "library": "timm",
        "architecture": FAMILIES[name][0],
        "changes": FAMILIES[name][1],
        "arguments": FAMILIES[name][2],
        "weights": weights.name,
        "sha256": sha256_file(weights),
        "num_classes": 6,
        "input_size": [3, 16, 16],
        "mean": whole.preprocess.mean,
        "std": whole.preprocess.std,
    }
    path = folder / "b.json"
    path.write_text(json.dumps(facts | changes), encoding="utf-8")
    return str(path)


def refusal(name: str, **arguments: Any) -> str:
    """What a user who loads this backbone reads: one line."""
    with pytest.raises(BadInput) as caught:
        load_backbone(name, **arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


@cache
def _digits(size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = (data.images * (255 / 16)).astype(np.uint8)
    times = size // 8
    large = grey.repeat(times, axis=1).repeat(times, axis=2)
    return np.repeat(large[..., None], 3, axis=3), data.target.astype(np.int64)


def digits(classes: Sequence[int] = (0, 1, 2), count: int = 64, size: int = 16) -> Images:
    """``count`` real handwritten digits of these classes, labelled from 0."""
    pixels, targets = _digits(size)
    rows = np.flatnonzero(np.isin(targets, classes))[:count]
    return Images(pixels[rows], np.array([classes.index(t) for t in targets[rows]], np.int64))


def problem(
    name: str = "resnet18d", method: str = "ifp", steps: int = 20, **changes: Any
) -> Problem:
    """Three digits to be told apart by a quarter of ``name``."""
    whole = changes.pop("backbone", None) or backbone(name)
    policy = changes.pop("policy", whole.family.policies[0])
    recipe = recipe_for(method, whole.family, steps=steps, augment=("shift",))
    given: dict[str, Any] = {
        "backbone": whole,
        "policy": policy,
        "classes": 3,
        "train": digits(size=whole.preprocess.size),
        "validation": None,
        "widths": exact_widths(unit_groups(whole.model, policy), 0.25),
        "recipe": recipe,
    }
    return Problem(**given | changes)


def random_kept(
    model: nn.Module, seed: int, policy: str | None = None
) -> dict[str, NDArray[np.int64]]:
    """Any number of any units of each group."""
    rng = np.random.default_rng(seed)
    return {
        group.name: np.sort(rng.permutation(group.size)[: rng.integers(1, group.size + 1)])
        for group in unit_groups(model, policy)
    }


def voter(name: str, seed: int, keep: float = 0.25, whole: Backbone | None = None) -> Voter:
    """A neighbour with a drawn ranking and weights of its own, as if it had been pruned and trained."""
    whole = whole or backbone(name)
    rng = np.random.default_rng(seed)
    groups = unit_groups(whole.model)
    widths = exact_widths(groups, keep)
    ranking = {g.name: rng.permutation(g.size).astype(np.int64) for g in groups}
    kept = {g.name: np.sort(ranking[g.name][g.size - widths[g.name] :]) for g in groups}
    model = extract(whole.with_head(3), kept)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=noise))
    return Voter(f"{name} {seed}", kept, ranking, model.state_dict())


def network(whole: Backbone, voter: Voter, classes: tuple[str, ...] = ("a", "b", "c")) -> Network:
    """A voter as it lies on disk."""
    return Network(
        architecture=whole.architecture,
        policy=whole.family.policies[0],
        backbone=whole.name,
        backbone_sha256=whole.sha256,
        classes=classes,
        preprocess=whole.preprocess,
        kept=voter.kept,
        ranking=voter.ranking,
        weights=voter.weights,
    )


def prune_by(method: str, problem: Problem) -> Pruned:
    """Run a method by name; three drawn voters can be asked."""
    voters = [voter(problem.backbone.name, seed) for seed in range(3)]
    return METHODS[method].prune(replace(problem, voters=voters))


def leave(pruned: Pruned, place: Path) -> None:
    """Write all of a result but the seconds that it took."""
    tensors = {f"model/{n}": t for n, t in pruned.model.state_dict().items()}
    for part, arrays in (("kept", pruned.kept), ("ranking", pruned.ranking)):
        tensors |= {f"{part}/{n}": torch.from_numpy(a.copy()) for n, a in arrays.items()}
    for ratio, (kept, weights) in pruned.snapshots.items():
        tensors |= {f"{ratio}/kept/{n}": torch.from_numpy(a.copy()) for n, a in kept.items()}
        tensors |= {f"{ratio}/model/{n}": t for n, t in weights.items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, place.with_suffix(".tensors"))
    write_json(place, [vars(pruned.ledger), vars(pruned.history)])


def until_killed(method: str, folder: Path, at: int | None, **changes: Any) -> int:
    """Run a method in a process of its own that SIGKILL ends at step ``at``; returns its exit code."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_resumable, args=(method, folder, at, changes)
    )
    process.start()
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def _resumable(method: str, folder: Path, at: int | None, changes: dict[str, Any]) -> None:
    def progress(phase: str, done: int, _total: int) -> None:
        if (phase, done) == ("tuning", at):
            os.kill(os.getpid(), signal.SIGKILL)

    training.SAVE_EVERY = ahnp.SAVE_EVERY = 3  # type: ignore[attr-defined]
    family = "deit" if method == "ahnp" else "resnet18d"
    given: dict[str, Any] = {"checkpoint": folder / "checkpoint", "progress": progress}
    leave(prune_by(method, problem(family, method, **given | changes)), folder / "result.json")
