"""What a command says, and where: results on stdout, everything else on stderr."""

import json
import sys
import time
from types import TracebackType
from typing import Any

import click


class Console:
    """Progress bars, remarks and the result of one command.

    On a terminal, long phases show a bar with an estimate; elsewhere (a log file, CI) a phase is one line
    when it begins and one when it ends. ``--quiet`` shows neither; ``--json`` prints one document.
    """

    def __init__(self, *, as_json: bool, quiet: bool):
        self.as_json, self.quiet = as_json, quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def say(self, line: str) -> None:
        """A remark, on stderr."""
        if not self.quiet:
            self._stop()
            click.echo(line, err=True)

    def warn(self, line: str) -> None:
        """A remark that --quiet does not silence."""
        self._stop()
        click.echo(line, err=True)

    def line(self, text: str) -> None:
        """A line of a growing result, on stdout; with --json it waits for `result`."""
        if not self.as_json:
            click.echo(text)

    def result(self, facts: Any, text: Any) -> None:
        """The command's result: ``facts`` with --json, else ``text`` (a string or a rich renderable)."""
        self._stop()
        if self.as_json:
            click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        elif isinstance(text, str):
            click.echo(text)
        elif text is not None:
            from rich.console import Console as RichConsole

            RichConsole().print(text)

    def progress(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a phase."""
        if self.quiet:
            return
        if not sys.stderr.isatty():
            self._log(phase, done, total)
            return
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)

    def step(self, phase: str) -> None:
        """A phase without a measure."""
        self.say(f"{phase} …")

    def share(self, phase: str, share: float) -> None:
        """A phase by the share that is done, 0 … 1."""
        self.progress(phase, round(1000 * share), 1000)

    def _log(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase not in self._started:
            self._started[phase] = now
            click.echo(f"{phase} …", err=True)
        if done >= total:
            seconds = now - self._started.pop(phase)
            click.echo(f"{phase} done in {seconds:.1f} s", err=True)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


def _bars() -> Any:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
    )
