"""What the commands share: their order, --json and --quiet, and the types of their options."""

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mvp_edge.cli.console import Console
from mvp_edge.methods.names import current_name
from mvp_edge.runs.request import DEFAULTS, OPTIONS, Option
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge_export.profile_sections import NumberFormat

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class Group(click.Group):
    """Lists commands in the order of the flow, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands as they were declared."""
        return list(self.commands)


class Number(click.FloatRange):
    """A finite number in a range; NaN and infinity are rejected."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Keep(click.ParamType):  # type: ignore[type-arg] # generic in newer clicks alone
    """``auto`` or a ratio."""

    name = "auto|R"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """The ratio; whether it is one is checked with the other arguments."""
        if value == "auto":
            return "auto"
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value}: auto, or a ratio above 0 and at most 1", param, ctx)


class Device(click.ParamType):  # type: ignore[type-arg]
    """A profile: a shipped name or a file; the shell completes both."""

    name = "device"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Shipped names that begin so; files when there are none."""
        from mvp_edge_export.profile import shipped_profiles

        names = [name for name in shipped_profiles() if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


class Place(click.Path):
    """A folder or file. run.json names it, so `photos/` and `photos` are spelled the same."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path without a slash at its end."""
        return str(Path(str(super().convert(value, param, ctx))))


def common(command: _Command) -> _Command:
    """--json and --quiet, as a `Console` in the command's first argument."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout."
    )
    @click.option("--quiet", "-q", is_flag=True, help="Show no progress and no remarks.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        with Console(as_json=as_json, quiet=quiet) as console:
            return command(console, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def example(*lines: str) -> str:
    """The end of a command's help; click leaves lines after a backspace as they are."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


class Method(click.Choice):  # type: ignore[type-arg]
    """The name of a pruning method; an old name is understood, and the new one said."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The method's present name."""
        name = current_name(value)
        if name != value and name in self.choices:
            flag = param.opts[0] if param else "--method"
            click.echo(
                f"{flag} {value} is now called {name}; the old name goes in the next release",
                err=True,
            )
        return super().convert(name, param, ctx)


def declared(*names: str) -> Callable[[_Command], _Command]:
    """The click options of these arguments of `mvp_edge.runs.request.Request`, in this order."""

    def with_options(command: _Command) -> _Command:
        for name in reversed(names):
            command = _click_option(name)(command)
        return command

    return with_options


def _click_option(name: str) -> Callable[[_Command], _Command]:
    option = OPTIONS[name]
    flag = f"--{name.replace('_', '-')}"
    if option.kind == "flag":
        spelled = f"{flag}/--no-{name}" if DEFAULTS[name] is True else flag
        return click.option(spelled, is_flag=True, default=DEFAULTS[name], help=option.help)
    default = {"default": DEFAULTS[name]} if name in DEFAULTS else {}
    return click.option(
        flag,
        type=_click_type(name, option),
        required=name == "device",
        **default,
        metavar=option.metavar,
        help=option.help,
        callback=_listed if option.kind == "names" else None,
    )


def _click_type(name: str, option: Option) -> Any:
    if option.choices:
        return (Method if name == "method" else click.Choice)(option.choices)
    least = None if option.least is None else int(option.least)
    most = None if option.most is None else int(option.most)
    types: dict[str, Any] = {
        "integer": click.IntRange(least, most),
        "number": Number(0 if option.positive else option.least, min_open=option.positive),
        "keep": Keep(),
        "device": Device(),
        "place": Place(),
        "path": click.Path(),
    }
    return types.get(option.kind)


def _listed(
    _context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[str, ...] | None:
    """The names of a comma-separated list; "none" is the empty list where no name could be meant by it."""
    if text == "none" and parameter.name == "augment":
        return ()
    return words(text)


def words(text: str | None) -> tuple[str, ...] | None:
    """The names of a comma-separated list; None stays None."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def numbers(text: str | None) -> "tuple[NumberFormat, ...] | None":
    """The value of --precision; None stays None."""
    from mvp_edge_export.profile_sections import NUMBER_FORMATS

    named = words(text)
    if named is None:
        return None
    unknown = [name for name in named if name not in NUMBER_FORMATS]
    if unknown:
        raise BadInput(
            f"{','.join(unknown)}: some of {', '.join(NUMBER_FORMATS)}", field="precision"
        )
    return tuple(one for one in NUMBER_FORMATS if one in named)
