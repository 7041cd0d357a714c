"""timm's descriptions of pre-trained weights, and weights from the Hugging Face hub."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from timm.models import load_model_config_from_hf
from torch import nn

from mvp_edge.families import adapt, unit_groups
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.architecture import ARGUMENTS, Architecture, similar
from mvp_edge.subnetwork.weights import first_line
from mvp_edge_export.errors import BadInput

HUB = "hf-hub:"
_DESCRIBED = ("mean", "std", "interpolation", "crop_pct")
"""What a description of weights says of the images that they were trained with."""


@dataclass(frozen=True)
class Description:
    """What timm knows of pre-trained weights."""

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Any, *notes: str) -> "Description":
        """From timm's record of the weights."""
        return cls(
            tuple(config.input_size),
            tuple(config.mean),
            tuple(config.std),
            config.interpolation,
            float(config.crop_pct or 1.0),
            notes,
        )


def description_of(name: str, source: str) -> Description:
    """Timm's description of the weights that ``name`` means: an architecture, or one with a tag.

    Raises:
        BadInput: timm describes none. ``source`` is what the user wrote.
    """
    base, _, tag = name.partition(".")
    tags = {other.partition(".")[2]: other for other in timm.list_pretrained(f"{base}.*")}
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = f"choose {' or '.join(sorted(tags))}" if tags else "it has none"
        raise BadInput(f"{source}: {base} has no tag {tag!r}: {known}", field="backbone") from error
    if config is None:
        raise BadInput(
            f"{source}: timm knows no preprocessing for {name!r}; describe it in a JSON file",
            field="backbone",
        )
    others = [timm.get_pretrained_cfg(other) for other in tags.values()]
    if not tag and any(_differ(config, other) for other in others):
        return Description.of(
            config,
            f"the preprocessing is that of {base}.{config.tag}; for other weights write {base}.TAG@FILE",
        )
    return Description.of(config)


def _differ(one: Any, other: Any) -> bool:
    return any(getattr(one, name) != getattr(other, name) for name in _DESCRIBED)


@dataclass(frozen=True)
class Download:
    """A pre-trained network from the hub."""

    model: nn.Module
    architecture: Architecture
    description: Description
    headless: bool
    """Whether it has no classifier; ``model`` then has one of a single class, all zeros."""


def downloaded(name: str, input_size: int | None) -> Download:
    """The network that a timm name or ``hf-hub:organisation/model`` means.

    Raises:
        BadInput: there is no such network, it cannot be pruned (said before the download), or it cannot be had.
    """
    if not name.startswith(HUB) and not timm.is_model(name.partition(".")[0]):
        raise BadInput(
            f"{name}: no such file, and timm has no model of that name{similar(name)}",
            field="backbone",
        )
    # Of whichever HTTP client this version of the hub uses:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    with _hub() as reason:
        try:
            architecture, description = _described(name, input_size)
            unit_groups(architecture.outline(1))  # before a long download
            sized = {"img_size": architecture.input_size} if architecture.sized else {}
            model: Any = timm.create_model(name, pretrained=True, **sized).eval()
        except (OSError, RuntimeError, ValueError, HTTPError) as error:
            local = "ARCHITECTURE" if name.startswith(HUB) else name
            raise BadInput(
                f"{name}: the download of its weights failed ({reason or first_line(error)}); "
                f"for a local file write {local}@FILE",
                field="backbone",
            ) from error
    adapt(model)
    headless = not isinstance(model.get_classifier(), nn.Linear | tuple)
    if headless:
        model.reset_classifier(1)
        with torch.no_grad():
            for parameter in (p for head in heads(model).values() for p in head.parameters()):
                parameter.zero_()
    return Download(model.eval(), architecture, description, headless)


def _described(name: str, input_size: int | None) -> tuple[Architecture, Description]:
    """Architecture and description of a timm name, or of a model for timm on the hub."""
    if not name.startswith(HUB):
        description = description_of(name, name)
        if not timm.get_pretrained_cfg(name).has_weights:
            raise BadInput(
                f"{name}: timm has no pre-trained weights for it; give {name}@FILE",
                field="backbone",
            )
        size = input_size or description.input_size[1]
        return Architecture(name.partition(".")[0], {}, {}, size), description
    config, base, arguments = load_model_config_from_hf(name.removeprefix(HUB))
    lacking = [one for one in ("mean", "std", "input_size") if one not in config]
    if lacking:
        raise BadInput(
            f"{name}: its config.json does not say {' and '.join(lacking)}: describe it in a JSON file",
            field="backbone",
        )
    unknown = sorted((arguments or {}).keys() - ARGUMENTS)
    if unknown:
        raise BadInput(
            f"{name}: it is built with {unknown[0]!r}, which is not one of {', '.join(sorted(ARGUMENTS))}",
            field="backbone",
        )
    description = Description(
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config.get("interpolation", "bicubic"),
        float(config.get("crop_pct") or 1.0),
    )
    size = input_size or description.input_size[1]
    return Architecture(base, {}, arguments or {}, size), description


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
