"""One-shot magnitude pruning, then knowledge distillation from the unpruned backbone (Hinton et al. 2015).

the backbone's features of every training image, once → logits of the task's classes by nearest class means
the units with the largest weights                    → fine-tuning on the labels and those logits
"""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mvp_edge.methods.magnitude import magnitude
from mvp_edge.pruning.arithmetic import compute
from mvp_edge.pruning.batches import to_input
from mvp_edge.pruning.distillation import Teacher
from mvp_edge.pruning.finetune import Ledger, class_means
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.cost import forward_macs

TEACHER_BATCH = 250
"""Images in a batch of the teacher."""
WEIGHT, TEMPERATURE = 0.5, 4.0
"""Weight of the distillation term in the loss, and its temperature; neither was tuned."""


def distill(problem: Problem) -> Pruned:
    """Keep the units with the largest weights; fine-tune on the labels and the backbone's logits."""
    start, ledger = time.perf_counter(), Ledger()
    logits = teacher_logits(problem, ledger)
    seconds = time.perf_counter() - start
    teacher = Teacher(logits, WEIGHT, TEMPERATURE, same_classes=True)
    pruned = magnitude(replace(problem, teacher=teacher))
    pruned.ledger.statistics_flops += ledger.statistics_flops
    pruned.seconds += seconds
    return pruned


def teacher_logits(problem: Problem, ledger: Ledger) -> torch.Tensor:
    """Logits [N, C] of the training images by the nearest class means of the backbone's features; counted."""
    whole = problem.backbone.with_head(problem.classes)
    features = network_features(whole, problem, ledger)
    weight, bias = class_means(features, torch.from_numpy(problem.train.labels), problem.classes)
    return features @ weight.T + bias


@torch.no_grad()
def network_features(model: nn.Module, problem: Problem, ledger: Ledger) -> torch.Tensor:
    """Input of the network's (first) classifier for every training image, [N, D]; counted."""
    accelerator, pixels = problem.recipe.accelerator, problem.train.pixels
    model.eval().to(accelerator)
    seen: list[torch.Tensor] = []
    head = next(iter(heads(model).values()))
    hook = head.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].float().cpu())
    )
    for first in range(0, len(pixels), TEACHER_BATCH):
        some = torch.from_numpy(np.array(pixels[first : first + TEACHER_BATCH]))
        with compute(accelerator):
            model(to_input(some, problem.backbone.preprocess).to(accelerator))
        done = min(first + len(some), len(pixels))
        problem.progress("teacher logits", done, len(pixels))
    hook.remove()
    ledger.statistics_flops += forward_macs(model, problem.backbone.shape) * len(pixels)
    return torch.cat(seen)
