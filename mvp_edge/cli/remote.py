"""`--on HOST`: the same command, run on another machine through ssh."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from mvp_edge.cli.console import Console
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge_export.bundle import Bundle
    from mvp_edge_export.measuring.result import BenchResult
    from mvp_edge_export.measuring.timing import Place
    from mvp_edge_export.profile import DeviceProfile

_Command = TypeVar("_Command", bound=Callable[..., Any])

OFFLINE_IS_REMOTE = "--offline is about a host: --on HOST --offline"
_STAYS_HERE = {"bundle", "device", "runtimes", "out", "on", "offline", "choose", "as_json", "quiet"}


def on_host(command: _Command) -> _Command:
    """--on and --offline."""
    command = click.option(
        "--offline",
        is_flag=True,
        help="With --on: copy all packages, because HOST reaches no package index.",
    )(command)
    return click.option(
        "--on", metavar="HOST", help="Run on this host, through `ssh HOST` [this machine]."
    )(command)


def measured_on(
    console: Console,
    target: str | None,
    bundle: "Bundle",
    profile: "DeviceProfile | None",
    runtimes: Sequence[str],
    offline: bool,
) -> "BenchResult":
    """The bench of this command line, on the host ``target``.

    Raises:
        BadInput: there is no host, or it cannot be measured there.
    """
    if target is None:
        raise BadInput(OFFLINE_IS_REMOTE)
    from mvp_edge_export.remote.bench import RemoteBench

    words = given_words(click.get_current_context(), without=_STAYS_HERE)
    bench = RemoteBench(bundle, words, runtimes or None, profile)
    return bench.run_on(target, offline=offline, progress=console.share)


@contextmanager
def timed_at(console: Console, target: str | None, offline: bool) -> "Iterator[Place]":
    """The device that a calibration is about: this machine, or the host of this command line.

    Raises:
        BadInput: there is no host, or nothing can run there.
    """
    if target is None:
        from mvp_edge_export.measuring.timing import HERE

        if offline:
            raise BadInput(OFFLINE_IS_REMOTE)
        yield HERE
        return
    from mvp_edge_export.remote.timing import place_on

    with place_on(target, offline=offline, progress=console.share) as place:
        yield place


def given_words(context: click.Context, without: set[str]) -> list[str]:
    """The options that the user gave, as words of a command line."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in without or source is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if value is True or value is False:
            options = parameter.opts if value else parameter.secondary_opts
            words.append(options[0])
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [parameter.opts[0], str(one)]
    return words
