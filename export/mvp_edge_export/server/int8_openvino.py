"""int8 for OpenVINO: an IR with fake-quantise nodes, made by NNCF after named schemes.

    model.onnx ─ OpenVINO ─→ graph ─ NNCF, training images, a scheme ─→ one .xml + .bin each

Server side.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvp_edge_export.running.sessions import import_runtime, untold

Floats = npt.NDArray[np.float32]

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_MOVES = {
    *("Convert", "Subtract", "Multiply"),  # int8 weights are unpacked by these
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Gather"),
    *("StridedSlice", "Slice", "Relu", "MaxPool", "Concat"),
}


@dataclass(frozen=True)
class Scheme:
    """What NNCF is asked for."""

    name: str
    about: str
    symmetric: bool = False
    """Activations too; else those that have both signs are asymmetric (NNCF's "mixed")."""
    transformer: bool = False
    """NNCF's patterns for attention, and smoothing of the activations before LayerNorm's layers."""
    minmax: bool = False
    """Ranges by the extremes alone; else means of the images' extremes."""
    attention: bool = True
    """Whether attention's own products are in int8."""
    ends: bool = False
    """Whether the first and the last layer stay in float."""


SCHEMES = (
    Scheme("symmetric", "symmetric ranges", symmetric=True),
    Scheme("mixed", "asymmetric ranges where both signs occur"),
    Scheme("minmax", "ranges by the extremes of all images", minmax=True),
    Scheme("ends-float", "all but the first and the last layer", ends=True),
    Scheme("transformer", "NNCF's scheme for transformers", transformer=True),
    Scheme("attention-float", "the same without attention's products", transformer=True, attention=False),
)  # fmt: skip
"""Tried in this order; those for attention only on a network that has any. NNCF leaves LayerNorm,
softmax and GELU in float by itself."""


def attempts(
    source: Path, calibration: Floats, folder: Path, *, full_range: bool
) -> Iterator[tuple[Scheme, Path, int, int]]:
    """Quantise a graph by each scheme in turn.

    Args:
        source: the float32 ``.onnx`` file.
        calibration: training images as the network takes them [N, 3, S, S].
        folder: where the files go.
        full_range: weights of 8 bits; False takes 7, for x86-64 processors without VNNI, whose sums
            of two products saturate at 16 bits.

    Returns:
        Scheme, its ``.xml``, layers in int8, layers in float; made as they are asked for.
    """
    openvino, nncf = import_runtime("openvino"), _nncf()
    core = openvino.Core()
    layers, attention = matrix_products(core.read_model(source))
    images = nncf.Dataset([image[None] for image in calibration])
    overflow = nncf.OverflowFix.DISABLE if full_range else nncf.OverflowFix.ENABLE
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    preset = nncf.QuantizationPreset
    for scheme in SCHEMES:
        if scheme.transformer and not attention:
            continue
        floats = [layers[0], layers[-1]] if scheme.ends else []
        floats += [] if scheme.attention else attention
        special = {"activations_range_estimator_params": ranges} if scheme.minmax else {}
        with _quiet():
            model = nncf.quantize(
                core.read_model(source),
                images,
                preset=preset.PERFORMANCE if scheme.symmetric else preset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER if scheme.transformer else None,
                subset_size=len(calibration),
                ignored_scope=nncf.IgnoredScope(names=floats),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=overflow, **special
                ),
            )
        path = folder / f"{scheme.name}.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        total, inside = len(layers) + len(attention), _quantised(model)
        yield scheme, path, inside, total - inside


def matrix_products(model: Any) -> tuple[list[str], list[str]]:
    """Names of the layers with weights and of the products of two activations, in graph order."""
    layers: list[str] = []
    attention: list[str] = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in _PRODUCTS:
            sides = [node.input_value(index).get_node() for index in (0, 1)]
            (layers if any(map(_constant, sides)) else attention).append(node.get_friendly_name())
    return layers, attention


def _quantised(model: Any) -> int:
    """Layers and products both of whose inputs are quantised."""
    return sum(
        all(_from_int8(node.input_value(index).get_node()) for index in (0, 1))
        for node in model.get_ordered_ops()
        if node.get_type_name() in _PRODUCTS
    )


def _constant(node: Any) -> bool:
    """Whether a value follows from constants alone."""
    inputs = [value.get_node() for value in node.input_values()]
    return all(map(_constant, inputs)) if inputs else bool(node.get_type_name() == "Constant")


def _from_int8(node: Any) -> bool:
    """Whether a value was quantised, looking through what scales or moves it."""
    name = node.get_type_name()
    if name == "FakeQuantize":
        return True
    if name == "Constant":
        return str(node.get_element_type().get_type_name()) in ("i8", "u8")
    inputs = [value.get_node() for value in node.input_values()]
    return name in _MOVES and bool(inputs) and _from_int8(inputs[0])


def _nncf() -> Any:
    with untold(), _quiet():
        import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars on stdout; PyTorch, which it imports, remarks on absent GPUs."""
    remarks = logging.getLogger("torch.utils.cpp_extension")
    before = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            for module in (r"nncf\.", r"torch\."):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        remarks.setLevel(before)
