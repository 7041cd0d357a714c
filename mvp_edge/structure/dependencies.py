"""Which axes of a network's tensors are cut together, found by watching one forward pass.

Every axis of every weight is a set of channels of its own until an operation ties it to another:

    convolution            channels of x   ≡ weight axis 1      channels of the result ≡ weight axis 0, bias
    depthwise, grouped     channels of x   ≡ channels of the result ≡ weight axis 0    in blocks of one group
    linear                 last axis of x  ≡ weight axis 1      last axis of the result ≡ weight axis 0, bias
    normalisation          channels of x   ≡ its vectors
    x + y, x · y           axis by axis, where neither is 1
    mean, view, permute    the axes that stay stay what they are

So a depthwise channel goes from expansion, depthwise layer, squeeze-and-excitation and projection at once, and a
residual stream is one set over all that add to it, without a rule for any family. What an operation computes
*across* its channels (layer normalisation, a softmax, the logits) would change if some were missing: such sets
are fixed, and say why. An operation that is not known fixes all channels that go through it, so that what cannot
be cut stays whole. The idea is that of DepGraph (Fang et al. 2023, arXiv 2301.12900).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvp_edge.structure.activations import tensors_in
from mvp_edge.structure.shapes import Shape, blank_copy, is_grouped

LOGITS = "they are the logits"
"""Why the classifier's outputs stay whole."""
Axis = tuple[str, int]
"""A tensor's name in the network, and one of its axes."""


