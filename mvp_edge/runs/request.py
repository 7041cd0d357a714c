"""What `mvp-edge prune` is asked for: every option that changes the network is declared here, once.

The declaration gives the Python API its names and defaults, the command line its options and their help, run.json
its arguments, and every value its check. Nothing here imports PyTorch: `--help` reads it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvp_edge.methods.catalogue import METHODS
from mvp_edge.methods.names import current_name
from mvp_edge.recipe import AUGMENTATIONS
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge.tasks.task import Task
    from mvp_edge.zoo.entries import Zoo
    from mvp_edge_export.profile import DeviceProfile

POLICIES = ("tied", "inner", "heads-nodes")
PICKS = ("smallest", "fastest", "best")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Option:
    """How an argument is given on the command line, and which values it takes."""

    help: str
    """What it does, its default in brackets, and its unit."""
    kind: Literal[
        "text", "path", "place", "device", "integer", "number", "flag", "names", "keep"
    ] = "text"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    positive: bool = False
    """Whether 0 is excluded."""

    def check(self, name: str, value: Any) -> None:
        """Raise BadInput unless the argument ``name`` may have this value."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise BadInput(f"{value}: choose one of {', '.join(self.choices)}", field=name)
        if self.kind not in ("integer", "number"):
            return
        least = 0 if self.positive else self.least
        if not math.isfinite(value) or (least is not None and value < least):
            raise BadInput(f"{value}: a number, at least {least:g}", field=name)
        if self.positive and value == 0:
            raise BadInput("0: must be greater than 0", field=name)
        if self.most is not None and value > self.most:
            raise BadInput(f"{value}: at most {self.most:.10g}", field=name)


def option_of(declared: "Field[Any]") -> Option:
    """The option that a field of `Request` was declared with."""
    option: Option = declared.metadata["option"]
    return option


