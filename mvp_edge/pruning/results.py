"""What becomes of a pruned network: the form it is stored in, its accuracy, its costs."""

from typing import Any

import torch

from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.problem import Pruned, Snapshot
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.subnet import Kept
from mvp_edge.tasks.task import Task


def to_network(
    backbone: Backbone,
    policy: str,
    classes: tuple[str, ...],
    pruned: Pruned,
    snapshot: Snapshot | None = None,
) -> Network:
    """The network that a method returned, or one of its snapshots, in the form that is stored."""
    kept: Kept
    weights: dict[str, torch.Tensor]
    kept, weights = snapshot or (pruned.kept, pruned.model.state_dict())
    return Network(
        architecture=backbone.architecture,
        policy=policy,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        classes=classes,
        preprocess=backbone.preprocess,
        kept=kept,
        ranking=pruned.ranking,
        weights=weights,
    )


def scores(pruned: Pruned, task: Task, backbone: Backbone) -> dict[str, float]:
    """Top-1 accuracy on validation and test images, computed in float32."""
    result = {}
    for split in ("val", "test"):
        images = task.images(split, backbone.preprocess)
        if len(images.labels):
            logits = predict_logits(pruned.model, images.pixels, backbone.preprocess)
            result[split] = accuracy(logits, images.labels)
    return result


def costs(pruned: Pruned, backbone: Backbone) -> dict[str, int]:
    """Multiply-adds of an inference, parameters, and the multiply-adds that making the network took."""
    return {
        "forward": forward_macs(pruned.model, backbone.shape),
        "params": sum(p.numel() for p in pruned.model.parameters()),
        "statistics": pruned.ledger.statistics_flops,
        "training": pruned.ledger.training_flops,
    }


def recipe_facts(method: str, recipe: Recipe, pruned: Pruned, seed: int) -> dict[str, Any]:
    """How a network was made: the recipe part of entry.json."""
    return {
        "method": method,
        "steps": recipe.steps,
        "lr": recipe.lr,
        "batch": recipe.batch,
        "updates": recipe.updates,
        "seed": seed,
        "seconds": round(pruned.seconds, 1),
    }
