"""Non-uniform widths by the voters' agreement, against uniform ones with the same multiply-adds.

    python -m benchmarks.device.widths tuning  OUT.json     choose a variant, on tasks that are no targets
    python -m benchmarks.device.widths targets OUT.json     compare the chosen one on the targets, paired

The agreement κ in a group is the voters' mean pairwise overlap at the uniform width, corrected for chance:
0 for random units, 1 for identical ones. A group's width is multiplied by exp(β (κ̄ − κ)), and by its share of
the multiply-adds to the power −γ, relative to the other groups; then one ratio for all groups is solved for, so
that the multiply-adds are those of the uniform network. β = γ = 0 is uniform.

Resumable; needs MVP_EDGE_DATA, and for DeiT a zoo that is not committed (--zoo).
"""

import argparse
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import below_data, data_folder
from mvp_edge.families import unit_groups
from mvp_edge.machine import this_computer, versions
from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.methods.mvp import mvp
from mvp_edge.pruning.finetune import Ledger, accuracy, predict_logits
from mvp_edge.pruning.problem import Problem
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import exact_widths
from mvp_edge.subnetwork.cost import itemise
from mvp_edge.subnetwork.subnet import resize
from mvp_edge.tasks.task import Task, sample_tasks
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, NeighbourSearch
from mvp_edge.zoo.neighbours import Target as NewTask
from mvp_edge_export.storage import read_json, write_json
from mvp_edge_export.verified import Cost

HERE = Path(__file__).parent
GRID = 10_000
"""Keep ratios are searched in steps of 1/GRID."""


@dataclass(frozen=True)
class Family:
    """A backbone, its tasks, and the keep ratios to compare at."""

    backbone: str
    images: str
    input_size: int | None
    count: int
    keeps: tuple[float, ...]


FAMILIES = {
    "resnet18": Family("weights/resnet18_cifar100.json", "cifar100.zip", None, 24, (0.1,)),
    "deit-tiny": Family(
        "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
        "tiny_imagenet_100.zip",
        64,
        7,
        (0.25, 0.4),
    ),
}


@dataclass(frozen=True)
class Tilt:
    """How widths differ from uniform ones; both exponents 0: not at all."""

    agreement: float = 0.0
    """β: positive values narrow the groups on which the voters agree."""
    cost: float = 0.0
    """γ: positive values narrow the groups with a large share of the multiply-adds."""


TILTS: Mapping[str, Tilt] = {
    "uniform": Tilt(),
    "agreed-narrow-0.5": Tilt(agreement=0.5),
    "agreed-narrow-0.25": Tilt(agreement=0.25),
    "agreed-wide-0.25": Tilt(agreement=-0.25),
    "agreed-wide-0.5": Tilt(agreement=-0.5),
    "cheap-wide-0.25": Tilt(cost=0.25),
    "dear-wide-0.125": Tilt(cost=-0.125),
    "dear-wide-0.25": Tilt(cost=-0.25),
    "agreed-wide-0.25-dear-wide-0.125": Tilt(agreement=-0.25, cost=-0.125),
}


def agreement(entries: Sequence[Entry], group: UnitGroup, width: int) -> float:
    """κ of a group: the overlap of what the entries keep at a width, corrected for chance."""
    if width >= group.size:
        return 1.0
    chosen = np.zeros((len(entries), group.size), dtype=bool)
    for row, entry in enumerate(entries):
        ranking = entry.network.ranking[group.name]
        chosen[row, ranking[len(ranking) - width :]] = True
    overlap = np.mean([(a & b).sum() for a, b in combinations(chosen, 2)]) / width
    chance = width / group.size
    return float((overlap - chance) / (1 - chance))


