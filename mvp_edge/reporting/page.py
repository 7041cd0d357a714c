"""The page that explains how a network was made, and the page that compares several.

    run directory → RunResult → Findings → drawings ┐
                                                    ├→ templates → one HTML file, which needs nothing else
                                         Findings   ┘

Names of classes, files and tasks are the user's: the templates escape everything, and the page's own
content security policy allows neither scripts nor the network.
"""

import base64
import binascii
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from mvp_edge.reporting import charts, printed
from mvp_edge.reporting.candidates import candidate_rows, trial_rows
from mvp_edge.reporting.charts import Axis, Cells, Mark, Range, Series
from mvp_edge.reporting.comparison import Comparison
from mvp_edge.reporting.findings import Findings, VotedGroup
from mvp_edge.reporting.front import front_part
from mvp_edge.reporting.layer_times import layer_parts
from mvp_edge.reporting.measures import (
    RUNTIMES,
    counterpart,
    headline_figures,
    layer_shares,
    measures,
    place,
    pruned_cells,
)
from mvp_edge.reporting.printed import duration
from mvp_edge.reporting.results import RunResult, read_run
from mvp_edge.runs.files import Example, HistoryFile
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.result import Cell
from mvp_edge_export.storage import write_text

MOST_CLASSES_IN_TABLE = 12
"""A confusion matrix of more classes is drawn, not tabulated."""
MOST_COMPARED = 12
FAR = 5
"""A latency budget this factor away from all latencies is not drawn: it would squeeze them together."""
THUMBNAILS = 800_000
"""Characters of base64 that the example images may take; further images are left out, and counted."""


def report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several.

    Args:
        runs: finished run directories; not exported or not benchmarked ones say so.
        out: the HTML file; by default ``report.html`` in the run directory, or ``comparison.html`` beside
            the first of several run directories.

    Returns:
        Where it was written.

    Raises:
        BadInput: no run, a run that is not finished, a damaged file, or an output that cannot be written.
    """
    if not runs:
        raise BadInput("report: no run was given; name a run directory, as in runs/001")
    if len({path.resolve() for path in runs}) < len(runs):
        raise BadInput("report: the same run was given twice; name each once")
    if len(runs) > MOST_COMPARED:
        raise BadInput(
            f"report: {len(runs)} runs are too many for one page; give at most {MOST_COMPARED}"
        )
    found = [Findings(read_run(path)) for path in runs]
    if len(found) == 1:
        out = out or runs[0] / "report.html"
        html = _render("run.html.j2", f=found[0], drawn=draw_run(found[0]), **_run_facts(found[0]))
    else:
        out = out or runs[0].parent / "comparison.html"
        html = _render(
            "compare.html.j2",
            runs=found,
            names=_names(found),
            comparison=Comparison(found),
            drawn=draw_comparison(found),
        )
    if out.is_dir():
        raise BadInput(
            f"report: {out} is a directory; name a file in it, as in {out / 'report.html'}"
        )
    write_text(out, html)
    return out


@dataclass(frozen=True)
class RunDrawings:
    """The drawings of one run; a drawing without data is None or empty."""

    strips: tuple[tuple[VotedGroup, Markup], ...]
    widths: tuple[tuple[str, int, int, Markup], ...]
    """Name, kept, size and strip of each group, for a run without votes."""
    latency: Markup | None
    loss: Markup | None
    learning: Markup | None
    shrinking: Markup | None
    confusion: Markup | None


def draw_run(found: Findings) -> RunDrawings:
    """All drawings of a run's report."""
    result = found.result
    history = result.history if result.history and len(result.history.steps) > 1 else None
    columns = charts.columns_for(width.size for width in result.run.widths.values())
    many = len(result.test.per_class) > MOST_CLASSES_IN_TABLE
    return RunDrawings(
        strips=tuple((voted, draw_votes(voted, columns)) for voted in found.voted),
        widths=tuple(
            (name, width.kept, width.size, _draw_width(name, width.kept, width.size, columns))
            for name, width in result.run.widths.items()
            if width.kept < width.size
        ),
        latency=_draw_latency(found),
        loss=_draw_loss(history) if history else None,
        learning=_draw_learning(history) if history else None,
        shrinking=_draw_shrinking(history) if history else None,
        confusion=_draw_confusion(result) if many else None,
    )


