"""The evidence pages and ``summary.json``, filled in from the committed rows.

A page holds three kinds of places, none of which is visible in rendered Markdown:

- ``<!--=ID-->…<!--/-->``: the figure ID of ``figures.yaml`` in a sentence or a cell;
- ``<!-- NAME -->`` … ``<!-- end -->`` on lines of their own: the table NAME of ``tables.yaml``;
- in README.md alone ``<!-- evidence -->`` … ``<!-- end -->``: ``readme_block.md`` with its figures filled in.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from benchmarks.report.device_figures import device_figures
from benchmarks.report.device_pages import device_files
from benchmarks.report.family_tables import arithmetic_table, families_summary
from benchmarks.report.figure import Figure, figures_table
from benchmarks.report.figures import catalogue
from benchmarks.report.measured import measured_figures
from benchmarks.report.sources import lines, measurement
from benchmarks.report.tables import described_tables, leep_table, overlap_table
from benchmarks.study.rows import MAIN

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "docs" / "evidence"
SUMMARY = ROOT / "benchmarks" / "summary.json"
README_BLOCK = Path(__file__).with_name("readme_block.md")

_IN_TEXT = re.compile(r"<!--=([\w.@-]+)-->.*?<!--/-->", re.DOTALL)
_BLOCK = re.compile(r"^<!-- ([\w.-]+) -->$", re.MULTILINE)
_FOOT = (
    "Written by `make figures` from the committed rows. [Back to the questions](../README.md); "
    "[what the columns mean](../how-measured.md#reading-the-raw-tables)."
)


class Evidence:
    """All figures and tables that the committed rows give, and the files that they stand in."""

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Id → figure, in the order of ``summary.json``."""
        found = [*catalogue().measured(), *measured_figures(), *device_figures()]
        twice = [name for name, count in Counter(one.id for one in found).items() if count > 1]
        if twice:
            sys.exit(f"two figures of one id: {', '.join(twice)}")
        words = catalogue().statements
        return {one.id: replace(one, statement=words.get(one.id, one.statement)) for one in found}

    @cached_property
    def blocks(self) -> dict[str, str]:
        """Name of a block → its Markdown."""
        tables = {name: one.rendered() for name, one in described_tables().pages.items()}
        goals = {
            f"goals-{name}": goals_table(self.figures, name == "met") for name in ("met", "missed")
        }
        backbones = {
            "backbones": families_summary(lines("families")),
            "training-step": arithmetic_table(
                measurement("arithmetic") or {"rows": []}, short=True
            ),
        }
        photographs = {"photographs": device_files()["photographs"].partition("\n\n")[2]}
        return {**tables, **goals, **photographs, **backbones}

    def files(self) -> dict[Path, str]:
        """Every file that is made from the rows → the text that it should have."""
        summary = {"schema": 1, "figures": [one.as_json() for one in self.figures.values()]}
        found = {SUMMARY: json.dumps(summary, indent=1, ensure_ascii=False) + "\n"}
        for name, text in self._raw_files().items():
            found[EVIDENCE / "tables" / f"{name}.md"] = f"{text}\n\n{_FOOT}\n"
        for page in sorted(EVIDENCE.glob("*.md")):
            found[page] = filled(page, self.blocks, self.figures)
        for page in sorted((ROOT / "docs").glob("*.md")):
            found[page] = filled(page, {}, self.figures)
        readme = ROOT / "README.md"
        plain = {
            "evidence": without_ids(
                with_figures(README_BLOCK, README_BLOCK.read_text(), self.figures)
            )
        }
        found[readme] = with_blocks(readme, readme.read_text(), plain)
        return found

    def _raw_files(self) -> dict[str, str]:
        """The files below ``docs/evidence/tables``."""
        similarity = ["# Which units similar tasks keep, and how many images LEEP needs"]
        for heading, name, rendered in (
            ("Units that two tasks both keep, by similarity", f"overlap-{MAIN}", overlap_table),
            ("LEEP on fewer training images", "leep", leep_table),
        ):
            if facts := measurement(name):
                similarity += [f"## {heading}", rendered(facts)]
        return {
            **{name: one.rendered() for name, one in described_tables().raw.items()},
            "similarity": "\n\n".join(similarity),
            **device_files(),
            "figures": f"# All figures of `benchmarks/summary.json`\n\n{figures_table(self.figures)}",
        }


def goals_table(figures: Mapping[str, Figure], met: bool) -> str:
    """Markdown: the figures that meet, or miss, their goals.

    All missed goals, and the met goals that have a statement in ``figures.yaml``.
    """
    lines = ["| figure | measured | goal |", "|---|---|---|"]
    for one in figures.values():
        if one.has_goal and one.met == met and (one.statement or not met):
            goal = f"{one.goal} {one.unit}".rstrip()
            lines.append(f"| {one.statement or one.conditions} | {one.said()} | {goal} |")
    return "\n".join(lines)


def filled(page: Path, blocks: Mapping[str, str], figures: Mapping[str, Figure]) -> str:
    """The page's text with its blocks and its figures filled in.

    Raises:
        SystemExit: a block or a figure is unknown, or a block is not closed.
    """
    text = page.read_text()
    if blocks:
        unknown = {name for name in _BLOCK.findall(text) if name not in (*blocks, "end")}
        if unknown:
            sys.exit(f"{page}: no table {', '.join(sorted(unknown))}")
    return with_figures(page, with_blocks(page, text, blocks), figures)


def with_blocks(page: Path, text: str, blocks: Mapping[str, str]) -> str:
    """The text with each ``<!-- NAME -->`` … ``<!-- end -->`` filled in.

    Raises:
        SystemExit: a block is not closed.
    """
    for name, content in blocks.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if start in text:
            head, _, rest = text.partition(start)
            _, closed, tail = rest.partition(end)
            if not closed:
                sys.exit(f"{page}: {start} has no {end}")
            text = f"{head}{start}\n{content.rstrip()}\n{end}{tail}"
    return text


def with_figures(page: Path, text: str, figures: Mapping[str, Figure]) -> str:
    """The text with each ``<!--=ID-->…<!--/-->`` filled in.

    Raises:
        SystemExit: there is no such figure.
    """

    def put(place: re.Match[str]) -> str:
        if place[1] not in figures:
            sys.exit(f"{page}: no rows for the figure {place[1]}")
        return f"<!--={place[1]}-->{figures[place[1]].said()}<!--/-->"

    return _IN_TEXT.sub(put, text)


def without_ids(text: str) -> str:
    """The text without the marks of its figures."""
    return re.sub(r"<!--=[\w.@-]+-->|<!--/-->", "", text)


def used_figures() -> set[str]:
    """The ids of all figures that a page or the README block shows."""
    pages = [*EVIDENCE.glob("*.md"), *(ROOT / "docs").glob("*.md"), README_BLOCK]
    return {name for page in pages for name in _IN_TEXT.findall(page.read_text())}
