"""A zoo's trunk: one thin network of all its tasks, from which a new task starts.

Which units are kept depends little on the task that asks (benchmarks/README.md, *How similar must the tasks
be*). So the whole zoo votes once, and what it keeps is trained once on the pooled images of its tasks. A new
task's network starts from there instead of from its neighbours' mean: the same steps reach further. Where nothing
was pruned yet, the backbone's largest units are trained instead. The whole backbone teaches: what it sees in an
image counts beside the label, and alone where there is none.

    tasks, images ─ pool ─→ images, labels of some ┬─ the backbone's logits of them ┐
    entries ─ vote, average (mvp) ─────────────────┴────────────────────────────────┴─ steps ─→ zoo/trunks/<keep>/
"""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.pruning.batches import Recipe
from mvp_edge.pruning.distillation import UNLABELLED, Teacher
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.methods import METHODS, recipe_for
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.subnetwork.backbone import Backbone, heads, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.units import POLICIES, unit_groups
from mvp_edge.tasks.task import Images, Task
from mvp_edge.tasks.unlabelled import unlabelled_images
from mvp_edge.zoo.build import (
    DEFAULT_KEEP,
    anchored,
    choose_accelerator,
    claim,
    costs,
    find_tasks,
    recipe_facts,
    to_network,
    within_limits,
)
from mvp_edge.zoo.entries import Entry, Zoo, is_zoo
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess

EPOCHS = 32
"""How often a trunk sees the pooled images, where the user does not say."""
LEAST_STEPS = 100
ASKED_AT_ONCE = 250
MOST_HELD_OUT = 1000
"""Unlabelled images that a trunk is judged by, and not trained on."""
POOL_BYTES = 2**31
"""Decoded images that a pool holds at most: as many of each class as fit."""


