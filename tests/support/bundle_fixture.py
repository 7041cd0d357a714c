"""A bundle's manifest and bench results without an export: plausible figures, consistent with one another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvp_edge_export.manifest import (
    BundleFile,
    Candidate,
    Manifest,
    Parity,
    RuntimeAccuracy,
    Trial,
)
from mvp_edge_export.measuring.choice import judged_cell
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.result import BenchResult, Latency, Memory, Process, Protocol, judge
from mvp_edge_export.measuring.result import Cell as BenchCell
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.verified import Verdict, Verified


@dataclass(frozen=True)
class Shipment:
    """What was exported."""

    labels: tuple[str, ...]
    profile: DeviceProfile
    verified: Verified
    int8: bool
    """Whether int8 was exported beside fp32."""


def manifest_of(shipment: Shipment) -> Manifest:
    """The manifest as `export` writes it."""
    profile, verified = shipment.profile, shipment.verified
    cost, base = verified.cost, verified.cost_baseline
    sizes = {
        "model.onnx": 4 * cost.params + 18_000,
        "model.xml": 90_000,
        "model.bin": 4 * cost.params,
        **(
            {
                "model_int8.onnx": cost.params + 40_000,
                "model_int8.xml": 130_000,
                "model_int8.bin": cost.params + 9_000,
            }
            if shipment.int8
            else {}
        ),
        "baseline/model.onnx": 4 * base.params + 18_000,
        "baseline/model.xml": 90_000,
        "baseline/model.bin": 4 * base.params,
    }
    file = verdict_on("file", profile.budgets.file, sizes["model.onnx"], "bytes", "measured")
    return Manifest(
        labels=shipment.labels,
        preprocess={"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3},
        embedded_preprocess=False,
        batch=1,
        models={
            "onnx": "model.onnx",
            "openvino": "model.xml",
            **(
                {"onnx-int8": "model_int8.onnx", "openvino-int8": "model_int8.xml"}
                if shipment.int8
                else {}
            ),
        },
        baseline={"onnx": "baseline/model.onnx", "openvino": "baseline/model.xml"},
        files={name: BundleFile(sha256="ab" * 32, bytes=n) for name, n in sizes.items()},
        exporter={"pruned": "torch.onnx (dynamo)", "baseline": "torch.onnx (dynamo)"},
        weights_sha256=verified.weights_sha256,
        kept={},
        profile=profile,
        profile_sha256=profile.sha256,
        cost=cost,
        cost_baseline=base,
        operators=(("stem", 1024, 8, 3, 9, 3072), ("linear", 1, 5, 64, 1, 64)),
        verdicts=tuple(
            file if verdict.budget == "file" else verdict for verdict in verified.verdicts
        ),
        parity=(
            Parity(
                network="pruned",
                runtime="onnxruntime",
                version="1.32.0",
                setting="optimised",
                real_images=64,
                random_images=16,
                max_difference=1.2e-6,
                tolerance=1e-4,
                ties=0,
            ),
        ),
        candidates=tuple(_candidates(shipment, sizes)),
        shipped=None,
        undecided=f"measured on no {profile.id} yet",
        versions={"torch": "2.14.1"},
    )


def _candidates(shipment: Shipment, sizes: dict[str, int]) -> Iterator[Candidate]:
    """fp32 in both runtimes; int8 loses an image in one of them and two in the other."""
    verified = shipment.verified
    versions = {"onnxruntime": "1.32.0", "openvino": "2026.4"}
    for runtime, form, files in (
        ("onnxruntime", "onnx", ("model.onnx",)),
        ("openvino", "openvino", ("model.xml", "model.bin")),
    ):
        for precision, lost in (("fp32", 0), ("int8", 1 if form == "onnx" else 2)):
            if precision == "int8" and not shipment.int8:
                continue
            test = RuntimeAccuracy(
                version=versions[runtime],
                arithmetic="f32",
                top1=max(0.0, verified.accuracy - lost / verified.images),
                images=verified.images,
                lost=lost,
                gained=0,
            )
            trial = Trial(
                scheme="all",
                about="everything in int8",
                int8_layers=20,
                float_layers=1,
                validation=test,
                passed=True,
                milliseconds=0.4,
                seconds=1.5,
            )
            names = [name.replace("model.", f"model_{precision}.") for name in files]
            quantised = precision == "int8"
            yield Candidate(
                format=f"{form}-int8" if quantised else form,
                runtime=runtime,
                precision="int8" if quantised else "fp32",
                bytes=sum(sizes[name] for name in (names if quantised else files)),
                scheme="all" if quantised else None,
                trials=(trial,) if quantised else (),
                calibration_images=256 if quantised else 0,
                validation=test,
                test=test,
                kept=True,
                why="loses 0.40 points on 250 validation images, 0.5 are allowed"
                if quantised
                else "the reference",
            )


def bench_of(
    shipment: Shipment,
    manifest: Manifest,
    random: np.random.Generator,
    keep: float,
    *,
    here: bool,
) -> BenchResult:
    """Bench results as `bench` writes them; ``here``: measured on the profile's device."""
    profile = shipment.profile
    differences = () if here else ("architecture x86_64, not aarch64",)
    cells = []
    for runtime, factor in (("onnxruntime", 1.0), ("openvino", 0.85)):
        for threads in (1, 4):
            slow = float(90 * factor / threads**0.7 * random.uniform(0.95, 1.05))
            pruned = slow * keep**1.3
            cells.append(_cell("pruned", runtime, threads, pruned))
            if shipment.int8:  # which pays in one runtime and not in the other
                share = 0.5 if runtime == "onnxruntime" else 1.1
                cells.append(_cell("pruned", runtime, threads, share * pruned, "int8"))
            cells.append(_cell("baseline", runtime, threads, slow))
    protocol = Protocol(
        full=False, seconds=15, processes=1, statement="not --full: 15 s in one process a cell"
    )
    judged = judged_cell(profile, cells, differences, protocol)
    return BenchResult(
        protocol=protocol,
        machine=this_machine().model_copy(update={"cpu": "Cortex-A72", "os": "Debian 12"}),
        profile=profile.id,
        profile_sha256=profile.sha256,
        differences=differences,
        cells=tuple(cells),
        failures=(),
        judged=f"{judged.precision} in {judged.runtime} 1.32.0, threads {judged.threads}",
        verdicts=tuple(judge(profile, judged, differences, protocol)),
        warnings=(),
        fingerprint={"models": {name: file.sha256 for name, file in manifest.files.items()}},
        fingerprint_sha256="cd" * 32,
    )


