"""Classifies images with the network of a bundle.

files, folders, a stream of frames → open_rgb → Preprocess → session → softmax → Prediction
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import IMAGE_SUFFIXES, Undecodable, open_rgb
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.running.frames import frames
from mvp_edge_export.running.sessions import open_session

STREAM = Path("-")
"""The value of ``Prediction.file`` for images from a stream."""

Top = tuple[tuple[str, float], ...]
"""The most probable classes as (label, probability), in descending order."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, or the reason why it was skipped."""

    file: Path
    frame: int | None = None
    """Number of the image in a stream, from 0; None for a file."""
    top: Top = ()
    """The most probable classes; empty if the image was skipped."""
    skipped: str | None = None
    """Reason why the image could not be decoded; None if it was classified."""

    @property
    def name(self) -> str:
        """Name of the image for display."""
        return str(self.file) if self.frame is None else f"frame {self.frame}"

    @property
    def label(self) -> str | None:
        """The most probable class; None if the image was skipped."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Probability of the most probable class; None if the image was skipped."""
        return self.top[0][1] if self.top else None

    def to_json(self) -> dict[str, Any]:
        """The prediction as JSON values."""
        return {
            "file": str(self.file),
            "frame": self.frame,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": label, "probability": share} for label, share in self.top],
            "skipped": self.skipped,
        }


class Classifier:
    """The network of a bundle, loaded and ready to classify images.

    ``runtime``, ``threads`` and ``precision`` default to what was chosen for the device; see
    ``sessions.open_session``.

    Args:
        bundle: the bundle, from ``load_bundle``.
        runtime: a key of ``sessions.RUNTIMES``.
        threads: number of threads of one inference.
        precision: number format of the network.

    Raises:
        BadInput: the runtime cannot be used, or the bundle has no files in this number format.
    """

    def __init__(
        self,
        bundle: Bundle,
        runtime: str | None = None,
        threads: int | None = None,
        *,
        precision: NumberFormat | None = None,
    ) -> None:
        self.bundle = bundle
        self.session = open_session(bundle, runtime, threads, precision=precision)

    def __call__(self, image: Image.Image, top: int = 5) -> Top:
        """Classify an image.

        Args:
            image: RGB image of any size.
            top: number of classes to return.

        Returns:
            The ``top`` most probable classes, in descending order.

        Raises:
            BadInput: the network's output does not fit the labels or is not finite.
        """
        bundle = self.bundle
        pixels = bundle.preprocess.pixels(image)
        logits = self.session.run(bundle.tensor(pixels[None]))[0].astype(np.float64)
        if len(logits) != len(bundle.labels):
            raise BadInput(
                f"{bundle.path}: {len(bundle.labels)} labels for a network of {len(logits)}"
                " classes; export it again"
            )
        if not np.isfinite(logits).all():
            raise BadInput(
                f"{bundle.path}: the network's output contains NaN or infinite values in"
                f" {self.session.name} {self.session.version}; export it again"
            )
        weights = np.exp(logits - logits.max())
        shares = weights / weights.sum()
        best = np.argsort(-shares, kind="stable")[:top]
        return tuple((bundle.labels[k], float(shares[k])) for k in best)


def predict(
    bundle: Bundle,
    sources: Sequence[Path | BufferedIOBase],
    runtime: str | None = None,
    top: int = 5,
    threads: int | None = None,
    *,
    precision: NumberFormat | None = None,
) -> Iterator[Prediction]:
    """Classify images one by one, in the given order; images that cannot be decoded are skipped.

    ``runtime``, ``threads`` and ``precision`` default to what was chosen for the device; see
    ``sessions.open_session``.

    Args:
        bundle: the bundle, from ``load_bundle``.
        sources: image files; folders, which are searched recursively for files with an image suffix;
            binary streams of either one image or a sequence of JPEG frames, of which each is
            classified as soon as it is complete.
        runtime: a key of ``sessions.RUNTIMES``.
        top: number of classes per image.
        threads: number of threads of one inference.
        precision: number format of the network.

    Returns:
        An iterator over one prediction per image.

    Raises:
        BadInput: a source does not exist, a folder has no images, or the runtime cannot be used;
            raised before the first image is read.
    """
    if top < 1:
        raise BadInput(f"{top}: at least 1", field="top")
    found: list[Path | BufferedIOBase] = []
    for source in sources:
        found += _files(source) if isinstance(source, Path) else [source]
    if not found:
        raise BadInput("no images were given")
    classifier = Classifier(bundle, runtime, threads, precision=precision)
    return _predictions(classifier, found, top)


def _files(source: Path) -> list[Path]:
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


def _predictions(
    classifier: Classifier, sources: Sequence[Path | BufferedIOBase], top: int
) -> Iterator[Prediction]:
    for source in sources:
        if isinstance(source, Path):
            yield _prediction(classifier, top, source, source, None)
        else:
            for number, data in enumerate(frames(source)):
                yield _prediction(classifier, top, BytesIO(data), STREAM, number)


def _prediction(
    classifier: Classifier, top: int, source: Path | BytesIO, file: Path, frame: int | None
) -> Prediction:
    try:
        image = open_rgb(source, str(file))
    except Undecodable as error:
        return Prediction(file, frame, skipped=str(error))
    return Prediction(file, frame, classifier(image, top))
