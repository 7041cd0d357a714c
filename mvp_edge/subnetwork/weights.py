"""Tensors from an untrusted file, as people save them, into a network.

    file ─ read ─→      a state dict, or one of several that a checkpoint holds
         ─ rename ─→    without the prefix of a wrapper; by timm's names
         ─ fill ─→      the network, float32

No code in a file is ever run. What does not fit is refused with one line that names the tensors, and what was done
to make a file fit is said in ``notes``.
"""

import argparse
import math
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvp_edge.structure.classifier import heads
from mvp_edge_export.errors import BadInput

STATE_DICTS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
"""Where checkpoints keep their weights. Of several the first one here is taken: averaged weights, and the teacher
of self-supervised training, are the better networks."""

PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
"""What wrappers put before names of tensors: DataParallel, torch.compile, self-supervised training, Lightning."""

_SHOWN = 3
"""Tensors that a message names; the others are counted."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file they are from, and what was done with them."""

    tensors: Mapping[str, torch.Tensor]
    path: Path
    notes: tuple[str, ...] = ()

    def noting(self, tensors: Mapping[str, torch.Tensor], *notes: str) -> "Weights":
        """Other tensors of the same file, and what was done to get them."""
        return replace(self, tensors=tensors, notes=(*self.notes, *notes))


def read_weights(path: Path, key: str | None = None) -> Weights:
    """The tensors of a safetensors file, a saved state dict, or a checkpoint that holds one.

    Args:
        path: the file; ``.safetensors``, or whatever `torch.save` wrote.
        key: which of a checkpoint's state dicts; None takes the first of `STATE_DICTS`.

    Raises:
        BadInput: it cannot be read, holds more than tensors, or tensors that no network here can have.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        weights = Weights(_safetensors(path), path)
        if key is not None:
            raise BadInput(f"{path} has one set of tensors: leave out {key!r}", field="weights_key")
    else:
        weights = _state_dict(_unpickled(path), path, key)
    for name, tensor in weights.tensors.items():
        if problem := _problem(tensor):
            raise BadInput(
                f"{path}: tensor {name!r} is {problem}: save the weights as ordinary float tensors"
            )
    return weights


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"{path} is truncated or not a safetensors file ({first_line(error)})"
        ) from error


def _unpickled(path: Path) -> Any:
    """What torch.save wrote; beside tensors and plain values, only the arguments of argparse are read."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            for remark in ("Detected pickle protocol", "Validating sparse", "TypedStorage is"):
                warnings.filterwarnings("ignore", remark, UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {found[1]}" if found else "more than tensors"
        raise BadInput(
            f"{path} is broken, or holds {what} (pickled code is never run): "
            "save its state_dict() as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is truncated or not a state dict ({first_line(error)})") from error


def _state_dict(loaded: Any, path: Path, key: str | None) -> Weights:
    """The state dict that was loaded, or the one of its entries that is asked for or preferred."""
    if _is_state_dict(loaded):
        if key is not None:
            raise BadInput(f"{path} has one set of tensors: leave out {key!r}", field="weights_key")
        return Weights(dict(loaded), path)
    entries = loaded if isinstance(loaded, Mapping) else {}
    found = [name for name, entry in entries.items() if _is_state_dict(entry)]
    if not found:
        raise BadInput(f"{path} is not a state dict of tensors: save model.state_dict()")
    if key is not None and key not in found:
        raise BadInput(f"{key}: {path} has {', '.join(map(str, found))}", field="weights_key")
    usual = [name for name in STATE_DICTS if name in found]
    if key is None and not usual and len(found) > 1:
        raise BadInput(
            f"{path} has several sets of tensors: choose {' or '.join(map(str, found))}",
            field="weights_key",
        )
    taken = key or (usual or found)[0]
    others = [str(name) for name in found if name != taken]
    note = f"its {taken} was taken" + (f", not its {' or '.join(others)}" if others else "")
    return Weights(dict(entries[taken]), path, (note,) if others or key else ())


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in value.items())
    )


