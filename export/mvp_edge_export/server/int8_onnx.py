"""int8 for ONNX Runtime: a graph with quantise and dequantise nodes (QDQ), by named schemes.

    model.onnx ─ folded, shapes inferred ─ ranges of the activations ─┐
                                                    schemes ──────────┴─→ one file each

Weights are quantised per output channel. What computes in int8 is data: each scheme leaves some
*kinds* of nodes in float, from nothing to all but the layers with weights. Server side.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from mvp_edge_export.running.sessions import import_runtime
from mvp_edge_export.server.convert import INPUT

Floats = npt.NDArray[np.float32]
Kind = Literal["norm", "softmax", "gelu", "attention", "sum", "move", "layer"]

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), "layer"),
    "LayerNormalization": "norm",
    "Softmax": "softmax",
    "Gelu": "gelu",
    **dict.fromkeys(("Add", "Mul", "Relu", "Clip", "MaxPool"), "sum"),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), "sum"),
    **dict.fromkeys(("Concat", "Reshape", "Transpose", "Slice", "Gather", "Squeeze"), "move"),
    **dict.fromkeys(("Unsqueeze", "Flatten", "Split", "Pad"), "move"),
}
"""Operator → kind. A product of two activations is of kind ``attention``; operators that are not
named here stay in float always."""

_BATCH = 8
_TAIL = 99.99


@dataclass(frozen=True)
class Scheme:
    """What stays in float, and how the activations' ranges are found."""

    name: str
    about: str
    floats: tuple[Kind, ...] = ()
    ends: bool = False
    """Whether the first and the last layer stay in float."""
    calibration: Literal["minmax", "percentile"] = "minmax"


_ATTENTION: tuple[Kind, ...] = ("norm", "softmax", "gelu", "attention", "move")
_ALL_BUT_LAYERS: tuple[Kind, ...] = (*_ATTENTION, "sum")

SCHEMES = (
    Scheme("all", "everything in int8"),
    Scheme("norm-float", "all but LayerNorm", ("norm",)),
    Scheme("softmax-float", "all but LayerNorm and softmax", ("norm", "softmax")),
    Scheme("gelu-float", "all but LayerNorm, softmax and GELU", ("norm", "softmax", "gelu")),
    Scheme("attention-float", "all but attention's arithmetic", _ATTENTION),
    Scheme("ends-float", "all but the first and the last layer", _ATTENTION, ends=True),
    Scheme("percentile", f"ranges by the {_TAIL} % percentile", _ATTENTION, calibration="percentile"),
    Scheme("layers", "only layers with weights", _ALL_BUT_LAYERS),
    Scheme("layers-ends-float", "only inner layers with weights", _ALL_BUT_LAYERS, ends=True),
    Scheme(
        "layers-percentile",
        f"only layers with weights, ranges by the {_TAIL} % percentile",
        _ALL_BUT_LAYERS,
        calibration="percentile",
    ),
)  # fmt: skip
"""Tried in this order; one that comes to the same as an earlier one is left out. Attention's
arithmetic: LayerNorm, softmax, GELU, the products of two activations, and what moves their factors.

Entropy calibration is not among them: on DeiT-Tiny, keep 0.5, it took 66 s, against 8 s for the
percentile, and lost 27 points of top-1 with all products in int8.
"""


def attempts(
    source: Path, calibration: Floats, folder: Path, *, arch: str, full_range: bool
) -> Iterator[tuple[Scheme, Path, int, int]]:
    """Quantise a graph by each scheme in turn.

    Args:
        source: the float32 ``.onnx`` file.
        calibration: training images as the network takes them [N, 3, S, S].
        folder: where the files go.
        arch: the device's, as ``uname -m`` names it. ONNX Runtime's kernels take activations as
            uint8 on x86-64 (int8 ones were 3.4 times slower there: ResNet-18, keep 0.5) and prefer
            int8 elsewhere (documentation of ``quantize_static``).
        full_range: weights of 8 bits; False takes 7, for x86-64 processors without VNNI, whose sums
            of two products saturate at 16 bits.

    Returns:
        Scheme, its file, layers in int8, layers in float; made as they are asked for.
    """
    import_runtime("onnxruntime")
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    graph = _named(prepared)
    kinds = dict(_kinds(graph.graph))
    layers = [name for name, kind in kinds.items() if kind in ("layer", "attention")]
    weighted = [name for name in layers if kinds[name] == "layer"]
    ends = {weighted[0], weighted[-1]}
    operators = {node.name: node.op_type for node in graph.graph.node}

    @cache
    def ranges(method: str, types: tuple[str, ...]) -> Any:
        return _ranges(prepared, calibration, method, types, folder)

    seen, written = set(), set()
    for scheme in SCHEMES:
        chosen = tuple(
            name
            for name, kind in kinds.items()
            if kind not in scheme.floats and not (scheme.ends and name in ends)
        )
        computing = tuple(name for name in chosen if kinds[name] != "move")
        if not computing or (scheme.calibration, computing) in seen:
            continue
        seen.add((scheme.calibration, computing))
        types = tuple(sorted({operators[name] for name in chosen}))
        wanted = tuple(sorted(set(operators.values()) & set(_KINDS)))
        found = ranges(scheme.calibration, types if scheme.calibration == "percentile" else wanted)
        quantizer = QDQQuantizer(
            onnx.load(prepared),
            per_channel=True,
            reduce_range=not full_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if arch == "x86_64" else QuantType.QInt8,
            tensors_range=found,
            nodes_to_quantize=list(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=list(types),
            extra_options={"QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
        )
        with _quiet():
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        model = quantizer.model.model
        onnx.checker.check_model(model)
        content = model.SerializeToString(deterministic=True)
        if (known := sha256(content).digest()) in written:
            continue
        written.add(known)
        path = folder / f"{scheme.name}.onnx"
        path.write_bytes(content)
        inside = sum(name in chosen for name in layers)
        yield scheme, path, inside, len(layers) - inside


def _named(path: Path) -> onnx.ModelProto:
    """The graph with a name for every node, written back."""
    graph = onnx.load(path)
    taken = {node.name for node in graph.graph.node}
    for index, node in enumerate(graph.graph.node):
        if not node.name:
            node.name = f"node_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    onnx.save(graph, path)
    return graph


def _kinds(graph: onnx.GraphProto) -> Iterator[tuple[str, Kind]]:
    """Node → kind, for those that could compute in int8, in the order of the forward pass."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        kind = _KINDS.get(node.op_type)
        if kind == "layer" and not constants & set(node.input[:2]):
            kind = "attention"
        if kind is not None:
            yield node.name, kind


class _Reader:
    """Feeds images one at a time, as onnxruntime asks for them."""

    def __init__(self, images: Floats) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Floats] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}


def _ranges(graph: Path, images: Floats, method: str, types: Sequence[str], folder: Path) -> Any:
    """The range of every tensor beside nodes of ``types``, in a few images at a time.

    (All at once, as onnxruntime does it by itself, took 9 GB for DeiT-Tiny.)
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    calibrator = create_calibrator(
        graph,
        list(types),
        str(folder / "augmented.onnx"),
        calibrate_method=methods[method],
        extra_options={"symmetric": False, "percentile": _TAIL},
    )
    with _quiet():
        for start in range(0, len(images), _BATCH):
            calibrator.collect_data(_Reader(images[start : start + _BATCH]))
        return calibrator.compute_data()


@contextmanager
def _quiet() -> Iterator[None]:
    """Onnxruntime's tools print their progress and log about tensors that they leave alone."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
