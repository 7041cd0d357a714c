import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.devices.operators import table
from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import open_session
from mvp_edge_export.server import convert, quantise, write
from mvp_edge_export.server.inputs import ExportOptions, TaskImages, VerifiedNetwork
from mvp_edge_export.server.write import ExportJob
from mvp_edge_export.verified import Verdict, Verified


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Exporter:
    """An `ExportJob` with valid arguments, some of them replaced; each goes where it belongs."""

    module: nn.Module
    weights: Path
    out: Path
    profile: DeviceProfile
    make_verified: Callable[..., Verified]
    arguments: dict[str, Any]

    def __call__(self, *, force: bool = False, **changes: Any) -> Bundle:
        profile = changes.pop("profile", self.profile)
        given = {"module": self.module, "weights": self.weights, **self.arguments, **changes}
        given["verified"] = given.get("verified") or self.make_verified(self.weights, profile)

        def those_of(kind: Any) -> Any:
            names = [one.name for one in fields(kind) if one.name in given]
            return kind(**{name: given.pop(name) for name in names})

        network, images, options = map(those_of, (VerifiedNetwork, TaskImages, ExportOptions))
        return ExportJob(network, profile, images, options, **given).write(self.out, force=force)


@pytest.fixture
def export(
    network: nn.Module,
    digits: Any,
    tmp_path: Path,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    make_profile: Callable[..., DeviceProfile],
    make_verified: Callable[..., Verified],
) -> Exporter:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"other weights")
    arguments = {
        "labels": labels,
        "preprocess": preprocess,
        "kept": {"layer1": [0, 2]},
        "operators": table([("conv", 256, 8, 3, 9, 768)]),
        "test": digits.test,
        "test_labels": digits.test_targets,
    }
    out = tmp_path / "out" / "bundle"
    return Exporter(network, weights, out, make_profile(), make_verified, arguments)


@pytest.fixture
def ready_graph(monkeypatch: pytest.MonkeyPatch, bundle_path: Path) -> onnx.ModelProto:
    """The graph of ``network`` from the session's bundle, instead of exporting it again."""
    ready = onnx.load(bundle_path / "model.onnx")
    monkeypatch.setattr(convert, "onnx_graph", lambda *_: (copy.deepcopy(ready), "ready"))
    return ready


def _left_nothing(export: Exporter) -> bool:
    return not export.out.parent.exists() or list(export.out.parent.iterdir()) == []


def _top1(module: nn.Module, bundle: Bundle, digits: Any) -> float:
    with torch.inference_mode():
        logits = module(torch.from_numpy(bundle.preprocess.normalise(digits.test)))
    return float((logits.argmax(1).numpy() == digits.test_targets).mean())


def test_the_bundle_computes_what_pytorch_computes(
    bundle: Bundle, network: nn.Module, digits: Any
) -> None:
    inputs = bundle.tensor(digits.test)
    with torch.inference_mode():
        expected = network(torch.from_numpy(inputs)).numpy()

    for runtime in ("onnxruntime", "openvino"):
        logits = open_session(bundle, runtime).run(inputs)
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert np.abs(open_session(bundle, "onnxruntime").run(inputs) - expected).max() < 1e-4


def test_the_manifest_says_what_the_gate_saw(
    bundle: Bundle, network: nn.Module, digits: Any
) -> None:
    manifest = bundle.manifest

    assert [(check.network, check.runtime, check.setting) for check in manifest.parity] == [
        (which, runtime, setting)
        for which in ("pruned", "baseline")
        for runtime, setting in [
            ("onnxruntime", "graph optimisation off"),
            ("onnxruntime", "graph optimisation on"),
            ("openvino", "inference precision f32"),
        ]
    ]
    assert all(check.real_images == 64 and check.random_images > 0 for check in manifest.parity)
    assert all(0 < check.max_difference <= check.tolerance for check in manifest.parity)
    measured = {one.format: one.test for one in manifest.candidates}
    assert set(measured) == {"onnx", "openvino", "openvino-fp16", "onnx-int8", "openvino-int8"}
    expected = _top1(network, bundle, digits)
    assert expected > 0.9
    assert measured["onnx"].top1 == expected
    assert measured["onnx"].images == len(digits.test)
    assert manifest.exporter["pruned"].endswith("dynamo")
    file = next(verdict for verdict in manifest.verdicts if verdict.budget == "file")
    assert (file.verdict, file.basis) == ("PASS", "measured")
    sizes = {one.format: one.bytes for one in manifest.candidates}
    assert file.reached == max(sizes.values())
    assert sizes["onnx"] == (bundle.path / "model.onnx").stat().st_size
    assert (
        sizes["openvino"] == manifest.files["model.xml"].bytes + manifest.files["model.bin"].bytes
    )


