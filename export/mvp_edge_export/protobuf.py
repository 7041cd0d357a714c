"""Reads the protobuf wire format without a schema, because devices do not have the onnx package."""

import mmap
from collections.abc import Iterator


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message.

    Args:
        data: the file.
        start: position of the message's first byte.
        end: position after the message's last byte.

    Yields:
        (field number, wire type, start, end) of each field; for a varint, the value takes the place of
        both start and end.

    Raises:
        ValueError: the data is not a protobuf message.
        IndexError: the data ends early.
    """
    while start < end:
        key, start = varint(data, start)
        field, wire = key >> 3, key & 7
        if wire == 0:
            low, start = varint(data, start)
            high = low
        elif wire == 2:
            size, low = varint(data, start)
            high = start = low + size
        elif wire in (1, 5):
            low, high = start, start + (8 if wire == 1 else 4)
            start = high
        else:
            raise ValueError(f"wire type {wire}")
        if start > end:
            raise ValueError("truncated")
        yield field, wire, low, high


def varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Read a varint; returns its value and the position after it."""
    value = shift = 0
    while shift < 64:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
    raise ValueError("a number of more than 64 bits")
