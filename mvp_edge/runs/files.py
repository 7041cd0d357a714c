"""The JSON files of a run directory: one pydantic model per file, for writing and reading.

    run.json          BegunRun while the run is unfinished, RunFile when it is finished: in run_file.py
    task.json         TaskFile            the classes and which image is in which split
    sizing.json       SizingFile          networks that were timed to meet a latency budget
    neighbours.json   NeighboursFile      the zoo's tasks that vote
    votes.json        VotesFile           the votes on every unit
    history.json      HistoryFile         the training curve
    pruned.json       PrunedFile          scores and costs of the pruned network
    reference.json    ReferenceFile       the fine-tuned unpruned backbone
    test.json         TestFile            accuracy on the test images
    layers.json       LayersFile          multiply-adds of every layer

Four more files have their models elsewhere: front.json (`mvp_edge.runs.choice.Front`), and in the export
package profile.json (`DeviceProfile`), verified.json (`Verified`) and bench.json (`BenchResult`).
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, field_serializer, field_validator, model_validator

from mvp_edge.runs.run_file import Flops, RunJson, Skipped, TrainingFacts
from mvp_edge.schema import Part
from mvp_edge_export.measuring.result import Cell


class TaskFile(RunJson):
    """task.json: the task exactly as it was split, so that later commands use the same images."""

    file_name: ClassVar[str] = "task.json"

    name: str
    source: str
    seed: int
    classes: tuple[str, ...]
    origin: dict[str, str]
    """Split → how its images were chosen."""
    splits: dict[Literal["train", "val", "test"], dict[str, dict[str, str]]]
    """Split → class → file → "bytes stamp"."""
    skipped: tuple[Skipped, ...]
    fingerprint: str
    """The hash of the splits."""

    @field_validator("splits", mode="after")
    @classmethod
    def _whole(cls, splits: dict[str, Any]) -> dict[str, Any]:
        if missing := {"train", "val", "test"} - splits.keys():
            raise ValueError(f"{min(missing)} is missing")
        return splits


class SizingRound(Part):
    """One network that was timed before the training."""

    widths: dict[str, int]
    keep: float
    factors: dict[str, float]
    """Latency law → measured by predicted, as known before this round."""
    predicted: dict[str, float | None]
    measured: tuple[Cell, ...] = Field(min_length=1)
    best: int = Field(ge=0)
    """Index of the fastest measurement."""
    used: float
    """The latency as a share of the budget."""

    @field_validator("measured", mode="before")
    @classmethod
    def _without_processes(cls, cells: Any) -> Any:
        if not isinstance(cells, list):
            return cells
        return [{**cell, "processes": ()} if isinstance(cell, dict) else cell for cell in cells]

    @field_serializer("measured")
    def _summaries(self, cells: tuple[Cell, ...]) -> list[dict[str, Any]]:
        return [cell.model_dump(mode="json", exclude={"processes"}) for cell in cells]

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.best >= len(self.measured):
            raise ValueError(f"best is {self.best}, but {len(self.measured)} were measured")
        return self


class SizingFile(RunJson):
    """sizing.json: how the widths were found that meet a latency budget."""

    file_name: ClassVar[str] = "sizing.json"

    rounds: tuple[SizingRound, ...]
    chosen: int = Field(ge=0)
    """Index of the round whose widths were taken."""

    @model_validator(mode="after")
    def _chosen_is_a_round(self) -> Self:
        if self.chosen >= len(self.rounds):
            raise ValueError(f"chosen is {self.chosen}, but there are {len(self.rounds)} rounds")
        return self

    @property
    def choice(self) -> SizingRound:
        """The round whose widths were taken."""
        return self.rounds[self.chosen]


class SharedMeaning(Part):
    """A class of ours and the neighbour's class nearest to it."""

    ours: str
    theirs: str
    wup: float
    """Wu–Palmer similarity of the two, 0..1."""


class Neighbour(Part):
    """A task of the zoo that had a vote."""

    task: str
    score: float
    classes: tuple[str, ...] = ()
    shared: tuple[SharedMeaning, ...] = ()


class RankedTask(Part):
    """A task of the zoo that was compared with the new one."""

    task: str
    score: float


