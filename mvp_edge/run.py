"""One run: from a device, a task and a zoo to a verified network in a run directory.

    settle   everything that can be refused is refused here; nothing is written
    similar  neighbours.json
    prune    network.*, votes.json, history.json
    compare  reference.json                      with --reference
    verify   verified.json, test.json, run.json

Each file appears whole when its phase is done, and a phase whose files are there is not repeated: the
same command goes on where a killed one stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mvp_edge.backbone import Backbone, load_backbone
from mvp_edge.budget import Plan, solve
from mvp_edge.build import choose_accelerator, costs, scores, synsets_of, to_network
from mvp_edge.cost import forward_macs, layers, paper_cost
from mvp_edge.methods import FROM_SCRATCH, method_for, recipe_for
from mvp_edge.neighbours import LEEP_IMAGES, Similarity, find_neighbours
from mvp_edge.network import TENSORS, Network
from mvp_edge.prune import Problem, Progress, Pruned
from mvp_edge.rundir import RunDirectory
from mvp_edge.scratch import fine_tune
from mvp_edge.synsets import load_overrides
from mvp_edge.task import Task
from mvp_edge.train import Ledger, Recipe, accuracy, predict_logits
from mvp_edge.units import POLICIES
from mvp_edge.verify import verify
from mvp_edge.votes import Ballot, Voting, mvp
from mvp_edge.zoo import Entry, Zoo
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import read_json, sha256_file, write_json
from mvp_edge_export.verified import Verified

DEFAULT_KEEP = 0.1
"""Kept where neither a zoo nor the user says: the paper's 90 % pruned."""


@dataclass(frozen=True)
class Request:
    """What the user asked for: the arguments of `mvp-edge prune`, as they stand in run.json."""

    device: str
    task: str
    zoo: str | None = None
    backbone: str | None = None
    classes: tuple[str, ...] | None = None
    method: str = "auto"
    policy: str | None = None
    similarity: Similarity = "leep"
    neighbours: int = 3
    disjoint: bool = False
    keep: str = "auto"
    steps: int | None = None
    lr: float | None = None
    tau: float = 0.2
    head: str = "means"
    statistics: bool = True
    augment: tuple[str, ...] = ("flip", "shift")
    input_size: int | None = None
    accelerator: str = "auto"
    seed: int = 0
    synsets: str | None = None
    reference: bool = False
    add_to_zoo: bool = False


