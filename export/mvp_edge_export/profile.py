"""What a device allows: one YAML file a device, checked whole before anything is done with it.

    YAML → entries, each with its file and line → ``extends`` merged → DeviceProfile (frozen)

A figure that is null, or left out, is not checked: it never passes. ``located_yaml`` reads files
and names their mistakes; here stand the format, the shipped profiles and ``extends``.
"""

import datetime
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from mvp_edge_export import quantities
from mvp_edge_export.devices.law import Law
from mvp_edge_export.errors import BadInput
from mvp_edge_export.located_yaml import Entry, Mistake, contradiction, lines, read, validated
from mvp_edge_export.quantities import Quantity, quoted
from mvp_edge_export.storage import sha256_json

SCHEMA = 1
"""The version of the file format that this program reads."""

_MAX_EXTENDS = 8
_FILE = "file"  # the context in which figures are written as a file has them


def _schema_of(quantity: Quantity) -> WithJsonSchema:
    text: dict[str, Any] = {"type": "string", "pattern": quantity.pattern}
    if "" not in quantity.units:
        return WithJsonSchema(text)
    return WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, text]})


def _schema_version(value: object) -> object:
    if value in (SCHEMA, str(SCHEMA)):
        return SCHEMA
    raise ValueError(f"{quoted(value)} is not a version that this program reads; write {SCHEMA}")


def _iso_date(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{quoted(value)} is not a date; write it as in 2026-11-22") from error


def _milliseconds(value: float, info: SerializationInfo) -> float | str:
    return f"{value}ms" if info.context == _FILE else value


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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Section):
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


class Peak(_Section):
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


class Hardware(_Section):
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


class Runtime(_Section):
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


class Input(_Section):
    """What is fed at a time."""

    batch: int = Field(default=1, ge=1, le=1024, description="Images a run.", examples=[1])


class Latency(_Section):
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


class Budgets(_Section):
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


class Accuracy(_Section):
    """How much accuracy may be lost, in points of top-1; null, or left out, is "not checked"."""

    max_drop: Points | None = Field(
        default=None, description="Under the fine-tuned unpruned model.", examples=[2]
    )
    max_quant_drop: Points | None = Field(
        default=None, description="int8 under fp32.", examples=[0.5]
    )


class Prune(_Section):
    """Widths that the device's kernels like."""

    round_to: int = Field(
        default=8, ge=1, le=256, description="Widths are multiples of it.", examples=[8]
    )
    min_channels: int = Field(
        default=8, ge=1, le=4096, description="No layer is thinner.", examples=[8]
    )


class Precision(_Section):
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


class CalibrationError(_Section):
    """How far predictions lay from measured times, as a share, on networks that the fit had not seen."""

    networks: int = Field(ge=1, description="Whole networks that were held out.", examples=[24])
    median: float = Field(ge=0, description="Median of |error|.", examples=[0.05])
    p90: float = Field(ge=0, description="90th percentile of |error|.", examples=[0.15])


class Calibrated(_Section):
    """The fitted latency of one runtime with one number of threads."""

    runtime: Backend = Field(description="What it was measured in.", examples=["onnxruntime"])
    version: str = Field(min_length=1, description="Its release.", examples=["1.32.0"])
    precision: NumberFormat = Field(description="Of the networks.", examples=["fp32"])
    threads: int = Field(ge=1, description="Threads of one inference.", examples=[4])
    law: Law = Field(description="Milliseconds by kind of operator; see devices/law.py.")
    p90_over_p50: float = Field(ge=1, description="Of the measured networks.", examples=[1.05])
    error: CalibrationError


class Calibration(_Section):
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


class DeviceProfile(_Section):
    """A device and its budgets, as a frozen value."""

    schema_: Annotated[Literal[1], BeforeValidator(_schema_version)] = Field(
        alias="schema", description="Version of this format.", examples=[SCHEMA]
    )
    id: Word = Field(description="Short name, in lower case.", examples=["rpi4"])
    name: str = Field(min_length=1, description="Name for people.", examples=["Raspberry Pi 4"])
    source: Source
    hardware: Hardware
    runtime: Runtime
    input: Input = Input()
    budgets: Budgets
    accuracy: Accuracy = Accuracy()
    prune: Prune = Prune()
    precision: Precision = Precision()
    calibration: Calibration | None = Field(
        default=None, description="Written by `mvp-edge device calibrate`; latency follows from it."
    )

    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that it was loaded from, if any."""
        return self._path

    def text(self) -> str:
        """A file that says the same, with what was extended in it."""
        facts = self.model_dump(mode="json", by_alias=True, context=_FILE)
        return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Identifies the resolved content: what was extended is in it, where it lay is not."""
        return sha256_json(self.model_dump(mode="json", by_alias=True))

    @field_validator("runtime")
    @classmethod
    def _enough_cores(cls, runtime: Runtime, info: ValidationInfo) -> Runtime:
        hardware = info.data.get("hardware")
        if hardware and runtime.threads > hardware.cores:
            raise contradiction(
                "threads",
                f"{runtime.threads} threads are more than the {hardware.cores} cores of"
                f" hardware.cores; write at most {hardware.cores}",
            )
        return runtime

    @field_validator("budgets")
    @classmethod
    def _enough_memory(cls, budgets: Budgets, info: ValidationInfo) -> Budgets:
        hardware = info.data.get("hardware")
        if hardware and budgets.memory is not None and budgets.memory > hardware.ram:
            ram = quantities.format_bytes(hardware.ram)
            raise contradiction("memory", f"is more than the {ram} of hardware.ram; lower it")
        return budgets


