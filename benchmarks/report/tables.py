"""The tables of studies that ``tables.yaml`` describes: short ones for the pages, and raw ones beside them.

python -m benchmarks.report.tables STUDY BASE     prints all rows of a study, compared with one variant
"""

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.stats import spearmanr

from benchmarks.report import sources
from benchmarks.report.measured import leep_agreement
from benchmarks.report.words import in_words
from benchmarks.study.rows import Rows, by_fifth, difference, interval, mean, ratio

MOST_ROWS = 10
"""Of a table on a page; longer ones stand in files of their own."""


class _Table(BaseModel):
    """A table of a study's variants, compared with one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    base: str
    targets: str = ""

    def rows(self) -> Rows:
        """The study's rows of the tasks that the table is about."""
        found = sources.study_rows(self.study)
        return {name: row for name, row in found.items() if name.startswith(self.targets)}


class PageTable(_Table):
    """A short table with its variants in words."""

    chosen: tuple[str | Mapping[str, str], ...] = Field(alias="rows")

    @property
    def words(self) -> dict[str, str]:
        """Variant → what the table calls it, in its order; the base comes last if it has no place of its own."""
        base = {self.base: in_words(self.base)}
        return dict(_named(one) for one in self.chosen) | base

    @model_validator(mode="after")
    def _short(self) -> "PageTable":
        if len(self.words) > MOST_ROWS:
            raise ValueError(f"more than {MOST_ROWS} rows")
        return self

    def rendered(self) -> str:
        """Markdown.

        Raises:
            LookupError: a variant has no rows, so that the page would say less than it seems to.
        """
        rows, base = self.rows(), in_words(self.base)
        lines = [
            f"| method | tasks | top-1, % | points against {base} | training of a task, 10¹² multiply-adds |",
            "|---|---|---|---|---|",
        ]
        for variant, text in self.words.items():
            found = [row[variant] for row in rows.values() if variant in row]
            if not found:
                raise LookupError(f"no rows of {variant} in the study {self.study}")
            gap = "" if variant == self.base else _minus(_gap(rows, variant, self.base))
            own = 100 * np.mean([row["accuracy"] for row in found])
            cost = np.mean([row["total_flops"] for row in found]) / 1e12
            lines.append(f"| {text} | {len(found)} | {own:.1f} | {gap} | {cost:.3g} |")
        return "\n".join(lines)


class RawTable(_Table):
    """All variants of a study that match, by their own names."""

    heading: str = ""
    note: str = ""
    variants: tuple[str, ...] = (".*",)
    least: int = 2

    def rendered(self) -> str:
        """Markdown, with its heading."""
        rows = self.rows()
        head = [f"## {self.heading}", ""] * bool(self.heading) + [self.note, ""] * bool(self.note)
        return "\n".join([*head, table(rows, self.names(rows), self.base)])

    def names(self, rows: Rows) -> list[str]:
        """The variants of the table, in its order, the base first; empty if nothing matches."""
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


class RawFile(BaseModel):
    """A file of raw tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    tables: tuple[RawTable, ...]

    def rendered(self) -> str:
        """Markdown: the whole file but for its last lines, which all raw files share."""
        return "\n\n".join([f"# {self.title}", *(one.rendered() for one in self.tables)])


class Tables(BaseModel):
    """The content of ``tables.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pages: Mapping[str, PageTable]
    raw: Mapping[str, RawFile]


@cache
def described_tables() -> Tables:
    """The tables of ``tables.yaml``.

    Raises:
        pydantic.ValidationError: a table lacks a field, has an unknown one, or too many rows for a page.
    """
    text = Path(__file__).with_suffix(".yaml").read_text()
    return Tables.model_validate(yaml.safe_load(text))


def table(rows: Rows, names: Sequence[str], base: str) -> str:
    """Markdown: mean accuracy of each variant, its paired difference to ``base``, what it cost, and took."""
    lines = [
        f"| variant | targets | top-1 % (95 %) | minus {base} | 10¹² multiply-adds | paper's count | "
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
        against = _gap(rows, name, base) if name != base else ""
        times = ratio(rows, name, base, "total_flops")
        cheaper = f"{float(f'{times[0]:.3g}'):,g} ×" if times and name != base else ""
        theirs = f"{np.mean(paper) / 1e12:.3f}" if paper else ""
        lines.append(
            f"| {name} | {len(own)} | {100 * own.mean():.1f} ({100 * low:.1f} … {100 * high:.1f}) | "
            f"{against} | {cost / 1e12:.2f} | {theirs} | {cheaper} | {_seconds(found)} |"
        )
    return "\n".join(lines)


def _named(row: str | Mapping[str, str]) -> tuple[str, str]:
    """A variant, and what the table calls it."""
    if isinstance(row, str):
        return row, in_words(row)
    ((variant, words),) = row.items()
    return variant, words


def _gap(rows: Rows, name: str, base: str) -> str:
    """The paired difference in points with its interval; empty if fewer than two tasks have both."""
    gap = difference(rows, name, base)
    return f"{gap[0]:+.1f} ({gap[1]:+.1f} … {gap[2]:+.1f})" if gap else ""


def _minus(text: str) -> str:
    """Hyphens as minus signs."""
    return text.replace("-", "−")


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
    return "\n".join([*lines, "", f"Means over {counts}. The product takes 250 images."])


def _rank_correlation(others: Mapping[str, Mapping[str, Any]], kept: NDArray[np.int64]) -> float:
    score = [other["score"] for other in others.values()]
    common = [float(np.dot(other["common"], kept) / kept.sum()) for other in others.values()]
    return float(spearmanr(score, common).statistic)


if __name__ == "__main__":
    study, base = sys.argv[1:]
    print(RawTable(study=study, base=base).rendered())
