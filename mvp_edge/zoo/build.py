"""Building a zoo: one network a task, pruned from scratch, resumable at any moment.

Several processes may build one zoo together: each takes the next task that no other process works on.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from mvp_edge.families import unit_groups
from mvp_edge.families.family import Family
from mvp_edge.machine import within_limits
from mvp_edge.methods.catalogue import (
    DEFAULT_KEEP,
    Method,
    method_for,
    recipe_for,
)
from mvp_edge.pruning.arithmetic import choose_accelerator
from mvp_edge.pruning.problem import Problem, Progress, Pruned
from mvp_edge.pruning.results import costs, recipe_facts, scores, to_network
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.backbone import Backbone, absolute_source, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.tasks.task import Images, Task, find_tasks
from mvp_edge.zoo.entries import Zoo
from mvp_edge.zoo.synsets import synsets_of
from mvp_edge.zoo.work import claim
from mvp_edge_export.errors import BadInput


@dataclass(frozen=True)
class ZooBuild:
    """A request for a zoo: the arguments of `mvp-edge zoo build`."""

    backbone: str
    tasks: Path
    """A folder whose sub-folders (or zips) are tasks; with ``sample`` a folder or zip of classes."""
    path: Path
    """The zoo's folder; made if need be."""
    sample: str | None = None
    """"NxK": draw N tasks of K classes each from the classes of ``tasks``, with ``seed``."""
    keep: float = DEFAULT_KEEP
    policy: str | None = None
    method: str | None = None
    """A method that needs no zoo; the family's default if None."""
    steps: int | None = None
    snapshots: Sequence[float] = ()
    """Larger keep ratios at which the networks are kept as well."""
    input_size: int | None = None
    weights_key: str | None = None
    """Which state dict of the backbone's file is used; see `load_backbone`."""
    augment: tuple[str, ...] | None = None
    accelerator: str = "auto"
    seed: int = 0

    def run(
        self,
        progress: Progress = lambda phase, done, total: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> tuple[Zoo, list[str]]:
        """Build what is missing; returns the zoo and the names of the entries that were added now.

        Raises:
            BadInput: what is asked for cannot be understood or does not fit the zoo that is there.
        """
        for ratio in self.snapshots:
            if not self.keep < ratio < 1:
                raise BadInput(
                    f"{ratio:g}: a snapshot's ratio lies between --keep {self.keep:g} and 1",
                    field="snapshots",
                )
        backbone = load_backbone(absolute_source(self.backbone), self.input_size, self.weights_key)
        policy = self.policy or backbone.family.policies[0]
        exact_widths(unit_groups(backbone.model, policy), self.keep)
        method = self._method(backbone.family)
        recipe = recipe_for(
            method,
            backbone.family,
            steps=self.steps,
            augment=self.augment,
            accelerator=choose_accelerator(self.accelerator),
        )
        tasks = find_tasks(self.tasks, self.sample, self.seed, progress)
        zoo = Zoo.create(self.path, backbone, policy, self.keep)
        todo = [task for task in tasks if task.name not in zoo.names()]
        done = len(tasks) - len(todo)
        for note in backbone.notes:
            say(f"{backbone.name}: {note}")
        say(f"{self.path}: {len(tasks)} tasks, {done} done; {method}, {recipe.steps} steps each")
        builder = Builder(zoo, backbone, method, recipe, self.snapshots, self.seed)
        return zoo, builder.build(todo, progress)

    def _method(self, family: Family) -> str:
        """The method's name; BadInput where it cannot build a zoo, or leaves no snapshots."""
        usual = family.iterative[0] if self.snapshots else family.from_scratch
        name = self.method or usual
        method: Method = method_for(name, family)
        if method.asks != "nobody":
            raise BadInput(
                f"{name} needs a zoo: build one with {family.from_scratch}", field="method"
            )
        if self.snapshots and not method.iterative:
            raise BadInput(
                f"needs an iterative method, which {name} is not: use {family.iterative[0]}",
                field="snapshots",
            )
        return name


@dataclass(frozen=True)
class Builder:
    """Prunes tasks for a zoo by one method and recipe."""

    zoo: Zoo
    backbone: Backbone
    method: str
    recipe: Recipe
    snapshots: Sequence[float] = ()
    seed: int = 0

    @classmethod
    def usual(cls, zoo: Zoo, backbone: Backbone) -> "Builder":
        """By the family's default method and its recipe."""
        method = backbone.family.from_scratch
        return cls(zoo, backbone, method, recipe_for(method, backbone.family))

    def build(
        self, tasks: Sequence[Task], progress: Progress = lambda phase, done, total: None
    ) -> list[str]:
        """Prune every task that the zoo does not have yet; returns the names that were added now.

        A build that was interrupted is resumed: finished entries are skipped, the unfinished one continues
        from its checkpoint in the zoo's ``.work`` folder.
        """
        zoo = self.zoo
        zoo.check(self.backbone)
        prune = method_for(self.method, self.backbone.family).prune
        added = []
        for number, task in enumerate(tasks):
            progress("zoo", number, len(tasks))
            with claim(zoo.path / ".work", task.name) as work, within_limits(zoo.path):
                if work is None or task.name in zoo.names():
                    continue
                for leftover in (zoo.path / "entries").glob(f".{escape(task.name)}.*"):
                    shutil.rmtree(leftover)  # a killed process was writing it
                self._add(task, prune(self._problem(task, work, progress)))
                added.append(task.name)
                shutil.rmtree(work)
        progress("zoo", len(tasks), len(tasks))
        return added

    def _problem(self, task: Task, work: Path, progress: Progress) -> Problem:
        def named(phase: str, done: int, total: int) -> None:
            progress(f"{task.name}: {phase}", done, total)

        groups = unit_groups(self.backbone.model, self.zoo.policy)
        return Problem(
            backbone=self.backbone,
            policy=self.zoo.policy,
            classes=len(task.classes),
            train=self._images(task, "train", named),
            validation=self._images(task, "val", named),
            widths=exact_widths(groups, self.zoo.keep),
            recipe=self.recipe,
            seed=self.seed,
            snapshots=self.snapshots,
            checkpoint=work / "checkpoint.safetensors",
            progress=named,
        )

    def _images(self, task: Task, split: str, progress: Progress) -> Images:
        return task.images(
            split,
            self.backbone.preprocess,
            progress=lambda done, total: progress(f"decoding {split}", done, total),
        )

    def _add(self, task: Task, pruned: Pruned) -> None:
        zoo, backbone = self.zoo, self.backbone
        zoo.add(
            task.name,
            to_network(backbone, zoo.policy, task.classes, pruned),
            synsets=synsets_of(task.classes),
            scores=scores(pruned, task, backbone),
            cost=costs(pruned, backbone),
            recipe=recipe_facts(self.method, self.recipe, pruned, self.seed),
            keep=zoo.keep,
            snapshots={
                ratio: to_network(backbone, zoo.policy, task.classes, pruned, snapshot)
                for ratio, snapshot in pruned.snapshots.items()
            },
        )
