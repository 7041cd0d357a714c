"""summary.json and the tables in the README files, recomputed from the committed raw rows.

python -m benchmarks.summary            writes them
python -m benchmarks.summary --check    fails if what is committed differs from what the rows say
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.device.figures import grid_figures
from benchmarks.device.grid_tables import (
    crosscheck_table,
    full_table,
    grids,
    latency_table,
    memory_table,
    roofline_table,
    rounding_table,
)
from benchmarks.device.tables import (
    arm64_table,
    front_table,
    light_table,
    predictor_table,
    widths_table,
)
from benchmarks.figures import (
    Figure,
    choice_figures,
    leep_agreement,
    overlap_figures,
    speed_figures,
    step_figures,
)
from benchmarks.study.rows import MAIN, RESULTS
from benchmarks.study_figures import all_study_figures
from benchmarks.study_tables import TABLES, overlap_table

HERE = Path(__file__).parent
FEW_TARGETS = 8
"""Of fewer an interval is only a range, and sentences say so."""


def headline() -> list[Figure]:
    """Every headline figure whose raw rows exist."""
    found = all_study_figures()
    for name, figures in (
        ("speed", speed_figures),
        ("step", step_figures),
        ("choice", choice_figures),
        (f"overlap-{MAIN}", overlap_figures),
    ):
        path = RESULTS / f"{name}.json"
        if path.exists():
            found += figures(json.loads(path.read_text()), f"benchmarks/results/{name}.json")
    for grid in grids():
        found += grid_figures(grid, f"benchmarks/device/results/{grid.name}.json")
    twice = [name for name, count in Counter(one.id for one in found).items() if count > 1]
    if twice:
        sys.exit(f"two figures of one name: {', '.join(twice)}")
    return found


def headline_table(found: Sequence[Figure]) -> str:
    """Markdown: the headline figures."""
    if not found:
        return (
            "*Not measured yet: the studies of `benchmarks/plans/` have not been run to their end.*"
        )
    lines = ["| figure | value (interval) | goal | conditions |", "|---|---|---|---|"]
    for figure in found:
        value = f"{figure.value:.3g}{spread(figure, '.3g')} {figure.unit}"
        lines.append(f"| `{figure.id}` | {value} | {figure.goal} | {figure.conditions} |")
    return "\n".join(lines)


def leep_table(facts: Mapping[str, Any]) -> str:
    """Markdown: how well LEEP on few images agrees with LEEP on the whole training split."""
    lines = [
        "| images | rank correlation | of its three nearest | seconds a target |",
        "|---|---|---|---|",
    ]
    for images, row in leep_agreement(facts).items():
        lines.append(
            f"| {images} | {row['spearman']:.3f} | {100 * row['top3']:.0f} % | {row['seconds']:.1f} |"
        )
    counts = f"{len(facts['rows'])} targets, a zoo of {facts['zoo']}, {facts['threads']} thread"
    return "\n".join([*lines, "", f"Means over {counts}."])


def photos_table(facts: Mapping[str, Any], whole: float) -> str:
    """Markdown: what the run on photographs came to, beside the unpruned network's top-1 on the same ones."""
    cost, images = facts["cost"], facts["images"]
    small, full = cost["pruned"], cost["unpruned"]
    lines = [
        f"`{facts['command']}`: {images['train']} photographs to train on, {images['test']} to test on.",
        "",
        "| | unpruned | pruned |",
        "|---|---|---|",
        f"| multiply-adds, 10⁶ | {full['flops'] / 1e6:.0f} | {small['flops'] / 1e6:.0f} |",
        f"| parameters, 10⁶ | {full['params'] / 1e6:.2f} | {small['params'] / 1e6:.2f} |",
    ]
    p50 = {(c["runtime"], c["threads"], c["network"]): c["latency"]["p50"] for c in facts["cells"]}
    for runtime, threads in sorted({key[:2] for key in p50}):
        full_ms, small_ms = (p50[runtime, threads, n] for n in ("baseline", "pruned"))
        where = f"{runtime}, {threads} thread{'s' * (threads > 1)}"
        lines.append(f"| {where}, p50 | {full_ms:.1f} ms | {small_ms:.1f} ms |")
    for one in facts["accuracy"]:
        lines.append(
            f"| top-1 in {one['runtime']} ({one['model']}) | {100 * whole:.1f} % | {100 * one['top1']:.1f} % |"
        )
    keep, steps = facts["keep"]["chosen"], facts["training"]["steps"]
    lines += [
        "",
        f"The budget of multiply-adds binds at keep {keep:.3f}; AHNP, {steps} steps (its default is 1,000).",
    ]
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in facts["seconds"].items())
    return "\n".join([*lines, "", f"From the raw folder to the report: {spent}."])


