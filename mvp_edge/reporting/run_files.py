"""The JSON files of a run directory, as `prune` writes them.

Keys that a reader does not know are left alone, so that a newer writer does not break an older reader;
keys that it needs are checked, and the error names the file and the key. Files of other commands
(verified.json, the bundle's manifest, bench.json) have their models with their writers.
"""

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """A JSON object: frozen, unknown keys left alone, no NaN."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class RunJson(Part):
    """A whole file, which says the version of its format."""

    schema_: Literal[1] = Field(alias="schema")


class BackboneFacts(Part):
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


class Skipped(Part):
    """An image that could not be used."""

    file: str
    why: str


class TaskFacts(Part):
    """The images and their classes."""

    name: str
    source: str
    classes: tuple[str, ...]
    images: dict[str, int]
    skipped: tuple[Skipped, ...] = ()


class ProfileFacts(Part):
    """The device that the network was made for."""

    id: str
    name: str
    sha256: str


class Keep(Part):
    """The keep ratio: what was asked for, what the zoo has, what was chosen, and why."""

    asked: float | str
    zoo: float | None = None
    chosen: float
    binding: str | None = None
    """The budget that asked for less than the zoo's ratio; None when none did."""
    room: dict[str, Any] | None = None
    """What a larger keep ratio would use of the budgets, when they leave room."""


class Width(Part):
    """Units of one group."""

    size: int = Field(ge=1)
    kept: int = Field(ge=0)


class Phase(Part):
    """One phase of the run and its wall time."""

    name: str
    seconds: float = Field(ge=0)


class TrainingFacts(Part):
    """What the fine-tuning was, and what it cost in multiply-adds."""

    steps: int
    batch: int
    updates: int = 1
    """Updates a step, each on an equal share of the batch."""
    lr: float
    augmented: tuple[str, ...] | None = None
    """What was done to the images (nothing: they were seen as they are); None where the run does not say."""
    similarity_flops: float = 0
    statistics_flops: float = 0
    training_flops: float
    paper_flops: float | None = None
    """By the paper's own, cheaper rule; beside ours, never instead of it."""
    seconds: float


class RunFile(RunJson):
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
    machine: dict[str, str | int | float | list[str] | None] = Field(default_factory=dict)
    finished: Literal[True]


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


class Candidate(Part):
    """A task of the zoo that was compared."""

    task: str
    score: float


class NeighboursFile(RunJson):
    """neighbours.json: who was asked, and why."""

    similarity: str
    neighbours: tuple[Neighbour, ...]
    candidates: tuple[Candidate, ...] = ()


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
    def _consistent(self) -> "GroupVotes":
        if len(self.votes) != self.size:
            raise ValueError(f"{self.name} has {len(self.votes)} votes for {self.size} units")
        if any(not 0 <= unit < self.size for unit in (*self.kept, *self.drawn)):
            raise ValueError(f"{self.name} keeps a unit outside 0..{self.size - 1}")
        return self


class VotesFile(RunJson):
    """votes.json: what the neighbours had kept, unit by unit."""

    neighbours: tuple[str, ...]
    tau: float = Field(ge=0)
    """Temperature of the draw; 0: those with most votes were kept."""
    groups: tuple[GroupVotes, ...]

    @model_validator(mode="after")
    def _as_many_as_voters(self) -> "VotesFile":
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
    train_accuracy: float | None = None
    units: int | None = None


class Validation(Part):
    """Top-1 on the validation images after a step, 0..1."""

    step: int
    top1: float


class HistoryFile(RunJson):
    """history.json: the course of the training."""

    steps: tuple[Step, ...]
    validation: tuple[Validation, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> "HistoryFile":
        numbers = [step.step for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise([0, *numbers])):
            raise ValueError("steps are not numbered upwards from 1")
        return self


class ClassAccuracy(Part):
    """Top-1 on the images of one class."""

    name: str = Field(alias="class")
    n: int = Field(ge=0)
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


class ReferenceFile(RunJson):
    """reference.json: the unpruned backbone, fine-tuned on the same task."""

    top1: float = Field(ge=0, le=1)
    steps: int | None = None
    seconds: float | None = None
    training_flops: float | None = None


class LayerFlops(Part):
    """Multiply-adds of one layer for one image."""

    name: str
    kind: str
    flops: int = Field(ge=0)
    flops_baseline: int | None = None
    """The same layer of the unpruned backbone, if it was counted."""


class LayersFile(RunJson):
    """layers.json: where the multiply-adds go, in the order of the forward pass."""

    layers: tuple[LayerFlops, ...] = Field(min_length=1)
