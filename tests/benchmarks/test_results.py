"""A study's rows in a JSON-lines file."""

import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.study.results import Results

FACTS: dict[str, Any] = {"classes": ["x", "y"]}


def test_rows_are_sorted_lines_whatever_the_order_they_came_in(tmp_path: Path) -> None:
    one, other = Results(tmp_path / "one.jsonl"), Results(tmp_path / "other.jsonl")
    keys = [("b", "mvp@100"), ("a", "mvp@100"), ("a", "ifp@5"), ("b", "mvp@20")]
    for results, order in ((one, keys), (other, keys[::-1])):
        for target, name in order:
            results.keep(target, name, {"accuracy": 0.1 + 0.2}, FACTS)
    assert one.path.read_bytes() == other.path.read_bytes()
    lines = [json.loads(line) for line in one.path.read_text().splitlines()]
    assert [(line["target"], line.get("name")) for line in lines] == [
        ("a", None), ("a", "ifp@5"), ("a", "mvp@100"), ("b", None), ("b", "mvp@20"), ("b", "mvp@100"),
    ]  # fmt: skip
    assert one.rows() == {target: one.of(target) for target in "ab"}
    assert one.of("a")["ifp@5"] == {"accuracy": 0.1 + 0.2}
    assert one.targets() == {"a": FACTS, "b": FACTS}


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    results = Results(tmp_path / "none.jsonl")
    assert (results.rows(), results.of("a"), results.targets()) == ({}, {}, {})


def test_an_equal_row_changes_nothing_and_another_one_replaces_it(tmp_path: Path) -> None:
    results = Results(tmp_path / "one.jsonl")
    results.keep("a", "mvp@20", {"accuracy": 0.5}, FACTS)
    before = results.path.stat().st_mtime_ns
    results.keep("a", "mvp@20", {"accuracy": 0.5}, {"classes": ["z"]})
    assert results.path.stat().st_mtime_ns == before
    results.keep("a", "mvp@20", {"accuracy": 0.6}, {"classes": ["z"]})
    assert results.rows() == {"a": {"mvp@20": {"accuracy": 0.6}}}
    assert results.targets() == {"a": {"classes": ["z"]}}


def test_the_name_of_a_target_may_begin_with_anothers(tmp_path: Path) -> None:
    results = Results(tmp_path / "one.jsonl")
    for target in ("task-1", "task-10"):
        results.keep(target, "mvp@20", {"from": target}, FACTS)
    assert results.of("task-1") == {"mvp@20": {"from": "task-1"}}


def _add(path: Path, target: str) -> None:
    for number in range(20):
        Results(path).keep(target, f"mvp@{number}", {"accuracy": number / 20}, FACTS)


def test_several_processes_lose_no_row(tmp_path: Path) -> None:
    path, context = tmp_path / "one.jsonl", get_context("spawn")
    processes = [context.Process(target=_add, args=(path, target)) for target in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {target: len(rows) for target, rows in Results(path).rows().items()} == {
        "a": 20,
        "b": 20,
        "c": 20,
    }
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["one.jsonl"]
