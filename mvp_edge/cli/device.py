"""`mvp-edge device`: look at device profiles, check your own, calibrate them, see where a network fits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Device, Group, Number, common, example
from mvp_edge.cli.remote import on_host, timed_at
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge_export.profile import DeviceProfile


@click.group(cls=Group, epilog=example("mvp-edge device show rpi4"))
def device() -> None:
    """Look at device profiles, check and calibrate your own, see where a network fits."""


@device.command("list", epilog=example("mvp-edge device list"))
@common
def device_list(console: Console) -> None:
    """List the shipped profiles with their budgets."""
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
    """Show one profile in full, with what it extends filled in."""
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
    """Print the JSON schema of a profile, for editors."""
    from mvp_edge_export.profile import profile_schema

    schema = profile_schema()
    console.result(schema, json.dumps(schema, indent=1, ensure_ascii=False))


@device.command(
    "calibrate",
    epilog=example(
        "mvp-edge device calibrate my_device.yaml --threads 4",
        "mvp-edge device calibrate rpi4 --on pi@raspberrypi",
    ),
)
@click.argument("profile", type=Device(), required=False)
@click.option(
    "--networks", type=click.IntRange(12, 1000), default=90, metavar="N",
    help="Number of networks to time [90].",
)  # fmt: skip
@click.option(
    "--threads", multiple=True, type=click.IntRange(1), metavar="N",
    help="Number of threads to time with; may be repeated [1 and the profile's].",
)  # fmt: skip
@click.option(
    "--runtime", "runtimes", multiple=True, type=click.Choice(["onnxruntime", "openvino"]),
    help="Runtime to time; may be repeated [those of the profile].",
)  # fmt: skip
@click.option(
    "--out", type=PATH, metavar="FILE", help="Profile to write [PROFILE itself, or a new file]."
)
@on_host
@common
def device_calibrate(
    console: Console,
    profile: str | None,
    out: Path | None,
    on: str | None,
    offline: bool,
    **sampling: Any,
) -> None:
    """Time networks on a device and write its speed into PROFILE, or into a new profile."""
    console.say("loading …")
    from mvp_edge.devices.calibrate import Sampling, calibrate

    with timed_at(console, on, offline) as place:
        path, calibration = calibrate(
            profile, Sampling(**sampling), out=out, place=place, progress=console.progress
        )
    lines = [
        f"{fit.runtime} {fit.version}, {fit.threads} thread{'s' * (fit.threads > 1)}: error on "
        f"{fit.error.networks} unseen networks {100 * fit.error.median:.1f} % in the median, "
        f"{100 * fit.error.p90:.1f} % at most for 9 in 10"
        for fit in calibration.fits
    ]
    facts = {"profile": str(path), "calibration": calibration.model_dump(mode="json")}
    console.result(facts, "\n".join([*lines, f"written to {path}"]))


@device.command("time", hidden=True, epilog=example("mvp-edge device time jobs.json --json"))
@click.argument("jobs", type=PATH)
@click.option(
    "--seconds", type=Number(0.1, 600), default=1.0, help="Seconds to time each model [1]."
)
@common
def device_time(console: Console, jobs: Path, seconds: float) -> None:
    """Time the model files of a list, for a calibration that another machine leads."""
    from mvp_edge_export.measuring.timing import read_jobs, time_models

    timings = time_models(
        read_jobs(jobs),
        seconds=seconds,
        progress=lambda done, total: console.progress("timing", done, total),
    )
    facts = [one.model_dump(mode="json") for one in timings]
    console.result({"timings": facts}, "\n".join(f"{t.name} {t.p50:.4g} ms" for t in timings))


@device.command("fit", epilog=example("mvp-edge device fit runs/001"))
@click.argument("network", metavar="RUN|BUNDLE|MODEL.ONNX", type=PATH)
@common
def device_fit(console: Console, network: Path) -> None:
    """Compare one network with the budgets of every shipped profile."""
    from mvp_edge.devices.footprint import footprint
    from mvp_edge_export.profile import load_profile, shipped_profiles
    from mvp_edge_export.running.fit import fit_all, fit_table

    rows = fit_all(footprint(network), map(load_profile, shipped_profiles()))
    console.result(
        {"network": str(network), "devices": [row.to_json() for row in rows]}, fit_table(rows)
    )


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
