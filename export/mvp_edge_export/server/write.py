"""From a verified network to a bundle, through the export gate.

    module ─ torch.onnx ─→ graph ─ metadata ─→ model.onnx ─ OpenVINO ─→ model.xml + model.bin
             parity in each runtime · accuracy in each runtime · int8 · file budget ─→ manifest.json

The bundle appears under its name only after the last check; a failure leaves nothing.
"""

import copy
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge_export.bundle import Bundle, load_bundle, network_input
from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed
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
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.running.sessions import Session, import_runtime
from mvp_edge_export.server.candidates import (
    Judges,
    asked_for,
    float_candidates,
    int8_candidate,
    loaded,
    within_budget,
)
from mvp_edge_export.server.convert import PLACES, NetworkWriter, Written, frozen
from mvp_edge_export.server.inputs import (
    RUNTIME_OF,
    ExportOptions,
    TaskImages,
    VerifiedNetwork,
)
from mvp_edge_export.server.parity import (
    Doubles,
    Floats,
    Labels,
    Pixels,
    Rows,
    check_parity,
    gate_images,
)
from mvp_edge_export.server.quantise import Images
from mvp_edge_export.storage import atomic_directory, sha256_file, write_json
from mvp_edge_export.verified import Verdict, Verified

_REFERENCE_BATCH = 64
CHOOSING_SECONDS = 2.0
"""Seconds of measurement for each cell when an export chooses at once; ``bench --choose`` measures longer."""


