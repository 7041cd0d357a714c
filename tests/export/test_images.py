import io
import json
import os
import pickle
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvp_edge_export import images
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import IMAGE_SUFFIXES, Preprocess, Undecodable, open_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ORIENTATION = 0x0112


def preprocess(size: int = 32, **values: Any) -> Preprocess:
    return Preprocess(size, MEAN, STD, **values)


def scene(width: int, height: int) -> Image.Image:
    """Smooth in both directions and different in each, so that a shift or a flip shows."""
    x = np.linspace(0, 255, width)[None, :] * np.ones((height, 1))
    y = np.linspace(0, 255, height)[:, None] * np.ones((1, width))
    return Image.fromarray(np.stack([x, y, (x + 2 * y) / 3], 2).round().astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    stream.seek(0)
    return stream


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# --- Decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_exactly(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    image = scene(19, 11)
    back = open_rgb(encoded(image, form, **options), "x")
    assert back.mode == "RGB"
    assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), (255, 127, 127)),
        (Image.fromarray(np.full((4, 4), 257 * 90, np.uint16)), (90, 90, 90)),
        (Image.fromarray(np.full((4, 4), 65_535, np.uint16)), (255, 255, 255)),
    ],
)
def test_modes_become_rgb(image: Image.Image, pixel: tuple[int, int, int]) -> None:
    got = open_rgb(encoded(image, "PNG"), "x")
    assert got.mode == "RGB"
    assert got.getpixel((1, 1)) == pixel


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_transparency_is_laid_over_white(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    got = open_rgb(encoded(image, "PNG", transparency=transparency), "x")
    assert got.getpixel((0, 0)) == (10, 20, 30)
    assert got.getpixel((1, 0)) == (255, 255, 255)
    assert (got.getpixel((2, 0)) == (70, 80, 90)) == (transparency == 1)


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    got = open_rgb(encoded(image, "PNG", transparency=(9, 9, 9)), "x")
    assert [got.getpixel((i, 0)) for i in range(2)] == [(1, 2, 3), (255, 255, 255)]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = scene(48, 32)
    got = open_rgb(encoded(image.convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(np.asarray(got, int) - np.asarray(image, int)).mean() < 3


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    got = open_rgb(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert got.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    upright = scene(24, 16)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright if undo is None else upright.transpose(undo)
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    got = open_rgb(encoded(stored, form, exif=exif, **options), "x")
    assert got.size == (24, 16)
    assert np.abs(np.asarray(got, int) - np.asarray(upright, int)).mean() < 4


@pytest.mark.parametrize("tail", [b"", b"MM\0\x2a\0\0\0\x08\0\x05\x01\x12", b"\xff" * 40])
def test_damaged_exif_does_not_spoil_the_pixels(tail: bytes) -> None:
    got = open_rgb(encoded(scene(20, 10), "JPEG", exif=b"Exif\0\0" + tail), "x")
    assert got.size == (20, 10)


def test_image_outlives_its_file_and_a_stream_stays_open(tmp_path: Path) -> None:
    scene(8, 8).save(tmp_path / "a.png")
    got = open_rgb(tmp_path / "a.png", "a.png")
    (tmp_path / "a.png").unlink()
    assert got.getpixel((0, 0)) == (0, 0, 0)
    stream = encoded(scene(8, 8), "PNG")
    open_rgb(stream, "x")
    assert not stream.closed


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not an image"),
        (b"hello, I am text\n" * 9, "not an image"),
        (encoded(scene(64, 64), "JPEG").getvalue()[:700], "truncated"),
        (encoded(scene(64, 64), "PNG").getvalue()[:300], "truncated|damaged"),
        (png_header(20_000, 20_000), "100 megapixels"),
        (png_header(10_000, 10_001), "10000 x 10001 pixels; more than 100 megapixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF").getvalue(), "floating-point"),
        (encoded(Image.new("I", (4, 4), 10**6), "TIFF").getvalue(), "32-bit"),
    ],
)
def test_undecodable(data: bytes, says: str) -> None:
    with pytest.raises(Undecodable, match=says) as error:
        open_rgb(io.BytesIO(data), "the.name")
    assert error.value.name == "the.name"
    assert "\n" not in str(error.value)


def test_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    for side in (10_001, 13_000, 20_000):  # Pillow itself only warns about the second
        with pytest.raises(Undecodable, match="megapixels"):
            open_rgb(io.BytesIO(png_header(side, side)), "x")


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, says in (("none.jpg", "No such file"), (".", "not a regular"), ("pipe.jpg", "not a")):
        with pytest.raises(Undecodable, match=says):
            open_rgb(tmp_path / name, name)


def test_finding_survives_the_way_out_of_a_worker_process() -> None:
    found = pickle.loads(pickle.dumps(Undecodable("a.jpg", "damaged")))
    assert (found.name, str(found)) == ("a.jpg", "damaged")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_are_decoded_or_undecodable(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
    image = bytearray(encoded(scene(16, 12), form).getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(image), 400) - 1))
        image[place] = data.draw(st.integers(0, 255))
    try:
        got = open_rgb(io.BytesIO(image), "x")
    except Undecodable:
        return
    assert got.mode == "RGB"


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = png_header(9_600, 9_600)  # large enough for Pillow's warning, small enough for us
    before = list(warnings.filters)
    gate = threading.Barrier(4)

    def decode(_: int) -> str:
        gate.wait()
        try:
            open_rgb(io.BytesIO(data), "x")
        except Undecodable as error:
            return str(error)
        return "decoded"

    with ThreadPoolExecutor(4) as pool:
        assert all("truncated" in text for text in pool.map(decode, range(8)))
    assert list(warnings.filters) == before


