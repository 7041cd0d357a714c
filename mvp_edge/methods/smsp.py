"""One-shot pruning by a score mask (SMSP, arXiv 2307.04365), reconstructed from the paper's abstract.

s_k = Σ_j w_j · [entry j kept unit k]      over the zoo's entries, weighted by their similarity
Ω   = the units with the highest scores; among equals those with larger weights in the backbone
θ   = the backbone's weights

What the abstract leaves open is our choice: w_j = exp(similarity_j − the best similarity). For LEEP that is the
likelihood of the task's labels per image under entry j, relative to the best entry.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mvp_edge.pruning.importance import weight_norms
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import fine_tune
from mvp_edge.pruning.votes import Ballot
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import extract, resize

Spread = Literal["layer", "global"]


def smsp(problem: Problem, spread: Spread = "layer") -> Pruned:
    """Score the units by the zoo, cut once, re-estimate statistics, initialise the head, fine-tune.

    Args:
        problem: with voters.
        spread: "layer" keeps the best units of each group, at the problem's widths; "global" the best units of
            all groups together, as many as the multiply-adds of those widths allow.
    """
    scores, counts = score_mask(problem)
    widths = problem.widths if spread == "layer" else global_widths(problem, scores)
    ballots = []
    for group in problem.groups:
        order = np.argsort(scores[group.name], kind="stable")
        best = np.sort(order[group.size - widths.get(group.name, group.size) :])
        ballots.append(Ballot(group, counts[group.name], best))
    kept = {ballot.group.name: ballot.kept for ballot in ballots}
    model = extract(problem.backbone.with_head(problem.classes), kept, problem.policy)
    pruned = fine_tune(problem, model, kept)
    pruned.ranking = {name: np.argsort(own, kind="stable") for name, own in scores.items()}
    pruned.ballots = tuple(ballots)
    return pruned


def score_mask(
    problem: Problem,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
    """Each unit's score, with ties broken by weights, and how many entries kept it; both by unit group."""
    similarity = np.array([voter.similarity for voter in problem.voters])
    shares = np.exp(similarity - similarity.max())
    shares /= shares.sum()
    norms = weight_norms(problem.backbone.model, problem.groups)
    scores, counts = {}, {}
    for group in problem.groups:
        width = problem.widths.get(group.name, group.size)
        score, count = np.zeros(group.size), np.zeros(group.size, np.int64)
        for voter, share in zip(problem.voters, shares, strict=True):
            choice = voter.choice(group, width)
            score[choice] += share
            count[choice] += 1
        # Far below any difference between scores: weights only break ties.
        score = score.round(9) + 1e-10 * norms[group.name] / max(norms[group.name].max(), 1e-30)
        scores[group.name], counts[group.name] = score, count
    return scores, counts


def global_widths(problem: Problem, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, int]:
    """The widths at which all groups are cut at one score, within the multiply-adds of the problem's widths."""
    outline, shape = problem.backbone.outline(problem.classes), problem.backbone.shape
    fixed = {g.name: problem.widths.get(g.name, g.size) for g in problem.groups}
    free = [g.name for g in problem.groups if not g.last_resort]
    ranked = np.sort(np.concatenate([scores[name] for name in free]))[::-1]

    def widths(count: int) -> dict[str, int]:
        least = ranked[count - 1]
        return fixed | {name: max(1, int((scores[name] >= least).sum())) for name in free}

    def macs(count: int) -> int:
        return forward_macs(resize(outline, widths(count), problem.policy), shape)

    allowed = forward_macs(resize(outline, fixed, problem.policy), shape)
    most = bisect_right(range(1, len(ranked) + 1), allowed, key=macs)
    return widths(max(1, most))
