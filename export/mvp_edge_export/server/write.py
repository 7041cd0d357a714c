"""From a verified network to a bundle, through the export gate (server side: needs PyTorch).

    module ─ torch.onnx ─→ graph ─ metadata ─→ model.onnx ─ OpenVINO ─→ model.xml + model.bin
             file budget · parity of each runtime · accuracy in each runtime ─→ manifest.json

The bundle appears under its name only after the last check; a failure leaves nothing.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvp_edge_export.bundle import Bundle, load_bundle, network_input
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed
from mvp_edge_export.images import Preprocess
from mvp_edge_export.manifest import (
    MANIFEST,
    BundleFile,
    Candidate,
    Manifest,
    Parity,
    parts_of,
    quantisation_verdict,
)
from mvp_edge_export.measuring.bench import bench
from mvp_edge_export.measuring.choice import decided, is_device
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NUMBER_FORMATS, NumberFormat
from mvp_edge_export.running.sessions import FORMATS, Session, import_runtime
from mvp_edge_export.server.candidates import (
    Judges,
    asked_for,
    float_candidates,
    int8_candidate,
    loaded,
    within_budget,
)
from mvp_edge_export.server.convert import PLACES, Network, Written, frozen, write_network
from mvp_edge_export.server.parity import Floats, Labels, Pixels, check_parity, gate_images
from mvp_edge_export.server.quantise import Images
from mvp_edge_export.storage import atomic_directory, sha256_file, write_json
from mvp_edge_export.verified import Verdict, Verified

RUNTIME_OF = {forms["fp32"]: runtime for runtime, forms in FORMATS.items()}
WRITABLE = tuple(RUNTIME_OF)
"""What can be asked for: ``onnx``, ``openvino``."""

_REFERENCE_BATCH = 64
_CHOOSING_SECONDS = 2.0
"""Timed seconds a cell when the choice can be made at once; ``bench --choose`` takes its time."""


def export_bundle(
    module: nn.Module,
    verified: Verified,
    weights: Path,
    out: Path,
    *,
    labels: Sequence[str],
    preprocess: Preprocess,
    kept: Mapping[str, Sequence[int]],
    operators: Operators,
    profile: DeviceProfile,
    images: Pixels,
    targets: Labels,
    gate_pixels: Pixels | None = None,
    formats: Sequence[str] = WRITABLE,
    precisions: Sequence[NumberFormat] = ("fp32",),
    validation: tuple[Pixels, Labels] | None = None,
    calibration: Pixels | None = None,
    dynamic_batch: bool = False,
    embed_preprocess: bool = False,
    baseline: nn.Module | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda phase: None,
) -> Bundle:
    """Write the bundle of a verified network, after it passed the gate in every runtime.

    Args:
        module: the pruned network, float32 [N, 3, S, S] → logits [N, C]; it is not changed.
        verified: its verification, made for ``profile``.
        weights: the file whose sha256 ``verified`` binds.
        out: the directory to make.
        labels: class names in the order of the logits.
        preprocess: how images become the network's input.
        kept: unit group → indices of the backbone's units that the network keeps.
        operators: what one inference of it computes.
        profile: the device profile whose file budget is judged here.
        images: the test images, uint8 [N, S, S, 3].
        targets: their classes [N].
        gate_pixels: real images for the parity gate, of any split; the test images if None.
        formats: some of ``WRITABLE``.
        precisions: what to write: fp32; fp16 is an OpenVINO IR with weights in float16; int8 is the
            best quantisation for each runtime, if it keeps within the profile's gate.
        validation: validation images and their classes, which int8 is chosen by.
        calibration: training images, on which int8 finds its ranges.
        dynamic_batch: leave the batch open instead of fixing it to 1.
        embed_preprocess: put the division by 255 and the normalisation into the graph.
        baseline: the unpruned network with the task's head, exported beside it.
        force: replace an existing bundle.
        progress: told the name of each phase as it begins.

    Raises:
        BadInput: arguments that do not fit together, or weights that were not verified.
        BudgetMissed: a budget FAILs, that of the file included.
        GateFailed: a runtime does not compute what PyTorch computes, or with less accuracy.
    """
    _check_ticket(verified, weights, profile)
    _check_arguments(labels, preprocess, images, targets, formats, precisions)
    if "int8" in precisions and (validation is None or calibration is None):
        raise ValueError("int8 needs validation and calibration images")
    _check_replaceable(out)
    for form in formats:
        import_runtime(RUNTIME_OF[form])
    versions = _versions(formats, precisions)
    metadata = {
        "labels": list(labels),
        **preprocess.to_json(),
        "embedded_preprocess": embed_preprocess,
        "profile": profile.id,
        "profile_sha256": profile.sha256,
        "versions": versions,
    }
    pruned_metadata = {
        "weights_sha256": verified.weights_sha256,
        "kept": {group: list(indices) for group, indices in kept.items()},
    }

    def write(folder: Path, network: Network, source: nn.Module, facts: dict[str, Any]) -> Written:
        progress(f"exporting the {network} network")
        embedded = preprocess if embed_preprocess else None
        return write_network(
            folder,
            network,
            frozen(source, embedded),
            metadata=facts,
            size=preprocess.size,
            formats=formats,
            fp16="fp16" in precisions,
            dynamic_batch=dynamic_batch,
        )

    with atomic_directory(out, force=force) as folder:
        pruned = write(folder, "pruned", module, metadata | pruned_metadata)
        networks = [pruned]
        if baseline is not None:
            networks.append(write(folder, "baseline", baseline, metadata))

        progress("comparing the runtimes with PyTorch")
        pixels, real = gate_images(images if gate_pixels is None else gate_pixels)
        gate_input = network_input(pixels, preprocess, embedded=embed_preprocess)
        parity = [
            check
            for network in networks
            for check in _parity(folder, network, gate_input, real, len(labels))
        ]

        def judged(pixels: Pixels, targets: Labels) -> Images:
            inputs = network_input(pixels, preprocess, embedded=embed_preprocess)
            return Images(inputs, targets, _reference(pruned.module, inputs))

        progress("measuring the accuracy in each runtime")
        judges = Judges(
            test=judged(images, targets),
            validation=None if validation is None else judged(*validation),
            calibration=None
            if calibration is None
            else network_input(calibration, preprocess, embedded=embed_preprocess),
            progress=progress,
        )
        _check_verified(judges.test, verified)
        candidates = list(float_candidates(folder, pruned.models, judges))
        if "int8" in precisions:
            candidates += [
                int8_candidate(folder, pruned.graph, RUNTIME_OF[form], judges, profile)
                for form in formats
            ]
        candidates = within_budget(asked_for(candidates, precisions), profile)
        models = _kept_models(folder, candidates)

        manifest = Manifest(
            labels=tuple(labels),
            preprocess=preprocess.to_json(),
            embedded_preprocess=embed_preprocess,
            batch=None if dynamic_batch else 1,
            models=models,
            baseline=networks[1].models if baseline is not None else {},
            files=_files(folder),
            exporter={network.network: network.exporter for network in networks},
            weights_sha256=verified.weights_sha256,
            kept={group: tuple(map(int, indices)) for group, indices in kept.items()},
            profile=profile,
            profile_sha256=profile.sha256,
            cost=verified.cost,
            cost_baseline=verified.cost_baseline,
            operators=tuple(map(tuple, operators.to_json())),
            verdicts=tuple(_with_measured(verified.verdicts, profile, candidates)),
            parity=tuple(parity),
            candidates=tuple(candidates),
            shipped=None,
            undecided=f"measured on no {profile.id} yet; run mvp-edge bench --choose there",
            versions=versions,
        )
        if is_device(profile):
            progress("measuring the candidates: this machine is the device")
            manifest = _chosen_here(folder, manifest)
        write_json(folder / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
        load_bundle(folder)  # what the device will do, before anyone can see it
    return Bundle(out, manifest)


def _check_ticket(verified: Verified, weights: Path, profile: DeviceProfile) -> None:
    if not verified.passed:
        missed = "; ".join(str(verdict) for verdict in verified.failed)
        raise BudgetMissed(f"not exported, the network misses {profile.id}'s budgets: {missed}")
    if verified.profile_sha256 != profile.sha256:
        raise BadInput(
            f"the network was verified for profile {verified.profile}, which is not {profile.id} as"
            " it stands now: prune for this profile, or export with the one it was verified for"
        )
    verified.check_weights(weights)


def _check_arguments(
    labels: Sequence[str],
    preprocess: Preprocess,
    images: Pixels,
    targets: Labels,
    formats: Sequence[str],
    precisions: Sequence[NumberFormat],
) -> None:
    unknown = [name for name in formats if name not in WRITABLE]
    if unknown or not formats:
        given = ", ".join(unknown) or "none"
        raise BadInput(f"--format {given}: choose some of {', '.join(WRITABLE)}")
    strange = [name for name in precisions if name not in NUMBER_FORMATS]
    if strange or not precisions:
        given = ", ".join(strange) or "none"
        raise BadInput(f"--precision {given}: choose some of {', '.join(NUMBER_FORMATS)}")
    if "fp16" in precisions and "openvino" not in formats:
        raise BadInput("--precision fp16 is a form of the OpenVINO files: add openvino to --format")
    if len(images) == 0:
        raise BadInput("export: there are no test images to hold the runtimes against")
    if images.shape[1:] != (preprocess.size, preprocess.size, 3) or images.dtype != np.uint8:
        raise ValueError(f"uint8 [N, {preprocess.size}, {preprocess.size}, 3] is needed")
    if targets.shape != (len(images),) or targets.min() < 0 or targets.max() >= len(labels):
        raise ValueError("targets must be one index of labels an image")


def _check_replaceable(out: Path) -> None:
    # --force replaces the whole directory: it must not take a folder of photographs for a bundle.
    occupied = out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()
    if occupied or (out.exists() and not out.is_dir()):
        raise BadInput(f"{out} exists and is not a bundle; choose another place")


def _chosen_here(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest after short cells on this machine, which is the device; lost files are removed."""
    alone = Bundle(folder, manifest.model_copy(update={"baseline": {}}))
    try:
        chosen = decided(manifest, bench(alone, seconds=_CHOOSING_SECONDS))
    except (BadInput, BudgetMissed) as error:
        return manifest.model_copy(update={"undecided": str(error)})
    for name in manifest.files.keys() - chosen.files.keys():
        (folder / name).unlink()
    return chosen


