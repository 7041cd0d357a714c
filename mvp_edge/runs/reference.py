"""The unpruned backbone, fine-tuned as a user would: what a drop in accuracy is measured against."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.results import scores
from mvp_edge.pruning.training import fine_tune
from mvp_edge.runs.settle import Settled
from mvp_edge_export.storage import read_json, sha256_json, write_json

FOLDER, CHECKPOINT = ".references", ".reference.safetensors"


def tuned_reference(settled: Settled, problem: Problem, run: Path) -> dict[str, Any]:
    """Its accuracy on the test and on the validation images, and what it cost.

    Kept per task beside the runs, so that the second run of a task has it at once. ``run`` is the run
    directory, where a killed one finds its checkpoint.
    """
    task, backbone = settled.task, settled.backbone
    recipe = recipe_for(
        None,
        backbone.family,
        augment=problem.recipe.augment,
        accelerator=problem.recipe.accelerator,
    )
    what = [backbone.sha256, task.fingerprint, asdict(recipe), problem.seed]
    kept = run.parent / FOLDER / f"{sha256_json(what)[:32]}.json"
    checkpoint = run / CHECKPOINT
    if not kept.exists():
        whole = replace(
            problem,
            widths={},
            recipe=recipe,
            checkpoint=checkpoint,
            progress=lambda phase, done, total: problem.progress(
                f"reference: {phase}", done, total
            ),
        )
        tuned = fine_tune(whole, backbone.with_head(len(task.classes)), {})
        scored = scores(tuned, task, backbone)
        facts = {
            "schema": 1,
            "top1": scored["test"],
            "n": len(task.splits["test"]),
            "validation": scored.get("val"),
            "steps": recipe.steps,
            "training_flops": tuned.ledger.total_flops,
            "seconds": round(tuned.seconds, 1),
        }
        write_json(kept, facts)
    checkpoint.unlink(missing_ok=True)
    result: dict[str, Any] = read_json(kept, "reference")
    return result
