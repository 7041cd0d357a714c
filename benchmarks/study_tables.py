"""The studies' tables: which variants of which study stand where in benchmarks/*.md.

python -m benchmarks.study_tables PLACE …     prints some
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.study.rows import Rows, by_fifth, difference, interval, mean, ratio, study_rows


@dataclass(frozen=True)
class StudyTable:
    """A table of a study's variants."""

    place: str
    """As its block in the README is called."""
    study: str
    base: str
    """The variant that the others are compared with; it stands first."""
    variants: Sequence[str] = (".*",)
    """Regular expressions of whole names, in the order of the table."""
    targets: str = ""
    """Only targets whose names begin so."""
    least: int = 2
    """Variants of fewer targets are left out: no claims from single runs."""

    def rendered(self) -> str:
        """Markdown: the table, or that there are no rows yet."""
        found = study_rows(self.study)
        rows = {name: row for name, row in found.items() if name.startswith(self.targets)}
        names = self.chosen(rows)
        return table(rows, names, self.base) if names else f"*Not measured yet (`{self.study}`).*"

    def chosen(self, rows: Rows) -> list[str]:
        """The variants of the table, in its order."""
        counts: dict[str, int] = {}
        for row in rows.values():
            for name in row:
                counts[name] = counts.get(name, 0) + 1
        places: dict[str, tuple[int, int]] = {}
        for name, count in counts.items():
            place = next((i for i, p in enumerate(self.variants) if re.fullmatch(p, name)), None)
            if place is not None and count >= self.least:
                steps = re.search(r"@(\d+)$", name)
                places[name] = (place, int(steps[1]) if steps else 0)
        chosen = sorted(places, key=places.__getitem__)
        return [self.base, *(name for name in chosen if name != self.base)] if chosen else []


CONTROLS = (
    "random-mask", "random-mask-fast", "backbone-weights", "backbone-weights-fast",
    "one", "disjoint", "random-neighbours", "farthest", "zoo-votes", "zoo-mean",
)  # fmt: skip
"""What is changed in MVP: the mask, the weights, whom it asks."""

FEW = (10, 30, 100)
"""Training images a class of the studies on few images."""
SEEDED = ("mvp@100", "mvp@20", "random@100", "ifp@1000")
PEERS = (
    "mvp@20",
    "trunk@(20|100)",
    "tp-.*",
    "small.*",
    "thin.*",
    "mobilenet.*",
    "probe",
    "unpruned.*",
    "ifp@1000",
)

TABLES = [
    StudyTable(
        "resnet18-cifar100",
        "resnet18-cifar100",
        "ifp@1000",
        (r"trunk@\d+", r"mvp@\d+", r"smsp@.*", r"magnitude@\d+", r"random@\d+", r"taught.*", r"ifp.*",
         r"conventional.*", r"unpruned.*"),
    ),
    StudyTable(
        "trunk",
        "resnet18-cifar100",
        "ifp@1000",
        (r"trunk@\d+", r"trunk-short.*", r"trunk-long.*", r"trunk.*", r"mvp@(20|100)"),
    ),
    StudyTable(
        "controls",
        "resnet18-cifar100",
        "mvp@100",
        (*(f"mvp@100-{name}" for name in CONTROLS), r"smsp@100.*", r"magnitude@100", r"random@100", r"ifp@5",
         r"unpruned.*"),
    ),
    StudyTable("one-update", "resnet18-cifar100", "ifp@1000", (r"mvp@\d+-one-update", r".*-one-update")),
    StudyTable("resnet18-keep0.32", "resnet18-keep0.32", "ifp@1000", (r"mvp@\d+", r"mvp.*", ".*")),
    StudyTable("deit-tiny-imagenet", "deit-tiny-imagenet", "ahnp@500", (r"mvp@\d+", r"mvp.*", ".*")),
    StudyTable("deit-trunk", "deit-trunk", "ahnp@500", (r"trunk@\d+", "trunk.*", r"mvp@(20|100)")),
    StudyTable(
        "zoo-size", "zoo-size", "mvp@100", (r"mvp@100-zoo-.*", r"mvp@100-n\d", "mvp@100-fifth.*", "mvp@100-wordnet")
    ),
    StudyTable(
        "zoo-size-20", "zoo-size", "mvp@20", (r"mvp@20-zoo-.*", "mvp@20-fifth.*", "mvp@20-(wordnet|by-lot)")
    ),
    StudyTable(
        "zoo-taught",
        "zoo-taught",
        "mvp@100-ifp-zoo-11",
        ("mvp@100-taught.*", "mvp@20-ifp-zoo-11", "mvp@20-taught.*"),
    ),
    *(
        StudyTable(f"classes-{n}", "classes", "mvp@100", ("mvp.*", ".*"), targets=f"cifar100-{n}c")
        for n in (3, 10, 20)
    ),
    *(StudyTable(f"few-{each}", f"few-{each}", "mvp@100", ("mvp.*", ".*")) for each in FEW),
    *(
        StudyTable(f"unseen-{name}", "unseen", "mvp@100", ("mvp.*", ".*"), targets=name)
        for name in ("tiny_imagenet_100", "imagenette_photos")
    ),
    StudyTable("deit-unseen", "deit-unseen", "mvp@100", (r"trunk@\d+", r"mvp.*", ".*")),
    StudyTable("ratios", "ratios", "mvp@100", (".*-keep.*", r"(magnitude|random)@100")),
    StudyTable("seeds", "seeds", "mvp@100", tuple(f"{name}(-seed.*)?" for name in SEEDED)),
    StudyTable("peers", "peers", "mvp@100", PEERS),
    *(
        StudyTable(
            f"trials-{n}", "trials-resnet18", f"base@{n}", (rf"updates.*@{n}", rf"(?!now|trunk).*@{n}"), least=4
        )
        for n in (20, 100)
    ),
    *(
        StudyTable(f"trials-{base}-{n}", "trials-resnet18", f"{base}@{n}", (rf"{base}-.*@{n}",), least=4)
        for base in ("now", "trunk")
        for n in (20, 100)
    ),
    StudyTable("tuning", "tuning", "base"),
    StudyTable("tuning-deit", "tuning-deit", "base"),
    StudyTable("quick", "quick", "ifp@1000"),
]  # fmt: skip