def _kept_models(folder: Path, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Format → file of the candidates that are kept; the files of the others are removed."""
    models = {}
    for one in candidates:
        place = PLACES[one.format]
        if one.kept:
            models[one.format] = place
        else:
            for part in parts_of(place):
                (folder / part).unlink(missing_ok=True)
    return models


def _with_measured(
    verdicts: Sequence[Verdict], profile: DeviceProfile, candidates: Sequence[Candidate]
) -> Iterator[Verdict]:
    """The verdicts, those of the file and of int8's accuracy now measured on what was written."""
    yield from (verdict for verdict in verdicts if verdict.budget != "file")
    kept = [one for one in candidates if one.kept]
    limit = profile.budgets.file
    largest = max(kept, key=lambda one: one.bytes)
    yield Verdict(
        budget="file",
        limit=limit,
        reached=largest.bytes,
        unit="B",
        verdict="UNCHECKED" if limit is None else "PASS",
        basis="measured",
        note=f"the largest form, {largest.format}" if len(kept) > 1 else "",
    )
    yield from quantisation_verdict(kept, profile)


def _parity(
    bundle: Path, written: Written, images: Floats, real: int, classes: int
) -> Iterator[Parity]:
    reference = _reference(written.module, images)
    if reference.shape != (len(images), classes):
        raise BadInput(
            f"the {written.network} network gives logits {reference.shape[1:]} for {classes} labels"
        )
    for session, setting in _gate_sessions(bundle, written.models):
        yield check_parity(
            reference,
            session.run(images),
            session,
            network=written.network,
            setting=setting,
            real_images=real,
        )


def _gate_sessions(bundle: Path, models: Mapping[str, str]) -> Iterator[tuple[Session, str]]:
    """Each runtime in float32, one at a time; float16 weights are judged by accuracy alone."""
    if "onnx" in models:
        path = bundle / models["onnx"]
        for optimise in (False, True):
            setting = f"graph optimisation {'on' if optimise else 'off'}"
            yield loaded("onnxruntime", path, optimise=optimise), setting
    if "openvino" in models:
        path = bundle / models["openvino"]
        yield loaded("openvino", path, arithmetic="f32"), "inference precision f32"


def _check_verified(test: Images, verified: Verified) -> None:
    """Refuse a network that is not as accurate as its verification says."""
    images = len(test.targets)
    top1 = float((test.reference.argmax(axis=1) == test.targets).mean())
    # Small differences come from the arithmetic of the verification; large ones from other images,
    # another order of the labels or another preprocessing than were verified.
    allowed = max(3, 0.02 * images) / images
    if verified.images == images and abs(top1 - verified.accuracy) > allowed:
        raise GateFailed(
            f"export gate: the network gets {top1:.1%} of the {images} test images right,"
            f" but {verified.accuracy:.1%} was verified: images, labels or preprocessing differ; no"
            " bundle was written"
        )


def _reference(module: nn.Module, images: Floats) -> Floats:
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(images[start : start + _REFERENCE_BATCH])).numpy()
            for start in range(0, len(images), _REFERENCE_BATCH)
        ]
    return np.concatenate(parts)


def _files(bundle: Path) -> dict[str, BundleFile]:
    return {
        path.relative_to(bundle).as_posix(): BundleFile(
            sha256=sha256_file(path), bytes=path.stat().st_size
        )
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }


def _versions(formats: Sequence[str], precisions: Sequence[NumberFormat]) -> dict[str, str]:
    packages = ["mvp-edge", "torch", "timm", "onnx", "onnxscript", "numpy"]
    packages += [RUNTIME_OF[form] for form in formats]
    packages += ["nncf"] if "int8" in precisions and "openvino" in formats else []
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }
