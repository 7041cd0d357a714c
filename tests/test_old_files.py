"""Files that version 0.1.0 wrote (tests/data/version-0.1.0) are read by every later version.

The same files serve to break one value after another: whatever is wrong in a JSON file, the reader says it in
one line that names the file, and never fails with another exception.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mvp_edge.reporting import report
from mvp_edge.reporting.results import read_run
from mvp_edge.runs.choice import Front
from mvp_edge.runs.deliver import export
from mvp_edge.runs.files import (
    HistoryFile,
    LayersFile,
    NeighboursFile,
    PrunedFile,
    ReferenceFile,
    TaskFile,
    TestFile,
    VotesFile,
)
from mvp_edge.runs.run import Run
from mvp_edge.runs.run_file import BegunRun, RunFile, RunJson
from mvp_edge.schema import JsonFile
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.network import Network, NetworkFile
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Zoo, origin
from mvp_edge.zoo.files import EntryFile, ZooFile
from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import read_manifest
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import Verified, parse
from tests.support.tiny import command

OLD = Path(__file__).parent / "data" / "version-0.1.0"
RUNS = ("mvp", "taught", "front")
ENTRY = "digits-3c-s0-000"
WRITTEN: tuple[type[RunJson], ...] = (
    *(RunFile, TaskFile, HistoryFile, PrunedFile, TestFile, LayersFile, NeighboursFile, VotesFile),
    *(ReferenceFile, Front),
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old files to work in."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


# Runs.


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_loaded_and_reported(name: str, old: Path) -> None:
    run = Run.load(old / "runs" / name)
    assert run.network.module() is not None
    assert f"{100 * run.verified.accuracy:.1f} % top-1" in repr(run)
    page = report([run.path]).read_text(encoding="utf-8")
    assert "taught" not in page.replace("runs/taught", "").replace("--method taught", "").replace(
        "run <bdi>taught</bdi>", ""
    )
    if name == "taught":
        assert read_run(run.path).run.method == "distill"
        assert "DISTILL" in page
    if name == "mvp":  # its bench results are in the page
        assert "Latency of one image" in page


def test_old_runs_are_compared(old: Path) -> None:
    page = report([old / "runs" / name for name in RUNS], old / "page.html")
    assert "DISTILL, 20 steps" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_an_old_file_is_written_again_as_it_was(name: str, old: Path) -> None:
    """Keys and values of the run's files are still those of version 0.1.0, but for the renamed method."""
    run = old / "runs" / name
    for file in WRITTEN:
        path = run / file.file_name
        if path.exists():
            before = path.read_text(encoding="utf-8").replace(
                '"method": "taught"', '"method": "distill"'
            )
            file.load(run).save(run)
            assert path.read_text(encoding="utf-8") == before


def test_the_files_of_an_old_zoo_are_written_again_as_they_were(old: Path) -> None:
    files: dict[str, type[JsonFile]] = {
        "zoo.json": ZooFile,
        "entry.json": EntryFile,
        "network.json": NetworkFile,
    }
    for name, file in files.items():
        for path in old.rglob(name):
            before = json.loads(path.read_text(encoding="utf-8").replace('"taught"', '"distill"'))
            file.read(path).write(path)
            assert json.loads(path.read_text(encoding="utf-8")) == before


def test_an_unfinished_old_run_is_recognised_by_its_new_method(old: Path) -> None:
    path = old / "runs" / "taught" / "run.json"
    facts = json.loads(path.read_text()) | {"finished": False}
    path.write_text(json.dumps(facts))
    begun = BegunRun.load(path.parent)
    assert (begun.arguments["method"], begun.identity["method"]) == ("distill", "distill")


def test_an_old_run_is_exported(place: Path) -> None:
    run = Path(shutil.copytree(OLD / "runs" / "taught", place / "runs" / "taught"))
    for path in run.glob("*.json"):
        path.write_text(path.read_text().replace("/data/shop", str(place)))
    # The images of the old run were made as those of `place` are; only their place and times differ.
    before, task = TaskFile.load(run), Task.open(place / "task")
    now = TaskFile.model_validate(task.to_json())
    assert {s: {c: [*f] for c, f in of.items()} for s, of in before.splits.items()} == {
        s: {c: [*f] for c, f in of.items()} for s, of in now.splits.items()
    }
    now.save(run)
    bundle = export(run, formats=("onnx",), precisions=("fp32",))
    assert bundle.labels == ("eight", "nine", "seven")


def test_an_old_bundle_is_loaded() -> None:
    bundle = load_bundle(OLD / "runs" / "mvp" / "bundle")
    assert bundle.labels == ("eight", "nine", "seven")


# Zoos.


def test_an_old_zoo_is_listed_shown_and_verified(old: Path) -> None:
    listed = command("zoo", "list", "zoo", cwd=old)
    assert listed.code == 0, listed.err
    assert f"{ENTRY:<28}  88.9 %  distill@10" in listed.out
    assert "trunk, keep 0.5" in listed.out
    shown = command("zoo", "show", "zoo", ENTRY, "--json", cwd=old)
    assert json.loads(shown.out)["recipe"]["method"] == "distill"
    for zoo in ("zoo", "snapshots"):
        verified = command("zoo", "verify", zoo, cwd=old)
        assert verified.code == 0, verified.err
        assert "1 entries are sound" in verified.out


