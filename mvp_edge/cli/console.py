"""What a command says, and where: results on stdout, everything else on stderr."""

import json
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import click

LOG_SECONDS = 15.0
"""Seconds between two progress lines of a phase where there is no terminal."""


@dataclass
class _Phase:
    """A phase under way."""

    started: float
    first: int
    """Steps that were done at the first progress call: a resumed phase does not begin at 0."""
    said: float
    bar: Any = None

    def left(self, now: float, done: int, total: int) -> float:
        """Seconds that the rest will take, at the pace so far."""
        return (now - self.started) * (total - done) / max(1, done - self.first)


class Console:
    """Progress, remarks and the result of one command.

    On a terminal a phase is a bar with an estimate while it lasts; elsewhere (a log file, CI) it is a
    line when it begins, one every 15 s with an estimate, and one when it ends. ``--quiet`` shows
    none of this; ``--json`` prints one document on stdout.
    """

    def __init__(self, *, as_json: bool, quiet: bool):
        self.as_json, self.quiet = as_json, quiet
        self._phases: dict[str, _Phase] = {}
        self._bars: Any = None
        self._what = ""

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
            self.warn(line)

    def warn(self, line: str) -> None:
        """A remark that --quiet does not silence."""
        if self._bars is None:
            click.echo(line, err=True)
        else:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """A line of a growing result, on stdout; with --json it waits for `result`."""
        if not self.as_json:
            click.echo(text)

    def result(self, facts: Any, text: Any) -> None:
        """The command's result: ``facts`` with --json, else ``text`` (a string or a rich renderable)."""
        self._stop()
        if self.as_json:
            click.echo(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False))
        elif isinstance(text, str):
            click.echo(text)
        elif text is not None:
            from rich.console import Console as RichConsole

            RichConsole().print(text)

    def progress(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a phase."""
        if self.quiet:
            return
        now = time.monotonic()
        if phase not in self._phases:
            self._phases[phase] = _Phase(now, done, now)
            if sys.stderr.isatty():
                self._bars = self._bars or _bars()
                self._phases[phase].bar = self._bars.add_task(phase, total=total)
            else:
                click.echo(f"{phase} …", err=True)
        known = self._phases[phase]
        if known.bar is not None:
            self._bars.update(known.bar, completed=done, total=total)
        elif now - known.said >= LOG_SECONDS and known.first < done < total:
            known.said = now
            left = known.left(now, done, total)
            click.echo(f"{phase}: {done} of {total}, about {_duration(left)} left", err=True)
        if done >= total:
            del self._phases[phase]
            if known.bar is not None:
                self._bars.remove_task(known.bar)
            self.say(f"{phase}: done in {_duration(now - known.started)}")

    def step(self, phase: str) -> None:
        """Announce a phase that has no progress count."""
        self.say(f"{phase} …")

    def share(self, what: str, share: float) -> None:
        """Many short phases of one work, of which ``share`` (0 … 1) is done."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            self.progress("measuring", round(100 * share), 100)
            if "measuring" in self._phases:
                self._bars.update(self._phases["measuring"].bar, description=what)
        elif what != self._what and share < 1:
            click.echo(f"{100 * share:3.0f} %  {what}", err=True)
        self._what = what

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._phases.clear()


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _bars() -> Any:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        transient=True,
    )
    bars.start()
    return bars
