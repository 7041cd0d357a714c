"""From an image file to the numbers that the network sees, the same on server and device.

    file → open_rgb → RGB image → Preprocess.pixels → uint8 [S, S, 3]
                                → Preprocess.normalise → float32 [N, 3, S, S]

Training, verification, the parity gate and the device all decode with Pillow through here, so an
accuracy that was measured on one of them holds on the others. Colour profiles (ICC) are not
applied: a device that gets its frames from a camera has none.
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
"""Images with more pixels are refused before they are decoded."""

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes, in lower case, of the files that are taken for images."""

# Only these decoders run: others start programs (EPS) or are little tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# What turns an image that was stored with this EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's plugins let escape from damaged files (seen when bytes are flipped at random, and
# those that its own ``open`` expects of them).
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
    """A file that is no image, or a damaged or too large one; ``str()`` is the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # all of it, so that it survives the way out of a worker
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its images; the values are part of every bundle.

    Raises:
        BadInput: a value that no image can be prepared with.
    """

    size: int
    """Side of the square that the network is fed, in pixels."""
    mean: tuple[float, float, float]
    """Of red, green and blue, on the scale 0..1."""
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    """nearest, bilinear, bicubic or lanczos."""
    crop_pct: float = 1.0
    """The shorter side is resized to round(size / crop_pct); the centre is cropped to size."""

    def __post_init__(self) -> None:
        def refuse(key: str, form: str) -> BadInput:
            return BadInput(f"preprocessing: {key} is {getattr(self, key)!r}; it must be {form}")

        if type(self.size) is not int or not 1 <= self.size <= 4096:
            raise refuse("size", "a whole number of pixels from 1 to 4096")
        for key in ("mean", "std"):
            value = getattr(self, key)
            if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_number, value)):
                raise refuse(key, "three numbers, one a colour")
        if min(self.std) < 1e-6:
            raise refuse("std", "three numbers above zero (1e-6)")
        if self.interpolation not in list(_INTERPOLATION):
            raise refuse("interpolation", f"one of {', '.join(_INTERPOLATION)}")
        if not _is_number(self.crop_pct) or not 0.1 <= self.crop_pct <= 1:
            raise refuse("crop_pct", "a number from 0.1 to 1")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize the shorter side, then crop the centre, in one pass.

        Only the part that survives the crop is ever resized: a strip of 1 x 100,000 pixels costs no
        more than a square.

        Args:
            image: in mode RGB (see ``open_rgb``), of any size and shape.

        Returns:
            uint8 [size, size, 3].
        """
        if image.mode != "RGB":
            raise ValueError(f"an RGB image is needed, not {image.mode}: open it with open_rgb")
        width, height = image.size
        side = round(self.size / self.crop_pct)
        if (width, height) == (self.size, self.size) and side == self.size:
            return np.array(image)
        # The sides after the resize, and the crop's place on them, in the pixels of the image.
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
        """((x / 255) - mean) / std in float32, each operation rounded once, in this order.

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
        """The inverse of ``to_json``; raises BadInput for unknown, missing or wrong values."""
        keys = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != keys:
            raise BadInput(f"preprocessing: exactly the keys {', '.join(sorted(keys))} are needed")
        rgb = {
            key: tuple(value[key]) if isinstance(value[key], list) else value[key]
            for key in ("mean", "std")
        }
        return cls(**{**value, **rgb})


def open_rgb(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image to upright RGB.

    Greyscale, palette, CMYK and 16-bit greyscale are converted, transparency is laid over white,
    the EXIF orientation is applied, and of an animation the first frame is taken.

    Args:
        source: a file or an open binary stream, which stays open.
        name: what to call it when it cannot be decoded.

    Raises:
        Undecodable: not an image, damaged, unreadable, or of more than MAX_PIXELS.
    """
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():
            raise Undecodable(name, "not a regular file")  # a pipe would wait for ever
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
        return image  # unreadable metadata does not spoil the pixels
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image, name).convert("RGB")
    if image.mode == "F":
        raise Undecodable(name, "its pixels are floating point numbers of no known scale")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    # A copy even of RGB: what is returned must outlive the file.
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion saturates: every value over 255 would become white.
    values = np.asarray(image, np.int32)
    if values.min() < 0 or values.max() > 65_535:
        raise Undecodable(name, "its pixels are 32-bit numbers of no known scale")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _damage(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged: {str(error) or type(error).__name__}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _PillowQuiet:
    """Pillow's remarks on odd files (bomb, EXIF, palette) are not passed on: they are dealt with.

    The filters of ``warnings`` belong to the whole process, so threads that decode at the same time
    share one change of them: the first one in makes it and the last one out takes it back.
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
