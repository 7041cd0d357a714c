"""`mvp-edge doctor`: what works on a machine, what does not, and what to do."""

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import Device, common, example
from mvp_edge_export.errors import BadInput


@click.command(
    epilog=example("mvp-edge doctor --device rpi4", "mvp-edge doctor --on pi@raspberrypi")
)
@click.option(
    "--device",
    type=Device(),
    metavar="D",
    help="Compare the machine with this device profile as well.",
)
@click.option(
    "--on",
    metavar="HOST",
    help="Examine this host, with its own Python, through ssh [this machine].",
)
@common
def doctor(console: Console, device: str | None, on: str | None) -> None:
    """Say what works on a machine, what does not, and what to do; exit 2 if nothing can run."""
    from mvp_edge_export.profile import load_profile
    from mvp_edge_export.running.doctor import examine, look_here, look_there

    profile = load_profile(device) if device else None
    if on is None:
        console.say("looking at this machine …")
    report = examine(look_there(on, console.share) if on else look_here(), profile)
    console.result(report.to_json(), "\n".join(map(str, report.findings)))
    if report.obstacles:
        what = "; ".join(f"{one.subject}: {one.text}" for one in report.obstacles)
        raise BadInput(f"nothing can run {f'on {on}' if on else 'here'}: {what}")
