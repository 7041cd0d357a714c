"""Pruning from scratch with the unpruned backbone as the teacher (Hinton et al. 2015).

the backbone's view of every training image, once  → logits of the task's classes, by the means of each class
its largest units, with its weights                → steps that heed the labels and those logits alike
"""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mvp_edge.pruning.arithmetic import compute
from mvp_edge.pruning.batches import to_input
from mvp_edge.pruning.distillation import Teacher
from mvp_edge.pruning.finetune import Ledger, class_means
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.scratch import magnitude
from mvp_edge.subnetwork.backbone import heads
from mvp_edge.subnetwork.cost import forward_macs

ASKED_AT_ONCE = 250
"""Images."""
SHARE, TEMPERATURE = 0.5, 4.0
"""Of the loss that is the backbone's opinion, and its temperature; not tuned."""


def distill(problem: Problem) -> Pruned:
    """Keep the largest units and their weights; fine-tune, heeding the backbone's opinion beside the labels."""
    start, ledger = time.perf_counter(), Ledger()
    teacher = Teacher(teacher_logits(problem, ledger), SHARE, TEMPERATURE, own=True)
    asked = time.perf_counter() - start
    pruned = magnitude(replace(problem, teacher=teacher))
    pruned.ledger.statistics_flops += ledger.statistics_flops
    pruned.seconds += asked
    return pruned


def teacher_logits(problem: Problem, ledger: Ledger) -> torch.Tensor:
    """The backbone's logits of the training images [N, C], its head by class means; counted."""
    whole = problem.backbone.with_head(problem.classes)
    features = network_features(whole, problem, ledger)
    weight, bias = class_means(features, torch.from_numpy(problem.train.labels), problem.classes)
    return features @ weight.T + bias


@torch.no_grad()
def network_features(model: nn.Module, problem: Problem, ledger: Ledger) -> torch.Tensor:
    """What a network's (first) classifier sees of every training image [N, D]; counted."""
    accelerator, pixels = problem.recipe.accelerator, problem.train.pixels
    model.eval().to(accelerator)
    seen: list[torch.Tensor] = []
    head = next(iter(heads(model).values()))
    hook = head.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].float().cpu())
    )
    for first in range(0, len(pixels), ASKED_AT_ONCE):
        some = torch.from_numpy(np.array(pixels[first : first + ASKED_AT_ONCE]))
        with compute(accelerator):
            model(to_input(some, problem.backbone.preprocess).to(accelerator))
        problem.progress("asking the backbone", min(first + len(some), len(pixels)), len(pixels))
    hook.remove()
    ledger.statistics_flops += forward_macs(model, problem.backbone.shape) * len(pixels)
    return torch.cat(seen)