def _cell(
    network: Any, runtime: str, threads: int, p50: float, precision: NumberFormat = "fp32"
) -> BenchCell:
    latency = Latency(
        n=900,
        min=0.93 * p50,
        mean=1.02 * p50,
        p50=p50,
        p90=1.12 * p50,
        p99=None,
        max=1.9 * p50,
        p50_interval=(0.99 * p50, 1.012 * p50),
        p90_interval=(1.09 * p50, 1.16 * p50),
    )
    rest = 40_000_000
    peak = rest + (2_400_000 if network == "pruned" else 61_000_000)
    memory = Memory(
        after_import=rest, after_load=peak - 9_000, after_first=peak, steady=peak, peak=peak
    )
    process = Process(
        import_ms=120,
        load_ms=30,
        first_ms=2 * p50,
        warm_runs=60,
        warm_seconds=2,
        warm_settled=True,
        latency=latency,
        memory=memory,
        other_load=0.01,
        attempts=1,
        throttled=False,
    )
    return BenchCell(
        network=network,
        runtime=runtime,
        version="1.32.0",
        precision=precision,
        arithmetic="f32",
        threads=threads,
        options={},
        latency=latency,
        peak_over_import=memory.peak_over_import,
        status="OK",
        processes=(process,),
    )


def verdict_on(
    budget: str, limit: float | None, reached: float | None, unit: str, basis: Any
) -> Verdict:
    """PASS, FAIL or UNCHECKED."""
    word: Any = (
        "UNCHECKED" if limit is None or reached is None else "PASS" if reached <= limit else "FAIL"
    )
    return Verdict(
        budget=budget, limit=limit, reached=reached, unit=unit, verdict=word, basis=basis
    )
