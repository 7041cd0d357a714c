"""What a network costs: multiply-adds, parameters, memory and file size.

One fused multiply-add counts as one FLOP everywhere (fvcore's convention). The verified figure is
fvcore's, from a trace of the real network; two other counts check it:

    measure(module, shape)       the verified Cost: fvcore, and it fails on what it cannot count
    cross_check(module, shape)   fvcore == torch.utils.flop_counter / 2 == hand formulas, exactly
    layers(module, shape)        the hand formulas layer by layer (shapes only, milliseconds)

Only shapes matter: what is counted is a copy of the module without weights, so the module itself is
never run, changed or duplicated, and its device and precision do not matter.
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvp_edge.families import rule_for
from mvp_edge.structure.activations import Alive, peak
from mvp_edge.structure.shapes import Shape, blank_copy, tensors_of
from mvp_edge_export.errors import BadInput
from mvp_edge_export.verified import Cost

with warnings.catch_warnings():
    # fvcore's (unused) focal loss is compiled by torch.jit.script at import, which is deprecated.
    warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)
    from fvcore.nn import FlopCountAnalysis

NORMALISATION = ("batch_norm", "layer_norm", "group_norm", "instance_norm")
POOLING = ("adaptive_avg_pool2d",)
"""fvcore's names for what it counts besides multiply-adds; these are reported separately."""
BESIDE = ("norm", "pool", "parameter")
"""Kinds of `LayerCost` that are no multiply-adds."""

LIGHT = frozenset(
    {
        *("aten::add", "aten::add_", "aten::sub", "aten::mul", "aten::mul_", "aten::div"),
        *("aten::exp", "aten::softmax", "aten::mean", "aten::sum"),
        *(
            "aten::gelu",
            "aten::silu",
            "aten::silu_",
            "aten::sigmoid",
            "aten::sigmoid_",
            "aten::tanh",
        ),
        *("aten::hardsigmoid", "aten::hardsigmoid_", "aten::hardtanh", "aten::hardtanh_"),
        *("aten::pad", "aten::constant_pad_nd", "aten::linalg_vector_norm", "aten::addcmul"),
        *("aten::ceil", "aten::Int", "aten::floor_divide", "aten::rsub", "aten::neg"),
        *("aten::hardswish", "aten::hardswish_", "aten::leaky_relu", "aten::leaky_relu_"),
        *("aten::max_pool2d", "aten::avg_pool2d", "aten::dropout_", "aten::feature_dropout"),
        *("aten::clone", "aten::alias", "aten::expand_as", "aten::repeat", "aten::unflatten"),
    }
)
"""Elementwise, pooling and shape operations that fvcore does not know. They have no matrix
multiplications and count as zero. Any other operation that fvcore does not know stops the count."""

FILE_BYTES = 2500
"""Bytes of an exported file without layers: its header, the description of its input, versions."""
NODE_BYTES = {"conv": 560, "linear": 300, "norm": 250}
"""Bytes that a layer adds to the file besides its weights: its nodes and those that follow it
(activation, addition), their names and the shapes between them. Measured on exports of eight networks and
rounded up; batch normalisation leaves no node."""
INDEX_BYTES = 3
"""Bytes for each output of a batch normalisation or linear layer: its part of the list of kept units."""
LABEL_BYTES = 24
"""Bytes for each class: its name in the file."""


@dataclass(frozen=True)
class LayerCost:
    """The cost of one module that computes something, or of one parameter outside such modules."""

    name: str
    kind: str
    """conv, linear, norm, pool, parameter, or that of a family's own layer (attention)."""
    flops: int
    """Multiply-adds; for norm and pool fvcore's figure (2 a value for BatchNorm, 5 for LayerNorm,
    1 for average pooling)."""
    params: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Bill:
    """A network's cost item by item; each total is the sum of its items, except for the activations.

    From the items the budget solver finds how each depends on the widths.
    """

    flops: tuple[int, ...]
    """Multiply-adds of each layer for one image, including normalisation and pooling."""
    flops_norm: tuple[int, ...]
    params: tuple[int, ...]
    """Number of elements of each parameter tensor."""
    weights: tuple[int, ...]
    """Bytes of each tensor, including floating-point buffers (running statistics)."""
    file: tuple[int, ...]
    """Bytes of each tensor in the exported file, and of everything else that grows with the widths."""
    file_overhead: int
    """Bytes of the exported file that do not depend on widths."""
    activations: tuple[int, ...]
    """Bytes of each activation tensor, see `measure`."""
    lives: tuple[tuple[int, int], ...]
    """For each activation the first and the last operation of the forward pass that uses it."""

    def cost(self) -> Cost:
        """The totals; flops are those of the hand formulas."""
        return Cost(
            flops=sum(self.flops),
            flops_norm=sum(self.flops_norm),
            params=sum(self.params),
            weight_bytes=sum(self.weights),
            activation_bytes=peak(self.activations, self.lives),
        )


