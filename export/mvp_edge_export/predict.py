"""Labels for images, from a bundle alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import IMAGE_SUFFIXES, Undecodable, open_rgb
from mvp_edge_export.profile import NumberFormat
from mvp_edge_export.sessions import Session, open_session


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, or why the image was skipped."""

    file: Path
    top: tuple[tuple[str, float], ...] = ()
    """(label, probability) of the likeliest classes, the likeliest first; empty when skipped."""
    skipped: str | None = None
    """Why the image could not be decoded."""

    @property
    def label(self) -> str | None:
        """The likeliest class."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Its probability."""
        return self.top[0][1] if self.top else None

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {
            "file": str(self.file),
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": label, "probability": share} for label, share in self.top],
            "skipped": self.skipped,
        }


def predict(
    bundle: Bundle,
    sources: Sequence[Path],
    runtime: str | None = None,
    top: int = 5,
    threads: int | None = None,
    *,
    precision: NumberFormat | None = None,
) -> Iterator[Prediction]:
    """Classify images one by one, in the order given; an image that cannot be decoded is skipped.

    Args:
        bundle: from ``load_bundle``.
        sources: image files, and folders, which are searched at every depth for image suffixes.
        runtime: a key of ``sessions.RUNTIMES``.
        top: how many classes to name.
        threads: threads of one inference.
        precision: of the network's file. For each of these, None takes what was chosen for the
            device (see ``sessions.open_session``).

    Returns:
        One prediction an image, as each is made.

    Raises:
        BadInput: a source that does not exist, a folder without images, or a runtime that cannot be
            used; all found before the first image is read.
    """
    if top < 1:
        raise BadInput(f"--top {top}: at least 1")
    files = [file for source in sources for file in _images(source)]
    if not files:
        raise BadInput("no images were given")
    session = open_session(bundle, runtime, threads, precision=precision)
    return (_classify(bundle, session, file, top) for file in files)


def _images(source: Path) -> list[Path]:
    if source.is_dir():
        found = [
            path
            for path in source.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        ]
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise BadInput(f"{source}: no images in this folder ({suffixes})")
        return sorted(found)
    if not source.exists():
        raise BadInput(f"{source} does not exist; give image files or folders")
    return [source]


def _classify(bundle: Bundle, session: Session, file: Path, top: int) -> Prediction:
    try:
        image = open_rgb(file, str(file))
    except Undecodable as error:
        return Prediction(file, skipped=str(error))
    pixels = bundle.preprocess.pixels(image)
    logits = session.run(bundle.tensor(pixels[None]))[0].astype(np.float64)
    if len(logits) != len(bundle.labels):
        raise BadInput(
            f"{bundle.path}: {len(bundle.labels)} labels for a network of {len(logits)} classes;"
            " export it again"
        )
    weights = np.exp(logits - logits.max())
    shares = weights / weights.sum()
    best = np.argsort(-shares, kind="stable")[:top]
    return Prediction(file, tuple((bundle.labels[k], float(shares[k])) for k in best))
