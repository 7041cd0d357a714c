"""Splits a byte stream into images, each as soon as its last byte has arrived.

    rpicam-vid --codec mjpeg -o - │ … FF D8 … FF D9 FF D8 … FF D9 …  →  frame, frame, …

Motion JPEG from a camera is a sequence of JPEG files without lengths. The end of each is found by
parsing its segments (ITU-T T.81, annex B), so that a thumbnail inside a frame is not mistaken for a
frame. A stream that does not begin with a JPEG is treated as one image.
"""

from collections.abc import Iterator
from io import BufferedIOBase

from mvp_edge_export.errors import BadInput

MAX_BYTES = 64 * 2**20
"""Largest size of one image in bytes, so that an image without an end does not fill the memory."""

_PIECE = 1 << 16
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_IN_SCAN = frozenset({0x00, *range(0xD0, 0xD8)})  # stuffed FF bytes and restart markers
_WITHOUT_LENGTH = _IN_SCAN | {0x01}
_START = bytes((0xFF, _SOI))


def frames(stream: BufferedIOBase) -> Iterator[bytes]:
    """Yield the encoded images of a stream; the last one may be incomplete.

    Bytes between two frames are skipped, because some cameras pad frames to a round size.

    Raises:
        BadInput: an image is larger than MAX_BYTES.
    """
    pending = _Pending(stream)
    if not pending.has(2) or pending.data[:2] != _START:
        while pending.has(len(pending.data) + 1):
            pass
        if pending.data:
            yield pending.take(len(pending.data))
        return
    while pending.skip_to(_START):
        yield pending.take(_length(pending))


class _Pending:
    """Buffer of the bytes that were read but not yet taken."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.data = bytearray()

    def has(self, size: int) -> bool:
        """Read until the buffer has ``size`` bytes; False if the stream ends before."""
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES >> 20} MiB"
            raise BadInput(f"an image of the stream does not end within {limit}; give it as a file")
        while len(self.data) < size:
            piece = self._stream.read1(
                _PIECE
            )  # returns what is available without waiting for a full piece
            if not piece:
                return False
            self.data += piece
        return True

    def find(self, byte: int, start: int) -> int:
        """Position of the next ``byte`` at or after ``start``; -1 if the stream ends before."""
        while (place := self.data.find(byte, start)) < 0:
            start = max(start, len(self.data))
            if not self.has(start + 1):
                return -1
        return place

    def skip_to(self, mark: bytes) -> bool:
        """Discard all bytes before ``mark``; False if the stream ends before it."""
        while (place := self.data.find(mark)) < 0:
            del self.data[: 1 - len(mark)]
            if not self.has(len(self.data) + 1):
                return False
        del self.data[:place]
        return True

    def take(self, size: int) -> bytes:
        """Remove the first ``size`` bytes from the buffer and return them."""
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


def _length(pending: _Pending) -> int:
    """Length of the JPEG at the start of the buffer, up to its end or to where it is damaged."""
    data, at = pending.data, 2
    while pending.has(at + 2):
        kind = data[at + 1]
        if data[at] != 0xFF:  # damaged: the caller searches for the next frame from here
            return at
        if kind == _EOI:
            return at + 2
        if kind == _SOI:  # the next frame begins, so this one is incomplete
            return at
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind in _WITHOUT_LENGTH:
            at += 2
        elif pending.has(at + 4):
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
            if kind == _SOS:
                at = _end_of_scan(pending, at)
        else:
            break
    return len(data)


def _end_of_scan(pending: _Pending, at: int) -> int:
    """Position of the marker after entropy-coded data, or the end of the buffer."""
    while (at := pending.find(0xFF, at)) >= 0 and pending.has(at + 2):
        if pending.data[at + 1] not in _IN_SCAN:
            return at
        at += 2
    return len(pending.data)
