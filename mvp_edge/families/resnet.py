"""ResNets with BasicBlock or Bottleneck, and their relatives: ResNeXt, SE-ResNet, ResNet-D.

The groups of plain ResNets are listed here one by one, since zoos hold their names. Those of the relatives (grouped
convolutions, squeeze-and-excitation, anti-aliasing) are derived from what the channels run through.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from mvp_edge.families.family import Family, derived_groups
from mvp_edge.recipe import Recipe
from mvp_edge.structure.units import Cut, Point, UnitGroup
from mvp_edge_export.errors import BadInput


def groups(model: Any, policy: str) -> list[UnitGroup]:
    """The groups of a plain ResNet, or of a relative."""
    try:
        return list(_plain(model, policy))
    except _NotPlain:
        return derived_groups(model, policy)


class _NotPlain(Exception):
    """A module that plain ResNets do not have."""


def _plain(model: Any, policy: str) -> Iterator[UnitGroup]:
    """ResNet under the policy "tied" (residual streams and inner filters) or "inner" (inner filters alone).

    Streams are followed from the stem: a block without a shortcut convolution adds to the stream that it
    reads, one with a shortcut starts a new stream. So a BasicBlock stem is tied to stage 1, and a Bottleneck
    stem is a stream of its own.
    """
    inner: list[UnitGroup] = []
    streams: list[_Stream] = []

    if isinstance(model.conv1, nn.Sequential):  # resnetXXd: convolution, norm, act, …, convolution
        stem = [f"conv1.{name}" for name, _ in model.conv1.named_children()]
        for conv, norm, act, reader in zip(stem, stem[1:], stem[2:], stem[3:], strict=False):
            if isinstance(model.get_submodule(conv), nn.Conv2d):
                inner.append(_inside(model, conv, norm, act, reader))
        last = stem[-1]
    else:
        last = "conv1"
    streams.append(_Stream("stem", _writes(model, last, "bn1"), [Point("act1")]))

    for stage in ("layer1", "layer2", "layer3", "layer4"):
        if not hasattr(model, stage):
            raise BadInput(f"a ResNet of four stages can be pruned, and this one has no {stage}")
        for index, block in enumerate(getattr(model, stage)):
            at = f"{stage}.{index}"
            if type(block).__name__ not in ("BasicBlock", "Bottleneck"):
                raise _NotPlain
            chain = [n for n in ("conv1", "conv2", "conv3") if hasattr(block, n)]
            for position, (name, reader) in enumerate(pairwise(chain), start=1):
                norm, act = f"{at}.bn{position}", f"{at}.act{position}"
                inner.append(_inside(model, f"{at}.{name}", norm, act, f"{at}.{reader}"))
            streams[-1].cuts.append(Cut(f"{at}.conv1.weight", 1))
            if block.downsample is not None:  # (average pooling,) convolution, norm
                *_, conv, norm = (
                    f"{at}.downsample.{n}" for n, _ in block.downsample.named_children()
                )
                streams[-1].cuts.append(Cut(f"{conv}.weight", 1))
                streams.append(_Stream(stage, _writes(model, conv, norm), []))
            elif index == 0:
                streams[-1].name = stage
            streams[-1].cuts += _writes(model, f"{at}.{chain[-1]}", f"{at}.bn{len(chain)}")
            streams[-1].points.append(Point(f"{at}.act{len(chain)}"))
    streams[-1].cuts.append(Cut("fc.weight", 1))
    tied = [_filters(model, f"{s.name}.stream", s.cuts, s.points) for s in streams]
    if getattr(model.fc, "in_features", None) != tied[-1].size:
        raise _NotPlain
    _check_nothing_else(model, (*tied, *inner))

    if policy == "tied":
        yield from tied
    yield from inner


@dataclass
class _Stream:
    """A residual stream while it is followed through the network."""

    name: str
    cuts: list[Cut]
    points: list[Point]


def _filters(
    model: nn.Module, name: str, cuts: Sequence[Cut], points: Sequence[Point]
) -> UnitGroup:
    """A group of filters; the first cut is in a convolution that computes them."""
    size = int(model.get_parameter(cuts[0].tensor).shape[0])
    return UnitGroup(name, "filter", size, tuple(cuts), tuple(points))


def _inside(model: nn.Module, conv: str, norm: str, act: str, reader: str) -> UnitGroup:
    """The filters of a convolution inside a residual branch, or inside the stem."""
    cuts = [*_writes(model, conv, norm), Cut(f"{reader}.weight", 1)]
    return _filters(model, f"{conv}.filters", cuts, [Point(act)])


def _writes(model: nn.Module, conv: str, norm: str) -> list[Cut]:
    """The cuts of a convolution's filters and of the normalisation after it."""
    for name, kind in ((conv, nn.Conv2d), (norm, nn.BatchNorm2d)):
        module = model.get_submodule(name)
        if not isinstance(module, kind):
            raise _NotPlain
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise _NotPlain
    names = [f"{conv}.weight"]
    if model.get_submodule(conv).bias is not None:
        names.append(f"{conv}.bias")
    names += [f"{norm}.{t}" for t in ("weight", "bias", "running_mean", "running_var")]
    return [Cut(name, 0) for name in names]


def _check_nothing_else(model: nn.Module, groups: Iterable[UnitGroup]) -> None:
    """Raise `_NotPlain` for modules on a stream that are not cut with it (SE, anti-aliasing, a stem pool)."""
    known = {cut.tensor.rpartition(".")[0] for group in groups for cut in group.cuts}
    for name, module in model.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and name not in known:
            raise _NotPlain


_MUON = {"optimizer": "muon", "updates": 4}

RESNET = Family(
    name="resnet",
    title="ResNet, ResNeXt, SE-ResNet",
    classes=("timm.models.resnet.ResNet",),
    policies=("tied", "inner"),
    groups=groups,
    recipe=Recipe(optimizer="sgd", lr=0.01, weight_decay=5e-4),
    settings={
        "ifp": {"schedule": "hold"},
        "ifp-taylor": {"schedule": "hold"},
        # A ResNet that is small from the first step learns most from several updates a step by Muon (measured in
        # the trials). Backbone weights are further from a good solution than averaged ones, and need a higher rate.
        **dict.fromkeys(("trunk", "mvp"), _MUON | {"lr": 0.004, "relative_step": 0.01}),
        **dict.fromkeys(
            ("smsp", "distill", "magnitude", "random"), _MUON | {"lr": 0.01, "relative_step": 0.02}
        ),
    },
)