def grow_trunk(
    *,
    path: Path,
    tasks: Path | None = None,
    images: Path | None = None,
    sample: str | None = None,
    backbone: str | None = None,
    policy: str | None = None,
    keep: float | None = None,
    steps: int | None = None,
    input_size: int | None = None,
    accelerator: str = "auto",
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Entry:
    """What `mvp-edge zoo trunk` does; killed at any moment, the same call goes on.

    Args:
        path: the zoo; made for ``backbone`` if need be.
        tasks: where the images of its tasks lie, as `build_from` has them.
        images: a folder or a zip of more images, or of all, that nobody labelled.
        sample: as `build_from` has it.
        backbone: of a new zoo, or where an existing zoo's lies, if it has moved.
        policy: of a new zoo; the family's default.
        keep: of each unit group; the zoo's own by default, and a tenth of a new one's.
        steps: so many; by default ``EPOCHS`` passes through the images.
        input_size: of a new zoo's images; the backbone's by default.
        accelerator: auto, cpu or cuda.
        seed: of tasks, splits and batches.
        force: replace the trunk of that ratio.
        progress: told of phases.
        say: told a line at a time.

    Raises:
        BadInput: there is one already, or the zoo, the backbone or the tasks cannot be read.
    """
    accelerator = choose_accelerator(accelerator)
    if tasks is None and images is None:
        raise BadInput("a trunk is trained on images: name --tasks, --images or both")
    if tasks is None and sample is not None:
        raise BadInput(f"--sample {sample} draws from the classes of --tasks, which is not given")
    found = find_tasks(tasks, sample, seed, progress) if tasks is not None else []
    loaded = _allowed(path, backbone, policy, keep, input_size, force=force)
    loose = None
    if images is not None:
        most = POOL_BYTES // (3 * loaded.preprocess.size**2)
        loose = unlabelled_images(images, loaded.preprocess, most, seed, progress)
    zoo = _opened(path, loaded, policy, keep)
    entries, ratio = zoo.entries(), zoo.keep if keep is None else keep
    lacking = sorted(set(zoo.names()) - {task.name for task in found})
    if lacking and found:
        say(f"without images of {len(lacking)} of the zoo's {len(entries)} tasks, as {lacking[0]}")
    with claim(zoo.path / ".work", f"trunk-{ratio:g}") as work, within_limits(zoo.path):
        if work is None:
            raise BadInput(f"another process makes this trunk of zoo {path}: wait for it")
        seen = pool(found, "train", loaded.preprocess, progress=progress)
        unseen = pool(found, "val", loaded.preprocess, progress=progress)
        if loose is not None:
            seen, unseen = with_unlabelled(seen, unseen, loose, seed)
        who = (
            f"{len(entries)} tasks vote"
            if entries
            else "no tasks yet, so the largest units are kept"
        )
        say(f"{path}: {who}; {_in_words(seen)}")
        pruned, recipe = train_trunk(
            loaded,
            zoo.policy,
            entries,
            seen,
            ratio,
            steps=steps,
            seed=seed,
            accelerator=accelerator,
            checkpoint=work / "checkpoint.safetensors",
            progress=progress,
        )
        trunk = zoo.add_trunk(
            to_network(loaded, zoo.policy, told_apart(seen, loaded), pruned),
            force=force,
            synsets=[],
            scores={"val": score(pruned, unseen, loaded)},
            cost=costs(pruned, loaded),
            recipe=recipe_facts("trunk", recipe, pruned, seed) | {"images": _counted(seen)},
            keep=ratio,
        )
        shutil.rmtree(work)
    return trunk


def _allowed(
    path: Path,
    backbone: str | None,
    policy: str | None,
    keep: float | None,
    input_size: int | None,
    *,
    force: bool,
) -> Backbone:
    """The backbone, where the zoo may have such a trunk; nothing is written."""
    if not is_zoo(path):
        if backbone is None:
            raise BadInput(f"{path} is no zoo yet: name the backbone of a new one with --backbone")
        return load_backbone(anchored(backbone), input_size)
    zoo = Zoo.open(path)
    size = input_size or zoo.input_size
    loaded = load_backbone(anchored(backbone or zoo.backbone_source), size)
    zoo.check(loaded, policy)
    ratio = zoo.keep if keep is None else keep
    if not force and any(abs(trunk.keep - ratio) < 1e-9 for trunk in zoo.trunks()):
        raise BadInput(f"zoo {path} has a trunk at keep {ratio:g} already: --force replaces it")
    return loaded


def _opened(path: Path, backbone: Backbone, policy: str | None, keep: float | None) -> Zoo:
    """The zoo, made if need be."""
    if is_zoo(path):
        return Zoo.open(path)
    chosen, ratio = policy or POLICIES[backbone.family][0], DEFAULT_KEEP if keep is None else keep
    exact_widths(unit_groups(backbone.model, chosen), ratio)
    return Zoo.create(path, backbone, chosen, ratio)


@dataclass(frozen=True)
class Pool:
    """The images of many tasks as one task; those without a label are ``UNLABELLED``."""

    classes: tuple[str, ...]
    images: Images

    @property
    def unlabelled(self) -> "Pool":
        """The same, their labels forgotten."""
        return Pool((), Images(self.images.pixels, np.full(len(self.images), UNLABELLED)))


def pool(
    tasks: Sequence[Task],
    split: str,
    preprocess: Preprocess,
    *,
    without: Collection[str] = (),
    progress: Progress = lambda phase, done, total: None,
) -> Pool:
    """Each class of each source once, with its images of ``split``.

    Classes of two sources are two classes, whatever they are called: "good" cables are no "good" apples.

    Args:
        tasks: of one backbone.
        split: train, val or test.
        preprocess: the backbone's.
        without: names of classes that are left out.
        progress: told of each task whose images are there.
    """
    first = {(task.source, name): task.name for task in reversed(tasks) for name in task.classes}
    first = {one: task for one, task in first.items() if one[1] not in without}
    most = max(1, POOL_BYTES // (3 * preprocess.size**2 * max(1, len(first))))
    parts: dict[tuple[str, str], NDArray[np.uint8]] = {}
    for number, task in enumerate(tasks, 1):
        images = task.images(split, preprocess)
        progress(f"decoding {split} of all tasks", number, len(tasks))
        for label, name in enumerate(task.classes):
            if first.get((task.source, name)) == task.name:
                rows = np.flatnonzero(images.labels == label)[:most]
                parts[task.source, name] = images.pixels[rows]
    names = Counter(name for _, name in parts)
    classes = [one[1] if names[one[1]] == 1 else f"{first[one]}/{one[1]}" for one in parts]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    pixels = np.concatenate([*parts.values(), np.empty((0, *[preprocess.size] * 2, 3), np.uint8)])
    return Pool(tuple(classes), Images(pixels, labels.astype(np.int64)))


def with_unlabelled(
    seen: Pool, unseen: Pool, pixels: NDArray[np.uint8], seed: int
) -> tuple[Pool, Pool]:
    """The images to train on and those to judge by, with these as well.

    Where there are no others to judge by, a twentieth of these is held out.
    """
    if not seen.classes:
        order = np.random.default_rng([seed, 5]).permutation(len(pixels))
        out = min(MOST_HELD_OUT, len(pixels) // 20)
        held, pixels = pixels[np.sort(order[:out])], pixels[np.sort(order[out:])]
        unseen = Pool((), Images(held, np.full(len(held), UNLABELLED)))
    labels = np.concatenate([seen.images.labels, np.full(len(pixels), UNLABELLED)])
    together = Images(np.concatenate([seen.images.pixels, pixels]), labels)
    return Pool(seen.classes, together), unseen


def told_apart(pooled: Pool, backbone: Backbone) -> tuple[str, ...]:
    """What a trunk's own head tells apart: the pool's classes; without any, the backbone's."""
    (head, *_) = heads(backbone.model).values()
    named = backbone.classes or tuple(f"class {n}" for n in range(head.out_features))
    return pooled.classes or named


def score(pruned: Pruned, unseen: Pool, backbone: Backbone) -> float:
    """Top-1 on images that it was not trained on; without labels, how often it agrees with the backbone."""
    labels, pixels = unseen.images.labels, unseen.images.pixels
    if not unseen.classes:
        labels = predict_logits(backbone.model, pixels, backbone.preprocess).argmax(1)
    return accuracy(predict_logits(pruned.model, pixels, backbone.preprocess), labels)


def _counted(seen: Pool) -> dict[str, int]:
    """How many images have a label, and how many have none."""
    known = int((seen.images.labels != UNLABELLED).sum())
    return {"labelled": known, "unlabelled": len(seen.images) - known}


def _in_words(seen: Pool) -> str:
    known, loose = _counted(seen).values()
    labelled = [f"{known} images of {len(seen.classes)} classes"] if known else []
    return " and ".join(labelled + ([f"{loose} images without labels"] if loose else []))


def train_trunk(
    backbone: Backbone,
    policy: str,
    entries: Sequence[Entry],
    pooled: Pool,
    keep: float,
    *,
    teach: bool | None = None,
    steps: int | None = None,
    seed: int = 0,
    accelerator: str = "cpu",
    progress: Progress = lambda phase, done, total: None,
    **more: Any,
) -> tuple[Pruned, Recipe]:
    """All entries vote and are averaged, or nobody does; what is kept is trained on the pool, and taught.

    Its head tells apart what `told_apart` says.

    Args:
        backbone: the zoo's.
        policy: the zoo's.
        entries: who votes; where nobody does, the backbone's largest units are kept.
        pooled: the images.
        keep: of each unit group.
        teach: whether the whole backbone's opinion counts, where labels are all there, too; without, it has to.
        steps: so many; by default ``EPOCHS`` passes through the pool.
        seed: of the batches.
        accelerator: cpu or cuda.
        progress: told of phases.
        more: of Problem's fields (checkpoint).
    """
    name = "mvp" if entries else "magnitude"
    recipe = recipe_for(name, backbone.family, accelerator=accelerator)
    if steps is None:
        steps = usual_steps(len(pooled.images), recipe.batch)
    recipe = replace(recipe, steps=steps)
    if teach is None:
        teach = bool((pooled.images.labels == UNLABELLED).any())
    teacher = _teacher(backbone, pooled, accelerator, progress) if teach else None
    problem = Problem(
        backbone=backbone,
        policy=policy,
        classes=len(pooled.classes) + (teacher.classes if teacher else 0),
        train=pooled.images,
        validation=None,
        widths=exact_widths(unit_groups(backbone.model, policy), keep),
        recipe=recipe,
        seed=seed,
        progress=progress,
        teacher=teacher,
        voters=[entry.voter(keep) for entry in entries],
        **more,
    )
    pruned = METHODS[name].prune(problem)
    if teacher:
        pruned.ledger.statistics_flops += len(pooled.images) * forward_macs(
            backbone.model, backbone.shape
        )
        _cut_heads(pruned.model, len(pooled.classes) or teacher.classes)
    return pruned, recipe


def _teacher(backbone: Backbone, pooled: Pool, accelerator: str, progress: Progress) -> Teacher:
    """The backbone, and what it thinks of the images."""
    whole, pixels = copy.deepcopy(backbone.model).to(accelerator), pooled.images.pixels
    opinions = []
    for first in range(0, len(pixels), ASKED_AT_ONCE):
        some = pixels[first : first + ASKED_AT_ONCE]
        opinions.append(predict_logits(whole, some, backbone.preprocess, fast=True))
        progress("asking the backbone", first + len(some), len(pixels))
    return Teacher(torch.from_numpy(np.concatenate(opinions)))


def _cut_heads(model: nn.Module, outputs: int) -> None:
    """Leave the first outputs of each head, and forget the others."""
    for name, head in heads(model).items():
        less = nn.Linear(head.in_features, outputs)
        less.load_state_dict({key: t[:outputs].clone() for key, t in head.state_dict().items()})
        setattr(model, name, less)


def usual_steps(images: int, batch: int) -> int:
    """As many as ``EPOCHS`` passes through the images take."""
    return max(LEAST_STEPS, round(EPOCHS * images / batch))
