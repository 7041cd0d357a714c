"""A zoo's trunk: one small network trained once on all tasks, from which a new task starts.

Which units are kept depends little on the task (docs/evidence). So all entries of the zoo vote once, and the units
they keep are trained once on the pooled images of the tasks. A new task's network starts from there instead of from
its neighbours' average, and reaches a higher accuracy in as many steps. Without entries the backbone's units with
the largest weights are trained instead. The unpruned backbone is the teacher: its logits are an additional
training target, and the only one for images without a label.

    tasks, images ─ pool ─→ images, labels of some ┬─ the backbone's logits ─┐
    entries ─ vote, average (mvp) ─────────────────┴─────────────────────────┴─ steps ─→ zoo/trunks/<keep>/
"""

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.machine import within_limits
from mvp_edge.methods.catalogue import DEFAULT_KEEP, METHODS, recipe_for
from mvp_edge.methods.distill import TEACHER_BATCH
from mvp_edge.pruning.arithmetic import choose_accelerator
from mvp_edge.pruning.distillation import UNLABELLED, Teacher
from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.pruning.results import costs, recipe_facts, to_network
from mvp_edge.recipe import Recipe
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.backbone import Backbone, absolute_source, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.tasks.task import find_tasks
from mvp_edge.tasks.unlabelled import unlabelled_images
from mvp_edge.zoo.entries import Entry, Zoo, is_zoo
from mvp_edge.zoo.pool import POOL_BYTES, Pool, pool, with_unlabelled
from mvp_edge.zoo.work import claim
from mvp_edge_export.errors import BadInput

EPOCHS = 32
"""Passes through the pooled images, where the user does not set the steps."""
LEAST_STEPS = 100

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrunkBuild:
    """A request for a trunk: the arguments of `mvp-edge zoo trunk`."""

    path: Path
    """The zoo; made for ``backbone`` if need be."""
    tasks: Path | None = None
    """The folder with the images of the tasks, as for `mvp_edge.zoo.build.ZooBuild`."""
    images: Path | None = None
    """A folder or zip of images without labels, beside those of the tasks or instead of them."""
    sample: str | None = None
    """As for `ZooBuild`."""
    backbone: str | None = None
    """The backbone of a new zoo; for an existing one where its backbone is, if it has moved."""
    policy: str | None = None
    """The policy of a new zoo; the family's default if None."""
    keep: float | None = None
    """Keep ratio of each unit group; the zoo's if None, and `DEFAULT_KEEP` for a new one."""
    steps: int | None = None
    """Training steps; ``EPOCHS`` passes through the images if None."""
    input_size: int | None = None
    """Side of a new zoo's images in pixels; the backbone's own if None."""
    weights_key: str | None = None
    """Which state dict of the backbone's file is used; see `load_backbone`."""
    accelerator: str = "auto"
    seed: int = 0
    """Seed of sampled tasks, splits and batches."""
    force: bool = False
    """Replace the trunk of this keep ratio."""

    def run(
        self,
        progress: Progress = lambda phase, done, total: None,
        say: Say = lambda line: None,
    ) -> Entry:
        """Train the trunk and store it in the zoo; an interrupted call is resumed by the same call.

        Raises:
            BadInput: there is such a trunk already, or the zoo, the backbone or the images cannot be read.
        """
        accelerator = choose_accelerator(self.accelerator)
        if self.tasks is None and self.images is None:
            raise BadInput("a trunk is trained on images: name --tasks, --images or both")
        if self.tasks is None and self.sample is not None:
            raise BadInput(
                f"{self.sample}: it draws from the classes of --tasks, which is not given",
                field="sample",
            )
        found = (
            find_tasks(self.tasks, self.sample, self.seed, progress)
            if self.tasks is not None
            else []
        )
        backbone = self._backbone()
        for note in backbone.notes:
            say(f"{backbone.name}: {note}")
        loose = None
        if self.images is not None:
            _check_teacher(backbone)
            most = POOL_BYTES // (3 * backbone.preprocess.size**2)
            loose = unlabelled_images(self.images, backbone.preprocess, most, self.seed, progress)
        zoo = self._zoo(backbone)
        entries, keep = zoo.entries(), zoo.keep if self.keep is None else self.keep
        lacking = sorted(set(zoo.names()) - {task.name for task in found})
        if lacking and found:
            say(
                f"{len(lacking)} of the zoo's {len(entries)} tasks have no images here: {lacking[0]} …"
            )
        with claim(zoo.path / ".work", f"trunk-{keep:g}") as work, within_limits(zoo.path):
            if work is None:
                raise BadInput(f"another process makes this trunk of zoo {self.path}: wait for it")
            seen = pool(found, "train", backbone.preprocess, progress=progress)
            unseen = pool(found, "val", backbone.preprocess, progress=progress)
            if loose is not None:
                seen, unseen = with_unlabelled(seen, unseen, loose, self.seed)
            units = f"the votes of {len(entries)} tasks" if entries else "the largest weights"
            say(f"{self.path}: units by {units}; {seen}")
            training = TrunkTraining(
                backbone,
                zoo.policy,
                entries,
                keep,
                steps=self.steps,
                seed=self.seed,
                accelerator=accelerator,
            )
            checkpoint = work / "checkpoint.safetensors"
            pruned, recipe = training.run(seen, checkpoint=checkpoint, progress=progress)
            trunk = zoo.add_trunk(
                to_network(backbone, zoo.policy, class_names(seen, backbone), pruned),
                force=self.force,
                synsets=[],
                scores={"val": score(pruned, unseen, backbone)},
                cost=costs(pruned, backbone),
                recipe=recipe_facts("trunk", recipe, pruned, self.seed) | {"images": seen.counts},
                keep=keep,
            )
            shutil.rmtree(work)
        return trunk

    def _backbone(self) -> Backbone:
        """The backbone, after checking that the zoo may have such a trunk; nothing is written."""
        if not is_zoo(self.path):
            if self.backbone is None:
                raise BadInput(f"{self.path} is not a zoo: pass --backbone to create one")
            return load_backbone(absolute_source(self.backbone), self.input_size, self.weights_key)
        zoo = Zoo.open(self.path)
        size = self.input_size or zoo.input_size
        backbone = load_backbone(
            absolute_source(self.backbone or zoo.backbone_source), size, self.weights_key
        )
        zoo.check(backbone, self.policy)
        keep = zoo.keep if self.keep is None else self.keep
        if not self.force and any(abs(trunk.keep - keep) < 1e-9 for trunk in zoo.trunks()):
            raise BadInput(
                f"zoo {self.path} has a trunk at keep {keep:g} already: --force replaces it"
            )
        return backbone

    def _zoo(self, backbone: Backbone) -> Zoo:
        """The zoo, made if need be."""
        if is_zoo(self.path):
            return Zoo.open(self.path)
        policy = self.policy or backbone.family.policies[0]
        keep = DEFAULT_KEEP if self.keep is None else self.keep
        exact_widths(unit_groups(backbone.model, policy), keep)
        return Zoo.create(self.path, backbone, policy, keep)


