"""The unpruned backbone, fine-tuned on the task: the drop in accuracy is measured against it."""

from dataclasses import asdict, replace
from pathlib import Path

from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.problem import Problem
from mvp_edge.pruning.results import scores
from mvp_edge.pruning.training import fine_tune
from mvp_edge.runs.files import ReferenceFile
from mvp_edge.runs.settle import Settled
from mvp_edge_export.storage import sha256_json

FOLDER, CHECKPOINT = ".references", ".reference.safetensors"


def tuned_reference(settled: Settled, problem: Problem, run: Path) -> ReferenceFile:
    """Fine-tune the unpruned backbone on the task, or read the result of an earlier run of the same task.

    Results are kept beside the run directories. ``run`` is the run directory; the checkpoint of an
    interrupted fine-tuning lies there.
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
        ReferenceFile(
            top1=scored["test"],
            n=len(task.splits["test"]),
            validation=scored.get("val"),
            steps=recipe.steps,
            training_flops=tuned.ledger.total_flops,
            seconds=round(tuned.seconds, 1),
        ).write(kept)
    checkpoint.unlink(missing_ok=True)
    return ReferenceFile.read(kept)
