"""One-shot pruning: one cut of the backbone by importance, then fine-tuning."""

import numpy as np

from mvp_edge.pruning.importance import Importance
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import fine_tune
from mvp_edge.subnetwork.subnet import extract


def prune_once(problem: Problem, importance: Importance) -> Pruned:
    """Keep each group's most important units at once, with the backbone's weights, and fine-tune."""
    order = {name: np.argsort(value, kind="stable") for name, value in importance.items()}
    kept = {
        name: np.sort(units[len(units) - problem.widths.get(name, len(units)) :])
        for name, units in order.items()
    }
    model = extract(problem.backbone.with_head(problem.classes), kept, problem.policy)
    pruned = fine_tune(problem, model, kept)
    pruned.ranking = order
    return pruned
