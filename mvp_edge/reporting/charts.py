"""The report's drawings, as SVG that is part of the page.

Drawn by hand and not by a plotting library: strokes and fills are classes that the page's style sheet
colours (so that one drawing serves light, dark and paper), text is text, a page of plots is a few
kilobytes, and a plot is as wide as a phone, so that its labels are never scaled below reading size.

    votes     one group's units as a strip of cells
    plot      points and lines on two axes
    ranges    p50 … p90 of one thing a row, on a common axis
    bars      shares of one thing a row, a part of each filled
    heat      a confusion matrix that is too large for a table
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

WIDTH = 360
"""Width of a plot in its own units; on a phone about one CSS pixel each."""
GLYPH = 6.1
"""Width of a character of a label, on average, in the same units."""


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, from where to where."""

    label: str
    low: float
    high: float
    log: bool = False
    show: Callable[[float], str] = lambda value: f"{value:g}"

    def __call__(self, value: float) -> float:
        """The position of ``value``: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values to label: steps of 1, 2 or 5, or as many of each decade as fit."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                fine = [digit * 10.0**decade for decade in decades for digit in digits]
                fine = [
                    v for v in fine if self.low <= v * (1 + 1e-9) and v <= self.high * (1 + 1e-9)
                ]
                if len(fine) <= most:
                    return fine
            return fine[:: math.ceil(len(fine) / most)]
        raw = (self.high - self.low) / most
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


@dataclass(frozen=True)
class Series:
    """Points of one kind, styled by a class of the style sheet: pruned, unpruned."""

    style: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    spans: Sequence[tuple[float, float]] = ()
    """For each point the low and high end of its interval, in units of y."""
    labels: Sequence[str] = ()
    """A name for each point, written beside it."""


def span_axis(label: str, values: Iterable[float], show: Callable[[float], str]) -> Axis:
    """A logarithmic axis around ``values``, all positive, that spans at least a factor of four."""
    found = list(values)
    low, high = min(found) / 1.25, max(found) * 1.25
    if high < 4 * low:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return Axis(label, low, high, log=True, show=show)


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], height: int = 200) -> Markup:
    """Series on two axes. ``title`` is the text for screen readers."""
    left, right, top, bottom = 40.0, WIDTH - 10.0, 22.0, height - 36.0

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return left + x(point[0]) * (right - left), bottom - y(point[1]) * (bottom - top)

    parts = [_text(0, 11, y.label, "axis")]
    for value in y.ticks():
        _, py = at((x.low, value))
        parts.append(_path(f"M{left:g} {py:.1f}H{right:g}", "grid"))
        parts.append(_text(left - 6, py + 3.5, y.show(value), "tick", "end"))
    for value in x.ticks():
        px, _ = at((value, y.low))
        parts.append(_path(f"M{px:.1f} {bottom:g}v4", "grid"))
        parts.append(_text(px, bottom + 15, x.show(value), "tick", "middle"))
    parts.append(_path(f"M{left:g} {bottom:g}H{right:g}", "base"))
    parts.append(_text((left + right) / 2, height - 4, x.label, "axis", "middle"))
    parts += [_series(one, at) for one in series]
    parts.append(
        _names([(at(p), n) for s in series for p, n in zip(s.points, s.labels, strict=False)])
    )
    return _svg(title, WIDTH, height, parts, "plot")


@dataclass(frozen=True)
class Mark:
    """A median with its interval and its 90th percentile."""

    style: str
    value: float
    low: float
    high: float
    tail: float


@dataclass(frozen=True)
class Range:
    """One row of `ranges`: marks joined by a line."""

    label: str
    text: str
    """The values as they are written beside the marks."""
    marks: Sequence[Mark]


def ranges(title: str, axis: Axis, rows: Sequence[Range], limit: float | None = None) -> Markup:
    """Each row's values with their intervals (thick) and their tails (thin), on one axis."""
    step, top = 36.0, 4.0
    bottom = top + step * len(rows)
    left, right = 4.0, WIDTH - 8.0

    def at(value: float) -> float:
        return left + min(1.0, max(0.0, axis(value))) * (right - left)

    parts = []
    for value in axis.ticks(6):
        parts.append(_path(f"M{at(value):.1f} {top:g}V{bottom:g}", "grid"))
        parts.append(_text(at(value), bottom + 14, axis.show(value), "tick", "middle"))
    for index, row in enumerate(rows):
        y = top + step * index + 26
        parts.append(_text(left, y - 13, row.label, "name"))
        parts.append(_text(right, y - 13, row.text, "value", "end"))
        if limit is not None:
            parts.append(_path(f"M{at(limit):.1f} {y - 8:g}v16", "limit"))
        ends = [at(mark.value) for mark in row.marks]
        parts.append(_path(f"M{min(ends):.1f} {y:g}H{max(ends):.1f}", "join"))
        for mark in row.marks:
            tail = f"M{at(mark.value):.1f} {y:g}H{at(mark.tail):.1f}m0 -4v8"
            parts.append(_path(tail, f"thin {mark.style}"))
            interval = f"M{at(mark.low):.1f} {y:g}H{at(mark.high):.1f}"
            parts.append(_path(interval, f"thick {mark.style}"))
            parts.append(_dot(at(mark.value), y, mark.style))
    parts.append(_text((left + right) / 2, bottom + 30, axis.label, "axis", "middle"))
    return _svg(title, WIDTH, bottom + 36, parts, "plot")


