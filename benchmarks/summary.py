"""summary.json and the tables in the README files, recomputed from the committed raw rows.

python -m benchmarks.summary            writes them
python -m benchmarks.summary --check    fails if what is committed differs from what the rows say
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
    RESULTS,
    Figure,
    Rows,
    difference,
    headline,
    interval,
    leep_agreement,
    ratio,
    study_rows,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class StudyTable:
    """One table of a study's variants, at its place in benchmarks/README.md."""

    study: str
    base: str
    """The variant that the others are compared with."""
    targets: str = ""
    """Only targets whose names begin so."""

    @property
    def place(self) -> str:
        """As the README's block is called."""
        return f"{self.study}-{self.targets}" if self.targets else self.study


TABLES = [
    StudyTable("resnet18-cifar100", "ifp@1000"),
    StudyTable("resnet18-keep0.32", "ifp@1000"),
    StudyTable("deit-tiny-imagenet", "ahnp@500"),
    StudyTable("zoo-size", "mvp@100-n3"),
    *(StudyTable("classes", "ifp@100", f"cifar100-{n}c") for n in (3, 10, 20)),
    *(StudyTable("unseen", "ifp@100", name) for name in ("tiny_imagenet_100", "imagenette_photos")),
    StudyTable("ratios", "mvp@100-keep0.2"),
    StudyTable("peers", "small@100"),
    StudyTable("tuning", "base"),
    StudyTable("tuning-deit", "base"),
    StudyTable("wider", "keep0.18"),
    StudyTable("quick", "ifp@1000"),
]


def study_table(rows: Rows, base: str) -> str:
    """Markdown: every variant of a study, mean accuracy, paired difference, cost."""
    names = list(dict.fromkeys(name for r in rows.values() for name in r))
    names.sort(
        key=lambda name: (
            name != base,
            name not in _ORDER,
            _ORDER.index(name) if name in _ORDER else 0,
        )
    )
    lines = [
        f"| method @ steps | targets | top-1 % (95 %) | minus {base} | training cost, 10¹² | cost ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        own = np.array([r[name]["accuracy"] for r in rows.values() if name in r])
        low, high = interval(own, lambda v: float(v.mean())) if len(own) > 1 else (own[0], own[0])
        cost = np.mean([r[name]["total_flops"] for r in rows.values() if name in r])
        gap, times = difference(rows, name, base), ratio(rows, name, base, "total_flops")
        against = f"{gap[0]:+.1f} ({gap[1]:+.1f} … {gap[2]:+.1f})" if gap and name != base else ""
        cheaper = f"{times[0]:.3g} ×" if times and name != base else ""
        lines.append(
            f"| {name} | {len(own)} | {100 * own.mean():.1f} ({100 * low:.1f} … {100 * high:.1f}) | "
            f"{against} | {cost / 1e12:.2f} | {cheaper} |"
        )
    return "\n".join(lines)


_ORDER = ["mvp@0", "mvp@20", "mvp@100", "mvp@200", "mvp@300", "mvp@1000", "mvp@100-disjoint", "ifp@100", "ahnp@100",
          "magnitude@100", "random@100"]  # fmt: skip


def headline_table(found: Sequence[Figure]) -> str:
    """Markdown: the headline figures."""
    if not found:
        return (
            "*Not measured yet: the studies of `benchmarks/plans/` have not been run to their end.*"
        )
    lines = ["| figure | value (95 %) | goal | conditions |", "|---|---|---|---|"]
    for figure in found:
        spread = "" if figure.low is None else f" ({figure.low:.3g} … {figure.high:.3g})"
        lines.append(
            f"| `{figure.id}` | {figure.value:.3g}{spread} {figure.unit} | {figure.goal} | {figure.conditions} |"
        )
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


def photos_table(facts: Mapping[str, Any]) -> str:
    """Markdown: what the run on a user's photographs came to."""
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
            f"| top-1 in {one['runtime']} ({one['model']}) | | {100 * one['top1']:.1f} % |"
        )
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in facts["seconds"].items())
    return "\n".join([*lines, "", f"From the raw folder to the report: {spent}."])


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


def rendered(path: Path, tables: dict[str, str]) -> str:
    """The file's text with each `<!-- name -->` … `<!-- end -->` block filled in."""
    text = path.read_text()
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if start in text:
            head, _, rest = text.partition(start)
            _, _, tail = rest.partition(end)
            text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


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
        tables["photos"] = photos_table(json.loads((RESULTS / "photos.json").read_text()))
    tables |= device_tables()
    for one in TABLES:
        found_rows = study_rows(one.study)
        own = {name: row for name, row in found_rows.items() if name.startswith(one.targets)}
        if own:
            tables[one.place] = study_table(own, one.base)
    wanted = {HERE / "summary.json": summary + "\n"}
    for path in (HERE.parent / "README.md", HERE / "README.md", HERE / "device" / "README.md"):
        wanted[path] = rendered(path, tables)
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
