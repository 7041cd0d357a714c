"""Weights files as people have them, and those that are broken, of something else, or would do something."""

import argparse
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone, absolute_source, load_backbone
from mvp_edge.subnetwork.weights import PREFIXES, STATE_DICTS, Weights, renamed
from tests.support.networks import Describe, backbone, described, refusal


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    return partial(described, tmp_path)


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


def test_weights_of_another_architecture(describe: Describe, tmp_path: Path) -> None:
    own = backbone("resnet18").model.state_dict()
    without = {n: t for n, t in own.items() if n != "layer1.0.bn1.weight"}
    surplus = {**own, "layer9.weight": torch.zeros(1)}
    misshapen = {**own, "fc.weight": torch.zeros(5, 24)}
    for tensors, problem in (
        (without, "lacks 'layer1.0.bn1.weight'"),
        (surplus, "unexpected 'layer9.weight'"),
        (misshapen, "another shape of 'fc.weight'"),
        (
            backbone("vit").model.state_dict(),
            "lacks 'bn1.bias', 'bn1.running_mean', 'bn1.running_var' … (",
        ),
        (backbone("vit").model.state_dict(), "has the unexpected 'blocks.0.attn.proj.bias', "),
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
    own = backbone("resnet18").model.state_dict()
    loaded = load_backbone(describe(tensors={n: t for n, t in own.items() if t.dim() > 0}))
    assert torch.equal(loaded.model.state_dict()["fc.bias"], own["fc.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers(value: float, describe: Describe) -> None:
    """1e300 is infinite once it is float32."""
    tensors = dict(backbone("resnet18").model.state_dict())
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


# Files as people have them. A narrow resnet18, saved in many ways, is always the same network.


Tensors = dict[str, torch.Tensor]


def saved(path: Path, value: Any) -> str:
    """Saved by torch; returns the backbone's name. The file's own shapes are those of timm's resnet18."""
    torch.save(value, path)
    return f"resnet18@{path}"


@pytest.fixture(scope="module")
def own() -> Tensors:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4)
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(loaded: Backbone, own: Tensors) -> bool:
    return all(torch.equal(t, own[n]) for n, t in loaded.model.state_dict().items())


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("prefix", ["", *PREFIXES, "module._orig_mod.", "model.backbone."])
@pytest.mark.parametrize("key", [None, *STATE_DICTS])
def test_wrappers_and_checkpoints(
    key: str | None, prefix: str, own: Tensors, tmp_path: Path
) -> None:
    held: Any = prefixed(own, prefix)
    if key is not None:
        arguments = argparse.Namespace(lr=0.1, data="/data", epochs=[1, 2])
        held = {key: held, "epoch": 3, "args": arguments, "optimizer": {"state": {}, "lr": 0.1}}
    loaded = load_backbone(saved(tmp_path / "c.pth.tar", held), 64)
    assert same(loaded, own)
    assert loaded.notes[:-1] == ((f"the prefix {prefix} was removed",) if prefix else ())
    assert "the preprocessing is that of resnet18.a1_in1k" in loaded.notes[-1]


def test_of_several_the_averaged_or_the_named_one_is_taken(own: Tensors, tmp_path: Path) -> None:
    other = {n: t + 1 if t.is_floating_point() else t for n, t in own.items()}
    name = saved(tmp_path / "c.pth", {"state_dict": other, "state_dict_ema": own, "mine": other})
    loaded = load_backbone(name, 64)
    assert same(loaded, own)
    assert loaded.notes[0] == "its state_dict_ema was taken, not its state_dict or mine"
    for named, key in ((name, "mine"), (f"{name}#mine", None)):
        chosen = load_backbone(named, 64, key)
        assert same(chosen, other)
        assert chosen.source == f"{name}#mine"
        assert chosen.sha256 != loaded.sha256  # a zoo belongs to one of them
        assert absolute_source(chosen.source) == chosen.source
        assert load_backbone(chosen.source, 64).sha256 == chosen.sha256
    assert "nothing: " in refusal(f"{name}#nothing")
    assert "has state_dict, state_dict_ema, mine" in refusal(f"{name}#nothing")
    several = saved(tmp_path / "d.pth", {"a": own, "b": other})
    assert "several sets of tensors: choose a or b" in refusal(several)
    assert "one set of tensors: leave out 'a'" in refusal(saved(tmp_path / "e.pth", own) + "#a")
    assert "only a file of weights has several" in refusal("efficientnet-lite0#a")


def test_what_lies_beside_a_prefix_is_left_out_and_said(own: Tensors, tmp_path: Path) -> None:
    """As self-supervised training leaves it: an encoder, and a projection that no task needs."""
    encoder = {n: t for n, t in own.items() if not n.startswith("fc.")}
    held = {**prefixed(encoder, "backbone."), "head.mlp.0.weight": torch.zeros(3, 3)}
    loaded = load_backbone(saved(tmp_path / "c.pth", {"teacher": held}), 64)
    assert loaded.headless
    assert "'head.mlp.0.weight' beside backbone. left out" in loaded.notes
    assert "it has no classifier; each task gets one of its own" in loaded.notes
    assert same(loaded, {**own, "fc.weight": torch.zeros(1, 512), "fc.bias": torch.zeros(1)})
    assert loaded.with_head(7)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, own: Tensors, tmp_path: Path) -> None:
    held = {n: t.to(dtype) if t.is_floating_point() else t for n, t in own.items()}
    loaded = load_backbone(saved(tmp_path / "c.pth", held), 64)
    assert {t.dtype for t in loaded.model.parameters()} == {torch.float32}
    assert f"{str(dtype).removeprefix('torch.')} became float32" in loaded.notes
    assert torch.equal(loaded.model.state_dict()["fc.bias"], held["fc.bias"].float())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_no_network_here_can_have(own: Tensors, tmp_path: Path) -> None:
    weight = own["fc.weight"]
    scale = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    for tensor, problem in (
        (weight.to_sparse(), "sparse"),
        (scale, "quantised"),
        (weight.to("meta"), "without values"),
        (weight.to(torch.complex64), "complex"),
    ):
        line = refusal(saved(tmp_path / "c.pth", {**own, "fc.weight": tensor}))
        assert f"tensor 'fc.weight' is {problem}" in line
    line = refusal(saved(tmp_path / "c.pth", {**own, "fc.weight": weight.to(torch.int8)}))
    assert "has integers instead of 'fc.weight'" in line


def test_only_argparse_is_read_beside_tensors(own: Tensors, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    arguments = argparse.Namespace(bomb=Bomb(touched))
    line = refusal(saved(tmp_path / "c.pth", {"model": own, "args": arguments}))
    assert "pickled code is never run" in line
    line = refusal(saved(tmp_path / "c.pth", {"model": own, "path": tmp_path}))
    assert "holds a pathlib" in line
    assert not touched.exists()


def test_the_names_of_a_networks_authors_become_timms(tmp_path: Path) -> None:
    """Meta's DINOv2 files call the register tokens otherwise, and have a token for masked training."""
    torch.manual_seed(0)
    name = "vit_small_patch14_reg4_dinov2"
    model = timm.create_model(name, img_size=56, depth=1)
    own = {n: t.clone() for n, t in model.state_dict().items()}
    theirs = {n.replace("reg_token", "register_tokens"): t for n, t in own.items()}
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), own["pos_embed"]], 1)
    theirs["mask_token"] = torch.zeros(1, 384)
    outline = Architecture(name, {}, {"depth": 1}, 56).outline(1)
    found = renamed(Weights(theirs, tmp_path / "dino.pth"), outline)
    assert found.tensors.keys() - own.keys() == set()
    assert own.keys() - found.tensors.keys() == set()


def test_a_tag_chooses_the_preprocessing(own: Tensors, tmp_path: Path) -> None:
    plain = load_backbone(saved(tmp_path / "w.pth", own), 64)
    tagged = load_backbone(f"resnet18.tv_in1k@{tmp_path / 'w.pth'}", 64)
    assert (plain.preprocess.interpolation, tagged.preprocess.interpolation) == (
        "bicubic",
        "bilinear",
    )
    assert "the preprocessing is that of resnet18.a1_in1k" in plain.notes[-1]
    assert tagged.notes == ()
    assert tagged.architecture == plain.architecture
    assert "resnet18 has no tag 'nowhere': choose" in refusal("resnet18.nowhere@w.pth")
    assert "resnet18 has no tag 'nowhere': choose" in refusal("resnet18.nowhere")
