"""Whose networks a study's variant uses, and where its rows go."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import study as module
from benchmarks.study import Study, is_current
from benchmarks.voters import asked, some_of
from mvp_edge.pruning.batches import Recipe
from mvp_edge.zoo.similarity import Candidate

RANKED = [Candidate(f"task-{number}", -float(number), ("a", "b")) for number in range(20)]


def names(**variant: Any) -> list[int]:
    found = asked(RANKED, {"method": "mvp", **variant}, seed=3)
    return [int(one.task.removeprefix("task-")) for one in found]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ({}, [0, 1, 2]),
        ({"neighbours": 1}, [0]),
        ({"who": "farthest"}, [17, 18, 19]),
        ({"who": "farthest", "neighbours": 1}, [19]),
        ({"who": "zoo"}, list(range(20))),
        ({"who": "fifth-1"}, [0, 1, 2]),
        ({"who": "fifth-4", "neighbours": 2}, [12, 13]),
        ({"method": "smsp"}, list(range(20))),
        ({"method": "smsp", "neighbours": 5}, [0, 1, 2, 3, 4]),
    ],
)
def test_who_is_asked(variant: dict[str, Any], expected: list[int]) -> None:
    assert names(**variant) == expected


def test_random_neighbours_are_ranked_seeded_and_without_regard_to_similarity() -> None:
    drawn = [asked(RANKED, {"method": "mvp", "who": "random"}, seed) for seed in range(200)]
    again = asked(RANKED, {"method": "mvp", "who": "random"}, 5)
    assert again == drawn[5]
    for some in drawn:
        assert [one.score for one in some] == sorted((one.score for one in some), reverse=True)
        assert len(some) == 3
    counts = [sum(one in some for some in drawn) for one in RANKED]
    assert min(counts) > 10
    assert max(counts) < 60


def test_smaller_zoos_are_nested_and_differ_between_targets() -> None:
    entries: list[Any] = list(range(39))
    few, more = (some_of(entries, count, 4) for count in (5, 20))
    assert set(few) < set(more)
    assert (len(few), len(more)) == (5, 20)
    assert some_of(entries, None, 4) == entries
    assert some_of(entries, 5, 3) != few
    drawn = [one for target in range(200) for one in some_of(entries, 5, target)]
    assert set(drawn) == set(entries)


def test_a_row_is_current_until_its_zoo_or_its_recipe_changes() -> None:
    recipe = Recipe(lr=0.1, updates=2, steps=100, batch=10)
    row = {"zoo": 5, "lr": 0.1, "updates": 2, "augmented": ["flip", "shift"]}
    assert is_current(row, 5, recipe, 100)
    assert is_current({}, 5, recipe, 100)  # a row that asks nobody
    changes: list[dict[str, Any]] = [{"zoo": 6}, {"lr": 0.2}, {"updates": 1}, {"augmented": []}]
    for change in changes:
        assert not is_current({**row, **change}, 5, recipe, 100)
    assert not is_current(None, 5, recipe, 100)
    short = replace(recipe, steps=40)  # four passes
    assert is_current({**row, "augmented": []}, 5, short, 100)
    assert not is_current(row, 5, short, 100)
    started = {**row, "network": "one"}
    assert is_current(started, 5, recipe, 100, "one")
    for other in (row, {**row, "network": "another"}):
        assert not is_current(other, 5, recipe, 100, "one")


def test_a_targets_place_is_that_in_its_own_draw() -> None:
    tasks: list[Any] = list("abcde")
    plan = {"draws": [{"count": 2}, {"count": 3}]}
    study = Study(plan, None, tasks, None)  # type: ignore[arg-type]
    assert [study.place(task) for task in tasks] == [0, 1, 0, 1, 2]


def test_a_target_starts_from_the_trunk_that_was_kept_apart_from_it() -> None:
    tasks: list[Any] = list("abcd")
    pooled = {"first": {"apart": [0, 2]}, "second": {"apart": [2, 4]}}
    study = Study({"draws": [{"count": 4}], "pooled": pooled}, None, tasks, None)  # type: ignore[arg-type]
    found = [study.start(["first", "second"], task) for task in tasks]
    assert found == ["first", "first", "second", "second"]
    assert study.start("first", tasks[3]) == "first"


def test_rows_are_kept_beside_each_other_where_nothing_was_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HERE", tmp_path)
    task = SimpleNamespace(name="a", classes=("x", "y"), splits={"train": [1, 2]})
    study = Study({"study": "s"}, None, [task], SimpleNamespace(path=tmp_path / "zoo"))  # type: ignore[arg-type, list-item]
    assert study.rows(task) == {}  # type: ignore[arg-type]
    for name, accuracy in (("one", 0.5), ("two", 0.6), ("one", 0.7)):
        module.keep_row(study, task, name, {"accuracy": accuracy})  # type: ignore[arg-type]
    assert study.rows(task) == {"one": {"accuracy": 0.7}, "two": {"accuracy": 0.6}}  # type: ignore[arg-type]
    facts = json.loads((tmp_path / "results/s/a.json").read_text())
    assert (facts["target"], facts["images"]) == ("a", {"train": 2})