def _option(help: str, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True)
class Request:
    """The arguments of `mvp-edge prune`, as they stand in run.json.

    Raises:
        BadInput: a value that its option does not take, or options that exclude one another.
    """

    device: "str | DeviceProfile" = field(
        metadata={
            "option": Option(
                "Device profile: the name of a shipped one (mvp-edge device list) or a YAML file.",
                "device",
                "D",
            )
        }
    )
    task: "str | Task" = field(
        metadata={
            "option": Option(
                "Images: a folder of class folders, a zip of one, or a list file.", "place", "T"
            )
        }
    )
    zoo: "str | Zoo | None" = _option(
        "Zoo whose networks are used; its backbone is pruned.", kind="place", metavar="Z"
    )
    backbone: str | None = _option(
        "Pre-trained network: efficientnet-lite0, a timm name, hf-hub:ORGANISATION/MODEL, a description.json, or "
        "ARCHITECTURE@FILE [the zoo's].",
        kind="path",
        metavar="NAME|FILE",
    )
    weights_key: str | None = _option(
        "Which of the state dicts in the backbone's file is used, e.g. teacher [averaged weights (EMA) or the "
        "teacher where there are any].",
        metavar="KEY",
    )
    classes: Sequence[str] | None = _option(
        "Use only these classes of the task, separated by commas [all].",
        kind="names",
        metavar="A,B,…",
    )
    method: str = _option(
        "Pruning method. auto: start from the zoo's trunk; without a trunk the zoo's tasks vote (mvp); "
        "without a zoo prune from scratch, by distill or, on a ViT, ahnp [auto].",
        "auto",
        choices=("auto", *METHODS),
    )
    policy: str | None = _option(
        "Which units can be pruned. tied: all filters, residual streams included; inner: only "
        "filters inside its blocks; heads-nodes: heads and MLP nodes of a ViT [the zoo's; tied, heads-nodes].",
        choices=POLICIES,
    )
    similarity: Literal["leep", "wordnet"] | None = _option(
        "How tasks are compared. leep: by the predictions of the zoo's networks on the new images; wordnet: by the "
        "meanings of the class names [leep].",
        choices=("leep", "wordnet"),
    )
    neighbours: int | None = _option(
        "Number of most similar tasks that vote [3, or as many as there are].",
        kind="integer",
        metavar="N",
        least=1,
    )
    disjoint: bool = _option(
        "Let only tasks vote that share no class with the new one.", False, kind="flag"
    )
    keep: float | Literal["auto"] = _option(
        "Largest share of units to keep in each layer; budgets may ask for less. auto: the zoo's ratio, or 0.1 "
        "without a zoo; with --reference and a profile's max_drop the smallest ratio within that drop; with "
        "--front all units [auto].",
        "auto",
        kind="keep",
        metavar="auto|R",
    )
    steps: int | None = _option(
        "Number of training steps [100; ifp, ifp-taylor, ahnp, distill, conventional 1000].",
        kind="integer",
        metavar="N",
        least=0,
    )
    lr: float | None = _option(
        "Peak learning rate of training [the method's own].",
        kind="number",
        metavar="R",
        positive=True,
    )
    tau: float | None = _option(
        "Temperature of the vote: 0 keeps the units with most votes, larger values sample units [0].",
        kind="number",
        metavar="T",
        least=0,
    )
    head: Literal["means", "zero", "random"] = _option(
        "Initial classifier. means: nearest class means of the network's features [means].",
        "means",
        choices=("means", "zero", "random"),
    )
    statistics: bool = _option(
        "Re-estimate BatchNorm statistics on the task before step 1, or do not [--statistics].",
        True,
        kind="flag",
    )
    augment: Sequence[str] | None = _option(
        "Augmentations of training images [flip,shift; none in a run of at most four passes over the images].",
        kind="names",
        metavar="flip,shift|none",
    )
    input_size: int | None = _option(
        "Side of the square input image in pixels [the backbone's].",
        kind="integer",
        metavar="PX",
        least=8,
        most=1024,
    )
    accelerator: str = _option(
        "Where to train: auto takes CUDA where PyTorch finds it [auto].",
        "auto",
        choices=("auto", "cpu", "cuda"),
    )
    seed: int = _option(
        "Seed of splits, batches and sampled units [0].",
        0,
        kind="integer",
        metavar="N",
        least=0,
        most=MAX_SEED,
    )
    synsets: str | None = _option(
        "File with lines `class: synset` for class names that WordNet does not know [none].",
        kind="path",
        metavar="FILE",
    )
    reference: bool = _option(
        "Fine-tune the unpruned backbone as well, to know the accuracy drop.", False, kind="flag"
    )
    add_to_zoo: bool = _option(
        "Add the finished network to the zoo, so that it votes on later tasks.", False, kind="flag"
    )
    front: int | None = _option(
        "Make N networks from small to what the budgets allow; each is a run in RUN/front [one network].",
        kind="integer",
        metavar="N",
        least=2,
        most=12,
    )
    pick: Literal["smallest", "fastest", "best"] | None = _option(
        "Which network of a front becomes the run's own, by validation accuracy [smallest without much loss].",
        choices=PICKS,
    )

    def __post_init__(self) -> None:
        self._rename_method()
        for declared in fields(self):
            option_of(declared).check(declared.name, getattr(self, declared.name))
        if isinstance(self.keep, str):
            if self.keep != "auto":
                raise BadInput(f"{self.keep}: auto, or a ratio above 0 and at most 1", field="keep")
        elif not 0 < self.keep <= 1:
            raise BadInput(f"{self.keep:g}: the ratio must be above 0 and at most 1", field="keep")
        if not set(self.augment or ()) <= set(AUGMENTATIONS):
            given = ",".join(self.augment or ())
            raise BadInput(f"{given}: flip, shift, flip,shift or none", field="augment")
        if self.classes is not None and not isinstance(self.task, str):
            raise BadInput("the task was opened already; name its classes there", field="classes")
        if self.zoo is None and self.backbone is None:
            raise BadInput("give --zoo Z (its backbone is used), --backbone NAME|FILE, or both")
        if self.front is None and self.pick is not None:
            raise BadInput(
                f"{self.pick} chooses from several networks: add --front 5", field="pick"
            )
        if self.zoo is None and self.add_to_zoo:
            raise BadInput("needs a zoo to add to: name it with --zoo", field="add_to_zoo")

    def _rename_method(self) -> None:
        """Take the present name of a method that is given by an old one, with a warning."""
        name = current_name(self.method)
        if name != self.method:
            warnings.warn(
                f"method {self.method} is now called {name}; the old name goes in the next release",
                FutureWarning,
                stacklevel=4,
            )
            object.__setattr__(self, "method", name)

    @property
    def voting(self) -> list[str]:
        """Arguments other than their defaults that only affect voting."""
        names = ("similarity", "neighbours", "disjoint", "tau")
        return [name for name in names if getattr(self, name) != DEFAULTS[name]]

    def arguments(self) -> dict[str, Any]:
        """The arguments as JSON; an object is represented by the name of what it was read from."""
        given: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        device, task, zoo = self.device, self.task, self.zoo
        if not isinstance(device, str):
            given["device"] = str(device.path or device.id)
        if not isinstance(task, str):
            given |= {"task": task.source, "classes": task.classes}
        if zoo is not None and not isinstance(zoo, str):
            given["zoo"] = str(zoo.path)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}

    def command(self, out: Path) -> list[str]:
        """The command line that asks for the same."""
        words = ["mvp-edge", "prune"]
        for name, value in self.arguments().items():
            flag = f"--{name.replace('_', '-')}"
            if name in DEFAULTS and value == DEFAULTS[name]:
                continue
            if name == "statistics":
                words.append("--no-statistics")
            elif value is True:
                words.append(flag)
            elif isinstance(value, list):
                words += [flag, ",".join(value) or "none"]
            else:
                words += [flag, str(value)]
        return [*words, "--out", str(out)]


OPTIONS: Mapping[str, Option] = {declared.name: option_of(declared) for declared in fields(Request)}
"""Argument → its option, for the command line and for other commands that have the same one."""
DEFAULTS: Mapping[str, Any] = {
    declared.name: declared.default
    for declared in fields(Request)
    if declared.default is not MISSING
}
"""Argument → its default, where it has one."""
