"""Device profiles: one YAML file per device with its hardware and its budgets.

    YAML → entries, each with file and line → merged with what it ``extends`` → DeviceProfile (frozen)

A file is validated as a whole before it is used. A budget that is null or left out is not checked; its
verdict is UNCHECKED, never PASS. ``located_yaml`` reads files and reports mistakes by line,
``profile_sections`` declares the sections; this module combines them, finds the shipped profiles and
resolves ``extends``.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from mvp_edge_export import quantities
from mvp_edge_export.errors import BadInput
from mvp_edge_export.located_yaml import Entry, Mistake, contradiction, lines, read, validated
from mvp_edge_export.profile_sections import (
    AS_IN_A_FILE,
    Accuracy,
    Budgets,
    Calibration,
    Hardware,
    Input,
    Precision,
    Prune,
    Runtime,
    Section,
    Source,
    Word,
)
from mvp_edge_export.quantities import quoted
from mvp_edge_export.storage import sha256_json

SCHEMA = 1
"""Version of the file format that this program reads."""

_MAX_EXTENDS = 8


def _schema_version(value: object) -> object:
    if value in (SCHEMA, str(SCHEMA)):
        return SCHEMA
    raise ValueError(f"{quoted(value)} is not a version that this program reads; write {SCHEMA}")


class DeviceProfile(Section):
    """A device, its budgets and the settings for pruning and exporting for it."""

    schema_: Annotated[Literal[1], BeforeValidator(_schema_version)] = Field(
        alias="schema", description="Version of this file format.", examples=[SCHEMA]
    )
    id: Word = Field(description="Short name of the device, in lower case.", examples=["rpi4"])
    name: str = Field(
        min_length=1, description="Name of the device for display.", examples=["Raspberry Pi 4"]
    )
    source: Source
    hardware: Hardware
    runtime: Runtime
    input: Input = Input()
    budgets: Budgets
    accuracy: Accuracy = Accuracy()
    prune: Prune = Prune()
    precision: Precision = Precision()
    calibration: Calibration | None = Field(
        default=None,
        description="Fitted latency, written by `mvp-edge device calibrate`; used to predict latency.",
    )

    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that the profile was loaded from; None if it was not loaded from a file."""
        return self._path

    def text(self) -> str:
        """The profile as YAML text without ``extends``: inherited values are written out."""
        facts = self.model_dump(mode="json", by_alias=True, context=AS_IN_A_FILE)
        return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)

    @property
    def sha256(self) -> str:
        """Hash of the resolved content: inherited values count, the file's location does not."""
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
    """The JSON schema of a profile file, e.g. for validation in an editor.

    A file that extends another may leave out inherited keys: only ``schema`` and ``id`` are always
    required, all other required keys only without ``extends``.
    """
    schema = DeviceProfile.model_json_schema()
    whole = {"required": schema.pop("required"), "properties": {}}
    for key, field in schema["properties"].items():
        section = schema["$defs"].get(field.get("$ref", "").rsplit("/", 1)[-1], {})
        if "required" in section:
            whole["properties"][key] = {"required": section.pop("required")}
    for section in schema["$defs"].values():  # sections within sections
        section.pop("required", None)
    extends = {
        "type": "string",
        "description": "Profile to inherit from: a shipped profile's name or a relative path. Keys in this file"
        " override inherited ones.",
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
    """Sorted names of the profiles that are part of the package."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def load_profile(name_or_path: str) -> DeviceProfile:
    """Load a profile.

    Args:
        name_or_path: name of a shipped profile, with or without ``.yaml``, or path of a YAML file.

    Raises:
        BadInput: there is no such profile, or the file has mistakes; the message lists all of them,
            one per line.
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
    """List all mistakes of a profile file, each as ``file:line: key: what; what to do``.

    The list is empty if the file is valid.
    """
    mistakes: list[Mistake] = []
    _load(Path(path), mistakes)
    return lines(mistakes)


def shipped_folder() -> Path:
    """Folder of the shipped profiles."""
    # In a wheel the profiles are package data; in the repository they are in its root.
    packaged = Path(__file__).parent / "profiles"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "profiles"


def _find(name: str, folder: Path) -> Path | None:
    """The file with this name: a shipped profile or a path relative to ``folder``; None if missing."""
    bare = name.removesuffix(".yaml")
    shipped = shipped_folder() / f"{bare}.yaml" if bare in shipped_profiles() else None
    # A name without suffix means the shipped profile, even if a directory has the same name.
    if shipped is not None and name == bare:
        return shipped
    return folder / name if name and _exists(folder / name) else shipped


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the path is too long, or its folder is not accessible
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
    """The profile of a file; None if it has mistakes, which are appended to ``mistakes``."""
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
    """A file's entries merged over those of the file it extends, and whether all could be read."""
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
