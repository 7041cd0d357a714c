"""What is on disk is whole or absent."""

import os
import time
from pathlib import Path

import pytest

from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_directory, atomic_file, read_json, write_json


class Stopped(Exception):
    """Somebody stops us."""


def stopped_after(text: str, into: Path) -> None:
    into.write_text(text)
    raise Stopped


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_stopped_writer_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(Stopped), atomic_file(tmp_path / "a.json") as partial:
        stopped_after("half", partial)
    assert read_json(tmp_path / "a.json", "a") == {"old": 1}
    assert names(tmp_path) == {"a.json"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json", "a") == {"old": 1}


def test_a_directory_is_replaced_whole_and_only_with_force(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    for content in ("one", "two"):
        with atomic_directory(place, force=content == "two") as partial:
            (partial / content).write_text(content)
    assert names(place) == {"two"}
    with pytest.raises(BadInput, match="exists"), atomic_directory(place):
        pass
    with pytest.raises(Stopped), atomic_directory(place, force=True) as partial:
        stopped_after("three", partial / "three")
    assert names(place) == {"two"}
    assert names(tmp_path) == {"bundle"}


def test_what_a_killed_process_left_goes_after_a_day_and_nothing_else_does(tmp_path: Path) -> None:
    mine = (".bundle.notes", ".bundle2.partial-x", "other")
    left = (".bundle.partial-dead", ".bundle.partial-alive")
    for name in (*mine, *left):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    long_ago = time.time() - 100_000
    for name in (*mine, left[0]):
        os.utime(tmp_path / name, (long_ago, long_ago))
    with atomic_directory(tmp_path / "bundle") as partial:
        (partial / "file").write_text("content")
    assert names(tmp_path) == {*mine, left[1], "bundle"}