class Channels:
    """A set of tensor axes that are cut together: a node of a union-find forest."""

    def __init__(self, size: int, axis: Axis):
        self.size = size
        """Length of each of the axes."""
        self.block = 1
        """So many neighbouring channels go together: the channels of one group of a grouped convolution."""
        self.axes = [axis]
        self.writers: list[str] = []
        """Weights of the layers whose outputs these are, in the order of the forward pass."""
        self.readers: list[str] = []
        """Weights of the layers whose inputs these are."""
        self.grouped: list[str] = []
        """Weights of the grouped and depthwise convolutions that the channels run through."""
        self.averaged: list[str] = []
        """Scales of layers that divide by a mean over these channels (global response normalisation)."""
        self.fixed: str | None = None
        """Why none of them can be removed; None where some can."""
        self._parent: Channels | None = None

    @property
    def root(self) -> "Channels":
        """The node that stands for the whole set."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def tie(self, other: "Channels | None") -> "Channels":
        """Make both one set; returns it."""
        mine, theirs = self.root, (other or self).root
        if mine is theirs:
            return mine
        assert mine.size == theirs.size, (mine.axes, theirs.axes)
        theirs._parent = mine
        mine.block = math.lcm(mine.block, theirs.block)
        mine.fixed = mine.fixed or theirs.fixed
        mine.axes += theirs.axes
        mine.writers += theirs.writers
        mine.readers += theirs.readers
        mine.grouped += theirs.grouped
        mine.averaged += theirs.averaged
        return mine

    def fix(self, reason: str) -> None:
        """Keep all of them, for this reason."""
        self.root.fixed = self.root.fixed or reason


Labels = list[Channels | None]
"""For each axis of an activation the channels that it is; None for images, positions and the like."""


def dependencies(model: nn.Module, shape: Shape) -> list[Channels]:
    """The sets of channels of ``model``, in the order in which they are first written.

    Args:
        model: any network; only its shapes are used, and it may lie on the meta device.
        shape: one input image, (channels, height, width).
    """
    blank = blank_copy(model)
    watcher = _Watcher(blank)
    for name, module in blank.named_modules():
        if type(module).__name__ == "GlobalResponseNorm":
            module.register_forward_pre_hook(partial(watcher.enter, f"{name}.weight"))
            module.register_forward_hook(watcher.leave)
    image = torch.empty(2, *shape, device="meta")
    with torch.no_grad(), watcher:
        logits = blank(image)
    for channels in watcher.labels(logits):
        if channels is not None:
            channels.fix(LOGITS)
    return list(dict.fromkeys(channels.root for channels in watcher.written))


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Follows labels through the operations of a forward pass."""

    def __init__(self, model: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = (*model.named_parameters(), *model.named_buffers())
        self._names = {id(tensor): name for name, tensor in tensors}
        self._axes: dict[tuple[int, int], Channels] = {}
        self._labels: dict[int, Labels] = {}
        self._alive: list[torch.Tensor] = []  # or ids would be used again
        self._transposed: dict[int, torch.Tensor] = {}
        self.written: list[Channels] = []
        self._grouped = {
            f"{name}.weight" for name, module in model.named_modules() if is_grouped(module)
        }
        self._averaging: str | None = None

    def enter(self, scale: str, *_: Any) -> None:
        """Begin a layer that divides by a mean over its channels, and multiplies by ``scale``."""
        self._averaging = scale

    def leave(self, *_: Any) -> None:
        """End that layer."""
        self._averaging = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_").removeprefix("_")
        rule = _RULES.get(name, _Watcher._unknown)
        rule(self, name, out, args, dict(kwargs or {}))
        return out

    def labels(self, tensor: torch.Tensor) -> Labels:
        """What each axis of an activation, or of one of the network's tensors, is."""
        if id(tensor) in self._names:
            return [self._axis(tensor, axis) for axis in range(tensor.dim())]
        return list(self._labels.get(id(tensor), [None] * tensor.dim()))

    def _label(self, tensor: torch.Tensor, labels: Sequence[Channels | None]) -> None:
        self._labels[id(tensor)] = list(labels)
        self._alive.append(tensor)

    def _axis(self, tensor: torch.Tensor, axis: int) -> Channels:
        key = id(tensor), axis
        if key not in self._axes:
            self._axes[key] = Channels(tensor.shape[axis], (self._names[id(tensor)], axis))
        return self._axes[key].root

    def _result(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Channels:
        """The channels that a layer of this weight writes."""
        channels = self._axis(weight, 0)
        channels.writers.append(self._names[id(weight)])
        self.written.append(channels)
        return channels if bias is None else channels.tie(self._axis(bias, 0))

    # Each rule: the operation's name, its result, its arguments.

    def _unknown(self, name: str, out: Any, args: Any, named: Any) -> None:
        """Nothing is known of what it computes: its inputs stay whole, its outputs are no channels."""
        for tensor in tensors_in((args, named)):
            for channels in self.labels(tensor):
                if channels is not None:
                    channels.fix(f"{name} runs through them")
        for tensor in tensors_in(out):
            self._label(tensor, [None] * tensor.dim())

    def _same(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        self._label(out, self.labels(args[0]))

    def _pooled(self, name: str, out: Any, args: Any, named: Any) -> None:
        self._label(out[0], self.labels(args[0]))

    def _elementwise(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        """Broadcast: axes are aligned at the end, and those that are not 1 are the same."""
        labels: Labels = [None] * out.dim()
        unlabelled = [False] * out.dim()
        for tensor in tensors_in(args):
            first = out.dim() - tensor.dim()
            for axis, channels in enumerate(self.labels(tensor), first):
                if tensor.shape[axis - first] != out.shape[axis] or (
                    channels is None and out.shape[axis] == 1
                ):
                    continue  # broadcast
                known = labels[axis]
                if channels is None:
                    unlabelled[axis] = True
                else:
                    labels[axis] = channels if known is None else known.tie(channels)
        for found, strange in zip(labels, unlabelled, strict=True):
            if found is not None and strange:
                found.fix(f"{name} joins them with a tensor that cannot be cut")
        self._label(out, labels)

    def _convolution(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        x, weight, bias, groups = args[0], args[1], args[2], args[8]
        if id(weight) not in self._names:  # a filter that is no weight, or is computed from one
            self._unknown(name, out, args, named)
            return
        _, read, *positions = self.labels(x)
        of_weight = self._names[id(weight)]
        for channels in positions:
            if channels is not None:
                channels.fix("a convolution runs across them")
        if groups == 1 and of_weight not in self._grouped:
            if read is not None:
                read.tie(self._axis(weight, 1)).readers.append(of_weight)
            written = self._result(weight, bias)
        else:
            written = self._result(weight, bias)
            if read is not None and weight.shape[0] == x.shape[1]:
                written = read.tie(written)
                written.block = math.lcm(written.block, weight.shape[1])
                written.grouped.append(of_weight)
            else:  # several outputs a channel
                for channels in (read, written):
                    if channels is not None:
                        channels.fix("a grouped convolution changes their number")
        self._label(out, [None, written.root, *[None] * (out.dim() - 2)])

    def _batch_norm(self, name: str, out: Any, args: Any, named: Any) -> None:
        labels = self.labels(args[0])
        for vector in args[1:5]:
            if isinstance(vector, torch.Tensor):
                labels[1] = self._axis(vector, 0).tie(labels[1])
        self._label(out[0], labels)

    def _layer_norm(self, name: str, out: Any, args: Any, named: Any) -> None:
        labels = self.labels(args[0])
        for channels in labels[-len(args[1]) :]:
            if channels is not None:
                channels.fix("layer normalisation runs across them")
        self._label(out[0], labels)

    def _transpose_weight(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        if id(args[0]) in self._names:
            self._transposed[id(out)] = args[0]
            self._alive.append(out)
        else:
            self._label(out, self.labels(args[0])[::-1])

    def _linear(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        *bias, x, right = args[:3] if name == "addmm" else args[:2]
        weight = self._transposed.get(id(right))
        if weight is None:  # a product of two activations
            self._unknown(name, out, args, named)
            return
        read = self.labels(x)[-1]
        if read is not None:
            read.tie(self._axis(weight, 1)).readers.append(self._names[id(weight)])
        written = self._result(weight, bias[0] if bias else None)
        self._label(out, [*self.labels(x)[:-1], written])

    def _reduction(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        x = args[0]
        place = 2 if name == "linalg_vector_norm" else 1
        over = args[place] if len(args) > place else named.get("dim")
        keep = args[place + 1] if len(args) > place + 1 else named.get("keepdim", False)
        over = range(x.dim()) if over is None else [over] if isinstance(over, int) else over
        gone = {axis % x.dim() for axis in over}
        stay: Labels = []
        for axis, channels in enumerate(self.labels(x)):
            if axis in gone and channels is not None:
                if name == "mean" and self._averaging is not None:
                    channels.root.averaged.append(self._averaging)
                else:
                    channels.fix(f"a {name} runs across them")
            if axis not in gone or keep:
                stay.append(None if axis in gone else channels)
        self._label(out, stay)

    def _permute(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        labels, order = self.labels(args[0]), list(range(args[0].dim()))
        if name == "permute":
            order = list(args[1])
        else:
            one, other = args[1], args[2]
            order[one], order[other] = order[other], order[one]
        self._label(out, [labels[axis] for axis in order])

    def _view(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        """Axes of length 1 come and go; others may merge or part where they are no channels."""
        x, labels = args[0], self.labels(args[0])
        told = [(n, label) for n, label in zip(x.shape, labels, strict=True) if n > 1 or label]
        found: Labels = []
        for n in out.shape:
            same = bool(told) and told[0][0] == n
            found.append(told.pop(0)[1] if same else None)
            if n > 1 and not same:
                break
        if not told and len(found) == out.dim():
            self._label(out, found)
        elif x.shape[-1] == out.shape[-1] and not any(labels[:-1]):
            self._label(out, [*[None] * (out.dim() - 1), labels[-1]])
        else:
            self._unknown(name, out, args, named)

    def _expand(self, name: str, out: torch.Tensor, args: Any, named: Any) -> None:
        labels = self.labels(args[0])
        self._label(out, [*[None] * (out.dim() - len(labels)), *labels])

    def _nothing(self, name: str, out: Any, args: Any, named: Any) -> None:
        """It makes a tensor of its own, which is no channels."""


_Rule = Callable[[_Watcher, str, Any, Any, Any], None]
_RULES: dict[str, _Rule] = {
    name: rule
    for rule, names in (
        (
            _Watcher._same,
            "relu hardtanh silu hardswish sigmoid hardsigmoid gelu elu leaky_relu mish tanh clamp clamp_min pow"
            " sqrt clone detach alias to_copy contiguous dropout constant_pad_nd pad avg_pool2d adaptive_avg_pool2d"
            " upsample_nearest2d",
        ),
        (_Watcher._elementwise, "add sub mul div addcmul"),
        (_Watcher._convolution, "convolution"),
        (
            _Watcher._batch_norm,
            "native_batch_norm native_batch_norm_legit_no_training cudnn_batch_norm",
        ),
        (_Watcher._layer_norm, "native_layer_norm"),
        (_Watcher._transpose_weight, "t"),
        (_Watcher._linear, "addmm mm"),
        (_Watcher._reduction, "mean sum linalg_vector_norm"),
        (_Watcher._permute, "permute transpose"),
        (_Watcher._view, "view unsafe_view reshape unsqueeze squeeze"),
        (_Watcher._expand, "expand"),
        (_Watcher._pooled, "max_pool2d_with_indices"),
        (_Watcher._nothing, "empty zeros ones arange"),
    )
    for name in names.split()
}
"""Operation, without its underscores → the rule that follows labels through it."""
