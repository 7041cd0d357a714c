"""`mvp-edge bench`: a bundle measured here or on a host, and the comparison of two results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Device, Number, common, example, numbers
from mvp_edge.cli.remote import measured_on, on_host

if TYPE_CHECKING:
    from mvp_edge_export.measuring.job import BenchJob, Outcome
    from mvp_edge_export.measuring.result import BenchResult


@click.command(
    epilog=example(
        "mvp-edge bench runs/001/bundle",
        "mvp-edge bench runs/001/bundle --layers",
        "mvp-edge bench runs/001/bundle --on pi@raspberrypi",
        "mvp-edge bench --compare old.json new.json",
    )
)
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--device", type=Device(), metavar="D", help="Profile to judge by [the bundle's own]."
)
@click.option(
    "--runtime", "runtimes", multiple=True, type=click.Choice(["onnxruntime", "openvino"]),
    help="Runtime to measure; may be repeated [all that are installed].",
)  # fmt: skip
@click.option(
    "--threads", multiple=True, type=click.IntRange(1), metavar="N",
    help="Number of threads to measure with; may be repeated [1 and all physical cores].",
)  # fmt: skip
@click.option(
    "--precision", "precisions", metavar="fp32,int8,fp16",
    help="Number formats to measure [all that BUNDLE has].",
)  # fmt: skip
@click.option(
    "--choose", is_flag=True,
    help="On the device: let BUNDLE ship the fastest variant by this measurement, and delete the slower variants.",
)  # fmt: skip
@click.option(
    "--full",
    is_flag=True,
    help="Use the long protocol: at least 60 s and 1,024 runs in three processes for each cell.",
)
@click.option(
    "--seconds",
    type=Number(0.1, 600),
    help="Seconds to measure each cell [15; with --full 60].",
)
@click.option(
    "--layers", is_flag=True, help="Also measure each layer, and say why it takes that long."
)
@click.option(
    "--out", type=PATH, metavar="FILE", help="Where the JSON result goes [BUNDLE/../bench.json]."
)
@click.option(
    "--compare", "compared", nargs=2, type=PATH, metavar="A.json B.json",
    help="Instead of measuring: print the speed-ups of B over A with their intervals.",
)  # fmt: skip
@click.option(
    "--force-different", is_flag=True,
    help="With --compare: allow results of different machines or protocols.",
)  # fmt: skip
@on_host
@common
def bench(
    console: Console,
    bundle: Path | None,
    compared: tuple[Path, Path] | None,
    force_different: bool,
    **options: Any,
) -> None:
    """Measure BUNDLE's latency and memory, pruned and unpruned interleaved, here or on a host."""
    if bundle is None or compared is not None or force_different:
        compare_results(console, compared, force_different)
        return
    from mvp_edge_export.measuring.job import BenchJob

    on = options.pop("on")
    device, out, choose = (options.pop(name) for name in ("device", "out", "choose"))
    job = BenchJob.prepare(bundle, device, out, choose=choose, here=on is None)
    outcome = job.finish(_measured(console, job, on, **options))
    _show(console, outcome)
    outcome.check(on or "this machine")


def _measured(
    console: Console, job: "BenchJob", on: str | None, offline: bool, **options: Any
) -> "BenchResult":
    """The measurement of this command line, here or on a host."""
    if on is not None or offline:
        return measured_on(console, on, job.bundle, job.given, options["runtimes"], offline)
    from mvp_edge_export.measuring.bench import bench as measure

    return measure(
        job.bundle,
        profile=job.profile,
        runtimes=options["runtimes"] or None,
        threads=options["threads"] or None,
        precisions=numbers(options["precisions"]),
        full=options["full"],
        seconds=options["seconds"],
        layers=options["layers"],
        progress=console.share,
    )


def _show(console: Console, outcome: "Outcome") -> None:
    """Print what was measured, what is to be doubted, the verdicts, and what will be shipped."""
    from rich.console import Group

    result = outcome.result
    console.result(outcome.facts, Group(result.table(), *result.layer_tables()))
    for failure in result.failures:
        console.warn(f"not measured: {failure}")
    for warning in result.warnings:
        console.say(f"note: {warning}")
    full_or_not = "" if result.protocol.full else ", not --full"
    console.say(f"budgets of {result.profile}, judged by {result.judged}{full_or_not}:")
    for verdict in result.verdicts:
        console.say(f"  {verdict}" + (f" ({verdict.note})" if verdict.note else ""))
    console.say(f"written to {outcome.file}")
    if outcome.chosen is not None:
        for one in outcome.chosen.candidates:
            if not one.kept:
                console.say(f"kept out: {one.format}: {one.why}")
        console.say(f"to ship: {outcome.chosen.choice}")


def compare_results(
    console: Console, files: tuple[Path, Path] | None, force_different: bool
) -> None:
    """Print the speed-ups, what was changed, and what is to be doubted.

    Raises:
        UsageError: there is nothing to compare, or another option was given that would do nothing.
    """
    if files is None:
        if force_different:
            raise click.UsageError("--force-different belongs to --compare A.json B.json")
        raise click.UsageError("Missing argument 'BUNDLE' (or --compare A.json B.json).")
    for option in _given(click.get_current_context()):
        if option not in ("--compare", "--force-different", "--json", "--quiet"):
            raise click.UsageError(f"--compare measures nothing: leave out {option}")

    from mvp_edge_export.measuring.compare import compare

    found = compare(*files, force_different=force_different)
    console.result(found.model_dump(mode="json"), found.table())
    for difference in found.forced:
        console.warn(f"not measured alike: {difference}")
    changed = "; ".join(found.treatment) or "nothing: the same measurement twice"
    console.say(f"changed between them: {changed}")
    for name, only in ((found.before, found.only_before), (found.after, found.only_after)):
        if only:
            console.say(f"only in {name}: {'; '.join(only)}")
    for note in found.notes:
        console.say(f"note: {note}")


def _given(context: click.Context) -> list[str]:
    """The options that were typed, by their long names, and the arguments."""
    typed = click.core.ParameterSource.COMMANDLINE
    return [
        parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is typed
    ]
