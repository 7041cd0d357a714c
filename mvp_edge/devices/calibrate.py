"""Measures how fast a device is: networks of the shapes that pruning makes are timed, and a law is fitted.

    families ─ sampled widths ─→ networks (random weights) ─ ONNX, IR ─→ timed on the device
             ─→ law for each runtime and number of threads, its error on networks held out of the fit

The networks are ResNets, DeiT-Tiny and small depthwise ones at common image sizes, cut uniformly and unevenly,
with rounded and unrounded widths, from 5 % to all of their units. Together they have every kind of operator, at
the shapes of pruned networks. The time of an inference does not depend on the weights, so these are random.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from mvp_edge.devices.fitting import fit_law
from mvp_edge.devices.profile_writer import write_calibrated, write_new
from mvp_edge.devices.template import Template
from mvp_edge.pruning.problem import Progress
from mvp_edge.structure.shapes import Shape
from mvp_edge.structure.units import UnitGroup
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import differences
from mvp_edge_export.measuring.timing import HERE, Job, JobTiming, Place
from mvp_edge_export.profile import load_profile
from mvp_edge_export.profile_sections import Calibrated, Calibration, CalibrationError
from mvp_edge_export.running.sessions import RUNTIMES
from mvp_edge_export.storage import sha256_json

CIFAR_STEM = {
    "conv1": "Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)",
    "maxpool": "Identity()",
}
FAMILIES: Mapping[str, Architecture] = {
    "resnet18": Architecture("resnet18", CIFAR_STEM, {}, 32),
    "deit-tiny": Architecture("deit_tiny_patch16_224", {}, {}, 224),
    "deit-tiny-64": Architecture("deit_tiny_patch16_224", {}, {}, 64),
    "resnet18-224": Architecture("resnet18", {}, {}, 224),
    "resnet50-224": Architecture("resnet50", {}, {}, 224),
    "efficientnet-lite0-128": Architecture("efficientnet_lite0", {}, {}, 128),
    "efficientnet-lite0-32": Architecture("efficientnet_lite0", {}, {}, 32),
    "efficientnet-b0-128": Architecture("efficientnet_b0", {}, {}, 128),
    "mobilenetv3-small-128": Architecture("mobilenetv3_small_100", {}, {}, 128),
    "regnety-128": Architecture("regnety_002", {}, {}, 128),
    "convnext-128": Architecture("convnext_atto", {}, {}, 128),
}
"""For a family that is left out, the error is several times as large (docs/evidence/predicted-latency.md)."""
CLASSES = 10
HELD_OUT = 3
"""Every third network is held out of the fit."""
SMALLEST_KEEP, UNEVENNESS, ROUNDING = 0.05, 0.5, 8


@dataclass(frozen=True)
class Sample:
    """A network of random widths, and its files."""

    name: str
    family: str
    widths: Mapping[str, int]
    shape: Shape
    operators: Operators
    models: Mapping[str, Path]
    """Runtime → the model file that it reads."""


def sample_networks(
    count: int,
    folder: Path,
    runtimes: Sequence[str],
    *,
    families: Mapping[str, Architecture] = FAMILIES,
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
) -> Iterator[Sample]:
    """Write ``count`` networks of random widths into ``folder``, one of each family in turn.

    Args:
        count: number of networks.
        folder: where their files go; files that a killed call left there are used again.
        runtimes: keys of ``sessions.RUNTIMES``; ONNX files are always written.
        families: name → architecture.
        seed: of the widths and the weights.
        progress: called with (phase, done, total) after each network.
    """
    outlines = {name: one.outline(CLASSES) for name, one in families.items()}
    templates: dict[str, Template] = {}
    for index in range(count):
        progress("making networks", index, count)
        family = list(outlines)[index % len(outlines)]
        size = families[family].input_size
        shape = (3, size, size)
        if family not in templates:
            templates[family] = Template(outlines[family], None, shape)
        rng = np.random.default_rng([seed, index])
        widths = sample_widths(templates[family].groups, rng)
        name = f"{family}-{index:03d}"
        models = _write(templates[family], widths, seed + index, folder / name, runtimes)
        own = operators(resize(outlines[family], widths), shape)
        yield Sample(name, family, widths, shape, own, models)
    progress("making networks", count, count)


def sample_widths(groups: Sequence[UnitGroup], rng: np.random.Generator) -> dict[str, int]:
    """Widths as pruning may give: evenly cut or not, rounded or not, sometimes with narrow heads."""
    keep = float(np.exp(rng.uniform(np.log(SMALLEST_KEEP), 0)))
    even, rounded = rng.random() < 0.5, rng.random() < 0.5
    inside = rng.uniform(0.25, 1) if rng.random() < 0.25 else 1.0
    widths = {}
    for group in groups:
        own = inside if group.last_resort else keep
        if not even and not group.last_resort:
            own = min(1.0, own * float(np.exp(rng.normal(0, UNEVENNESS))))
        width = max(1, int(own * group.size + 0.5))
        if rounded and group.rounded:
            quantum = group.quantum(ROUNDING)
            width = min(group.size, max(quantum, width - width % quantum))
        widths[group.name] = width
    return widths


def jobs(samples: Sequence[Sample], runtimes: Sequence[str], threads: Sequence[int]) -> list[Job]:
    """What to time, ordered by network, so that a drift of the machine affects all fits equally."""
    return [
        Job(
            name=sample.name,
            model=sample.models[runtime],
            shape=(1, *sample.shape),
            runtime=runtime,
            threads=count,
        )
        for sample in samples
        for runtime in runtimes
        for count in threads
    ]


def fits(samples: Sequence[Sample], timings: Sequence[JobTiming]) -> list[Calibrated]:
    """A law for each runtime and number of threads, with its error on the held-out networks."""
    found = []
    of = {sample.name: sample for sample in samples}
    for runtime, threads in sorted({(one.runtime, one.threads) for one in timings}):
        rows = [one for one in timings if (one.runtime, one.threads) == (runtime, threads)]
        kept = [row for i, row in enumerate(rows) if i % HELD_OUT != HELD_OUT - 1]
        held = [row for i, row in enumerate(rows) if i % HELD_OUT == HELD_OUT - 1]
        law = fit_law([of[row.name].operators for row in kept], np.array([row.p50 for row in kept]))
        error = np.array(
            [abs(law.milliseconds(of[row.name].operators) / row.p50 - 1) for row in held]
        )
        found.append(
            Calibrated.model_validate(
                {
                    "runtime": runtime,
                    "version": rows[0].version,
                    "precision": "fp32",
                    "threads": threads,
                    "law": law,
                    "p90_over_p50": float(np.median([max(1.0, row.p90 / row.p50) for row in rows])),
                    "error": CalibrationError(
                        networks=len(held),
                        median=float(np.median(error)),
                        p90=float(np.quantile(error, 0.9)),
                    ),
                }
            )
        )
    return found


def _write(
    template: Template,
    widths: Mapping[str, int],
    seed: int,
    path: Path,
    runtimes: Sequence[str],
) -> dict[str, Path]:
    from mvp_edge_export.server.convert import save_openvino

    onnx, xml = path.with_suffix(".onnx"), path.with_suffix(".xml")
    if not onnx.exists():
        template.write(widths, onnx, seed)
    models: dict[str, Path] = {"onnxruntime": onnx}
    if "openvino" in runtimes:
        if not xml.exists():
            save_openvino(onnx, xml)
        models["openvino"] = xml
    return models


@dataclass(frozen=True)
class Sampling:
    """Which networks a calibration times, and in which ways."""

    networks: int = 90
    """How many; every third is held out of the fits."""
    threads: Sequence[int] = ()
    """Numbers of threads; 1 and the profile's if empty."""
    runtimes: Sequence[str] = ()
    """Keys of ``sessions.RUNTIMES``; if empty those of the profile that the device can run."""
    families: Mapping[str, Architecture] = field(default_factory=lambda: FAMILIES)
    """The architectures from which the networks are cut."""


