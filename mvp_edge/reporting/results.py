"""The content of a run directory: its files, read once and checked against one another.

`prune` makes a run directory, `export` and `bench` add to it, and the report needs nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mvp_edge.runs.choice import Front
from mvp_edge.runs.files import (
    HistoryFile,
    LayersFile,
    NeighboursFile,
    ReferenceFile,
    TestFile,
    VotesFile,
)
from mvp_edge.runs.run_file import BegunRun, RunFile
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import MANIFEST, Manifest, read_manifest
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import Verified, parse


@dataclass(frozen=True)
class RunResult:
    """Everything in a finished run directory. What was not done yet is None."""

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
    if not BegunRun.load(path).finished:
        raise BadInput(f"run {path} is not finished: repeat its prune command to resume it")
    bench = path / "bench.json"
    result = RunResult(
        path=path,
        run=RunFile.load(path),
        verified=Verified.load(path / "verified.json", path / "network.safetensors"),
        test=TestFile.load(path),
        neighbours=NeighboursFile.load_if_there(path),
        votes=VotesFile.load_if_there(path),
        history=HistoryFile.load_if_there(path),
        reference=ReferenceFile.load_if_there(path),
        layers=LayersFile.load_if_there(path),
        manifest=read_manifest(path / "bundle") if (path / "bundle" / MANIFEST).exists() else None,
        front=Front.load_if_there(path),
        bench=parse(BenchResult, read_json(bench, "run"), "run", bench) if bench.exists() else None,
    )
    for name, mistake in _contradictions(result):
        raise BadInput(f"run: {path / name}: {mistake}")
    return result


def _contradictions(result: RunResult) -> Iterator[tuple[str, str]]:
    """Files that are valid but contradict one another: file, what is wrong and what to do."""
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