def _problem(tensor: torch.Tensor) -> str | None:
    """Why no network here can have such a tensor."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type == "meta":
        return "without values (on the meta device)"
    if tensor.is_complex():
        return "complex"
    return None


def renamed(weights: Weights, outline: nn.Module) -> Weights:
    """The tensors by the names that ``outline`` has, as far as that can be: wrappers' prefixes, the authors' names.

    Args:
        weights: as they were read.
        outline: the network, on the meta device.
    """
    own = outline.state_dict().keys()

    def known(prefix: str) -> int:
        return len(own & _without(weights.tensors, prefix).keys())

    prefix = max(_wrappers(weights.tensors), key=known)
    if known(prefix) > known(""):
        weights = _stripped(weights, prefix)
    converted = _converted(weights.tensors, outline)
    if converted and len(own ^ converted.keys()) < len(own ^ weights.tensors.keys()):
        weights = weights.noting(converted, "its authors' names became timm's")
    return weights


def _wrappers(names: Iterable[str]) -> list[str]:
    """The prefixes that wrappers, also wrapped ones, may have put before these names; "" is the first."""
    found = dict.fromkeys([""])
    for name in names:
        prefix = ""
        while part := next((p for p in PREFIXES if name.startswith(prefix + p)), None):
            prefix += part
            found[prefix] = None
    return list(found)


def _without(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _stripped(weights: Weights, prefix: str) -> Weights:
    """The tensors under a prefix, without it; what lies beside them is left out, and said."""
    notes = [f"the prefix {prefix} was removed"]
    beside = [name for name in weights.tensors if not name.startswith(prefix)]
    if beside:
        notes.append(f"{_some(beside)} beside {prefix} left out")
    return weights.noting(_without(weights.tensors, prefix), *notes)


def _converted(
    tensors: Mapping[str, torch.Tensor], outline: nn.Module
) -> dict[str, torch.Tensor] | None:
    """Timm's own conversion of the files of a network's authors (DINOv2, DeiT, ConvNeXt …), where it has one."""
    convert = getattr(sys.modules[type(outline).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(tensors), outline)) if convert is not None else None
    except (RuntimeError, LookupError, AttributeError, TypeError, ValueError):
        return None  # not a file of those authors


def classes_in(weights: Weights, outline: nn.Module) -> int | None:
    """Number of classes of the file's classifier; None where it has none: an encoder without a head."""
    name = next(iter(heads(outline)))
    own = weights.tensors.get(f"{name}.weight")
    if own is None or own.dim() < 2:
        return None
    return int(own.shape[0])


def without_head(weights: Weights, model: nn.Module) -> Weights:
    """The tensors of an encoder, and a classifier of zeros."""
    with torch.no_grad():
        zeros = {
            f"{name}.{leaf}": torch.zeros(parameter.shape)
            for name, head in heads(model).items()
            for leaf, parameter in head.named_parameters()
        }
    return weights.noting(
        {**weights.tensors, **zeros}, "it has no classifier; each task gets one of its own"
    )


def fill(model: nn.Module, weights: Weights, architecture: str) -> tuple[nn.Module, Weights]:
    """Load tensors into ``model`` as float32; returns it in eval mode, and what was done.

    A ViT's position embedding of another grid is resampled.
    Raises BadInput for missing, surplus, misshapen and non-finite tensors, by name.
    """
    own, tensors = model.state_dict(), weights.tensors
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    resampled = _resampled(model, tensors)
    fitted = {**tensors, **resampled, **_linear(own, tensors)}
    known = own.keys() & fitted.keys()
    whole = {name for name in known if own[name].is_floating_point()} - {
        name for name in known if fitted[name].is_floating_point()
    }
    _refuse(
        weights.path,
        architecture,
        {
            "lacks": own.keys() - tensors.keys() - counters,
            "has the unexpected": tensors.keys() - own.keys(),
            "has another shape of": {n for n in known if fitted[n].shape != own[n].shape},
            "has integers instead of": whole,
        },
    )
    model.load_state_dict(fitted, strict=False)  # in older files the counters are missing
    model = model.float().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{weights.path}: tensor {name!r} holds NaN or infinite values")
    if resampled:
        weights = weights.noting(
            tensors, "its position embedding was resampled to the image's grid"
        )
    half = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}
    if half - {"float32"}:
        weights = weights.noting(tensors, f"{', '.join(sorted(half - {'float32'}))} became float32")
    return model, weights


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _refuse(path: Path, architecture: str, problems: Mapping[str, set[str]]) -> None:
    told = [f"the file {problem} {_some(names)}" for problem, names in problems.items() if names]
    if told:
        raise BadInput(f"{path}: these are not weights of {architecture}: {', and '.join(told)}")


def _some(names: Iterable[str]) -> str:
    """The first few names, and the number of all if there are more."""
    every = sorted(names)
    shown = ", ".join(f"{name!r}" for name in every[:_SHOWN])
    return f"{shown} … ({len(every)} in all)" if len(every) > _SHOWN else shown


def _linear(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights of 1×1 convolutions whose place in the network a linear layer has."""
    return {
        name: tensor.flatten(1)
        for name, tensor in tensors.items()
        if name in own and own[name].dim() == 2 and tensor.shape[2:] == (1, 1)
    }


def _resampled(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The position embedding resampled to the model's grid, if the file's has another one."""
    key = "pos_embed"
    own: Any = getattr(model, key, None)
    if own is None or key not in tensors or tensors[key].shape == own.shape:
        return {}
    embed: Any = model.get_submodule("patch_embed")
    prefix = own.shape[1] - math.prod(embed.grid_size)
    if tensors[key].dim() != 3 or math.isqrt(tensors[key].shape[1] - prefix) ** 2 != (
        tensors[key].shape[1] - prefix
    ):
        return {}  # no square grid: the comparison of shapes refuses it
    from timm.layers import resample_abs_pos_embed

    resampled: torch.Tensor = resample_abs_pos_embed(
        tensors[key].float(), new_size=list(embed.grid_size), num_prefix_tokens=prefix
    )
    return {key: resampled}