def measure(module: nn.Module, shape: Shape, batch: int = 1) -> Cost:
    """The verified cost of a network in eval mode and float32.

    - ``flops``: fvcore's count for one image, whatever the batch, attention included. One
      multiply-add is one. ``flops_norm`` is the part that fvcore adds for normalisation layers.
    - ``params``: all parameters. ``weight_bytes``: four bytes for each of them and for each running
      statistic.
    - ``activation_bytes``: for the whole batch, the peak of the bytes that live at the same time. A
      tensor lives from the operation that makes it to the last one that reads it or a view of it;
      while an operation runs, its inputs and its output both live. The input image counts; weights
      do not. What works in place (ReLU, the residual addition) takes no new bytes, nor does a view.
      Attention is counted as the exported model computes it, with its N × N scores and their
      softmax. Batch normalisation is a step with an output of its own, although runtimes fold it
      away; the scratch space and index tensors of a runtime's kernels are not counted.

    Args:
        module: any of the supported networks; may be on the meta device.
        shape: one image, (channels, height, width).
        batch: images in one pass.

    Raises:
        BadInput: the network has an operation that no rule counts.
    """
    counted = _fvcore(module, shape)
    bill = itemise(module, shape, batch)
    return bill.cost().model_copy(
        update={
            "flops": sum(counted.values()),
            "flops_norm": sum(counted[name] for name in NORMALISATION),
        }
    )


def cross_check(module: nn.Module, shape: Shape) -> dict[str, int]:
    """Count one image's multiply-adds in three ways; they have to agree to the last one.

    fvcore reads a traced graph, torch's own counter sees the dispatched kernels (and counts two per
    multiply-add), the hand formulas use module shapes. Normalisation and pooling, which fvcore
    counts and torch does not, are compared with the hand formulas separately.

    Returns:
        The three counts, and those of normalisation and pooling.

    Raises:
        BadInput: the counts differ; the message gives all three.
    """
    counted = _fvcore(module, shape)
    beside = {name: counted[name] for name in (*NORMALISATION, *POOLING)}
    replica = blank_copy(module)
    with torch.no_grad(), FlopCounterMode(display=False) as torch_counter:
        replica(torch.empty(1, *shape, device="meta"))
    by_hand: Counter[str] = Counter()
    for layer in layers(module, shape):
        by_hand[layer.kind] += layer.flops
    figures = {
        "fvcore": sum(counted.values()) - sum(beside.values()),
        "torch_flop_counter_halved": int(torch_counter.get_total_flops()) // 2,
        "hand": sum(flops for kind, flops in by_hand.items() if kind not in BESIDE),
        "normalisation_fvcore": sum(beside[name] for name in NORMALISATION),
        "normalisation_hand": by_hand["norm"],
        "pooling_fvcore": sum(beside[name] for name in POOLING),
        "pooling_hand": by_hand["pool"],
    }
    agree = (
        figures["fvcore"] == figures["torch_flop_counter_halved"] == figures["hand"]
        and figures["normalisation_fvcore"] == figures["normalisation_hand"]
        and figures["pooling_fvcore"] == figures["pooling_hand"]
    )
    if not agree:
        told = ", ".join(f"{name} {value:,}" for name, value in figures.items())
        raise BadInput(
            f"the multiply-adds of {type(module).__name__} cannot be verified, the counts differ: "
            f"{told}; it has a layer that mvp-edge does not know"
        )
    return figures


def layers(module: nn.Module, shape: Shape) -> list[LayerCost]:
    """The cost of each layer for one image, in the order of the forward pass, by hand formulas.

    The parameters sum to the network's, and so do the flops (in fvcore's convention).
    """
    replica = blank_copy(module)
    return _count(replica, shape, 1, torch.no_grad())


def forward_macs(module: nn.Module, shape: Shape) -> int:
    """Multiply-adds of one image's forward pass (conv, linear, attention).

    The same count as `cross_check` returns, in about 20 ms for a ResNet-18.
    """
    return sum(layer.flops for layer in layers(module, shape) if layer.kind not in BESIDE)


def file_bytes(module: nn.Module) -> int:
    """Predicted bytes of the exported float32 ONNX file: the weights and an overhead for each node.

    Batch normalisation is folded into the convolution before it and leaves one bias per channel.
    The prediction errs upwards, by less than 5 %; labels and settings of usual length are in it.
    """
    items, overhead = _file(module)
    return sum(items) + overhead


def paper_cost(dense_macs: int, batch: int, densities: Iterable[float]) -> float:
    """The training cost as the paper prints it: 0.6 × dense multiply-adds × batch × Σ density.

    Args:
        dense_macs: multiply-adds of the unpruned network for one image.
        batch: images a step.
        densities: for each training step the kept fraction of the network.
    """
    return 0.6 * dense_macs * batch * sum(densities)


