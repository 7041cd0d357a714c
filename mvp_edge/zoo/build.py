"""Building a zoo: one model a task, pruned from scratch, resumable at any moment.

Several processes may build one zoo together: each takes the next task that nobody works on.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import torch

from mvp_edge.pruning.batches import Recipe
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.methods import FROM_SCRATCH, STEP_BY_STEP, method_for, recipe_for
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.subnet import Kept
from mvp_edge.subnetwork.units import POLICIES, unit_groups
from mvp_edge.subnetwork.weights import first_line
from mvp_edge.tasks.task import Images, Task, sample_tasks, tasks_in
from mvp_edge.zoo.entries import Zoo
from mvp_edge.zoo.synsets import wordnet
from mvp_edge_export.errors import BadInput

DEFAULT_KEEP = 0.1
"""Kept where neither a zoo nor the user says: the paper's 90 % pruned."""


def build_from(
    *,
    backbone: str,
    tasks: Path,
    path: Path,
    sample: str | None = None,
    keep: float = DEFAULT_KEEP,
    policy: str | None = None,
    method: str | None = None,
    steps: int | None = None,
    snapshots: Sequence[float] = (),
    input_size: int | None = None,
    augment: tuple[str, ...] | None = None,
    accelerator: str = "auto",
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Zoo, list[str]]:
    """What `mvp-edge zoo build` does; returns the zoo and the entries added now.

    ``tasks``: a folder whose sub-folders (or zips) are tasks; with ``sample`` "NxK" a folder or zip of
    classes, from which N tasks of K classes are drawn with ``seed``.
    """
    for ratio in snapshots:
        if not keep < ratio < 1:
            raise BadInput(
                f"--snapshots {ratio:g}: a snapshot's ratio lies between --keep {keep:g} and 1"
            )
    loaded = load_backbone(anchored(backbone), input_size)
    chosen = policy or POLICIES[loaded.family][0]
    exact_widths(unit_groups(loaded.model, chosen), keep)
    name = method or (STEP_BY_STEP if snapshots else FROM_SCRATCH)[loaded.family]
    how = method_for(name, loaded.family)
    if how.asks != "nobody":
        raise BadInput(f"--method {name} needs a zoo: build one with {FROM_SCRATCH[loaded.family]}")
    if snapshots and not how.gradual:
        raise BadInput(
            f"--snapshots: --method {name} passes through no larger ratio: use {STEP_BY_STEP[loaded.family]}"
        )
    accelerator = choose_accelerator(accelerator)
    recipe = recipe_for(name, loaded.family, steps=steps, augment=augment, accelerator=accelerator)
    found = find_tasks(tasks, sample, seed, progress)
    zoo = Zoo.create(path, loaded, chosen, keep)
    todo = [task for task in found if task.name not in zoo.names()]
    say(
        f"{path}: {len(found)} tasks, {len(found) - len(todo)} done; {name}, {recipe.steps} steps each"
    )
    added = build_zoo(
        zoo,
        loaded,
        todo,
        method=name,
        recipe=recipe,
        snapshots=snapshots,
        seed=seed,
        progress=progress,
    )
    return zoo, added


def find_tasks(tasks: Path, sample: str | None, seed: int, progress: Progress) -> list[Task]:
    """Those in a folder; with ``sample`` "NxK" drawn from one folder or zip of classes."""
    checking = partial(progress, "checking images")
    if sample is None:
        return tasks_in(tasks, seed=seed, progress=checking)
    count, _, classes = sample.partition("x")
    if not (count.isdecimal() and classes.isdecimal()):
        raise BadInput(f"--sample {sample}: write NxK, e.g. 20x5 for 20 tasks of 5 classes")
    return sample_tasks(tasks, int(count), int(classes), seed, progress=checking)


def anchored(source: str) -> str:
    """A backbone's source as it means the same from every folder: files by their absolute paths."""
    architecture, at, file = source.rpartition("@")
    if Path(source).is_file():
        return str(Path(source).absolute())
    return f"{architecture}@{Path(file).absolute()}" if at and Path(file).is_file() else source


def choose_accelerator(wanted: str) -> str:
    """The device to train on; BadInput when CUDA is asked for and absent."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("--accelerator cuda: PyTorch sees no CUDA device here; use auto or cpu")
    return wanted


def synsets_of(classes: Sequence[str], overrides: Mapping[str, str] | None = None) -> list[str]:
    """The classes' synsets, for WordNet similarity later; [] where not every name has one."""
    try:
        return [m.synset for m in wordnet().meanings(classes, overrides)]
    except BadInput:
        return []