@dataclass(frozen=True)
class Bar:
    """A share 0..1, and the part of it that is filled."""

    style: str
    share: float
    filled: float


@dataclass(frozen=True)
class BarRow:
    """One row of `bars`: bars one below the other."""

    label: str
    text: str
    """The values as they are written beside the bars."""
    bars: Sequence[Bar]


def bars(title: str, label: str, rows: Sequence[BarRow]) -> Markup:
    """Each row's shares, all on one axis from 0 to the largest; ``label`` says what they are of."""
    left, right, thick = 4.0, WIDTH - 8.0, 7.0
    most = max((bar.share for row in rows for bar in row.bars), default=1.0)
    axis = Axis(f"%, {label}", 0.0, max(0.02, most), show=lambda share: f"{100 * share:g}")
    step = 20 + thick * max((len(row.bars) for row in rows), default=1)
    bottom = 4 + step * len(rows)
    parts = []
    for value in axis.ticks(6):
        x = left + axis(value) * (right - left)
        parts.append(_path(f"M{x:.1f} 4V{bottom:g}", "grid"))
        parts.append(_text(x, bottom + 14, axis.show(value), "tick", "middle"))
    for index, row in enumerate(rows):
        y = 4 + step * index
        room = int((right - left - GLYPH * (len(row.text) + 2)) / GLYPH)
        name = row.label if len(row.label) <= room else f"{row.label[: room - 1]}…"
        parts.append(_text(left, y + 12, name, "name"))
        parts.append(_text(right, y + 12, row.text, "value", "end"))
        for number, bar in enumerate(row.bars):
            middle = y + 16 + thick * (number + 0.5)
            for share, style in ((bar.share, "bar"), (bar.filled, "bar least")):
                if share > 0:
                    d = f"M{left:g} {middle:g}h{axis(share) * (right - left):.1f}"
                    parts.append(_path(d, f"{style} {bar.style}"))
    parts.append(_text((left + right) / 2, bottom + 30, axis.label, "axis", "middle"))
    return _svg(title, WIDTH, bottom + 36, parts, "plot")


@dataclass(frozen=True)
class Cells:
    """Units of one group with the same votes and the same outcome."""

    style: str
    """Class of the style sheet."""
    kept: bool
    """Kept units are full squares, the others small ones."""
    units: Sequence[int]
    told: str
    """The text that is shown on hover; the units' indices follow it."""


def columns_for(sizes: Iterable[int]) -> int:
    """Cells in a row; the same for all strips of a page, so that all cells have one size."""
    largest = max(sizes)
    return 32 if largest <= 32 else 64 if largest <= 512 else 128


