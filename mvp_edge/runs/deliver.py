"""From a finished run to a bundle: what the exporter needs, gathered from the run directory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mvp_edge.methods.catalogue import recipe_for
from mvp_edge.pruning.batches import Batches
from mvp_edge.pruning.finetune import Ledger, initialise_head
from mvp_edge.runs.files import TaskFile
from mvp_edge.runs.run import Run
from mvp_edge.runs.run_file import RunFile
from mvp_edge.subnetwork.backbone import Backbone, load_backbone
from mvp_edge.subnetwork.network import TENSORS, Network
from mvp_edge.subnetwork.operators import operators
from mvp_edge.tasks.task import Task
from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.server.quantise import CALIBRATION_IMAGES
from mvp_edge_export.server.write import WRITABLE, export_bundle
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import parse

GATE_IMAGES = 64
"""The parity gate wants at least this many real images; small test splits are filled up."""


def export(
    run: str | Path | Run,
    out: str | Path | None = None,
    *,
    formats: Sequence[str] = WRITABLE,
    precisions: Sequence[NumberFormat] | None = None,
    dynamic_batch: bool = False,
    embed_preprocess: bool = False,
    baseline: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda phase: None,
) -> Bundle:
    """Export the verified network of ``run`` to a bundle (default: RUN/bundle), through the parity gate.

    ``precisions``: some of fp32, fp16, int8; those that the profile allows if None. Which of them is shipped
    is measured on the device: here, if this machine is one, else by ``mvp-edge bench --choose``.
    ``baseline``: the unpruned backbone is exported beside it for comparison; its head for the task is the
    nearest-class-mean rule of its own features.
    ``progress`` is told the name of each phase as it begins.

    Raises:
        BadInput: no such run, changed weights, an existing bundle without ``force``.
        BudgetMissed: a verdict is FAIL.
        GateFailed: a runtime does not compute what was verified; no bundle is left.
    """
    done = run if isinstance(run, Run) else Run.load(run)
    done.check()
    path, network = done.path, done.network
    source = RunFile.load(path).backbone.source
    profile = parse(
        DeviceProfile, read_json(path / "profile.json", "run"), "run", path / "profile.json"
    )
    task = Task.from_json(TaskFile.load(path).model_dump(mode="json", by_alias=True))
    test, validation = (task.images(split, network.preprocess) for split in ("test", "val"))
    if precisions is None:
        # Of the runtimes, OpenVINO alone has files in fp16.
        allowed = profile.precision.allowed
        precisions = [one for one in allowed if one != "fp16" or "openvino" in formats]
    unpruned = None
    if baseline:
        progress("preparing the unpruned network")
        backbone = load_backbone(source, network.preprocess.size)
        if backbone.sha256 != network.backbone_sha256:
            raise BadInput(
                f"--baseline: {backbone.source} is not the backbone that {path} was pruned from any more"
            )
        unpruned = _unpruned(backbone, task)
    module, size = network.module(), network.preprocess.size
    return export_bundle(
        module,
        done.verified,
        path / TENSORS,
        Path(out) if out is not None else path / "bundle",
        labels=network.classes,
        preprocess=network.preprocess,
        kept={name: units.tolist() for name, units in network.kept.items()},
        operators=operators(module, (3, size, size)),
        profile=profile,
        images=test.pixels,
        targets=test.labels,
        gate_pixels=_gate_pixels(task, network),
        formats=formats,
        precisions=precisions,
        validation=(validation.pixels, validation.labels),
        calibration=_calibration_pixels(task, network) if "int8" in precisions else None,
        dynamic_batch=dynamic_batch,
        embed_preprocess=embed_preprocess,
        baseline=unpruned,
        force=force,
        progress=progress,
    )


def _unpruned(backbone: Backbone, task: Task) -> nn.Module:
    """The whole backbone with a nearest-class-mean head for the task."""
    module = backbone.with_head(len(task.classes))
    images = task.images("train", backbone.preprocess)
    batches = Batches(images, backbone.preprocess, recipe_for(None, backbone.family), seed=0)
    initialise_head(module, batches, len(task.classes), Ledger())
    return module


def _calibration_pixels(task: Task, network: Network) -> NDArray[np.uint8]:
    """Training images, of every class its share, for int8 to find its ranges on."""
    rows = task.subsample("train", CALIBRATION_IMAGES, seed=0)
    chosen: NDArray[np.uint8] = task.images("train", network.preprocess).pixels[rows]
    return chosen


def _gate_pixels(task: Task, network: Network) -> NDArray[np.uint8]:
    """Real images for the gate: test images, then others of the task while there are too few."""
    pixels = [task.images("test", network.preprocess).pixels]
    for split in ("val", "train"):
        if sum(map(len, pixels)) < GATE_IMAGES:
            pixels.append(task.images(split, network.preprocess).pixels)
    return np.concatenate(pixels)[: 2 * GATE_IMAGES]
