"""Where one frame of a motion JPEG ends and the next begins, however the bytes come in."""

from collections.abc import Iterator
from io import BufferedIOBase, BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvp_edge_export.errors import BadInput
from mvp_edge_export.running import frames as module
from mvp_edge_export.running.frames import frames


def jpeg(seed: int, **options: object) -> bytes:
    """A small JPEG of noise: its scan is full of stuffed bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 16, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_thumbnail(seed: int) -> bytes:
    exif = b"Exif\0\0" + jpeg(seed + 1)
    return jpeg(seed, exif=exif)


FRAMES = (
    jpeg(0, quality=95),
    jpeg(1, progressive=True),
    jpeg(2, restart_marker_blocks=1),
    jpeg(3, comment=b"\xff\xd9 and \xff\xd8 in a comment"),
    with_thumbnail(4),
)


class Pipe(BufferedIOBase):
    """A stream that gives its bytes in pieces of these sizes, and then one by one."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self._stream, self._sizes = BytesIO(data), sizes

    def read1(self, size: int = -1, /) -> bytes:
        return self._stream.read(min(size, next(self._sizes, 1)))


@given(
    order=st.lists(st.sampled_from(FRAMES), min_size=1, max_size=6),
    between=st.sampled_from([b"", b"\0" * 7, b"\xff\xff", b"\r\n--boundary\r\n"]),
    sizes=st.lists(st.integers(1, 2000)),
)
def test_every_frame_comes_out_whole(order: list[bytes], between: bytes, sizes: list[int]) -> None:
    data = between.join(order)
    assert list(frames(Pipe(data, iter(sizes)))) == order


@given(data=st.binary(max_size=400), first=st.booleans())
def test_any_bytes_end(data: bytes, first: bool) -> None:
    pieces = list(frames(BytesIO(b"\xff\xd8" * first + data)))
    assert sum(map(len, pieces)) <= len(data) + 2 * first


def test_a_frame_is_there_before_the_next_one_begins() -> None:
    class Camera(BufferedIOBase):
        sent = 0

        def read1(self, size: int = -1, /) -> bytes:
            self.sent += 1
            return FRAMES[self.sent - 1]

    camera = Camera()
    stream = frames(camera)
    for index in range(3):
        assert next(stream) == FRAMES[index]
        assert camera.sent == index + 1


@pytest.mark.parametrize("kept", [3, 200, 700, -1])
def test_after_a_frame_that_was_cut_the_others_come(kept: int) -> None:
    cut = FRAMES[0][:kept]
    pieces = list(frames(BytesIO(cut + FRAMES[1] + FRAMES[2])))
    assert pieces[-1] == FRAMES[2]
    # Inside a table, whose length stands before it, the cut cannot be seen: one frame goes with it.
    assert (pieces[-2] == FRAMES[1]) is (kept != 200)
    assert list(frames(BytesIO(FRAMES[1] + cut))) == [FRAMES[1], cut]


def test_another_format_is_one_image() -> None:
    png = b"\x89PNG" + b"\xff\xd8 \xff\xd9" * 3
    assert list(frames(BytesIO(png))) == [png]
    assert list(frames(BytesIO(b""))) == []


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xda\0\2", b"BM"])
def test_an_image_without_an_end_does_not_fill_the_memory(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    stream = frames(BytesIO(start + bytes(2**21)))
    with pytest.raises(BadInput, match="does not end within 1 MiB"):
        list(stream)
