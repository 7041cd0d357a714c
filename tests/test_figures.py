"""What README and summary.json say is what the committed rows say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import figures, peer_figures, study_figures, summary
from benchmarks.study.rows import MAIN, difference, interval, mean, paired
from benchmarks.study_tables import StudyTable, overlap_table, table

ROOT = Path(__file__).parent.parent


def test_figures_and_tables_follow_from_the_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.summary", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_only_targets_with_both_variants_are_paired() -> None:
    rows = {
        "a": {"x": {"accuracy": 0.8}, "y": {"accuracy": 0.7}},
        "b": {"x": {"accuracy": 0.9}},
        "c": {"x": {"accuracy": 0.6}, "y": {"accuracy": 0.7}},
    }
    assert paired(rows, "x", "y").tolist() == [[0.8, 0.7], [0.6, 0.7]]
    found = difference(rows, "x", "y")
    assert found is not None
    middle, low, high, count = found
    assert middle == pytest.approx(0.0)
    assert [low, high] == pytest.approx([-10, 10])
    assert count == 2


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(40):
        sample = rng.normal(size=(24, 1))
        low, high = interval(sample, mean)
        covered += low <= 0 <= high
        widths.append(high - low)
    assert covered >= 33  # 95 % of 40 is 38; below 33 in one run of a thousand
    assert np.mean(widths) == pytest.approx(2 * 1.96 / 24**0.5, rel=0.1)


def test_a_table_holds_the_variants_it_asks_for_in_its_order() -> None:
    row = {"accuracy": 0.5, "total_flops": 1e12, "training_flops": 5e11, "seconds": 9.3}
    names = ("mvp@100", "mvp@20", "random@100", "mvp@100-one", "ifp@100")
    rows = {target: dict.fromkeys(names, row) for target in ("a", "b")}
    rows["a"]["rare@100"] = row
    chosen = StudyTable("p", "s", "mvp@100", (r"random.*", r"mvp@\d+", "rare.*"), least=2)
    text = table(rows, chosen.chosen(rows), "mvp@100").splitlines()[2:]
    assert [line.split(" | ")[0] for line in text] == ["| mvp@100", "| random@100", "| mvp@20"]
    assert text[1].endswith("| 1.00 | 0.100 | 1 × | 9 |")
    assert not chosen.chosen({})


def test_cost_to_parity_lies_between_what_was_measured() -> None:
    def rows(ours: float) -> dict[str, dict[str, dict[str, float]]]:
        target = {
            "mvp@100": {"accuracy": ours, "total_flops": 1.0},
            "tp-a@100": {"accuracy": 0.6, "total_flops": 2.0},
            "tp-b@100": {"accuracy": 0.5, "total_flops": 2.0},
            "tp-a@1000": {"accuracy": 0.8, "total_flops": 18.0},
        }
        return {"x": target, "y": target}

    found = [peer_figures.cost_to_parity(rows(ours), "mvp@100") for ours in (0.5, 0.7, 0.8, 0.9)]
    assert [one[0] for one in found if one] == pytest.approx([2, 6, 18, 18])
    assert peer_figures.cost_to_parity({"x": {}}, "mvp@100") is None


def test_a_figure_in_a_sentence_is_filled_in(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Ours: <!--=P1-a-->old<!--/-->; few: <!--=P1-b--><!--/-->.\n<!-- t -->\n<!-- end -->\n"
    )
    value = (-4.13, -5.11, -3.23, "points", "", "", "", "")
    two = [figures.Figure("P1-a", *value, 40), figures.Figure("P1-b", *value, 4)]
    text = summary.rendered(page, {"t": "| x |"}, two)
    assert "Ours: <!--=P1-a-->-4.1 (-5.1 … -3.2) points<!--/-->; few" in text
    assert "few: <!--=P1-b-->-4.1 (-5.1 … -3.2) points [4 targets]<!--/-->." in text
    assert "<!-- t -->\n| x |\n<!-- end -->" in text
    with pytest.raises(SystemExit, match="no rows for the figure P1-b"):
        summary.rendered(page, {}, two[:1])
    page.write_text("<!-- t -->\nthe rest of the page")
    with pytest.raises(SystemExit, match="<!-- t --> has no <!-- end -->"):
        summary.rendered(page, {"t": "| x |"}, [])


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


def test_the_correlation_is_that_within_each_target() -> None:
    rows = [
        {
            "target": target,
            "accuracy": 0.5 + shift + 0.01 * place,
            "leep": shift * 9 + (place if rising else -place),
            "wordnet": float(place == 1),
            "leep_seconds": 4.0,
            "wordnet_seconds": 0.5,
        }
        for target, shift, rising in (("a", 0.0, True), ("b", 0.3, True), ("c", 0.1, False))
        for place in range(4)
    ]
    found = {one.id: one for one in figures.choice_figures({"rows": rows}, "here")}
    assert found["P11-rank-correlation-leep"].value == pytest.approx(1 / 3)
    assert found["P11-rank-correlation-wordnet"].value == pytest.approx(-0.2582, abs=1e-3)
    assert found["P11-seconds-leep"].value == pytest.approx(4.0)


def test_seconds_are_of_both_ways_and_beside_the_thousand_steps() -> None:
    def way(similarity: float, steps: float) -> dict[str, object]:
        phases = {"settling": 1.0, "pruning": 6.0, "verification": 1.0}
        phases |= {"similarity": similarity} if similarity else {}
        return {"prune": 11.0, "export": 7.0, "phases": phases, "steps": steps}

    rows = [{"mvp": way(2.0, 5.0), "trunk": way(0.0, 4.0)} for _ in range(3)]
    assert len(figures.speed_figures({"rows": rows, "help": [0.1], "conditions": ""}, "")) == 5
    rows[0]["ifp"] = {"prune": 132.0, "phases": {"pruning": 120.0}}
    rows[0]["taught"] = {"prune": 33.0, "phases": {"pruning": 30.0}}
    facts = {"rows": rows, "help": [0.1, 0.3, 0.2], "conditions": "here"}
    found = {one.id: one.value for one in figures.speed_figures(facts, "there")}
    assert found == {
        "P10-help-seconds": pytest.approx(0.2),
        "P8-prune-export-seconds": pytest.approx(18.0),
        "P8-training-share": pytest.approx(0.5),
        "P3-wall-ratio": pytest.approx(15.0),
        "P3-command-ratio": pytest.approx(12.0),
        "P3-taught-command-ratio": pytest.approx(3.0),
        "P8-prune-export-seconds-trunk": pytest.approx(18.0),
        "P8-training-share-trunk": pytest.approx(0.5),
        "P3-wall-ratio-trunk": pytest.approx(20.0),
        "P3-command-ratio-trunk": pytest.approx(12.0),
        "P3-taught-command-ratio-trunk": pytest.approx(3.0),
    }


def test_many_tasks_pay_for_a_trunk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, spent in (("trunk-0-plain", 30.0), ("trunk-1-plain", 50.0), ("trunk-2", 900.0)):
        (tmp_path / f"{name}.json").write_text(f'{{"total_flops": {spent}}}')
    monkeypatch.setattr(study_figures, "_POOLED", tmp_path)
    each = {"trunk-plain@100": 1.0, "ifp@1000": 200.0, "taught@1000": 20.0}
    row = {name: {"total_flops": flops} for name, flops in each.items()}
    plain = "trunk-?-plain", "trunk-plain@100"
    costs = study_figures._trunk_costs({"a": row, "b": row}, *plain, "ifp@1000", MAIN, "here")
    found = {one.id: (one.value, one.low, one.high) for one in costs}
    assert found["P2-trunk-over-ifp1000"] == pytest.approx((0.2, 0.15, 0.25))
    both = 2000 / 40, 2000 / 60
    expected = (sum(both) / 2, both[1], both[0])
    assert found["P2-cost-ratio-trunk-of-10"] == pytest.approx(expected)
    assert found["P2-taught-cost-ratio-trunk-of-10"][0] == pytest.approx(sum(both) / 2 / 10)
    assert found["P2-cost-ratio-trunk-of-100"][0] > found["P2-cost-ratio-trunk-of-10"][0]
