"""Train, prune, fine-tune: how networks are usually pruned (Han et al. 2015; filters: Li et al. 2017)."""

from mvp_edge.families import unit_groups
from mvp_edge.pruning.importance import least_important, weight_norms
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import SAVE_EVERY, Training, prepare


def conventional(problem: Problem) -> Pruned:
    """Half of the steps on the whole network, one cut by the L2 norm of its weights, then the other half."""
    half = problem.recipe.steps // 2
    training = Training(problem, problem.backbone.with_head(problem.classes), {}, "conventional")
    if not training.restore():
        prepare(training)
        training.save()
    while training.step < problem.recipe.steps or not training.cut:
        if training.step == half and not training.cut:
            importance = weight_norms(training.model, unit_groups(training.model, problem.policy))
            training.shrink(*least_important(importance, problem.widths))
        upto = half if training.step < half else problem.recipe.steps
        training.run(min(training.step + SAVE_EVERY, upto))
        training.save()
    return training.finished(
        weight_norms(training.model, unit_groups(training.model, problem.policy))
    )