def votes(title: str, runs: Sequence[Cells], columns: int) -> Markup:
    """A strip with one cell for each unit, the runs one after another, row by row.

    A row of like cells is one dashed stroke, so that a layer of 2,048 units costs a kilobyte.
    """
    parts, start = [], 0
    for run in runs:
        strokes = []
        size, pad = (8.6, 0.7) if run.kept else (3.6, 3.2)
        places = range(start, start + len(run.units))
        for row, cells in groupby(places, key=lambda place: place // columns):
            found = list(cells)
            x, y = (found[0] % columns) * 10 + pad, row * 10 + 5
            strokes.append(f"M{x:g} {y}h{(len(found) - 1) * 10 + size:g}")
        start += len(run.units)
        if strokes:
            told = f"{run.told} ({len(run.units)}): {_indices(run.units)}"
            parts.append(
                Markup('<path class="{} {}" d="{}"><title>{}</title></path>').format(
                    "cell" if run.kept else "speck", run.style, "".join(strokes), told
                )
            )
    rows = math.ceil(start / columns)
    # A group narrower than a row keeps the page's cell size: the rest of the row stays empty.
    return _svg(title, columns * 10, rows * 10, parts, "strip")


def heat(title: str, rows: Sequence[Sequence[float]], tell: Callable[[int, int], str]) -> Markup:
    """A square of cells coloured by value, 0..1; ``tell(row, column)`` gives the text shown on hover."""
    parts = [
        Markup(
            '<rect x="{}" y="{}" width="10" height="10" style="opacity:{:.2f}"><title>{}</title></rect>'
        ).format(column * 10, row * 10, max(0.06, value), tell(row, column))
        for row, values in enumerate(rows)
        for column, value in enumerate(values)
        if value > 0
    ]
    side = 10 * len(rows)
    return _svg(title, side, side, parts, "heat")


def _series(one: Series, at: Callable[[tuple[float, float]], tuple[float, float]]) -> Markup:
    places = [at(point) for point in one.points]
    parts = []
    if one.line and places:
        parts.append(
            _path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), f"line {one.style}")
        )
    for (x, _), (low, high) in zip(one.points, one.spans, strict=False):
        (px, top), (_, bottom) = at((x, high)), at((x, low))
        parts.append(_path(f"M{px:.1f} {top:.1f}V{bottom:.1f}", f"thin {one.style}"))
    if not one.line:
        parts += [_dot(x, y, one.style) for x, y in places]
    return Markup("").join(parts)


def _names(named: Sequence[tuple[tuple[float, float], str]]) -> Markup:
    """Names beside their points, moved apart where two would overlap."""
    parts, taken = [], list[tuple[float, float, float]]()
    for (x, y), name in sorted(named):
        width = GLYPH * len(name)
        end = x + 8 + width > WIDTH - 4
        left = x - 8 - width if end else x + 8
        below = y - 5
        while any(
            left < right and start < left + width and abs(below - line) < 12
            for start, right, line in taken
        ):
            below += 12
        taken.append((left, left + width, below))
        parts.append(_text(x - 8 if end else x + 8, below, name, "name", "end" if end else "start"))
    return Markup("").join(parts)


def _indices(units: Sequence[int]) -> str:
    """Indices in ascending order, consecutive ones joined: "3, 7–12, 40"."""
    parts = []
    for _, run in groupby(enumerate(sorted(units)), key=lambda pair: pair[1] - pair[0]):
        found = [unit for _, unit in run]
        parts.append(f"{found[0]}" if len(found) == 1 else f"{found[0]}–{found[-1]}")
    return ", ".join(parts)


def _svg(title: str, width: float, height: float, parts: Iterable[Markup], style: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>'
    ).format(style, width, height, title, Markup("").join(parts))


def _path(d: str, style: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(style, d)


def _dot(x: float, y: float, style: str) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(style, x, y)


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        style, x, y, anchor, escape(text)
    )
