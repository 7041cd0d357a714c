"""Labels for images, from a bundle alone.

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
"""What the images of a stream have instead of a file."""

Top = tuple[tuple[str, float], ...]
"""(label, probability) of the likeliest classes, the likeliest first."""


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, or why the image was skipped."""

    file: Path
    frame: int | None = None
    """Its number in a stream, from 0."""
    top: Top = ()
    """Empty when skipped."""
    skipped: str | None = None
    """Why the image could not be decoded."""

    @property
    def name(self) -> str:
        """What to call the image."""
        return str(self.file) if self.frame is None else f"frame {self.frame}"

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
            "frame": self.frame,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": label, "probability": share} for label, share in self.top],
            "skipped": self.skipped,
        }


class Classifier:
    """A bundle's network, loaded and ready for one image after the other.

    Args:
        bundle: from ``load_bundle``.
        runtime: a key of ``sessions.RUNTIMES``.
        threads: threads of one inference.
        precision: of the network's file. For each of these, None takes what was chosen for the
            device (see ``sessions.open_session``).

    Raises:
        BadInput: a runtime that cannot be used, or a precision that the bundle lacks.
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
        """The likeliest ``top`` classes of an RGB image of any size."""
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
                f"{bundle.path}: the network's answer holds values that are no numbers in"
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
    """Classify images one by one, in the order given; an image that cannot be decoded is skipped.

    Args:
        bundle: from ``load_bundle``.
        sources: image files; folders, which are searched at every depth for image suffixes; binary
            streams of one image, or of JPEG frames one after the other, each of which is
            classified as soon as it is there.
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
