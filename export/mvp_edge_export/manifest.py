"""The manifest of a bundle, ``manifest.json``, as frozen pydantic models.

It contains:

* the files with their hashes, and how an image is prepared for the network
* the network's cost and the verdicts on the profile's budgets
* parity: how far each runtime's logits differ from PyTorch's
* candidates: the variants in which the pruned network could be shipped, with accuracy and latency
* shipped: the candidate that was chosen, once it was measured on the device
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.storage import read_json
from mvp_edge_export.verified import Cost, Verdict, parse

MANIFEST = "manifest.json"
SCHEMA: Literal[2] = 2

_FROZEN = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BundleFile(BaseModel):
    """Expected size and hash of one file of the bundle."""

    model_config = _FROZEN

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Parity(BaseModel):
    """Difference between a runtime's logits and PyTorch's on the same images, both in float32."""

    model_config = _FROZEN

    network: Literal["pruned", "baseline"]
    runtime: str
    version: str
    setting: str
    """The runtime's settings, in words."""
    real_images: int
    random_images: int
    max_difference: float
    """Largest absolute difference of a logit."""
    tolerance: float
    """Largest difference that is allowed on the image that came closest to its limit."""
    ties: int
    """Number of images whose top two classes differ by less than the tolerance and changed order."""


class RuntimeAccuracy(BaseModel):
    """Top-1 accuracy in a runtime as deployed, compared image by image with PyTorch in float32."""

    model_config = _FROZEN

    version: str
    """Version of the runtime."""
    arithmetic: str
    """Number format that the runtime computes in outside of int8 layers, e.g. ``f32``."""
    top1: float = Field(ge=0, le=1)
    images: int = Field(ge=1)
    lost: int = Field(ge=0)
    """Number of images that PyTorch classifies correctly and this runtime does not."""
    gained: int = Field(ge=0)
    """Number of images that this runtime classifies correctly and PyTorch does not."""

    @property
    def drop(self) -> float:
        """Top-1 accuracy lost against PyTorch in percentage points; negative if it is higher."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def drop_interval(self) -> tuple[float, float]:
        """95 % confidence interval of ``drop``, a difference of paired proportions.

        The method of Agresti and Min (2005) adds half an image to each of the four outcomes, so
        that the interval has a width even if no prediction differs.
        """
        n, lost, gained = self.images + 2, self.lost + 0.5, self.gained + 0.5
        middle = (lost - gained) / n
        half = 1.959964 * math.sqrt((lost + gained) / n - middle * middle) / math.sqrt(n)
        return 100 * (middle - half), 100 * (middle + half)


class Trial(BaseModel):
    """A quantisation scheme that was tried for a runtime."""

    model_config = _FROZEN

    scheme: str
    about: str
    """Description of the scheme."""
    int8_layers: int
    """Number of convolutions and matrix products that compute in int8."""
    float_layers: int
    """Number of convolutions and matrix products that still compute in floating point."""
    validation: RuntimeAccuracy
    passed: bool
    """Whether the accuracy lost on the validation images is within the limit."""
    milliseconds: float
    """Fastest inference in ms on the exporting machine; only used to choose among schemes."""
    seconds: float
    """Time in seconds that quantisation and evaluation took."""


class CandidateTiming(BaseModel):
    """Latency and memory of a candidate on one machine with one number of threads."""

    model_config = _FROZEN

    threads: int
    p50: float
    """Median latency in ms."""
    p50_interval: tuple[float, float]
    """95 % confidence interval of ``p50`` in ms."""
    p90: float
    """90th percentile of the latency in ms."""
    p90_interval: tuple[float, float]
    """95 % confidence interval of ``p90`` in ms."""
    peak_over_import: int
    """Peak resident memory in bytes, less the memory after importing the runtime."""
    status: Literal["OK", "NOISY", "INVALID"]
    """As in ``measuring.result.Cell``."""
    machine: str
    """Processor of the machine."""
    protocol: str
    """Description of the measurement protocol."""


class Candidate(BaseModel):
    """A variant in which the pruned network could be shipped, and whether it is kept."""

    model_config = _FROZEN

    format: str
    """Key of its files in ``Manifest.models`` as long as they are kept."""
    runtime: str
    precision: NumberFormat
    bytes: int
    """Total size of its files in bytes."""
    scheme: str | None = None
    """Name of the chosen quantisation scheme; None if the variant is not quantised."""
    trials: tuple[Trial, ...] = ()
    """All quantisation schemes that were tried."""
    calibration_images: int = 0
    """Number of images from which the quantisation ranges were determined."""
    validation: RuntimeAccuracy | None
    """Accuracy on validation images, used for choosing; None if no such images were given."""
    test: RuntimeAccuracy
    """Accuracy on test images, only reported and never used for choosing."""
    timings: tuple[CandidateTiming, ...] = ()
    kept: bool
    """Whether the bundle contains its files."""
    why: str
    """Reason why it is kept or not, in one sentence."""


class Shipped(BaseModel):
    """The variant that the device will run."""

    model_config = _FROZEN

    runtime: str
    precision: NumberFormat
    threads: int
    why: str
    """Reason for the choice, in one sentence."""


class Manifest(BaseModel):
    """Contents of ``manifest.json``: everything that is known about the bundle's network."""

    model_config = _FROZEN

    schema_: Literal[2] = Field(default=SCHEMA, alias="schema")
    labels: tuple[str, ...] = Field(min_length=1)
    """Class names in the order of the logits."""
    preprocess: dict[str, Any]
    """The fields of ``images.Preprocess``, see ``Preprocess.from_json``."""
    embedded_preprocess: bool
    """Whether the graph itself divides by 255 and normalises; its input is then 0..255 as float32."""
    batch: int | None
    """Batch size that the graph is fixed to; None allows any."""
    models: dict[str, str]
    """File of the pruned network in each format (formats are the values in ``sessions.FORMATS``)."""
    baseline: dict[str, str]
    """File of the unpruned network in each format; empty if the bundle does not contain it."""
    files: dict[str, BundleFile]
    """Every file of the bundle, by its path in the bundle with forward slashes."""
    exporter: dict[str, str]
    """What wrote the graph of each network (``pruned``, ``baseline``), and why if the fallback did."""
    weights_sha256: str
    """sha256 of the file of the verified weights that were exported."""
    kept: dict[str, tuple[int, ...]]
    """Indices of the backbone's units that were kept, by group of units."""
    profile: DeviceProfile
    """Device profile that the network was pruned for."""
    profile_sha256: str
    cost: Cost
    """Cost of the pruned network in float32; for a device's memory see ``sessions.memory_needed``."""
    cost_baseline: Cost
    """Cost of the unpruned network in float32."""
    operators: tuple[tuple[Any, ...], ...]
    """Operators of one inference, one row each: see ``devices.operators``."""
    verdicts: tuple[Verdict, ...]
    """Verdicts on the profile's budgets; the file size is that of the exported files."""
    parity: tuple[Parity, ...]
    candidates: tuple[Candidate, ...]
    """All candidates, including those that were not kept, with the reason."""
    shipped: Shipped | None
    """The chosen candidate; None until the candidates were measured on the profile's device."""
    undecided: str = ""
    """Reason why no candidate is chosen yet; empty if one is."""
    versions: dict[str, str]
    """Version of each package that took part in the export."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in [*self.models.values(), *self.baseline.values()]:
            if lost := [part for part in parts_of(name) if part not in self.files]:
                raise ValueError(f"{', '.join(lost)} is a model but not among files")
        kept = {candidate.format for candidate in self.candidates if candidate.kept}
        if kept != set(self.models):
            raise ValueError("models and the candidates that were kept are not the same")
        if (self.shipped is None) != bool(self.undecided):
            raise ValueError("shipped and undecided: one of them must be given, and only one")
        if self.shipped is not None:
            chosen = (self.shipped.runtime, self.shipped.precision)
            if not any(c.kept and (c.runtime, c.precision) == chosen for c in self.candidates):
                raise ValueError("shipped is not a candidate that was kept")
        return self

    def candidate(self, form: str) -> Candidate | None:
        """The candidate with this format, kept or not; None if there is none."""
        return next((c for c in self.candidates if c.format == form), None)

    @property
    def choice(self) -> str:
        """One sentence: what is shipped and why, or why that is undecided."""
        if self.shipped is None:
            return f"undecided: {self.undecided}"
        chosen = self.shipped
        threads = f"{chosen.threads} thread{'s' * (chosen.threads > 1)}"
        return f"{chosen.precision} in {chosen.runtime} with {threads}: {chosen.why}"


def read_manifest(bundle: Path) -> Manifest:
    """Read the manifest of a bundle, without checking the bundle's files.

    Raises:
        BadInput: the manifest is missing or invalid, or another version of mvp-edge wrote it.
    """
    path = bundle / MANIFEST
    value = read_json(path, "bundle")
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(
            f"bundle: {path} was written by a later mvp-edge (its schema is {schema}, this version"
            f" reads {SCHEMA}): update mvp-edge on this machine"
        )
    if isinstance(schema, int) and schema < SCHEMA:
        raise BadInput(
            f"bundle: {path} was written by an earlier mvp-edge (its schema is {schema}, this"
            f" version reads {SCHEMA}): export the run again"
        )
    return parse(Manifest, value, "bundle", path)


def quantisation_verdict(kept: Sequence[Candidate], profile: DeviceProfile) -> Iterator[Verdict]:
    """Yield the verdict on the accuracy lost by int8, for the kept int8 candidate that loses most.

    Nothing is yielded if no int8 candidate is kept or none was evaluated on validation images.
    """
    losses = [
        (one.validation.drop, one) for one in kept if one.precision == "int8" and one.validation
    ]
    if not losses:
        return
    drop, worst = max(losses, key=lambda pair: pair[0])
    limit = profile.accuracy.max_quant_drop
    low, high = worst.test.drop_interval
    yield Verdict(
        budget="accuracy.max_quant_drop",
        limit=limit,
        reached=drop,
        unit="points",
        verdict="UNCHECKED" if limit is None else "PASS" if drop <= limit else "FAIL",
        basis="measured",
        note=f"{worst.format} on validation images; on test images {worst.test.drop:.2f} points"
        f" (95 %: {low:.2f} … {high:.2f})",
    )


def parts_of(model: str) -> tuple[str, ...]:
    """The files of a model: an OpenVINO ``.xml`` file is accompanied by a ``.bin`` file."""
    pure = PurePosixPath(model)
    return (model, str(pure.with_suffix(".bin"))) if pure.suffix == ".xml" else (model,)
