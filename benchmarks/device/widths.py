"""Non-uniform widths by the voters' agreement, against uniform ones under the same budget of multiply-adds.

    python -m benchmarks.device.widths tuning  OUT.json     choosing how, on tasks that are no targets
    python -m benchmarks.device.widths targets OUT.json     the chosen one on the targets, paired

A group's agreement κ is the voters' mean pairwise overlap at the uniform width, over chance: 0 for lots, 1 for
one voice. A group is widened by exp(β (κ̄ − κ)), and by its share of the price to the power −γ, relative to
the others; then one ratio for all is solved for, so that the budget holds. β = γ = 0 is uniform.

Resumable; needs MVP_EDGE_DATA, and for DeiT a zoo that is not committed (--zoo).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import below_data, data_folder
from mvp_edge.machine import this_computer, versions
from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.methods.mvp import mvp
from mvp_edge.pruning.finetune import Ledger, accuracy, predict_logits
from mvp_edge.pruning.problem import Problem
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.budget import GRID, Sizer, largest
from mvp_edge.subnetwork.units import UnitGroup
from mvp_edge.tasks.task import Task, sample_tasks
from mvp_edge.zoo.entries import Entry, Zoo
from mvp_edge.zoo.neighbours import LEEP_IMAGES, NeighbourSearch, Target
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import read_json, write_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """A backbone with its data and its zoo."""

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
TRIED: Mapping[str, tuple[float, float]] = {
    "uniform": (0, 0),
    "agreed-narrow-0.5": (0.5, 0),
    "agreed-narrow-0.25": (0.25, 0),
    "agreed-wide-0.25": (-0.25, 0),
    "agreed-wide-0.5": (-0.5, 0),
    "cheap-wide-0.25": (0, 0.25),
    "dear-wide-0.125": (0, -0.125),
    "dear-wide-0.25": (0, -0.25),
    "agreed-wide-0.25-dear-wide-0.125": (-0.25, -0.125),
}
"""Name → (β, γ)."""


def agreement(entries: Sequence[Entry], group: UnitGroup, width: int) -> float:
    """κ of the voters' choices at this width."""
    if width >= group.size:
        return 1.0
    chosen = np.zeros((len(entries), group.size), dtype=bool)
    for row, entry in enumerate(entries):
        ranking = entry.network.ranking[group.name]
        chosen[row, ranking[len(ranking) - width :]] = True
    overlap = np.mean([(a & b).sum() for a, b in combinations(chosen, 2)]) / width
    chance = width / group.size
    return float((overlap - chance) / (1 - chance))


def solved(
    search: Sizer, entries: Sequence[Entry], keep: float, beta: float, gamma: float
) -> dict[str, int]:
    """The widths of the largest network, tilted by β and γ, that costs no more than the uniform one at ``keep``."""
    uniform = search.uniform(keep)
    budget = search.predict(uniform)[0].flops
    groups = [g for g in search.groups if g.kind != "head_dim"]
    kappa = {g.name: agreement(entries, g, uniform[g.name]) for g in groups}
    share = {g.name: _share_of_price(search, uniform, g) for g in groups}
    middle = float(np.mean(list(kappa.values())))
    usual = float(np.exp(np.mean(np.log(list(share.values())))))
    tilt = {
        g.name: np.exp(beta * (middle - kappa[g.name])) * (share[g.name] / usual) ** -gamma
        for g in groups
    }

    def widths(step: int) -> dict[str, int]:
        own = {
            g.name: min(g.size, max(1, int(step / GRID * tilt[g.name] * g.size + 0.5)))
            for g in groups
        }
        return {**uniform, **own}

    most = int(GRID / min(tilt.values()))
    found = widths(largest(most, lambda n: search.predict(widths(n))[0].flops <= budget))
    unfilled = [g for g in groups if found[g.name] < g.size]
    while unfilled:  # what rounding left of the budget
        group = min(unfilled, key=lambda g: found[g.name] / g.size / tilt[g.name])
        wider = {**found, group.name: found[group.name] + 1}
        if search.predict(wider)[0].flops <= budget:
            found = wider
        else:
            unfilled.remove(group)
    return found