@dataclass(frozen=True)
class Settled:
    """The request with everything loaded, checked and decided, before anything is written."""

    request: Request
    profile: DeviceProfile
    task: Task
    backbone: Backbone
    zoo: Zoo | None
    entries: tuple[Entry, ...]
    policy: str
    method: str
    reason: str
    plan: Plan
    recipe: Recipe

    @property
    def voting(self) -> bool:
        """Whether the zoo votes."""
        return self.method == "mvp"


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies and what was verified."""

    path: Path
    verified: Verified
    network: Network

    def __repr__(self) -> str:
        cost, full = self.verified.cost, self.verified.cost_baseline
        lines = [
            f"Run {self.path}: {100 * self.verified.accuracy:.1f} % top-1 on {self.verified.images} test images, "
            f"{cost.flops / 1e6:.1f} M multiply-adds ({full.flops / cost.flops:.1f}× fewer), "
            f"{cost.params / 1e6:.2f} M parameters"
        ]
        return "\n".join([*lines, *(f"  {verdict}" for verdict in self.verified.verdicts)])


def prune(
    device: str,
    task: str | Path,
    zoo: str | Path | None = None,
    *,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Run:
    """Prune for a device and a task; see `Request` for the options.

    Raises BadInput for what cannot be understood, and BudgetMissed when the budgets are infeasible
    (nothing is written) or were missed after training (the run is kept, with the verdict FAIL).
    """
    request = Request(device, str(task), None if zoo is None else str(zoo), **options)
    settled = settle(request)
    say(describe(settled))
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(request).items()}
    run = RunDirectory.claim(arguments, None if out is None else Path(out), force=force)
    return execute(settled, run, progress)


def settle(request: Request) -> Settled:
    """Load and check everything, choose the method and solve the budgets; writes nothing."""
    profile = load_profile(request.device)
    accelerator = choose_accelerator(request.accelerator)
    zoo = Zoo.open(Path(request.zoo)) if request.zoo is not None else None
    source = request.backbone or (zoo.backbone_source if zoo else None)
    if source is None:
        raise BadInput("no backbone: give --backbone NAME|FILE, or a --zoo that has one")
    backbone = load_backbone(source, request.input_size or _zoo_size(zoo, request))
    if zoo is not None:
        zoo.check(backbone, request.policy)
    policy = request.policy or (zoo.policy if zoo else POLICIES[backbone.family][0])
    _overrides(request)
    task = Task.open(Path(request.task), classes=request.classes, seed=request.seed)
    if not task.splits.get("test"):
        raise BadInput(f"task {request.task}: no test images: figures are reported on test images")
    entries = tuple(e for e in zoo.entries() if e.name != task.name) if zoo else ()
    method, reason = _choose_method(request, backbone, entries)
    if method == "mvp" and request.neighbours > len(entries):
        raise BadInput(
            f"--neighbours {request.neighbours}: zoo {request.zoo} has only {len(entries)} entries"
            + (f" besides this task ({task.name})" if zoo and task.name in zoo.names() else "")
        )
    plan = _solve(request, backbone, policy, profile, len(task.classes), zoo)
    recipe = replace(
        recipe_for(
            method,
            backbone.family,
            steps=request.steps,
            lr=request.lr,
            augment=request.augment,
            accelerator=accelerator,
        ),
        head=request.head,  # type: ignore[arg-type]
        statistics=request.statistics,
    )
    return Settled(
        request, profile, task, backbone, zoo, entries, policy, method, reason, plan, recipe
    )


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


def execute(settled: Settled, run: RunDirectory, progress: Progress) -> Run:
    """Carry out what was settled; phases whose files are there are not repeated."""
    request, backbone, task, path = settled.request, settled.backbone, settled.task, run.path
    run.write("task.json", task.to_json())
    if settled.voting and not run.has("neighbours.json"):
        with run.phase("similarity"):
            run.write("neighbours.json", _neighbours(settled, progress))
    with run.phase("images"):
        problem = Problem(
            backbone=backbone,
            policy=settled.policy,
            classes=len(task.classes),
            train=task.images("train", backbone.preprocess),
            validation=task.images("val", backbone.preprocess),
            widths=settled.plan.widths,
            recipe=settled.recipe,
            seed=request.seed,
            checkpoint=path / ".checkpoint.safetensors",
            progress=progress,
        )
    if not run.has("pruned.json"):
        with run.phase("pruning"):
            pruned, ballots = _prune(settled, problem, run)
            _keep(settled, run, pruned, ballots)
    (path / ".checkpoint.safetensors").unlink(missing_ok=True)
    reference = None
    if request.reference:
        if not run.has("reference.json"):
            with run.phase("reference"):
                run.write("reference.json", _reference(settled, problem, run, progress))
        reference = float(run.read("reference.json")["top1"])
    with run.phase("verification"):
        network = Network.load(path)
        module = network.module()
        progress("verification", 0, 1)
        verified, test = verify(
            module, sha256_file(path / TENSORS), backbone, task, settled.profile, reference
        )
        run.write("test.json", test)
        run.write(
            "layers.json", {"layers": [asdict(layer) for layer in layers(module, backbone.shape)]}
        )
        verified.save(path / "verified.json")
        progress("verification", 1, 1)
    run.update(**_facts(settled, run, network), finished=True)
    if request.add_to_zoo and settled.zoo is not None:
        add_run(settled.zoo, path)
    if not verified.passed:
        missed = "; ".join(str(verdict) for verdict in verified.failed)
        raise BudgetMissed(
            f"{path}: missed after training: {missed}; the run is kept, its export refused"
        )
    return Run(path, verified, network)


def add_run(zoo: Zoo, run: Path, *, force: bool = False) -> Entry:
    """Add a finished run's network to a zoo."""
    facts = read_json(run / "run.json", "run")
    if not facts.get("finished"):
        raise BadInput(f"run {run} is not finished: repeat its command to go on, then add it")
    made = read_json(run / "pruned.json", "run")
    return zoo.add(
        facts["task"]["name"],
        Network.load(run),
        synsets=made["synsets"],
        scores=made["scores"],
        cost=made["costs"],
        recipe={"method": facts["method"], **facts["training"], "seed": facts["seed"]},
        keep=facts["keep"]["chosen"],
        force=force,
    )


