"""Everything is loaded, checked and decided before anything is written.

    Request ─ load ─→    profile, zoo, backbone, task
            ─ decide ─→  how many sizes; who votes, or which method from scratch; widths within the budgets; recipe
            ─→  Settled

What can be refused without computing is refused here.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mvp_edge.methods.catalogue import DEFAULT_KEEP, METHODS, method_for, recipe_for
from mvp_edge.pruning.arithmetic import choose_accelerator
from mvp_edge.pruning.problem import Progress
from mvp_edge.recipe import Recipe
from mvp_edge.runs.request import Request
from mvp_edge.subnetwork.backbone import Backbone, absolute_source, load_backbone
from mvp_edge.subnetwork.budget import Plan, Sizer
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.entries import Entry, Zoo, origin, wide_enough
from mvp_edge.zoo.synsets import load_overrides, wordnet
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import sha256_json

DEFAULT_NEIGHBOURS = 3


@dataclass(frozen=True)
class Source:
    """Where the new network comes from."""

    method: str
    reason: str
    """Why this method, in words."""
    entries: tuple[Entry, ...] = ()
    """The zoo's networks that may vote, or the trunks that may be started from."""
    neighbours: int = 0
    """How many of them will vote."""


@dataclass(frozen=True)
class Settled:
    """The request with everything loaded, checked and decided, before anything is written."""

    request: Request
    profile: DeviceProfile
    task: Task
    backbone: Backbone
    zoo: Zoo | None
    policy: str
    source: Source
    sizer: Sizer
    """The networks of the backbone for this task, against the profile's budgets."""
    ceiling: float
    """The largest keep ratio wanted."""
    climbs: bool
    """Whether sizes are tried from small to large, up to the first whose accuracy drop is within max_drop."""
    plan: Plan
    recipe: Recipe
    overrides: Mapping[str, str] | None
    """The user's own meanings of class names."""

    @property
    def method(self) -> str:
        """The method's name."""
        return self.source.method

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The zoo's networks that may vote, or the trunks that may be started from."""
        return self.source.entries

    @property
    def voting(self) -> bool:
        """Whether the zoo's entries are asked."""
        return METHODS[self.method].asks in ("neighbours", "zoo")

    @property
    def trunk(self) -> Entry | None:
        """The trunk that the new network starts from."""
        starts = METHODS[self.method].asks == "trunk"
        return wide_enough(self.entries, self.plan.keep, _keep_of) if starts else None

    @property
    def identity(self) -> dict[str, str]:
        """Hashes that must match, besides the arguments, for an unfinished run to be resumed."""
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

    def describe(self) -> str:
        """One line for the user: what will be done, and why this way."""
        plan, task = self.plan, self.task
        sizes = {name: len(examples) for name, examples in task.splits.items()}
        why = f", as the {plan.binding} budget asks" if plan.binding else ""
        return (
            f"{self.backbone.name} → {self.profile.name}: {task.name}, {len(task.classes)} classes, "
            f"{sizes['train']} + {sizes['val']} + {sizes['test']} images (train, val, test); "
            f"{self.method} ({self.source.reason}), keep {plan.keep:.3g}{why}"
        )


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
    profile = load_profile(given) if isinstance(given, str) else given
    zoo = Zoo.open(Path(place)) if isinstance(place, str) else place
    overrides = load_overrides(Path(request.synsets)) if request.synsets else None
    accelerator = choose_accelerator(request.accelerator)
    backbone = _backbone(request, zoo)
    for note in backbone.notes:
        say(f"{backbone.name}: {note}")
    policy = _policy(request, zoo, backbone)
    if request.method != "auto":
        method_for(request.method, backbone.family)
    task = _task(request, progress)
    if overrides is not None or request.similarity == "wordnet":
        wordnet().meanings(task.classes, overrides)  # every class has one, or an error names it
    if task.skipped:
        first, more = task.skipped[0], len(task.skipped) - 1
        others = f" and {more} more (run.json lists them)" if more else ""
        say(f"skipped {first.file}: {first.why}{others}")

    climbable = _climbable(request, profile, task)
    several = request.front is not None
    source = _source(request, backbone, zoo, task, _ceiling(request, zoo, several or climbable))
    # Only a vote or a trunk is cheap enough to be repeated at each size.
    climbs = climbable and source.method in ("trunk", "mvp")
    ceiling = _ceiling(request, zoo, several or climbs)
    sizer = Sizer(backbone.model, policy, backbone.shape, profile, len(task.classes))
    recipe = recipe_for(
        source.method,
        backbone.family,
        steps=request.steps,
        lr=request.lr,
        augment=None if request.augment is None else tuple(request.augment),
        accelerator=accelerator,
    )
    return Settled(
        request=request,
        profile=profile,
        task=task,
        backbone=backbone,
        zoo=zoo,
        policy=policy,
        source=source,
        sizer=sizer,
        ceiling=ceiling,
        climbs=climbs,
        plan=sizer.solve(ceiling),
        recipe=replace(recipe, head=request.head, statistics=request.statistics),
        overrides=overrides,
    )


