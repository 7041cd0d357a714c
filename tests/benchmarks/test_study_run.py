"""A study from its plan to its rows: a small real backbone, a built zoo, handwritten digits."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.study import peers, pooled
from benchmarks.study import plan as plans
from benchmarks.study.__main__ import main
from benchmarks.study.plan import Study
from benchmarks.study.run import run_variants, state_of
from mvp_edge.methods.mvp import mvp
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge_export.storage import read_json

VARIANTS: dict[str, dict[str, Any]] = {
    "mvp@2": {"method": "mvp", "steps": 2},
    "mvp@2-zoo": {"method": "mvp", "steps": 2, "who": "zoo"},
    "smsp@2": {"method": "smsp", "steps": 2},
    "random@2": {"method": "random", "steps": 2, "targets": 1},
    "trunk@2": {"method": "trunk", "start": "trunk", "steps": 2, "targets": 1},
    "trunk@2-distill": {
        "method": "trunk",
        "start": "trunk",
        "steps": 2,
        "teach": True,
        "targets": 1,
    },
    "small@2": {"method": "pooled", "start": "trunk", "steps": 2, "targets": 1},
    "probe": {"method": "probe", "steps": 0, "targets": 1},
}
PLAN: dict[str, Any] = {
    "study": "digits",
    "backbone": "backbone.json",
    "draws": [{"images": "digits", "count": 4, "classes": 3, "seed": 0}],
    "policy": "tied",
    "keep": 0.5,
    "zoo": "tiny",
    "pooled": {"trunk": {"start": "magnitude", "images": 4, "apart": [0, 1], "steps": 2}},
    "variants": VARIANTS,
}


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks of its own, with the tiny zoo."""
    shutil.copytree(tiny / "zoo", tmp_path / "zoos" / "tiny")
    monkeypatch.setenv("MVP_EDGE_DATA", str(tiny))
    monkeypatch.setattr(plans, "HERE", tmp_path)
    return tmp_path


def opened(here: Path, **changes: Any) -> Study:
    file = here / "plan.yaml"
    file.write_text(yaml.safe_dump({**PLAN, **changes}))
    return Study.open(file)


def test_a_plan_becomes_rows_with_everything_counted(here: Path) -> None:
    study = opened(here)
    first, second, *_ = study.tasks
    pooled.make(study, "trunk")
    made = read_json(here / "results" / "pooled" / "trunk.json", "row")
    others = {name for task in study.tasks[1:] for name in task.classes}
    assert made["classes"] == len(others - set(first.classes))
    for task in (first, second):
        run_variants(study, task)
    rows = study.rows(first)
    assert set(rows) == set(VARIANTS)
    assert set(study.rows(second)) == {"mvp@2", "mvp@2-zoo", "smsp@2"}
    for name, row in rows.items():
        assert 0 <= row["accuracy"] <= 1, name
        parts = ("similarity_flops", "statistics_flops", "training_flops")
        assert row["total_flops"] == sum(row[part] for part in parts), name
        asks = name.startswith(("mvp", "smsp"))
        assert (row["similarity_flops"] > 0) == asks == ("neighbours" in row), name
        assert (row["training_flops"] > 0) == (row["variant"]["steps"] > 0), name
    thin = {rows[name]["forward_flops"] for name in rows if name != "probe"}
    assert len(thin) == 1
    assert rows["probe"]["forward_flops"] > 2 * thin.pop()
    assert rows["trunk@2-distill"]["statistics_flops"] > rows["trunk@2"]["statistics_flops"]
    asked = {one["task"] for one in rows["mvp@2-zoo"]["neighbours"]}
    assert asked == {task.name for task in study.tasks[1:]}
    shutil.rmtree(
        plans.pooled_folder("trunk")
    )  # rows stay current without the network they started from
    assert {state_of(study, first, name) for name in VARIANTS} == {"current"}


def test_a_voted_row_is_the_products_own(here: Path) -> None:
    study = opened(here, variants={"mvp@2-zoo": VARIANTS["mvp@2-zoo"]})
    task = study.tasks[2]
    run_variants(study, task)
    images = task.images("train", study.backbone.preprocess)
    recipe = study.recipe({"method": "mvp", "steps": 2})
    problem = study.problem(images, 3, recipe, 0.5)
    problem = replace(problem, voters=[one.voter(0.5, 0.0) for one in study.entries(task)])
    test = task.images("test", study.backbone.preprocess)
    logits = predict_logits(mvp(problem).model, test.pixels, study.backbone.preprocess)
    assert study.rows(task)["mvp@2-zoo"]["accuracy"] == accuracy(logits, test.labels)


def test_what_is_done_is_not_repeated_until_its_plan_changes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {name: VARIANTS[name] for name in ("mvp@2", "random@2", "trunk@2")}
    study = opened(here, variants=variants)
    run_variants(study, study.tasks[0])
    first = capsys.readouterr().out
    assert "mvp@2" in first
    assert "random@2" in first
    assert "trunk@2 waits for" in first
    before = study.results.path.read_bytes()
    run_variants(study, study.tasks[0], "mvp.*|random.*")
    assert capsys.readouterr().out == ""
    assert study.results.path.read_bytes() == before
    changed = {**variants, "mvp@2": {**variants["mvp@2"], "lr": 0.5}}
    study = opened(here, variants=changed)
    run_variants(study, study.tasks[0], "mvp.*|random.*")
    assert capsys.readouterr().out == f"{study.tasks[0].name}: mvp@2\n"
    assert study.rows(study.tasks[0])["mvp@2"]["lr"] == 0.5


def test_a_word_that_no_variant_may_say_is_refused(here: Path) -> None:
    with pytest.raises(SystemExit, match="mvp@2: unknown neighbors"):
        opened(here, variants={"mvp@2": {"method": "mvp", "steps": 2, "neighbors": 1}})


def test_a_plan_of_trials_is_no_study(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(here, variants={"base": {}})
    monkeypatch.setattr("sys.argv", ["study", str(here / "plan.yaml"), "--list"])
    with pytest.raises(SystemExit, match="base names no method"):
        main()


def test_what_cannot_fit_has_no_row_and_stops_nobody(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"importance": "magnitude", "scope": "local", "rounds": 1}
    cut = {"method": "torch-pruning", "steps": 2, **how}
    study = opened(here, variants={"cut": cut, "random@2": VARIANTS["random@2"]})
    monkeypatch.setattr(peers, "allowed", lambda _problem: 100)
    run_variants(study, study.tasks[0])
    assert "cut has no row: by magnitude, local: no ratio leaves 100" in capsys.readouterr().out
    assert set(study.rows(study.tasks[0])) == {"random@2"}


def test_a_draw_may_have_few_images_to_train_on(here: Path) -> None:
    whole = opened(here).tasks[0]
    study = opened(here, draws=[{**PLAN["draws"][0], "each": 2}])
    few = study.tasks[0]
    assert few.labels("train").tolist() == [0, 0, 1, 1, 2, 2]
    assert set(few.splits["train"]) < set(whole.splits["train"])
    assert [few.splits[one] for one in ("val", "test")] == [
        whole.splits[one] for one in ("val", "test")
    ]
    assert few.name == whole.name not in {entry.name for entry in study.entries(few)}
