"""The wire format of protobuf, read without a schema: a device has no onnx package."""

import mmap
from collections.abc import Iterator


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, start, end) of each field; a varint's value stands in both last places."""
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
    """A number and where the next field begins."""
    value = shift = 0
    while shift < 64:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
    raise ValueError("a number of more than 64 bits")
