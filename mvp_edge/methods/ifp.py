"""Iterative filter pruning (the paper's Alg. 2): fine-tune, remove the least important filters, repeat.

The importance of a filter is its mean activation (Molchanov et al. 2016) or the first-order Taylor term of the loss
(Molchanov et al. 2019). The network shrinks physically at every drop, so steps get cheaper.
"""

import numpy as np
from numpy.typing import NDArray

from mvp_edge.families import unit_groups
from mvp_edge.pruning.importance import Meter, least_important, weight_norms
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.schedule import drop_schedule
from mvp_edge.pruning.training import SAVE_EVERY, Training, prepare


def ifp(problem: Problem, criterion: str = "activation") -> Pruned:
    """Iterative filter pruning with the importance criterion "activation" or "taylor".

    The importance is accumulated over the training batches of the last steps before each drop (about
    one pass over the data), so it costs no extra forward passes.
    """
    sizes = {g.name: g.size for g in problem.groups}
    drops = drop_schedule(sizes, problem.widths, problem.recipe.steps, problem.snapshots)
    full = problem.backbone.with_head(problem.classes)
    training = Training(problem, full, {}, f"ifp {criterion}")
    if not training.restore():
        prepare(training)
    one_pass = max(1, -(-len(problem.train.labels) // training.batches.size))
    for before, drop in zip((None, *drops[:-1]), drops, strict=True):
        if drop.step <= training.step and training.step > 0:
            continue
        training.run(max(training.step, drop.step - one_pass))
        importance = train_and_measure(training, criterion, drop.step)
        if before is not None and before.snapshot is not None:
            training.snapshot(before.snapshot)
        training.shrink(*least_important(importance, drop.widths))
        training.save()
    while training.step < problem.recipe.steps - one_pass:
        training.run(min(training.step + SAVE_EVERY, problem.recipe.steps - one_pass))
        training.save()
    return training.finished(train_and_measure(training, criterion, problem.recipe.steps))


def ifp_taylor(problem: Problem) -> Pruned:
    """Iterative filter pruning by the Taylor criterion."""
    return ifp(problem, "taylor")


def train_and_measure(
    training: Training, criterion: str, until: int
) -> dict[str, NDArray[np.float64]]:
    """Train up to step ``until``; returns each unit's importance, by its weights where no step was left to take."""
    groups = unit_groups(training.model, training.problem.policy)
    with Meter(training.model, groups, criterion) as meter:
        training.run(until)
    return meter.importance() or weight_norms(training.model, groups)
