"""The pre-trained network that becomes many small ones.

A backbone is named in one of these ways, and `load_backbone` understands all of them:

    efficientnet-lite0           ImageNet weights that are installed as a package (the extra `lite`)
    resnet50, resnet50.a1_in1k   a timm name, with a tag or without; its weights come from the hub
    hf-hub:organisation/model    any model for timm on the Hugging Face hub
    weights/my_backbone.json     a description beside a safetensors file
    resnet50@weights.pth         a timm architecture (or name with a tag) and a file of weights
    vit_small…@dino.pth#teacher  the same, and which of the file's state dicts

    name → weights and their description → architecture, refused here if it cannot be pruned
         → network filled with the weights → Backbone
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from mvp_edge.families import family_of, unit_groups
from mvp_edge.families.family import Family
from mvp_edge.structure.classifier import heads
from mvp_edge.structure.shapes import blank_copy
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.architecture import Architecture, BackboneFile, similar
from mvp_edge.subnetwork.hub import Description, description_of, downloaded
from mvp_edge.subnetwork.packaged import PACKAGED
from mvp_edge.subnetwork.subnet import resize
from mvp_edge.subnetwork.weights import (
    Weights,
    classes_in,
    fill,
    first_line,
    read_weights,
    renamed,
    without_head,
)
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import sha256_file, sha256_json

FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Suffixes of files of weights."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained network, ready to be given a task's head."""

    name: str
    architecture: Architecture
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...]
    weights_sha256: str
    source: str
    """The name from which `load_backbone` loads it again."""
    headless: bool = False
    """Whether the weights have no classifier; ``model`` then has one of a single class, all zeros."""
    notes: tuple[str, ...] = ()
    """What was done to make the weights fit, and where the preprocessing is from."""

    @property
    def family(self) -> Family:
        """The family that the network belongs to."""
        return family_of(self.model)

    @cached_property
    def sha256(self) -> str:
        """Identity of architecture, weights and preprocessing: a zoo belongs to exactly one."""
        return sha256_json(
            [self.architecture.to_json(), self.weights_sha256, self.preprocess.to_json()]
        )

    @property
    def pretrained_classes(self) -> int:
        """Outputs of the model's own classifier."""
        return next(iter(heads(self.model).values())).out_features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input image: channels, height, width."""
        return (3, self.preprocess.size, self.preprocess.size)

    def with_head(self, num_classes: int) -> nn.Module:
        """A copy of the pre-trained network with a new head for ``num_classes``, all zeros."""
        model = copy.deepcopy(self.model)
        reset: Any = model
        reset.reset_classifier(num_classes)
        with torch.no_grad():
            for head in heads(model).values():
                head.weight.zero_()
                head.bias.zero_()
        return model.eval()

    def outline(self, num_classes: int) -> nn.Module:
        """`with_head` without weights, on the meta device, for code that needs only shapes."""
        with torch.device("meta"):
            model = blank_copy(self.model)
            reset: Any = model
            reset.reset_classifier(num_classes)
        return model.eval()


def absolute_source(source: str) -> str:
    """A backbone's source with absolute file paths, so that it means the same in every working folder."""
    source, key = split_key(source)
    end = f"#{key}" if key else ""
    architecture, at, file = source.rpartition("@")
    if Path(source).is_file():
        return str(Path(source).absolute()) + end
    return (
        f"{architecture}@{Path(file).absolute()}" if at and Path(file).is_file() else source
    ) + end


def split_key(source: str) -> tuple[str, str | None]:
    """A source without the state dict that it names after ``#``, and that name."""
    before, mark, key = source.rpartition("#")
    if not mark or Path(source).is_file() or Path(source.rpartition("@")[2]).is_file():
        return source, None
    return before, key


def load_backbone(
    name: str, input_size: int | None = None, weights_key: str | None = None
) -> Backbone:
    """Load a backbone by one of the names above.

    Args:
        name: how it is called.
        input_size: side in pixels of the square input, when other than the one it was trained at (a ViT's position
            embedding is resampled).
        weights_key: which state dict of a checkpoint file; the same as ``#KEY`` at the end of the name.

    Raises:
        BadInput: whatever is missing, broken or of another architecture, in one line; what cannot be pruned is said
            before its weights are looked at.
    """
    if input_size is not None and input_size < 1:
        raise BadInput(f"{input_size}: give the side of the image in pixels", field="input_size")
    named, key = split_key(name)
    key = weights_key or key
    path, at = Path(named), "@" in named and not Path(named).is_file()
    if at or (path.suffix in FILES and named not in PACKAGED and not timm.is_model(named)):
        backbone = _from_file(named, key, input_size)
    elif key is not None:
        raise BadInput(
            f"{key}: only a file of weights has several (ARCHITECTURE@FILE)", field="weights_key"
        )
    elif named in PACKAGED:
        backbone = _from_package(named, input_size)
    elif path.suffix == ".json":
        backbone = _from_description(path, input_size)
    else:
        backbone = _from_hub(named, input_size)
    _check_size(backbone)
    _check_cut(backbone, unit_groups(backbone.model))
    return backbone


