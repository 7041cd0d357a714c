"""The pre-trained network that becomes many small ones.

A backbone is named in one of four ways, and `load_backbone` understands all of them:

    efficientnet-lite0           ImageNet weights that are installed as a package (the extra `lite`)
    resnet50                     a timm name; its weights come from the hub where there is a network
    weights/my_backbone.json     a description beside a safetensors file
    resnet50@weights.pth         a timm architecture and a local state dict (safetensors or torch)
"""

import ast
import copy
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from pydantic import Field, model_validator
from timm.models import is_model_in_modules
from torch import nn

from mvp_edge.families import family_of, unit_groups
from mvp_edge.families.family import Family
from mvp_edge.schema import JsonFile
from mvp_edge.structure.classifier import heads
from mvp_edge.structure.shapes import blank_copy
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.packaged import PACKAGED
from mvp_edge.subnetwork.subnet import resize
from mvp_edge.subnetwork.weights import classes_in, fill, first_line, read_tensors
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import sha256_file, sha256_json

_LAYERS = {
    "Conv2d": nn.Conv2d,
    "BatchNorm2d": nn.BatchNorm2d,
    "Linear": nn.Linear,
    "Identity": nn.Identity,
}
"""Layers that a description's ``changes`` may build."""

ARGUMENTS = frozenset(
    {
        *("layers", "channels", "stem_width", "stem_type", "avg_down", "output_stride"),
        *("depth", "embed_dim", "num_heads", "mlp_ratio", "patch_size", "qkv_bias"),
        *("class_token", "reg_tokens", "no_embed_class", "init_values", "pre_norm", "global_pool"),
    }
)
"""Arguments that a description may set: shapes only, nothing that reads a file or is random."""

_SIZED = ("deit", "vision_transformer", "vision_transformer_hybrid")
"""timm's modules of networks that are built for one image size."""


class BackboneFile(JsonFile):
    """The JSON file that describes a backbone's safetensors file."""

    kind: ClassVar[str] = "backbone"

    name: str
    library: Literal["timm"]
    architecture: str
    changes: dict[str, str] = Field(default_factory=dict)
    """Modules that differ from timm's, as constructor calls with literal arguments."""
    arguments: dict[str, bool | int | float | str | list[int]] = Field(default_factory=dict)
    """Keyword arguments of timm.create_model (depth=4, channels=…)."""
    weights: str
    sha256: str
    num_classes: int = Field(ge=1)
    input_size: tuple[Literal[3], int, int]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.input_size[1] != self.input_size[2]:
            raise ValueError(f"input_size {self.input_size} is not square")
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(
                f"num_classes is {self.num_classes}, but {len(self.classes)} are named"
            )
        return self


@dataclass(frozen=True)
class Architecture:
    """How to build the network without its weights; together with tensors, any sub-network can be rebuilt."""

    name: str
    changes: Mapping[str, str]
    arguments: Mapping[str, Any]
    input_size: int

    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights and a head of ``num_classes``, in eval mode."""
        if not timm.is_model(self.name):
            raise BadInput(f"timm has no architecture {self.name!r}{_similar(self.name)}")
        unknown = sorted(self.arguments.keys() - ARGUMENTS)
        if unknown:
            raise BadInput(
                f"arguments: {unknown[0]!r} is not one of {', '.join(sorted(ARGUMENTS))}"
            )
        sized = is_model_in_modules(self.name, _SIZED)
        size = {"img_size": self.input_size} if sized else {}
        try:
            model: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=num_classes, **size, **self.arguments
            )
        except (
            RuntimeError,
            TypeError,
            AssertionError,
            ValueError,
            ArithmeticError,
            LookupError,
        ) as error:
            raise BadInput(f"timm cannot build {self.name!r}: {first_line(error)}") from error
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
        if self.input_size < patch:
            raise BadInput(f"{self.name} needs images of at least {patch} pixels")
        for path, call in self.changes.items():
            parent, _, leaf = path.rpartition(".")
            if path not in dict(model.named_modules()) or not leaf:
                raise BadInput(f"changes: {self.name} has no module {path!r}")
            setattr(model.get_submodule(parent), leaf, _construct(path, call))
        return model.eval()

    def outline(self, num_classes: int) -> nn.Module:
        """`build` without weights, on the meta device, for code that needs only shapes."""
        with torch.device("meta"):
            return self.build(num_classes)

    def to_json(self) -> dict[str, Any]:
        """The form in which run directories and zoo entries hold it."""
        return {
            "architecture": self.name,
            "changes": dict(self.changes),
            "arguments": dict(self.arguments),
            "input_size": self.input_size,
        }


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
    architecture, at, file = source.rpartition("@")
    if Path(source).is_file():
        return str(Path(source).absolute())
    return f"{architecture}@{Path(file).absolute()}" if at and Path(file).is_file() else source


def load_backbone(name: str, input_size: int | None = None) -> Backbone:
    """Load a backbone by timm name, description file, or ``architecture@weights``.

    ``input_size``: side in pixels of the square input, when other than the one it was trained at
    (a ViT's position embedding is resampled).
    Raises BadInput, in one line, for whatever is missing, broken or of another architecture.
    """
    if input_size is not None and input_size < 1:
        raise BadInput(f"{input_size}: give the side of the image in pixels", field="input_size")
    path = Path(name)
    if name in PACKAGED:
        own = PACKAGED[name]
        weights = own.locate(name)
        tensors = own.tensors(weights)
        backbone = _from_tensors(own.architecture, tensors, weights, name, input_size)
    elif path.suffix == ".json":
        backbone = _from_description(path, input_size)
    elif "@" in name and not path.is_file():
        architecture, _, file = name.partition("@")
        backbone = _from_state_dict(architecture, Path(file), name, input_size)
    elif path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        if not timm.is_model(path.stem):
            raise BadInput(
                f"{name}: which architecture is this? say so as ARCHITECTURE@FILE, e.g. resnet18@{name}"
            )
        backbone = _from_state_dict(path.stem, path, name, input_size)
    else:
        backbone = _from_hub(name, input_size)
    groups = unit_groups(backbone.model)  # refuses, by name, what cannot be pruned
    _check_size(backbone)
    _check_cut(backbone, groups)
    return backbone


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


def _from_description(path: Path, input_size: int | None) -> Backbone:
    described = BackboneFile.read(path)
    weights = path.parent / described.weights
    tensors = read_tensors(weights)
    found = sha256_file(weights)
    if found != described.sha256:
        raise BadInput(
            f"backbone: {weights} is not the file that {path.name} describes (sha256 {found[:12]}…)"
        )
    size = input_size or described.input_size[1]
    preprocess = Preprocess(
        size, described.mean, described.std, described.interpolation, described.crop_pct
    )
    architecture = Architecture(
        described.architecture, described.changes, described.arguments, size
    )
    bare = architecture.build(described.num_classes)
    model = fill(bare, tensors, architecture.name, weights)
    return Backbone(
        described.name, architecture, model, preprocess, described.classes, found, str(path)
    )


def _from_state_dict(name: str, weights: Path, source: str, input_size: int | None) -> Backbone:
    if not timm.is_model(name):
        raise BadInput(
            f"{source}: timm has no architecture {name!r}{_similar(name)}", field="backbone"
        )
    return _from_tensors(name, read_tensors(weights), weights, source, input_size)


def _from_tensors(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    weights: Path,
    source: str,
    input_size: int | None,
) -> Backbone:
    """A timm architecture with the tensors of a file, and with the preprocessing that timm knows."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise BadInput(
            f"{source}: timm knows no preprocessing for {name!r}; describe it in a JSON file",
            field="backbone",
        )
    size = input_size or int(config.input_size[1])
    architecture = Architecture(name, {}, {}, size)
    outline = architecture.outline(1)
    unit_groups(outline)  # "cannot be pruned" says more than "does not fit"
    bare = architecture.build(classes_in(tensors, next(iter(heads(outline))), name, weights))
    model = fill(bare, tensors, name, weights)
    preprocess = _preprocess(config, size)
    return Backbone(name, architecture, model, preprocess, (), sha256_file(weights), source)


