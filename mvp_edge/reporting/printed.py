"""Figures as the report prints them: three digits, always with their unit, a narrow space before it.

They round, so they are for people; the run directory's JSON files hold the exact ones.
"""

import math
from collections.abc import Callable

from mvp_edge_export.quantities import format_bytes, format_count, format_duration

NNBSP = "\N{NARROW NO-BREAK SPACE}"


def count(value: float) -> str:
    """A count to three figures: "5.62 M"."""
    text = format_count(value)
    return text if text[-1].isdigit() else f"{text[:-1]}{NNBSP}{text[-1]}"


def size(value: float) -> str:
    """Bytes in binary units: "98.4 KiB"."""
    return format_bytes(value).replace(" ", NNBSP)


def duration(milliseconds: float) -> str:
    """Milliseconds in a suitable unit: "0.35 ms", "12.1 s"."""
    if 0 < milliseconds < 1:
        return f"{milliseconds:.2g}{NNBSP}ms"
    return format_duration(milliseconds).replace(" ", NNBSP)


def seconds(value: float) -> str:
    """Seconds: "0.4 s", "12 s", "3 min 20 s"."""
    whole = round(value)
    if whole >= 60:
        return f"{whole // 60}{NNBSP}min {whole % 60}{NNBSP}s"
    return f"{value:.1f}{NNBSP}s" if value < 10 else f"{whole}{NNBSP}s"


def percent(fraction: float, digits: int = 1) -> str:
    """A share as a percentage: "93.2 %"; never rounded up to 100 nor down to 0."""
    text = f"{100 * fraction:.{digits}f}"
    if fraction > 0 and float(text) == 0:
        text = f"{100 * fraction:.2g}"
    while fraction < 1 and float(text) == 100 and digits < 12:
        digits += 1
        text = f"{100 * fraction:.{digits}f}"
    return f"{text}{NNBSP}%"


def points(fraction: float) -> str:
    """A difference of two shares, signed: "−0.8 points"."""
    return f"{100 * fraction:+.1f}{NNBSP}points".replace("-", "−")


def times(ratio: float) -> str:
    """A ratio: "99 ×", "1.3 ×"."""
    return f"{ratio:.0f}{NNBSP}×" if ratio >= 10 else f"{ratio:.2g}{NNBSP}×"


def shown(value: float | None, unit: str) -> str:
    """A verdict's figure with its unit."""
    if value is None:
        return "–"
    formats: dict[str, Callable[[float], str]] = {"bytes": size, "B": size, "ms": duration}
    if unit in formats:
        return formats[unit](value)
    if "point" in unit:
        return f"{value:.1f}{NNBSP}points".replace("-", "−")
    return count(value)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share seen in ``n`` independent images."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 exactly, but for rounding.
    low = 0.0 if share == 0 else max(0.0, middle - half)
    return low, 1.0 if share == 1 else min(1.0, middle + half)
