"""What a run directory says: its JSON files, read once and checked.

A run directory is the contract between the commands. `prune` writes it, `export` and `bench` add to it,
and nothing outside it is needed to explain the run. Keys that a reader does not know are left alone,
so that a newer writer does not break an older reader; keys that it needs are checked here, and the
error names the file and the key.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mvp_edge_export.bench_result import BenchResult
from mvp_edge_export.bundle import MANIFEST, Manifest
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import Verified, parse


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _File(_Part):
    schema_: Literal[1] = Field(alias="schema")


_Model = TypeVar("_Model", bound=BaseModel)


class BackboneFacts(_Part):
    """The pre-trained network that was pruned."""

    name: str
    architecture: str
    sha256: str
    policy: str
    input_size: int | tuple[int, ...]
    """Pixels of the square input's side, or (channels, height, width)."""

    @property
    def pixels(self) -> int:
        """Pixels of the square input's side."""
        return self.input_size if isinstance(self.input_size, int) else self.input_size[-1]


class Skipped(_Part):
    """An image that could not be used."""

    file: str
    why: str


class TaskFacts(_Part):
    """The images and their classes."""

    name: str
    source: str
    classes: tuple[str, ...]
    images: dict[str, int]
    skipped: tuple[Skipped, ...] = ()


class ProfileFacts(_Part):
    """The device that the network was made for."""

    id: str
    name: str
    sha256: str


class Keep(_Part):
    """The keep ratio: what was asked for, what the zoo has, what was chosen, and why."""

    asked: float | str
    zoo: float | None = None
    chosen: float
    binding: str | None = None
    """The budget that asked for less than the zoo's ratio; None when none did."""
    room: dict[str, Any] | None = None
    """What a larger keep ratio would use of the budgets, when they leave room."""


class Width(_Part):
    """Units of one group."""

    size: int = Field(ge=1)
    kept: int = Field(ge=0)


class Phase(_Part):
    """One phase of the run and its wall time."""

    name: str
    seconds: float = Field(ge=0)


class TrainingFacts(_Part):
    """What the fine-tuning was, and what it cost in multiply-adds."""

    steps: int
    batch: int
    lr: float
    similarity_flops: float = 0
    statistics_flops: float = 0
    training_flops: float
    paper_flops: float | None = None
    """By the paper's own, cheaper rule; beside ours, never instead of it."""
    seconds: float


class RunFile(_File):
    """run.json: what was asked, and what it took."""

    version: str
    created: str
    command: tuple[str, ...]
    seed: int
    backbone: BackboneFacts
    task: TaskFacts
    profile: ProfileFacts
    method: str
    method_reason: str = ""
    keep: Keep
    widths: dict[str, Width]
    phases: tuple[Phase, ...] = ()
    training: TrainingFacts
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str | int | float | None] = Field(default_factory=dict)
    finished: Literal[True]


class SharedMeaning(_Part):
    """A class of ours and the neighbour's class nearest to it."""

    ours: str
    theirs: str
    wup: float
    """Wu–Palmer similarity of the two, 0..1."""


class Neighbour(_Part):
    """A task of the zoo that had a vote."""

    task: str
    score: float
    classes: tuple[str, ...] = ()
    shared: tuple[SharedMeaning, ...] = ()


class Candidate(_Part):
    """A task of the zoo that was compared."""

    task: str
    score: float


class NeighboursFile(_File):
    """neighbours.json: who was asked, and why."""

    similarity: str
    neighbours: tuple[Neighbour, ...]
    candidates: tuple[Candidate, ...] = ()


class GroupVotes(_Part):
    """The votes on the units of one group."""

    name: str
    kind: str
    size: int = Field(ge=1)
    kept: tuple[int, ...]
    votes: tuple[int, ...]
    """One number of votes a unit."""
    drawn: tuple[int, ...] = ()
    """Kept units that no neighbour had kept."""

    @model_validator(mode="after")
    def _consistent(self) -> "GroupVotes":
        if len(self.votes) != self.size:
            raise ValueError(f"{self.name} has {len(self.votes)} votes for {self.size} units")
        if any(not 0 <= unit < self.size for unit in (*self.kept, *self.drawn)):
            raise ValueError(f"{self.name} keeps a unit outside 0..{self.size - 1}")
        return self


