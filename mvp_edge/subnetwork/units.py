"""The units that can be pruned, declared as data.

A *unit* is one filter, head or MLP node. A *unit group* is a set of units of one layer (or, for a
residual stream, of one stage) that are kept or removed one by one. A *cut* names the slice of a
tensor that belongs to each unit. The families below only yield these data; `subnet` interprets them.

    layer1.stream ─┬─ conv1.weight          axis 0     the stem writes the stream
                   ├─ bn1.{weight, …}       axis 0
                   ├─ layer1.0.conv1.weight axis 1     every block reads it …
                   ├─ layer1.0.conv2.weight axis 0     … and adds to it
                   └─ layer2.0.conv1.weight axis 1     as does the next stage

A new family needs one more generator of `UnitGroup` and one line in `FAMILIES`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mvp_edge_export.errors import BadInput


@dataclass(frozen=True)
class Cut:
    """The slice of one tensor's axis that belongs to each unit of a group.

    Unit k owns the indices ``offset + k·width + i + r·period`` for ``i < width``, ``r < repeat``:
    a filter has width 1; a head of a fused qkv has width head_dim and one cut for each of q, k, v;
    a row of every head has width 1, repeat = heads, period = head_dim.
    """

    tensor: str
    axis: int
    offset: int = 0
    width: int = 1
    repeat: int = 1
    period: int = 0

    def indices(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Axis indices owned by ``units`` [m] as one flat array [m · width · repeat]."""
        inner = np.arange(self.width) + self.period * np.arange(self.repeat)[:, None]
        return (self.offset + self.width * units[:, None] + inner.reshape(-1)).reshape(-1)


@dataclass(frozen=True)
class Point:
    """Where a group's units can be observed or scaled: a module's output, or its first input.

    Channels are on axis 1 of a feature map and on the last axis of a token sequence.
    """

    module: str
    side: str = "output"  # or "input"


@dataclass(frozen=True)
class UnitGroup:
    """A set of units that are kept or removed one by one."""

    name: str
    kind: str
    """"filter", "head", "node" or "head_dim"."""
    size: int
    cuts: tuple[Cut, ...]
    points: tuple[Point, ...] = ()
    width: int = 1
    """Channels of a unit at its points: 1 for a filter or node, head_dim for a head."""
    tempered: tuple[Cut, ...] = ()
    """Cuts to multiply by √(kept/size): attention divides by √head_dim, for which q has to compensate."""
    attention: str | None = None
    """For heads and head_dim: the attention module whose size attributes follow the cut."""


def unit_groups(model: nn.Module, policy: str | None = None) -> tuple[UnitGroup, ...]:
    """The unit groups of ``model`` under ``policy`` (None: the family's default).

    A ResNet's streams come first, then its inner filters; each in the order in which data flows.

    Works on an already pruned model too: sizes are read from its modules. Raises BadInput for a model
    of another family, a module that cannot be cut, or an unknown policy.
    """
    family = family_of(model)
    policies = POLICIES[family]
    if policy is not None and policy not in policies:
        raise BadInput(f"policy {policy!r} is unknown for {family}: choose {' or '.join(policies)}")
    return tuple(FAMILIES[family](model, policy or policies[0]))


