"""Similarity of tasks: LEEP from a model's predictions, or WordNet similarity of the class names.

LEEP (Nguyen et al. 2020) needs one forward pass of every zoo model over some of the target's training
images; WordNet needs no images. Both give a list of the zoo's tasks, the most similar first, from which
``nearest`` takes the neighbours.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mvp_edge.zoo.synsets import WordNet
from mvp_edge_export.errors import BadInput


@dataclass(frozen=True)
class Match:
    """One class of the target task, and the class of the other task that is nearest in meaning."""

    ours: str
    theirs: str
    wup: float
    """Wu–Palmer similarity, in (0, 1]; 1 only for the same meaning."""


@dataclass(frozen=True)
class SimilarTask:
    """A task of the zoo and how similar it is to the target task."""

    task: str
    score: float
    """LEEP (≤ 0) or WordNet similarity (in (0, 1]); larger is more similar."""
    classes: tuple[str, ...]
    shared: tuple[Match, ...] = ()
    """For each class of the target its nearest class here; ``with_shared_meaning`` fills it in."""


def leep(source_probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """LEEP, the log expected empirical prediction: how well a source model predicts the target's labels.

        P(y, z) = 1/n Σ_{i: y_i = y} θ(x_i)_z,  P(y | z) = P(y, z) / P(z)
        LEEP    = 1/n Σ_i log Σ_z P(y_i | z) θ(x_i)_z

    Args:
        source_probabilities: θ, [n, Z], each row a softmax over the source's Z classes.
        labels: y, [n], the target's labels as any integers.

    Returns:
        A score in [−H(Y), 0] in nats, computed in float64; −H(Y) for a constant predictor.

    Raises:
        ValueError: a row is not a probability distribution, or the shapes do not fit.
    """
    theta = np.asarray(source_probabilities, dtype=np.float64)
    if theta.ndim != 2 or labels.shape != theta.shape[:1] or theta.size == 0:
        raise ValueError(f"probabilities {theta.shape} do not fit labels {labels.shape}")
    sums = theta.sum(axis=1, keepdims=True)
    # Written so that NaN fails too; the tolerance is for a softmax in single precision.
    if not (np.all(theta >= 0) and np.all(np.abs(sums - 1) <= 1e-3)):
        raise ValueError("the rows are not probabilities that sum to 1")
    theta = theta / sums
    theta = theta[:, theta.sum(axis=0) > 0]
    classes, of_image = np.unique(labels, return_inverse=True)
    joint = np.zeros((len(classes), theta.shape[1]))
    np.add.at(joint, of_image, theta)
    conditional = joint / joint.sum(axis=0)
    expected = np.einsum("iz,iz->i", conditional[of_image], theta)
    return min(0.0, float(np.log(expected).mean()))  # rounding may end just above 0


def wup_similarity(
    ours: Sequence[str], theirs: Sequence[str], wordnet: WordNet
) -> tuple[float, list[Match]]:
    """The similarity of two sets of synsets: ½ [mean over ours of max wup, and vice versa].

    Returns:
        The similarity, in (0, 1], 1 only for equal sets; and for each of ours, in order, its best
        match (the first of several).
    """
    if not ours or not theirs:
        raise ValueError("similarity is not defined for a task without classes")
    wup = np.array([[wordnet.wup(a, b) for b in theirs] for a in ours])
    best = wup.argmax(axis=1)
    matches = [
        Match(a, theirs[b], float(row[b])) for a, b, row in zip(ours, best, wup, strict=True)
    ]
    score = (wup.max(axis=1).mean() + wup.max(axis=0).mean()) / 2
    return float(score), matches


def rank_by_leep(
    predict: Callable[[str], npt.NDArray[np.floating]],
    labels: npt.NDArray[np.integer],
    entries: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> list[SimilarTask]:
    """Rank the zoo's entries by LEEP, the most similar first, ties by name.

    Args:
        predict: entry name → that model's softmax on the target's images, [n, Z of the entry].
        labels: [n], the labels of the same images.
        entries: entry name → its class names.
        progress: called with (entries done, entries in all) after each.

    Raises:
        BadInput: an entry's model gives no probabilities, which happens if it is damaged.
    """
    candidates = []
    for done, (task, classes) in enumerate(entries.items(), start=1):
        try:
            score = leep(predict(task), labels)
        except ValueError as error:
            raise BadInput(
                f"zoo entry {task}: no LEEP from its predictions ({error}); `mvp-edge zoo verify` "
                f"tells whether it is damaged"
            ) from error
        candidates.append(SimilarTask(task, score, tuple(classes)))
        if progress is not None:
            progress(done, len(entries))
    return _ranked(candidates)


def rank_by_wordnet(
    ours: Mapping[str, str], entries: Mapping[str, Mapping[str, str]], wordnet: WordNet
) -> list[SimilarTask]:
    """Rank the zoo's entries by the meaning of their class names, ties by name.

    Args:
        ours: class name → synset of the target task.
        entries: entry name → the same of the entry.
        wordnet: where the synsets are from.
    """
    candidates = []
    for task, theirs in entries.items():
        score, matches = wup_similarity([*ours.values()], [*theirs.values()], wordnet)
        candidates.append(SimilarTask(task, score, tuple(theirs), _named(matches, ours, theirs)))
    return _ranked(candidates)


def with_shared_meaning(
    candidates: Iterable[SimilarTask],
    ours: Mapping[str, str],
    entries: Mapping[str, Mapping[str, str]],
    wordnet: WordNet,
) -> list[SimilarTask]:
    """The same tasks, each with the best match of every target class; for the arguments see ``rank_by_wordnet``."""
    return [
        replace(candidate, shared=_named(matches, ours, theirs))
        for candidate in candidates
        for theirs in [entries[candidate.task]]
        for _, matches in [wup_similarity([*ours.values()], [*theirs.values()], wordnet)]
    ]


def nearest(
    candidates: Sequence[SimilarTask], n: int, *, disjoint_from: Collection[str] | None = None
) -> list[SimilarTask]:
    """The first ``n`` candidates; reverse the ranking for the farthest.

    Args:
        candidates: ranked.
        n: how many neighbours.
        disjoint_from: leave out every task that has one of these class names.

    Raises:
        BadInput: there are fewer than ``n``, or ``n`` is below 1.
    """
    if n < 1:
        raise BadInput(f"{n}: give at least 1", field="neighbours")
    forbidden = set(disjoint_from or ())
    eligible = [c for c in candidates if forbidden.isdisjoint(c.classes)]
    if n > len(eligible):
        left = len(candidates) - len(eligible)
        why = f" without a class in common with this task ({left} have one)" if left else ""
        raise BadInput(
            f"{n} neighbours were asked for, but the zoo has {len(eligible)} other "
            f"task{'' if len(eligible) == 1 else 's'}{why}: ask for fewer, or build more"
        )
    return eligible[:n]


def _ranked(candidates: Iterable[SimilarTask]) -> list[SimilarTask]:
    return sorted(candidates, key=lambda c: (-c.score, c.task))


def _named(
    matches: Iterable[Match], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[Match, ...]:
    """The matches, which come in the order of ``ours``, with class names in place of synsets."""
    their_name = {synset: name for name, synset in reversed([*theirs.items()])}
    return tuple(
        replace(match, ours=name, theirs=their_name[match.theirs])
        for name, match in zip(ours, matches, strict=True)
    )