def calibrate(
    profile: str | None,
    sampling: Sampling | None = None,
    *,
    out: Path | None = None,
    place: Place = HERE,
    progress: Progress = lambda phase, done, total: None,
) -> tuple[Path, Calibration]:
    """Calibrate a device and write the result into its profile.

    Args:
        profile: name or file of the profile whose device is calibrated; None makes a new profile.
        sampling: what is timed; the defaults of `Sampling` if None.
        out: the file to write; see `write_calibrated`.
        place: the device: this machine, or one that is reached by ssh.
        progress: called with (phase, done, total).

    Returns:
        The file that was written, and its calibration.

    Raises:
        BadInput: the place is not the profile's device, or lacks a runtime; the networks do not run;
            the file cannot be written.
    """
    sampling = sampling or Sampling()
    known = load_profile(profile) if profile is not None else None
    machine = place.machine
    if known is not None and (other := differences(machine, known)):
        raise BadInput(
            f"device calibrate: {place.name} is not a {known.name}: {'; '.join(other)}; run it there, "
            "or give no profile to make one of this device"
        )
    backends = known.runtime.backends if known is not None else tuple(RUNTIMES)
    denied = known.runtime.denylist if known is not None else ()
    runtimes = place.prepare(backends, sampling.runtimes, denied)
    most = known.runtime.threads if known is not None else machine.physical_cores
    threads = sorted({*sampling.threads} or {1, most})
    with tempfile.TemporaryDirectory() as folder:
        samples = list(
            sample_networks(
                sampling.networks,
                Path(folder),
                runtimes,
                families=sampling.families,
                progress=progress,
            )
        )
        timings = place.time(jobs(samples, runtimes, threads), partial(progress, "timing"))
    facts = machine.model_dump(mode="json", exclude={"mhz"})
    calibration = Calibration.model_validate(
        {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{machine.cpu}, {machine.os}",
            "fingerprint": sha256_json(facts),
            "networks": sampling.networks,
            "fits": fits(samples, timings),
        }
    )
    if known is not None:
        return write_calibrated(known, calibration, out), calibration
    return write_new(machine, calibration, runtimes, out), calibration
