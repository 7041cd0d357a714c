"""The figures that ``figures.yaml`` describes, computed from the rows of their studies."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmarks.report import sources
from benchmarks.report.figure import Figure
from benchmarks.report.words import in_words
from benchmarks.study.rows import (
    MAIN,
    Rows,
    Values,
    compared,
    difference,
    mean,
    ratio,
)

BEST = "best:"
"""``best:PATTERN`` in place of a variant: of those whose names match and that have most rows, the most accurate."""


class _Figure(BaseModel):
    """What every figure is described by.

    ``study``: whose rows. ``targets``: only tasks whose names begin so. ``seen_at_most``: only tasks of whose
    classes the trunk had seen at most that share. ``conditions``: said beside the figure; by default the study's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    study: str = MAIN
    goal: str = "stated"
    statement: str = ""
    conditions: str = ""
    targets: str = ""
    seen_at_most: float = 1.0

    def rows(self) -> Rows:
        """The study's rows of the tasks that the figure is about."""
        found = sources.study_rows(self.study)
        rows = {name: row for name, row in found.items() if name.startswith(self.targets)}
        if self.seen_at_most == 1.0:
            return rows
        seen = classes_seen(self.study)
        return {name: row for name, row in rows.items() if seen[name] <= self.seen_at_most}

    def figure(
        self, got: tuple[float, float, float, int], unit: str, conditions: str, statement: str
    ) -> Figure:
        """The figure with value, interval and number of tasks."""
        return Figure(
            self.id, *got[:3], unit, self.goal, conditions, *made_by(self.study), got[3],
            self.statement or statement,
        )  # fmt: skip


class Difference(_Figure):
    """Mean difference in top-1 accuracy between two variants, paired by task, in points."""

    kind: Literal["difference"] = "difference"
    ours: str
    theirs: str

    def measured(self) -> Figure | None:
        rows = self.rows()
        ours, theirs = (resolved(rows, name) for name in (self.ours, self.theirs))
        if not ours or not theirs or not (got := difference(rows, ours, theirs)):
            return None
        conditions = f"{ours} − {theirs}, {self.conditions}, {got[3]} targets, test images"
        return self.figure(got, "points", conditions, f"{in_words(ours)}, minus {in_words(theirs)}")


class CostRatio(_Figure):
    """How many times as much training one variant takes as another, in multiply-adds."""

    kind: Literal["cost"]
    ours: str
    theirs: str

    def measured(self) -> Figure | None:
        rows = self.rows()
        ours, theirs = (resolved(rows, name) for name in (self.ours, self.theirs))
        if not ours or not theirs or not (got := ratio(rows, ours, theirs, "total_flops")):
            return None
        conditions = (
            f"{theirs} over {ours}, real training multiply-adds (similarity, statistics and head included), "
            f"{self.conditions}, {got[3]} targets"
        )
        statement = f"training of {in_words(theirs)}, over that of {in_words(ours)}"
        return self.figure(got, "×", conditions, statement)


class CostToParity(_Figure):
    """How much training the best of Torch-Pruning takes to be as accurate as a variant, over that variant's."""

    kind: Literal["parity"]
    ours: str

    def measured(self) -> Figure | None:
        if not (got := cost_to_parity(self.rows(), self.ours)):
            return None
        conditions = (
            f"multiply-adds at which the best of Torch-Pruning is as accurate as {self.ours}, over {self.ours}'s "
            "(between its 100 and 1,000 steps, straight in their logarithm; its 1,000 steps' where they are less "
            f"accurate), {self.conditions}, {got[3]} targets"
        )
        statement = f"training until Torch-Pruning is as accurate as {in_words(self.ours)}, over that variant's"
        return self.figure(got, "×", conditions, statement)


