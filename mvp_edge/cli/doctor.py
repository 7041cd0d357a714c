"""`mvp-edge doctor`: what works on a machine, or with a backbone, what does not, and what to do."""

from pathlib import Path

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Device, common, declared, example
from mvp_edge_export.errors import BadInput


@click.command(
    epilog=example(
        "mvp-edge doctor --device rpi4",
        "mvp-edge doctor --on pi@raspberrypi",
        "mvp-edge doctor --backbone efficientnet-lite0 photo.jpg",
    )
)
@click.argument("photo", required=False, type=PATH)
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
@click.option(
    "--backbone", metavar="NAME|FILE",
    help="Look at this pre-trained network instead: can it be pruned, how are images prepared for it, and which "
    "classes does it see on PHOTO.",
)  # fmt: skip
@declared("weights_key", "input_size")
@common
def doctor(
    console: Console,
    photo: Path | None,
    device: str | None,
    on: str | None,
    backbone: str | None,
    weights_key: str | None,
    input_size: int | None,
) -> None:
    """Say what works on a machine, what does not, and what to do; exit 2 if nothing can run."""
    if backbone is not None:
        if device is not None or on is not None:
            raise BadInput(
                "--backbone looks at a network, --device and --on at a machine: one of them"
            )
        _examine_backbone(console, backbone, photo, weights_key, input_size)
        return
    for value, flag in (
        (photo, "PHOTO"),
        (weights_key, "--weights-key"),
        (input_size, "--input-size"),
    ):
        if value is not None:
            raise BadInput(f"{flag} needs --backbone")
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


def _examine_backbone(
    console: Console,
    name: str,
    photo: Path | None,
    weights_key: str | None,
    input_size: int | None,
) -> None:
    console.say("loading …")
    from dataclasses import asdict

    from mvp_edge.reporting.backbone import facts, guess_lines, guesses, lines
    from mvp_edge.subnetwork.backbone import load_backbone

    backbone = load_backbone(name, input_size, weights_key)
    found, text = facts(backbone), ""
    if photo is not None:
        seen = guesses(backbone, photo)
        found["photo"] = [asdict(guess) for guess in seen]
        text = f"\n{photo.name}:\n{guess_lines(seen)}"
    console.result(found, lines(found) + text)
