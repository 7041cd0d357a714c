"""What a backbone is and how images are prepared for it: `mvp-edge doctor --backbone`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvp_edge.pruning.finetune import predict_logits
from mvp_edge.reporting.printed import count, percent
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Undecodable, open_rgb

GUESSES = 5


@dataclass(frozen=True)
class Guess:
    """One of the classes that a backbone's own classifier takes for likely."""

    name: str
    probability: float


def facts(backbone: Backbone) -> dict[str, Any]:
    """The facts of a backbone, by the names under which they are printed."""
    prepared = backbone.preprocess
    (head, *_) = heads(backbone.model).values()
    params = sum(p.numel() for p in backbone.model.parameters())
    return {
        "backbone": backbone.name,
        "source": backbone.source,
        "architecture": backbone.architecture.name,
        "family": backbone.family.name,
        "policies": list(backbone.family.policies),
        "classes": 0 if backbone.headless else head.out_features,
        "parameters": params,
        "multiply-adds": forward_macs(backbone.model, backbone.shape),
        "input size": prepared.size,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "interpolation": prepared.interpolation,
        "crop": prepared.crop_pct,
        "weights sha256": backbone.weights_sha256,
        "notes": list(backbone.notes),
    }


def lines(found: dict[str, Any]) -> str:
    """The facts as text, one a line."""
    known = found["classes"] or "none: the weights have no classifier"
    rows = {
        "architecture": found["architecture"],
        "family": f"{found['family']}, can be pruned (--policy {' or '.join(found['policies'])})",
        "classes": known,
        "parameters": count(found["parameters"]),
        "multiply-adds": f"{count(found['multiply-adds'])} for one image",
        "images": f"{found['input size']} × {found['input size']} pixels, {found['interpolation']}; "
        f"the middle {found['crop']:.1%} of the shorter side",
        "mean, std": f"{found['mean']}, {found['std']}, for pixels from 0 to 1",
    }
    notes = [f"note: {note}" for note in found["notes"]]
    width = max(map(len, rows))
    return "\n".join([f"{name:<{width}}  {value}" for name, value in rows.items()] + notes)


def guesses(backbone: Backbone, photo: Path) -> list[Guess]:
    """The likeliest classes of a photo by the backbone's own classifier, prepared as for training.

    Raises:
        BadInput: the photo cannot be read, or the backbone has no classifier.
    """
    if backbone.headless:
        raise BadInput(f"{backbone.name} has no classifier: it can be pruned, but knows no classes")
    try:
        pixels = backbone.preprocess.pixels(open_rgb(photo, photo.name))
    except (Undecodable, OSError) as error:
        raise BadInput(f"{photo}: {error}") from error
    logits = predict_logits(backbone.model, pixels[None], backbone.preprocess)[0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:GUESSES]
    named = _names(backbone)
    return [Guess(named(int(index)), float(shares[index])) for index in best]


def guess_lines(found: list[Guess]) -> str:
    """Guesses as text, one a line."""
    return "\n".join(f"  {percent(one.probability):>7}  {one.name}" for one in found)


def _names(backbone: Backbone) -> Any:
    """Index → name of a class of the backbone's own: the description's, ImageNet's, or a number."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if backbone.classes:
        return backbone.classes.__getitem__
    (head, *_) = heads(backbone.model).values()
    subset = infer_imagenet_subset({"num_classes": head.out_features})
    if subset is None:
        return lambda index: f"class {index}"
    info = ImageNetInfo(subset)
    return lambda index: info.index_to_description(index, detailed=False)
