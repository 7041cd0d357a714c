"""Weights files that are broken, of something else, or would do something: one line each."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvp_edge.subnetwork.backbone import load_backbone
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
