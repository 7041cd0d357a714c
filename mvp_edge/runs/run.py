"""One network's run: from a device, a task and a zoo to a verified network in a run directory.

    settle     everything that can be refused is refused here; nothing is written
    sizing     sizing.json                        where a latency budget can be measured here
    images     task.json, profile.json            decoded once, kept in the cache
    similarity neighbours.json                    where the zoo votes
    pruning    network.*, votes.json, history.json, pruned.json
    reference  reference.json                     with --reference
    verify     verified.json, test.json, layers.json
    finish     run.json; the zoo's entry          with --add-to-zoo

Each file appears whole when its phase is done, and a phase whose files are there is not repeated: the
same command goes on where a killed one stopped.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mvp_edge.methods.catalogue import method_for
from mvp_edge.methods.mvp import Voting, mvp
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.pruning.results import costs, scores, to_network
from mvp_edge.pruning.votes import Voter
from mvp_edge.runs.reference import tuned_reference
from mvp_edge.runs.rundir import RunDirectory
from mvp_edge.runs.settle import Settled
from mvp_edge.runs.sizing import chosen_cell, sized
from mvp_edge.runs.verify import verify
from mvp_edge.subnetwork.cost import forward_macs, layers, paper_cost
from mvp_edge.subnetwork.network import TENSORS, Network
from mvp_edge.subnetwork.subnet import SubNetwork
from mvp_edge.tasks.task import Images
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, find_neighbours
from mvp_edge.zoo.synsets import synsets_of
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.storage import sha256_file, write_json
from mvp_edge_export.verified import Verified

CHECKPOINT = ".checkpoint.safetensors"


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies and what was verified. Prints as its verdict."""

    path: Path
    verified: Verified
    network: Network

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """A finished run directory; BadInput says what is wrong with it."""
        run = RunDirectory.open(Path(path))
        network = Network.load(run.path)
        return cls(run.path, Verified.load(run.path / "verified.json", run.path / TENSORS), network)

    @property
    def subnetwork(self) -> SubNetwork:
        """What was kept of the backbone."""
        return self.network.subnetwork

    def check(self) -> None:
        """Raise BudgetMissed if a verdict is FAIL."""
        if not self.verified.passed:
            missed = "; ".join(str(verdict) for verdict in self.verified.failed)
            raise BudgetMissed(
                f"{self.path}: missed after training: {missed}; the run is kept, its export refused"
            )

    def __repr__(self) -> str:
        cost, full = self.verified.cost, self.verified.cost_baseline
        lines = [
            f"Run {self.path}: {100 * self.verified.accuracy:.1f} % top-1 on {self.verified.images} test images, "
            f"{cost.flops / 1e6:.1f} M multiply-adds ({full.flops / cost.flops:.1f}× fewer), "
            f"{cost.params / 1e6:.2f} M parameters"
        ]
        for verdict in self.verified.verdicts:
            lines.append(f"  {verdict}" + (f" ({verdict.note})" if verdict.note else ""))
        return "\n".join(lines)


def execute(settled: Settled, run: RunDirectory, progress: Progress) -> Run:
    """Carry out what was settled; phases whose files are there are not repeated."""
    settled = sized(settled, run, progress)
    request, backbone, task, path = settled.request, settled.backbone, settled.task, run.path
    check_addable(settled, run)
    problem = begin(settled, run, progress)
    ask_neighbours(settled, problem, run)
    if not run.has("pruned.json"):
        with run.phase("pruning"):
            _keep(settled, run, _prune(settled, problem, run))
    (path / CHECKPOINT).unlink(missing_ok=True)
    tune_reference(settled, problem, run)
    reference = float(run.read("reference.json")["top1"]) if request.reference else None
    with run.phase("verification"):
        progress("verification", 0, 1)
        network = Network.load(path)
        module = network.module()
        verified, test = verify(
            module,
            sha256_file(path / TENSORS),
            backbone,
            task,
            settled.profile,
            reference,
            chosen_cell(run),
        )
        run.write("test.json", test)
        run.write("layers.json", {"layers": _layers(settled, module)})
        verified.save(path / "verified.json")
        progress("verification", 1, 1)
    return conclude(settled, run)


