"""The sections of a device profile: each figure with its unit, its limits and an example.

The same declarations check a file, document it (`mvp-edge device schema`) and are what the rest of the
program reads. ``profile`` puts them together.
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
"""The serialisation context in which figures are written as a file has them."""


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
    """A part of a profile: frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Section):
    """Where the figures come from."""

    kind: Literal["vendor", "measured", "estimate"] = Field(
        description="Where the hardware's figures come from; the note says how the budgets were"
        " estimated or measured.",
        examples=["estimate"],
    )
    note: str = Field(min_length=1, description="In words.", examples=["data sheet of the board"])
    date: Annotated[datetime.date, BeforeValidator(_iso_date)] = Field(
        description="When they were written down.", examples=["2026-11-22"]
    )


class Peak(Section):
    """What the hardware could do at best; latency is estimated from it until it is calibrated."""

    macs_per_second: Flops = Field(
        description="fp32 multiply-adds a second, all cores together.", examples=["24G"]
    )
    bytes_per_second: Bytes = Field(description="Memory bandwidth.", examples=["12.8GB"])
    reached: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Share of the multiply-adds that networks are assumed to reach.",
        examples=[0.25],
    )


class Hardware(Section):
    """The board."""

    arch: Literal["aarch64", "armv6l", "armv7l", "armv7e-m", "riscv64", "x86_64"] = Field(
        description="As the kernel names it (uname -m), or the core's architecture without one.",
        examples=["aarch64"],
    )
    cpu: str = Field(min_length=1, description="The core.", examples=["cortex-a72"])
    cores: int = Field(ge=1, le=1024, description="Physical cores.", examples=[4])
    ram: Bytes = Field(description="Memory of the whole device.", examples=["4GiB"])
    isa: tuple[Word, ...] = Field(
        default=(), description="Vector extensions that it has.", examples=[["neon"]]
    )
    lacks: tuple[Word, ...] = Field(
        default=(), description="Extensions that it does not have.", examples=[["sve"]]
    )
    peak: Peak | None = Field(
        default=None,
        description="Of all cores together, as the note derives it.",
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
    """What runs the model."""

    backends: tuple[Backend, ...] = Field(
        description="Runtimes that exist for the device; [] if none does.",
        examples=[["onnxruntime", "openvino"]],
    )
    threads: int = Field(ge=1, le=1024, description="Threads of one inference.", examples=[4])
    denylist: tuple[Pin, ...] = Field(
        default=(),
        description="Releases that do not work on the device.",
        examples=[["onnxruntime==1.21.0"]],
    )


class Input(Section):
    """What is fed at a time."""

    batch: int = Field(default=1, ge=1, le=1024, description="Images a run.", examples=[1])


class Latency(Section):
    """Time of one inference."""

    p50: Milliseconds | None = Field(default=None, description="Median.", examples=["40ms"])
    p90: Milliseconds | None = Field(default=None, description="90 in 100.", examples=["50ms"])

    @field_validator("p90")
    @classmethod
    def _ordered(cls, p90: float | None, info: ValidationInfo) -> float | None:
        p50 = info.data.get("p50")
        if p90 is not None and p50 is not None and p90 < p50:
            raise ValueError("is less than p50; the 90th percentile cannot be under the median")
        return p90


class Budgets(Section):
    """The limits; null, or left out, is "not checked"."""

    flops: Flops | None = Field(
        default=None,
        description="Multiply-adds of one image; a fused multiply-add is one.",
        examples=["300M"],
    )
    params: Params | None = Field(default=None, description="Parameters.", examples=["3M"])
    file: Bytes | None = Field(
        default=None, description="The exported model on disk.", examples=["12MiB"]
    )
    memory: Bytes | None = Field(
        default=None,
        description="Weights and peak activations, predicted; peak RSS over baseline, measured.",
        examples=["64MiB"],
    )
    latency: Latency | None = Field(
        default=None, description="Of one inference.", examples=[{"p90": "50ms"}]
    )


class Accuracy(Section):
    """How much accuracy may be lost, in points of top-1; null, or left out, is "not checked"."""

    max_drop: Points | None = Field(
        default=None, description="Under the fine-tuned unpruned model.", examples=[2]
    )
    max_quant_drop: Points | None = Field(
        default=None, description="int8 under fp32.", examples=[0.5]
    )


class Prune(Section):
    """Widths that the device's kernels like."""

    round_to: int = Field(
        default=8, ge=1, le=256, description="Widths are multiples of it.", examples=[8]
    )
    min_channels: int = Field(
        default=8, ge=1, le=4096, description="No layer is thinner.", examples=[8]
    )


class Precision(Section):
    """Number formats."""

    allowed: tuple[NumberFormat, ...] = Field(
        default=("fp32", "int8"),
        min_length=1,
        description="What the device may run.",
        examples=[["fp32", "int8"]],
    )
    prefer: Literal["measured", "fp32", "fp16", "int8"] = Field(
        default="measured",
        description='One of them, or "measured": what is fastest within the budgets.',
        examples=["measured"],
    )

    @field_validator("prefer")
    @classmethod
    def _allowed(cls, prefer: str, info: ValidationInfo) -> str:
        if prefer != "measured" and prefer not in info.data.get("allowed", (prefer,)):
            raise ValueError(f"{prefer} is not among the allowed; add it there, or write measured")
        return prefer


class CalibrationError(Section):
    """How far predictions lay from measured times, as a share, on networks that the fit had not seen."""

    networks: int = Field(ge=1, description="Whole networks that were held out.", examples=[24])
    median: float = Field(ge=0, description="Median of |error|.", examples=[0.05])
    p90: float = Field(ge=0, description="90th percentile of |error|.", examples=[0.15])


class Calibrated(Section):
    """The fitted latency of one runtime with one number of threads."""

    runtime: Backend = Field(description="What it was measured in.", examples=["onnxruntime"])
    version: str = Field(min_length=1, description="Its release.", examples=["1.32.0"])
    precision: NumberFormat = Field(description="Of the networks.", examples=["fp32"])
    threads: int = Field(ge=1, description="Threads of one inference.", examples=[4])
    law: Law = Field(description="Milliseconds by kind of operator; see devices/law.py.")
    p90_over_p50: float = Field(ge=1, description="Of the measured networks.", examples=[1.05])
    error: CalibrationError


class Calibration(Section):
    """What `mvp-edge device calibrate` found on the device."""

    date: Annotated[datetime.date, BeforeValidator(_iso_date)] = Field(
        description="When it was measured.", examples=["2026-11-22"]
    )
    machine: str = Field(min_length=1, description="What it was measured on, in words.")
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="sha256 of the machine's facts."
    )
    networks: int = Field(ge=2, description="Networks that were measured.", examples=[48])
    fits: tuple[Calibrated, ...] = Field(min_length=1)
