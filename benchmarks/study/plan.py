"""A study's plan with everything that it names: backbone, tasks, zoo, and the recipe of each variant."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from benchmarks.data import below_data, data_folder
from benchmarks.study.results import Results
from benchmarks.study.voters import Ranking, asks_zoo
from mvp_edge.families import unit_groups
from mvp_edge.methods.catalogue import METHODS, recipe_for
from mvp_edge.pruning.batches import LabelledImages
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.votes import Voter
from mvp_edge.recipe import Recipe
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.network import Network
from mvp_edge.tasks.task import Task, sample_tasks
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, NeighbourSearch, Similarity, Target
from mvp_edge_export.storage import read_json, sha256_json

HERE = Path(__file__).parents[1]
"""The folder of benchmarks, with `results/` and `zoos/`."""
RECIPE = (
    "lr",
    "updates",
    "optimizer",
    "relative_step",
    "schedule",
    "head",
    "statistics",
    "augment",
)
"""Fields of the product's recipe that a variant may override."""
KEYS = (
    "method", "steps", "targets", "seed", "keep", "start", "teach",
    "who", "neighbours", "disjoint", "first", "entries", "similarity",  # which entries vote
    "units", "weights", "electorate", "tau", "spread", "l1",  # how their votes are used
    "importance", "scope", "rounds", "share", "temperature", "student", "pixels",  # of peers
    *RECIPE,
)  # fmt: skip
"""All keys that a variant of a study may have."""
POOLED_KEYS = ("start", "images", "apart", "steps", "keep", "teach", "labels", "voters")
"""All keys that a plan may give a network of `benchmarks.study.pooled`."""
_NOT_COMPARED = ("targets", "start")
"""Keys that change no row, or that a row records by the hash of the network that it started from."""


