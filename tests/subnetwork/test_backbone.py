"""Backbones from files and names, and the one line that a wrong one gets."""

import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.sides import at_side
from mvp_edge_export.errors import BadInput
from tests.support.networks import SHALLOW, Describe, backbone, described, refusal


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    return partial(described, tmp_path)


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


# What a description may do: nothing.


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


# Descriptions and names.


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
        ("levit_128s", "cannot be pruned yet"),
        (
            "resnet50_gn",
            "none of its channels can be removed (those of conv1: native_group_norm runs",
        ),
        ("resnetv2_50x1_bit", "can be removed (stem.conv is a StdConv2d, which is not known)"),
        ("mobilenetv4_hybrid_medium", "blocks.2.4 (MobileAttention) is in the way"),
        ("vit_base_patch16_siglip_224", "attn_pool (AttentionPoolLatent) is in the way"),
        ("resnet14t_nowhere", "no such file"),
    ],
)
def test_names_that_lead_nowhere(name: str, problem: str) -> None:
    """What cannot be pruned is said before its weights are asked for."""
    assert problem in refusal(name)


def test_sizes_that_cannot_be(describe: Describe) -> None:
    assert "input_size 0" in refusal(describe(), input_size=0)
    assert "at least 4 pixels" in refusal(describe("vit"), input_size=3)
    assert "a single pixel is left" in refusal(describe("resnet26d"), input_size=8)
    assert load_backbone(describe("resnet26d"), 16).shape == (3, 16, 16)
    assert Architecture("vit_tiny_patch16_224", {}, SHALLOW, 4).build(2) is not None


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said at once: the hub's client would retry for a minute, a warning each time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mvp_edge.subnetwork.hub.getproxies", dict)

    def unknown_host(*_: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    line = refusal("resnet18")
    assert "backbone resnet18: the download of its weights failed (huggingface.co cannot" in line
    assert "for a local file write resnet18@FILE" in line


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
    monkeypatch.setattr("mvp_edge.subnetwork.hub.getproxies", lambda: {"https": "proxy"})
    assert "failed (connection reset); for a local file" in refusal("resnet18")


def test_a_download_that_succeeds_is_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    built = timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        return built(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("mvp_edge.subnetwork.hub.getproxies", lambda: {"https": "proxy"})
    loaded = load_backbone("vit_tiny_patch16_224", 64)
    assert loaded.shape == (3, 64, 64)
    assert loaded.source == "vit_tiny_patch16_224"
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize("name", ["resnet18", "vit", "distilled"])
def test_at_another_side_it_is_what_loading_it_with_that_size_gives(
    name: str, describe: Describe
) -> None:
    loaded, wanted = load_backbone(describe(name)), load_backbone(describe(name), 24)
    other = at_side(loaded, 24)
    assert other.sha256 == wanted.sha256
    assert other.preprocess == wanted.preprocess
    for key, tensor in wanted.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[key]), key
    assert at_side(loaded, 16) is loaded


def test_a_model_of_the_hub_brings_its_own_description(monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = {"input_size": (3, 64, 64), "mean": (0.1,) * 3, "std": (0.2,) * 3}
    arguments: dict[str, Any] = {}
    built = timm.create_model

    def create(name: str, pretrained: bool = False, **more: Any) -> Any:
        plain = name.replace("hf-hub:someone/model", "resnet18")
        return built(plain, pretrained=False, **({"num_classes": 0} if pretrained else {}), **more)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("mvp_edge.subnetwork.hub.getproxies", lambda: {"https": "proxy"})
    monkeypatch.setattr(
        "mvp_edge.subnetwork.hub.load_model_config_from_hf",
        lambda model: (config, "resnet18", arguments),
    )
    loaded = load_backbone("hf-hub:someone/model")
    assert loaded.architecture == Architecture("resnet18", {}, {}, 64)
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.1,) * 3, (0.2,) * 3)
    assert loaded.headless
    arguments["drop_rate"] = 0.5
    assert "it is built with 'drop_rate'" in refusal("hf-hub:someone/model")
    del config["mean"]
    assert "its config.json does not say mean" in refusal("hf-hub:someone/model")
