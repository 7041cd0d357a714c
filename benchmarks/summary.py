"""Headline figures and tables, recomputed from the committed raw rows.

python benchmarks/summary.py            writes summary.json and the tables in the README files
python benchmarks/summary.py --check    fails if what is committed differs from what the rows say
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
Rows = dict[str, dict[str, dict[str, Any]]]
"""target → variant → row."""


@dataclass(frozen=True)
class Figure:
    """One headline figure, as it stands in summary.json."""

    id: str
    value: float
    low: float | None
    high: float | None
    unit: str
    goal: str
    conditions: str
    source: str
    command: str


def study_rows(study: str) -> Rows:
    """All rows of a study."""
    found = {}
    for path in sorted((RESULTS / study).glob("*.json")):
        facts = json.loads(path.read_text())
        found[facts["target"]] = facts["rows"]
    return found


def paired(rows: Rows, ours: str, theirs: str, key: str = "accuracy") -> np.ndarray[Any, Any]:
    """[targets with both, 2] values of two variants."""
    both = [(r[ours][key], r[theirs][key]) for r in rows.values() if ours in r and theirs in r]
    return np.array(both, dtype=np.float64).reshape(-1, 2)


def interval(
    values: np.ndarray[Any, Any], statistic: Callable[[np.ndarray[Any, Any]], float]
) -> tuple[float, float]:
    """95 % bootstrap interval of ``statistic`` over the targets (rows), 10,000 resamples, fixed seed."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile([statistic(values[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)


def difference(rows: Rows, ours: str, theirs: str) -> tuple[float, float, float, int] | None:
    """Mean paired difference in points of top-1, its interval, and how many targets."""
    values = paired(rows, ours, theirs)
    if len(values) < 2:
        return None

    def points(pairs: np.ndarray[Any, Any]) -> float:
        return float(100 * (pairs[:, 0] - pairs[:, 1]).mean())

    return points(values), *interval(values, points), len(values)


def ratio(rows: Rows, ours: str, theirs: str, key: str) -> tuple[float, float, float, int] | None:
    """Ratio of means theirs / ours of a cost, its interval, and how many targets."""
    values = paired(rows, ours, theirs, key)
    if len(values) < 2:
        return None

    def times(pairs: np.ndarray[Any, Any]) -> float:
        return float(pairs[:, 1].mean() / pairs[:, 0].mean())

    return times(values), *interval(values, times), len(values)


def figures() -> list[Figure]:
    """Every headline figure whose raw data exist."""
    found: list[Figure] = []
    study, plan = (
        "resnet18-cifar100",
        "python benchmarks/study.py benchmarks/plans/resnet18-cifar100.yaml",
    )
    rows, base = study_rows(study), "ifp@1000"
    where = f"benchmarks/results/{study}/"

    def compare(id_: str, ours: str, goal: str, theirs: str = base) -> None:
        got = difference(rows, ours, theirs)
        if got:
            text = f"{ours} − {theirs}, tied keep 0.1, {got[3]} targets, leave-one-out, test images"
            found.append(Figure(id_, *got[:3], "points", goal, text, where, plan))

    compare("P1-mvp100-minus-ifp1000", "mvp@100", "≥ 1")
    compare("P1-mvp20-minus-ifp1000", "mvp@20", "≥ -1")
    compare("P1-mvp300-minus-ifp1000", "mvp@300", "best of 200, 300 ≥ 3")
    compare("P1-mvp200-minus-ifp1000", "mvp@200", "best of 200, 300 ≥ 3")
    compare("P1-disjoint100-minus-ifp1000", "mvp@100-disjoint", "stated")
    compare("P1-mvp100-minus-random100", "mvp@100", "stated", "random@100")
    spent = ratio(rows, "mvp@100", base, "total_flops")
    if spent:
        text = f"real training multiply-adds (similarity, statistics, head included), {spent[3]} targets"
        found.append(Figure("P2-cost-ratio", *spent[:3], "×", "≥ 100", text, where, plan))
    found += _measured()
    return found


def _measured() -> list[Figure]:
    """Figures that a benchmark script measured and wrote as they stand: speed and latency."""
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        for figure in json.loads(path.read_text()).get("figures", []):
            found.append(Figure(**figure, source=f"benchmarks/results/{path.name}"))
    return found


def study_table(study: str, base: str) -> str:
    """Markdown: every variant of a study, mean accuracy, paired difference, cost."""
    rows = study_rows(study)
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
        cheaper = f"{times[0]:.0f} ×" if times and name != base else ""
        lines.append(
            f"| {name} | {len(own)} | {100 * own.mean():.1f} ({100 * low:.1f} … {100 * high:.1f}) | "
            f"{against} | {cost / 1e12:.2f} | {cheaper} |"
        )
    return "\n".join(lines)


_ORDER = ["mvp@0", "mvp@20", "mvp@100", "mvp@200", "mvp@300", "mvp@100-disjoint", "ifp@100", "ahnp@100",
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
    found = figures()
    summary = json.dumps(
        {"schema": 1, "figures": [asdict(f) for f in found]}, indent=1, ensure_ascii=False
    )
    tables = {"headline": headline_table(found)}
    for study, base in (("resnet18-cifar100", "ifp@1000"), ("deit-tiny-imagenet", "ahnp@1000")):
        if study_rows(study):
            tables[study] = study_table(study, base)
    wanted = {HERE / "summary.json": summary + "\n"}
    for path in (HERE.parent / "README.md", HERE / "README.md"):
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