def profile_schema() -> dict[str, Any]:
    """The JSON schema of a profile file, for editors.

    A file that extends another may leave out what it inherits: every ``required`` but that of
    ``schema`` and ``id`` holds only without ``extends``.
    """
    schema = DeviceProfile.model_json_schema()
    whole = {"required": schema.pop("required"), "properties": {}}
    for key, field in schema["properties"].items():
        section = schema["$defs"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
        if "required" in section:
            whole["properties"][key] = {"required": section.pop("required")}
    for section in schema["$defs"].values():  # those within sections
        section.pop("required", None)
    extends = {
        "type": "string",
        "description": "A shipped profile's name or a relative path; keys given here win.",
        "examples": ["rpi4"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {**schema["properties"], "extends": extends},
        "required": ["schema", "id"],
        "if": {"required": ["extends"]},
        "else": whole,
    }


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def load_profile(name_or_path: str) -> DeviceProfile:
    """A shipped profile by its name (with or without ``.yaml``), or the one in a file.

    Raises:
        BadInput: no such profile, or all mistakes of the file, one a line.
    """
    path = _find(name_or_path, Path())
    if path is None:
        raise BadInput(f"device profile: {_not_found(name_or_path)}")
    mistakes: list[Mistake] = []
    profile = _load(path, mistakes)
    if profile is None:
        raise BadInput("\n".join(lines(mistakes)))
    return profile


def check_profile(path: str | Path) -> list[str]:
    """All mistakes of a profile file as ``file:line: key: what; what to do``; [] if it is good."""
    mistakes: list[Mistake] = []
    _load(Path(path), mistakes)
    return lines(mistakes)


def shipped_folder() -> Path:
    """Where the shipped profiles lie."""
    # In a wheel the profiles are package data; in the repository they lie at its root.
    packaged = Path(__file__).parent / "profiles"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "profiles"


def _find(name: str, folder: Path) -> Path | None:
    """The file that ``name`` means, seen from ``folder``; None if there is none."""
    bare = name.removesuffix(".yaml")
    shipped = shipped_folder() / f"{bare}.yaml" if bare in shipped_profiles() else None
    # A bare name means the shipped profile, also beside a run directory of that name.
    if shipped is not None and name == bare:
        return shipped
    return folder / name if name and _exists(folder / name) else shipped


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a path, or in a folder that may not be searched
        return False


def _not_found(name: str) -> str:
    shipped = shipped_profiles()
    bare = Path(name).name[:100].removesuffix(".yaml").removesuffix(".yml").lower()
    near = difflib.get_close_matches(bare, shipped, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"no profile is called {quoted(name, 200)} and there is no such file; {hint}"
        f"give the path of a YAML file, or one of {', '.join(shipped)}"
    )


def _load(path: Path, mistakes: list[Mistake]) -> DeviceProfile | None:
    """The profile, or None after its mistakes were added."""
    tree, complete = _resolve(path, (), mistakes)
    if tree is None:
        return None
    profile = validated(DeviceProfile, tree, mistakes, also=("extends",), complete=complete)
    if profile is None or mistakes:
        return None
    profile._path = path
    return profile


def _resolve(
    path: Path, chain: tuple[Path, ...], mistakes: list[Mistake]
) -> tuple[Entry | None, bool]:
    """The entries of a file laid over those of what it extends, and whether all could be had."""
    own = read(path, mistakes)
    if own is None or not isinstance(own.value, dict) or "extends" not in own.value:
        return own, own is not None
    given = dict(own.value)
    extends = given.pop("extends")
    own = Entry(path, own.line, given)
    for key in ("schema", "id"):
        if key not in given:
            text = f"{key}: is missing; add it, it is not inherited"
            mistakes.append(Mistake(path, own.line, text))
    chain = (*chain, path.resolve())
    base_path = _find(extends.value, path.parent) if isinstance(extends.value, str) else None
    if not isinstance(extends.value, str) or Path(extends.value).is_absolute():
        problem = "must be a shipped profile's name or a relative path, as in rpi4"
    elif base_path is None:
        problem = _not_found(extends.value)
    elif base_path.resolve() in chain:
        problem = (
            f"{quoted(extends.value)} leads back to this file; extend another"
            " (a shipped profile: by its name without .yaml)"
        )
    elif len(chain) >= _MAX_EXTENDS:
        problem = f"more than {_MAX_EXTENDS} files in a row; extend fewer"
    else:
        base, complete = _resolve(base_path, chain, mistakes)
        return (own, False) if base is None else (own.over(base), complete)
    mistakes.append(Mistake(path, extends.line, f"extends: {problem}"))
    return own, False
