"""Figures are what the rows say, and are described without contradiction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from benchmarks.report import figures, sources
from benchmarks.report.figure import Figure
from benchmarks.report.figures import Catalogue, cost_to_parity
from benchmarks.report.measured import choice_figures, speed_figures
from benchmarks.study.rows import difference, interval, mean, paired

GivenRows = Callable[[dict[str, Any]], None]


@pytest.fixture
def given_rows(monkeypatch: pytest.MonkeyPatch) -> GivenRows:
    """A function that lets every study have the given rows."""

    def give(rows: dict[str, Any]) -> None:
        monkeypatch.setattr(sources, "study_rows", lambda study: rows)

    return give


def measured(*described: dict[str, Any]) -> dict[str, Figure]:
    """Id → figure, of figures described as in figures.yaml."""
    content = {"conditions": {"resnet18-cifar100": "here"}, "figures": list(described)}
    return {one.id: one for one in Catalogue.model_validate(content).measured()}


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


def test_a_difference_and_a_cost_are_of_the_tasks_that_they_name(given_rows: GivenRows) -> None:
    row = {
        "x@1": {"accuracy": 0.8, "total_flops": 1.0},
        "tp-a@9": {"accuracy": 0.5, "total_flops": 4.0},
        "tp-b@9": {"accuracy": 0.6, "total_flops": 8.0},
    }
    given_rows({"new-1": row, "new-2": row, "old-1": {**row, "x@1": {"accuracy": 0.0}}})
    both = {"ours": "x@1", "theirs": "best:tp-.*@9", "targets": "new"}
    found = measured({"id": "d", **both, "goal": "≥ 30"}, {"id": "c", "kind": "cost", **both})
    assert (found["d"].value, found["d"].unit, found["d"].targets) == (20.0, "points", 2)
    assert found["d"].conditions == "x@1 − tp-b@9, here, 2 targets, test images"
    assert found["d"].source == "benchmarks/results/resnet18-cifar100.jsonl"
    assert not found["d"].met
    assert (found["c"].value, found["c"].unit) == (8.0, "×")
    assert not found["c"].has_goal
    assert measured({"id": "d", **both, "theirs": "missing"}) == {}


@pytest.mark.parametrize(
    ("described", "wrong"),
    [
        ({"id": "a", "ours": "x", "theirs": "y", "task": 1}, "task"),
        ({"id": "a", "ours": "x"}, "theirs"),
        ({"id": "a", "kind": "guess", "ours": "x", "theirs": "y"}, "guess"),
        ({"id": "a", "kind": "trunk-cost", "trunks": "t", "theirs": "x", "tasks": 3}, "belong"),
    ],
)
def test_a_wrongly_described_figure_is_refused(described: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        measured(described)


def test_an_id_names_one_figure() -> None:
    one = {"id": "a", "ours": "x", "theirs": "y"}
    with pytest.raises(ValidationError, match="two figures of one id: a"):
        measured(one, one)


def test_every_described_figure_has_rows() -> None:
    text = Path(figures.__file__).with_suffix(".yaml").read_text()
    described = [one["id"] for one in yaml.safe_load(text)["figures"]]
    assert [one.id for one in figures.catalogue().measured()] == described


def test_cost_to_parity_lies_between_what_was_measured() -> None:
    def rows(ours: float) -> dict[str, dict[str, dict[str, float]]]:
        target = {
            "mvp@100": {"accuracy": ours, "total_flops": 1.0},
            "tp-a@100": {"accuracy": 0.6, "total_flops": 2.0},
            "tp-b@100": {"accuracy": 0.5, "total_flops": 2.0},
            "tp-a@1000": {"accuracy": 0.8, "total_flops": 18.0},
        }
        return {"x": target, "y": target}

    found = [cost_to_parity(rows(ours), "mvp@100") for ours in (0.5, 0.7, 0.8, 0.9)]
    assert [one[0] for one in found if one] == pytest.approx([2, 6, 18, 18])
    assert cost_to_parity({"x": {}}, "mvp@100") is None


def test_the_spread_over_seeds_is_that_within_a_task(given_rows: GivenRows) -> None:
    def row(middle: float) -> dict[str, dict[str, float]]:
        names = ("x@1", "x@1-seed-1", "x@1-seed-2")
        return {
            name: {"accuracy": middle + gap}
            for name, gap in zip(names, (-0.01, 0.0, 0.01), strict=True)
        }

    given_rows({"easy": row(0.9), "hard": row(0.5)})
    (found,) = measured({"id": "s", "kind": "seed-spread", "ours": "x@1"}).values()
    assert found.value == pytest.approx(1.0)
    assert found.said() == "1.0 points [2 tasks]"


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
    found = {one.id: one for one in choice_figures({"rows": rows}, "here")}
    assert found["P11-rank-correlation-leep"].value == pytest.approx(1 / 3)
    assert found["P11-rank-correlation-wordnet"].value == pytest.approx(-0.2582, abs=1e-3)
    assert found["P11-seconds-leep"].value == pytest.approx(4.0)


def test_seconds_are_of_both_ways_and_beside_the_thousand_steps() -> None:
    def way(similarity: float, steps: float) -> dict[str, object]:
        phases = {"settling": 1.0, "pruning": 6.0, "verification": 1.0}
        phases |= {"similarity": similarity} if similarity else {}
        return {"prune": 11.0, "export": 7.0, "phases": phases, "steps": steps}

    rows = [{"mvp": way(2.0, 5.0), "trunk": way(0.0, 4.0)} for _ in range(3)]
    assert len(speed_figures({"rows": rows, "help": [0.1], "conditions": ""}, "")) == 5
    rows[0]["ifp"] = {"prune": 132.0, "phases": {"pruning": 120.0}}
    rows[0]["distill"] = {"prune": 33.0, "phases": {"pruning": 30.0}}
    facts = {"rows": rows, "help": [0.1, 0.3, 0.2], "conditions": "here"}
    found = {one.id: one.value for one in speed_figures(facts, "there")}
    assert found == {
        "P10-help-seconds": pytest.approx(0.2),
        "P8-prune-export-seconds": pytest.approx(18.0),
        "P8-training-share": pytest.approx(0.5),
        "P3-wall-ratio": pytest.approx(15.0),
        "P3-command-ratio": pytest.approx(12.0),
        "P3-distill-command-ratio": pytest.approx(3.0),
        "P8-prune-export-seconds-trunk": pytest.approx(18.0),
        "P8-training-share-trunk": pytest.approx(0.5),
        "P3-wall-ratio-trunk": pytest.approx(20.0),
        "P3-command-ratio-trunk": pytest.approx(12.0),
        "P3-distill-command-ratio-trunk": pytest.approx(3.0),
    }


def test_many_tasks_pay_for_a_trunk(monkeypatch: pytest.MonkeyPatch, given_rows: GivenRows) -> None:
    trunks = [{"total_flops": 30.0}, {"total_flops": 50.0}]
    monkeypatch.setattr(sources, "pooled_networks", lambda pattern: trunks)
    each = {"trunk-plain@100": 1.0, "ifp@1000": 200.0, "distill@1000": 20.0}
    row = {name: {"total_flops": flops} for name, flops in each.items()}
    given_rows({"a": row, "b": row})
    plain = {"kind": "trunk-cost", "trunks": "trunk-?-plain"}
    many = {**plain, "ours": "trunk-plain@100", "theirs": "ifp@1000"}
    found = measured(
        {"id": "once", **plain, "theirs": "ifp@1000"},
        {"id": "ten", **many, "tasks": 10},
        {"id": "ten-distill", **many, "theirs": "distill@1000", "tasks": 10},
        {"id": "hundred", **many, "tasks": 100},
    )
    once = found["once"]
    assert (once.value, once.low, once.high) == pytest.approx((0.2, 0.15, 0.25))
    both = 2000 / 40, 2000 / 60
    ten = found["ten"]
    assert (ten.value, ten.low, ten.high) == pytest.approx((sum(both) / 2, both[1], both[0]))
    assert found["ten-distill"].value == pytest.approx(sum(both) / 2 / 10)
    assert found["hundred"].value > ten.value


def test_a_figure_says_its_sign_its_interval_and_how_few_tasks() -> None:
    value = (-4.13, -5.11, -3.23, "points", "≥ 1", "", "", "")
    assert Figure("a", *value, 40).said() == "−4.1 (−5.1 … −3.2) points"
    assert Figure("a", *value, 4).said() == "−4.1 (−5.1 … −3.2) points [4 tasks]"
    assert Figure("a", 1.5, 1.5, 1.5, "×", "≤ 2", "", "", "").said() == "1.5 ×"
    assert Figure("a", 1.5, None, None, "×", "≤ 2", "", "", "").met
    assert "statement" not in Figure("a", *value, 4, "words").as_json()
