"""What a family of backbones is, and the unit groups of families that need no rules of their own."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from mvp_edge.recipe import Recipe
from mvp_edge.structure.dependencies import LOGITS, Channels, dependencies
from mvp_edge.structure.shapes import is_grouped
from mvp_edge.structure.units import Cut, Point, Rescaled, UnitGroup
from mvp_edge_export.devices.operators import Row
from mvp_edge_export.errors import BadInput

SIDE = 224
"""Pixels of the image that is sent through a network of shapes to see what depends on what."""


ONE_SHOT = ("trunk", "mvp", "smsp", "distill", "magnitude", "random")
"""Methods that prune before they train; every family can be pruned by them."""


@dataclass(frozen=True)
class LayerRule:
    """What a layer of a family's own costs, besides the layers of PyTorch that are inside of it."""

    kind: str
    """What it is called in tables of costs."""
    macs: Callable[[Any, torch.Tensor], int]
    """Multiply-adds of the layer on an input."""
    operators: Callable[[Any, torch.Tensor], list[Row]]
    """What a runtime computes for it."""
    file_bytes: int
    """Bytes that its nodes add to an exported file."""


def _nothing(_model: Any) -> None:
    pass


@dataclass(frozen=True)
class Family:
    """A family of backbones: everything that the engine has to know of it."""

    name: str
    """In files and messages."""
    title: str
    """The networks for people, as timm calls them."""
    classes: tuple[str, ...]
    """The classes that the networks are of, with their modules."""
    policies: tuple[str, ...]
    """Which units can be pruned; the default first."""
    groups: Callable[[Any, str], Iterable[UnitGroup]]
    """The unit groups of a model under a policy."""
    recipe: Recipe
    """How its networks are fine-tuned where a method does not differ from it."""
    iterative: tuple[str, ...] = ("ifp", "ifp-taylor")
    """Its methods that shrink the network while it trains; the first is the one that leaves snapshots in a zoo."""
    from_scratch: str = "distill"
    """The method where there is no zoo, and by which zoos are built."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Method → how its recipe differs from the family's."""
    layers: Mapping[str, LayerRule] = field(default_factory=dict)
    """Class of a layer of its own → what it costs."""
    adapt: Callable[[Any], None] = _nothing
    """Changes a network that timm has just built into an equal one that the engine understands."""
    follow: Callable[[Any], None] = _nothing
    """Sets what else follows a cut: attributes that are computed from several sizes of a module."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that can prune it."""
        return (*ONE_SHOT, *self.iterative, "conventional")


_REMEMBERED = 64
_derived: OrderedDict[tuple[Any, ...], list[UnitGroup]] = OrderedDict()
"""Structure and policy → unit groups, of the networks last asked for."""


def derived_groups(model: nn.Module, policy: str) -> list[UnitGroup]:
    """The unit groups of a convolutional network, from what its channels run through.

    Groups of a residual stream (policy ``tied``) are those whose channels go from one block to another; all others
    lie inside a block.

    Raises:
        BadInput: nothing in the network can be cut.
    """
    key = (policy, *_structure(model))  # a network that shrinks is asked several times at each size
    if key not in _derived:
        _derived[key] = _derive(model, policy)
    _derived.move_to_end(key)
    while len(_derived) > _REMEMBERED:
        _derived.popitem(last=False)
    return list(_derived[key])


def _structure(model: nn.Module) -> Iterator[Any]:
    """Everything about a network on which its unit groups depend: its layers, and the shapes of its tensors."""
    for name, module in model.named_modules():
        yield name, type(module), is_grouped(module)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tuple(tensor.shape)


def _derive(model: nn.Module, policy: str) -> list[UnitGroup]:
    everything = dependencies(model, (3, SIDE, SIDE))
    found = [channels for channels in everything if channels.fixed is None]
    if not found:
        raise BadInput(
            f"{type(model).__name__} cannot be pruned: none of its channels can be removed "
            f"({_obstacle(model, everything)})"
        )
    streams = [one for one in found if _is_stream(model, one)]
    inner = [_group(model, one, "filters") for one in found if one not in streams]
    return inner if policy == "inner" else [*(_group(model, s, "stream") for s in streams), *inner]


def _obstacle(model: nn.Module, everything: Sequence[Channels]) -> str:
    """Why the first channels stay whole; where none could be followed at all, the layer of an unknown class."""
    for channels in everything:
        if channels.fixed != LOGITS:
            return f"those of {channels.writers[0].rpartition('.')[0]}: {channels.fixed}"
    name, layer = next(
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    )
    return f"{name} is a {type(layer).__name__}, which is not known"


def no_attention(model: nn.Module) -> None:
    """Raise BadInput for a convolutional network that has attention layers as well, which are not known."""
    for name, layer in model.named_modules():
        if "Attention" in type(layer).__name__:
            raise BadInput(
                f"{type(model).__name__} cannot be pruned: {name} ({type(layer).__name__}) is in the way"
            )


def _group(model: nn.Module, channels: Channels, what: str) -> UnitGroup:
    writer, _, _ = channels.writers[0].rpartition(".")
    linear = isinstance(model.get_submodule(writer), nn.Linear)
    cuts = [
        Cut(tensor, axis, width=channels.block) for tensor, axis in dict.fromkeys(channels.axes)
    ]
    points = [_input_of(model, tensor) for tensor in dict.fromkeys(channels.readers)]
    return UnitGroup(
        f"{writer}.{'nodes' if linear else what}",
        "node" if linear else "filter",
        channels.size // channels.block,
        tuple(_writers_first(cuts, channels.writers)),
        tuple(points),
        width=channels.block,
        rescaled=tuple(Rescaled(Cut(scale, 0), -1.0) for scale in channels.averaged),
    )


def _writers_first(cuts: Sequence[Cut], writers: Sequence[str]) -> list[Cut]:
    return sorted(cuts, key=lambda cut: not (cut.axis == 0 and cut.tensor in writers))


def _input_of(model: nn.Module, tensor: str) -> Point:
    module, _, _ = tensor.rpartition(".")
    axis = -1 if isinstance(model.get_submodule(module), nn.Linear) else 1
    return Point(module, "input", axis)


def _is_stream(model: nn.Module, channels: Channels) -> bool:
    """Whether the channels go from one block to another: they share a row of blocks, or nothing at all."""
    paths = [tensor.split(".")[:-1] for tensor, _ in channels.axes]
    shared = [
        part
        for part, *_ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    ]
    if not shared:
        return True
    around = model.get_submodule(".".join(shared))
    if not isinstance(around, nn.Sequential | nn.ModuleList):
        return False
    inside = {path[len(shared)] for path in paths if len(path) > len(shared)}
    return any(len(list(around.get_submodule(name).children())) > 0 for name in inside)
