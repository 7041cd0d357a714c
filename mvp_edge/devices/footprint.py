"""What a network needs of a device, read from a run directory, a bundle or an ONNX file."""

from math import prod
from pathlib import Path

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.running.fit import Footprint
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import parse


def footprint(network: Path) -> Footprint:
    """The footprint of the network in a run directory, a bundle, or an ONNX file.

    Raises:
        BadInput: ``network`` is none of them, or damaged.
    """
    if (network / "run.json").is_file():
        return _of_run(network)
    if (network / "manifest.json").is_file():
        return _of_bundle(network)
    if network.is_file():
        return _of_onnx(network)
    raise BadInput(
        f"{network} is neither a run directory nor a bundle nor an ONNX file: give what "
        "`mvp-edge prune` or `mvp-edge export` made, or a model.onnx"
    )


def _measured(beside: Path) -> BenchResult | None:
    path = beside / "bench.json"
    return parse(BenchResult, read_json(path, "bench"), "bench", path) if path.exists() else None


def _of_run(path: Path) -> Footprint:
    from mvp_edge.runs.run import Run
    from mvp_edge.subnetwork.cost import file_bytes
    from mvp_edge.subnetwork.operators import operators

    run = Run.load(path)
    module, size = run.network.module(), run.network.preprocess.size
    cost = run.verified.cost
    return Footprint(
        cost.flops, cost.params, file_bytes(module), "predicted", cost.memory_bytes,
        operators(module, (3, size, size)), _measured(path),
    )  # fmt: skip


def _of_bundle(path: Path) -> Footprint:
    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.devices.operators import Operators

    bundle = load_bundle(path)
    manifest = bundle.manifest
    file = next(v.reached for v in manifest.verdicts if v.budget == "file")
    return Footprint(
        manifest.cost.flops, manifest.cost.params, int(file or 0), "measured",
        manifest.cost.memory_bytes, Operators.from_json(manifest.operators),
        _measured(path.resolve().parent),
    )  # fmt: skip


def _of_onnx(path: Path) -> Footprint:
    from mvp_edge_export.server.graph import live_numbers, load_graph, operators_of_graph

    graph, shapes = load_graph(path)
    try:
        own = operators_of_graph(graph, shapes)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    weights = {one.name: prod(one.dims) for one in graph.initializer}
    return Footprint(
        flops=int(own.macs.sum()),
        params=sum(weights.values()),
        file=path.stat().st_size,
        file_basis="measured",
        memory=4 * (sum(weights.values()) + live_numbers(graph, shapes)),
        operators=own,
    )