def _whole_on_photos() -> float:
    """Top-1 of the unpruned DeiT-Tiny on the photographs' test images, from the device's grid."""
    made = json.loads((HERE / "device" / "results" / "deit-tiny-224.json").read_text())["made"]
    unpruned = next(one for one in made if one["variant"] == "unpruned")
    return float(unpruned["accuracy"][0]["top1"])


def device_tables() -> dict[str, str]:
    """Everything below ``device/``, by the name of its place in the README files."""
    tables: dict[str, str] = {}
    for name, table in (("front", front_table), ("widths", widths_table)):
        facts = json.loads((HERE / "device" / f"{name}.json").read_text())
        families = {row["family"] for row in facts["fronts" if name == "front" else "rows"]}
        tables |= {f"{name}-{family}": table(facts, family) for family in families}
    whole = {
        "predictor": predictor_table,
        "arm64": arm64_table,
        "light_install": light_table,
        "crosscheck": crosscheck_table,
    }
    for name, of_all in whole.items():
        file = HERE / "device" / f"{name}.json"
        if file.exists():
            tables[name] = of_all(json.loads(file.read_text()))
    if measured := grids():
        tables |= {f"grid-{grid.name}": latency_table(grid) for grid in measured}
        tables["full"] = full_table(measured)
        tables["rounding"] = rounding_table(measured)
        tables["roofline"] = roofline_table(measured)
        tables["memory"] = memory_table(measured)
    return tables


def rendered(path: Path, tables: Mapping[str, str], found: Sequence[Figure]) -> str:
    """The file's text with each `<!-- name -->` … `<!-- end -->` block and each figure in a sentence filled in.

    A figure in a sentence stands between `<!--=ID-->` and `<!--/-->`.
    """
    text = path.read_text()
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if start in text:
            head, _, rest = text.partition(start)
            _, closed, tail = rest.partition(end)
            if not closed:
                sys.exit(f"{path}: {start} has no {end}")
            text = f"{head}{start}\n{table}\n{end}{tail}"
    spoken = {figure.id: said(figure) for figure in found}

    def put(place: re.Match[str]) -> str:
        if place[1] not in spoken:
            sys.exit(f"{path}: no rows for the figure {place[1]}")
        return f"<!--={place[1]}-->{spoken[place[1]]}<!--/-->"

    return re.sub(r"<!--=([\w.-]+)-->.*?<!--/-->", put, text, flags=re.DOTALL)


def said(figure: Figure) -> str:
    """A figure as a sentence has it: its value, its interval, and of how few targets, where they are few."""
    form = "+.1f" if figure.unit == "points" else ".3g"
    unit = f" {figure.unit}" if figure.unit else ""
    few = figure.targets is not None and figure.targets < FEW_TARGETS
    return f"{figure.value:{form}}{spread(figure, form)}{unit}" + (
        f" [{figure.targets} targets]" if few else ""
    )


def spread(figure: Figure, form: str) -> str:
    """The interval in brackets; nothing, where there is none to be seen in so many digits."""
    if figure.low is None or f"{figure.low:{form}}" == f"{figure.high:{form}}":
        return ""
    return f" ({figure.low:{form}} … {figure.high:{form}})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    found = headline()
    summary = json.dumps(
        {"schema": 1, "figures": [asdict(f) for f in found]}, indent=1, ensure_ascii=False
    )
    aimed = [figure for figure in found if not figure.goal.startswith(("stated", "FLOPs"))]
    tables = {"headline": headline_table(aimed), "figures": headline_table(found)}
    if (RESULTS / "leep.json").exists():
        tables["leep"] = leep_table(json.loads((RESULTS / "leep.json").read_text()))
    if (RESULTS / "photos.json").exists():
        photos = json.loads((RESULTS / "photos.json").read_text())
        tables["photos"] = photos_table(photos, _whole_on_photos())
    overlap = RESULTS / f"overlap-{MAIN}.json"
    if overlap.exists():
        tables["overlap"] = overlap_table(json.loads(overlap.read_text()))
    tables |= device_tables()
    tables |= {one.place: one.rendered() for one in TABLES}
    wanted = {HERE / "summary.json": summary + "\n"}
    for page in ("../README.md", "README.md", "trials.md", "device/README.md"):
        path = (HERE / page).resolve()
        wanted[path] = rendered(path, tables, found)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        sys.exit(
            f"differ from the raw rows: {', '.join(p.name for p in stale)}: run `make figures`"
        )
    for path in stale:
        path.write_text(wanted[path])
    print(
        f"{len(found)} figures, {'all as the rows say' if not stale else f'{len(stale)} files written'}"
    )


if __name__ == "__main__":
    main()
