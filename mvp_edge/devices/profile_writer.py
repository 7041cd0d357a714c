"""Adds a calibration to a device profile and leaves the rest of the user's text as it is."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import Machine, differences
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.profile_sections import Calibration
from mvp_edge_export.storage import write_text

_SECTION = re.compile(r"^calibration:.*(?:\n(?:[ \t#].*)?)*", re.MULTILINE)
"""The section's key and the indented, commented or empty lines below it."""
_VECTORS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd",
            "asimddp", "sve")  # fmt: skip


def write_calibrated(profile: DeviceProfile, calibration: Calibration, out: Path | None) -> Path:
    """Write the profile with its calibration.

    Args:
        profile: the profile that was calibrated.
        calibration: its new section, which replaces an earlier one.
        out: the file to write; the profile's own if None, but a shipped profile is extended by a new
            file ``ID.yaml`` in the working folder.

    Returns:
        The file.

    Raises:
        BadInput: the file cannot be written, or is another profile.
    """
    own = profile.path
    shipped = own is None or not os.access(own, os.W_OK) or _is_shipped(own)
    if out is None:
        out = Path(f"{profile.id}.yaml") if shipped else own
    assert out is not None
    if own is not None and not _is_shipped(own):
        text = own.read_text(encoding="utf-8")
    else:
        text = f"schema: 1\nid: {profile.id}\nextends: {profile.id}\n"
        if out.exists() and load_profile(str(out)).id != profile.id:
            raise BadInput(f"{out} exists and is another profile: choose another name", field="out")
    return _written(out, text, calibration, profile.model_copy(update={"calibration": calibration}))


def write_new(
    machine: Machine, calibration: Calibration, runtimes: list[str], out: Path | None
) -> Path:
    """Write a profile of this machine with its calibration and without budgets."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-")[:40] or machine.arch
    out = out or Path(f"{name}.yaml")
    if out.exists():
        raise BadInput(f"{out} exists: calibrate it by name, or choose another file", field="out")
    facts = {
        "schema": 1,
        "id": name,
        "name": machine.board or f"{machine.cpu}, {machine.physical_cores} cores",
        "source": {
            "kind": "measured",
            "note": "Hardware as the machine reports it; set your own budgets (null means not checked).",
            "date": calibration.date.isoformat(),
        },
        "hardware": {
            "arch": machine.arch,
            "cpu": machine.cores[-1] if machine.cores else machine.cpu,
            "cores": machine.physical_cores,
            "ram": machine.ram,
            "isa": [flag for flag in _VECTORS if flag in machine.flags],
        },
        "runtime": {"backends": runtimes, "threads": machine.physical_cores},
        "budgets": {"flops": None, "params": None, "file": None, "memory": None, "latency": None},
    }
    profile = DeviceProfile.model_validate({**facts, "calibration": calibration})
    assert not differences(machine, profile), "a machine differs from the profile made of it"
    return _written(
        out, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), calibration, profile
    )


def _written(out: Path, text: str, calibration: Calibration, meant: DeviceProfile) -> Path:
    section: dict[str, Any] = {
        "calibration": calibration.model_dump(mode="json", exclude_defaults=True)
    }
    added = yaml.safe_dump(section, sort_keys=False, allow_unicode=True, width=110)
    text = f"{_SECTION.sub('', text).rstrip()}\n{added}"
    partial = out.with_name(f".{out.stem}.check.yaml")
    try:
        write_text(partial, text)
        if load_profile(str(partial)).sha256 != meant.sha256:
            raise BadInput(
                f"{out}: the calibration cannot be added to this file; see it with --out OTHER"
            )
    finally:
        partial.unlink(missing_ok=True)
    write_text(out, text)
    return out


def _is_shipped(path: Path) -> bool:
    shipped = load_profile(path.stem).path if path.stem in _shipped() else None
    return shipped is not None and shipped.resolve() == path.resolve()


def _shipped() -> list[str]:
    from mvp_edge_export.profile import shipped_profiles

    return shipped_profiles()
