"""`mvp-edge doctor`: what works on a machine, what does not, and what to do."""

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import Device, common, example
from mvp_edge_export.errors import BadInput


@click.command(epilog=example("mvp-edge doctor", "mvp-edge doctor --device rpi4"))
@click.option(
    "--device", type=Device(), metavar="D", help="Hold the machine against this profile too."
)
@common
def doctor(console: Console, device: str | None) -> None:
    """Say what works on this machine, what does not, and what to do; exit 2 if nothing can run."""
    from mvp_edge_export.devices.doctor import examine, look_here
    from mvp_edge_export.profile import load_profile

    profile = load_profile(device) if device else None
    console.say("looking at this machine …")
    report = examine(look_here(), profile)
    console.result(report.to_json(), "\n".join(map(str, report.findings)))
    if report.obstacles:
        what = "; ".join(f"{one.subject}: {one.text}" for one in report.obstacles)
        raise BadInput(f"mvp-edge cannot run here: {what}")
