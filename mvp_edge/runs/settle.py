"""What is asked, and whether it can be done: loaded, checked and decided before anything is written.

    Request  ─ load ─→    profile, zoo, backbone, task
             ─ decide ─→  who votes, or which method from scratch; widths within the budgets; recipe
             ─→  Settled

Everything that can be refused without computing is refused here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mvp_edge.pruning.batches import AUGMENTATIONS, Recipe
from mvp_edge.pruning.methods import FROM_SCRATCH, METHODS, method_for, recipe_for
from mvp_edge.pruning.problem import Progress
from mvp_edge.runs.choice import Pick
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import Plan, solve
from mvp_edge.subnetwork.units import POLICIES
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import DEFAULT_KEEP, anchored, choose_accelerator
from mvp_edge.zoo.entries import Entry, Zoo, origin, wide_enough
from mvp_edge.zoo.neighbours import Similarity
from mvp_edge.zoo.synsets import load_overrides, wordnet
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import sha256_json

MAX_INPUT, MAX_FRONT = 1024, 12
DEFAULT_NEIGHBOURS = 3

_CHOICES: Mapping[str, Sequence[str]] = {
    "method": ("auto", *METHODS),
    "policy": sorted({policy for policies in POLICIES.values() for policy in policies}),
    "similarity": ("leep", "wordnet"),
    "head": ("means", "zero", "random"),
    "accelerator": ("auto", "cpu", "cuda"),
    "pick": get_args(Pick),
}
_AT_LEAST = {
    "neighbours": 1,
    "steps": 0,
    "input_size": 8,
    "seed": 0,
    "tau": 0.0,
    "lr": 0.0,
    "front": 2,
}
_VOTING: Mapping[str, object] = {
    "similarity": None,
    "neighbours": None,
    "disjoint": False,
    "tau": None,
}
"""Options that only a vote heeds, and what they are when they were not given."""


@dataclass(frozen=True)
class Request:
    """What the user asked for: the arguments of `mvp-edge prune`, as they stand in run.json."""

    device: str | DeviceProfile
    """A profile, a shipped one's name, or a YAML file."""
    task: str | Task
    """A task, or its folder, zip or list file."""
    zoo: str | Zoo | None = None
    """Whose entries vote, and whose backbone and keep ratio are used."""
    backbone: str | None = None
    classes: Sequence[str] | None = None
    """Only these classes of the task."""
    method: str = "auto"
    policy: str | None = None
    similarity: Similarity | None = None
    """leep (the default) or wordnet."""
    neighbours: int | None = None
    """How many vote; 3 by default, or as many as there are."""
    disjoint: bool = False
    """Only neighbours that share no class with the task."""
    keep: float | Literal["auto"] = "auto"
    """The most that is kept; auto: the zoo's ratio, or, with a reference and a profile's max_drop, the
    smallest that loses no more; with a front all. Budgets may ask for less."""
    steps: int | None = None
    lr: float | None = None
    tau: float | None = None
    """Temperature of the vote; 0, the default, takes the units with most votes."""
    head: Literal["means", "zero", "random"] = "means"
    statistics: bool = True
    """Re-estimate BatchNorm on the task before step 1."""
    augment: Sequence[str] | None = None
    """flip, shift; None: both, but neither in a run of few passes over the images."""
    input_size: int | None = None
    accelerator: str = "auto"
    seed: int = 0
    synsets: str | None = None
    """A file of class meanings."""
    reference: bool = False
    """Fine-tune the unpruned backbone too, for the accuracy drop."""
    add_to_zoo: bool = False
    front: int | None = None
    """So many networks instead of one, from small to what the budgets allow."""
    pick: Pick | None = None
    """Which of them becomes the run's network; smallest by default."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise BadInput(f"{_flag(name)} {value}: choose one of {', '.join(allowed)}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise BadInput(f"{_flag(name)} {value}: a number, at least {least:g}")
        if self.input_size is not None and self.input_size > MAX_INPUT:
            raise BadInput(f"--input-size {self.input_size}: at most {MAX_INPUT}")
        if self.lr == 0:
            raise BadInput("--lr 0: nothing would be learned; give a rate above 0")
        if isinstance(self.keep, str):
            if self.keep != "auto":
                raise BadInput(f"--keep {self.keep}: auto, or a ratio above 0 and at most 1")
        elif not 0 < self.keep <= 1:
            raise BadInput(f"--keep {self.keep:g}: the ratio must be above 0 and at most 1")
        for name in self.augment or ():
            if name not in AUGMENTATIONS:
                raise BadInput(f"--augment {name}: flip, shift, or none of them")
        if self.classes is not None and isinstance(self.task, Task):
            raise BadInput("--classes: the task was opened already; name its classes there")
        if self.zoo is None and self.backbone is None:
            raise BadInput("give --zoo Z (its backbone is used), --backbone NAME|FILE, or both")
        if self.front is None and self.pick is not None:
            raise BadInput(f"--pick {self.pick} chooses from several networks: add --front 5")
        if self.front is not None and self.front > MAX_FRONT:
            raise BadInput(f"--front {self.front}: at most {MAX_FRONT}")
        if self.zoo is None and self.add_to_zoo:
            raise BadInput("--add-to-zoo: to which? name it with --zoo")

    def arguments(self) -> dict[str, Any]:
        """As they stand in run.json; an object stands by the name of what it was read from."""
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.device, DeviceProfile):
            given["device"] = str(self.device.path or self.device.id)
        if isinstance(self.task, Task):
            given |= {"task": self.task.source, "classes": self.task.classes}
        if isinstance(self.zoo, Zoo):
            given["zoo"] = str(self.zoo.path)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}

    def command(self, out: Path) -> list[str]:
        """The command line that asks for the same."""
        usual = {field.name: field.default for field in fields(self)}
        words = ["mvp-edge", "prune"]
        for name, value in self.arguments().items():
            if value == usual[name]:
                continue
            if name == "statistics":
                words.append("--no-statistics")
            elif value is True:
                words.append(_flag(name))
            elif isinstance(value, list):
                words += [_flag(name), ",".join(value) or "none"]
            else:
                words += [_flag(name), str(value)]
        return [*words, "--out", str(out)]


@dataclass(frozen=True)
class Settled:
    """The request with everything loaded, checked and decided, before anything is written."""

    request: Request
    profile: DeviceProfile
    task: Task
    backbone: Backbone
    zoo: Zoo | None
    entries: tuple[Entry, ...]
    """Who may vote, or the trunks that may be started from."""
    neighbours: int
    """How many of them will vote."""
    policy: str
    method: str
    reason: str
    plan: Plan
    recipe: Recipe
    overrides: Mapping[str, str] | None
    """The user's class meanings."""

    @property
    def ceiling(self) -> float:
        """The largest keep ratio wanted."""
        several = self.request.front is not None or self.climbs
        return _ceiling(self.request, self.zoo, several=several)

    @property
    def voting(self) -> bool:
        """Whether the zoo's entries are asked."""
        return METHODS[self.method].asks in ("neighbours", "zoo")

    @property
    def trunk(self) -> Entry | None:
        """The network of all the zoo's tasks that the new one starts from."""
        trunk = METHODS[self.method].asks == "trunk"
        return wide_enough(self.entries, self.plan.keep, _width) if trunk else None

    @property
    def climbs(self) -> bool:
        """Whether sizes are tried from small to large, up to the first that loses little enough."""
        return _climbs(self.request, self.method, self.profile, self.task)

    @property
    def identity(self) -> dict[str, str]:
        """What an unfinished run must agree in to be gone on with, beside its arguments."""
        training = [asdict(self.recipe), self.request.seed]
        trunk = {"the zoo's trunk": self.trunk.weights_sha256} if self.trunk else {}
        return {
            "device profile": self.profile.sha256,
            "backbone": self.backbone.sha256,
            "images": self.task.fingerprint,
            "method": self.method,
            "widths": sha256_json([self.policy, self.plan.keep, self.plan.widths]),
            "recipe": sha256_json(training),
            **trunk,
        }


