"""run.json: what was asked of a run, on which machine, and, once it is finished, what came of it."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from mvp_edge.methods.names import current_name
from mvp_edge.schema import JsonFile, MethodName, Part

Flops = int | float
"""Multiply-adds."""


class RunJson(JsonFile):
    """A JSON file of a run directory, under the name that it always has there."""

    kind: ClassVar[str] = "run"
    file_name: ClassVar[str]

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read it from a run directory; BadInput says which key of which file is wrong."""
        return cls.read(run / cls.file_name)

    @classmethod
    def load_if_there(cls, run: Path) -> Self | None:
        """Read it from a run directory; None where the run has no such file."""
        return cls.load(run) if (run / cls.file_name).exists() else None

    def save(self, run: Path) -> None:
        """Write it into a run directory."""
        self.write(run / self.file_name)


class Phase(Part):
    """One phase of the run and its wall time."""

    name: str
    seconds: float = Field(ge=0)


class BegunRun(RunJson):
    """run.json from the first moment: what was asked, and by which software on which machine."""

    file_name: ClassVar[str] = "run.json"

    version: str
    created: str
    """When the run began, in ISO 8601, UTC."""
    command: tuple[str, ...]
    arguments: dict[str, Any] = Field(default_factory=dict)
    """The options of `prune`; an unfinished run is resumed by a command with the same ones."""
    identity: dict[str, str] = Field(default_factory=dict)
    """Hashes of what the arguments referred to when the run began: the profile, the images, …"""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str | int | float | list[str] | None] = Field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    finished: bool = False

    @field_validator("arguments", "identity", mode="after")
    @classmethod
    def _present_method(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A run that version 0.1.0 began with a method's old name is resumed with its new one."""
        return {k: current_name(v) if k == "method" else v for k, v in value.items()}


class BackboneFacts(Part):
    """The pre-trained network that was pruned."""

    added: ClassVar[frozenset[str]] = frozenset({"notes"})

    name: str
    architecture: str
    source: str
    """What the user would pass to load it again."""
    sha256: str
    family: str
    policy: str
    input_size: int | tuple[int, ...]
    """Pixels of the square input's side, or (channels, height, width)."""
    num_classes: int
    """Classes that it was pre-trained on."""
    notes: tuple[str, ...] | None = None
    """What was done to make its weights fit, and where its preprocessing is from; None: nothing to say."""

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


class Room(Part):
    """A larger network that the budgets would still allow."""

    keep: float
    binding: str | None = None
    """The budget that allows no more."""
    predicted: dict[str, float | int | None] = Field(default_factory=dict)
    """Budget → what the larger network would use."""
    limits: dict[str, float | int | None] = Field(default_factory=dict)
    """Budget → the profile's limit."""
    room: None = None


class Keep(Part):
    """The keep ratio: what was asked for, the zoo's, what was chosen, and why."""

    asked: float | str
    zoo: float | None = None
    chosen: float
    binding: str | None = None
    """The budget that asked for less than the zoo's ratio; None if none did."""
    room: Room | None = None
    """None if the budgets allow no larger network."""


class Width(Part):
    """Units of one group."""

    size: int = Field(ge=1)
    kept: int = Field(ge=0)


class TrainingFacts(Part):
    """How the pruned network was fine-tuned, and what that cost in multiply-adds."""

    added: ClassVar[frozenset[str]] = frozenset({"arithmetic"})

    steps: int
    batch: int
    """Images a step."""
    updates: int = 1
    """Updates a step, each on an equal share of the batch."""
    lr: float
    optimizer: str | None = None
    arithmetic: str | None = None
    """In which a step multiplies: float32 or bfloat16; None: the run does not say."""
    augmented: tuple[str, ...] | None = None
    """Augmentations of the images; empty: none were augmented; None: the run does not say."""
    similarity_flops: Flops = 0
    statistics_flops: Flops = 0
    training_flops: Flops
    paper_flops: Flops | None = None
    """The training's cost by the cheaper rule of the MVP paper."""
    seconds: float
    step_seconds: float | None = None
    """Seconds of ``seconds`` that the training steps took."""


class Outcome(Part):
    """What run.json says in addition once the run is finished."""

    seed: int
    backbone: BackboneFacts
    task: TaskFacts
    profile: ProfileFacts
    method: MethodName
    method_reason: str = ""
    keep: Keep
    widths: dict[str, Width]
    training: TrainingFacts


class RunFile(Outcome, BegunRun):
    """run.json of a finished run."""

    finished: Literal[True] = True

    @classmethod
    def of(cls, begun: BegunRun, outcome: Outcome) -> Self:
        """The finished form of a run that began as ``begun``."""
        facts = begun.model_dump(by_alias=True) | outcome.model_dump(by_alias=True)
        return cls.model_validate(facts | {"finished": True})