class VotesFile(_File):
    """votes.json: what the neighbours had kept, unit by unit."""

    neighbours: tuple[str, ...]
    groups: tuple[GroupVotes, ...]


class Step(_Part):
    """One training step."""

    step: int
    loss: float
    train_accuracy: float | None = None
    units: int | None = None


class Validation(_Part):
    """Top-1 on the validation images after a step, 0..1."""

    step: int
    top1: float


class HistoryFile(_File):
    """history.json: the course of the training."""

    steps: tuple[Step, ...]
    validation: tuple[Validation, ...] = ()


class ClassAccuracy(_Part):
    """Top-1 on the images of one class."""

    name: str = Field(alias="class")
    n: int = Field(ge=0)
    top1: float | None
    """None when the class has no test image."""


class Example(_Part):
    """A test image, small, and what the network said."""

    file: str
    true: str
    predicted: str
    probability: float = Field(ge=0, le=1)
    jpeg_base64: str


class TestFile(_File):
    """test.json: the network on the test images."""

    __test__ = False  # not a pytest class

    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    per_class: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images of the true class (row) that were given the predicted class (column)."""
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> "TestFile":
        classes = len(self.per_class)
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise ValueError(f"confusion is not {classes} × {classes}, the classes of per_class")
        return self


class ReferenceFile(_File):
    """reference.json: the unpruned backbone, fine-tuned on the same task."""

    top1: float = Field(ge=0, le=1)
    steps: int | None = None
    seconds: float | None = None
    training_flops: float | None = None


class LayerFlops(_Part):
    """Multiply-adds of one layer for one image."""

    name: str
    kind: str
    flops: int = Field(ge=0)
    flops_baseline: int | None = None
    """The same layer of the unpruned backbone, if it was counted."""


class LayersFile(_File):
    """layers.json: where the multiply-adds go, in the order of the forward pass."""

    layers: tuple[LayerFlops, ...] = Field(min_length=1)


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
    manifest: Manifest | None
    bench: BenchResult | None

    @property
    def name(self) -> str:
        """The run directory's own name."""
        return self.path.resolve().name


def read_run(path: Path) -> RunResult:
    """Read a finished run directory.

    Raises:
        BadInput: it is not a run directory, the run is not finished, or a file of it is damaged.
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
    run = parse(RunFile, facts, "run", path / "run.json")
    test = _read(path, "test.json", TestFile)
    if len(test.per_class) != len(run.task.classes):
        raise BadInput(
            f"{path / 'test.json'}: per_class has {len(test.per_class)} classes, run.json's task "
            f"{len(run.task.classes)}; prune again"
        )
    verified = Verified.load(path / "verified.json", path / "network.safetensors")
    return RunResult(
        path=path,
        run=run,
        verified=verified,
        test=test,
        neighbours=_optional(path, "neighbours.json", NeighboursFile),
        votes=_optional(path, "votes.json", VotesFile),
        history=_optional(path, "history.json", HistoryFile),
        reference=_optional(path, "reference.json", ReferenceFile),
        layers=_optional(path, "layers.json", LayersFile),
        manifest=_manifest(path, verified),
        bench=_optional(path, "bench.json", BenchResult),
    )


def _read(folder: Path, name: str, model: type[_Model]) -> _Model:
    return parse(model, read_json(folder / name, "run"), "run", folder / name)


def _optional(folder: Path, name: str, model: type[_Model]) -> _Model | None:
    return _read(folder, name, model) if (folder / name).exists() else None


def _manifest(path: Path, verified: Verified) -> Manifest | None:
    """The bundle's manifest, if `export` has made one where it does by default, of these weights."""
    manifest = _optional(path, f"bundle/{MANIFEST}", Manifest)
    if manifest is not None and manifest.weights_sha256 != verified.weights_sha256:
        raise BadInput(
            f"{path / 'bundle' / MANIFEST}: weights_sha256 is not that of verified.json: the bundle "
            "was made from other weights; export again"
        )
    return manifest