# --- Preprocessing --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(3, 150),
    height=st.integers(3, 150),
    size=st.integers(4, 48),
    crop_pct=st.sampled_from([1.0, 0.95, 0.875]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
def test_pixels_are_resize_and_centre_crop(
    width: int, height: int, size: int, crop_pct: float, interpolation: str
) -> None:
    image = scene(width, height)
    got = preprocess(size, crop_pct=crop_pct, interpolation=interpolation).pixels(image)
    side = round(size / crop_pct)
    resized = [max(side, round(length * side / min(image.size))) for length in image.size]
    left, top = ((length - size) // 2 for length in resized)
    resampling = Image.Resampling[interpolation.upper()]
    whole = image.resize((resized[0], resized[1]), resampling)
    expected = np.asarray(whole.crop((left, top, left + size, top + size)), int)
    assert got.shape == (size, size, 3)
    assert got.dtype == np.uint8
    # Pillow rounds after each direction, and a tie may fall to either side.
    assert np.abs(got - expected).max() <= 2
    assert np.abs(got - expected).mean() < 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 60_000), (60_000, 1), (3, 40_000), (20_000, 700)])
def test_elongated_images(shape: tuple[int, int]) -> None:
    got = preprocess(224, crop_pct=0.875).pixels(Image.new("RGB", shape, (7, 8, 9)))
    assert got.shape == (224, 224, 3)
    assert (got == (7, 8, 9)).all()


def test_nearest_takes_pixels_of_the_image() -> None:
    image = scene(50, 30)
    got = preprocess(16, interpolation="nearest").pixels(image)
    colours = {tuple(c) for c in np.asarray(image).reshape(-1, 3)}
    assert {tuple(c) for c in got.reshape(-1, 3)} <= colours


def test_image_of_the_right_size_passes_unchanged() -> None:
    image = scene(32, 32)
    got = preprocess(32).pixels(image)
    assert np.array_equal(got, np.asarray(image))
    assert got.flags.writeable
    with pytest.raises(ValueError, match="open_rgb"):
        preprocess(32).pixels(image.convert("L"))


def test_normalise_is_the_stated_arithmetic_to_the_bit() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    got = preprocess(16).normalise(levels)
    for channel in range(3):
        for level in range(256):
            x = np.float32(level) / np.float32(255)
            x = (x - np.float32(MEAN[channel])) / np.float32(STD[channel])
            assert got[0, channel, level // 16, level % 16] == x
    assert got.dtype == np.float32
    assert got.flags.c_contiguous


def test_normalise_does_not_depend_on_the_batch() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    whole = preprocess(8).normalise(batch)
    assert whole.shape == (5, 3, 8, 8)
    assert np.array_equal(whole, np.concatenate([preprocess(8).normalise(b[None]) for b in batch]))
    assert np.array_equal(preprocess(8).normalise(batch[:, ::-1]), whole[:, :, ::-1])
    with pytest.raises(ValueError, match="uint8"):
        preprocess(8).normalise(batch.astype(np.float32))


def test_json_round_trip() -> None:
    one = preprocess(224, interpolation="bicubic", crop_pct=0.875)
    assert Preprocess.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 1.5}, "size"),
        ({"size": True}, "size"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"mean": "abc"}, "mean"),
        ({"interpolation": "cubic"}, "one of nearest, bilinear, bicubic, lanczos"),
        ({"interpolation": []}, "one of nearest"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"extra": 1}, "exactly the keys"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Preprocess.from_json({**preprocess().to_json(), **change})


def test_suffixes_are_lower_case_and_decodable() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp"} <= IMAGE_SUFFIXES
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} <= set(images._FORMATS)
    assert all(suffix == suffix.lower() == Path(f"a{suffix}").suffix for suffix in IMAGE_SUFFIXES)