class NeighboursFile(RunJson):
    """neighbours.json: the zoo's tasks that vote, and the ranking that they were taken from."""

    file_name: ClassVar[str] = "neighbours.json"

    similarity: str
    neighbours: tuple[Neighbour, ...]
    candidates: tuple[RankedTask, ...] = ()
    weights: dict[str, str] = Field(default_factory=dict)
    """Neighbour → sha256 of its weights."""
    flops: Flops = 0
    """Multiply-adds that the ranking cost."""

    @property
    def scores(self) -> dict[str, float]:
        """Neighbour → its similarity to the new task."""
        return {one.task: one.score for one in self.neighbours}


class GroupVotes(Part):
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
    def _consistent(self) -> Self:
        if len(self.votes) != self.size:
            raise ValueError(f"{self.name} has {len(self.votes)} votes for {self.size} units")
        if any(not 0 <= unit < self.size for unit in (*self.kept, *self.drawn)):
            raise ValueError(f"{self.name} keeps a unit outside 0..{self.size - 1}")
        return self


class VotesFile(RunJson):
    """votes.json: what the neighbours had kept, unit by unit."""

    file_name: ClassVar[str] = "votes.json"

    neighbours: tuple[str, ...]
    tau: float = Field(ge=0)
    """Temperature of the random selection; 0: the units with most votes were kept."""
    groups: tuple[GroupVotes, ...]

    @model_validator(mode="after")
    def _as_many_as_voters(self) -> Self:
        for group in self.groups:
            if any(not 0 <= votes <= len(self.neighbours) for votes in group.votes):
                raise ValueError(
                    f"{group.name} has units with other than 0..{len(self.neighbours)} votes"
                )
        return self


class Step(Part):
    """One training step."""

    step: int
    loss: float
    lr: float | None = None
    train_accuracy: float | None = None
    """Share of the batch that was classified correctly, 0..1."""
    units: int | None = None
    """Units that the network had."""


class Validation(Part):
    """Top-1 on the validation images after a step, 0..1."""

    step: int
    top1: float


class HistoryFile(RunJson):
    """history.json: the training curve."""

    file_name: ClassVar[str] = "history.json"

    steps: tuple[Step, ...]
    validation: tuple[Validation, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        numbers = [step.step for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise([0, *numbers])):
            raise ValueError("steps are not numbered upwards from 1")
        return self


class PrunedFile(RunJson):
    """pruned.json: what pruning and fine-tuning gave; written last, after the network's files are complete."""

    file_name: ClassVar[str] = "pruned.json"

    synsets: tuple[str, ...]
    """WordNet synsets of the classes; empty if not every class has one."""
    scores: dict[str, float]
    """Split → top-1, 0..1."""
    costs: dict[str, int]
    """Multiply-adds of a forward pass, parameters, multiply-adds of the statistics and the training."""
    training: TrainingFacts


class ClassAccuracy(Part):
    """Top-1 on the images of one class."""

    name: str = Field(validation_alias=AliasChoices("class", "name"), serialization_alias="class")
    n: int = Field(ge=0)
    """Test images of the class."""
    top1: float | None
    """None when the class has no test image."""


class Example(Part):
    """A test image, small, and what the network said."""

    file: str
    true: str
    predicted: str
    probability: float = Field(ge=0, le=1)
    jpeg_base64: str


class TestFile(RunJson):
    """test.json: the network on the test images."""

    __test__ = False  # not a pytest class
    file_name: ClassVar[str] = "test.json"

    split: str = "test"
    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    per_class: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images of the true class (row) that were given the predicted class (column)."""
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Self:
        classes = len(self.per_class)
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise ValueError(f"confusion is not {classes} × {classes}, the classes of per_class")
        return self


class ReferenceFile(RunJson):
    """reference.json: the unpruned backbone, fine-tuned on the same task."""

    file_name: ClassVar[str] = "reference.json"

    top1: float = Field(ge=0, le=1)
    """On the test images."""
    n: int | None = None
    """Test images."""
    validation: float | None = Field(default=None, ge=0, le=1)
    """Top-1 on the validation images; None if the task has none."""
    steps: int | None = None
    training_flops: Flops | None = None
    seconds: float | None = None


class LayerFlops(Part):
    """Multiply-adds of one layer for one image."""

    name: str
    kind: str
    flops: int = Field(ge=0)
    params: int | None = None
    output_shape: tuple[int, ...] = ()
    flops_baseline: int | None = None
    """Multiply-adds of the same layer of the unpruned backbone, if it was counted."""


class LayersFile(RunJson):
    """layers.json: the multiply-adds of every layer, in the order of the forward pass."""

    file_name: ClassVar[str] = "layers.json"

    layers: tuple[LayerFlops, ...] = Field(min_length=1)
