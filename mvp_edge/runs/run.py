"""One network's run: from a device, a task and a zoo to a verified network in a run directory.

    settle     checks the request; nothing is written
    sizing     sizing.json                        if a latency budget can be measured on this machine
    images     task.json, profile.json            images are decoded once and kept in the cache
    similarity neighbours.json                    if the zoo votes
    pruning    network.*, votes.json, history.json, pruned.json
    reference  reference.json                     with --reference
    verify     verified.json, test.json, layers.json
    finish     run.json; the zoo's entry          with --add-to-zoo

Each file is written whole when its phase is done, and a phase whose files are there is not repeated: the
same command resumes a run that was interrupted.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mvp_edge.methods.catalogue import method_for
from mvp_edge.methods.mvp import Voting, mvp
from mvp_edge.pruning.arithmetic import arithmetic_of
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.pruning.results import costs, scores, to_network
from mvp_edge.pruning.votes import Voter
from mvp_edge.runs.files import HistoryFile, NeighboursFile, PrunedFile, ReferenceFile, TaskFile
from mvp_edge.runs.record import layers_file, neighbours_file, outcome_of, votes_file
from mvp_edge.runs.reference import tuned_reference
from mvp_edge.runs.run_file import Outcome, RunFile, TrainingFacts
from mvp_edge.runs.rundir import RunDirectory
from mvp_edge.runs.settle import Settled
from mvp_edge.runs.sizing import chosen_cell, sized
from mvp_edge.runs.verify import Verification
from mvp_edge.subnetwork.cost import forward_macs, paper_cost
from mvp_edge.subnetwork.network import TENSORS, Network
from mvp_edge.subnetwork.subnet import SubNetwork
from mvp_edge.tasks.task import Images
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, NeighbourSearch, Target
from mvp_edge.zoo.synsets import synsets_of
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.storage import sha256_file, write_json
from mvp_edge_export.verified import Verified

CHECKPOINT = ".checkpoint.safetensors"


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, its network and what was verified. Prints as its verdict."""

    path: Path
    verified: Verified
    network: Network

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read a finished run directory; BadInput says what is wrong with it."""
        run = RunDirectory.open(Path(path))
        network = Network.load(run.path)
        return cls(run.path, Verified.load(run.path / "verified.json", run.path / TENSORS), network)

    @property
    def subnetwork(self) -> SubNetwork:
        """The units of the backbone that were kept."""
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
    """Carry out a settled request; phases whose files are there are not repeated."""
    settled = sized(settled, run, progress)
    request, backbone, task, path = settled.request, settled.backbone, settled.task, run.path
    check_addable(settled, run)
    problem = begin(settled, run, progress)
    ask_neighbours(settled, problem, run)
    if not run.has(PrunedFile):
        with run.phase("pruning"):
            _write_pruned(settled, run, _prune(settled, problem, run))
    (path / CHECKPOINT).unlink(missing_ok=True)
    tune_reference(settled, problem, run)
    reference = run.read(ReferenceFile).top1 if request.reference else None
    against = Verification(backbone, task, settled.profile, reference, chosen_cell(run))
    with run.phase("verification"):
        progress("verification", 0, 1)
        network = Network.load(path)
        module = network.module()
        verified, test = against.verify(module, sha256_file(path / TENSORS))
        run.write(test)
        run.write(layers_file(settled, module))
        verified.save(path / "verified.json")
        progress("verification", 1, 1)
    return conclude(settled, run)


def check_addable(settled: Settled, run: RunDirectory) -> None:
    """Raise BadInput before the training if the zoo could not take the network after it."""
    zoo, name = settled.zoo, settled.task.name
    if not settled.request.add_to_zoo or zoo is None:
        return
    if not os.access(zoo.path, os.W_OK):
        raise BadInput(
            f"needs a zoo that can be written, and {zoo.path} cannot be", field="add_to_zoo"
        )
    if name in zoo.names() and not run.has(PrunedFile):
        raise BadInput(
            f"cannot add the network: zoo {zoo.path} has an entry {name!r} already: "
            f"`mvp-edge zoo rm {zoo.path} {name}` removes it, `mvp-edge zoo add --force` replaces it",
            field="add_to_zoo",
        )


def begin(settled: Settled, run: RunDirectory, progress: Progress) -> Problem:
    """Write the task and the profile into the run directory, and decode the images."""
    run.write(TaskFile.model_validate(settled.task.to_json()))
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
    """Write neighbours.json, if the zoo votes."""
    if settled.voting and not run.has(NeighboursFile):
        with run.phase("similarity"):
            run.write(_neighbours(settled, problem))


def tune_reference(settled: Settled, problem: Problem, run: RunDirectory) -> None:
    """Write reference.json, if it is asked for."""
    if settled.request.reference and not run.has(ReferenceFile):
        with run.phase("reference"):
            run.write(tuned_reference(settled, problem, run.path))


def conclude(settled: Settled, run: RunDirectory) -> Run:
    """Add the verified network to the zoo, if that is asked for, and finish the run."""
    network = Network.load(run.path)
    verified = Verified.load(run.path / "verified.json", run.path / TENSORS)
    outcome = outcome_of(settled, run.read(PrunedFile).training, network)
    if settled.request.add_to_zoo and settled.zoo is not None and verified.passed:
        _add(settled.zoo, run, outcome)
    run.finish(outcome)
    return Run(run.path, verified, network)


def add_run(zoo: Zoo, run: Path, *, force: bool = False) -> Entry:
    """Add a finished run's network to a zoo."""
    directory = RunDirectory.open(run)
    return _add(zoo, directory, directory.read(RunFile), force=force)


def _images(settled: Settled, split: str, progress: Progress) -> Images:
    return settled.task.images(
        split,
        settled.backbone.preprocess,
        progress=lambda done, total: progress(f"decoding {split}", done, total),
    )


def _neighbours(settled: Settled, problem: Problem) -> NeighboursFile:
    """Find the zoo's tasks that vote."""
    request, task, ledger = settled.request, settled.task, Ledger()
    images = Images(problem.train.pixels, problem.train.labels)
    search = NeighbourSearch(
        settled.entries, settled.backbone, request.similarity or "leep", request.disjoint
    )
    found = search.find(
        Target(
            images.take(task.subsample("train", LEEP_IMAGES, request.seed)),
            task.classes,
            settled.overrides,
        ),
        settled.source.neighbours,
        ledger,
        problem.progress,
    )
    return neighbours_file(found, settled.entries, ledger.similarity_flops)


def _voters(settled: Settled, run: RunDirectory) -> list[Voter]:
    """The neighbours of neighbours.json; BadInput if the zoo's entry of one was changed since."""
    by_name = {entry.name: entry for entry in settled.entries}
    voters, found = [], run.read(NeighboursFile)
    for name, weights in found.weights.items():
        if name not in by_name or by_name[name].weights_sha256 != weights:
            raise BadInput(
                f"run {run.path}: its neighbour {name} was changed in the zoo, or removed from it, since "
                "the run began: restore it, or begin a new run"
            )
        voters.append(by_name[name].voter(settled.plan.keep, found.scores[name]))
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


def _write_pruned(settled: Settled, run: RunDirectory, pruned: Pruned) -> None:
    """Write what the method returned; pruned.json is written last and marks the others as whole."""
    backbone, task, recipe = settled.backbone, settled.task, settled.recipe
    similarity: int | float = 0
    if settled.voting and pruned.ballots:
        neighbours = run.read(NeighboursFile)
        similarity = neighbours.flops
        run.write(votes_file(neighbours, pruned, _voting(settled).tau))
    run.write(HistoryFile.model_validate(asdict(pruned.history)))
    to_network(backbone, settled.policy, task.classes, pruned).save(run.path)
    dense = forward_macs(backbone.outline(len(task.classes)), backbone.shape)
    images = len(task.splits["train"])
    batch = min(recipe.batch, images)
    training = TrainingFacts(
        steps=recipe.steps,
        batch=batch,
        updates=recipe.updates,
        lr=recipe.lr,
        optimizer=recipe.optimizer,
        arithmetic=arithmetic_of(recipe.accelerator),
        augmented=tuple(recipe.augmentation(images)),
        similarity_flops=similarity,
        statistics_flops=pruned.ledger.statistics_flops,
        training_flops=pruned.ledger.training_flops,
        paper_flops=paper_cost(dense, batch, [pruned.ledger.density_steps]),
        seconds=round(pruned.seconds, 2),
        step_seconds=round(pruned.step_seconds, 2),
    )
    run.write(
        PrunedFile(
            synsets=tuple(synsets_of(task.classes, settled.overrides)),
            scores=scores(pruned, task, backbone),
            costs=costs(pruned, backbone),
            training=training,
        )
    )


def _add(zoo: Zoo, run: RunDirectory, outcome: Outcome, *, force: bool = False) -> Entry:
    """Make a run's network an entry; one that was added before the run was interrupted is left alone."""
    name, network = outcome.task.name, Network.load(run.path)
    if name in zoo.names() and not force:
        there = zoo.entry(name)
        if there.weights_sha256 == sha256_file(run.path / TENSORS):
            return there
    made = run.read(PrunedFile)
    training = outcome.training.model_dump(mode="json", exclude_unset=True)
    return zoo.add(
        name,
        network,
        synsets=made.synsets,
        scores=made.scores,
        cost=made.costs,
        recipe={"method": outcome.method, **training, "seed": outcome.seed},
        keep=outcome.keep.chosen,
        force=force,
    )
