"""Networks cut from one export, against the exports that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mvp_edge.devices.template import Template
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.server.convert import frozen, onnx_graph
from tests.support.networks import backbone, shaken


def read(model: Any) -> list[tuple[Any, ...]]:
    """Every node with its attributes, and of its inputs that are constants the shape, or the numbers."""
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}

    def constant(name: str) -> Any:
        value = constants.get(name)
        if value is None:
            return None
        return value.shape if value.dtype.kind == "f" else value.tolist()

    return [
        (
            node.op_type,
            sorted(one.SerializeToString(deterministic=True) for one in node.attribute),
            [constant(name) for name in node.input],
        )
        for node in model.graph.node
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet26d", "vit", "distilled"])
def test_a_network_cut_from_a_template_is_the_exported_one(name: str) -> None:
    whole = backbone(name)
    template = Template(whole.model, None, whole.shape)
    rng = np.random.default_rng(1)
    for _ in range(2):
        widths = {g.name: int(rng.integers(1, g.size + 1)) for g in template.groups}
        cut = template.cut(widths)
        small = shaken(resize(whole.model, widths))
        exported, how = onnx_graph(frozen(small, None), torch.zeros(1, *whole.shape), False)
        assert how == template.exporter
        assert read(cut) == read(exported)


@pytest.mark.parametrize("name", ["resnet50", "deit"])
def test_its_activations_neither_vanish_nor_explode(name: str, tmp_path: Path) -> None:
    """Denormal numbers would be slow, and so would the times."""
    whole = backbone(name)
    template = Template(whole.model, None, whole.shape)
    template.write({g.name: g.size for g in template.groups}, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(0).standard_normal((1, *whole.shape), dtype=np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
    assert 1e-3 < np.abs(logits).mean() < 1e6


def test_the_same_seed_draws_the_same_weights() -> None:
    whole = backbone("resnet18")
    template = Template(whole.model, None, whole.shape)
    widths = {g.name: 2 for g in template.groups}
    assert template.cut(widths, 1) == template.cut(widths, 1)
    assert template.cut(widths, 1) != template.cut(widths, 2)
