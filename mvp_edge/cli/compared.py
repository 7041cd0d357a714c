"""`mvp-edge bench --compare A.json B.json`: two results of `bench` held against each other."""

from pathlib import Path

import click

from mvp_edge.cli.console import Console


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
