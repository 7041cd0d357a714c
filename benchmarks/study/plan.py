"""A study's plan with everything that it names loaded: its tasks, the zoo they see, its variants' recipes."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from benchmarks.data import below_data, data_folder
from benchmarks.voters import Ranking, asks_zoo
from mvp_edge.pruning.batches import LabelledImages, Recipe
from mvp_edge.pruning.finetune import Ledger
from mvp_edge.pruning.methods import METHODS, recipe_for
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.units import unit_groups
from mvp_edge.tasks.task import Task, sample_tasks
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, Similarity, find_neighbours
from mvp_edge_export.storage import read_json, sha256_file, sha256_json

HERE = Path(__file__).parent
POOLED = HERE / "zoos" / "pooled"
"""Networks of `benchmarks.pooled`."""
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
"""What a variant may set otherwise in its recipe."""
KEYS = (
    "method", "steps", "targets", "seed", "keep", "start", "teach",
    "who", "neighbours", "disjoint", "first", "entries", "similarity",  # whom it asks
    "units", "weights", "electorate", "tau", "spread", "l1",  # what it does with the answers
    "importance", "scope", "rounds", "share", "temperature", "student", "pixels",  # of peers
    *RECIPE,
)  # fmt: skip
"""What a variant of a study may say."""
POOLED_KEYS = ("start", "images", "apart", "steps", "keep", "teach", "labels", "voters")
"""What a plan may say of a network of `benchmarks.pooled`."""
_ELSEWHERE = ("targets", "start")
"""What changes no row, or stands in it as the network that it started from."""


@dataclass(frozen=True)
class Study:
    """A plan with everything it names loaded."""

    plan: dict[str, Any]
    backbone: Backbone
    tasks: list[Task]
    zoo: Zoo
    accelerator: str = "cpu"
    rankings: dict[tuple[str, str, int], Ranking] = field(default_factory=dict)
    """What was found already, by (target, measure, entries)."""

    @classmethod
    def open(cls, path: Path, accelerator: str = "cpu") -> "Study":
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
        whose = plan.get("zoo", plan["study"])  # another study's it does not build
        zoo = Zoo.create(HERE / "zoos" / whose, backbone, plan["policy"], plan["keep"])
        return cls(plan, backbone, tasks, zoo, accelerator)

    def problem(
        self, images: LabelledImages, classes: int, recipe: Recipe, keep: float, **more: Any
    ) -> Problem:
        """The problem of these images at exact widths, without validation; ``more`` of Problem's fields."""
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
        """The zoo that a target sees: leave-one-out."""
        return [one for one in self.zoo.entries() if one.name != task.name]

    def ranking(self, task: Task, entries: Sequence[Entry], measure: Similarity) -> Ranking:
        """The entries by similarity to a target, as `prune` finds it; found once a process."""
        key = (task.name, measure, len(entries))
        if key not in self.rankings:
            began, ledger = time.perf_counter(), Ledger()
            images = task.images("train", self.backbone.preprocess)
            found = find_neighbours(
                entries,
                self.backbone,
                images.take(task.subsample("train", LEEP_IMAGES, 0)),
                task.classes,
                1,
                ledger,
                similarity=measure,
            )
            seconds = time.perf_counter() - began
            self.rankings[key] = Ranking(found.candidates, ledger.similarity_flops, seconds)
        return self.rankings[key]

    def place(self, task: Task) -> int:
        """Which of its draw a target is."""
        counts: list[int] = [draw["count"] for draw in self.plan["draws"]]
        index = self.tasks.index(task)
        return index - max(start for start in accumulate([0, *counts]) if start <= index)

    def recipe(self, variant: Mapping[str, Any]) -> Recipe:
        """The product's, with what the plan sets for all one-shot methods and the variant for itself."""
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
        """What a run draws by; where units or voters are drawn by lot, each target has lots of its own."""
        seed = int(variant.get("seed", 0))
        by_lot = "random" in (variant["method"], variant.get("units"), variant.get("who"))
        return 1000 * seed + self.tasks.index(task) if by_lot else seed

    def start(self, names: str | Sequence[str], task: Task) -> str:
        """Of several networks of `benchmarks.pooled` the one that was kept apart from a target."""
        if isinstance(names, str):
            return names
        apart = {name: range(*self.plan["pooled"][name]["apart"]) for name in names}
        return next(name for name in names if self.tasks.index(task) in apart[name])

    def has_pooled(self, name: str) -> bool:
        """Whether a network of `benchmarks.pooled` is there, made as the plan says (if it is this plan's)."""
        row = pooled_row(name)
        if not row.exists() or not (POOLED / name / "network.json").exists():
            return False
        made, how = read_json(row, "row"), self.plan.get("pooled", {}).get(name, {})
        words = set(POOLED_KEYS) - ({"steps"} - set(how))  # unsaid: as many as they came to
        return not how or all(made.get(word) == how.get(word) for word in words)

    def conditions(
        self, task: Task, entries: Sequence[Entry], variant: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a row of a variant depends on: once it changes, the row has to be made anew."""
        recipe = self.recipe(variant)
        found: dict[str, Any] = {
            "variant": {key: value for key, value in variant.items() if key not in _ELSEWHERE},
            "seed": self.seed(task, variant),
            "optimizer": recipe.optimizer,
            "lr": recipe.lr,
            "updates": recipe.updates,
            "relative_step": recipe.relative_step,
            "augmented": list(recipe.augmentation(len(task.splits["train"]))),
        }
        if "start" in variant:
            path = POOLED / self.start(variant["start"], task) / "network.safetensors"
            found["network"] = sha256_file(path)
        elif asks_zoo(variant):
            found["zoo"] = len(entries)
            found["entries"] = sha256_json([[e.name, e.weights_sha256] for e in entries])[:16]
        return found

    def file(self, task: Task) -> Path:
        """Where a target's rows stand."""
        return HERE / "results" / str(self.plan["study"]) / f"{task.name}.json"

    def rows(self, task: Task) -> dict[str, Any]:
        """A target's rows by the variants' names."""
        path = self.file(task)
        return dict(read_json(path, "rows")["rows"]) if path.exists() else {}


def fault(variant: Mapping[str, Any]) -> str | None:
    """What is wrong with what a variant says: unknown words, or such as would make it another method."""
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
    """The same task with so many training images a class; those of validation and test stay."""
    rows = task.subsample("train", each * len(task.classes), 0)
    few = tuple(task.splits["train"][row] for row in rows)
    return replace(task, splits={**task.splits, "train": few})


def pooled_row(name: str) -> Path:
    """Where it stands how a network of `benchmarks.pooled` was made and what that cost; written last."""
    return HERE / "results" / "pooled" / f"{name}.json"


def pooled_voter(name: str) -> Voter:
    """A network of `benchmarks.pooled` as the one voter of those that start from it."""
    network = Network.load(POOLED / name)
    return Voter(name, network.kept, network.ranking, network.weights)
