"""Random selection: units drawn uniformly, the backbone's weights, fine-tuning. A control for the other methods."""

import numpy as np

from mvp_edge.pruning.one_shot import prune_once
from mvp_edge.pruning.problem import Problem, Pruned


def random(problem: Problem) -> Pruned:
    """Keep units drawn uniformly; the backbone's weights; fine-tune."""
    rng = np.random.default_rng([problem.seed, 3])
    return prune_once(problem, {g.name: rng.random(g.size) for g in problem.groups})
