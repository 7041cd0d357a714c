"""int8: what the files hold, how the scheme is chosen, and that nobody is told about it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import Candidate, RuntimeAccuracy, Trial
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import RUNTIMES, import_runtime, open_session
from mvp_edge_export.server import int8_onnx, int8_openvino, quantise
from mvp_edge_export.server.convert import onnx_graph
from mvp_edge_export.server.quantise import Images, passes

Accuracies = Callable[[int, int], RuntimeAccuracy]


def _candidate(bundle: Bundle, form: str) -> Candidate:
    found = bundle.manifest.candidate(form)
    assert found is not None
    return found


def _accuracy(lost: int, gained: int, images: int = 200) -> RuntimeAccuracy:
    top1 = (150 - lost + gained) / images
    return RuntimeAccuracy(
        version="1", arithmetic="f32", top1=top1, images=images, lost=lost, gained=gained
    )


def _profile(limit: float | None, **hardware: Any) -> DeviceProfile:
    return DeviceProfile.model_validate(
        {
            "schema": 1,
            "id": "board",
            "name": "A board",
            "source": {"kind": "estimate", "note": "made up", "date": "2026-11-22"},
            "hardware": {"arch": "x86_64", "cpu": "any", "cores": 2, "ram": "4GiB", **hardware},
            "runtime": {"backends": ["onnxruntime", "openvino"], "threads": 1},
            "budgets": {},
            "accuracy": {"max_quant_drop": limit},
        }
    )


# What the files hold


@pytest.mark.parametrize("form", ["onnx-int8", "openvino-int8"])
def test_a_runtime_runs_it_and_gets_as_many_right(bundle: Bundle, digits: Any, form: str) -> None:
    candidate = _candidate(bundle, form)
    session = open_session(bundle, candidate.runtime, precision="int8")

    logits = session.run(bundle.tensor(digits.test))

    assert (logits.argmax(1) == digits.test_targets).mean() == candidate.test.top1 > 0.9
    exact = open_session(bundle, candidate.runtime).run(bundle.tensor(digits.test))
    assert (logits != exact).any()
    assert np.corrcoef(logits.ravel(), exact.ravel())[0, 1] > 0.97
    assert candidate.precision == "int8"
    assert candidate.calibration_images == len(digits.train) - 150
    assert candidate.validation is not None
    assert candidate.validation.images == 150
    assert candidate.kept
    assert "points on 150 validation images" in candidate.why


@pytest.mark.parametrize("form", ["onnx-int8", "openvino-int8"])
def test_every_scheme_that_was_tried_is_written_down(bundle: Bundle, form: str) -> None:
    candidate = _candidate(bundle, form)
    names = [trial.scheme for trial in candidate.trials]
    assert candidate.scheme in names
    assert len(names) == len(set(names)) >= 4
    layers = {trial.int8_layers + trial.float_layers for trial in candidate.trials}
    assert layers == {1 + 8 + 4 + 1}  # stem, two a block, four shortcuts, the classifier
    taken = next(trial for trial in candidate.trials if trial.scheme == candidate.scheme)
    assert taken.passed
    assert taken.validation == candidate.validation
    assert all(trial.milliseconds > 0 and trial.seconds > 0 for trial in candidate.trials)
    ends = next(trial for trial in candidate.trials if trial.scheme == "ends-float")
    assert ends.float_layers == 2


def test_weights_are_int8_with_a_scale_for_each_output_channel(bundle: Bundle) -> None:
    graph = onnx.load(bundle.model("onnx-int8")).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    kernels = 0
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in made:
            continue
        unpack = made[node.input[1]]
        assert unpack.op_type == "DequantizeLinear"
        weight, scale = values[unpack.input[0]], values[unpack.input[1]]
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        assert np.abs(weight.astype(int)).max() <= 64  # the board's processor has no VNNI
        kernels += 1
    assert kernels >= 10
    facts = {
        entry.key: entry.value for entry in onnx.load(bundle.model("onnx-int8")).metadata_props
    }
    assert facts["mvp_edge.precision"] == "int8"
    assert facts["mvp_edge.labels"] == '["zero", "one", "two"]'
    assert facts["mvp_edge.scheme"] == _candidate(bundle, "onnx-int8").scheme


@pytest.fixture(scope="module")
def source(bundle_path: Path) -> Path:
    return bundle_path / "model.onnx"


@pytest.fixture(scope="module")
def calibration(digits: Any, preprocess: Any) -> npt.NDArray[np.float32]:
    inputs: npt.NDArray[np.float32] = preprocess.normalise(digits.train[:32])
    return inputs


@pytest.mark.parametrize(
    ("arch", "full_range", "activations", "largest"),
    [("x86_64", True, np.uint8, 127), ("aarch64", True, np.int8, 127)],
)
def test_number_formats_are_those_of_the_device_s_kernels(
    source: Path,
    calibration: npt.NDArray[np.float32],
    tmp_path: Path,
    arch: str,
    full_range: bool,
    activations: type,
    largest: int,
) -> None:
    attempts = int8_onnx.attempts(source, calibration, tmp_path, arch=arch, full_range=full_range)
    _, path, _, _ = next(attempts)
    graph = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = {values[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {np.dtype(activations)}
    weights = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 4]
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == largest


@pytest.fixture(scope="module")
def transformer(fitted: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    module = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=3
    )
    graph, _ = onnx_graph(fitted(module, steps=20), torch.zeros(1, 3, 16, 16), False)
    path = tmp_path_factory.mktemp("transformer") / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def _entries(path: Path) -> tuple[dict[str, set[str]], int]:
    """Operator → what its inputs come from, over its nodes; and how many quantisers there are."""
    graph = onnx.load(path).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    found: dict[str, set[str]] = {}
    for node in graph.node:
        found.setdefault(node.op_type, set()).update(made.get(name, "") for name in node.input[:2])
    return found, sum(node.op_type == "QuantizeLinear" for node in graph.node)


def test_schemes_leave_more_and_more_of_a_transformer_in_float(
    transformer: Path, calibration: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    made = {
        scheme.name: (*_entries(path), inside, outside)
        for scheme, path, inside, outside in int8_onnx.attempts(
            transformer, calibration, tmp_path, arch="x86_64", full_range=True
        )
    }
    files = [(tmp_path / f"{name}.onnx").read_bytes() for name in made]
    assert len(set(files)) == len(files)  # none is tried twice
    assert {"all", "attention-float", "layers", "layers-ends-float", "percentile"} <= set(made)
    ladder = ["all", "attention-float", "layers", "layers-ends-float"]
    quantisers = [made[name][1] for name in ladder]
    assert quantisers == sorted(quantisers, reverse=True)
    everything, layers = made["all"][0], made["layers"][0]
    for operator in ("Softmax", "LayerNormalization", "Gelu", "MatMul"):  # attention's products
        assert "DequantizeLinear" in everything[operator]
    assert layers["Softmax"] == {"MatMul"}
    assert "DequantizeLinear" not in layers["MatMul"] | layers["Gelu"]
    assert "DequantizeLinear" in layers["Gemm"]
    # Patches, four matrices a block, the classifier; two products of attention a block.
    weighted = 1 + 2 * 4 + 1
    assert made["all"][2:] == (weighted + 4, 0)
    assert made["layers"][2:] == (weighted, 4)
    assert made["layers-ends-float"][2:] == (weighted - 2, 6)


def test_nncf_s_scheme_for_transformers_is_tried_on_them_alone(
    transformer: Path, source: Path, calibration: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    kept_for_later = [scheme for scheme in int8_openvino.SCHEMES if scheme.transformer]
    assert kept_for_later
    model = import_runtime("openvino").Core().read_model(transformer)
    layers, attention = int8_openvino.matrix_products(model)
    assert (len(layers), len(attention)) == (10, 4)
    made = [
        (scheme.name, inside, outside)
        for scheme, _, inside, outside in int8_openvino.attempts(
            source, calibration, tmp_path, full_range=False
        )
    ]
    assert [name for name, _, _ in made] == [
        scheme.name for scheme in int8_openvino.SCHEMES if not scheme.transformer
    ]
    assert ("symmetric", 14, 0) in made
    assert ("ends-float", 12, 2) in made


# The choice


def _trial(name: str, lost: int, gained: int, milliseconds: float, *, passed: bool = True) -> Trial:
    return Trial(
        scheme=name,
        about=name,
        int8_layers=1,
        float_layers=0,
        validation=_accuracy(lost, gained),
        passed=passed,
        milliseconds=milliseconds,
        seconds=1,
    )


def _wrong(*rows: int) -> npt.NDArray[np.bool_]:
    wrong = np.zeros(200, bool)
    wrong[list(rows)] = True
    return wrong


def test_of_equals_the_fastest_is_taken_and_of_others_the_most_accurate() -> None:
    exact = _trial("exact", 0, 0, 3.0)
    near = _trial("near", 2, 0, 1.0)  # two images more wrong: chance
    far = _trial("far", 9, 0, 0.5)  # nine: not chance
    wrong = [_wrong(), _wrong(0, 1), _wrong(*range(9))]
    assert quantise.best_trial([exact, near, far], wrong) == 1
    assert quantise.best_trial([exact, far], [wrong[0], wrong[2]]) == 0
    floats = near.model_copy(update={"float_layers": 2, "milliseconds": 0.99})
    assert (
        quantise.best_trial([floats, near], [wrong[1], wrong[1]]) == 1
    )  # as fast, and all in int8


def test_what_does_not_pass_is_taken_only_when_nothing_does() -> None:
    passing = _trial("passes", 3, 0, 9.0)
    better = _trial("better", 2, 0, 1.0, passed=False)
    wrong = [_wrong(0, 1, 2), _wrong(0, 1)]
    assert quantise.best_trial([passing, better], wrong) == 0
    failing = passing.model_copy(update={"passed": False})
    assert quantise.best_trial([failing, better], wrong) == 1


@pytest.mark.parametrize(
    ("limit", "lost", "gained", "expected"),
    [
        (0.5, 1, 0, True),  # half a point of 200 images
        (0.5, 2, 0, False),
        (0.5, 3, 2, True),
        (0.0, 0, 4, True),
        (None, 4, 0, True),  # no limit: what chance explains
        (None, 9, 0, False),
    ],
)
def test_the_gate(limit: float | None, lost: int, gained: int, expected: bool) -> None:
    assert passes(_accuracy(lost, gained), _profile(limit)) is expected


def test_what_loses_too_much_is_kept_out_with_its_figures(
    bundle_path: Path, tmp_path: Path, digits: Any, preprocess: Any
) -> None:
    from mvp_edge_export.server.candidates import Judges, int8_candidate

    inputs = preprocess.normalise(digits.test)
    exact = RUNTIMES["onnxruntime"](bundle_path / "model.onnx").run(inputs)
    # As if float32 had got every image right and int8 a few wrong.
    perfect = np.eye(3, dtype=np.float32)[digits.test_targets] * 9
    assert (exact.argmax(1) != digits.test_targets).any()
    images = Images(inputs, digits.test_targets, perfect)
    judges = Judges(test=images, validation=images, calibration=inputs[:16])

    candidate = int8_candidate(
        tmp_path,
        onnx.load(bundle_path / "model.onnx"),
        "onnxruntime",
        judges,
        _profile(0.0),
    )

    assert not candidate.kept
    assert candidate.test.lost > 0
    assert candidate.why == (
        f"loses {candidate.test.drop:.2f} points on 200 validation images, 0 are allowed"
    )
    assert not any(trial.passed for trial in candidate.trials)
    assert candidate.bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_kept_out_form_says_why(copied: Path) -> None:
    from mvp_edge_export.bundle import load_bundle

    bundle = load_bundle(copied)
    out = [
        one.model_copy(update={"kept": False, "why": "it loses 3 points"})
        if one.format == "onnx-int8"
        else one
        for one in bundle.manifest.candidates
    ]
    models = {k: v for k, v in bundle.manifest.models.items() if k != "onnx-int8"}
    manifest = bundle.manifest.model_copy(update={"candidates": tuple(out), "models": models})
    with pytest.raises(BadInput, match=r"no network in format onnx-int8 .*kept out: it loses 3"):
        open_session(Bundle(copied, manifest), "onnxruntime", precision="int8")


# The interval


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.02, 0.01), (0.05, 0.05), (0.004, 0.0)])
def test_the_interval_of_a_drop_holds_the_truth_as_often_as_it_says(
    p_lost: float, p_gained: float
) -> None:
    random = np.random.default_rng(0)
    n, hits, tries = 250, 0, 1000
    for lost, gained, _ in random.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], tries):
        low, high = _accuracy(int(lost), int(gained), n).drop_interval
        hits += low <= 100 * (p_lost - p_gained) <= high
    assert 0.93 <= hits / tries <= 1


# Nobody is told


def test_quantising_tells_nobody_and_prints_nothing(bundle_path: Path, tmp_path: Path) -> None:
    """Each runtime, and NNCF, would leave an identifier in the home folder and report over the network."""
    program = (
        "import socket, sys, numpy as np\n"
        "from pathlib import Path\n"
        "def refuse(*arguments, **more): raise SystemExit('somebody opened a connection')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from mvp_edge_export.server import int8_openvino as o, int8_onnx as r\n"
        "images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)\n"
        "source, out = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "next(o.attempts(source, images, out, full_range=True))\n"
        "next(r.attempts(source, images, out, arch='x86_64', full_range=True))\n"
        "import nncf.telemetry.wrapper as wrapper\n"
        "assert not isinstance(wrapper.telemetry, wrapper.NNCFTelemetry)\n"
        "import openvino.tools.ovc as ovc\n"
        "assert 'stub' in type(ovc.telemetry).__module__\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    quiet = ("NNCF", "ORT_DISABLE", "CI")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(quiet)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle_path / "model.onnx"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(home)},
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    left = [path for path in home.rglob("*") if path.is_file() and "torch" not in str(path)]
    assert left == []