def _from_file(name: str, key: str | None, input_size: int | None) -> Backbone:
    """ARCHITECTURE[.TAG]@FILE, or a file that is called like its architecture."""
    architecture, at, file = name.partition("@") if not Path(name).is_file() else ("", "", name)
    path = Path(file)
    if not at:
        architecture = path.name.removesuffix(".tar").rpartition(".")[0]
        if not timm.is_model(architecture):
            raise BadInput(
                f"{name}: which architecture is this? say so as ARCHITECTURE@FILE, e.g. resnet18@{name}",
                field="backbone",
            )
    settled = _settled(architecture, name, input_size)
    source = f"{name}#{key}" if key else name
    made = _filled(settled, lambda: read_weights(path, key), source)
    digest = sha256_json([made.weights_sha256, key]) if key else made.weights_sha256
    return replace(made, weights_sha256=digest)


def _from_package(name: str, input_size: int | None) -> Backbone:
    own = PACKAGED[name]
    settled = _settled(own.architecture, name, input_size)
    return _filled(settled, lambda: own.weights(own.locate(name)), name)


@dataclass(frozen=True)
class _Settled:
    """An architecture that can be pruned, with timm's description of its weights."""

    name: str
    architecture: Architecture
    outline: nn.Module
    preprocess: Preprocess
    notes: tuple[str, ...]


def _settled(name: str, source: str, input_size: int | None) -> _Settled:
    """A timm name, with a tag or without, and the preprocessing that its weights were trained with."""
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise BadInput(
            f"{source}: timm has no architecture {base!r}{similar(base)}", field="backbone"
        )
    description = description_of(name, source)
    size = input_size or description.input_size[1]
    architecture = Architecture(base, {}, {}, size)
    outline = architecture.outline(1)
    unit_groups(outline)  # "cannot be pruned" says more than "does not fit"
    return _Settled(name, architecture, outline, _preprocess(description, size), description.notes)


def _filled(settled: _Settled, read: Callable[[], Weights], source: str) -> Backbone:
    """The network with a file's weights, whatever their names, precision and classes."""
    name, architecture = settled.name, settled.architecture
    weights = renamed(read(), settled.outline)
    classes = classes_in(weights, settled.outline)
    model = architecture.build(classes or 1)
    if classes is None:
        weights = without_head(weights, model)
    model, weights = fill(model, weights, architecture.name)
    return Backbone(
        name,
        architecture,
        model,
        settled.preprocess,
        (),
        sha256_file(weights.path),
        source,
        headless=classes is None,
        notes=(*weights.notes, *settled.notes),
    )


def _from_description(path: Path, input_size: int | None) -> Backbone:
    described = BackboneFile.read(path)
    size = input_size or described.input_size[1]
    preprocess = Preprocess(
        size, described.mean, described.std, described.interpolation, described.crop_pct
    )
    architecture = Architecture(
        described.architecture, described.changes, described.arguments, size
    )
    unit_groups(architecture.outline(described.num_classes))
    weights = read_weights(path.parent / described.weights)
    found = sha256_file(weights.path)
    if found != described.sha256:
        raise BadInput(
            f"backbone: {weights.path} is not the file that {path.name} describes (sha256 {found[:12]}…)"
        )
    model, weights = fill(architecture.build(described.num_classes), weights, architecture.name)
    return Backbone(
        described.name,
        architecture,
        model,
        preprocess,
        described.classes,
        found,
        str(path),
        notes=weights.notes,
    )


def _from_hub(name: str, input_size: int | None) -> Backbone:
    found = downloaded(name, input_size)
    digest = sha256_json({n: _digest(t) for n, t in found.model.state_dict().items()})
    return Backbone(
        name,
        found.architecture,
        found.model,
        _preprocess(found.description, found.architecture.input_size),
        (),
        digest,
        name,
        headless=found.headless,
    )


def _check_cut(backbone: Backbone, groups: Sequence[UnitGroup]) -> None:
    """Refuse a network that does not run with half of its units, on shapes."""
    halves = {group.name: max(1, group.size // 2) for group in groups}
    try:
        small = resize(blank_copy(backbone.model), halves)
        small(torch.empty(1, *backbone.shape, device="meta"))
    except RuntimeError as error:
        raise BadInput(
            f"{backbone.name} cannot be pruned: with half of its units it does not run "
            f"({first_line(error)})"
        ) from error


def _check_size(backbone: Backbone) -> None:
    """Refuse images so small that a single pixel is left before the last stage.

    There is nothing left to convolve, and bfloat16 gradients of a strided 3×3 convolution over one pixel are
    wrong on CPUs (seen with PyTorch 2.14).
    """
    blank, single = blank_copy(backbone.model), []

    def record(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        single.append(inputs[0].shape[-1] == 1)

    for module in blank.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.register_forward_pre_hook(record)
    blank(torch.empty(1, *backbone.shape, device="meta"))
    if any(single):
        size = backbone.preprocess.size
        raise BadInput(
            f"{backbone.name}: of {size}×{size} images a single pixel is left before the last stage: "
            f"give an input size of {2 * size} or more"
        )


def _preprocess(described: Description, size: int) -> Preprocess:
    return Preprocess(
        size, described.mean, described.std, described.interpolation, described.crop_pct
    )


def _digest(tensor: torch.Tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
