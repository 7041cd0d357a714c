"""Backbones from files and names, and the one line that a wrong one gets."""

import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mvp_edge.backbone import Architecture, load_backbone
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import sha256_file
from tests.engine.networks import FAMILIES, SHALLOW, backbone

Describe = Callable[..., str]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Writes a description and its weights, with changes to either; returns the description's path."""

    def write(
        name: str = "resnet18", tensors: dict[str, torch.Tensor] | None = None, **changes: Any
    ) -> str:
        whole = backbone(name)
        weights = tmp_path / "w.safetensors"
        save_file(whole.model.state_dict() if tensors is None else tensors, weights)
        described = {
            "schema": 1,
            "name": name,
            "library": "timm",
            "architecture": FAMILIES[name][0],
            "changes": FAMILIES[name][1],
            "arguments": FAMILIES[name][2],
            "weights": weights.name,
            "sha256": sha256_file(weights),
            "num_classes": 6,
            "input_size": [3, 16, 16],
            "mean": whole.preprocess.mean,
            "std": whole.preprocess.std,
        }
        path = tmp_path / "b.json"
        path.write_text(json.dumps(described | changes), encoding="utf-8")
        return str(path)

    return write


def refusal(name: str, **arguments: Any) -> str:
    """What a user reads: one line."""
    with pytest.raises(BadInput) as caught:
        load_backbone(name, **arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["resnet18", "resnet26d", "vit", "distilled"])
def test_a_described_backbone_is_the_network_that_was_saved(name: str, describe: Describe) -> None:
    loaded = load_backbone(describe(name))
    own = backbone(name).model.state_dict()
    assert all(torch.equal(own[n], t) for n, t in loaded.model.state_dict().items())
    assert loaded.shape == (3, 16, 16)
    assert load_backbone(describe(name)).sha256 == loaded.sha256


def test_identity_follows_weights_preprocessing_and_size(describe: Describe) -> None:
    tensors = {n: t.clone() for n, t in backbone("vit").model.state_dict().items()}
    tensors["head.bias"][0] += 1
    found = [
        load_backbone(describe("vit")).sha256,
        load_backbone(describe("vit"), 32).sha256,
        load_backbone(describe("vit", tensors)).sha256,
        load_backbone(describe("vit", crop_pct=0.9)).sha256,
    ]
    assert len(set(found)) == 4


@pytest.mark.parametrize("name", ["vit", "distilled"])
def test_another_input_size_resamples_the_position_embedding(name: str, describe: Describe) -> None:
    smaller, larger = load_backbone(describe(name)), load_backbone(describe(name), 24)
    assert larger.shape == (3, 24, 24)
    prefix = 2 if name == "distilled" else 1
    before, after = smaller.model.pos_embed, larger.model.pos_embed
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert after.shape == (1, prefix + 6 * 6, 24)
    assert torch.equal(after[:, :prefix], before[:, :prefix])
    with torch.no_grad():
        assert torch.isfinite(larger.model(torch.zeros(1, 3, 24, 24))).all()
    assert larger.architecture.input_size == 24


def test_a_head_for_the_task_is_zero_and_the_rest_is_kept(describe: Describe) -> None:
    for name in ("resnet18", "vit", "distilled"):
        loaded = load_backbone(describe(name))
        model = loaded.with_head(3)
        with torch.no_grad():
            assert torch.equal(model(torch.ones(2, 3, 16, 16)), torch.zeros(2, 3))
        own = loaded.model.state_dict()
        for tensor, value in model.state_dict().items():
            if not tensor.startswith(("fc.", "head.", "head_dist.")):
                assert torch.equal(value, own[tensor])


# What a file may do: nothing.


def _touch(path: str) -> None:
    Path(path).touch()


class Bomb:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _touch, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_never_run(tmp_path: Path, zipped: bool) -> None:
    touched, file = tmp_path / "touched", tmp_path / "w.pth"
    torch.save(
        {"fc.weight": torch.zeros(2, 2), "x": Bomb(touched)},
        file,
        _use_new_zipfile_serialization=zipped,
    )
    assert "pickled code is never run" in refusal(f"resnet18@{file}")
    assert not touched.exists()
    torch.load(file, weights_only=False)  # the bomb is a real one
    assert touched.exists()


