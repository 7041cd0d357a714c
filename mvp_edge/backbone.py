"""The pre-trained network that becomes many small ones.

A backbone is named in one of three ways, and `load_backbone` understands all of them:

    resnet50                     a timm name; its weights come from the hub where there is a network
    weights/my_backbone.json     a description beside a safetensors file
    resnet50@weights.pth         a timm architecture and a local state dict (safetensors or torch)
"""

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from mvp_edge.units import family_of, unit_groups
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import read_json, sha256_file, sha256_json

_LAYERS = {
    "Conv2d": nn.Conv2d,
    "BatchNorm2d": nn.BatchNorm2d,
    "Linear": nn.Linear,
    "Identity": nn.Identity,
}


class BackboneFile(BaseModel):
    """The JSON beside a backbone's safetensors file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: Literal[1] = Field(alias="schema")
    name: str
    library: Literal["timm"]
    architecture: str
    changes: dict[str, str] = {}
    """Modules that differ from timm's, as constructor calls with literal arguments."""
    arguments: dict[str, bool | int | float | str | list[int]] = {}
    """Keyword arguments of timm.create_model (depth=4, channels=…)."""
    weights: str
    sha256: str
    num_classes: int
    input_size: tuple[int, int, int]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """How to build the bare network: enough, with tensors, to rebuild any sub-network of it."""

    name: str
    changes: Mapping[str, str]
    arguments: Mapping[str, Any]
    input_size: int

    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights and a head of ``num_classes``, in eval mode."""
        arguments = dict(self.arguments)
        if not self.name.startswith("resnet"):
            arguments.setdefault("img_size", self.input_size)
        try:
            model: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=num_classes, **arguments
            )
        except (RuntimeError, TypeError, AssertionError, ValueError) as error:
            raise BadInput(f"timm cannot build {self.name!r}: {first_line(error)}") from error
        for path, call in self.changes.items():
            parent, _, leaf = path.rpartition(".")
            try:
                owner = model.get_submodule(parent)
                owner.get_submodule(leaf)
            except AttributeError as error:
                raise BadInput(f"changes: {self.name} has no module {path!r}") from error
            setattr(owner, leaf, _construct(path, call))
        return model.eval()

    def to_json(self) -> dict[str, Any]:
        """As it stands in run directories and zoo entries."""
        return {
            "architecture": self.name,
            "changes": dict(self.changes),
            "arguments": dict(self.arguments),
            "input_size": self.input_size,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Architecture":
        """The inverse of `to_json`."""
        return cls(value["architecture"], value["changes"], value["arguments"], value["input_size"])


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
    """What the user would pass to load it again."""

    @property
    def family(self) -> str:
        """The family's name: resnet or vit."""
        return family_of(self.model)

    @cached_property
    def sha256(self) -> str:
        """Identity of architecture, weights and preprocessing: a zoo belongs to exactly one."""
        return sha256_json(
            [self.architecture.to_json(), self.weights_sha256, self.preprocess.to_json()]
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an input image."""
        return (3, self.preprocess.size, self.preprocess.size)

    def with_head(self, num_classes: int) -> nn.Module:
        """A copy of the pre-trained network with a zero head for ``num_classes`` (biased)."""
        model = copy.deepcopy(self.model)
        reset: Any = model
        reset.reset_classifier(num_classes)
        with torch.no_grad():
            for head in heads(model).values():
                head.weight.zero_()
                head.bias.zero_()
        return model.eval()


def heads(model: nn.Module) -> dict[str, nn.Linear]:
    """The classifier layers by module path (a distilled DeiT has two)."""
    found = {n: m for n, m in model.named_children() if n in ("fc", "head", "head_dist")}
    return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}


def load_backbone(name: str, input_size: int | None = None) -> Backbone:
    """Load a backbone by timm name, description file, or ``architecture@weights``.

    ``input_size``: side in pixels of the square input, when other than the one it was trained at
    (a ViT's position embedding is resampled).
    Raises BadInput, in one line, for whatever is missing, broken or of another architecture.
    """
    path = Path(name)
    if name.endswith(".json"):
        backbone = _from_description(path, input_size)
    elif "@" in name:
        architecture, _, weights = name.partition("@")
        backbone = _from_state_dict(architecture, Path(weights), name, input_size)
    elif path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        if not timm.is_model(path.stem):
            raise BadInput(
                f"{name}: which architecture is this? say so as ARCHITECTURE@FILE, e.g. resnet18@{name}"
            )
        backbone = _from_state_dict(path.stem, path, name, input_size)
    else:
        backbone = _from_hub(name, input_size)
    unit_groups(backbone.model)  # refuses, by name, what cannot be pruned
    return backbone


def _from_description(path: Path, input_size: int | None) -> Backbone:
    try:
        described = BackboneFile.model_validate(read_json(path, "backbone"))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadInput(f"backbone: {path}: {where}") from error
    weights = path.parent / described.weights
    tensors = _read_tensors(weights)
    found = sha256_file(weights)
    if found != described.sha256:
        raise BadInput(
            f"backbone: {weights} is not the file that {path.name} describes (sha256 {found[:12]}…)"
        )
    size = input_size or described.input_size[1]
    architecture = Architecture(
        described.architecture, described.changes, described.arguments, size
    )
    model = _fill(architecture, described.num_classes, tensors, weights)
    preprocess = Preprocess(
        size, described.mean, described.std, described.interpolation, described.crop_pct
    )
    return Backbone(
        described.name, architecture, model, preprocess, described.classes, found, str(path)
    )


def _from_state_dict(name: str, weights: Path, source: str, input_size: int | None) -> Backbone:
    if not timm.is_model(name):
        raise BadInput(f"--backbone {source}: timm has no architecture {name!r}{_similar(name)}")
    tensors = _read_tensors(weights)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise BadInput(
            f"--backbone {source}: timm knows no preprocessing for {name!r}; describe it in a JSON"
        )
    size = input_size or int(config.input_size[1])
    architecture = Architecture(name, {}, {}, size)
    classes = _classes_in(name, tensors)
    model = _fill(architecture, classes, tensors, weights)
    preprocess = _preprocess(config, size)
    return Backbone(name, architecture, model, preprocess, (), sha256_file(weights), source)


def _from_hub(name: str, input_size: int | None) -> Backbone:
    if not timm.is_model(name):
        raise BadInput(
            f"--backbone {name}: no such file, and timm has no model of that name{_similar(name)}"
        )
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BadInput(
            f"--backbone {name}: timm has no pre-trained weights for it; give {name}@FILE"
        )
    size = input_size or int(config.input_size[1])
    architecture = Architecture(name, {}, {}, size)
    family_of(architecture.build(1))  # before a long download
    arguments = {} if name.startswith("resnet") else {"img_size": size}
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **arguments).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"--backbone {name}: the download of its weights failed ({first_line(error)}); "
            f"with a local file say --backbone {name}@FILE"
        ) from error
    digest = sha256_json({n: _digest(t) for n, t in model.state_dict().items()})
    return Backbone(name, architecture, model, _preprocess(config, size), (), digest, name)


def _fill(
    architecture: Architecture, num_classes: int, tensors: dict[str, torch.Tensor], path: Path
) -> nn.Module:
    """Build and load, refusing missing, surplus, misshapen and non-finite tensors by name."""
    model = architecture.build(num_classes)
    key = "pos_embed"
    own = model.state_dict()
    if key in tensors and key in own and tensors[key].shape != own[key].shape:
        from timm.layers import resample_abs_pos_embed

        grid: Any = model.get_submodule("patch_embed")
        prefix = int(getattr(model, "num_prefix_tokens", 1))
        tensors[key] = resample_abs_pos_embed(
            tensors[key].float(), new_size=list(grid.grid_size), num_prefix_tokens=prefix
        )
    missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [n for n in own if n in tensors and tensors[n].shape != own[n].shape]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    for names, problem in (
        (missing, "lacks"),
        (surplus, "has the unexpected"),
        (wrong, "has another shape of"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(
                f"{path}: these are not weights of {architecture.name}: the file {problem} {names[0]!r}{more}"
            )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{path}: tensor {name!r} holds NaN or infinite values")
    model.load_state_dict(tensors, strict=False)
    return model.float().eval()


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadInput(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{path} is truncated or not a safetensors file ({first_line(error)})"
            ) from error
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} holds more than tensors (pickled code is never run): save its state_dict() as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise BadInput(f"{path} is truncated or not a state dict ({first_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(v, torch.Tensor) for v in loaded.values()
    ):
        raise BadInput(f"{path} is not a state dict of tensors: save model.state_dict()")
    return dict(loaded)


def _classes_in(name: str, tensors: Mapping[str, torch.Tensor]) -> int:
    for key in ("fc.weight", "head.weight"):
        if key in tensors and tensors[key].dim() == 2:
            return int(tensors[key].shape[0])
    raise BadInput(
        f"these are not weights of {name}: neither fc.weight nor head.weight is among them"
    )


def _construct(path: str, call: str) -> nn.Module:
    """Build a layer from text such as ``Conv2d(3, 64, kernel_size=3)``: literals only, nothing is run."""
    try:
        node = ast.parse(call, mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError("not a constructor call")
        layer = _LAYERS[node.func.id]
        arguments = [ast.literal_eval(argument) for argument in node.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        built: nn.Module = layer(*arguments, **named)
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"changes: {path}: {call!r} is not one of {', '.join(_LAYERS)} with literal arguments"
        ) from error
    return built


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


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
