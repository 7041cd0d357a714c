"""ONNX files of a backbone with random weights, generated in milliseconds at arbitrary widths, for timing.

    backbone ─ at prime widths ─ exported once ─→ template
    template ─ each size as c · Π widths, random weights ─→ ONNX file

PyTorch's exporter takes seconds a network. Its graph depends on the widths only through sizes: of the
weights, of the targets of reshapes, and the number of groups of convolutions. In one export at prime widths,
the prime factors of a size identify the unit groups that it depends on (as in `mvp_edge.subnetwork.cost_model`).
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.structure.shapes import Shape, blank_copy
from mvp_edge.subnetwork.cost_model import primes_above, widened
from mvp_edge_export.storage import atomic_file

_LEAST = 12
"""Smaller primes divide numbers that do not depend on widths, such as axes, kernels and positions."""
_MOST = 2**31
"""Larger numbers mean "to the end" in ONNX."""


class Template:
    """A backbone's exported graph, which can be cut to any widths.

    Args:
        model: the backbone; its weights do not matter, and it may lie on the meta device.
        policy: the pruning policy; the family's default if None.
        shape: one input image, (channels, height, width).
    """

    def __init__(self, model: nn.Module, policy: str | None, shape: Shape) -> None:
        from mvp_edge_export.server.convert import onnx_graph

        blank = blank_copy(model)
        self.groups = unit_groups(blank, policy)
        self.shape = shape
        self._primes = list(islice(_foreign_primes(blank, shape), len(self.groups)))
        widths = {group.name: prime for group, prime in zip(self.groups, self._primes, strict=True)}
        prime = widened(blank, self.groups, list(widths.values()))
        # Filled with different numbers: the exporter drops zeros and merges equal tensors.
        real = blank_copy(prime, "cpu")
        generator = torch.Generator().manual_seed(0)
        for tensor in real.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
        self._graph, self.exporter = onnx_graph(real, torch.zeros(1, *shape), False)
        self._graph.graph.ClearField("value_info")

    def write(self, widths: Mapping[str, int], path: Path, seed: int = 0) -> None:
        """Write the network of these widths as an ONNX file, with random weights of ``seed``."""
        with atomic_file(path) as partial:
            partial.write_bytes(self.cut(widths, seed).SerializeToString())

    def cut(self, widths: Mapping[str, int], seed: int = 0) -> Any:
        """The network of these widths as an ONNX model."""
        import onnx

        rng = np.random.default_rng(seed)
        order = [widths[group.name] for group in self.groups]
        model = onnx.ModelProto()
        model.CopyFrom(self._graph)
        indices = {node.input[1] for node in model.graph.node if node.op_type == "Gather"}
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor)
            if value.dtype.kind == "f":
                shape = tuple(self._cut(size, order) for size in value.shape)
                value = value if value.size == 1 else _random_weights(shape, rng)
            elif tensor.name not in indices:
                sizes = [self._cut(int(size), order) for size in value.flat]
                value = np.array(sizes, value.dtype).reshape(value.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Conv" and attribute.name == "group":
                    attribute.i = self._cut(attribute.i, order)
        return model

    def _cut(self, size: int, widths: list[int]) -> int:
        """A size of the template at other widths."""
        if not 0 < size < _MOST:
            return size
        rest = size
        for prime, width in zip(self._primes, widths, strict=True):
            while rest % prime == 0:
                rest, size = rest // prime, size // prime * width
        return size


def _random_weights(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Random weights that keep activations of order 1, since denormal numbers would be slow."""
    inputs = prod(shape[1:]) if len(shape) == 4 else shape[0]
    scale = (2 / inputs) ** 0.5 if len(shape) > 1 else 1.0
    return scale * rng.standard_normal(shape, dtype=np.float32)


def _foreign_primes(blank: nn.Module, shape: Shape) -> Iterator[int]:
    """Primes that divide no size of the network, so that they can only come from widths."""
    sizes = {*shape}
    for tensor in blank.state_dict().values():
        sizes |= {*tensor.shape}
    return (p for p in primes_above(_LEAST) if all(size % p for size in sizes))
