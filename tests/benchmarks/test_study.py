"""Which voters a study's variant uses, and where its rows go."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from benchmarks.study import plan
from benchmarks.study.conditions import is_current
from benchmarks.study.plan import Study, fault
from benchmarks.study.run import keep_row
from benchmarks.study.voters import asks_zoo, chosen_voters, smaller_zoo
from mvp_edge.families.resnet import RESNET
from mvp_edge.zoo.similarity import SimilarTask
from mvp_edge_export.storage import write_json

RANKED = [SimilarTask(f"task-{number}", -float(number), ("a", "b")) for number in range(20)]


def names(**variant: Any) -> list[int]:
    found = chosen_voters(RANKED, {"method": "mvp", **variant}, seed=3)
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
def test_who_is_chosen_voters(variant: dict[str, Any], expected: list[int]) -> None:
    assert names(**variant) == expected


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ({"method": "mvp"}, True),
        ({"method": "smsp"}, True),
        ({"method": "trunk", "start": "trunk-0"}, False),
        ({"method": "pooled", "start": "small"}, False),
        ({"method": "magnitude"}, False),
        ({"method": "torch-pruning"}, False),
    ],
)
def test_who_asks_the_zoo(variant: dict[str, Any], expected: bool) -> None:
    assert asks_zoo(variant) is expected


def test_random_neighbours_are_ranked_seeded_and_without_regard_to_similarity() -> None:
    drawn = [chosen_voters(RANKED, {"method": "mvp", "who": "random"}, seed) for seed in range(200)]
    again = chosen_voters(RANKED, {"method": "mvp", "who": "random"}, 5)
    assert again == drawn[5]
    for some in drawn:
        assert [one.score for one in some] == sorted((one.score for one in some), reverse=True)
        assert len(some) == 3
    counts = [sum(one in some for some in drawn) for one in RANKED]
    assert min(counts) > 10
    assert max(counts) < 60


def test_each_target_has_its_own_random_draw() -> None:
    tasks: list[Any] = list("abc")
    study = Study({"draws": [{"count": 3}]}, None, tasks, None)  # type: ignore[arg-type]
    for at_random in (
        {"method": "random"},
        {"method": "mvp", "units": "random"},
        {"method": "mvp", "who": "random"},
    ):
        drawn = {study.seed(task, {**at_random, "seed": seed}) for task in tasks for seed in (0, 1)}
        assert len(drawn) == 6
    others = {study.seed(task, {"method": "mvp", "seed": 2}) for task in tasks}
    assert others == {2}  # as the product would for each of them
    whom = [
        chosen_voters(
            RANKED,
            {"method": "mvp", "who": "random"},
            study.seed(t, {"method": "mvp", "who": "random"}),
        )
        for t in tasks
    ]
    assert len({tuple(one.task for one in some) for some in whom}) == 3


def test_smaller_zoos_are_nested_and_differ_between_targets() -> None:
    entries: list[Any] = list(range(39))
    few, more = (smaller_zoo(entries, count, 4) for count in (5, 20))
    assert set(few) < set(more)
    assert (len(few), len(more)) == (5, 20)
    assert smaller_zoo(entries, None, 4) == entries
    assert smaller_zoo(entries, 5, 3) != few
    drawn = [one for target in range(200) for one in smaller_zoo(entries, 5, target)]
    assert set(drawn) == set(entries)


def test_a_row_is_current_until_its_conditions_change() -> None:
    row = {"zoo": 5, "entries": "a", "lr": 0.1, "augmented": [], "network": "one", "accuracy": 0.5}
    row |= {"variant": {"method": "mvp", "neighbours": 1}}
    now = {key: value for key, value in row.items() if key != "accuracy"}
    assert is_current(row, now)
    for key in now:
        assert not is_current({**row, key: "another"}, now)
    assert not is_current(None, now)
    # Older rows say less: their images were augmented.
    old = {"zoo": 5, "lr": 0.1}
    assert is_current(old, {"seed": 0, "relative_step": 0.0})
    assert not is_current(old, {"seed": 3})
    assert not is_current(old, {"relative_step": 0.01})
    assert is_current(old, {"zoo": 5, "lr": 0.1, "augmented": ["flip", "shift"]})
    assert not is_current(old, {"zoo": 5, "augmented": []})
    assert not is_current(old, {"network": "one"})
    assert not is_current(old, {"entries": "a"})


def test_conditions_are_what_a_row_depends_on() -> None:
    backbone: Any = SimpleNamespace(family=RESNET)
    task: Any = SimpleNamespace(name="t", splits={"train": list(range(256))})
    study = Study({"study": "one"}, backbone, [task], None)  # type: ignore[arg-type]
    entries: list[Any] = [SimpleNamespace(name=n, weights_sha256=n) for n in "abc"]
    voted = study.conditions(task, entries, {"method": "mvp", "steps": 20})
    assert (voted["zoo"], voted["augmented"]) == (3, ["flip", "shift"])  # ten passes
    rebuilt = [*entries[:2], SimpleNamespace(name="c", weights_sha256="anew")]
    assert study.conditions(task, rebuilt, {"method": "mvp", "steps": 20}) != voted
    alone = study.conditions(task, entries, {"method": "magnitude", "steps": 8, "lr": 0.5})
    assert (alone["lr"], alone["augmented"], "zoo" in alone) == (0.5, [], False)
    assert (
        study.conditions(task, entries, {"method": "mvp", "steps": 20, "who": "farthest"}) != voted
    )
    assert study.conditions(task, entries, {"method": "mvp", "steps": 20, "targets": 3}) == voted


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"entries": 5}, {"entries": 10}),
        ({"neighbours": 1}, {"neighbours": 6}),
        ({}, {"tau": 0.5}),
        ({}, {"statistics": False}),
        ({}, {"similarity": "wordnet"}),
        ({"who": "farthest"}, {}),
        ({"weights": "backbone"}, {}),
        ({}, {"first": 11}),
    ],
)
def test_a_row_is_old_once_its_variant_says_otherwise(
    was: dict[str, Any], now: dict[str, Any]
) -> None:
    task: Any = SimpleNamespace(name="t", splits={"train": list(range(256))})
    study = Study({"study": "one"}, SimpleNamespace(family=RESNET), [task], None)  # type: ignore[arg-type]
    entries: list[Any] = [SimpleNamespace(name=n, weights_sha256=n) for n in "abc"]
    said = {"method": "mvp", "steps": 100}
    row = {**study.conditions(task, entries, {**said, **was}), "accuracy": 0.5}
    assert is_current(row, study.conditions(task, entries, {**said, **was}))
    assert not is_current(row, study.conditions(task, entries, {**said, **now}))


PLANS = [yaml.safe_load(path.read_text()) for path in sorted((plan.HERE / "plans").glob("*.yaml"))]


@pytest.mark.parametrize("study", PLANS, ids=lambda study: study["study"])
def test_plans_have_no_key_that_is_not_read(study: dict[str, Any]) -> None:
    for variant in study["variants"].values():
        assert "method" not in (variant or {}) or fault(variant) is None, variant
    for how in study.get("pooled", {}).values():
        assert set(how) <= set(plan.POOLED_KEYS)


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ({"method": "mvp", "stepz": 3}, "unknown stepz"),
        ({"method": "trunk", "steps": 3}, "trunk needs a start"),
        ({"method": "magnitude", "start": "trunk-0"}, "magnitude starts from no network"),
        ({"method": "random", "l1": 0.1}, "random has no l1"),
    ],
)
def test_what_would_be_another_method_is_refused(variant: dict[str, Any], wrong: str) -> None:
    assert fault(variant) == wrong


def test_a_targets_place_is_that_in_its_own_draw() -> None:
    tasks: list[Any] = list("abcde")
    draws = [{"count": 2}, {"count": 3}]
    study = Study({"draws": draws}, None, tasks, None)  # type: ignore[arg-type]
    assert [study.place(task) for task in tasks] == [0, 1, 0, 1, 2]


def test_a_target_starts_from_the_trunk_that_was_kept_apart_from_it() -> None:
    tasks: list[Any] = list("abcd")
    pooled = {"first": {"apart": [0, 2]}, "second": {"apart": [2, 4]}}
    study = Study({"draws": [{"count": 4}], "pooled": pooled}, None, tasks, None)  # type: ignore[arg-type]
    found = [study.start(["first", "second"], task) for task in tasks]
    assert found == ["first", "first", "second", "second"]
    assert study.start("first", tasks[3]) == "first"


def test_a_pooled_network_is_there_once_it_was_made_as_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "HERE", tmp_path)
    how = {"start": "magnitude", "apart": [0, 2]}
    study = Study({"pooled": {"first": how}}, None, [], None)  # type: ignore[arg-type]
    write_json(plan.pooled_folder("first") / "network.json", {})
    assert not study.has_pooled("first")  # its row is written last
    for made, expected in (
        ({**how, "steps": 5}, True),
        ({**how, "apart": [0, 1]}, False),
        ({**how, "teach": True}, False),
    ):
        write_json(plan.pooled_row("first"), {"schema": 1, "network_sha256": "a", **made})
        assert study.has_pooled("first") is expected
    elsewhere = Study({}, None, [], None)  # type: ignore[arg-type]
    assert elsewhere.has_pooled("first")  # of another plan, which says how
    (plan.pooled_folder("first") / "network.json").unlink()
    assert not elsewhere.has_pooled("first")
    assert elsewhere.pooled_hash("first") == "a"  # rows that started from it are still current


def test_rows_are_kept_beside_each_other_where_nothing_was_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "HERE", tmp_path)
    task = SimpleNamespace(name="a", classes=("x", "y"), splits={"train": [1, 2]})
    study = Study({"study": "s"}, None, [task], SimpleNamespace(path=tmp_path / "zoo"))  # type: ignore[arg-type, list-item]
    assert study.rows(task) == {}  # type: ignore[arg-type]
    for name, accuracy in (("one", 0.5), ("two", 0.6), ("one", 0.7)):
        keep_row(study, task, name, {"accuracy": accuracy})  # type: ignore[arg-type]
    assert study.rows(task) == {"one": {"accuracy": 0.7}, "two": {"accuracy": 0.6}}  # type: ignore[arg-type]
    facts = study.results.targets()["a"]
    assert (facts["classes"], facts["images"]) == (["x", "y"], {"train": 2})