def test_an_old_snapshot_votes() -> None:
    entry = Zoo.open(OLD / "snapshots").entry(ENTRY)
    assert entry.snapshots == ("0.6",)
    widths = [len(entry.voter(keep).kept["layer4.stream"]) for keep in (entry.keep, 0.6)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("method", ["mvp", "trunk"])
def test_a_network_is_pruned_from_an_old_zoo(method: str, place: Path) -> None:
    shutil.copytree(OLD, place / "old")
    asked = ("--neighbours", "1") if method == "mvp" else ()
    done = command(
        "prune", "--device", "old/board.yaml", "--task", "task", "--zoo", "old/zoo", "--method", method,
        *asked, "--steps", "1", "--out", "run", "--add-to-zoo", cwd=place,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Zoo.open(place / "old/zoo").names() == [ENTRY, "task"]
    if method == "mvp":
        assert VotesFile.load(place / "run").neighbours == (ENTRY,)


# Broken values.


def _profile(path: Path) -> object:
    return parse(DeviceProfile, read_json(path, "run"), "run", path)


def _task(path: Path) -> object:
    file = TaskFile.read(path)
    with suppress(BadInput):  # its path was replaced, so the fingerprint is another
        Task.from_json(file.model_dump(mode="json", by_alias=True))
    return file


def _zoo(path: Path) -> object:
    zoo = Zoo.open(path.parent)
    return zoo, repr(zoo), zoo.backbone_source, zoo.input_size


def _entry(path: Path) -> object:
    zoo = Zoo.open(path.parents[2])
    found = [*zoo.entries(), *zoo.trunks()]
    return [(one.voter(0.6), one.recipe["steps"], origin(one)) for one in found]


READERS: dict[str, Callable[[Path], object]] = {
    "runs/mvp/run.json": lambda path: read_run(path.parent),
    "runs/mvp/task.json": _task,
    "runs/mvp/profile.json": _profile,
    "runs/mvp/neighbours.json": lambda path: read_run(path.parent),
    "runs/mvp/votes.json": lambda path: read_run(path.parent),
    "runs/mvp/history.json": lambda path: read_run(path.parent),
    "runs/mvp/pruned.json": PrunedFile.read,
    "runs/mvp/reference.json": lambda path: read_run(path.parent),
    "runs/mvp/test.json": lambda path: read_run(path.parent),
    "runs/mvp/layers.json": lambda path: read_run(path.parent),
    "runs/mvp/network.json": lambda path: Network.load(path.parent).module(),
    "runs/mvp/verified.json": lambda path: Verified.load(path, path.parent / "network.safetensors"),
    "runs/mvp/bench.json": lambda path: parse(BenchResult, read_json(path, "bench"), "bench", path),
    "runs/mvp/bundle/manifest.json": lambda path: read_manifest(path.parent),
    "runs/front/front.json": lambda path: Front.load(path.parent).caption,
    "zoo/zoo.json": _zoo,
    f"zoo/entries/{ENTRY}/entry.json": _entry,
    f"zoo/entries/{ENTRY}/network.json": lambda path: Network.load(path.parent).module(),
    "zoo/trunks/0.5/entry.json": _entry,
    f"snapshots/entries/{ENTRY}/entry.json": _entry,
    "backbone.json": lambda path: load_backbone(str(path)),
}
SAME_KIND = {
    "runs/taught",
    "runs/front",
    "snapshots/zoo.json",
    "0.6/network.json",
    "trunks/0.5/network.json",
}
"""Files with the same keys as one that is broken here."""


def test_every_kind_of_file_is_broken() -> None:
    names = [str(path.relative_to(OLD)) for path in sorted(OLD.rglob("*.json"))]
    assert [n for n in names if n not in READERS and not any(s in n for s in SAME_KIND)] == [
        f"snapshots/entries/{ENTRY}/network.json"
    ]


def places(value: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key of a JSON value, and the first item of every list."""
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value[:1])
    for key, below in inside:
        yield (*way, key)
        yield from places(below, (*way, key))


def others(value: Any) -> Iterator[Any]:
    """Values of other types."""
    yield "many" if isinstance(value, int | float) else 7
    if value is not None:
        yield None
    yield {"a": []} if not isinstance(value, dict) else [[]]


def broken(content: Any) -> Iterator[tuple[str, Any]]:
    """The content without one key, or with one value of another type; and what was done."""
    for way in places(content):
        spoilt = copy.deepcopy(content)
        at = spoilt
        for key in way[:-1]:
            at = at[key]
        value = at[way[-1]]
        for other in others(value):
            at[way[-1]] = other
            yield f"{way} is {other!r}", spoilt
        del at[way[-1]]
        yield f"{way} is missing", spoilt


@pytest.mark.parametrize("name", READERS)
def test_one_broken_value_is_one_line(name: str, old: Path) -> None:
    path, read = old / name, READERS[name]
    content = json.loads(path.read_text(encoding="utf-8"))
    read(path)
    refused = {}
    for what, spoilt in broken(content):
        path.write_text(json.dumps(spoilt), encoding="utf-8")
        try:
            read(path)
        except BadInput as error:
            refused[what] = str(error)
    assert not [what for what, line in refused.items() if "\n" in line]
    assert len(refused) > len(content)


def test_the_line_names_the_file_and_the_key(old: Path) -> None:
    path = old / "runs" / "mvp" / "run.json"
    content = json.loads(path.read_text())
    content["training"]["steps"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput) as caught:
        report([path.parent])
    assert str(caught.value).startswith(f"run: {os.fspath(path)}: training.steps: Input should be")
