"""What a bundle says of itself: ``manifest.json``, as a frozen value.

files, their hashes · how to feed the network · what it costs and which budgets it meets
parity: a runtime computes what PyTorch computes
candidates: the forms that the pruned network could be shipped in, with accuracy and times
shipped: the one that was chosen, once the device was measured
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
    """What a file of the bundle must be."""

    model_config = _FROZEN

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Parity(BaseModel):
    """How far a runtime's logits lie from PyTorch's on the same images, in float32."""

    model_config = _FROZEN

    network: Literal["pruned", "baseline"]
    runtime: str
    version: str
    setting: str
    """What was asked of the runtime, in words."""
    real_images: int
    random_images: int
    max_difference: float
    """The largest difference of a logit."""
    tolerance: float
    """What it may be on the image that came closest to its tolerance."""
    ties: int
    """Images whose two best classes lie within the tolerance and swapped places."""


class RuntimeAccuracy(BaseModel):
    """Top-1 in a runtime as it is deployed, image by image against PyTorch's in float32."""

    model_config = _FROZEN

    version: str
    """Of the runtime."""
    arithmetic: str
    """What the runtime chose to compute in, outside of int8 layers."""
    top1: float = Field(ge=0, le=1)
    images: int = Field(ge=1)
    lost: int = Field(ge=0)
    """Images that PyTorch gets right and this runtime does not."""
    gained: int = Field(ge=0)
    """The reverse."""

    @property
    def drop(self) -> float:
        """Points of top-1 below PyTorch's; negative when it is above."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def drop_interval(self) -> tuple[float, float]:
        """95 % interval of ``drop``: images are paired, and some are few.

        Agresti and Min (2005): half an image is added to each of the four outcomes, so that no
        swapped image at all does not pass for certainty.
        """
        n, lost, gained = self.images + 2, self.lost + 0.5, self.gained + 0.5
        middle = (lost - gained) / n
        half = 1.959964 * math.sqrt((lost + gained) / n - middle * middle) / math.sqrt(n)
        return 100 * (middle - half), 100 * (middle + half)


class Trial(BaseModel):
    """One scheme of quantisation that was tried for a runtime."""

    model_config = _FROZEN

    scheme: str
    about: str
    """What it does, in words."""
    int8_layers: int
    """Convolutions and matrix products that compute in int8."""
    float_layers: int
    """Those that were left in float."""
    validation: RuntimeAccuracy
    passed: bool
    """Whether it keeps within the accuracy gate on the validation images."""
    milliseconds: float
    """Of the fastest image on the machine that exported it: to choose among schemes, nothing else."""
    seconds: float
    """What quantising and judging it took."""


class CandidateTiming(BaseModel):
    """A candidate's latency and memory with one number of threads, on one machine."""

    model_config = _FROZEN

    threads: int
    p50: float
    """Milliseconds."""
    p50_interval: tuple[float, float]
    p90: float
    p90_interval: tuple[float, float]
    peak_over_import: int
    """Bytes of resident memory at the peak, beyond what the runtime takes by itself."""
    status: Literal["OK", "NOISY", "INVALID"]
    machine: str
    """Its processor."""
    protocol: str


class Candidate(BaseModel):
    """A form that the pruned network could be shipped in, and what became of it."""

    model_config = _FROZEN

    format: str
    """The key that its files have in ``Manifest.models`` as long as they are kept."""
    runtime: str
    precision: NumberFormat
    bytes: int
    """Of its files."""
    scheme: str | None = None
    """How it was quantised: the trial that was chosen."""
    trials: tuple[Trial, ...] = ()
    calibration_images: int = 0
    validation: RuntimeAccuracy | None
    """What it was chosen by; None if no validation images were given."""
    test: RuntimeAccuracy
    """What is reported; nothing was chosen by it."""
    timings: tuple[CandidateTiming, ...] = ()
    kept: bool
    """Whether its files are in the bundle."""
    why: str
    """Why it is kept or not, in one sentence."""


class Shipped(BaseModel):
    """What the device is to run."""

    model_config = _FROZEN

    runtime: str
    precision: NumberFormat
    threads: int
    why: str


class Manifest(BaseModel):
    """All that is known about the network in the bundle; ``manifest.json``."""

    model_config = _FROZEN

    schema_: Literal[2] = Field(default=SCHEMA, alias="schema")
    labels: tuple[str, ...] = Field(min_length=1)
    """Class names in the order of the logits."""
    preprocess: dict[str, Any]
    """Fields of ``Preprocess``."""
    embedded_preprocess: bool
    """Whether the graph itself divides by 255 and normalises; it then takes 0..255 as float32."""
    batch: int | None
    """The batch that the graph is fixed to; None takes any."""
    models: dict[str, str]
    """Format (a value of ``sessions.FORMATS``) → file of the pruned network."""
    baseline: dict[str, str]
    """The same for the unpruned network; empty without one."""
    files: dict[str, BundleFile]
    """Path inside the bundle, with forward slashes → what it must be."""
    exporter: dict[str, str]
    """Network (``pruned``, ``baseline``) → what wrote its graph, and why if the second choice."""
    weights_sha256: str
    """Of the verified weights that were exported."""
    kept: dict[str, tuple[int, ...]]
    """Unit group → indices of the backbone's units that were kept."""
    profile: DeviceProfile
    profile_sha256: str
    cost: Cost
    """Of the pruned network in float32; ``sessions.memory_needed`` says what a device needs."""
    cost_baseline: Cost
    operators: tuple[tuple[Any, ...], ...]
    """What one inference computes, a row an operator: see ``devices.operators``."""
    verdicts: tuple[Verdict, ...]
    """Of the profile's budgets, with that of the file measured."""
    parity: tuple[Parity, ...]
    candidates: tuple[Candidate, ...]
    """Those that were kept out stand here too, with the reason."""
    shipped: Shipped | None
    """None until the candidates were measured on the profile's device."""
    undecided: str = ""
    """Why it is still open, in words."""
    versions: dict[str, str]

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
        """The candidate of a format, kept or not."""
        return next((c for c in self.candidates if c.format == form), None)

    @property
    def choice(self) -> str:
        """What is shipped and why, or why that is still open; one sentence."""
        if self.shipped is None:
            return f"undecided: {self.undecided}"
        chosen = self.shipped
        threads = f"{chosen.threads} thread{'s' * (chosen.threads > 1)}"
        return f"{chosen.precision} in {chosen.runtime} with {threads}: {chosen.why}"


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle in a directory; its files are not looked at.

    Raises:
        BadInput: there is none, it is damaged, or another version of mvp-edge wrote it.
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
    """What int8 loses, of the kept form that loses most; nothing without int8."""
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
    """The files that a model consists of: an OpenVINO .xml has its .bin beside it."""
    pure = PurePosixPath(model)
    return (model, str(pure.with_suffix(".bin"))) if pure.suffix == ".xml" else (model,)