@dataclass(frozen=True)
class ExportJob:
    """One export: a verified network for a device, written and checked in every runtime."""

    network: VerifiedNetwork
    profile: DeviceProfile
    """The device profile that the network was verified for; its file budget is judged here."""
    images: TaskImages
    options: ExportOptions = field(default_factory=ExportOptions)
    baseline: nn.Module | None = None
    """The unpruned network with the task's head, exported beside the pruned one."""
    progress: Callable[[str], None] = lambda phase: None
    """Told the name of each phase as it begins."""

    def write(self, out: Path, *, force: bool = False) -> Bundle:
        """Write the bundle; it appears at ``out`` when every check has passed.

        Args:
            out: the directory to make.
            force: replace an existing bundle.

        Raises:
            BadInput: arguments that do not fit together, or weights that were not verified.
            BudgetMissed: a budget FAILs, that of the file included.
            GateFailed: a runtime does not compute what PyTorch computes, or is less accurate.
        """
        network, options = self.network, self.options
        network.check(self.profile)
        self.images.check(network.preprocess.size, len(network.labels), options.precisions)
        _check_replaceable(out)
        for form in options.formats:
            import_runtime(RUNTIME_OF[form])
        with atomic_directory(out, force=force) as folder:
            written = self._networks(folder)
            parity = self._parity(folder, written)
            judges = self._judges(written[0])
            _check_verified(judges.test, network.verified)
            candidates = self._candidates(folder, written[0], judges)
            manifest = self._manifest(folder, written, parity, candidates)
            if is_device(self.profile):
                self.progress("measuring the candidates: this machine is the device")
                manifest = _chosen_here(folder, manifest)
            write_json(folder / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
            load_bundle(folder)  # as the device will do, before the bundle appears
        return Bundle(out, manifest)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return _versions(self.options.formats, self.options.precisions)

    def _input(self, pixels: Pixels) -> Floats:
        embedded = self.options.embed_preprocess
        return network_input(pixels, self.network.preprocess, embedded=embedded)

    def _networks(self, folder: Path) -> list[Written]:
        """The pruned network's files, and the baseline's if there is one."""
        network, options = self.network, self.options
        metadata = {
            "labels": list(network.labels),
            **network.preprocess.to_json(),
            "embedded_preprocess": options.embed_preprocess,
            "profile": self.profile.id,
            "profile_sha256": self.profile.sha256,
            "versions": self._versions,
        }
        pruned = {
            "weights_sha256": network.verified.weights_sha256,
            "kept": {group: list(indices) for group, indices in network.kept.items()},
        }
        writer = NetworkWriter(
            size=network.preprocess.size,
            formats=options.formats,
            fp16="fp16" in options.precisions,
            dynamic_batch=options.dynamic_batch,
        )
        embedded = network.preprocess if options.embed_preprocess else None
        self.progress("exporting the pruned network")
        module = frozen(network.module, embedded)
        written = [writer.write(folder, "pruned", module, metadata | pruned)]
        if self.baseline is not None:
            self.progress("exporting the baseline network")
            module = frozen(self.baseline, embedded)
            written.append(writer.write(folder, "baseline", module, metadata))
        return written

    def _parity(self, folder: Path, written: Sequence[Written]) -> list[Parity]:
        """Each network in each runtime against PyTorch."""
        self.progress("comparing the runtimes with PyTorch")
        given = self.images.gate
        pixels, real = gate_images(self.images.test if given is None else given)
        images, classes = self._input(pixels), len(self.network.labels)
        return [check for one in written for check in _parity(folder, one, images, real, classes)]

    def _judges(self, pruned: Written) -> Judges:
        """The images with which candidates are made and tested."""
        self.progress("measuring the accuracy in each runtime")
        images = self.images

        def judged(pixels: Pixels, targets: Labels) -> Images:
            inputs = self._input(pixels)
            return Images(inputs, targets, _reference(pruned.module, inputs))

        validation = None
        if images.validation is not None and images.validation_labels is not None:
            validation = judged(images.validation, images.validation_labels)
        return Judges(
            test=judged(images.test, images.test_labels),
            validation=validation,
            calibration=None if images.calibration is None else self._input(images.calibration),
            progress=self.progress,
        )

    def _candidates(self, folder: Path, pruned: Written, judges: Judges) -> list[Candidate]:
        """The forms of the pruned network, each with whether it is kept and why."""
        options, profile = self.options, self.profile
        found = list(float_candidates(folder, pruned.models, judges))
        if "int8" in options.precisions:
            found += [
                int8_candidate(folder, pruned.graph, RUNTIME_OF[form], judges, profile)
                for form in options.formats
            ]
        return within_budget(asked_for(found, options.precisions), profile)

    def _manifest(
        self,
        folder: Path,
        written: Sequence[Written],
        parity: Sequence[Parity],
        candidates: Sequence[Candidate],
    ) -> Manifest:
        network, options, profile = self.network, self.options, self.profile
        verified = network.verified
        models = _kept_models(folder, candidates)
        return Manifest(
            labels=tuple(network.labels),
            preprocess=network.preprocess.to_json(),
            embedded_preprocess=options.embed_preprocess,
            batch=None if options.dynamic_batch else 1,
            models=models,
            baseline=written[1].models if len(written) > 1 else {},
            files=_files(folder),
            exporter={one.network: one.exporter for one in written},
            weights_sha256=verified.weights_sha256,
            kept={group: tuple(map(int, indices)) for group, indices in network.kept.items()},
            profile=profile,
            profile_sha256=profile.sha256,
            cost=verified.cost,
            cost_baseline=verified.cost_baseline,
            operators=tuple(map(tuple, network.operators.to_json())),
            verdicts=tuple(_with_measured(verified.verdicts, profile, candidates)),
            parity=tuple(parity),
            candidates=tuple(candidates),
            shipped=None,
            undecided=f"measured on no {profile.id} yet; run mvp-edge bench --choose there",
            versions=self._versions,
        )


def _check_replaceable(out: Path) -> None:
    # --force replaces the whole directory: it must not take a folder of photographs for a bundle.
    occupied = out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()
    if occupied or (out.exists() and not out.is_dir()):
        raise BadInput(f"{out} exists and is not a bundle; choose another place")


def _chosen_here(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest after short measurements on this machine, which is the device; slower variants are deleted."""
    alone = Bundle(folder, manifest.model_copy(update={"baseline": {}}))
    try:
        chosen = decided(manifest, bench(alone, seconds=CHOOSING_SECONDS))
    except (BadInput, BudgetMissed) as error:
        return manifest.model_copy(update={"undecided": str(error)})
    for name in manifest.files.keys() - chosen.files.keys():
        (folder / name).unlink()
    return chosen


def _kept_models(folder: Path, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Format → file of each candidate that is kept; the files of the others are deleted."""
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
    """The verdicts, with file size and int8 accuracy now measured on the written files."""
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

    def exact(rows: Rows) -> Doubles:
        return _logits(copy.deepcopy(written.module).double(), images[rows].astype(np.float64))

    for session, setting in _gate_sessions(bundle, written.models):
        yield check_parity(
            reference,
            session.run(images),
            session,
            network=written.network,
            setting=setting,
            real_images=real,
            exact=exact,
        )


def _gate_sessions(bundle: Path, models: Mapping[str, str]) -> Iterator[tuple[Session, str]]:
    """Each runtime in float32, one at a time; float16 weights are tested by accuracy alone."""
    if "onnx" in models:
        path = bundle / models["onnx"]
        for optimise in (False, True):
            setting = f"graph optimisation {'on' if optimise else 'off'}"
            yield loaded("onnxruntime", path, optimise=optimise), setting
    if "openvino" in models:
        path = bundle / models["openvino"]
        yield loaded("openvino", path, arithmetic="f32"), "inference precision f32"


def _check_verified(test: Images, verified: Verified) -> None:
    """Raise GateFailed for a network that is not as accurate as its verification says."""
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
    return _logits(module, images)


def _logits(module: nn.Module, images: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's logits [N, C], in the precision of the module and the images."""
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