def _choose_method(
    request: Request, backbone: Backbone, entries: Sequence[Entry]
) -> tuple[str, str]:
    if request.method == "mvp" and not entries:
        where = f"zoo {request.zoo} has no other tasks" if request.zoo else "no --zoo was given"
        raise BadInput(
            f"--method mvp needs neighbours, but {where}: use --method auto, or build a zoo"
        )
    if request.method != "auto":
        method_for(request.method, backbone.family)
        return request.method, "as asked"
    if len(entries) >= request.neighbours:
        return "mvp", f"{request.neighbours} of the zoo's {len(entries)} tasks vote"
    scratch = FROM_SCRATCH[backbone.family]
    why = f"the zoo has {len(entries)} tasks" if request.zoo else "there is no zoo yet"
    return scratch, f"from scratch, since {why}"


def _solve(
    request: Request,
    backbone: Backbone,
    policy: str,
    profile: DeviceProfile,
    classes: int,
    zoo: Zoo | None,
) -> Plan:
    ceiling = zoo.keep if zoo else DEFAULT_KEEP
    if request.keep != "auto":
        try:
            ceiling = float(request.keep)
        except ValueError as error:
            raise BadInput(
                f"--keep {request.keep}: auto, or a ratio above 0 and at most 1"
            ) from error
        if not 0 < ceiling <= 1:
            raise BadInput(f"--keep {request.keep}: the ratio must be above 0 and at most 1")
    return solve(backbone.model, policy, backbone.shape, profile, ceiling, classes)


def _overrides(request: Request) -> dict[str, str] | None:
    """The user's file of class meanings."""
    return load_overrides(Path(request.synsets)) if request.synsets else None


def _zoo_size(zoo: Zoo | None, request: Request) -> int | None:
    """The input size at which the zoo's own backbone was loaded."""
    if zoo is None or (request.backbone is not None and request.backbone != zoo.backbone_source):
        return None
    return int(zoo.facts["backbone"]["input_size"])


def _neighbours(settled: Settled, progress: Progress) -> dict[str, Any]:
    """neighbours.json, and what finding them cost."""
    request, ledger = settled.request, Ledger()
    rows = settled.task.subsample("train", LEEP_IMAGES, request.seed)
    found = find_neighbours(
        settled.entries,
        settled.backbone,
        settled.task.images("train", settled.backbone.preprocess).take(rows),
        settled.task.classes,
        request.neighbours,
        ledger,
        similarity=request.similarity,
        overrides=_overrides(request),
        disjoint=request.disjoint,
        progress=progress,
    )
    return {**found.to_json(), "flops": ledger.similarity_flops}


def _prune(
    settled: Settled, problem: Problem, run: RunDirectory
) -> tuple[Pruned, tuple[Ballot, ...]]:
    if not settled.voting:
        method = method_for(settled.method, settled.backbone.family)
        assert method.prune is not None
        return method.prune(problem), ()
    by_name = {entry.name: entry for entry in settled.entries}
    names = [neighbour["task"] for neighbour in run.read("neighbours.json")["neighbours"]]
    voters = [by_name[name].voter(settled.plan.keep) for name in names]
    return mvp(problem, voters, Voting(tau=settled.request.tau))