def family_of(model: nn.Module) -> str:
    """The family's name, by the class that timm built; BadInput names the families that work."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("timm.") and cls.__name__ in _CLASSES:
            return _CLASSES[cls.__name__]
    raise BadInput(
        f"{type(model).__name__} cannot be pruned yet: these families work: timm ResNets with BasicBlock "
        "or Bottleneck (resnet18 … resnet152, resnet18d …) and ViT / DeiT (vit_*, deit_*)"
    )


def _resnet(model: Any, policy: str) -> Iterator[UnitGroup]:
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
        for index, block in enumerate(getattr(model, stage)):
            at = f"{stage}.{index}"
            if type(block).__name__ not in ("BasicBlock", "Bottleneck"):
                raise BadInput(
                    f"{at} is a {type(block).__name__}: only BasicBlock and Bottleneck can be pruned"
                )
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
        raise BadInput(
            f"fc ({type(model.fc).__name__}) is in the way: a Linear that reads the last stage's "
            f"{tied[-1].size} channels is expected there"
        )
    _check_nothing_else(model, (*tied, *inner))

    if policy == "tied":
        yield from tied
    yield from inner


def _vit(model: Any, _policy: str) -> Iterator[UnitGroup]:
    """ViT / DeiT: the heads of each block, the rows within its heads, and the nodes of its MLP."""
    for index, block in enumerate(model.blocks):
        at = f"blocks.{index}"
        _check_vit_block(block, at)
        heads, dim = int(block.attn.num_heads), int(block.attn.head_dim)
        rows = [t for t in ("weight", "bias") if getattr(block.attn.qkv, t) is not None]
        qkv = [
            (f"{at}.attn.qkv.{tensor}", part * heads * dim) for tensor in rows for part in range(3)
        ]
        proj = f"{at}.attn.proj"
        yield UnitGroup(
            f"{at}.heads",
            "head",
            heads,
            (*(Cut(t, 0, o, width=dim) for t, o in qkv), Cut(f"{proj}.weight", 1, width=dim)),
            (Point(proj, "input"),),
            width=dim,
            attention=f"{at}.attn",
        )
        every_head = {"repeat": heads, "period": dim}
        yield UnitGroup(
            f"{at}.head_dim",
            "head_dim",
            dim,
            (*(Cut(t, 0, o, **every_head) for t, o in qkv), Cut(f"{proj}.weight", 1, **every_head)),
            tempered=tuple(Cut(t, 0, o, **every_head) for t, o in qkv if o == 0),
            attention=f"{at}.attn",
        )
        fc1, fc2 = f"{at}.mlp.fc1", f"{at}.mlp.fc2"
        cuts = [Cut(f"{fc1}.weight", 0), Cut(f"{fc2}.weight", 1)]
        if block.mlp.fc1.bias is not None:
            cuts.append(Cut(f"{fc1}.bias", 0))
        nodes = int(block.mlp.fc1.out_features)
        yield UnitGroup(f"{at}.nodes", "node", nodes, tuple(cuts), (Point(fc2, "input"),))


FAMILIES: dict[str, Callable[[Any, str], Iterator[UnitGroup]]] = {"resnet": _resnet, "vit": _vit}
POLICIES: dict[str, tuple[str, ...]] = {"resnet": ("tied", "inner"), "vit": ("heads-nodes",)}
_CLASSES = {"ResNet": "resnet", "VisionTransformer": "vit"}


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
            raise BadInput(
                f"{name} ({type(module).__name__}) is in the way: a {kind.__name__} is expected there"
            )
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise BadInput(
                f"{name} is a grouped convolution: plain ResNets (not ResNeXt) can be pruned"
            )
    names = [f"{conv}.weight"]
    if model.get_submodule(conv).bias is not None:
        names.append(f"{conv}.bias")
    names += [f"{norm}.{t}" for t in ("weight", "bias", "running_mean", "running_var")]
    return [Cut(name, 0) for name in names]


def _check_nothing_else(model: nn.Module, groups: Iterable[UnitGroup]) -> None:
    """Refuse modules on a stream that are not cut with it (SE, anti-aliasing, a stem pool)."""
    known = {cut.tensor.rpartition(".")[0] for group in groups for cut in group.cuts}
    for name, module in model.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and name not in known:
            raise BadInput(
                f"{name} ({type(module).__name__}) is in the way: plain ResNets can be pruned"
            )


def _check_vit_block(block: Any, at: str) -> None:
    expected = {"attn": "Attention", "mlp": "Mlp"}
    for name, kind in expected.items():
        module = getattr(block, name, None)
        if type(module).__name__ != kind:
            raise BadInput(
                f"{at}.{name} is a {type(module).__name__}: only timm's {kind} can be pruned"
            )
    for name in ("attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
        module = block.get_submodule(name)
        if not isinstance(module, nn.Identity):
            raise BadInput(
                f"{at}.{name} ({type(module).__name__}) is in the way: plain ViT / DeiT can be pruned"
            )
    if getattr(block.attn, "gate", None) is not None:
        raise BadInput(f"{at}.attn.gate is in the way: plain ViT / DeiT can be pruned")
