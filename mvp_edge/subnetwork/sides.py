"""The same backbone for images of another size: one of the two axes along which a network becomes smaller."""

from dataclasses import replace
from pathlib import Path

from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.weights import Weights, fill


def at_side(backbone: Backbone, side: int) -> Backbone:
    """The pre-trained network for square images of ``side`` pixels; equal to loading it with that input size.

    A convolutional network takes images of any size with the same weights, which are shared with ``backbone``. The
    position embedding of a ViT is resampled, so start from the backbone as it was trained.
    """
    if side == backbone.preprocess.size:
        return backbone
    architecture = replace(backbone.architecture, input_size=side)
    model = backbone.model
    if architecture.sized:
        own = Weights(model.state_dict(), Path(backbone.source))
        empty = architecture.build(backbone.pretrained_classes)
        model, _ = fill(empty, own, architecture.name)
    preprocess = replace(backbone.preprocess, size=side)
    return replace(backbone, architecture=architecture, model=model, preprocess=preprocess)
