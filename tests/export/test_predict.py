import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.predict import predict


@pytest.fixture
def folder(tmp_path: Path, digits: Any) -> Path:
    """Twelve digits, some in a folder inside, and two files that are no images."""
    inner = tmp_path / "photos" / "more"
    inner.mkdir(parents=True)
    for index, pixels in enumerate(digits.test[:12]):
        place = inner if index >= 8 else inner.parent
        Image.fromarray(pixels).save(place / f"{index:02}.png")
    (inner.parent / "05.jpg").write_text("not an image")
    (inner.parent / "notes.txt").write_text("not meant to be one")
    return inner.parent


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_labels_are_those_of_pytorch(
    bundle: Bundle, folder: Path, digits: Any, network: torch.nn.Module, runtime: str
) -> None:
    with torch.inference_mode():
        logits = network(torch.from_numpy(bundle.preprocess.normalise(digits.test[:12])))
    shares = torch.softmax(logits.double(), 1).numpy()

    made = [p for p in predict(bundle, [folder], runtime) if p.skipped is None]

    assert [p.file.name for p in made] == [f"{index:02}.png" for index in range(12)]
    for prediction, expected in zip(made, shares, strict=True):
        assert prediction.label == bundle.labels[expected.argmax()]
        assert prediction.probability == pytest.approx(expected.max(), abs=0.02)
        assert sum(share for _, share in prediction.top) == pytest.approx(1)


def test_what_cannot_be_decoded_is_listed_and_skipped(bundle: Bundle, folder: Path) -> None:
    skipped = [p for p in predict(bundle, [folder]) if p.skipped is not None]

    assert [p.file.name for p in skipped] == ["05.jpg"]
    assert skipped[0].label is None
    assert skipped[0].probability is None
    assert "not an image" in str(skipped[0].skipped)


def test_sources_are_taken_in_order_and_named_files_always(bundle: Bundle, folder: Path) -> None:
    sources = [folder / "07.png", folder / "notes.txt", folder / "more"]
    names = [prediction.file.name for prediction in predict(bundle, sources, top=1)]
    assert names == ["07.png", "notes.txt", "08.png", "09.png", "10.png", "11.png"]


def test_top_and_json(bundle: Bundle, folder: Path) -> None:
    (prediction,) = predict(bundle, [folder / "00.png"], top=2)

    value = json.loads(json.dumps(prediction.to_json()))

    assert len(value["top"]) == 2
    assert value["top"][0] == {"label": value["label"], "probability": value["probability"]}
    assert value["top"][0]["probability"] >= value["top"][1]["probability"]
    assert value["skipped"] is None


def test_a_photograph_is_resized_as_in_training(bundle: Bundle, tmp_path: Path) -> None:
    large = np.zeros((120, 200, 3), np.uint8)
    large[30:90, 80:120] = 255
    Image.fromarray(large).save(tmp_path / "large.png")
    square = bundle.preprocess.pixels(Image.fromarray(large))
    Image.fromarray(square).save(tmp_path / "square.png")

    one, other = predict(bundle, [tmp_path / "large.png", tmp_path / "square.png"])

    assert one.top == other.top


@pytest.mark.parametrize(
    ("source", "message"),
    [("missing.png", r"missing\.png does not exist"), ("empty", "no images in this folder")],
)
def test_bad_sources_are_named_before_anything_is_read(
    bundle: Bundle, folder: Path, source: str, message: str
) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(BadInput, match=message):
        predict(bundle, [folder / "00.png", folder / source])


def test_no_sources_and_no_top(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(BadInput, match="no images were given"):
        predict(bundle, [])
    with pytest.raises(BadInput, match="--top 0"):
        predict(bundle, [folder], top=0)


def test_without_the_runtime_the_extra_is_named(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BadInput, match=r"pip install 'mvp-edge\[openvino\]'"):
        predict(bundle, [folder], "openvino")


def test_labels_must_be_as_many_as_the_network_has(bundle: Bundle, folder: Path) -> None:
    manifest = bundle.manifest.model_copy(update={"labels": ("zero", "one")})
    with pytest.raises(BadInput, match="2 labels for a network of 3 classes"):
        list(predict(Bundle(bundle.path, manifest), [folder]))