def test_the_onnx_file_describes_itself(bundle: Bundle) -> None:
    model = onnx.load(bundle.model("onnx"))
    facts = {entry.key.removeprefix("mvp_edge."): entry.value for entry in model.metadata_props}

    assert json.loads(facts["labels"]) == list(bundle.labels)
    assert json.loads(facts["mean"]) == list(bundle.preprocess.mean)
    assert json.loads(facts["std"]) == list(bundle.preprocess.std)
    assert int(facts["size"]) == bundle.preprocess.size
    assert facts["interpolation"] == bundle.preprocess.interpolation
    assert float(facts["crop_pct"]) == bundle.preprocess.crop_pct
    assert json.loads(facts["kept"]) == {"layer1": [0, 2, 5]}
    assert facts["weights_sha256"] == hashlib.sha256(b"verified weights").hexdigest()
    assert facts["profile"] == "test-board"
    assert {"torch", "mvp-edge", "onnxruntime"} <= set(json.loads(facts["versions"]))
    batch, *rest = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert (batch, rest) == (1, [3, bundle.preprocess.size, bundle.preprocess.size])


def test_no_file_names_the_machine_it_was_made_on(bundle: Bundle) -> None:
    here = str(Path(torch.__file__).parents[1]).encode()
    for name in [*bundle.manifest.files, "manifest.json"]:
        content = (bundle.path / name).read_bytes()
        assert here not in content, name
        assert b"stack_trace" not in content, name


def test_the_unpruned_network_lies_beside(bundle: Bundle, unpruned: nn.Module, digits: Any) -> None:
    inputs = bundle.tensor(digits.test[:5])
    with torch.inference_mode():
        expected = unpruned(torch.from_numpy(inputs)).numpy()

    logits = open_session(bundle, "onnxruntime", baseline=True).run(inputs)

    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert set(bundle.manifest.baseline) == {"onnx", "openvino"}


def test_a_transformer_with_open_batch_and_its_own_normalisation(
    export: Exporter, digits: Any, fitted: Callable[..., nn.Module]
) -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    module = fitted(
        VisionTransformer(
            img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=3
        ),
        steps=80,
    ).train()

    bundle = export(module=module, dynamic_batch=True, embed_preprocess=True)

    assert module.training  # the caller's network is as it was
    module.eval()
    assert bundle.manifest.batch is None
    assert bundle.manifest.candidates[0].test.top1 == _top1(module, bundle, digits) > 0.8
    inputs = bundle.tensor(digits.test[:7])
    assert inputs.max() > 100  # pixels, not normalised
    with torch.inference_mode():
        normalised = torch.from_numpy(bundle.preprocess.normalise(digits.test[:7]))
        expected = module(normalised).numpy()
    for runtime in ("onnxruntime", "openvino"):
        session = open_session(bundle, runtime)
        np.testing.assert_allclose(session.run(inputs), expected, atol=0.2)
        assert session.run(inputs[:3]).shape == (3, 3)
    assert load_bundle(export.out).manifest == bundle.manifest