def build_zoo(
    zoo: Zoo,
    backbone: Backbone,
    tasks: Sequence[Task],
    *,
    method: str | None = None,
    recipe: Recipe | None = None,
    snapshots: Sequence[float] = (),
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
) -> list[str]:
    """Prune every task that the zoo does not have yet; returns the names that were added now.

    A killed build goes on where it was: finished entries are skipped, the unfinished one resumes from
    its checkpoint in the zoo's ``.work`` folder.
    """
    zoo.check(backbone)
    name = method or FROM_SCRATCH[backbone.family]
    prune = method_for(name, backbone.family).prune
    groups = unit_groups(backbone.model, zoo.policy)
    recipe = recipe or recipe_for(name, backbone.family)
    added = []
    for number, task in enumerate(tasks):
        progress("zoo", number, len(tasks))
        with claim(zoo.path / ".work", task.name) as work, within_limits(zoo.path):
            if work is None or task.name in zoo.names():
                continue
            for leftover in (zoo.path / "entries").glob(f".{escape(task.name)}.*"):
                shutil.rmtree(leftover)  # a killed process was writing it
            problem = Problem(
                backbone=backbone,
                policy=zoo.policy,
                classes=len(task.classes),
                train=_images(task, "train", backbone, progress),
                validation=_images(task, "val", backbone, progress),
                widths=exact_widths(groups, zoo.keep),
                recipe=recipe,
                seed=seed,
                snapshots=snapshots,
                checkpoint=work / "checkpoint.safetensors",
                progress=_named(task.name, progress),
            )
            _add(zoo, task, problem, prune(problem), name)
            added.append(task.name)
            shutil.rmtree(work)
    progress("zoo", len(tasks), len(tasks))
    return added


def _add(zoo: Zoo, task: Task, problem: Problem, pruned: Pruned, method: str) -> None:
    """Make what a method returned an entry."""
    backbone, recipe = problem.backbone, problem.recipe
    zoo.add(
        task.name,
        to_network(backbone, zoo.policy, task.classes, pruned),
        synsets=synsets_of(task.classes),
        scores=scores(pruned, task, backbone),
        cost=costs(pruned, backbone),
        recipe=recipe_facts(method, recipe, pruned, problem.seed),
        keep=zoo.keep,
        snapshots={
            ratio: to_network(backbone, zoo.policy, task.classes, pruned, kept, weights)
            for ratio, (kept, weights) in pruned.snapshots.items()
        },
    )


def recipe_facts(method: str, recipe: Recipe, pruned: Pruned, seed: int) -> dict[str, Any]:
    """How an entry was made, as it stands in entry.json."""
    return {
        "method": method,
        "steps": recipe.steps,
        "lr": recipe.lr,
        "batch": recipe.batch,
        "updates": recipe.updates,
        "seed": seed,
        "seconds": round(pruned.seconds, 1),
    }


def _images(task: Task, split: str, backbone: Backbone, progress: Progress) -> Images:
    return task.images(
        split,
        backbone.preprocess,
        progress=lambda done, total: progress(f"{task.name}: decoding {split}", done, total),
    )


def _named(task: str, progress: Progress) -> Progress:
    """The progress of one task among many."""
    return lambda phase, done, total: progress(f"{task}: {phase}", done, total)


def to_network(
    backbone: Backbone,
    policy: str,
    classes: tuple[str, ...],
    pruned: Pruned,
    kept: Kept | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Network:
    """What a method returned, as it goes to disk."""
    return Network(
        architecture=backbone.architecture,
        policy=policy,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        classes=classes,
        preprocess=backbone.preprocess,
        kept=kept or pruned.kept,
        ranking=pruned.ranking,
        weights=weights or pruned.model.state_dict(),
    )


def scores(pruned: Pruned, task: Task, backbone: Backbone) -> dict[str, float]:
    """Top-1 on validation and test images, in float32."""
    result = {}
    for split in ("val", "test"):
        images = task.images(split, backbone.preprocess)
        if len(images.labels):
            logits = predict_logits(pruned.model, images.pixels, backbone.preprocess)
            result[split] = accuracy(logits, images.labels)
    return result


def costs(pruned: Pruned, backbone: Backbone) -> dict[str, int]:
    """What the model costs to run, and what it cost to make (multiply-adds)."""
    return {
        "forward": forward_macs(pruned.model, backbone.shape),
        "params": sum(p.numel() for p in pruned.model.parameters()),
        "statistics": pruned.ledger.statistics_flops,
        "training": pruned.ledger.training_flops,
    }


@contextmanager
def within_limits(place: Path) -> Iterator[None]:
    """Tells a full disk, which safetensors reports in its own way, and full memory from a bug."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise BadInput(f"cannot write in {place}: {first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BadInput(
            f"out of memory ({first_line(error)}): a smaller --input-size, or another --accelerator"
        ) from error


@contextmanager
def claim(work: Path, name: str) -> Iterator[Path | None]:
    """A working folder for ``name``, held by this process alone; None while another one holds it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        folder = work / name  # only now: who held it before may just have removed it
        folder.mkdir(exist_ok=True)
        yield folder
