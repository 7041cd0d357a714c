"""`mvp-edge bench`: a bundle measured here or on a host, and two results held against each other."""

import os
from pathlib import Path

import click

from mvp_edge.cli.console import Console
from mvp_edge.cli.options import PATH, Device, Number, common, example, numbers
from mvp_edge.cli.remote import measured_on, on_host
from mvp_edge_export.errors import BadInput, BudgetMissed, MvpEdgeError


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
    "--device", type=Device(), metavar="D", help="Judge by another profile than the bundle's."
)
@click.option(
    "--runtime", "runtimes", multiple=True, type=click.Choice(["onnxruntime", "openvino"])
)
@click.option("--threads", multiple=True, type=click.IntRange(1), help="[1 and all physical cores]")
@click.option(
    "--precision", "precisions", metavar="fp32,int8,fp16",
    help="Number formats to measure [all that BUNDLE has].",
)  # fmt: skip
@click.option(
    "--choose", is_flag=True,
    help="On the device: decide by this measurement what BUNDLE ships, and drop what lost.",
)  # fmt: skip
@click.option(
    "--full", is_flag=True, help="The long protocol: 60 s, 1,024 runs, three processes a cell."
)
@click.option("--seconds", type=Number(0.1, 600), help="Steady seconds a cell [15; full 60].")
@click.option("--layers", is_flag=True, help="Also where the time goes, layer by layer, and why.")
@click.option(
    "--out", type=PATH, metavar="FILE", help="Where the JSON goes [BUNDLE/../bench.json]."
)
@click.option(
    "--compare", "compared", nargs=2, type=PATH, metavar="A.json B.json",
    help="Instead of measuring: speed-ups of B over A, cell by cell, with intervals.",
)  # fmt: skip
@click.option(
    "--force-different", is_flag=True,
    help="Compare also what different machines or protocols measured.",
)  # fmt: skip
@on_host
@common
def bench(
    console: Console, bundle: Path | None, device: str | None, runtimes: tuple[str, ...],
    threads: tuple[int, ...], precisions: str | None, choose: bool, full: bool,
    seconds: float | None, layers: bool, out: Path | None, compared: tuple[Path, Path] | None,
    force_different: bool, on: str | None, offline: bool,
) -> None:  # fmt: skip
    """Measure BUNDLE's latency and memory, pruned and unpruned interleaved, here or on a host."""
    if bundle is None or compared is not None or force_different:
        compare_results(console, compared, force_different)
        return
    from rich.console import Group

    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.measuring.bench import bench as measure
    from mvp_edge_export.measuring.choice import check_choosable
    from mvp_edge_export.measuring.choice import choose as choose_by
    from mvp_edge_export.profile import load_profile
    from mvp_edge_export.storage import write_json

    loaded = load_bundle(bundle)
    given = load_profile(device) if device else None
    profile = given or loaded.manifest.profile
    file = out or loaded.path.resolve().parent / "bench.json"
    # Said before minutes of measuring.
    if file.is_dir() or not os.access(file.absolute().parent, os.W_OK):
        raise BadInput(f"--out {file}: cannot be written there")
    if choose:
        check_choosable(loaded, profile, here=on is None)
    if on is not None or offline:
        result = measured_on(console, on, loaded, given, runtimes, offline)
    else:
        result = measure(
            loaded,
            profile=profile,
            runtimes=runtimes or None,
            threads=threads or None,
            precisions=numbers(precisions),
            full=full,
            seconds=seconds,
            layers=layers,
            progress=console.share,
        )
    facts = result.model_dump(mode="json", by_alias=True)
    write_json(file, facts)
    chosen, refused = None, None
    if choose:
        try:
            chosen = choose_by(loaded, result).manifest
        except MvpEdgeError as error:  # said after what was measured
            refused = error
    told = {} if chosen is None else {"choice": chosen.choice}
    console.result(facts | told, Group(result.table(), *result.layer_tables()))
    for failure in result.failures:
        console.warn(f"not measured: {failure}")
    for warning in result.warnings:
        console.say(f"note: {warning}")
    full_or_not = "" if result.protocol.full else ", not --full"
    console.say(f"budgets of {result.profile}, judged by {result.judged}{full_or_not}:")
    for verdict in result.verdicts:
        console.say(f"  {verdict}" + (f" ({verdict.note})" if verdict.note else ""))
    console.say(f"written to {file}")
    if chosen is not None:
        for one in chosen.candidates:
            if not one.kept:
                console.say(f"kept out: {one.format}: {one.why}")
        console.say(f"to ship: {chosen.choice}")
    if refused is not None:
        raise refused
    missed = [str(verdict) for verdict in result.verdicts if verdict.verdict == "FAIL"]
    if missed:
        raise BudgetMissed(f"missed on {on or 'this machine'}: {'; '.join(missed)}")


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