def check_addable(settled: Settled, run: RunDirectory) -> None:
    """Refuse before the training what the zoo would refuse after it."""
    zoo, name = settled.zoo, settled.task.name
    if not settled.request.add_to_zoo or zoo is None:
        return
    if not os.access(zoo.path, os.W_OK):
        raise BadInput(f"--add-to-zoo: zoo {zoo.path} cannot be written")
    if name in zoo.names() and not run.has("pruned.json"):
        raise BadInput(
            f"--add-to-zoo: zoo {zoo.path} has an entry {name!r} already: "
            f"`mvp-edge zoo rm {zoo.path} {name}` removes it, `mvp-edge zoo add --force` replaces it"
        )


def begin(settled: Settled, run: RunDirectory, progress: Progress) -> Problem:
    """Say what is worked on, and decode the images."""
    run.write("task.json", settled.task.to_json())
    write_json(run.path / "profile.json", settled.profile.model_dump(mode="json", by_alias=True))
    with run.phase("images"):
        return Problem(
            backbone=settled.backbone,
            policy=settled.policy,
            classes=len(settled.task.classes),
            train=_images(settled, "train", progress),
            validation=_images(settled, "val", progress),
            widths=settled.plan.widths,
            recipe=settled.recipe,
            seed=settled.request.seed,
            checkpoint=run.path / CHECKPOINT,
            progress=progress,
        )


def ask_neighbours(settled: Settled, problem: Problem, run: RunDirectory) -> None:
    """neighbours.json, where the zoo votes."""
    if settled.voting and not run.has("neighbours.json"):
        with run.phase("similarity"):
            run.write("neighbours.json", _neighbours(settled, problem))


def tune_reference(settled: Settled, problem: Problem, run: RunDirectory) -> None:
    """reference.json, where it is asked for."""
    if settled.request.reference and not run.has("reference.json"):
        with run.phase("reference"):
            run.write("reference.json", tuned_reference(settled, problem, run.path))


def conclude(settled: Settled, run: RunDirectory) -> Run:
    """Add what was verified to the zoo, if that is asked for, and call the run finished."""
    network = Network.load(run.path)
    verified = Verified.load(run.path / "verified.json", run.path / TENSORS)
    facts = _facts(settled, run, network)
    if settled.request.add_to_zoo and settled.zoo is not None and verified.passed:
        _add(settled.zoo, run, facts)
    run.finish(**facts)
    return Run(run.path, verified, network)


def add_run(zoo: Zoo, run: Path, *, force: bool = False) -> Entry:
    """Add a finished run's network to a zoo."""
    directory = RunDirectory.open(run)
    return _add(zoo, directory, directory.read("run.json"), force=force)


def _images(settled: Settled, split: str, progress: Progress) -> Images:
    return settled.task.images(
        split,
        settled.backbone.preprocess,
        progress=lambda done, total: progress(f"decoding {split}", done, total),
    )


def _neighbours(settled: Settled, problem: Problem) -> dict[str, Any]:
    """neighbours.json: who votes, whose weights these are, and what finding them cost."""
    request, task, ledger = settled.request, settled.task, Ledger()
    images = Images(problem.train.pixels, problem.train.labels)
    found = find_neighbours(
        settled.entries,
        settled.backbone,
        images.take(task.subsample("train", LEEP_IMAGES, request.seed)),
        task.classes,
        settled.source.neighbours,
        ledger,
        similarity=request.similarity or "leep",
        overrides=settled.overrides,
        disjoint=request.disjoint,
        progress=problem.progress,
    )
    of = {entry.name: entry.weights_sha256 for entry in settled.entries}
    return {
        **found.to_json(),
        "weights": {one.task: of[one.task] for one in found.chosen},
        "flops": ledger.similarity_flops,
    }


def _voters(settled: Settled, run: RunDirectory) -> list[Voter]:
    """The neighbours that were found, as they were then."""
    by_name = {entry.name: entry for entry in settled.entries}
    voters, found = [], run.read("neighbours.json")
    similarity = {one["task"]: float(one["score"]) for one in found["neighbours"]}
    for name, weights in found["weights"].items():
        if name not in by_name or by_name[name].weights_sha256 != weights:
            raise BadInput(
                f"run {run.path}: its neighbour {name} was changed in, or removed from, the zoo since "
                "the run began: restore it, or begin a new run"
            )
        voters.append(by_name[name].voter(settled.plan.keep, similarity[name]))
    return voters


def _prune(settled: Settled, problem: Problem, run: RunDirectory) -> Pruned:
    if settled.voting:
        problem = replace(problem, voters=_voters(settled, run))
    elif settled.trunk:
        problem = replace(problem, voters=[settled.trunk.voter(settled.plan.keep)])
    if settled.method == "mvp":
        return mvp(problem, _voting(settled))
    return method_for(settled.method, settled.backbone.family).prune(problem)


def _voting(settled: Settled) -> Voting:
    tau = settled.request.tau
    return Voting() if tau is None else Voting(tau=tau)


def _keep(settled: Settled, run: RunDirectory, pruned: Pruned) -> None:
    """Write what the method returned; pruned.json, the last, says that it is all there."""
    backbone, task, recipe = settled.backbone, settled.task, settled.recipe
    similarity = 0
    if settled.voting and pruned.ballots:
        neighbours = run.read("neighbours.json")
        similarity = neighbours["flops"]
        names = [neighbour["task"] for neighbour in neighbours["neighbours"]]
        groups = [ballot.to_json() for ballot in pruned.ballots]
        tau = _voting(settled).tau
        run.write("votes.json", {"neighbours": names, "tau": tau, "groups": groups})
    run.write("history.json", asdict(pruned.history))
    to_network(backbone, settled.policy, task.classes, pruned).save(run.path)
    dense = forward_macs(backbone.outline(len(task.classes)), backbone.shape)
    images = len(task.splits["train"])
    batch = min(recipe.batch, images)
    run.write(
        "pruned.json",
        {
            "synsets": synsets_of(task.classes, settled.overrides),
            "scores": scores(pruned, task, backbone),
            "costs": costs(pruned, backbone),
            "training": {
                "steps": recipe.steps,
                "batch": batch,
                "updates": recipe.updates,
                "lr": recipe.lr,
                "optimizer": recipe.optimizer,
                "augmented": recipe.augmentation(images),
                "similarity_flops": similarity,
                "statistics_flops": pruned.ledger.statistics_flops,
                "training_flops": pruned.ledger.training_flops,
                "paper_flops": paper_cost(dense, batch, [pruned.ledger.density_steps]),
                "seconds": round(pruned.seconds, 2),
                "step_seconds": round(pruned.step_seconds, 2),
            },
        },
    )


def _add(zoo: Zoo, run: RunDirectory, facts: dict[str, Any], *, force: bool = False) -> Entry:
    """Make a run's network an entry; one that is there already (added, then killed) is left alone."""
    name, network = facts["task"]["name"], Network.load(run.path)
    if name in zoo.names() and not force:
        there = zoo.entry(name)
        if there.weights_sha256 == sha256_file(run.path / TENSORS):
            return there
    made = run.read("pruned.json")
    return zoo.add(
        name,
        network,
        synsets=made["synsets"],
        scores=made["scores"],
        cost=made["costs"],
        recipe={"method": facts["method"], **facts["training"], "seed": facts["seed"]},
        keep=facts["keep"]["chosen"],
        force=force,
    )


def _layers(settled: Settled, module: nn.Module) -> list[dict[str, Any]]:
    """layers.json: what each layer costs, and the same layer of the unpruned network."""
    backbone = settled.backbone
    unpruned = layers(backbone.outline(len(settled.task.classes)), backbone.shape)
    whole = {layer.name: layer.flops for layer in unpruned}
    return [
        {**asdict(layer), "flops_baseline": whole.get(layer.name)}
        for layer in layers(module, backbone.shape)
    ]


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
        "method_reason": settled.source.reason,
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