class SeedSpread(_Figure):
    """Standard deviation of a variant's top-1 accuracy over random seeds, within a task, in points."""

    kind: Literal["seed-spread"]
    ours: str

    def measured(self) -> Figure | None:
        rows = self.rows()
        others = {n for row in rows.values() for n in row if n.startswith(f"{self.ours}-seed-")}
        seeds = [self.ours, *sorted(others)]
        whole = [row for row in rows.values() if all(n in row for n in seeds)]
        own = 100 * np.array([[row[n]["accuracy"] for n in seeds] for row in whole])
        if not others or not (got := compared(own, _spread_over_seeds)):
            return None
        conditions = (
            f"standard deviation over {len(seeds)} seeds within a target, {self.ours}, {self.conditions}, "
            f"{got[3]} targets"
        )
        statement = f"standard deviation over random seeds, {in_words(self.ours)}"
        return replace(self.figure(got, "points", conditions, statement), signed=False)


class TrunkCost(_Figure):
    """Training of trunks that need no zoo, in multiply-adds.

    Without ``tasks``: over one task's training by ``theirs``. With it: how many times as much that many tasks
    cost by ``theirs`` as from the trunk by ``ours``, the trunk's own training included.
    """

    kind: Literal["trunk-cost"]
    trunks: str
    theirs: str
    ours: str = ""
    tasks: int = 0

    @model_validator(mode="after")
    def _many_tasks_start_from_the_trunk(self) -> "TrunkCost":
        if bool(self.ours) != bool(self.tasks):
            raise ValueError("`tasks` and `ours` belong together")
        return self

    def measured(self) -> Figure | None:
        own = [trunk["total_flops"] for trunk in sources.pooled_networks(self.trunks)]
        if not own or not (each := self._mean_cost(self.theirs)):
            return None
        if self.tasks:
            start = self._mean_cost(self.ours)
            values = [self.tasks * each / (one + self.tasks * start) for one in own]
            what = f"{self.theirs} over {self.ours}, multiply-adds of {self.tasks} tasks, the trunk's own included"
        else:
            values = [one / each for one in own]
            what = f"multiply-adds of a trunk over one {self.theirs}'s"
        return _of_trunks(self, values, what)

    def _mean_cost(self, variant: str) -> float:
        spent = [row[variant]["total_flops"] for row in self.rows().values() if variant in row]
        return float(np.mean(spent)) if spent else 0.0


class PooledCost(_Figure):
    """Training of another network of many tasks over a trunk's, in multiply-adds."""

    kind: Literal["pooled-cost"]
    trunks: str
    network: str

    def measured(self) -> Figure | None:
        own, other = (sources.pooled_networks(name) for name in (self.trunks, self.network))
        if not own or not other:
            return None
        values = [other[0]["total_flops"] / trunk["total_flops"] for trunk in own]
        what = "multiply-adds of the network trained on all classes over a trunk's"
        return _of_trunks(self, values, what)


class ClassesSeen(_Figure):
    """Share of a task's classes that the trunk had seen in its training: mean and range over the tasks."""

    kind: Literal["classes-seen"]

    def measured(self) -> Figure | None:
        seen = classes_seen(self.study)
        shares = [seen[name] for name in self.rows()]
        if not shares:
            return None
        what = "share of the classes that trunk-0 was trained on"
        return Figure(
            self.id, sum(shares) / len(shares), min(shares), max(shares), "", self.goal,
            f"{what}, {self.conditions}; mean and range", *made_by(self.study),
            statement=self.statement or what,
        )  # fmt: skip


Description = Annotated[
    Difference | CostRatio | CostToParity | SeedSpread | TrunkCost | PooledCost | ClassesSeen,
    Field(discriminator="kind"),
]


