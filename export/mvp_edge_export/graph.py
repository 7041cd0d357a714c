"""The ONNX graph of a PyTorch network (server side: needs PyTorch).

module → graph, without notes about the machine that wrote it → metadata
"""

# ruff: noqa: TID253 - runs on the server alone

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from mvp_edge_export.errors import GateFailed
from mvp_edge_export.images import Preprocess

INPUT, OUTPUT = "image", "logits"


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
