"""Building a zoo: one model a task, pruned from scratch, resumable at any moment.

Several processes may build one zoo together: each takes the next task that nobody works on.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from mvp_edge.backbone import Backbone, load_backbone
from mvp_edge.budget import exact_widths
from mvp_edge.cost import forward_macs
from mvp_edge.methods import FROM_SCRATCH, method_for, recipe_for
from mvp_edge.network import Network
from mvp_edge.prune import Problem, Progress, Pruned
from mvp_edge.subnet import Kept
from mvp_edge.synsets import open_wordnet
from mvp_edge.task import Task, sample_tasks, tasks_in
from mvp_edge.train import Recipe, accuracy, predict_logits
from mvp_edge.units import POLICIES, unit_groups
from mvp_edge.zoo import Zoo
from mvp_edge_export.errors import BadInput


def build_from(
    *,
    backbone: str,
    tasks: Path,
    path: Path,
    sample: str | None = None,
    keep: float = 0.1,
    policy: str | None = None,
    method: str | None = None,
    steps: int | None = None,
    snapshots: Sequence[float] = (),
    input_size: int | None = None,
    augment: tuple[str, ...] = ("flip", "shift"),
    accelerator: str = "auto",
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Zoo, list[str]]:
    """What `mvp-edge zoo build` does; returns the zoo and the entries added now.

    ``tasks``: a folder whose sub-folders (or zips) are tasks; with ``sample`` "NxK" a folder or zip of
    classes, from which N tasks of K classes are drawn with ``seed``.
    """
    loaded = load_backbone(backbone, input_size)
    chosen = policy or POLICIES[loaded.family][0]
    unit_groups(loaded.model, chosen)
    name = method or FROM_SCRATCH[loaded.family]
    if method_for(name, loaded.family).prune is None:
        raise BadInput(f"--method {name} needs a zoo: build one with {FROM_SCRATCH[loaded.family]}")
    accelerator = choose_accelerator(accelerator)
    recipe = recipe_for(name, loaded.family, steps=steps, augment=augment, accelerator=accelerator)
    if sample is None:
        found = tasks_in(tasks, seed=seed)
    else:
        count, _, classes = sample.partition("x")
        if not (count.isdecimal() and classes.isdecimal()):
            raise BadInput(f"--sample {sample}: write NxK, e.g. 20x5 for 20 tasks of 5 classes")
        found = sample_tasks(tasks, int(count), int(classes), seed)
    if not found:
        raise BadInput(
            f"--tasks {tasks}: no tasks there: each sub-folder with class folders is one"
        )
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
        return [m.synset for m in open_wordnet().meanings(classes, overrides)]
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
    assert prune is not None
    groups = unit_groups(backbone.model, zoo.policy)
    added = []
    for number, task in enumerate(tasks):
        with claim(zoo.path / ".work", task.name) as work:
            if work is None or task.name in zoo.names():
                continue
            progress(f"{task.name} ({number + 1} of {len(tasks)})", 0, 1)
            problem = Problem(
                backbone=backbone,
                policy=zoo.policy,
                classes=len(task.classes),
                train=task.images("train", backbone.preprocess),
                validation=task.images("val", backbone.preprocess),
                widths=exact_widths(groups, zoo.keep),
                recipe=recipe or recipe_for(name, backbone.family),
                seed=seed,
                snapshots=snapshots,
                checkpoint=work / "checkpoint.safetensors",
                progress=progress,
            )
            pruned = prune(problem)
            network = to_network(backbone, zoo.policy, task, pruned)
            larger = {
                ratio: to_network(backbone, zoo.policy, task, pruned, kept, weights)
                for ratio, (kept, weights) in pruned.snapshots.items()
            }
            zoo.add(
                task.name,
                network,
                synsets=synsets_of(task.classes),
                scores=scores(pruned, task, backbone),
                cost=costs(pruned, backbone),
                recipe={
                    "method": name,
                    "steps": problem.recipe.steps,
                    "lr": problem.recipe.lr,
                    "batch": problem.recipe.batch,
                    "seed": seed,
                    "seconds": round(pruned.seconds, 1),
                },
                keep=zoo.keep,
                snapshots=larger,
            )
            added.append(task.name)
            shutil.rmtree(work)
    return added


def to_network(
    backbone: Backbone,
    policy: str,
    task: Task,
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
        classes=task.classes,
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
def claim(work: Path, name: str) -> Iterator[Path | None]:
    """A working folder for ``name``, held by this process alone; None while another one holds it."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    with (work / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield folder