def draw_votes(voted: VotedGroup, columns: int) -> Markup:
    """One group's strip: most votes first, and within equal votes the kept units first."""
    cells = []
    for votes in range(voted.neighbours, -1, -1):
        of = "no vote" if votes == 0 else "1 vote" if votes == 1 else f"{votes} votes"
        drawn = "drawn" if votes == 0 else f"v{votes}"
        cells.append(Cells(drawn, True, voted.units(votes, kept=True), f"{of}, kept"))
        cells.append(Cells(f"v{votes}", False, voted.units(votes, kept=False), f"{of}, not kept"))
    title = f"{voted.group.name}: {len(voted.group.kept)} of {voted.group.size} units kept"
    return charts.votes(title, cells, columns)


def _draw_width(name: str, kept: int, size: int, columns: int) -> Markup:
    cells = [
        Cells("pruned", True, range(kept), "kept; the order has no meaning"),
        Cells("v0", False, range(kept, size), "removed; the order has no meaning"),
    ]
    return charts.votes(f"{name}: {kept} of {size} units kept", cells, columns)


def _draw_latency(found: Findings) -> Markup | None:
    rows = []
    for pruned in pruned_cells(found.result):
        base = counterpart(found.result, pruned)
        cells = [cell for cell in (base, pruned) if cell is not None]
        doubt = "".join({f", {cell.status}" for cell in cells if cell.status != "OK"})
        text = " → ".join(duration(cell.latency.p50) for cell in cells)
        rows.append(Range(f"{place(pruned)}{doubt}", text, [_mark(cell) for cell in cells]))
    if not rows:
        return None
    ends = [end for row in rows for mark in row.marks for end in (mark.low, mark.high, mark.tail)]
    limit = found.latency_limit
    if limit is not None and not min(ends) / FAR <= limit <= max(ends) * FAR:
        limit = None
    axis = charts.span_axis("ms for one image, logarithmic", [*ends, limit or ends[0]], _plain)
    return charts.ranges("Latency of the unpruned and the pruned network", axis, rows, limit)


def _mark(cell: Cell) -> Mark:
    style = "pruned" if cell.network == "pruned" else "unpruned"
    return Mark(style, cell.latency.p50, *cell.latency.p50_interval, cell.latency.p90)


def _draw_loss(history: HistoryFile) -> Markup:
    points = [(step.step, step.loss) for step in history.steps]
    top = max(loss for _, loss in points) * 1.05 or 1.0
    x = Axis("step", 0, points[-1][0], show=_plain)
    y = Axis("training loss", 0, top, show=_plain)
    return charts.plot("Training loss by step", x, y, [Series("pruned", points, line=True)])


def _draw_learning(history: HistoryFile) -> Markup:
    train = [(s.step, s.train_accuracy) for s in history.steps if s.train_accuracy is not None]
    validation = [(v.step, v.top1) for v in history.validation]
    x = Axis("step", 0, history.steps[-1].step, show=_plain)
    y = Axis("accuracy, %", 0, 1, show=lambda share: f"{100 * share:.0f}")
    series = [
        Series("unpruned", train, line=True),
        Series("pruned", validation, line=True),
        Series("pruned", validation),
    ]
    return charts.plot("Accuracy on training batches and validation images by step", x, y, series)


def _draw_shrinking(history: HistoryFile) -> Markup | None:
    """Units left by step, for a method that prunes while it trains."""
    left = [(step.step, step.units) for step in history.steps if step.units is not None]
    if len({units for _, units in left}) < 2:
        return None
    x = Axis("step", 0, left[-1][0], show=_plain)
    y = Axis("units left", 0, max(units for _, units in left) * 1.05, show=printed.count)
    return charts.plot("Units left by step", x, y, [Series("pruned", left, line=True)])


def _draw_confusion(result: RunResult) -> Markup:
    names = [one.name for one in result.test.per_class]
    rows = [[n / (sum(row) or 1) for n in row] for row in result.test.confusion]
    return charts.heat(
        "Confusion matrix: true classes down, predicted classes across",
        rows,
        lambda true, said: (
            f"{names[true]} called {names[said]}: {result.test.confusion[true][said]}"
        ),
    )


@dataclass(frozen=True)
class ComparisonDrawings:
    """Accuracy against cost, over the runs."""

    flops: Markup
    latency: tuple[tuple[str, Markup], ...]
    """One for each combination of runtime and threads that at least two runs were timed with."""