def test_the_second_exporter_is_named(export: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def failing(*args: Any, dynamo: bool, **rest: Any) -> Any:
        if dynamo:
            raise torch.onnx.OnnxExporterError("an operator is missing\nmore lines")
        return real(*args, dynamo=False, **rest)

    monkeypatch.setattr(torch.onnx, "export", failing)

    bundle = export(formats=("onnx",))

    assert (
        "TorchScript because dynamo failed: an operator is missing"
        in (bundle.manifest.exporter["pruned"])
    )
    assert set(bundle.manifest.models) == {"onnx"}
    assert {check.runtime for check in bundle.manifest.parity} == {"onnxruntime"}


def test_a_network_that_cannot_be_written_leaves_nothing(
    export: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **rest: Any) -> Any:
        raise torch.onnx.OnnxExporterError("an operator is missing")

    monkeypatch.setattr(torch.onnx, "export", failing)

    with pytest.raises(GateFailed, match=r"neither of PyTorch's exporters .* operator is missing"):
        export()
    assert _left_nothing(export)


def test_a_graph_that_a_runtime_cannot_read_leaves_nothing(
    export: Exporter, ready_graph: onnx.ModelProto
) -> None:
    ready_graph.opset_import.add(domain="custom", version=1)
    ready_graph.graph.node[3].domain = "custom"
    for formats, runtime in ((("onnx",), "onnxruntime"), (("openvino",), "OpenVINO")):
        with pytest.raises(GateFailed, match=rf"{runtime} .*cannot .*no bundle was written"):
            export(formats=formats)
        assert _left_nothing(export)


def test_the_graph_is_the_same_each_time() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    first, second = (
        convert.onnx_graph(module, torch.zeros(1, 3, 4, 4), False)[0].SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("scale", [1.001, float("nan")])
def test_a_graph_that_computes_something_else_leaves_nothing(
    export: Exporter, ready_graph: onnx.ModelProto, scale: float
) -> None:
    tensor = max(ready_graph.graph.initializer, key=lambda entry: len(entry.raw_data))
    values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(scale)
    tensor.raw_data = values.tobytes()

    with pytest.raises(GateFailed, match=r"onnxruntime .* no bundle was written"):
        export()
    assert _left_nothing(export)


def test_an_existing_bundle_survives_a_failed_gate(
    export: Exporter, ready_graph: onnx.ModelProto
) -> None:
    export(formats=("onnx",))
    before = (export.out / "manifest.json").read_bytes()
    with pytest.raises(BadInput, match="exists"):
        export(formats=("onnx",))
    bias = min(ready_graph.graph.initializer, key=lambda entry: len(entry.raw_data) or 10**9)
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 9).tobytes()

    with pytest.raises(GateFailed):
        export(formats=("onnx",), force=True)

    assert (export.out / "manifest.json").read_bytes() == before
    assert [path.name for path in export.out.parent.iterdir()] == ["bundle"]


def test_force_does_not_take_a_folder_of_photographs_for_a_bundle(export: Exporter) -> None:
    export.out.mkdir(parents=True)
    (export.out / "holiday.jpg").write_bytes(b"photograph")

    with pytest.raises(BadInput, match="is not a bundle"):
        export(force=True)
    assert (export.out / "holiday.jpg").exists()


def test_openvino_alone(export: Exporter, ready_graph: onnx.ModelProto) -> None:
    bundle = export(formats=("openvino",))

    assert set(bundle.manifest.files) == {"model.xml", "model.bin"}
    assert open_session(bundle).name == "openvino"
    file = next(verdict for verdict in bundle.manifest.verdicts if verdict.budget == "file")
    assert file.verdict == "UNCHECKED"
    assert file.reached == sum(entry.bytes for entry in bundle.manifest.files.values())


def test_a_file_over_its_budget_leaves_nothing(
    export: Exporter,
    ready_graph: onnx.ModelProto,
    make_profile: Callable[..., DeviceProfile],
) -> None:
    with pytest.raises(BudgetMissed, match=r"budget file .* over the limit of 10 KiB"):
        export(profile=make_profile(file="10KiB"))
    assert _left_nothing(export)


@pytest.fixture
def quantising(digits: Any) -> dict[str, Any]:
    """What int8 for ONNX Runtime needs, on few images."""
    return {
        "formats": ("onnx",),
        "validation": digits.train[:60],
        "validation_labels": digits.train_targets[:60],
        "calibration": digits.train[60:80],
    }


def test_only_the_precisions_that_were_asked_for_are_kept(
    export: Exporter, ready_graph: onnx.ModelProto, quantising: dict[str, Any]
) -> None:
    bundle = export(precisions=("int8",), **quantising)

    assert bundle.manifest.models == {"onnx-int8": "model_int8.onnx"}
    assert set(bundle.manifest.files) == {"model_int8.onnx"}
    exact = bundle.manifest.candidate("onnx")
    assert exact is not None
    assert (exact.kept, exact.why) == (False, "only int8 may be used")
    assert exact.bytes > 0
    assert open_session(bundle).options["threads"] == 1  # the one file that there is


def test_when_int8_is_all_that_may_be_used_it_must_pass(
    export: Exporter,
    ready_graph: onnx.ModelProto,
    quantising: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantise, "passes", lambda *_: False)
    with pytest.raises(GateFailed, match=r"nothing in int8 passes: onnx-int8 .* points on 60 val"):
        export(precisions=("int8",), **quantising)
    assert _left_nothing(export)

    bundle = export(precisions=("fp32", "int8"), **quantising)
    assert set(bundle.manifest.models) == {"onnx"}
    assert set(bundle.manifest.files) == {"model.onnx"}


def test_what_is_over_the_file_budget_is_kept_out_alone(
    export: Exporter,
    ready_graph: onnx.ModelProto,
    quantising: dict[str, Any],
    make_profile: Callable[..., DeviceProfile],
) -> None:
    limit = ready_graph.ByteSize() * 9 // 10
    bundle = export(profile=make_profile(file=limit), precisions=("fp32", "int8"), **quantising)

    assert set(bundle.manifest.models) == {"onnx-int8"}
    exact = bundle.manifest.candidate("onnx")
    assert exact is not None
    assert "over the file budget" in exact.why
    file = next(verdict for verdict in bundle.manifest.verdicts if verdict.budget == "file")
    assert file.verdict == "PASS"
    assert file.reached == bundle.manifest.files["model_int8.onnx"].bytes < limit


def test_on_the_device_itself_the_choice_is_made_at_once(
    export: Exporter,
    ready_graph: onnx.ModelProto,
    make_profile: Callable[..., DeviceProfile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write, "is_device", lambda _: True)
    monkeypatch.setattr(write, "CHOOSING_SECONDS", 0.05)
    monkeypatch.setattr("mvp_edge_export.measuring.bench.differences", lambda *_: [])

    bundle = export(formats=("onnx",))

    shipped = bundle.manifest.shipped
    assert shipped is not None
    assert (shipped.runtime, shipped.precision, shipped.threads) == ("onnxruntime", "fp32", 1)
    (candidate,) = bundle.manifest.candidates
    assert candidate.timings[0].p50 > 0
    assert bundle.manifest.choice.startswith("fp32 in onnxruntime with 1 thread: the fastest")
    assert load_bundle(bundle.path).manifest == bundle.manifest

    tight = export(formats=("onnx",), profile=make_profile(memory="1kB"), force=True)
    assert tight.manifest.shipped is None
    assert "no candidate meets the budgets; fp32 in onnxruntime" in tight.manifest.choice


def test_only_what_was_verified_is_exported(
    export: Exporter,
    make_profile: Callable[..., DeviceProfile],
    make_verified: Callable[..., Verified],
) -> None:
    failed = Verdict(
        budget="params", limit=10, reached=12, unit="", verdict="FAIL", basis="counted"
    )
    verified = make_verified(export.weights, export.profile, verdicts=(failed,))
    with pytest.raises(BudgetMissed, match="params FAIL: 12 of 10"):
        export(verified=verified)

    verified = make_verified(export.weights, make_profile(params="3M"))
    with pytest.raises(BadInput, match="verified for profile test-board, which is not"):
        export(verified=verified)

    verified = make_verified(export.weights, export.profile)
    export.weights.write_bytes(b"trained on")
    with pytest.raises(BadInput, match=r"weights\.bin has sha256"):
        export(verified=verified)
    assert _left_nothing(export)


def test_other_images_than_were_verified_are_noticed(
    export: Exporter, ready_graph: onnx.ModelProto, digits: Any
) -> None:
    verified = export.make_verified(export.weights, export.profile, images=len(digits.test))
    rotated = (digits.test_targets + 1) % 3

    with pytest.raises(GateFailed, match=r"but 90\.0% was verified"):
        export(verified=verified, test_labels=rotated)
    assert _left_nothing(export)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ("tflite",)}, "^format tflite: choose some of onnx, openvino"),
        ({"formats": ()}, "^format none"),
        ({"formats": ("onnx",), "precisions": ("fp16",)}, "^precision fp16"),
        ({"labels": ("a", "b", "c", "d")}, r"gives logits \(3,\) for 4 labels"),
    ],
)
def test_arguments_that_do_not_fit(
    export: Exporter, ready_graph: onnx.ModelProto, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        export(**changes)
    assert _left_nothing(export)
