"""Splits images into train, val (for choices) and test (for reported figures).

    given              train            val              test
    train, val, test   as given         as given         as given
    train, test        85 % of train    15 % of train    as given
    train, val         85 % of train    15 % of train    the given val
    train, or none     70 %             15 %             15 %

Within each class, images are ordered by a hash of the seed and their name. So a class of three images or
more is split in the same way in every task of one source and seed, whatever the other classes are (no image
that a zoo has trained on is a test image of another task), and an image that is added later leaves nearly all
others in their splits.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mvp_edge.tasks.labels import Found

HELD_OUT = 0.15
"""The share of a class's images in a split that is made here."""

# Given splits → splits to make from the training images.
_MADE: Mapping[frozenset[str], tuple[str, ...]] = {
    frozenset({"train"}): ("test", "val"),
    frozenset({"train", "val"}): ("val",),
    frozenset({"train", "test"}): ("val",),
    frozenset({"train", "val", "test"}): (),
}


def make_splits(found: Sequence[Found], seed: int) -> tuple[dict[str, list[Found]], dict[str, str]]:
    """Split images into train, val and test.

    Of n images of a class, round(0.15 n) are held out for each split that has to be made, at least one as
    long as one image remains for training. If a class has two images and two splits have to be made, one image
    goes to the split that has fewer images so far.

    Args:
        found: the usable images; their split is "" if the source has no splits.
        seed: of the splits that have to be made.

    Returns:
        Split → images, sorted by label and file, and split → a description of its origin.

    Raises:
        KeyError: the source has splits but no train split.
    """
    given = frozenset(one.split or "train" for one in found)
    made = _MADE[given]
    val_is_test = given == {"train", "val"}
    splits: dict[str, list[Found]] = {"train": [], "val": [], "test": []}
    pool: dict[str, list[Found]] = {}
    for one in found:
        if one.split in ("", "train"):
            pool.setdefault(one.label, []).append(one)
        else:
            splits["test" if val_is_test else one.split].append(one)
    for label in sorted(pool):
        rest = sorted(pool[label], key=lambda one: rank(one.file, seed))
        held = max(1, math.floor(HELD_OUT * len(rest) + 0.5))
        # The sort is stable: with equal counts, test comes first.
        order = sorted(made, key=lambda split: len(splits[split])) if len(rest) == 2 else made
        for split in order:
            take = min(held, len(rest) - 1)
            splits[split] += rest[:take]
            rest = rest[take:]
        splits["train"] += rest
    for images in splits.values():
        images.sort(key=lambda one: (one.label, one.file))
    of = "the given train images" if any(one.split for one in found) else "all images"
    origin = dict.fromkeys(splits, "as given")
    if made:
        origin["train"] = f"{of}, without those held out"
    for split in made:
        origin[split] = f"{HELD_OUT:.0%} of {of}, stratified, seed {seed}"
    if val_is_test:
        origin["test"] = "the given val images"
    return splits, origin


def stratified_rows(
    labels: NDArray[np.int64], files: Sequence[str], n: int, seed: int
) -> NDArray[np.int64]:
    """Rows of a stratified subset of at most ``n`` images, ascending.

    Every class keeps its share to within one image, and at least one image where ``n`` allows it.

    Args:
        labels: [N] class indices.
        files: [N] names; together with the seed they determine the subset.
        n: size of the subset; all rows if there are fewer.
        seed: of the choice of images.
    """
    rows: list[int] = []
    for label, quota in _quotas(labels, n).items():
        mine = np.flatnonzero(labels == label).tolist()
        rows += sorted(mine, key=lambda row: rank(files[row], seed))[:quota]
    return np.array(sorted(rows), np.int64)


def _quotas(labels: NDArray[np.int64], n: int) -> dict[int, int]:
    """Number of images of each class, by largest remainders after one image for every class."""
    present, counts = np.unique(labels, return_counts=True)
    n = min(n, len(labels))
    least = 1 if n >= len(present) else 0
    exact = counts * (n / max(1, len(labels)))
    quotas = np.maximum(least, np.floor(exact)).astype(np.int64)
    while quotas.sum() > n:
        quotas[np.argmax(np.where(quotas > least, quotas - exact, -np.inf))] -= 1
    while quotas.sum() < n:
        quotas[np.argmax(np.where(quotas < counts, exact - quotas, -np.inf))] += 1
    return dict(zip(present.tolist(), quotas.tolist(), strict=True))


def rank(file: str, seed: int) -> bytes:
    """Sort key of a file in the order of ``seed``; the same on every machine and in every version."""
    return hashlib.blake2b(f"{seed}\0{file}".encode(), digest_size=8).digest()
