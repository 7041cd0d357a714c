"""The sections of a device profile, which declare each value with its unit, range and an example.

The same declarations validate a profile file, document it (`mvp-edge device schema`) and hold the values
for the rest of the program. ``profile.DeviceProfile`` combines the sections.
"""

import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from mvp_edge_export import quantities
from mvp_edge_export.devices.law import Law
from mvp_edge_export.quantities import Quantity, quoted

AS_IN_A_FILE = "file"
"""Serialisation context in which values are written as in a profile file, e.g. ``50ms``."""


def _schema_of(quantity: Quantity) -> WithJsonSchema:
    text: dict[str, Any] = {"type": "string", "pattern": quantity.pattern}
    if "" not in quantity.units:
        return WithJsonSchema(text)
    return WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, text]})


def _iso_date(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{quoted(value)} is not a date; write it as in 2026-11-22") from error


def _milliseconds(value: float, info: SerializationInfo) -> float | str:
    return f"{value}ms" if info.context == AS_IN_A_FILE else value


Flops = Annotated[int, BeforeValidator(quantities.parse_flops), _schema_of(quantities.FLOPS)]
Params = Annotated[int, BeforeValidator(quantities.parse_params), _schema_of(quantities.PARAMS)]
Bytes = Annotated[int, BeforeValidator(quantities.parse_bytes), _schema_of(quantities.BYTES)]
Milliseconds = Annotated[
    float,
    BeforeValidator(quantities.parse_duration),
    PlainSerializer(_milliseconds, when_used="json-unless-none"),
    _schema_of(quantities.DURATION),
]
Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Pin = Annotated[str, Field(pattern=r"^[a-z0-9-]+==[0-9][0-9A-Za-z.+]*$")]
Backend = Literal["onnxruntime", "openvino"]
NumberFormat = Literal["fp32", "fp16", "int8"]
NUMBER_FORMATS: tuple[NumberFormat, ...] = get_args(NumberFormat)


class Section(BaseModel):
    """Base of all sections: frozen, and undeclared keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Section):
    """Where the values of the profile come from."""

    kind: Literal["vendor", "measured", "estimate"] = Field(
        description="Where the hardware's values come from; the note says how the budgets were"
        " estimated or measured.",
        examples=["estimate"],
    )
    note: str = Field(
        min_length=1, description="Description of the source.", examples=["data sheet of the board"]
    )
    date: Annotated[datetime.date, BeforeValidator(_iso_date)] = Field(
        description="Date of the values.", examples=["2026-11-22"]
    )


class Peak(Section):
    """Peak performance of the hardware, from which latency is estimated before a calibration."""

    macs_per_second: Flops = Field(
        description="fp32 multiply-adds per second of all cores together.", examples=["24G"]
    )
    bytes_per_second: Bytes = Field(
        description="Memory bandwidth in bytes per second.", examples=["12.8GB"]
    )
    reached: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Fraction of the peak multiply-adds that networks are assumed to reach.",
        examples=[0.25],
    )


class Hardware(Section):
    """The device's processor and memory."""

    arch: Literal["aarch64", "armv6l", "armv7l", "armv7e-m", "riscv64", "x86_64"] = Field(
        description="Architecture as `uname -m` prints it; without an operating system, that of the core.",
        examples=["aarch64"],
    )
    cpu: str = Field(
        min_length=1, description="Name of the processor core.", examples=["cortex-a72"]
    )
    cores: int = Field(ge=1, le=1024, description="Number of physical cores.", examples=[4])
    ram: Bytes = Field(description="Main memory of the device.", examples=["4GiB"])
    isa: tuple[Word, ...] = Field(
        default=(),
        description="Instruction set extensions that the processor has.",
        examples=[["neon"]],
    )
    lacks: tuple[Word, ...] = Field(
        default=(),
        description="Instruction set extensions that the processor lacks.",
        examples=[["sve"]],
    )
    peak: Peak | None = Field(
        default=None,
        description="Peak performance of all cores together; the note says how it is derived.",
        examples=[{"macs_per_second": "24G", "bytes_per_second": "12.8GB", "reached": 0.25}],
    )

    @field_validator("lacks")
    @classmethod
    def _not_both(cls, lacks: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = sorted(set(lacks) & set(info.data.get("isa", ())))
        if both:
            raise ValueError(f"{', '.join(both)} stands in isa too; keep it in one of the two")
        return lacks


class Runtime(Section):
    """Runtimes of the device and how they are used."""

    backends: tuple[Backend, ...] = Field(
        description="Runtimes that support the device; [] if none does.",
        examples=[["onnxruntime", "openvino"]],
    )
    threads: int = Field(
        ge=1, le=1024, description="Number of threads of one inference.", examples=[4]
    )
    denylist: tuple[Pin, ...] = Field(
        default=(),
        description="Releases of runtimes that do not work on the device.",
        examples=[["onnxruntime==1.21.0"]],
    )


class Input(Section):
    """Input of one inference."""

    batch: int = Field(
        default=1, ge=1, le=1024, description="Number of images per inference.", examples=[1]
    )


class Latency(Section):
    """Limits on the latency of one inference."""

    p50: Milliseconds | None = Field(
        default=None, description="Limit on the median.", examples=["40ms"]
    )
    p90: Milliseconds | None = Field(
        default=None, description="Limit on the 90th percentile.", examples=["50ms"]
    )

    @field_validator("p90")
    @classmethod
    def _ordered(cls, p90: float | None, info: ValidationInfo) -> float | None:
        p50 = info.data.get("p50")
        if p90 is not None and p50 is not None and p90 < p50:
            raise ValueError("is less than p50; the 90th percentile cannot be under the median")
        return p90


class Budgets(Section):
    """Limits of the device; a limit that is null or left out is not checked."""

    flops: Flops | None = Field(
        default=None,
        description="Multiply-adds for one image; a fused multiply-add counts as one.",
        examples=["300M"],
    )
    params: Params | None = Field(
        default=None, description="Number of parameters.", examples=["3M"]
    )
    file: Bytes | None = Field(
        default=None, description="Size of the exported model file.", examples=["12MiB"]
    )
    memory: Bytes | None = Field(
        default=None,
        description="Memory for inference. Predicted: weights and peak activations. Measured: peak resident"
        " memory less that after importing the runtime.",
        examples=["64MiB"],
    )
    latency: Latency | None = Field(
        default=None, description="Latency of one inference.", examples=[{"p90": "50ms"}]
    )


class Accuracy(Section):
    """Limits on the loss of top-1 accuracy in percentage points; null or left out: not checked."""

    max_drop: Points | None = Field(
        default=None,
        description="Largest loss against the fine-tuned unpruned model.",
        examples=[2],
    )
    max_quant_drop: Points | None = Field(
        default=None, description="Largest loss of int8 against fp32.", examples=[0.5]
    )


class Prune(Section):
    """Layer widths that run efficiently on the device."""

    round_to: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Layer widths are multiples of this number.",
        examples=[8],
    )
    min_channels: int = Field(
        default=8, ge=1, le=4096, description="Smallest width of a layer.", examples=[8]
    )


class Precision(Section):
    """Number formats of the exported network."""

    allowed: tuple[NumberFormat, ...] = Field(
        default=("fp32", "int8"),
        min_length=1,
        description="Number formats that the device may run.",
        examples=[["fp32", "int8"]],
    )
    prefer: Literal["measured", "fp32", "fp16", "int8"] = Field(
        default="measured",
        description='Format to ship: one of the allowed, or "measured" for the fastest within the budgets.',
        examples=["measured"],
    )

    @field_validator("prefer")
    @classmethod
    def _allowed(cls, prefer: str, info: ValidationInfo) -> str:
        if prefer != "measured" and prefer not in info.data.get("allowed", (prefer,)):
            raise ValueError(f"{prefer} is not among the allowed; add it there, or write measured")
        return prefer


class CalibrationError(Section):
    """Relative error of predicted latencies on networks that were held out from the fit."""

    networks: int = Field(ge=1, description="Number of networks that were held out.", examples=[24])
    median: float = Field(
        ge=0, description="Median of the absolute relative error.", examples=[0.05]
    )
    p90: float = Field(
        ge=0, description="90th percentile of the absolute relative error.", examples=[0.15]
    )


class Calibrated(Section):
    """Fitted latency of one runtime with one number of threads."""

    runtime: Backend = Field(description="Runtime that was measured.", examples=["onnxruntime"])
    version: str = Field(min_length=1, description="Release of the runtime.", examples=["1.32.0"])
    precision: NumberFormat = Field(description="Number format of the networks.", examples=["fp32"])
    threads: int = Field(ge=1, description="Number of threads of one inference.", examples=[4])
    law: Law = Field(description="Latency in milliseconds by kind of operator; see devices/law.py.")
    p90_over_p50: float = Field(
        ge=1, description="Median ratio of p90 to p50 over the networks.", examples=[1.05]
    )
    error: CalibrationError


class Calibration(Section):
    """Result of `mvp-edge device calibrate` on the device."""

    date: Annotated[datetime.date, BeforeValidator(_iso_date)] = Field(
        description="Date of the measurement.", examples=["2026-11-22"]
    )
    machine: str = Field(min_length=1, description="Description of the measured machine.")
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="sha256 of the machine's properties."
    )
    networks: int = Field(ge=2, description="Number of networks that were measured.", examples=[48])
    fits: tuple[Calibrated, ...] = Field(min_length=1)
