"""The schemas of JSON files: light to import, strict on what they use, patient with what they do not know."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvp_edge.runs.files import PrunedFile, SizingFile, VotesFile
from mvp_edge.runs.run_file import BegunRun, Outcome, RunFile
from mvp_edge_export.errors import BadInput
from tests.support.run_fixture import write_run


def test_reading_needs_no_torch() -> None:
    modules = (
        "mvp_edge.runs.files",
        "mvp_edge.runs.choice",
        "mvp_edge.zoo.entries",
        "mvp_edge.reporting",
    )
    asks = "import sys; assert not {'torch', 'timm', 'onnx'} & set(sys.modules), sys.modules.keys()"
    code = "\n".join([*(f"import {name}" for name in modules), asks])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_keys_are_ignored_and_not_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "votes.json"
    content = json.loads(path.read_text())
    content["groups"][0]["colour"] = content["colour"] = "red"
    path.write_text(json.dumps(content))
    VotesFile.load(run).save(run)
    assert "colour" not in path.read_text()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "pruned.json:1 is not JSON"),
        ("[]", "pruned.json: the document"),
        ('{"scores": {}}', "pruned.json: schema (missing) is unknown"),
        ('{"schema": 2}', "pruned.json: schema 2 is unknown"),
        ('{"schema": 1}', "pruned.json: synsets: Field required (and 3 more)"),
        ('{"schema": 1, "synsets": [], "scores": {"val": NaN}}', "pruned.json: scores.val"),
    ],
)
def test_a_wrong_file_is_one_line(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "pruned.json").write_text(content)
    with pytest.raises(BadInput) as caught:
        PrunedFile.load(tmp_path)
    assert told in str(caught.value)


def test_a_run_is_begun_and_finished(tmp_path: Path) -> None:
    """The facts of a finished run are those it began with and its outcome."""
    run = write_run(tmp_path / "run")
    finished = RunFile.load(run)
    begun = BegunRun.load(run).model_copy(update={"finished": False})
    outcome = Outcome.model_validate(finished.model_dump(by_alias=True))
    assert RunFile.of(begun, outcome) == finished
    begun.save(run)
    assert not BegunRun.load(run).finished
    with pytest.raises(BadInput, match=r"run\.json: finished: Input should be True"):
        RunFile.load(run)


def test_a_sizing_names_a_round_and_a_measurement_that_exist(tmp_path: Path) -> None:
    content = {"schema": 1, "rounds": [], "chosen": 0}
    (tmp_path / "sizing.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="chosen is 0, but there are 0 rounds"):
        SizingFile.load(tmp_path)