@dataclass(frozen=True)
class TrunkTraining:
    """How a trunk is trained, whatever the images."""

    backbone: Backbone
    policy: str
    entries: Sequence[Entry]
    """The zoo's entries, which vote on units and are averaged; without any, the largest weights are kept."""
    keep: float
    """Keep ratio of each unit group."""
    teach: bool | None = None
    """Whether the backbone's logits count beside the labels; None: only where some image has no label."""
    steps: int | None = None
    """Training steps; ``EPOCHS`` passes through the pool if None."""
    seed: int = 0
    accelerator: str = "cpu"

    def run(
        self,
        pooled: Pool,
        checkpoint: Path | None = None,
        progress: Progress = lambda phase, done, total: None,
    ) -> tuple[Pruned, Recipe]:
        """Train on the pooled images; the head has the classes that `class_names` names."""
        backbone = self.backbone
        name = "mvp" if self.entries else "magnitude"
        recipe = recipe_for(name, backbone.family, accelerator=self.accelerator)
        steps = self.steps
        if steps is None:
            steps = usual_steps(len(pooled.images), recipe.batch)
        recipe = replace(recipe, steps=steps)
        teach = self.teach
        if teach is None:
            teach = bool((pooled.images.labels == UNLABELLED).any())
        teacher = self._teacher(pooled, progress) if teach else None
        problem = Problem(
            backbone=backbone,
            policy=self.policy,
            classes=len(pooled.classes) + (teacher.classes if teacher else 0),
            train=pooled.images,
            validation=None,
            widths=exact_widths(unit_groups(backbone.model, self.policy), self.keep),
            recipe=recipe,
            seed=self.seed,
            checkpoint=checkpoint,
            progress=progress,
            teacher=teacher,
            voters=[entry.voter(self.keep) for entry in self.entries],
        )
        pruned = METHODS[name].prune(problem)
        if teacher:
            asked = len(pooled.images) * forward_macs(backbone.model, backbone.shape)
            pruned.ledger.statistics_flops += asked
            _cut_heads(pruned.model, len(pooled.classes) or teacher.classes)
        return pruned, recipe

    def _teacher(self, pooled: Pool, progress: Progress) -> Teacher:
        """The backbone's own logits of the pooled images."""
        _check_teacher(self.backbone)
        whole = copy.deepcopy(self.backbone.model).to(self.accelerator)
        pixels, logits = pooled.images.pixels, []
        for first in range(0, len(pixels), TEACHER_BATCH):
            some = pixels[first : first + TEACHER_BATCH]
            logits.append(predict_logits(whole, some, self.backbone.preprocess, fast=True))
            progress("teacher logits", first + len(some), len(pixels))
        return Teacher(torch.from_numpy(np.concatenate(logits)))


def _check_teacher(backbone: Backbone) -> None:
    """Raise BadInput where the backbone has no logits, from which images without labels are learned."""
    if backbone.headless:
        raise BadInput(
            f"{backbone.name} has no classifier, so it cannot teach images without labels: give --tasks alone",
            field="images",
        )


def class_names(pooled: Pool, backbone: Backbone) -> tuple[str, ...]:
    """The classes of a trunk's own head: the pool's; without any, the backbone's."""
    (head, *_) = heads(backbone.model).values()
    named = backbone.classes or tuple(f"class {n}" for n in range(head.out_features))
    return pooled.classes or named


def score(pruned: Pruned, unseen: Pool, backbone: Backbone) -> float:
    """Top-1 accuracy on held-out images; without labels, the share on which it agrees with the backbone."""
    labels, pixels = unseen.images.labels, unseen.images.pixels
    if not unseen.classes:
        labels = predict_logits(backbone.model, pixels, backbone.preprocess).argmax(1)
    return accuracy(predict_logits(pruned.model, pixels, backbone.preprocess), labels)


def usual_steps(images: int, batch: int) -> int:
    """The steps of ``EPOCHS`` passes through the images, at least ``LEAST_STEPS``."""
    return max(LEAST_STEPS, round(EPOCHS * images / batch))


def _cut_heads(model: nn.Module, outputs: int) -> None:
    """Keep only the first outputs of each head."""
    for name, head in heads(model).items():
        less = nn.Linear(head.in_features, outputs)
        less.load_state_dict({key: t[:outputs].clone() for key, t in head.state_dict().items()})
        setattr(model, name, less)