class Catalogue(BaseModel):
    """The content of ``figures.yaml``: the conditions of each study, and the figures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    conditions: Mapping[str, str]
    statements: Mapping[str, str] = {}
    """Id → words, of figures that are made from the files of timing and of similarity instead."""
    figures: tuple[Description, ...]

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: dict[str, Any]) -> dict[str, Any]:
        """A figure without a kind is a difference; one without conditions has its study's."""
        figures = [
            {
                "kind": "difference",
                "conditions": content["conditions"].get(one.get("study", MAIN), ""),
                **one,
            }
            for one in content["figures"]
        ]
        return {**content, "figures": figures}

    @model_validator(mode="after")
    def _no_id_twice(self) -> "Catalogue":
        twice = [name for name, n in Counter(one.id for one in self.figures).items() if n > 1]
        if twice:
            raise ValueError(f"two figures of one id: {', '.join(twice)}")
        return self

    def measured(self) -> Iterator[Figure]:
        """Every figure whose rows exist."""
        for one in self.figures:
            if found := one.measured():
                yield found


@cache
def catalogue() -> Catalogue:
    """The figures of ``figures.yaml``.

    Raises:
        pydantic.ValidationError: a figure lacks a field or has one that its kind does not know.
    """
    text = Path(__file__).with_suffix(".yaml").read_text()
    return Catalogue.model_validate(yaml.safe_load(text))


def made_by(study: str) -> tuple[str, str]:
    """The file of a study's rows, and the command that makes them."""
    return (
        f"benchmarks/results/{study}.jsonl",
        f"python -m benchmarks.study benchmarks/plans/{study}.yaml",
    )


def resolved(rows: Rows, variant: str) -> str | None:
    """The variant's name, or the one that ``best:PATTERN`` stands for; None if none matches."""
    if not variant.startswith(BEST):
        return variant
    found: dict[str, list[float]] = {}
    for row in rows.values():
        for name, one in row.items():
            if re.fullmatch(variant.removeprefix(BEST), name):
                found.setdefault(name, []).append(one["accuracy"])
    return max(found, key=lambda n: (len(found[n]), np.mean(found[n])), default=None)


def cost_to_parity(rows: Rows, ours: str) -> tuple[float, float, float, int] | None:
    """How much more training Torch-Pruning needs for the accuracy of ``ours``.

    Interpolated between its 100 and its 1,000 steps in the logarithm of their training; its 1,000 steps' training
    where they are less accurate than ``ours``.

    Returns:
        The ratio, its interval and the number of tasks; None if a variant is missing.
    """
    few, many = (resolved(rows, rf"{BEST}tp-.*@{steps}") for steps in (100, 1000))
    if not few or not many:
        return None
    names = (ours, few, many)
    both = [[r[n][k] for n in names for k in ("accuracy", "total_flops")] for r in rows.values()
            if all(n in r for n in names)]  # fmt: skip

    def ratio_of(values: Values) -> Values:
        reached, spent, low, cheap, high, dear = np.moveaxis(mean(values), -1, 0)
        share = np.clip((reached - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
        return np.asarray(np.exp((1 - share) * np.log(cheap) + share * np.log(dear)) / spent)

    return compared(np.array(both, dtype=np.float64), ratio_of)


def classes_seen(study: str) -> dict[str, float]:
    """Task → the share of its classes that trunk-0, from which the study's tasks start, was trained on."""
    targets = list(sources.task_classes(MAIN).values())
    (trunk,) = sources.pooled_networks("trunk-0")
    apart = {name for classes in targets[slice(*trunk["apart"])] for name in classes}
    seen = {name for classes in targets[: trunk["images"]] for name in classes} - apart
    return {
        target: len(seen.intersection(classes)) / len(classes)
        for target, classes in sources.task_classes(study).items()
    }


def _spread_over_seeds(values: Values) -> Values:
    """Of values [..., seeds, targets]: the root of the mean variance."""
    return np.asarray(np.sqrt(mean(values.var(-2, ddof=1))))


def _of_trunks(described: _Figure, values: list[float], what: str) -> Figure:
    """A figure of few trained networks: mean and range."""
    return Figure(
        described.id, float(np.mean(values)), min(values), max(values), "×", described.goal,
        f"{what}, {described.conditions}; mean and range of {len(values)}",
        "benchmarks/results/pooled/",
        f"python -m benchmarks.study.pooled benchmarks/plans/{described.study}.yaml",
        statement=described.statement or what,
    )  # fmt: skip
