"""Parsing and formatting of quantities with units, as in a device profile.

    "300M" → 300_000_000 multiply-adds      "64MiB" → 67_108_864 bytes      "0.05s" → 50.0 ms

A quantity is a positive number with a unit. A number without a unit is a count or bytes; a duration
given as text must have a unit, because it would be ambiguous without. Anything else raises ``ValueError``
with a message that says what is wrong and how to write it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

_NUMBER_UNIT = re.compile(
    r"\s*([+-]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)\s*([^\W\d_]*)\s*"
)
_LONGEST = 40
"""Maximum number of characters of a quantity; longer text is refused and quoted only in part."""

_COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DURATIONS: dict[str, int | Decimal] = {"us": Decimal("0.001"), "ms": 1, "s": 1000}


@dataclass(frozen=True)
class Quantity:
    """One kind of quantity with its units and its largest plausible value."""

    noun: str
    """Name of the base unit in the plural, e.g. "multiply-adds"."""
    units: Mapping[str, int | Decimal]
    """Number of base units in each unit; with an empty unit if a number without unit is allowed."""
    limit: int
    """Largest plausible value for an edge device, in base units."""
    example: str
    """Correct spelling, for error messages."""

    @property
    def pattern(self) -> str:
        """Regular expression for the text form, for the published JSON schema."""
        units = "|".join(unit for unit in self.units if unit)
        return rf"^[0-9][0-9_]*(\.[0-9]+)?\s*({units}){'?' if '' in self.units else ''}$"

    def parse(self, value: object) -> Decimal:
        """Parse a quantity.

        Args:
            value: text such as "1.2G", or a number in base units.

        Returns:
            The exact value in base units.

        Raises:
            ValueError: the value is not a number, has a wrong unit, is not positive, or is larger than
                ``limit``.
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
        """Parse a quantity and round it down to whole base units; less than 1 raises ValueError."""
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
"""Multiply-adds, counted as fvcore does: a fused multiply-add is one."""
PARAMS = Quantity("parameters", _COUNTS, 10**12, "3M")
BYTES = Quantity("bytes", _BYTES, 2**40, "64MiB")
DURATION = Quantity("milliseconds", _DURATIONS, 3_600_000, "50ms")


def parse_flops(value: object) -> int:
    """Parse a number of multiply-adds, e.g. "300M"; raises ValueError."""
    return FLOPS.parse_whole(value)


def parse_params(value: object) -> int:
    """Parse a number of parameters, e.g. "3M"; raises ValueError."""
    return PARAMS.parse_whole(value)


def parse_bytes(value: object) -> int:
    """Parse a number of bytes, e.g. "64MiB"; raises ValueError."""
    return BYTES.parse_whole(value)


def parse_duration(value: object) -> float:
    """Parse a duration, e.g. "50ms", to milliseconds; raises ValueError."""
    return float(DURATION.parse(value))


def format_count(value: float) -> str:
    """Format a count with three significant digits: "300M", "1.23G", "7"."""
    return _formatted(value, 1000, ["", "k", "M", "G", "T"], "")


def format_bytes(value: float) -> str:
    """Format bytes in binary units with three significant digits: "12 MiB", "1.5 KiB", "7 B"."""
    return _formatted(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"], " ")


def format_duration(value: float) -> str:
    """Format milliseconds with three significant digits: "50 ms", "1.2 s", "350 us"."""
    return _formatted(value * 1000, 1000, ["us", "ms", "s"], " ")


def _formatted(value: float, step: int, units: list[str], gap: str) -> str:
    power = 0
    # Round before comparing, so that 999.9996k becomes 1M and not 1000k.
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
    """Quote a user's value for an error message: printable and at most ``longest`` characters."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: longest + 1])
    return f'"{text}"' if len(text) <= longest else f'"{text[:longest]}…"'
