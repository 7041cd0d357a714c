"""Figures as people write them in a device profile, and as they are printed for people.

    "300M" → 300_000_000 multiply-adds      "64MiB" → 67_108_864 bytes      "0.05s" → 50.0 ms

A figure is a positive number and a unit of its own kind. A number without a unit is a plain count,
or bytes; for a duration it would be ambiguous, so text must carry one there. Everything else is a
``ValueError`` whose text says what is wrong and how to write it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

_NUMBER_UNIT = re.compile(
    r"\s*([+-]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)\s*([^\W\d_]*)\s*"
)
_LONGEST = 40
"""Characters of the longest figure; what is longer is not a figure, and is quoted only in part."""

_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATIONS: dict[str, int | Decimal] = {"us": Decimal("0.001"), "ms": 1, "s": 1000}


@dataclass(frozen=True)
class Quantity:
    """One kind of figure: what it counts, how it is written, and where it turns absurd."""

    noun: str
    """What is counted, in the plural and in the base unit: "multiply-adds"."""
    units: Mapping[str, int | Decimal]
    """Base units in each unit; the empty unit is present where a bare number is allowed."""
    limit: int
    """The largest figure, in base units, that can be meant for an edge device."""
    example: str

    @property
    def pattern(self) -> str:
        """A regular expression of the written form, for the published JSON schema."""
        units = "|".join(unit for unit in self.units if unit)
        return rf"^[0-9][0-9_]*(\.[0-9]+)?\s*({units}){'?' if '' in self.units else ''}$"

    def parse(self, value: object) -> Decimal:
        """The figure in base units, exactly.

        Args:
            value: text such as "1.2G", or an int or float that is in base units already.

        Raises:
            ValueError: not a number, not a unit of this kind, not positive, or absurd.
        """
        number, unit = self._split(value)
        if unit not in self.units:
            raise ValueError(self._wrong_unit(value, unit))
        figure = number * self.units[unit]
        if figure <= 0:
            raise ValueError(f"{quoted(value)} must be more than zero, as in {self.example}")
        if figure > self.limit:
            raise ValueError(
                f"{quoted(value)} is more than {self.limit:,} {self.noun}, beyond any edge device;"
                f" check its unit, as in {self.example}"
            )
        return figure

    def parse_whole(self, value: object) -> int:
        """As ``parse``, rounded down to a whole number of base units; below one is refused."""
        figure = int(self.parse(value))
        if figure < 1:
            raise ValueError(f"{quoted(value)} is less than one of {self.noun}; {self._form()}")
        return figure

    def _split(self, value: object) -> tuple[Decimal, str]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = Decimal(str(value))
            if number.is_finite():
                return number, "" if "" in self.units else _base_unit(self.units)
        elif isinstance(value, str) and len(value) <= _LONGEST:
            match = _NUMBER_UNIT.fullmatch(value)
            if match:
                return Decimal(match[1]), match[2]
        raise ValueError(f"{quoted(value)} is not a number of {self.noun}; {self._form()}")

    def _wrong_unit(self, value: object, unit: str) -> str:
        if not unit:
            return f"{quoted(value)} has no unit; {self._form()}"
        close = [known for known in self.units if known.lower() == unit.lower()]
        if close:
            return f"{quoted(value)}: {unit} is not a unit; did you mean {close[0]}, as in " + (
                self.example
            )
        return f"{quoted(value)}: {unit} is not a unit of {self.noun}; {self._form()}"

    def _form(self) -> str:
        units = [unit for unit in self.units if unit]
        return f"write {', '.join(units[:-1])} or {units[-1]}, as in {self.example}"


FLOPS = Quantity("multiply-adds", _COUNTS, 10**15, "300M")
"""fvcore's convention: one fused multiply-add is one."""
PARAMS = Quantity("parameters", _COUNTS, 10**12, "3M")
BYTES = Quantity("bytes", _BYTES, 2**40, "64MiB")
DURATION = Quantity("milliseconds", _DURATIONS, 3_600_000, "50ms")


def parse_flops(value: object) -> int:
    """Multiply-adds; raises ValueError."""
    return FLOPS.parse_whole(value)


def parse_params(value: object) -> int:
    """Parameters; raises ValueError."""
    return PARAMS.parse_whole(value)


def parse_bytes(value: object) -> int:
    """Bytes; raises ValueError."""
    return BYTES.parse_whole(value)


def parse_duration(value: object) -> float:
    """Milliseconds; raises ValueError."""
    return float(DURATION.parse(value))


def format_count(value: float) -> str:
    """A count for people, to three figures: "300M", "1.23G", "7"."""
    return _formatted(value, 1000, ["", "k", "M", "G", "T"], "")


def format_bytes(value: float) -> str:
    """Bytes for people, in binary units, to three figures: "12 MiB", "1.5 KiB", "7 B"."""
    return _formatted(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"], " ")


def format_duration(value: float) -> str:
    """Milliseconds for people, to three figures: "50 ms", "1.2 s", "350 us"."""
    return _formatted(value * 1000, 1000, ["us", "ms", "s"], " ")


def _formatted(value: float, step: int, units: list[str], gap: str) -> str:
    power = 0
    # Rounded before it is compared, so that 999.9996k becomes 1M and not 1000k.
    while power < len(units) - 1 and abs(float(_three_figures(value))) >= step:
        value /= step
        power += 1
    return f"{_three_figures(value)}{gap}{units[power]}"


def _three_figures(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _base_unit(units: Mapping[str, int | Decimal]) -> str:
    return next(unit for unit, factor in units.items() if factor == 1)


def quoted(value: object, longest: int = _LONGEST) -> str:
    """What the user gave, short and printable enough for one line of a message."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: longest + 1])
    return f'"{text}"' if len(text) <= longest else f'"{text[:longest]}…"'
