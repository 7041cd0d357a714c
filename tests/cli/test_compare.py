"""`bench --compare`: one command for measuring and for holding two measurements against each other."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mvp_edge.cli.main import cli
from tests.support.run_fixture import edit, write_run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bench.json of one machine."""
    folder = tmp_path_factory.mktemp("results")
    found = []
    for name in ("a", "b"):
        write_run(folder / name)
        found.append(folder / name / "bench.json")
    edit(found[1], "cells.0.latency.p50", 1.0)
    edit(found[1], "cells.0.latency.p50_interval", [0.99, 1.01])
    return found[0], found[1]


def test_speed_ups_as_json_and_as_a_table(results: tuple[Path, Path]) -> None:
    words = ["bench", "--compare", *map(str, results)]
    facts = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
    before = json.loads(results[0].read_text())["cells"][0]["latency"]["p50"]
    assert facts["changes"][0]["speedup"] == pytest.approx(before)
    assert facts["changes"][0]["word"] == "faster"
    shown = CliRunner().invoke(cli, words)
    assert "alike" in shown.stdout
    assert "changed between them: nothing" in shown.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "BUNDLE"),
        (("--force-different",), "belongs to --compare"),
        (("bundle", "--compare", "a", "b"), "leave out BUNDLE"),
        (("--full", "--compare", "a", "b"), "leave out --full"),
        (("--compare", "a"), "--compare"),
    ],
)
def test_what_does_not_go_together(words: tuple[str, ...], said: str) -> None:
    ended = CliRunner().invoke(cli, ["bench", *words])
    assert ended.exit_code == 2
    assert said in ended.stderr