def draw_comparison(runs: Sequence[Findings]) -> ComparisonDrawings:
    """All drawings of a comparison."""
    names = _names(runs)
    flops = [float(run.result.verified.cost.flops) for run in runs]
    x = charts.span_axis("multiply-adds, logarithmic", flops, printed.count)
    # In fp32, whose accuracy is the one that is known here.
    cells = [
        {place(cell): cell for cell in pruned_cells(run.result) if cell.precision == "fp32"}
        for run in runs
    ]
    latency = []
    for where in dict.fromkeys(where for timed in cells for where in timed):
        timed = [index for index, cell in enumerate(cells) if where in cell]
        if len(timed) > 1:
            milliseconds = [cells[index][where].latency.p50 for index in timed]
            axis = charts.span_axis(f"ms for one image, {where}", milliseconds, _plain)
            chosen = [runs[index] for index in timed]
            drawing = _against(axis, milliseconds, chosen, [names[index] for index in timed])
            latency.append((where, drawing))
    return ComparisonDrawings(_against(x, flops, runs, names), tuple(latency))


def _against(
    x: Axis, costs: Sequence[float], runs: Sequence[Findings], names: Sequence[str]
) -> Markup:
    accuracies = [run.accuracy for run in runs]
    spans = [one.interval for one in accuracies]
    low = max(0.0, math.floor(10 * min(low for low, _ in spans) - 0.2) / 10)
    y = Axis("accuracy, %", low, 1, show=lambda share: f"{100 * share:.0f}")
    points = [(cost, one.top1) for cost, one in zip(costs, accuracies, strict=True)]
    series = [Series("pruned", points, spans=spans, labels=names)]
    return charts.plot(f"Accuracy against {x.label}", x, y, series, height=240)


def _run_facts(found: Findings) -> dict[str, object]:
    """What the run's template needs in addition to the findings and the drawings."""
    result = found.result
    examples, layers = _examples(result), layer_shares(result)
    return {
        "figures": headline_figures(result),
        "front": front_part(result.front) if result.front else None,
        "measures": tuple(measures(result)),
        "candidates": tuple(candidate_rows(result)),
        "trials": tuple(trial_rows(result)),
        "layers": layers,
        "layer_times": tuple(layer_parts(result.bench)),
        "heaviest": max((layer.share for layer in layers), default=1.0),
        "examples": examples,
        "examples_left_out": len(result.test.examples) - len(examples),
        "as_table": len(result.test.per_class) <= MOST_CLASSES_IN_TABLE,
        "confusions": _worst(result),
        "command": shlex.join(result.run.command),
        "where": shlex.quote(str(result.path)),
        "bundle": shlex.quote(str(result.path / "bundle")),
    }


def _examples(result: RunResult) -> list[Example]:
    """The example images that fit on the page; BadInput for one that is no JPEG."""
    fitting, used = [], 0
    for index, example in enumerate(result.test.examples):
        try:
            start = base64.b64decode(example.jpeg_base64, validate=True)[:3]
        except (binascii.Error, ValueError):
            start = b""
        if start != b"\xff\xd8\xff":
            where = f"{result.path / 'test.json'}: examples.{index}.jpeg_base64"
            raise BadInput(
                f"run: {where} is not a JPEG in base64; restore the file, or prune again"
            )
        used += len(example.jpeg_base64)
        if used <= THUMBNAILS:
            fitting.append(example)
    return fitting


def _worst(result: RunResult) -> list[tuple[int, str, str]]:
    """The most frequent confusions: images, true class, predicted class."""
    names = [one.name for one in result.test.per_class]
    wrong = [
        (n, names[true], names[said])
        for true, row in enumerate(result.test.confusion)
        for said, n in enumerate(row)
        if n and true != said
    ]
    return sorted(wrong, key=lambda found: -found[0])[:8]


def _names(runs: Sequence[Findings]) -> list[str]:
    """A name for each run: its directory's, preceded by the parent's if two would be the same."""
    paths = [run.result.path.resolve() for run in runs]
    for parts in (1, 2):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _plain(value: float) -> str:
    return f"{value:g}"


def _render(template: str, **facts: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mvp_edge.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shows = (printed.count, printed.seconds, printed.percent)
    environment.filters.update({show.__name__: show for show in shows})
    environment.globals.update(wilson=printed.wilson, runtimes=RUNTIMES)
    return environment.get_template(template).render(facts)
