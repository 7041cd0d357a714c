"""Do similar tasks keep the same units? The zoo's own choices against LEEP, unit group by unit group.

    python -m benchmarks.overlap benchmarks/plans/resnet18-cifar100.yaml

Each target ranks all other entries on its own training images; what its network and each of theirs have in
common is the share of its kept units that the other kept too. Chance is the keep ratio.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plan import HERE, Study
from mvp_edge.runs.rundir import machine, versions
from mvp_edge.subnetwork.units import unit_groups
from mvp_edge_export.storage import write_json


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("plan", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    study = Study.open(options.plan)
    groups = unit_groups(study.backbone.model, study.zoo.policy)
    kept = {entry.name: entry.network.kept for entry in study.zoo.entries()}
    rows: list[dict[str, Any]] = []
    for task in study.tasks:
        if task.name not in kept:
            continue
        own = kept[task.name]
        ranked = study.ranking(task, study.entries(task), "leep").candidates
        others = {
            name: {
                "score": score,
                "common": [
                    round(float(np.isin(own[g.name], kept[name][g.name]).mean()), 4) for g in groups
                ],
            }
            for name, score in ((one.task, one.score) for one in ranked)
        }
        rows.append({"target": task.name, "others": others})
        print(task.name, flush=True)
    facts = {
        "schema": 1,
        "machine": machine(),
        "versions": versions(),
        "study": study.plan["study"],
        "groups": [
            {"name": g.name, "size": g.size, "kept": len(next(iter(kept.values()))[g.name])}
            for g in groups
        ],
        "rows": rows,
    }
    write_json(HERE / "results" / f"overlap-{study.plan['study']}.json", facts)


if __name__ == "__main__":
    main()
