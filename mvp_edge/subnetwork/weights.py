"""Loads tensors from an untrusted file into a network.

No code in a file is ever run, and a file that does not fit is refused with one line that says why.
"""

import math
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvp_edge_export.errors import BadInput


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a safetensors file or a saved state dict; BadInput if it cannot be read."""
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
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} is broken, or holds more than tensors (pickled code is never run): "
            "save its state_dict() as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is truncated or not a state dict ({first_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise BadInput(f"{path} is not a state dict of tensors: save model.state_dict()")
    return dict(loaded)


def fill(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], architecture: str, path: Path
) -> nn.Module:
    """Load ``tensors`` into ``model`` as float32 and return it in eval mode.

    A ViT's position embedding of another grid is resampled.
    Raises BadInput for missing, surplus, misshapen and non-finite tensors, by name.
    """
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    _refuse(path, architecture, "lacks", own.keys() - tensors.keys() - counters)
    _refuse(path, architecture, "has the unexpected", tensors.keys() - own.keys())
    fitted = {**tensors, **_resampled(model, tensors)}
    misshapen = {name for name, tensor in fitted.items() if tensor.shape != own[name].shape}
    _refuse(path, architecture, "has another shape of", misshapen)
    model.load_state_dict(fitted, strict=False)  # in older files the counters are missing
    model = model.float().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{path}: tensor {name!r} holds NaN or infinite values")
    return model


def classes_in(
    tensors: Mapping[str, torch.Tensor], classifier: str, architecture: str, path: Path
) -> int:
    """Number of classes of the classifier of that module path, among ``tensors``."""
    key = f"{classifier}.weight"
    if key in tensors and tensors[key].dim() == 2:
        return int(tensors[key].shape[0])
    raise BadInput(
        f"{path}: these are not weights of {architecture}: its classifier {key} is not among them"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _refuse(path: Path, architecture: str, problem: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise BadInput(
            f"{path}: these are not weights of {architecture}: "
            f"the file {problem} {min(names)!r}{more}"
        )


def _resampled(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The position embedding resampled to the model's grid, if the file's has another one."""
    key = "pos_embed"
    own: Any = getattr(model, key, None)
    if own is None or tensors[key].shape == own.shape:
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
