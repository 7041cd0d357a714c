import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_edge_export import quantities as q


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (q.parse_flops, "300M", 300_000_000),
        (q.parse_flops, "1.2G", 1_200_000_000),
        (q.parse_flops, " 4.5 k ", 4500),
        (q.parse_flops, "300_000_000", 300_000_000),
        (q.parse_flops, 300_000_000, 300_000_000),
        (q.parse_params, "0.7k", 700),
        (q.parse_bytes, "64MiB", 64 * 2**20),
        (q.parse_bytes, "12MB", 12_000_000),
        (q.parse_bytes, "1.5KiB", 1536),
        (q.parse_bytes, "1.3B", 1),
        (q.parse_bytes, 4096, 4096),
        (q.parse_duration, "50ms", 50.0),
        (q.parse_duration, "0.05s", 50.0),
        (q.parse_duration, "250us", 0.25),
        (q.parse_duration, 33.5, 33.5),
    ],
)
def test_reads(parse: Callable[[object], float], text: object, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (q.parse_flops, "300MiB", "MiB is not a unit of multiply-adds; write k, M, G or T"),
        (q.parse_flops, "50MHz", "MHz is not a unit"),
        (q.parse_duration, "50MHz", "write us, ms or s, as in 50ms"),
        (q.parse_duration, "50", "has no unit"),
        (q.parse_bytes, "12M", "M is not a unit of bytes; write B, kB, MB, GB, KiB, MiB or GiB"),
        (q.parse_bytes, "64mib", "did you mean MiB"),
        (q.parse_flops, "300m", "did you mean M"),
        (q.parse_flops, "-3M", "more than zero"),
        (q.parse_flops, "0", "more than zero"),
        (q.parse_flops, "0.3", "less than one"),
        (q.parse_flops, "1001T", "more than 1,000,000,000,000,000 multiply-adds"),
        (q.parse_bytes, "1025GiB", "more than 1,099,511,627,776 bytes"),
        (q.parse_duration, "3601s", "more than 3,600,000 milliseconds"),
        (q.parse_flops, "9e99T", "beyond any edge device"),
        (q.parse_flops, "nan", "not a number"),
        (q.parse_flops, math.nan, "not a number"),
        (q.parse_duration, math.inf, "not a number"),
        (q.parse_flops, True, "not a number"),
        (q.parse_flops, None, "not a number"),
        (q.parse_flops, [], "not a number"),
        (q.parse_flops, "", "not a number"),
        (q.parse_flops, "1:30", "not a number"),
        (q.parse_flops, "0x40", "x is not a unit|not a number"),
        (q.parse_flops, "٣M", "not a number"),
        (q.parse_flops, "9" * 5000, "not a number"),
        (q.parse_flops, "1\n\x1b[31m2", "not a number"),
    ],
)
def test_refuses(parse: Callable[[object], float], text: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse(text)
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (q.format_count(300_000_000), "300M"),
        (q.format_count(1_234_567), "1.23M"),
        (q.format_count(999_999), "1M"),
        (q.format_count(7), "7"),
        (q.format_bytes(12 * 2**20), "12 MiB"),
        (q.format_bytes(1023 * 1024), "1023 KiB"),
        (q.format_bytes(2**20 - 1), "1 MiB"),
        (q.format_duration(50.0), "50 ms"),
        (q.format_duration(1200.0), "1.2 s"),
        (q.format_duration(0.35), "350 us"),
        (q.format_duration(0.0), "0 us"),
    ],
)
def test_formats(text: str, value: str) -> None:
    assert text == value


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**15))
def test_count_survives_being_printed_and_read(value: int) -> None:
    assert q.parse_flops(q.format_count(value)) == pytest.approx(value, rel=0.0051)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**40 - 2**30))
def test_bytes_survive_being_printed_and_read(value: int) -> None:
    assert q.parse_bytes(q.format_bytes(value)) == pytest.approx(value, rel=0.0051, abs=1)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_figure_or_a_value_error(text: str) -> None:
    for quantity, parse in ((q.FLOPS, q.parse_flops), (q.DURATION, q.parse_duration)):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert 0 < value <= quantity.limit


@pytest.mark.parametrize("quantity", [q.FLOPS, q.PARAMS, q.BYTES, q.DURATION])
def test_published_pattern_knows_the_units(quantity: q.Quantity) -> None:
    assert re.search(quantity.pattern, quantity.example)
    assert not re.search(quantity.pattern, "50MHz")
    assert bool(re.search(quantity.pattern, "50")) == ("" in quantity.units)
