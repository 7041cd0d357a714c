"""A PyTorch network as ONNX and OpenVINO files that describe themselves.

module → frozen → ONNX graph → model.onnx → model.xml + model.bin
"""

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import nn

from mvp_edge_export.errors import BadInput, GateFailed
from mvp_edge_export.images import Preprocess
from mvp_edge_export.running.sessions import import_runtime

INPUT, OUTPUT = "image", "logits"

_MAX_ONNX_BYTES = 2**31 - 1  # protobuf's limit for one file

Network = Literal["pruned", "baseline"]

PLACES = {
    "onnx": "model.onnx",
    "onnx-int8": "model_int8.onnx",
    "openvino": "model.xml",
    "openvino-fp16": "model_fp16.xml",
    "openvino-int8": "model_int8.xml",
}
"""Format → path of its file in a bundle, or in the baseline's folder."""


@dataclass(frozen=True)
class Written:
    """One network's files in the bundle, and the PyTorch module that they must agree with."""

    network: Network
    module: nn.Module
    graph: onnx.ModelProto
    """The float32 graph that was written, with its description."""
    models: dict[str, str]
    exporter: str


@dataclass(frozen=True)
class NetworkWriter:
    """Writes networks of one input size in the wanted formats."""

    size: int
    """Side of the input images in pixels."""
    formats: Sequence[str]
    """Some of ``onnx``, ``openvino``."""
    fp16: bool = False
    """Also write an OpenVINO IR with weights in float16, of the pruned network."""
    dynamic_batch: bool = False
    """Leave the batch size open instead of fixing it to 1."""

    def write(
        self, bundle: Path, network: Network, module: nn.Module, metadata: Mapping[str, Any]
    ) -> Written:
        """Write one network below ``bundle``; the baseline has a folder of its own there.

        Args:
            bundle: the bundle's directory.
            network: which of the bundle's networks this is.
            module: from ``frozen``.
            metadata: the description that the ONNX file carries.

        Raises:
            BadInput: the network is too large for one file, or the disk is full.
            GateFailed: the network cannot be expressed in a format.
        """
        folder = bundle if network == "pruned" else bundle / network
        folder.mkdir(exist_ok=True)
        image = torch.zeros(1, 3, self.size, self.size)
        graph, exporter = onnx_graph(module, image, self.dynamic_batch)
        describe(graph, metadata)
        if graph.ByteSize() > _MAX_ONNX_BYTES:
            raise BadInput(f"the {network} network is over 2 GB, more than one ONNX file can hold")
        models: dict[str, str] = {}

        def place(form: str) -> Path:
            models[form] = (folder / PLACES[form]).relative_to(bundle).as_posix()
            return folder / PLACES[form]

        with tempfile.TemporaryDirectory(dir=bundle) as scratch:
            source = place("onnx") if "onnx" in self.formats else Path(scratch) / PLACES["onnx"]
            source.write_bytes(graph.SerializeToString(deterministic=True))
            if "openvino" in self.formats:
                save_openvino(source, place("openvino"))
                if self.fp16 and network == "pruned":
                    save_openvino(source, place("openvino-fp16"), fp16=True)
        return Written(network, module, graph, models, exporter)


def save_openvino(source: Path, path: Path, *, fp16: bool = False) -> None:
    """Write an ONNX file as OpenVINO IR, ``path`` and the .bin beside it; ``fp16``: weights in float16.

    Raises:
        GateFailed: OpenVINO cannot read it.
        BadInput: the disk is full.
    """
    openvino = import_runtime("openvino")
    try:
        representation = openvino.Core().read_model(source)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise GateFailed(
            f"export gate: OpenVINO cannot read the network: {reason}; no bundle was written"
        ) from error
    try:
        openvino.save_model(representation, path, compress_to_fp16=fp16)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"cannot write {path.name}: {reason}; no bundle was written") from error


def frozen(source: nn.Module, embedded: Preprocess | None) -> nn.Module:
    """A copy of ``source`` for the exporter, in float32 on the CPU in eval mode.

    With ``embedded`` the copy normalises its input itself.
    """
    module = copy.deepcopy(source).cpu().float().eval()
    module = module.to(memory_format=torch.contiguous_format)
    return (module if embedded is None else Normalised(module, embedded)).requires_grad_(False)


class Normalised(nn.Module):
    """A network that takes pixels 0..255 (float32 [N, 3, S, S]) and normalises them itself."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits [N, C]."""
        logits: torch.Tensor = self.network((image / 255 - self.mean) / self.std)
        return logits


def onnx_graph(
    module: nn.Module, example: torch.Tensor, dynamic_batch: bool
) -> tuple[onnx.ModelProto, str]:
    """The ONNX graph of ``module``, and what wrote it.

    PyTorch's dynamo exporter is tried first, the TorchScript one if it fails.

    Args:
        module: in eval mode, float32 [N, 3, S, S] → logits [N, C].
        example: an input [1, 3, S, S].
        dynamic_batch: leave N open; the graph is fixed to 1 otherwise.

    Raises:
        GateFailed: neither exporter can write it.
    """
    version = torch.__version__.split("+")[0]
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    # A traced batch of 1 would be taken for a constant.
    batch = example.expand(2, -1, -1, -1) if dynamic_batch else example
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module,
                (batch,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    except torch.onnx.OnnxExporterError as error:
        graph = _traced_graph(module, batch, dynamic_batch)
        why = _first_line(error)
        return graph, f"torch.onnx {version}, TorchScript because dynamo failed: {why}"
    assert program is not None
    graph = program.model_proto
    # The exporter's notes name the files of the machine that it ran on.
    for value in (graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for value in (graph.graph, *graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
    return graph, f"torch.onnx {version}, dynamo"


def _traced_graph(module: nn.Module, example: torch.Tensor, dynamic_batch: bool) -> onnx.ModelProto:
    axes = {name: {0: "batch"} for name in (INPUT, OUTPUT)} if dynamic_batch else None
    with tempfile.TemporaryDirectory() as scratch, _quiet_exporter():
        path = Path(scratch) / "traced.onnx"
        try:
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=False,
                dynamic_axes=axes,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
        except RuntimeError as error:
            raise GateFailed(
                f"export gate: neither of PyTorch's exporters can write the network as ONNX:"
                f" {_first_line(error)}; no bundle was written"
            ) from error
        return onnx.load(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """PyTorch's exporters warn about their own code; none of it concerns the user's network."""
    with warnings.catch_warnings():
        for module in (r"torch\.", r"onnxscript\.", r"onnx_ir\.", r"copyreg"):
            warnings.filterwarnings("ignore", module=module)
        # This one is put on the account of its caller, which is us.
        warnings.filterwarnings("ignore", "You are using the legacy", DeprecationWarning)
        yield


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return "".join(character for character in lines[0] if character.isprintable())


def describe(graph: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Write ``metadata`` into the graph, keys prefixed with ``mvp_edge.``, and check it whole."""
    values = {
        f"mvp_edge.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    onnx.helper.set_model_props(graph, values)
    onnx.checker.check_model(graph)
