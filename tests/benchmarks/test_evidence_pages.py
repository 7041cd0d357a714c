"""The evidence pages and summary.json say what the committed rows say, briefly and in words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import pages
from benchmarks.report.figure import Figure
from benchmarks.report.figures import catalogue
from benchmarks.report.tables import PageTable, RawTable, overlap_table, table

ROOT = Path(pages.__file__).parents[2]
PAGES = sorted(pages.EVIDENCE.glob("*.md"))
VALUE = (-4.13, -5.11, -3.23, "points", "", "", "", "")


def test_pages_tables_and_summary_follow_from_the_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.report", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_figure_in_a_sentence_and_a_table_are_filled_in(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Ours: <!--=P1-a-->old<!--/-->; few: <!--=P1-b--><!--/-->.\n<!-- t -->\n<!-- end -->\n"
    )
    two = {"P1-a": Figure("P1-a", *VALUE, 40), "P1-b": Figure("P1-b", *VALUE, 4)}
    text = pages.filled(page, {"t": "| x |"}, two)
    assert "Ours: <!--=P1-a-->−4.1 (−5.1 … −3.2) points<!--/-->; few" in text
    assert "few: <!--=P1-b-->−4.1 (−5.1 … −3.2) points [4 tasks]<!--/-->." in text
    assert "<!-- t -->\n| x |\n<!-- end -->" in text
    assert "Ours: −4.1 (−5.1 … −3.2) points; few" in pages.without_ids(text)


def test_an_unknown_figure_or_table_and_an_open_block_are_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!--=P1-b-->1<!--/-->\n<!-- t -->\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="no rows for the figure P1-b"):
        pages.filled(page, {"t": "| x |"}, {"P1-a": Figure("P1-a", *VALUE, 40)})
    with pytest.raises(SystemExit, match="no table t"):
        pages.filled(page, {"other": "| x |"}, {"P1-b": Figure("P1-b", *VALUE, 40)})
    page.write_text("<!-- t -->\nthe rest of the page")
    with pytest.raises(SystemExit, match="<!-- t --> has no <!-- end -->"):
        pages.filled(page, {"t": "| x |"}, {})


def test_the_readme_block_is_short_and_has_no_ids(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# R\n<!-- evidence -->\nold\n<!-- end -->\nrest\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    text = pages.Evidence().files()[tmp_path / "README.md"]
    assert text.startswith("# R\n<!-- evidence -->\n| ")
    assert text.endswith("<!-- end -->\nrest\n")
    assert "<!--=" not in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) <= 1 + 8


def test_goals_that_were_missed_stand_there_like_those_that_were_met() -> None:
    figures = {
        name: Figure(name, 2.0, None, None, "×", goal, "why", "", "", statement=statement)
        for name, goal, statement in (
            ("a", "≥ 1", "first"),
            ("b", "≥ 3", ""),
            ("c", "stated", "third"),
        )
    }
    assert pages.goals_table(figures, met=True).endswith("| first | 2 × | ≥ 1 × |")
    assert pages.goals_table(figures, met=False).endswith("| why | 2 × | ≥ 3 × |")
    assert "third" not in pages.goals_table(figures, met=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_starts_with_its_answer_and_names_no_variant(page: Path) -> None:
    text = page.read_text()
    lines = pages.without_ids(text).splitlines()
    assert len(lines) <= 80
    assert lines[0].startswith("# ")
    assert page.name == "README.md" or lines[2].startswith("**")
    if page.name != "how-measured.md":  # which explains the names of the raw tables
        assert re.findall(r"\w@\d+|P\d+-", "\n".join(lines)) == []
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert all(table.count("\n") <= 2 + 10 for table in tables)


def test_links_and_pictures_lead_somewhere() -> None:
    for page in [*PAGES, *(pages.EVIDENCE / "tables").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            # The map of benchmarks/ is written beside these pages.
            if not link.startswith("http") and link != "../../benchmarks/README.md":
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_no_raw_table_is_left_over() -> None:
    committed = set((pages.EVIDENCE / "tables").glob("*"))
    assert committed == {one for one in pages.Evidence().files() if one.parent.name == "tables"}


def test_the_index_leads_to_every_page() -> None:
    index = (pages.EVIDENCE / "README.md").read_text()
    assert [p.name for p in PAGES if p.name != "README.md" and f"({p.name})" not in index] == []


def test_every_figure_without_a_goal_is_on_a_page() -> None:
    used = pages.used_figures()
    unused = [one.id for one in catalogue().figures if one.goal == "stated" and one.id not in used]
    assert unused == []


def test_a_raw_table_holds_the_variants_it_asks_for_in_its_order() -> None:
    row = {"accuracy": 0.5, "total_flops": 1e12, "training_flops": 5e11, "seconds": 9.3}
    names = ("mvp@100", "mvp@20", "random@100", "mvp@100-one", "ifp@100")
    rows = {target: dict.fromkeys(names, row) for target in ("a", "b")}
    rows["a"]["rare@100"] = row
    chosen = RawTable(study="s", base="mvp@100", variants=(r"random.*", r"mvp@\d+", "rare.*"))
    text = table(rows, chosen.names(rows), "mvp@100").splitlines()[2:]
    assert [line.split(" | ")[0] for line in text] == ["| mvp@100", "| random@100", "| mvp@20"]
    assert text[1].endswith("| 1.00 | 0.100 | 1 × | 9 |")
    assert not chosen.names({})


def test_a_table_on_a_page_is_in_words_and_short() -> None:
    both = {"study": "resnet18-cifar100", "base": "ifp@1000"}
    found = PageTable.model_validate({**both, "rows": ["mvp@100", {"trunk@100": "from a trunk"}]})
    rows = [line.split(" | ") for line in found.rendered().splitlines()[2:]]
    assert [row[0] for row in rows] == ["| MVP, 100 steps", "| from a trunk", "| IFP, 1,000 steps"]
    assert rows[2][3] == ""
    with pytest.raises(LookupError, match="no rows of mvp@101"):
        PageTable.model_validate({**both, "rows": ["mvp@101"]}).rendered()
    with pytest.raises(ValueError, match="more than 10 rows"):
        PageTable.model_validate({**both, "rows": [f"mvp@{n}" for n in range(10)]})


def test_the_overlap_is_by_fifths_of_similarity() -> None:
    others = {f"t{n}": {"score": -n, "common": [1 - n / 10, 0.0]} for n in range(10)}
    facts = {
        "groups": [{"name": "a", "size": 10, "kept": 1}, {"name": "b", "size": 30, "kept": 3}],
        "rows": [{"others": others}, {"others": others}],
    }
    text = overlap_table(facts)
    assert "| a | 1 of 10 | 10 % | 95 % | 75 % | 55 % | 35 % | 15 % |" in text
    assert "| *all units* | | 10 % | 23.8 %" in text
    assert "farthest fifth: +20.0 points (+20.0 … +20.0)" in text
    assert "within a target: 1.00" in text