def _keep(settled: Settled, run: RunDirectory, pruned: Pruned, ballots: Sequence[Ballot]) -> None:
    """Write what the method returned; pruned.json, the last, says that it is all there."""
    backbone, task, recipe = settled.backbone, settled.task, settled.recipe
    similarity = 0
    if ballots:
        neighbours = run.read("neighbours.json")
        similarity = neighbours["flops"]
        names = [neighbour["task"] for neighbour in neighbours["neighbours"]]
        run.write("votes.json", {"neighbours": names, "groups": [b.to_json() for b in ballots]})
    run.write("history.json", asdict(pruned.history))
    to_network(backbone, settled.policy, task, pruned).save(run.path)
    dense = forward_macs(backbone.with_head(len(task.classes)), backbone.shape)
    batch = min(recipe.batch, len(task.splits["train"]))
    run.write(
        "pruned.json",
        {
            "synsets": synsets_of(task.classes, _overrides(settled.request)),
            "scores": scores(pruned, task, backbone),
            "costs": costs(pruned, backbone),
            "training": {
                "steps": recipe.steps,
                "batch": batch,
                "lr": recipe.lr,
                "optimizer": recipe.optimizer,
                "similarity_flops": similarity,
                "statistics_flops": pruned.ledger.statistics_flops,
                "training_flops": pruned.ledger.training_flops,
                "paper_flops": paper_cost(dense, batch, [pruned.ledger.density_steps]),
                "seconds": round(pruned.seconds, 2),
            },
        },
    )


def _reference(
    settled: Settled, problem: Problem, run: RunDirectory, progress: Progress
) -> dict[str, Any]:
    """The unpruned backbone, fine-tuned as a user would; kept per task beside the runs."""
    task, backbone = settled.task, settled.backbone
    recipe = recipe_for(
        "magnitude",
        backbone.family,
        augment=settled.request.augment,
        accelerator=problem.recipe.accelerator,
    )
    key = f"{backbone.sha256[:16]}-{task.fingerprint[:16]}-{recipe.steps}-{problem.seed}"
    cached = run.path.parent / ".references" / f"{key}.json"
    if not cached.exists():
        checkpoint = cached.with_suffix(".safetensors")
        whole = replace(
            problem,
            widths={},
            recipe=recipe,
            checkpoint=checkpoint,
            progress=lambda _phase, done, total: progress("reference", done, total),
        )
        tuned = fine_tune(whole, backbone.with_head(len(task.classes)), {})
        images = task.images("test", backbone.preprocess)
        logits = predict_logits(tuned.model, images.pixels, backbone.preprocess)
        facts = {
            "top1": accuracy(logits, images.labels),
            "n": len(images.labels),
            "steps": recipe.steps,
            "training_flops": tuned.ledger.total_flops,
            "seconds": round(tuned.seconds, 1),
        }
        write_json(cached, facts)
        checkpoint.unlink(missing_ok=True)
    result: dict[str, Any] = read_json(cached, "reference")
    return result


def _facts(settled: Settled, run: RunDirectory, network: Network) -> dict[str, Any]:
    """What run.json says of a finished run."""
    request, backbone, task, plan = settled.request, settled.backbone, settled.task, settled.plan
    return {
        "seed": request.seed,
        "backbone": {
            "name": backbone.name,
            "architecture": backbone.architecture.name,
            "source": backbone.source,
            "sha256": backbone.sha256,
            "family": backbone.family,
            "policy": settled.policy,
            "input_size": backbone.preprocess.size,
            "num_classes": len(backbone.classes),
        },
        "task": {
            "name": task.name,
            "source": task.source,
            "classes": list(task.classes),
            "images": {name: len(examples) for name, examples in task.splits.items()},
            "skipped": [{"file": s.file, "why": s.why} for s in task.skipped],
        },
        "profile": {
            "id": settled.profile.id,
            "name": settled.profile.name,
            "sha256": settled.profile.sha256,
        },
        "method": settled.method,
        "method_reason": settled.reason,
        "keep": {
            "asked": request.keep,
            "zoo": settled.zoo.keep if settled.zoo else None,
            "chosen": plan.keep,
            "binding": plan.binding,
            "room": plan.room.to_json() if plan.room else None,
        },
        "widths": {
            name: {"size": size, "kept": network.subnetwork.widths[name]}
            for name, size in network.subnetwork.sizes.items()
        },
        "training": run.read("pruned.json")["training"],
    }