def settle(
    request: Request,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Settled:
    """Load and check everything, choose the method and solve the budgets; writes nothing.

    Raises:
        BadInput: what cannot be understood or does not fit.
        BudgetMissed: even the smallest network misses a budget.
    """
    given, place = request.device, request.zoo
    profile = given if isinstance(given, DeviceProfile) else load_profile(given)
    zoo = Zoo.open(Path(place)) if isinstance(place, str) else place
    overrides = load_overrides(Path(request.synsets)) if request.synsets else None
    accelerator = choose_accelerator(request.accelerator)
    backbone = _backbone(request, zoo)
    policy = request.policy or (zoo.policy if zoo else POLICIES[backbone.family][0])
    if policy not in POLICIES[backbone.family]:
        instead = " or ".join(POLICIES[backbone.family])
        raise BadInput(f"--policy {policy} is not for {backbone.family} backbones: {instead}")
    if request.method != "auto":
        method_for(request.method, backbone.family)
    task = _task(request, progress)
    if overrides is not None or request.similarity == "wordnet":
        wordnet().meanings(
            task.classes, overrides
        )  # each class has one, or this says which has none
    if task.skipped:
        first, more = task.skipped[0], len(task.skipped) - 1
        others = f" and {more} more (run.json lists them)" if more else ""
        say(f"skipped {first.file}: {first.why}{others}")
    widest = _ceiling(
        request,
        zoo,
        several=request.front is not None or _climbs(request, "mvp", profile, task),
    )
    method, entries, neighbours, reason = _voters(request, backbone, zoo, task, widest)
    several = request.front is not None or _climbs(request, method, profile, task)
    plan = solve(
        backbone.model,
        policy,
        backbone.shape,
        profile,
        _ceiling(request, zoo, several=several),
        len(task.classes),
    )
    recipe = recipe_for(
        method,
        backbone.family,
        steps=request.steps,
        lr=request.lr,
        augment=None if request.augment is None else tuple(request.augment),
        accelerator=accelerator,
    )
    return Settled(
        request,
        profile,
        task,
        backbone,
        zoo,
        entries,
        neighbours,
        policy,
        method,
        reason,
        plan,
        replace(recipe, head=request.head, statistics=request.statistics),
        overrides,
    )


def _ceiling(request: Request, zoo: Zoo | None, *, several: bool) -> float:
    """The largest keep ratio: as asked; else all where several sizes are made, and the zoo's for one."""
    if isinstance(request.keep, float | int):
        return request.keep
    return 1.0 if several else zoo.keep if zoo else DEFAULT_KEEP


def _climbs(request: Request, method: str, profile: DeviceProfile, task: Task) -> bool:
    """What can be held to accuracy.max_drop is: a vote at each size is cheap, and the loss is known."""
    bounded = profile.accuracy.max_drop is not None and request.reference
    free = request.keep == "auto" and request.front is None
    return bounded and free and method in ("trunk", "mvp") and bool(task.splits["val"])


def describe(settled: Settled) -> str:
    """One line for the user: what will be done, and why this way."""
    plan, task = settled.plan, settled.task
    sizes = {name: len(examples) for name, examples in task.splits.items()}
    why = f", as the {plan.binding} budget asks" if plan.binding else ""
    return (
        f"{settled.backbone.name} → {settled.profile.name}: {task.name}, {len(task.classes)} classes, "
        f"{sizes['train']} + {sizes['val']} + {sizes['test']} images (train, val, test); "
        f"{settled.method} ({settled.reason}), keep {plan.keep:.3g}{why}"
    )


def _backbone(request: Request, zoo: Zoo | None) -> Backbone:
    """The one asked for, or the zoo's; at the zoo's input size where there is a zoo."""
    if zoo is None:
        assert request.backbone is not None  # a request names a zoo or a backbone
        return load_backbone(anchored(request.backbone), request.input_size)
    size = request.input_size or zoo.input_size
    if request.backbone is not None:
        backbone = load_backbone(anchored(request.backbone), size)
    else:
        source = anchored(zoo.backbone_source)
        file = Path(source.rpartition("@")[2])
        try:
            backbone = load_backbone(source, size)
        except BadInput as error:
            if "/" not in source or file.exists():
                raise
            where = f"if it has moved, say where zoo {zoo.path}'s backbone is with --backbone"
            raise BadInput(f"{error}; {where}") from error
    zoo.check(backbone, request.policy)
    return backbone


def _task(request: Request, progress: Progress) -> Task:
    if isinstance(request.task, Task):
        return request.task
    return Task.open(
        Path(request.task),
        classes=request.classes,
        seed=request.seed,
        progress=lambda done, total: progress("checking images", done, total),
    )


def _voters(
    request: Request, backbone: Backbone, zoo: Zoo | None, task: Task, widest: float
) -> tuple[str, tuple[Entry, ...], int, str]:
    """The method, who may vote, how many do, and why so; ``widest``: the largest keep ratio wanted."""
    given = [name for name, usual in _VOTING.items() if getattr(request, name) != usual]
    asks = "neighbours" if request.method == "auto" else METHODS[request.method].asks
    votes = asks in ("neighbours", "zoo")
    unheard = [n for n in given if n == "tau" and asks == "zoo"] if votes else given
    if unheard:
        raise BadInput(
            f"{_flag(unheard[0])} concerns the vote, and --method {request.method} holds none: "
            "leave it out, or use --method mvp"
        )
    if asks == "nobody":
        return request.method, (), 0, "as asked"
    wanted = asks == "trunk" or (request.method == "auto" and not given)
    trunks, aside = tuple(zoo.trunks()) if zoo and wanted else (), ""
    if asks == "trunk" and not trunks:
        where = f"zoo {zoo.path} has none" if zoo else "no --zoo was given"
        raise BadInput(
            f"--method trunk needs a zoo's trunk, but {where}: `mvp-edge zoo trunk` makes one"
        )
    if trunks:
        trunk = wide_enough(trunks, widest, _width)
        if asks == "trunk" or trunk.keep >= widest - 1e-9:
            why = f"from the zoo's trunk of {origin(trunk)}"
            return "trunk", trunks, 0, why if request.method == "auto" else f"as asked; {why}"
        aside = f"; its trunk of keep {trunk.keep:g} is narrower than {widest:g}"
    others = tuple(e for e in zoo.entries() if e.name != task.name) if zoo else ()
    own = set(task.classes)
    entries = tuple(e for e in others if not (request.disjoint and own & set(e.classes)))
    where = f"zoo {zoo.path} has {_tasks(len(entries))}" if zoo else "no --zoo was given"
    if zoo and task.name in zoo.names():
        where += f" beside this one ({task.name})"
    if len(entries) < len(others):
        where += f" without a class of this one ({len(others) - len(entries)} share one)"
    if request.neighbours is not None and request.neighbours > len(entries):
        raise BadInput(f"--neighbours {request.neighbours}: {where}: ask for fewer, or build more")
    if entries:
        most = len(entries) if asks == "zoo" else min(DEFAULT_NEIGHBOURS, len(entries))
        count = request.neighbours or most
        why = f"{count} of the zoo's {_tasks(len(entries))} vote{aside}"
        if request.method == "auto":
            return "mvp", entries, count, why
        return request.method, entries, count, f"as asked; {why}"
    if request.method != "auto":
        raise BadInput(
            f"--method {request.method} needs neighbours, but {where}: use --method auto, or build a zoo"
        )
    unused = f"; {', '.join(map(_flag, given))} unused" if given else ""
    return FROM_SCRATCH[backbone.family], (), 0, f"from scratch, since {where}{aside}{unused}"


def _width(trunk: Entry) -> float:
    return trunk.keep


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count or 'no'} tasks"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