def _from_hub(name: str, input_size: int | None) -> Backbone:
    if not timm.is_model(name):
        raise BadInput(
            f"{name}: no such file, and timm has no model of that name{_similar(name)}",
            field="backbone",
        )
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BadInput(
            f"{name}: timm has no pre-trained weights for it; give {name}@FILE", field="backbone"
        )
    size = input_size or int(config.input_size[1])
    architecture = Architecture(name, {}, {}, size)
    unit_groups(architecture.outline(1))  # before a long download
    sized = {"img_size": size} if is_model_in_modules(name, _SIZED) else {}
    # Of whichever HTTP client this version of the hub uses:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    with _hub() as reason:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, **sized).eval()
        except (OSError, RuntimeError, ValueError, HTTPError) as error:
            raise BadInput(
                f"{name}: the download of its weights failed ({reason or first_line(error)}); "
                f"for a local file write {name}@FILE",
                field="backbone",
            ) from error
    digest = sha256_json({n: _digest(t) for n, t in model.state_dict().items()})
    return Backbone(name, architecture, model, _preprocess(config, size), (), digest, name)


@contextmanager
def _hub() -> Iterator[str]:
    """Yield why the model hub cannot be reached, or "". If it cannot, only its local cache is used.

    Otherwise its client would retry for a minute, warning each time.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    before, reason = constants.HF_HUB_OFFLINE, ""
    if before:
        reason = "the hub is set to offline, and its cache has no copy"
    elif not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            reason = f"{host} cannot be found from here, and there is no copy in the hub's cache"
    constants.HF_HUB_OFFLINE = bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def _construct(path: str, call: str) -> nn.Module:
    """Build a layer from text such as ``Conv2d(3, 64, kernel_size=3)``; only literal numbers are evaluated."""
    try:
        node = ast.parse(call, mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError("not a constructor call")
        layer = _LAYERS[node.func.id]
        arguments = [_numbers(argument) for argument in node.args]
        named = {str(word.arg): _numbers(word.value) for word in node.keywords}
        built: nn.Module = layer(*arguments, **named)
    except (SyntaxError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise BadInput(
            f"changes: {path}: {call[:80]!r} is not one of {', '.join(_LAYERS)} with numbers for arguments"
        ) from error
    return built


def _numbers(node: ast.expr) -> bool | int | float | tuple[int, ...]:
    """The literal that ``node`` is: a number, a truth value or a tuple of numbers."""
    value = ast.literal_eval(node)
    for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(one, bool | int | float):
            raise TypeError(f"{one!r} is not a number")
    result: bool | int | float | tuple[int, ...] = value
    return result


def _preprocess(config: Any, size: int) -> Preprocess:
    return Preprocess(
        size,
        tuple(config.mean),
        tuple(config.std),
        config.interpolation,
        float(config.crop_pct or 1.0),
    )


def _similar(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, timm.list_models(), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _digest(tensor: torch.Tensor) -> str:
    import hashlib

    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
