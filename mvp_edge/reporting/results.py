"""What a run directory says: its files, read once and held against one another.

A run directory is the contract between the commands. `prune` makes it, `export` and `bench` add to it,
and nothing outside it is needed to explain the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from mvp_edge.reporting.run_files import (
    HistoryFile,
    LayersFile,
    NeighboursFile,
    ReferenceFile,
    RunFile,
    TestFile,
    VotesFile,
)
from mvp_edge.runs.choice import FILE, Front
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import MANIFEST, Manifest, read_manifest
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import Verified, parse

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class RunResult:
    """Everything that a finished run directory says. What was not done yet is None."""

    path: Path
    run: RunFile
    verified: Verified
    test: TestFile
    neighbours: NeighboursFile | None
    votes: VotesFile | None
    history: HistoryFile | None
    reference: ReferenceFile | None
    layers: LayersFile | None
    front: Front | None
    manifest: Manifest | None
    bench: BenchResult | None

    @property
    def name(self) -> str:
        """The run directory's own name."""
        return self.path.resolve().name


def read_run(path: Path) -> RunResult:
    """Read a finished run directory.

    Raises:
        BadInput: it is not a run directory, the run is not finished, or a file of it is damaged or
            belongs to another run.
    """
    if not (path / "run.json").is_file():
        raise BadInput(
            f"{path} is not a run directory: run.json is missing; `mvp-edge prune` makes one"
        )
    facts = read_json(path / "run.json", "run")
    if isinstance(facts, dict) and facts.get("finished") is False:
        # Most of its keys are written last, so this comes before they are asked for.
        raise BadInput(
            f"run {path} is not finished: give the same prune command again and it goes on"
        )
    result = RunResult(
        path=path,
        run=parse(RunFile, facts, "run", path / "run.json"),
        verified=Verified.load(path / "verified.json", path / "network.safetensors"),
        test=_read(path, "test.json", TestFile),
        neighbours=_optional(path, "neighbours.json", NeighboursFile),
        votes=_optional(path, "votes.json", VotesFile),
        history=_optional(path, "history.json", HistoryFile),
        reference=_optional(path, "reference.json", ReferenceFile),
        layers=_optional(path, "layers.json", LayersFile),
        manifest=read_manifest(path / "bundle") if (path / "bundle" / MANIFEST).exists() else None,
        front=_optional(path, FILE, Front),
        bench=_optional(path, "bench.json", BenchResult),
    )
    for name, mistake in _contradictions(result):
        raise BadInput(f"run: {path / name}: {mistake}")
    return result


def _contradictions(result: RunResult) -> Iterator[tuple[str, str]]:
    """Files that are sound but do not belong together, with what to do."""
    verified, test, manifest, bench = result.verified, result.test, result.manifest, result.bench
    classes = len(result.run.task.classes)
    if len(test.per_class) != classes:
        yield (
            "test.json",
            f"per_class has {len(test.per_class)} classes, the task {classes}; prune again",
        )
    if abs(verified.accuracy - test.top1) > 1e-6:
        yield (
            "test.json",
            f"top1 {test.top1} is not verified.json's {verified.accuracy}; prune again",
        )
    if not verified.cost_baseline.flops or not verified.cost_baseline.params:
        yield "verified.json", "cost_baseline: flops or params is 0; prune again"
    if manifest is not None and manifest.weights_sha256 != verified.weights_sha256:
        yield f"bundle/{MANIFEST}", "weights_sha256 is not verified.json's; export again"
    if bench is None:
        return
    if any(cell.latency.min <= 0 for cell in bench.cells):
        yield "bench.json", "cells: a latency is not above 0; bench again"
    if manifest is not None:
        # A choice after the measurement removes files; it changes none.
        timed = bench.fingerprint.get("models", {})
        if any(timed.get(name) != file.sha256 for name, file in manifest.files.items()):
            yield (
                "bench.json",
                "fingerprint.models: other files than the bundle's were timed; bench again",
            )


def _read(folder: Path, name: str, model: type[_Model]) -> _Model:
    return parse(model, read_json(folder / name, "run"), "run", folder / name)


def _optional(folder: Path, name: str, model: type[_Model]) -> _Model | None:
    return _read(folder, name, model) if (folder / name).exists() else None
