"""Images out of a byte stream, each as soon as its last byte has come.

    rpicam-vid --codec mjpeg -o - │ … FF D8 … FF D9 FF D8 … FF D9 …  →  frame, frame, …

A camera's motion JPEG is one JPEG file after the other, with nothing that says where one ends: the
end is found by walking through its segments (ITU-T T.81, annex B), so that a thumbnail inside one
is not taken for a frame. A stream that begins with anything but a JPEG is one image.
"""

from collections.abc import Iterator
from io import BufferedIOBase

from mvp_edge_export.errors import BadInput

MAX_BYTES = 64 * 2**20
"""What one image of a stream may have; one without an end would otherwise fill the memory."""

_PIECE = 1 << 16
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_IN_SCAN = frozenset({0x00, *range(0xD0, 0xD8)})  # a stuffed FF, and restart markers
_WITHOUT_LENGTH = _IN_SCAN | {0x01}
_START = bytes((0xFF, _SOI))


def frames(stream: BufferedIOBase) -> Iterator[bytes]:
    """The images of a stream, undecoded; the last one may be cut short.

    What lies between two frames is passed over: some cameras fill up to a round size.

    Raises:
        BadInput: an image of more than MAX_BYTES.
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
    """The bytes that were read and not yet handed out."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.data = bytearray()

    def has(self, size: int) -> bool:
        """Read on until there are ``size`` bytes; False when the stream ends before."""
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES >> 20} MiB"
            raise BadInput(f"an image of the stream does not end within {limit}; give it as a file")
        while len(self.data) < size:
            piece = self._stream.read1(_PIECE)  # what there is; does not wait for all of it
            if not piece:
                return False
            self.data += piece
        return True

    def find(self, byte: int, start: int) -> int:
        """Where ``byte`` is, from ``start`` on; -1 when it does not come."""
        while (place := self.data.find(byte, start)) < 0:
            start = max(start, len(self.data))
            if not self.has(start + 1):
                return -1
        return place

    def skip_to(self, mark: bytes) -> bool:
        """Drop what comes before ``mark``; False when it does not come."""
        while (place := self.data.find(mark)) < 0:
            del self.data[: 1 - len(mark)]
            if not self.has(len(self.data) + 1):
                return False
        del self.data[:place]
        return True

    def take(self, size: int) -> bytes:
        """Hand out the first ``size`` bytes."""
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


def _length(pending: _Pending) -> int:
    """Bytes of the JPEG that the pending ones begin with, up to where it ends or breaks off."""
    data, at = pending.data, 2
    while pending.has(at + 2):
        kind = data[at + 1]
        if data[at] != 0xFF:  # damaged: what follows is looked through for the next frame
            return at
        if kind == _EOI:
            return at + 2
        if kind == _SOI:  # the next one begins: this one was cut short
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
    """Where the marker after entropy-coded data stands, or the end of what there is."""
    while (at := pending.find(0xFF, at)) >= 0 and pending.has(at + 2):
        if pending.data[at + 1] not in _IN_SCAN:
            return at
        at += 2
    return len(pending.data)