def _share_of_price(search: Sizer, widths: Mapping[str, int], group: UnitGroup) -> float:
    """∂ log price / ∂ log width."""
    wide = search.predict({**widths, group.name: 2 * widths[group.name]})[0].flops
    here = search.predict(dict(widths))[0].flops
    return (wide - here) / here


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("which", choices=["tuning", "targets"])
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--family", choices=FAMILIES, default="resnet18")
    arguments.add_argument("--zoo", type=Path, default=HERE.parent / "zoos" / "resnet18-cifar100")
    arguments.add_argument("--variants", default=",".join(TRIED))
    arguments.add_argument("--tasks", type=int, default=8)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--seeds", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    family, data = FAMILIES[options.family], data_folder()
    backbone = load_backbone(below_data(family.backbone), family.input_size)
    zoo = Zoo.open(options.zoo)
    count, seed = (4, 100) if options.which == "tuning" else (family.count, 0)
    tasks = sample_tasks(data / family.images, count, 5, seed)[options.first : options.tasks]
    done = read_json(options.out, "rows")["rows"] if options.out.exists() else []
    known = {(r["family"], r["task"], r["keep"], r["variant"], r["seed"]) for r in done}
    for task in tasks:
        entries = [entry for entry in zoo.entries() if entry.name != task.name]
        chosen = None
        for keep in family.keeps:
            for name in options.variants.split(","):
                for number in range(options.seeds):
                    if (options.family, task.name, keep, name, number) in known:
                        continue
                    chosen = chosen or _neighbours(entries, backbone, task)
                    row = _row(backbone, zoo, entries, chosen, task, keep, name, number)
                    done.append({"family": options.family, **row})
                    print(done[-1], flush=True)
                    facts = {"schema": 1, "which": options.which, "tried": dict(TRIED)}
                    facts |= {
                        "machine": this_computer(),
                        "versions": versions(),
                        "rows": done,
                    }
                    write_json(options.out, facts)


def _neighbours(entries: Sequence[Entry], backbone: Backbone, task: Task) -> list[Entry]:
    images = task.images("train", backbone.preprocess)
    subset = images.take(task.subsample("train", LEEP_IMAGES, 0))
    search = NeighbourSearch(entries, backbone)
    found = search.find(Target(subset, task.classes), 3, Ledger())
    by_name = {entry.name: entry for entry in entries}
    return [by_name[one.task] for one in found.chosen]


def _row(
    backbone: Backbone,
    zoo: Zoo,
    entries: Sequence[Entry],
    chosen: Sequence[Entry],
    task: Task,
    keep: float,
    name: str,
    seed: int,
) -> dict[str, Any]:
    search = Sizer(backbone.model, zoo.policy, backbone.shape, _exact(), len(task.classes), ())
    widths = solved(search, entries, keep, *TRIED[name])
    problem = Problem(
        backbone=backbone,
        policy=zoo.policy,
        classes=len(task.classes),
        train=task.images("train", backbone.preprocess),
        validation=None,
        widths=widths,
        recipe=recipe_for("mvp", backbone.family),
        voters=[entry.voter(keep) for entry in chosen],
        seed=seed,
    )
    began = time.perf_counter()
    pruned = mvp(problem)
    scores = {}
    for split in ("val", "test"):
        images = task.images(split, backbone.preprocess)
        scores[split] = accuracy(
            predict_logits(pruned.model, images.pixels, backbone.preprocess), images.labels
        )
    cost = search.predict(widths)[0]
    return {
        "task": task.name,
        "keep": keep,
        "variant": name,
        "seed": seed,
        **scores,
        "flops": cost.flops,
        "params": cost.params,
        "widths": widths,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _exact() -> DeviceProfile:
    """No rounding: the widths alone are compared."""
    profile = load_profile("rpi4")
    return profile.model_copy(
        update={"prune": profile.prune.model_copy(update={"round_to": 1, "min_channels": 1})}
    )


if __name__ == "__main__":
    main()