def itemise(module: nn.Module, shape: Shape, batch: int = 1) -> Bill:
    """The cost item by item, from shapes alone; ``batch`` concerns the activations."""
    replica = blank_copy(module)
    alive = Alive(tensors_of(replica).values())
    with torch.no_grad():
        found = _count(replica, shape, batch, alive)
    floats = [tensor for tensor in tensors_of(module).values() if tensor.is_floating_point()]
    file, overhead = _file(module)
    return Bill(
        flops=tuple(layer.flops // batch for layer in found),
        flops_norm=tuple(layer.flops // batch for layer in found if layer.kind == "norm"),
        params=tuple(p.numel() for p in module.parameters()),
        weights=tuple(4 * tensor.numel() for tensor in floats),
        file=file,
        file_overhead=overhead,
        activations=tuple(alive.bytes.values()),
        lives=tuple((alive.first[s], alive.last[s]) for s in alive.bytes),
    )


def _fvcore(module: nn.Module, shape: Shape) -> Counter[str]:
    """One image's flops by operator; BadInput when an operator is neither counted nor light."""
    # jit tracing needs real tensors; a copy full of zeros has them at no cost.
    analysis = FlopCountAnalysis(blank_copy(module, "cpu"), torch.zeros(1, *shape))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_handle)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings(
        "none"
    )
    with torch.no_grad():
        counted = Counter({name: int(flops) for name, flops in analysis.by_operator().items()})
    uncounted = {op: n for op, n in analysis.unsupported_ops().items() if op not in LIGHT}
    if uncounted:
        told = ", ".join(f"{op} ({n} ×)" for op, n in sorted(uncounted.items()))
        raise BadInput(
            f"the FLOPs of {type(module).__name__} cannot be counted: no rule for {told}; "
            "add a rule, or the name to LIGHT if it is cheap, in mvp_edge/subnetwork/cost.py"
        )
    return counted


def _attention_handle(inputs: list[Any], _outputs: list[Any]) -> int:
    """q·kᵀ and attention·v of q [B, H, L, E], k [B, H, S, E], v [B, H, S, V]."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    return int(prod(query) * key[-2] + prod(query[:-1]) * prod(value[-2:]))


def _count(
    replica: nn.Module, shape: Shape, batch: int, watched: AbstractContextManager[Any]
) -> list[LayerCost]:
    """The hand formulas over one forward pass, in a context, of a copy without weights."""
    found: list[LayerCost] = []
    owned: set[int] = set()

    def hook(name: str) -> Any:
        def record(
            layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> None:
            counted = _by_hand(layer, inputs[0], output)
            if counted is not None:
                own = [p for p in layer.parameters(recurse=False) if id(p) not in owned]
                owned.update(id(p) for p in own)
                params = sum(p.numel() for p in own)
                found.append(LayerCost(name, *counted, params, tuple(output.shape)))

        return record

    for name, layer in replica.named_modules():
        layer.register_forward_hook(hook(name))
    image = torch.empty(batch, *shape, device="meta")
    with watched:
        replica(image)
    for name, parameter in replica.named_parameters():
        if id(parameter) not in owned:
            found.append(LayerCost(name, "parameter", 0, parameter.numel(), tuple(parameter.shape)))
    return found


def _by_hand(layer: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[str, int] | None:
    """(kind, flops) of one call; None for modules that only hold others or compute elementwise."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return "conv", y.numel() * prod(layer.weight.shape[1:])
    if isinstance(layer, nn.Linear):
        return "linear", y.numel() * layer.weight.shape[1]
    if (rule := rule_for(layer)) is not None:
        return rule.kind, rule.macs(layer, x)
    if isinstance(layer, nn.BatchNorm2d):
        return "norm", x.numel() * (2 if layer.affine else 1)
    if isinstance(layer, nn.LayerNorm):
        return "norm", x.numel() * (5 if layer.elementwise_affine else 4)
    if isinstance(layer, nn.GroupNorm):
        return "norm", x.numel() * (5 if layer.affine else 4)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return "pool", x.numel()
    return None


def _file(module: nn.Module) -> tuple[tuple[int, ...], int]:
    """Bytes of each exported tensor and index list, and of everything else in the file."""
    numbers = {name: t.numel() for name, t in tensors_of(module).items() if t.is_floating_point()}
    outputs, classes, overhead = [], 0, FILE_BYTES
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            for folded in ("weight", "running_mean", "running_var"):
                numbers.pop(f"{name}.{folded}", None)
            outputs.append(numbers.get(f"{name}.bias", 0))
        elif isinstance(layer, nn.Conv2d):
            overhead += NODE_BYTES["conv"]
        elif isinstance(layer, nn.Linear):
            overhead += NODE_BYTES["linear"]
            classes = layer.weight.shape[0]  # the last one is the classifier
            outputs.append(classes)
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            overhead += NODE_BYTES["norm"]
        elif (rule := rule_for(layer)) is not None:
            overhead += rule.file_bytes
    items = [*(4 * n for n in numbers.values()), *(INDEX_BYTES * n for n in outputs)]
    return tuple(items), overhead + LABEL_BYTES * classes