def table(rows: Rows, names: Sequence[str], base: str) -> str:
    """Markdown: mean accuracy of each variant, its paired difference to ``base``, what it cost, and took."""
    lines = [
        f"| method @ steps | targets | top-1 % (95 %) | minus {base} | 10¹² multiply-adds | paper's count | "
        "cost ratio | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        found = [r[name] for r in rows.values() if name in r]
        if not found:
            continue
        own = np.array([row["accuracy"] for row in found])
        low, high = interval(own, mean) if len(own) > 1 else (own[0], own[0])
        cost = np.mean([row["total_flops"] for row in found])
        # 0.6 · dense · batch · Σ density: a fifth of three forward passes an image.
        paper = [
            row.get("paper_flops", row["training_flops"] / 5)
            for row in found
            if "training_flops" in row
        ]
        gap, times = difference(rows, name, base), ratio(rows, name, base, "total_flops")
        against = f"{gap[0]:+.1f} ({gap[1]:+.1f} … {gap[2]:+.1f})" if gap and name != base else ""
        cheaper = f"{float(f'{times[0]:.3g}'):,g} ×" if times and name != base else ""
        theirs = f"{np.mean(paper) / 1e12:.3f}" if paper else ""
        lines.append(
            f"| {name} | {len(own)} | {100 * own.mean():.1f} ({100 * low:.1f} … {100 * high:.1f}) | "
            f"{against} | {cost / 1e12:.2f} | {theirs} | {cheaper} | {_seconds(found)} |"
        )
    return "\n".join(lines)


def _seconds(rows: Sequence[Mapping[str, Any]]) -> str:
    """The median of those made in one arithmetic, on one core: of machines that were alike, but seldom idle."""
    own = [
        row["seconds"]
        for row in rows
        if "seconds" in row and row.get("arithmetic", "bfloat16") == "bfloat16"
    ]
    return f"{np.median(own):.0f}" if own else ""


def overlap_table(facts: Mapping[str, Any]) -> str:
    """Markdown: the share of a network's units that others keep too, by similarity, group by group."""
    groups = facts["groups"]
    shares = np.array([by_fifth(row["others"]) for row in facts["rows"]])
    lines = [
        "| unit group | kept | chance | nearest fifth | 2nd | 3rd | 4th | farthest fifth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for place, group in enumerate(groups):
        cells = " | ".join(f"{100 * share:.0f} %" for share in shares.mean(0)[:, place])
        chance = 100 * group["kept"] / group["size"]
        lines.append(
            f"| {group['name']} | {group['kept']} of {group['size']} | {chance:.0f} % | {cells} |"
        )
    kept = np.array([group["kept"] for group in groups])
    whole = shares @ kept / kept.sum()
    cells = " | ".join(f"{100 * share:.1f} %" for share in whole.mean(0))
    chance = 100 * kept.sum() / sum(group["size"] for group in groups)
    lines.append(f"| *all units* | | {chance:.0f} % | {cells} |")
    gap = 100 * (whole[:, 0] - whole[:, -1])
    low, high = interval(gap, mean)
    correlation = np.array([_rank_correlation(row["others"], kept) for row in facts["rows"]])
    ends = interval(correlation, mean)
    return "\n".join([
        *lines, "",
        f"{len(shares)} targets. Nearest minus farthest fifth: {gap.mean():+.1f} points "
        f"({low:+.1f} … {high:+.1f}). Rank correlation of LEEP with the overlap, within a target: "
        f"{correlation.mean():.2f} ({ends[0]:.2f} … {ends[1]:.2f}).",
    ])  # fmt: skip


def _rank_correlation(others: Mapping[str, Mapping[str, Any]], kept: NDArray[np.int64]) -> float:
    score = [other["score"] for other in others.values()]
    common = [float(np.dot(other["common"], kept) / kept.sum()) for other in others.values()]
    return float(spearmanr(score, common).statistic)


if __name__ == "__main__":
    for one in TABLES:
        if one.place in sys.argv[1:]:
            print(one.rendered())
