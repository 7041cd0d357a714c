"""Labels from a bundle: those of PyTorch on the server, from files, folders and streams."""

import json
import os
import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.running.predict import Classifier, predict
from mvp_edge_export.running.sessions import RUNTIMES, Arithmetic, OpenVinoSession, open_session

COMMAND = [sys.executable, "-c", "from mvp_edge.cli.main import main; main()", "predict"]


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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, digits: Any) -> Path:
    """Every test digit as a photograph of another size and shape, in class folders of a task."""
    folder = tmp_path_factory.mktemp("photographs")
    shapes = [(16, 16), (64, 48), (31, 90), (200, 100)]
    for index, (pixels, target) in enumerate(zip(digits.test, digits.test_targets, strict=True)):
        place = folder / "test" / ("a", "b", "c")[target]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels).resize(shapes[index % len(shapes)])
        image.save(place / f"{index:03}.jpg", exif=_orientation(index % 8 + 1))
    for split in ("train", "val"):
        (folder / split).symlink_to(folder / "test")
    return folder


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("runtime", "arithmetic", "tolerance"),
    [
        ("onnxruntime", None, 1e-4),
        ("openvino", "f32", 1e-4),
        ("openvino", None, 0.02),  # as deployed: it may choose bfloat16
    ],
)
def test_every_photograph_gets_the_server_s_label(
    bundle: Bundle,
    photographs: Path,
    network: torch.nn.Module,
    runtime: str,
    arithmetic: Arithmetic | None,
    tolerance: float,
    record_property: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Decoded, prepared and classified on the server by the task and PyTorch; here by the bundle."""
    from mvp_edge.tasks.task import Task

    monkeypatch.setenv("MVP_EDGE_CACHE", str(tmp_path))
    images = Task.open(photographs).images("test", bundle.preprocess)
    with torch.inference_mode():
        logits = network(torch.from_numpy(bundle.preprocess.normalise(np.asarray(images.pixels))))
    expected = torch.softmax(logits.double(), 1).numpy()
    if arithmetic:
        exact = partial(OpenVinoSession, arithmetic=arithmetic)
        monkeypatch.setitem(RUNTIMES, runtime, exact)

    made = list(predict(bundle, [photographs / "test"], runtime))
    shares = np.array([[dict(one.top)[label] for label in bundle.labels] for one in made])
    found = open_session(bundle, runtime).run(bundle.tensor(np.asarray(images.pixels)))

    assert len(made) == 200
    np.testing.assert_array_equal(shares.argmax(1), found.argmax(1))
    first, second = np.sort(expected)[:, :-3:-1].T
    # In bfloat16, two classes that are as good as equal may change places.
    clear = (first - second > 2 * tolerance) | (runtime == "onnxruntime" or arithmetic == "f32")
    labels = np.array([one.label for one in made])
    wanted = np.array(bundle.labels)[expected.argmax(1)]
    assert clear.sum() >= 180
    assert labels[clear].tolist() == wanted[clear].tolist()
    closeness = {
        "probabilities": float(np.abs(shares - expected).max()),
        "logits": float(np.abs(found - logits.numpy()).max()),
    }
    record_property("max |Δ|", closeness)
    print(f"{runtime} in {arithmetic or 'its own choice'}: max |Δ| {closeness}")
    assert closeness["probabilities"] <= tolerance
    assert closeness["logits"] <= tolerance * max(1, float(logits.abs().max()))


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
    assert value["frame"] is None


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
    with pytest.raises(BadInput, match=r"^top 0: at least 1"):
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


def test_a_network_that_answers_no_numbers_is_named(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(bundle, "onnxruntime")
    answer = np.array([[0.0, np.nan, 1.0]], np.float32)
    monkeypatch.setattr(classifier.session, "run", lambda batch: answer)
    with pytest.raises(BadInput, match=r"NaN or infinite values in onnxruntime \d"):
        classifier(Image.new("RGB", (16, 16)))


def _jpeg(pixels: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_frames_of_a_stream_are_labelled_as_files_are(
    bundle: Bundle, digits: Any, tmp_path: Path
) -> None:
    pieces = [_jpeg(pixels) for pixels in digits.test[:4]]
    for index, piece in enumerate(pieces):
        (tmp_path / f"{index}.jpg").write_bytes(piece)

    seen = list(predict(bundle, [BytesIO(b"".join(pieces)), tmp_path]))

    assert [one.top for one in seen[:4]] == [one.top for one in seen[4:]]
    assert [(str(one.file), one.frame, one.name) for one in seen[:2]] == [
        ("-", 0, "frame 0"),
        ("-", 1, "frame 1"),
    ]


def test_a_camera_s_frame_is_answered_before_the_next_one(bundle_path: Path, digits: Any) -> None:
    with subprocess.Popen(
        [*COMMAND, str(bundle_path), "-", "--jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as camera:
        assert camera.stdin is not None
        assert camera.stdout is not None
        assert camera.stderr is not None
        for index in range(3):
            piece = _jpeg(digits.test[index]) if index != 1 else b"\xff\xd8\xff\xd9"
            camera.stdin.write(piece)
            camera.stdin.flush()
            answer = json.loads(camera.stdout.readline())  # while the stream is still open
            assert (answer["file"], answer["frame"]) == ("-", index)
            assert (answer["label"] is None) is (index == 1)
        camera.stdin.close()
        assert camera.stdout.read() == b""
        assert camera.stderr.read().startswith(b"frame 1: skipped: ")
        assert camera.wait() == 0


def _command(*words: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    ended = subprocess.run([*COMMAND, *map(str, words)], input=stdin, capture_output=True)
    assert b"Traceback" not in ended.stderr
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
    )


def test_one_image_of_any_format_from_standard_input(bundle_path: Path, folder: Path) -> None:
    png = (folder / "00.png").read_bytes()
    ended = _command(bundle_path, "-", folder / "01.png", "--json", "--threads", "2", stdin=png)
    frame, file = json.loads(ended.stdout)["predictions"]
    assert (frame["file"], frame["frame"], file["frame"]) == ("-", 0, None)
    again = _command(bundle_path, folder / "00.png", "--json")
    assert json.loads(again.stdout)["predictions"][0]["top"] == frame["top"]


def test_lines_for_people(bundle_path: Path, folder: Path) -> None:
    ended = _command(bundle_path, folder, "--top", "2")
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 12
    assert ended.stdout.startswith(f"{folder / '00.png'}: ")
    assert ended.stdout.splitlines()[0].count(" %") == 2
    (skipped,) = ended.stderr.splitlines()
    assert skipped.startswith(f"{folder / '05.jpg'}: skipped: not an image")


def test_when_nothing_could_be_decoded_it_ends_with_2(bundle_path: Path, folder: Path) -> None:
    for words, stdin in (((folder / "notes.txt",), b""), (("-",), b""), (("-",), b"no image")):
        ended = _command(bundle_path, *words, stdin=stdin)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.splitlines()[-1] == "mvp-edge: no image could be decoded"


def test_two_forms_of_output_at_once_are_refused(bundle_path: Path) -> None:
    ended = _command(bundle_path, "-", "--json", "--jsonl")
    assert ended.returncode == 2
    assert "give one of them" in ended.stderr


def test_a_terminal_is_not_waited_for(bundle_path: Path) -> None:
    mine, its = os.openpty()
    ended = subprocess.run([*COMMAND, str(bundle_path), "-"], stdin=its, capture_output=True)
    os.close(mine)
    os.close(its)
    assert ended.returncode == 2
    assert b"nothing is piped into standard input" in ended.stderr