@dataclass(frozen=True)
class Study:
    """A plan with everything that it names loaded."""

    plan: dict[str, Any]
    backbone: Backbone
    tasks: list[Task]
    zoo: Zoo
    accelerator: str = "cpu"
    rankings: dict[tuple[str, str, int], Ranking] = field(default_factory=dict)
    """Rankings of the zoo that were computed already, by (target, similarity measure, number of entries)."""

    @classmethod
    def open(cls, path: Path, accelerator: str = "cpu") -> "Study":
        """Read a plan; exits with a message if a variant of it has keys that nothing reads."""
        plan = yaml.safe_load(path.read_text())
        for name, variant in plan["variants"].items():
            if variant and "method" in variant and (wrong := fault(variant)):
                sys.exit(f"{path}: {name}: {wrong}")
        backbone = load_backbone(below_data(plan["backbone"]), plan.get("input_size"))
        tasks = [
            task if "each" not in draw else _with_few_images(task, draw["each"])
            for draw in plan["draws"]
            for task in sample_tasks(
                data_folder() / draw["images"], draw["count"], draw["classes"], draw["seed"]
            )
        ]
        owner = plan.get("zoo", plan["study"])  # a study that names another one's zoo only reads it
        zoo = Zoo.create(HERE / "zoos" / owner, backbone, plan["policy"], plan["keep"])
        return cls(plan, backbone, tasks, zoo, accelerator)

    def problem(
        self, images: LabelledImages, classes: int, recipe: Recipe, keep: float, **more: Any
    ) -> Problem:
        """The pruning problem of these images at exact widths, without validation images.

        ``more`` are further fields of `Problem`.
        """
        backbone, policy = self.backbone, self.zoo.policy
        return Problem(
            backbone=backbone,
            policy=policy,
            classes=classes,
            train=images,
            validation=None,
            widths=exact_widths(unit_groups(backbone.model, policy), keep),
            recipe=recipe,
            **more,
        )

    def entries(self, task: Task) -> list[Entry]:
        """The zoo's entries that a target may use: all but its own (leave-one-out)."""
        return [one for one in self.zoo.entries() if one.name != task.name]

    def ranking(self, task: Task, entries: Sequence[Entry], measure: Similarity) -> Ranking:
        """The entries by similarity to a target, measured as `prune` does; computed once a process."""
        key = (task.name, measure, len(entries))
        if key not in self.rankings:
            began, ledger = time.perf_counter(), Ledger()
            images = task.images("train", self.backbone.preprocess)
            subset = images.take(task.subsample("train", LEEP_IMAGES, 0))
            search = NeighbourSearch(entries, self.backbone, measure)
            found = search.find(Target(subset, task.classes), 1, ledger)
            seconds = time.perf_counter() - began
            self.rankings[key] = Ranking(found.candidates, ledger.similarity_flops, seconds)
        return self.rankings[key]

    def place(self, task: Task) -> int:
        """The position of a target within the draw of tasks that it comes from."""
        counts: list[int] = [draw["count"] for draw in self.plan["draws"]]
        index = self.tasks.index(task)
        return index - max(start for start in accumulate([0, *counts]) if start <= index)

    def recipe(self, variant: Mapping[str, Any]) -> Recipe:
        """The product's recipe, with what the plan sets for one-shot methods and the variant for itself."""
        name = variant["method"]
        method = METHODS.get(name)
        recipe = recipe_for(
            name if method else None,
            self.backbone.family,
            steps=variant["steps"],
            accelerator=self.accelerator,
        )
        if method and method.one_shot:
            recipe = replace(recipe, **self.plan.get("recipe", {}))
        return replace(recipe, **{key: variant[key] for key in RECIPE if key in variant})

    def seed(self, task: Task, variant: Mapping[str, Any]) -> int:
        """The seed of a run; where units or voters are drawn at random, each target has a seed of its own."""
        seed = int(variant.get("seed", 0))
        at_random = "random" in (variant["method"], variant.get("units"), variant.get("who"))
        return 1000 * seed + self.tasks.index(task) if at_random else seed

    def start(self, names: str | Sequence[str], task: Task) -> str:
        """Of several pooled networks the one that was trained without a target's classes."""
        if isinstance(names, str):
            return names
        apart = {name: range(*self.plan["pooled"][name]["apart"]) for name in names}
        return next(name for name in names if self.tasks.index(task) in apart[name])

    def has_pooled(self, name: str) -> bool:
        """Whether a pooled network lies in its folder, and was made as the plan says."""
        return (
            self.pooled_hash(name) is not None and (pooled_folder(name) / "network.json").exists()
        )

    def pooled_hash(self, name: str) -> str | None:
        """The sha256 of a pooled network's weights, which need not be there.

        None if none was ever made, or if it was made otherwise than the plan says (if it is this plan's).
        """
        if not pooled_row(name).exists():
            return None
        made, how = read_json(pooled_row(name), "row"), self.plan.get("pooled", {}).get(name, {})
        keys = set(POOLED_KEYS) - (
            {"steps"} - set(how)
        )  # if no plan sets the steps, any number will do
        if how and any(made.get(key) != how.get(key) for key in keys):
            return None
        return str(made["network_sha256"])

    def conditions(
        self, task: Task, entries: Sequence[Entry], variant: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a row depends on: a row that was made under other conditions has to be made anew."""
        recipe = self.recipe(variant)
        found: dict[str, Any] = {
            "variant": {key: value for key, value in variant.items() if key not in _NOT_COMPARED},
            "seed": self.seed(task, variant),
            "optimizer": recipe.optimizer,
            "lr": recipe.lr,
            "updates": recipe.updates,
            "relative_step": recipe.relative_step,
            "augmented": list(recipe.augmentation(len(task.splits["train"]))),
        }
        if "start" in variant:
            found["network"] = self.pooled_hash(self.start(variant["start"], task))
        elif asks_zoo(variant):
            found["zoo"] = len(entries)
            found["entries"] = sha256_json([[e.name, e.weights_sha256] for e in entries])[:16]
        return found

    @property
    def results(self) -> Results:
        """The file with the study's rows."""
        return Results(HERE / "results" / f"{self.plan['study']}.jsonl")

    def rows(self, task: Task) -> dict[str, Any]:
        """A target's rows by the names of their variants."""
        return self.results.of(task.name)


def fault(variant: Mapping[str, Any]) -> str | None:
    """What is wrong with a variant: unknown keys, or keys that its method does not read; None if nothing."""
    method = variant["method"]
    if unknown := set(variant) - set(KEYS):
        return f"unknown {', '.join(sorted(unknown))}"
    if method in ("trunk", "pooled") and "start" not in variant:
        return f"{method} needs a start"
    if "start" in variant and method not in ("trunk", "pooled", "mvp"):
        return f"{method} starts from no network"
    if "l1" in variant and method != "ahnp":
        return f"{method} has no l1"
    return None


def _with_few_images(task: Task, each: int) -> Task:
    """The same task with ``each`` training images a class; validation and test images stay."""
    rows = task.subsample("train", each * len(task.classes), 0)
    few = tuple(task.splits["train"][row] for row in rows)
    return replace(task, splits={**task.splits, "train": few})


def pooled_folder(name: str) -> Path:
    """Where a network of `benchmarks.study.pooled` lies, if it was kept."""
    return HERE / "zoos" / "pooled" / name


def pooled_row(name: str) -> Path:
    """The record of how a pooled network was made and what that cost; it is written last."""
    return HERE / "results" / "pooled" / f"{name}.json"


def pooled_voter(name: str) -> Voter:
    """A pooled network as the only voter, for the variants that start from it."""
    network = Network.load(pooled_folder(name))
    return Voter(name, network.kept, network.ranking, network.weights)
