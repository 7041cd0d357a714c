"""What the commands share: their order, --json and --quiet, and the types of their options."""

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mvp_edge.cli.console import Console
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge_export.profile_sections import NumberFormat

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
FROM_SCRATCH = ("ifp", "ifp-taylor", "ahnp", "distill", "conventional", "magnitude", "random")
METHODS = ("trunk", "mvp", "smsp", *FROM_SCRATCH)
"""Names of `mvp_edge.pruning.methods.METHODS`, which `--help` must not import; the latter ask no zoo."""
PICKS = ("smallest", "fastest", "best")
POLICIES = ("tied", "inner", "heads-nodes")


class Group(click.Group):
    """Lists commands in the order of the flow, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands as they were declared."""
        return list(self.commands)


class Number(click.FloatRange):
    """A finite number: NaN lies in no range, and infinity in none that we mean."""

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


def common(command: _Command) -> _Command:
    """--json and --quiet, as a `Console` in the command's first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="No progress, no remarks.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        with Console(as_json=as_json, quiet=quiet) as console:
            return command(console, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def example(*lines: str) -> str:
    """The end of a command's help; click leaves lines after a backspace as they are."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


backbone_help = "timm name, description.json, or ARCHITECTURE@FILE."
augment = click.option(
    "--augment", metavar="flip,shift|none",
    help="[flip,shift, but none in a run of at most four passes over the images]",
)  # fmt: skip
accelerator = click.option(
    "--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
input_size = click.option(
    "--input-size", type=click.IntRange(8, 1024), metavar="PX", help="Side of the input."
)


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
        raise BadInput(f"--precision {','.join(unknown)}: some of {', '.join(NUMBER_FORMATS)}")
    return tuple(one for one in NUMBER_FORMATS if one in named)


def augmentations(text: str | None) -> tuple[str, ...] | None:
    """The value of --augment; None stays None."""
    names = words(text)
    if names == ("none",):
        return ()
    if any(name not in ("flip", "shift") for name in names or ()):
        raise BadInput(f"--augment {text}: flip, shift, flip,shift or none")
    return names
