"""Magnitude pruning: the units with the largest weights are kept, and fine-tuned (Li et al. 2017)."""

from mvp_edge.pruning.importance import weight_norms
from mvp_edge.pruning.one_shot import prune_once
from mvp_edge.pruning.problem import Problem, Pruned


def magnitude(problem: Problem) -> Pruned:
    """Keep the units whose weights have the largest L2 norm in the backbone; fine-tune (Li et al. 2017)."""
    return prune_once(problem, weight_norms(problem.backbone.model, problem.groups))