class Sizes:
    """The widths of pruned networks of one backbone, and their multiply-adds; nothing is rounded."""

    def __init__(self, backbone: Backbone, policy: str, classes: int) -> None:
        self.outline = backbone.outline(classes)
        self.policy, self.shape = policy, backbone.shape
        self.groups = unit_groups(self.outline, policy)
        self.tilted = [group for group in self.groups if group.kind != "head_dim"]
        self._costs: dict[tuple[int, ...], Cost] = {}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-adds of the network with these widths."""
        return self.cost(widths).flops

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """All costs of that network, counted on shapes."""
        key = tuple(widths[group.name] for group in self.groups)
        if key not in self._costs:
            network = resize(self.outline, widths, self.policy)
            self._costs[key] = itemise(network, self.shape).cost()
        return self._costs[key]

    def uniform(self, keep: float) -> dict[str, int]:
        """The same keep ratio in all groups."""
        return exact_widths(self.groups, keep)

    def solved(self, entries: Sequence[Entry], keep: float, tilt: Tilt) -> dict[str, int]:
        """The widths of the largest tilted network that costs no more than the uniform one at ``keep``."""
        uniform = self.uniform(keep)
        budget = self.macs(uniform)
        factor = self._factors(entries, uniform, tilt)

        def widths(step: int) -> dict[str, int]:
            own = {
                g.name: min(g.size, max(1, int(step / GRID * factor[g.name] * g.size + 0.5)))
                for g in self.tilted
            }
            return {**uniform, **own}

        most = int(GRID / min(factor.values()))
        too_large = bisect_left(range(most + 1), True, key=lambda n: self.macs(widths(n)) > budget)
        found = widths(too_large - 1)
        unfilled = [g for g in self.tilted if found[g.name] < g.size]
        while unfilled:  # use what rounding left of the budget
            group = min(unfilled, key=lambda g: found[g.name] / g.size / factor[g.name])
            wider = {**found, group.name: found[group.name] + 1}
            if self.macs(wider) <= budget:
                found = wider
            else:
                unfilled.remove(group)
        return found

    def _factors(
        self, entries: Sequence[Entry], uniform: Mapping[str, int], tilt: Tilt
    ) -> dict[str, float]:
        """How much wider than uniform each group becomes, before the common ratio is solved for."""
        kappa = {g.name: agreement(entries, g, uniform[g.name]) for g in self.tilted}
        share = {g.name: self._share_of_cost(uniform, g) for g in self.tilted}
        mean_kappa = float(np.mean(list(kappa.values())))
        mean_share = float(np.exp(np.mean(np.log(list(share.values())))))
        return {
            name: np.exp(tilt.agreement * (mean_kappa - kappa[name]))
            * (share[name] / mean_share) ** -tilt.cost
            for name in kappa
        }

    def _share_of_cost(self, widths: Mapping[str, int], group: UnitGroup) -> float:
        """∂ log multiply-adds / ∂ log width."""
        here = self.macs(widths)
        return (self.macs({**widths, group.name: 2 * widths[group.name]}) - here) / here


class Target:
    """A task whose networks are pruned by the votes of a zoo's other entries."""

    def __init__(self, backbone: Backbone, zoo: Zoo, task: Task) -> None:
        self.backbone, self.zoo, self.task = backbone, zoo, task
        self.entries = [entry for entry in zoo.entries() if entry.name != task.name]
        self.sizes = Sizes(backbone, zoo.policy, len(task.classes))

    @cached_property
    def neighbours(self) -> list[Entry]:
        """The three most similar entries by LEEP."""
        images = self.task.images("train", self.backbone.preprocess)
        subset = images.take(self.task.subsample("train", LEEP_IMAGES, 0))
        classes = self.task.classes
        search = NeighbourSearch(self.entries, self.backbone)
        found = search.find(NewTask(subset, classes), 3, Ledger())
        by_name = {entry.name: entry for entry in self.entries}
        return [by_name[one.task] for one in found.chosen]

    def row(self, variant: str, keep: float, seed: int) -> dict[str, Any]:
        """Accuracy and size of the network that MVP makes with the widths of a variant."""
        backbone, task = self.backbone, self.task
        widths = self.sizes.solved(self.entries, keep, TILTS[variant])
        problem = Problem(
            backbone=backbone,
            policy=self.zoo.policy,
            classes=len(task.classes),
            train=task.images("train", backbone.preprocess),
            validation=None,
            widths=widths,
            recipe=recipe_for("mvp", backbone.family),
            voters=[entry.voter(keep) for entry in self.neighbours],
            seed=seed,
        )
        cost, began = self.sizes.cost(widths), time.perf_counter()
        pruned = mvp(problem)
        scores = {}
        for split in ("val", "test"):
            images = task.images(split, backbone.preprocess)
            logits = predict_logits(pruned.model, images.pixels, backbone.preprocess)
            scores[split] = accuracy(logits, images.labels)
        return {
            "task": task.name,
            "keep": keep,
            "variant": variant,
            "seed": seed,
            **scores,
            "flops": cost.flops,
            "params": cost.params,
            "widths": widths,
            "seconds": round(time.perf_counter() - began, 1),
        }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "which", choices=["tuning", "targets"], help="tasks to choose a variant on, or to report"
    )
    arguments.add_argument("out", type=Path, help="JSON file of the rows")
    arguments.add_argument(
        "--family", choices=FAMILIES, default="resnet18", help="default: resnet18"
    )
    arguments.add_argument(
        "--zoo",
        type=Path,
        default=HERE.parent / "zoos" / "resnet18-cifar100",
        help="default: benchmarks/zoos/resnet18-cifar100",
    )
    arguments.add_argument(
        "--variants", default=",".join(TILTS), help="names, with commas (default: all)"
    )
    arguments.add_argument(
        "--tasks", type=int, default=8, help="end of the range of tasks (default: 8)"
    )
    arguments.add_argument("--first", type=int, default=0, help="start of that range (default: 0)")
    arguments.add_argument("--seeds", type=int, default=1, help="number of seeds (default: 1)")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    family, data = FAMILIES[options.family], data_folder()
    backbone = load_backbone(below_data(family.backbone), family.input_size)
    zoo = Zoo.open(options.zoo)
    count, seed = (4, 100) if options.which == "tuning" else (family.count, 0)
    tasks = sample_tasks(data / family.images, count, 5, seed)[options.first : options.tasks]
    rows = read_json(options.out, "rows")["rows"] if options.out.exists() else []
    known = {(r["family"], r["task"], r["keep"], r["variant"], r["seed"]) for r in rows}
    for task in tasks:
        target = Target(backbone, zoo, task)
        wanted = product(family.keeps, options.variants.split(","), range(options.seeds))
        for keep, variant, number in wanted:
            if (options.family, task.name, keep, variant, number) in known:
                continue
            rows.append({"family": options.family, **target.row(variant, keep, number)})
            print(rows[-1], flush=True)
            facts = {
                "schema": 1,
                "which": options.which,
                "tried": {name: [tilt.agreement, tilt.cost] for name, tilt in TILTS.items()},
                "machine": this_computer(),
                "versions": versions(),
                "rows": rows,
            }
            write_json(options.out, facts)


if __name__ == "__main__":
    main()
