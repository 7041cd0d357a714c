"""Run a study: from its plan (YAML) to a zoo of its tasks and one row a target and variant.

    python -m benchmarks.study benchmarks/plans/resnet18-cifar100.yaml

Resumable: finished rows are not made again, and several processes may work on one plan at once. Needs
MVP_EDGE_DATA, the folder with the research data.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.study.plan import Study
from benchmarks.study.run import run_variants, state_of, variants_of
from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.tasks.task import Task
from mvp_edge.zoo.build import Builder


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("plan", type=Path, help="a file of benchmarks/plans/")
    arguments.add_argument(
        "--threads", type=int, default=1, help="CPU threads of PyTorch (default: 1)"
    )
    arguments.add_argument(
        "--only", choices=["zoo", "variants"], help="build the zoo alone, or make the rows alone"
    )
    arguments.add_argument(
        "--variants",
        default=".*",
        help="regular expression that a variant's whole name has to match (default: all)",
    )
    arguments.add_argument(
        "--targets", type=int, help="number of targets of each draw, from its start (default: all)"
    )
    arguments.add_argument(
        "--accelerator", choices=["cpu", "cuda"], default="cpu", help="default: cpu"
    )
    arguments.add_argument(
        "--list", action="store_true", help="list missing and old rows, and make none"
    )
    arguments.add_argument("--reverse", action="store_true", help="start with the last task")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    study = Study.open(options.plan, options.accelerator)
    for name, variant in study.plan["variants"].items():
        if "method" not in variant:
            sys.exit(
                f"{options.plan}: {name} names no method: "
                "is it a plan of `python -m benchmarks.study.trials`?"
            )
    tasks = study.tasks[::-1] if options.reverse else study.tasks
    targets = [
        task for task in tasks if options.targets is None or study.place(task) < options.targets
    ]
    if options.list:
        list_unfinished(study, targets, options.variants)
        return
    if options.only != "variants" and "zoo" not in study.plan:
        build_own_zoo(study, tasks)
    if options.only != "zoo":
        for task in targets:
            run_variants(study, task, options.variants)


def list_unfinished(study: Study, tasks: Sequence[Task], only: str) -> None:
    """Print for each unfinished variant how many rows are current, old, missing, or waiting."""
    found: dict[str, Counter[str]] = {}
    for task in tasks:
        for name in variants_of(study, task, only):
            found.setdefault(name, Counter())[state_of(study, task, name)] += 1
    for name, counts in found.items():
        if set(counts) != {"current"}:
            print(f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items())}")


def build_own_zoo(study: Study, tasks: Sequence[Task]) -> None:
    """Prune every task from scratch: the entries of the zoo, and the baseline of each target."""
    method = study.plan["scratch"]
    recipe = recipe_for(
        method,
        study.backbone.family,
        steps=study.plan.get("scratch_steps"),
        accelerator=study.accelerator,
    )
    Builder(study.zoo, study.backbone, method, recipe).build(tasks, _progress)
    if len(study.zoo.names()) < len(tasks):  # rows of a part of the zoo would be wrong
        sys.exit(
            f"{study.zoo.path}: another process is making the last entries: "
            "run this command again when it has finished"
        )


_LAST: list[float] = [0.0]
"""When progress was last printed."""


def _progress(phase: str, done: int, total: int) -> None:
    if time.monotonic() - _LAST[0] > 60 or done == total:
        _LAST[0] = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {phase} {done}/{total}", flush=True)


if __name__ == "__main__":
    main()