@pytest.mark.parametrize(
    "call",
    [
        "__import__('os').system('touch {0}')",
        "Conv2d(3, 64, __import__('pathlib').Path('{0}').touch())",
        "Conv2d(3, 64, kernel_size=open('{0}', 'w'))",
        "(lambda: open('{0}', 'w'))()",
        "Identity() if open('{0}', 'w') else Identity()",
        "exec(\"open('{0}', 'w')\")",
        "Sequential()",
        "nn.Conv2d(3, 64, 3)",
        "Conv2d(3, 64, 3, device='cpu')",
        "Conv2d(*[3, 64, 3])",
        "Conv2d(**{{'a': 1}})",
        "Conv2d(3, 64",
        "Conv2d(3)",
        "",
    ],
)
def test_changes_are_constructor_calls_with_numbers(
    call: str, describe: Describe, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    line = refusal(describe(changes={"conv1": call.format(touched)}))
    assert "conv1" in line
    assert "Conv2d, BatchNorm2d, Linear, Identity" in line
    assert not touched.exists()


def test_arguments_that_read_files_or_are_random_are_refused(
    describe: Describe, tmp_path: Path
) -> None:
    """timm.create_model would load any ``checkpoint_path``; dropout would not resume to the same bits."""
    for argument in ({"checkpoint_path": str(tmp_path / "w.safetensors")}, {"drop_rate": 0.5}):
        assert str(next(iter(argument))) in refusal(describe(arguments=argument))
    with pytest.raises(BadInput, match="no architecture 'hf-hub:someone/model'"):
        Architecture("hf-hub:someone/model", {}, {}, 32).build(2)


# Files that are not what they should be.


def test_weights_of_another_architecture(describe: Describe, tmp_path: Path) -> None:
    own = backbone("resnet18").model.state_dict()
    without = {n: t for n, t in own.items() if n != "layer1.0.bn1.weight"}
    surplus = {**own, "layer9.weight": torch.zeros(1)}
    misshapen = {**own, "fc.weight": torch.zeros(5, 24)}
    for tensors, problem in (
        (without, "lacks 'layer1.0.bn1.weight'"),
        (surplus, "unexpected 'layer9.weight'"),
        (misshapen, "another shape of 'fc.weight'"),
        (backbone("vit").model.state_dict(), "lacks 'bn1.bias' and"),
    ):
        line = refusal(describe(tensors=tensors))
        assert "these are not weights of resnet18" in line
        assert problem in line


@pytest.mark.parametrize(("ours", "theirs"), [("vit", "distilled"), ("distilled", "vit")])
def test_a_distilled_vit_is_not_a_plain_one(ours: str, theirs: str, describe: Describe) -> None:
    """Their position embeddings differ by a token, which no resampling may hide."""
    own, other = (backbone(name).model.state_dict() for name in (ours, theirs))
    mixed = {**own, "pos_embed": other["pos_embed"]}
    assert "another shape of 'pos_embed'" in refusal(describe(ours, mixed))
    assert "not weights of" in refusal(describe(ours, other))


def test_counters_may_be_missing(describe: Describe) -> None:
    """Older files have no num_batches_tracked."""
    own = backbone().model.state_dict()
    loaded = load_backbone(describe(tensors={n: t for n, t in own.items() if t.dim() > 0}))
    assert torch.equal(loaded.model.state_dict()["fc.bias"], own["fc.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers(value: float, describe: Describe) -> None:
    """1e300 is infinite once it is float32."""
    tensors = dict(backbone().model.state_dict())
    tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"].double()
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    assert "'layer2.0.conv1.weight' holds NaN or infinite" in refusal(describe(tensors=tensors))


def test_truncated_and_exchanged_files(describe: Describe, tmp_path: Path) -> None:
    path = describe()
    weights = tmp_path / "w.safetensors"
    data = weights.read_bytes()
    for broken in (data[: len(data) // 2], data[:5], b"", b"not a network"):
        weights.write_bytes(broken)
        assert f"{weights} is truncated or not a safetensors file" in refusal(path)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "w.safetensors is not the file that b.json describes" in refusal(path)
    weights.unlink()
    assert f"{weights}: no such weights file" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04N.", b"PK\x03\x04 broken"])
def test_files_that_are_no_state_dicts(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    file.write_bytes(content)
    assert str(file) in refusal(str(file))
    half = tmp_path / "half.pth"
    torch.save({"fc.weight": torch.zeros(100, 100)}, half)
    half.write_bytes(half.read_bytes()[:2000])
    assert str(half) in refusal(f"resnet18@{half}")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")
    assert str(file) in refusal(str(file))
    torch.save([1, 2], file)
    assert "is not a state dict of tensors" in refusal(str(file))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "schema"),
        ({"library": "torchvision"}, "library"),
        ({"num_classes": 0}, "num_classes"),
        ({"input_size": [1, 16, 16]}, "input_size"),
        ({"input_size": [3, 16, 24]}, "not square"),
        ({"classes": ["a", "b"]}, "num_classes is 6, but 2 are named"),
        ({"std": [0, 1, 1]}, "std"),
        ({"architecture": "resnet19"}, "did you mean resnet1"),
        ({"architecture": "convnext_atto", "changes": {}, "arguments": {}}, "not weights of"),
        ({"changes": {"conv9": "Identity()"}}, "has no module 'conv9'"),
        ({"changes": {"": "Identity()"}}, "has no module ''"),
        ({"arguments": {"stem_type": 3}}, "timm cannot build 'resnet18'"),
        ({"weights": "missing.safetensors"}, "no such weights file"),
    ],
)
def test_descriptions_with_a_mistake(
    changes: dict[str, Any], problem: str, describe: Describe
) -> None:
    assert problem in refusal(describe(**changes))


def test_descriptions_that_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    assert "does not exist" in refusal(str(path))
    path.write_text("{", encoding="utf-8")
    assert "b.json:1 is not JSON" in refusal(str(path))
    path.write_text("[]", encoding="utf-8")
    assert str(path) in refusal(str(path))


# Names.


def test_a_local_state_dict_by_architecture_and_by_file_name(tmp_path: Path) -> None:
    """Also from a folder with an @ in its name, and from a checkpoint that holds more than weights."""
    torch.manual_seed(0)
    folder = tmp_path / "me@home"
    folder.mkdir()
    own = timm.create_model("resnet18", num_classes=4).state_dict()
    torch.save({"state_dict": own, "epoch": 3}, folder / "resnet18.pth")
    for name in (str(folder / "resnet18.pth"), f"resnet18@{folder / 'resnet18.pth'}"):
        loaded = load_backbone(name)
        assert torch.equal(loaded.model.state_dict()["fc.weight"], own["fc.weight"])
        assert loaded.preprocess.size == 224
    (folder / "mine.pth").write_bytes(b"")
    assert "resnet18@" in refusal(str(folder / "mine.pth"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnet19", "timm has no model of that name (did you mean"),
        ("resnet19@w.pth", "timm has no architecture 'resnet19'"),
        ("resnet18@missing.pth", "missing.pth: no such weights file"),
        ("seresnet50", "layer1.0.se.fc1 (Conv2d) is in the way"),
        ("resnext50_32x4d", "layer1.0.conv2 is a grouped convolution"),
        ("convnext_atto", "ConvNeXt cannot be pruned yet"),
        ("resnet14t_nowhere", "no such file"),
    ],
)
def test_names_that_lead_nowhere(name: str, problem: str) -> None:
    """What cannot be pruned is said before its weights are asked for."""
    assert problem in refusal(name)


def test_sizes_that_cannot_be(describe: Describe) -> None:
    assert "--input-size 0" in refusal(describe(), input_size=0)
    assert "at least 4 pixels" in refusal(describe("vit"), input_size=3)
    assert Architecture("vit_tiny_patch16_224", {}, SHALLOW, 4).build(2) is not None


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said at once: the hub's client would retry for a minute, a warning each time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mvp_edge.backbone.getproxies", dict)

    def unknown_host(*_: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    line = refusal("resnet18")
    assert "--backbone resnet18: the download of its weights failed (huggingface.co cannot" in line
    assert "--backbone resnet18@FILE" in line


@pytest.mark.parametrize("error", [OSError, RuntimeError, ValueError])
def test_a_download_that_breaks_is_one_line(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            raise error("connection reset\nby peer")
        return built(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("mvp_edge.backbone.getproxies", lambda: {"https": "proxy"})
    assert "failed (connection reset); with a local file" in refusal("resnet18")


def test_a_download_that_succeeds_is_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    built = timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        return built(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("mvp_edge.backbone.getproxies", lambda: {"https": "proxy"})
    loaded = load_backbone("vit_tiny_patch16_224", 64)
    assert loaded.shape == (3, 64, 64)
    assert loaded.source == "vit_tiny_patch16_224"
    assert len(loaded.sha256) == 64
