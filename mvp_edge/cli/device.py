"""`mvp-edge device`: look at device profiles, and check your own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Device, Group, common, example
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge_export.profile import DeviceProfile


@click.group(cls=Group, epilog=example("mvp-edge device show rpi4"))
def device() -> None:
    """Look at device profiles, and check your own."""


@device.command("list", epilog=example("mvp-edge device list"))
@common
def device_list(console: Console) -> None:
    """The shipped profiles with their budgets."""
    from mvp_edge_export.profile import load_profile, shipped_profiles

    profiles = [load_profile(name) for name in shipped_profiles()]
    facts = [profile.model_dump(mode="json", by_alias=True) for profile in profiles]
    console.result(
        {"profiles": facts}, "\n".join(f"{p.id:<18} {p.name:<36} {_budgets(p)}" for p in profiles)
    )


@device.command("show", epilog=example("mvp-edge device show rpi4"))
@click.argument("name", type=Device())
@common
def device_show(console: Console, name: str) -> None:
    """One profile in full, with what it extends filled in."""
    from mvp_edge_export.profile import load_profile

    profile = load_profile(name)
    console.result(profile.model_dump(mode="json", by_alias=True), profile.text().rstrip())


@device.command("check", epilog=example("mvp-edge device check my_device.yaml"))
@click.argument("file", type=PATH)
@common
def device_check(console: Console, file: Path) -> None:
    """Name all mistakes of a profile at once; exit 2 if there are any."""
    from mvp_edge_export.profile import check_profile

    mistakes = check_profile(file)
    console.result(
        {"file": str(file), "mistakes": mistakes}, None if mistakes else f"{file}: no mistakes"
    )
    if mistakes:
        raise BadInput("\n".join(mistakes))


@device.command("schema", epilog=example("mvp-edge device schema > schema.json"))
@common
def device_schema(console: Console) -> None:
    """The JSON schema of a profile, for editors."""
    from mvp_edge_export.profile import profile_schema

    schema = profile_schema()
    console.result(schema, json.dumps(schema, indent=1, ensure_ascii=False))


def _budgets(profile: "DeviceProfile") -> str:
    from mvp_edge_export.quantities import format_bytes, format_count

    budgets = profile.budgets
    parts = [
        f"flops {format_count(budgets.flops)}" if budgets.flops else "",
        f"params {format_count(budgets.params)}" if budgets.params else "",
        f"file {format_bytes(budgets.file)}" if budgets.file else "",
        f"memory {format_bytes(budgets.memory)}" if budgets.memory else "",
    ]
    return ", ".join(part for part in parts if part)
