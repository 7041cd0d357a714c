"""How a backbone's network is built, without its weights: timm's name, arguments of shape, changed layers."""

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import timm
import torch
from pydantic import Field, model_validator
from timm.models import is_model_in_modules
from torch import nn

from mvp_edge.families import adapt
from mvp_edge.schema import JsonFile
from mvp_edge.subnetwork.weights import first_line
from mvp_edge_export.errors import BadInput

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

    @property
    def sized(self) -> bool:
        """Whether the network is built for one image size, as a ViT is."""
        return bool(is_model_in_modules(self.name, _SIZED))

    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights and a head of ``num_classes``, in eval mode."""
        if not timm.is_model(self.name):
            raise BadInput(f"timm has no architecture {self.name!r}{similar(self.name)}")
        unknown = sorted(self.arguments.keys() - ARGUMENTS)
        if unknown:
            raise BadInput(
                f"arguments: {unknown[0]!r} is not one of {', '.join(sorted(ARGUMENTS))}"
            )
        size = {"img_size": self.input_size} if self.sized else {}
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
            AttributeError,
            LookupError,
        ) as error:
            raise BadInput(f"timm cannot build {self.name!r}: {first_line(error)}") from error
        if self.sized:
            embed: Any = model.get_submodule("patch_embed")
            if self.input_size < embed.patch_size[0]:
                raise BadInput(f"{self.name} needs images of at least {embed.patch_size[0]} pixels")
        adapt(model)
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


def similar(name: str) -> str:
    """Timm's names that are nearly this one, as the end of a message."""
    near = difflib.get_close_matches(name, timm.list_models(), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


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
