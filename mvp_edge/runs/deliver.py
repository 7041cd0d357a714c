"""From a finished run to a bundle: what the exporter needs, gathered from the run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.batches import Batches
from mvp_edge.pruning.finetune import Ledger, initialise_head
from mvp_edge.runs.files import TaskFile
from mvp_edge.runs.run import Run
from mvp_edge.runs.run_file import RunFile
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.network import TENSORS, Network
from mvp_edge.subnetwork.operators import operators
from mvp_edge.tasks.task import Task
from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.server.inputs import WRITABLE, ExportOptions, TaskImages, VerifiedNetwork
from mvp_edge_export.server.quantise import CALIBRATION_IMAGES
from mvp_edge_export.server.write import ExportJob
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import parse

GATE_IMAGES = 64
"""The parity gate wants at least this many real images; small test splits are filled up."""


def export(
    run: str | Path | Run,
    out: str | Path | None = None,
    *,
    baseline: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda phase: None,
    **options: Any,
) -> Bundle:
    """Export the verified network of a run to a bundle, after checking it in every runtime.

    Args:
        run: the run or its folder.
        out: the bundle's folder; RUN/bundle if None.
        baseline: also export the unpruned backbone for comparison. Its head for the task is the nearest-class-mean
            rule of its own features.
        force: replace an existing bundle.
        progress: told the name of each phase as it begins.
        options: ``formats``, ``precisions``, ``dynamic_batch``, ``embed_preprocess``, see `ExportOptions`. Without
            ``precisions`` those that the profile allows. Which of them is shipped is measured on the device: here,
            if this machine is the device, else by ``mvp-edge bench --choose``.

    Raises:
        BadInput: no such run, changed weights, an existing bundle without ``force``.
        BudgetMissed: a verdict is FAIL.
        GateFailed: a runtime does not compute what was verified; no bundle is left.
    """
    done = run if isinstance(run, Run) else Run.load(run)
    done.check()
    path, network = done.path, done.network
    profile = parse(
        DeviceProfile, read_json(path / "profile.json", "run"), "run", path / "profile.json"
    )
    if options.get("precisions") is None:
        formats = options.get("formats", WRITABLE)
        # OpenVINO is the only runtime with fp16 files.
        allowed = profile.precision.allowed
        precisions = [one for one in allowed if one != "fp16" or "openvino" in formats]
        options = {**options, "precisions": precisions}
    wanted = ExportOptions(**options)
    task = Task.from_json(TaskFile.load(path).model_dump(mode="json", by_alias=True))
    unpruned = None
    if baseline:
        progress("preparing the unpruned network")
        unpruned = _unpruned(done, task)
    module, size = network.module(), network.preprocess.size
    job = ExportJob(
        VerifiedNetwork(
            module=module,
            verified=done.verified,
            weights=path / TENSORS,
            labels=network.classes,
            preprocess=network.preprocess,
            kept={name: units.tolist() for name, units in network.kept.items()},
            operators=operators(module, (3, size, size)),
        ),
        profile,
        _images(task, network, calibrate="int8" in wanted.precisions),
        wanted,
        unpruned,
        progress,
    )
    return job.write(Path(out) if out is not None else path / "bundle", force=force)


def _images(task: Task, network: Network, *, calibrate: bool) -> TaskImages:
    """The task's images in the network's size."""
    test, validation = (task.images(split, network.preprocess) for split in ("test", "val"))
    return TaskImages(
        test=test.pixels,
        test_labels=test.labels,
        gate=_gate_pixels(task, network),
        validation=validation.pixels,
        validation_labels=validation.labels,
        calibration=_calibration_pixels(task, network) if calibrate else None,
    )


def _unpruned(run: Run, task: Task) -> nn.Module:
    """The whole backbone with a nearest-class-mean head for the task.

    Raises:
        BadInput: the backbone cannot be found, or is another one now.
    """
    source = RunFile.load(run.path).backbone.source
    backbone = load_backbone(source, run.network.preprocess.size)
    if backbone.sha256 != run.network.backbone_sha256:
        raise BadInput(
            f"needs the backbone that {run.path} was pruned from, and {backbone.source} has changed since",
            field="baseline",
        )
    module = backbone.with_head(len(task.classes))
    images = task.images("train", backbone.preprocess)
    batches = Batches(images, backbone.preprocess, recipe_for(None, backbone.family), seed=0)
    initialise_head(module, batches, len(task.classes), Ledger())
    return module


def _calibration_pixels(task: Task, network: Network) -> NDArray[np.uint8]:
    """Training images, stratified by class, from which int8 finds its ranges."""
    rows = task.subsample("train", CALIBRATION_IMAGES, seed=0)
    chosen: NDArray[np.uint8] = task.images("train", network.preprocess).pixels[rows]
    return chosen


def _gate_pixels(task: Task, network: Network) -> NDArray[np.uint8]:
    """Real images for the parity check: test images, and others of the task where those are too few."""
    pixels = [task.images("test", network.preprocess).pixels]
    for split in ("val", "train"):
        if sum(map(len, pixels)) < GATE_IMAGES:
            pixels.append(task.images(split, network.preprocess).pixels)
    return np.concatenate(pixels)[: 2 * GATE_IMAGES]