def _ceiling(request: Request, zoo: Zoo | None, several: bool) -> float:
    """The largest keep ratio: as asked; else 1 where several sizes are made, and the zoo's for a single one."""
    if not isinstance(request.keep, str):
        return request.keep
    return 1.0 if several else zoo.keep if zoo else DEFAULT_KEEP


def _climbable(request: Request, profile: DeviceProfile, task: Task) -> bool:
    """Whether accuracy can decide the size: a drop is allowed and known, and nothing else was asked for."""
    bounded = profile.accuracy.max_drop is not None and request.reference
    free = request.keep == "auto" and request.front is None
    return bounded and free and bool(task.splits["val"])


def _policy(request: Request, zoo: Zoo | None, backbone: Backbone) -> str:
    policies = backbone.family.policies
    policy = request.policy or (zoo.policy if zoo else policies[0])
    if policy not in policies:
        raise BadInput(
            f"{policy} is not for {backbone.family.name} backbones: {' or '.join(policies)}",
            field="policy",
        )
    return policy


def _backbone(request: Request, zoo: Zoo | None) -> Backbone:
    """The backbone asked for, or the zoo's; at the zoo's input size where there is a zoo."""
    if zoo is None:
        assert request.backbone is not None  # a request names a zoo or a backbone
        return load_backbone(
            absolute_source(request.backbone), request.input_size, request.weights_key
        )
    size = request.input_size or zoo.input_size
    if request.backbone is not None:
        backbone = load_backbone(absolute_source(request.backbone), size, request.weights_key)
    else:
        source = absolute_source(zoo.backbone_source)
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
    if not isinstance(request.task, str):
        return request.task
    return Task.open(
        Path(request.task),
        classes=request.classes,
        seed=request.seed,
        progress=lambda done, total: progress("checking images", done, total),
    )


def _source(
    request: Request, backbone: Backbone, zoo: Zoo | None, task: Task, widest: float
) -> Source:
    """The method, who may vote and how many do; ``widest`` is the largest keep ratio wanted."""
    asks = "neighbours" if request.method == "auto" else METHODS[request.method].asks
    _check_heard(request, asks)
    if asks == "nobody":
        return Source(request.method, "as asked")
    trunks: tuple[Entry, ...] = ()
    if zoo and (asks == "trunk" or (request.method == "auto" and not request.voting)):
        trunks = tuple(zoo.trunks())
    if asks == "trunk" and not trunks:
        where = f"zoo {zoo.path} has none" if zoo else "no --zoo was given"
        raise BadInput(
            f"trunk needs a zoo's trunk, but {where}: `mvp-edge zoo trunk` makes one",
            field="method",
        )
    aside = ""
    if trunks:
        trunk = wide_enough(trunks, widest, _keep_of)
        if asks == "trunk" or trunk.keep >= widest - 1e-9:
            why = f"from the zoo's trunk of {origin(trunk)}"
            return Source("trunk", why if request.method == "auto" else f"as asked; {why}", trunks)
        aside = f"; its trunk of keep {trunk.keep:g} is narrower than {widest:g}"

    entries, where = _possible_voters(request, zoo, task)
    if request.neighbours is not None and request.neighbours > len(entries):
        raise BadInput(
            f"{request.neighbours}: {where}: ask for fewer, or build more", field="neighbours"
        )
    if entries:
        most = len(entries) if asks == "zoo" else min(DEFAULT_NEIGHBOURS, len(entries))
        count = request.neighbours or most
        why = f"{count} of the zoo's {_tasks(len(entries))} vote{aside}"
        if request.method == "auto":
            return Source("mvp", why, entries, count)
        return Source(request.method, f"as asked; {why}", entries, count)
    if request.method != "auto":
        raise BadInput(
            f"{request.method} needs neighbours, but {where}: use --method auto, or build a zoo",
            field="method",
        )
    flags = ", ".join(f"--{name}" for name in request.voting)
    unused = f"; {flags} unused" if flags else ""
    return Source(backbone.family.from_scratch, f"from scratch, since {where}{aside}{unused}")


def _check_heard(request: Request, asks: str) -> None:
    """Reject voting options for methods that do not vote, and a temperature for SMSP."""
    given = request.voting
    if asks in ("neighbours", "zoo"):
        given = [name for name in given if name == "tau" and asks == "zoo"]
    if given:
        raise BadInput(
            f"concerns the vote, and --method {request.method} holds none: leave it out, or use --method mvp",
            field=given[0],
        )


def _possible_voters(
    request: Request, zoo: Zoo | None, task: Task
) -> tuple[tuple[Entry, ...], str]:
    """The zoo's entries that may vote on this task, and in words how many there are."""
    if zoo is None:
        return (), "no --zoo was given"
    others = tuple(entry for entry in zoo.entries() if entry.name != task.name)
    own = set(task.classes)
    entries = tuple(e for e in others if not (request.disjoint and own & set(e.classes)))
    where = f"zoo {zoo.path} has {_tasks(len(entries))}"
    if task.name in zoo.names():
        where += f" beside this one ({task.name})"
    if len(entries) < len(others):
        where += f" without a class of this one ({len(others) - len(entries)} share one)"
    return entries, where


def _keep_of(trunk: Entry) -> float:
    return trunk.keep


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count or 'no'} tasks"
