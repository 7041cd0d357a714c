"""The export gate: a runtime must compute what PyTorch computes.

Two questions, each with its own measure:

- float32 arithmetic: on every image max|Δ| ≤ 1e-4 · max(1, max|logit|), and the same best class
  unless the two best lie within that tolerance of each other (``check_parity``). Where PyTorch's own
  float32 logits are further than that from its float64 ones, its distance counts instead;
- the arithmetic that a deployment will really use, which may be bfloat16 or float16: the top-1 on
  the test images must not fall (``check_accuracy``). Closeness says nothing there.

Everything here is NumPy on logits; PyTorch's come from the caller.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from mvp_edge_export.errors import GateFailed
from mvp_edge_export.manifest import Parity, RuntimeAccuracy
from mvp_edge_export.running.sessions import Session

REAL_IMAGES = 64
RANDOM_IMAGES = 16
TOLERANCE = 1e-4
ROUNDING = 10
"""A runtime may be so many times as far from PyTorch's float32 logits as these are from float64 ones. Both round
along the way, in another order; a network that was hardly trained may amplify that on random noise."""
MAX_DROP = 0.005
"""Share of the test images that a runtime may get wrong beyond PyTorch before it is looked at."""

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]


def gate_images(images: Pixels) -> tuple[Pixels, int]:
    """The images of the gate: real ones, spread evenly over ``images``, then random noise.

    Args:
        images: real images, uint8 [N, S, S, 3]. With fewer than ``REAL_IMAGES`` of them all are
            taken, and noise makes up the number.

    Returns:
        The images, and how many of them, at the front, are real.
    """
    real = min(REAL_IMAGES, len(images))
    chosen = np.linspace(0, len(images) - 1, real).round().astype(int)
    noise = np.random.default_rng(0).integers(
        0, 256, (REAL_IMAGES - real + RANDOM_IMAGES, *images.shape[1:]), dtype=np.uint8
    )
    return np.concatenate([images[chosen], noise]), real


def check_parity(
    reference: Floats,
    logits: Floats,
    session: Session,
    *,
    network: Literal["pruned", "baseline"],
    setting: str,
    real_images: int,
    exact: Callable[[Rows], Doubles] | None = None,
) -> Parity:
    """Hold a runtime's float32 logits against PyTorch's, image by image.

    Args:
        reference: PyTorch's logits [N, C].
        logits: the runtime's logits [N, C] of the same images.
        session: the runtime, for its name.
        network: which of the bundle's networks it is.
        setting: what was asked of the runtime, in words.
        real_images: how many of the N images are real.
        exact: gives PyTorch's logits of some of the images [n] in float64 arithmetic, [n, C].

    Raises:
        GateFailed: another shape, a value that is no number, too large a difference, or another
            best class.
    """
    where = f"{session.name} {session.version} ({setting}), {network} network"
    if logits.shape != reference.shape:
        raise _failed(f"{where}: logits {logits.shape} instead of {reference.shape}")
    if not (np.isfinite(logits).all() and np.isfinite(reference).all()):
        raise _failed(f"{where}: logits that are no numbers")
    difference = np.abs(logits.astype(np.float64) - reference).max(axis=1)
    tolerance = TOLERANCE * np.maximum(1.0, np.abs(reference.astype(np.float64)).max(axis=1))
    beyond = np.flatnonzero(difference > tolerance)
    if len(beyond) and exact is not None:
        rounding = np.abs(exact(beyond) - reference[beyond].astype(np.float64)).max(axis=1)
        tolerance[beyond] = np.maximum(tolerance[beyond], ROUNDING * rounding)
    worst = int((difference / tolerance).argmax())
    if difference[worst] > tolerance[worst]:
        raise _failed(
            f"{where}: a logit of image {worst} is {difference[worst]:.2e} away from PyTorch's,"
            f" {tolerance[worst]:.2e} is allowed"
        )
    ties = _swapped_ties(reference, logits, tolerance)
    if ties is None:
        raise _failed(f"{where}: another best class than PyTorch's")
    return Parity(
        network=network,
        runtime=session.name,
        version=session.version,
        setting=setting,
        real_images=real_images,
        random_images=len(reference) - real_images,
        max_difference=float(difference.max()),
        tolerance=float(tolerance[worst]),
        ties=ties,
    )


def accuracy_of(
    reference: Floats, logits: Floats, targets: Labels, session: Session
) -> RuntimeAccuracy:
    """Top-1 of a runtime as it is deployed, image by image against PyTorch's.

    Args:
        reference: PyTorch's logits [N, C].
        logits: the runtime's logits [N, C] of the same images.
        targets: the right classes [N].
        session: the runtime.
    """
    right = reference.argmax(axis=1) == targets
    right_here = logits.argmax(axis=1) == targets
    return RuntimeAccuracy(
        version=session.version,
        arithmetic=session.arithmetic,
        top1=float(right_here.mean()),
        images=len(targets),
        lost=int((right & ~right_here).sum()),
        gained=int((~right & right_here).sum()),
    )


def check_accuracy(found: RuntimeAccuracy, where: str) -> None:
    """Refuse a drop that is over ``MAX_DROP`` and larger than chance explains.

    With b images lost and c gained: b - c > 2 · √(b + c) (the paired comparison of McNemar). On few
    images, a swap of one or two of them is no evidence of a wrong graph.

    Args:
        found: the accuracy on test images.
        where: the runtime and the format, for the message.

    Raises:
        GateFailed: the accuracy dropped.
    """
    drop = found.lost - found.gained
    if drop > MAX_DROP * found.images and beyond_chance(found.lost, found.gained):
        before = found.top1 + drop / found.images
        raise _failed(
            f"{where} {found.version} computing in {found.arithmetic}: top-1 {found.top1:.1%} on"
            f" {found.images} test images, PyTorch {before:.1%}; leave this format out with"
            " --format, or this precision with --precision"
        )


def beyond_chance(lost: int, gained: int) -> bool:
    """Whether so many more images lost than gained are no accident."""
    return lost - gained > 2 * math.sqrt(lost + gained)


def _swapped_ties(reference: Floats, logits: Floats, tolerance: Floats) -> int | None:
    """Images whose best class changed within the tolerance; None if one changed beyond it."""
    rows = np.arange(len(reference))
    best, theirs = reference.argmax(axis=1), logits.argmax(axis=1)
    gap = reference[rows, best].astype(np.float64) - reference[rows, theirs]
    return None if (gap > tolerance).any() else int((best != theirs).sum())


def _failed(what: str) -> GateFailed:
    return GateFailed(f"export gate: {what}; no bundle was written")
