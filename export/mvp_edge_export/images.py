"""Decoding and preprocessing of images, the same on the server and on the device.

    file → open_rgb → RGB image → Preprocess.pixels    → uint8 [S, S, 3]
                                → Preprocess.normalise → float32 [N, 3, S, S]

Training, verification, the parity check and prediction all use these functions, with Pillow as the
decoder, so that a measured accuracy also holds on the device. Colour profiles (ICC) are not applied,
because the frames of a camera have none.
"""

import math
import struct
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mvp_edge_export.errors import BadInput

MAX_PIXELS = 100_000_000
"""Largest number of pixels; larger images are refused before they are decoded."""

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Lower-case suffixes of the files that are treated as images."""

# Only these decoders are allowed: others start programs (EPS) or are rarely tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The operation that makes an image with this EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Exceptions that Pillow's plugins raise for damaged files: those that its ``open`` handles itself and
# those seen in tests with randomly changed bytes.
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class Undecodable(Exception):
    """An image cannot be decoded; ``str()`` gives the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both arguments, so that a worker process can pickle it
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Preprocess:
    """Preparation of images for a network; every bundle contains these values.

    Raises:
        BadInput: a value is out of range.
    """

    size: int
    """Side of the network's square input in pixels."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, for pixel values scaled to 0..1."""
    std: tuple[float, float, float]
    """Standard deviation of red, green and blue, for pixel values scaled to 0..1."""
    interpolation: str = "bilinear"
    """Resampling filter: nearest, bilinear, bicubic or lanczos."""
    crop_pct: float = 1.0
    """Fraction kept by the crop: the shorter side is resized to round(size / crop_pct) before it."""

    def __post_init__(self) -> None:
        def refuse(key: str, form: str) -> BadInput:
            return BadInput(f"preprocessing: {key} is {getattr(self, key)!r}; it must be {form}")

        if type(self.size) is not int or not 1 <= self.size <= 4096:
            raise refuse("size", "a whole number of pixels from 1 to 4096")
        for key in ("mean", "std"):
            value = getattr(self, key)
            if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_number, value)):
                raise refuse(key, "three numbers, one for each colour")
        if min(self.std) < 1e-6:
            raise refuse("std", "three numbers above zero (1e-6)")
        if self.interpolation not in list(_INTERPOLATION):
            raise refuse("interpolation", f"one of {', '.join(_INTERPOLATION)}")
        if not _is_number(self.crop_pct) or not 0.1 <= self.crop_pct <= 1:
            raise refuse("crop_pct", "a number from 0.1 to 1")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize the shorter side and crop the centre, in one pass.

        Only the part inside the crop is resized, so that a strip of 1 x 100,000 pixels costs no more
        than a square.

        Args:
            image: image in mode RGB (see ``open_rgb``), of any size.

        Returns:
            uint8 [size, size, 3].
        """
        if image.mode != "RGB":
            raise ValueError(f"an RGB image is needed, not {image.mode}: open it with open_rgb")
        width, height = image.size
        side = round(self.size / self.crop_pct)
        if (width, height) == (self.size, self.size) and side == self.size:
            return np.array(image)
        # The crop after the resize, expressed in pixels of the original image.
        scale = side / min(width, height)
        box: list[float] = []
        for length in (width, height):
            resized = max(side, round(length * scale))
            start = (resized - self.size) // 2
            box += [start * length / resized, min(length, (start + self.size) * length / resized)]
        left, right, top, bottom = box
        resampling = _INTERPOLATION[self.interpolation]
        square = image.resize((self.size, self.size), resampling, box=(left, top, right, bottom))
        return np.array(square)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute ((x / 255) - mean) / std in float32, with the operations in this order.

        Args:
            pixels: uint8 [N, S, S, 3].

        Returns:
            float32 [N, 3, S, S], contiguous.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"uint8 [N, S, S, 3] is needed, not {pixels.dtype} {pixels.shape}")
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        planes = pixels.transpose(0, 3, 1, 2)
        values = np.empty(planes.shape, np.float32)
        np.divide(planes, np.float32(255), out=values, dtype=np.float32)
        values -= mean
        values /= std
        return values

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of ``to_json``; raises BadInput for unknown, missing or invalid values."""
        keys = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != keys:
            raise BadInput(f"preprocessing: must have exactly the keys {', '.join(sorted(keys))}")
        rgb = {
            key: tuple(value[key]) if isinstance(value[key], list) else value[key]
            for key in ("mean", "std")
        }
        return cls(**{**value, **rgb})


def open_rgb(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image to upright RGB.

    Greyscale, palette, CMYK and 16-bit greyscale images are converted to RGB, transparent images are
    placed on white, the EXIF orientation is applied, and an animation yields its first frame.

    Args:
        source: a file or an open binary stream; the stream is not closed.
        name: name of the image, kept in the exception.

    Raises:
        Undecodable: the file is not an image, is damaged or unreadable, or has more than MAX_PIXELS.
    """
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise Undecodable(name, "not a regular file")  # reading a pipe would block
        with _pillow_quiet, Image.open(source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Undecodable(name, f"{width} x {height} pixels; {_TOO_LARGE}")
            image.load()
            return _to_rgb(_upright(image), name)
    except Image.DecompressionBombError as error:
        raise Undecodable(name, _TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise Undecodable(name, f"not an image ({', '.join(_FORMATS)})") from error
    except _DAMAGE as error:
        raise Undecodable(name, _damage(error)) from error


_TOO_LARGE = f"more than {MAX_PIXELS // 10**6} megapixels are not decoded"


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE:
        return image  # the pixels are usable without the metadata
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image, name).convert("RGB")
    if image.mode == "F":
        raise Undecodable(name, "its pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    # Copy even an RGB image, because it is used after the file is closed.
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion saturates, so that every value over 255 would become white.
    values = np.asarray(image, np.int32)
    if values.min() < 0 or values.max() > 65_535:
        raise Undecodable(name, "its pixels are 32-bit numbers of unknown range")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _damage(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {str(error) or type(error).__name__}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _PillowQuiet:
    """Suppresses Pillow's warnings about unusual files, which ``open_rgb`` handles itself.

    The filters of ``warnings`` are shared by the whole process. Threads that decode at the same time
    share one change of them: the first to enter makes it and the last to leave reverts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(kind, error, trace)


_pillow_quiet = _PillowQuiet()
