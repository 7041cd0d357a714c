"""The command line: help at once and with an example, one JSON document, one line an error, completion."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest

from mvp_edge.cli.console import Console
from mvp_edge.cli.main import cli, main
from mvp_edge.cli.options import numbers
from mvp_edge.runs.request import OPTIONS, POLICIES
from mvp_edge_export.errors import BadInput
from tests.support.tiny import command, in_process

HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "nltk", "scipy", "PIL")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command, as the words that call it."""
    found = [path]
    for name, one in group.commands.items():
        inside = isinstance(one, click.Group)
        found += commands(one, (*path, name)) if inside else [(*path, name)]  # type: ignore[arg-type]
    return found


def light(*words: str, cwd: Path | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command in a bare process without the heavy packages, and the processor seconds it took."""
    code = (
        "import sys, resource, atexit\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "@atexit.register\n"
        "def spent():\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('spent', used.ru_utime + used.ru_stime, file=sys.stderr)\n"
        f"sys.argv = ['mvp-edge', *{words!r}]\n"
        "from mvp_edge.cli.main import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    *_, spent = ended.stderr.splitlines()
    return ended, float(spent.removeprefix("spent "))


@pytest.mark.parametrize("words", [(), ("prune",), ("zoo", "build")])
def test_help_comes_at_once(words: tuple[str, ...]) -> None:
    ended, first = light(*words, "--help")
    assert ended.returncode == 0, ended.stderr
    assert min(first, light(*words, "--help")[1]) <= 0.3


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_helps_with_an_example(words: tuple[str, ...]) -> None:
    from click.testing import CliRunner

    shown = CliRunner().invoke(cli, [*words, "--help"]).output
    example = shown.partition("Example:\n")[2].splitlines()[0].strip()
    assert example.startswith(" ".join(("mvp-edge", *words)))
    assert "\\b" not in shown
    words_of_example = example.split()
    assert not [word for word in words_of_example if word.startswith("--") and word not in shown]
    if words not in ((), ("zoo",), ("device",), ("completion",)):
        assert "--json" in shown
        assert "--quiet" in shown


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    one: click.Command = cli
    for word in words:
        assert isinstance(one, click.Group)
        one = one.commands[word]
    for parameter in one.params:
        if isinstance(parameter, click.Option):
            said = (parameter.help or "").partition("[")[0]
            assert len(said.split()) >= 3, parameter.opts


def test_a_method_by_its_old_name_is_understood_and_its_new_name_said(place: Path) -> None:
    words = ("--device", "board.yaml", "--task", "task", "--backbone", "backbone.json")
    made = command("prune", *words, "--method", "taught", "--steps", "1", cwd=place)
    assert made.code == 0, made.err
    assert "--method taught is now called distill" in made.err
    assert json.loads((place / "runs/001/run.json").read_text())["method"] == "distill"
    again = command("prune", *words, "--method", "distill", "--steps", "1", cwd=place)
    assert again.code == 0, again.err
    assert "is now called" not in again.err
    first, second = (place / f"runs/00{n}/network.safetensors" for n in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_what_a_small_device_runs_needs_no_heavy_package(tiny: Path) -> None:
    for words in (
        ("device", "list"),
        ("device", "show", "rpi4"),
        ("device", "check", "board.yaml"),
        ("device", "schema"),
        ("zoo", "list", "zoo"),
    ):
        ended, _ = light(*words, "--json", cwd=tiny)
        assert ended.returncode == 0, ended.stderr
        json.loads(ended.stdout)
    ended, _ = light("prune", "--device", "rpi4", "--task", "task", "--zoo", "zoo", cwd=tiny)
    assert ended.returncode == 2
    assert "this command needs torch: pip install 'mvp-edge[server]'" in ended.stderr


def test_the_options_are_those_of_the_request() -> None:
    """An option that nobody hands on does nothing; one that the API has and nobody can type is lost."""
    in_process(_check_options)


def _check_options() -> None:
    from dataclasses import fields
    from importlib import import_module

    from mvp_edge import families
    from mvp_edge.methods.catalogue import METHODS
    from mvp_edge.runs.request import Request

    asked = {field.name for field in fields(Request)}
    typed = {parameter.name for parameter in cli.commands["prune"].params}
    assert typed - asked == {"out", "force", "as_json", "quiet"}
    assert asked <= typed
    assert OPTIONS["method"].choices == ("auto", *METHODS)
    for method in METHODS.values():
        module, _, name = method.function.partition(":")
        assert callable(getattr(import_module(f"mvp_edge.methods.{module}"), name))
    assert {policy for family in families.FAMILIES for policy in family.policies} == {*POLICIES}


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    for words, culprit in (
        (("--fast",), "--fast"),
        (("prun",), "'prun'"),
        (("zoo", "rm", "zoo"), "NAMES"),
        (("completion", "tcsh"), "'tcsh'"),
        (("bench", "bundle", "--seconds", "nan"), "nan"),
        (("prune", "--device"), "--device"),
    ):
        ended, _ = light(*words, cwd=tmp_path)
        assert ended.returncode == 2
        line, _spent = ended.stderr.splitlines()
        assert line.startswith("mvp-edge")
        assert culprit in line
        assert line.endswith("--help)")
        assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_number_formats_are_named_in_a_list() -> None:
    assert numbers(None) is None
    assert numbers("int8, fp32") == ("fp32", "int8")
    with pytest.raises(BadInput, match="precision int4: some of fp32, fp16, int8"):
        numbers("fp32,int4")


@pytest.mark.parametrize("pressed", [True, False])
def test_what_an_interrupt_broke_is_not_called_bad_input(
    pressed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Native code may swallow KeyboardInterrupt and fail of something else, which then looks like damage."""

    def reading(**_options: Any) -> None:
        with suppress(KeyboardInterrupt):
            if pressed:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
        raise BadInput("zoo entry a: damaged")

    monkeypatch.setattr("mvp_edge.cli.main.cli", reading)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert (ended.value.code, "damaged" in said) == ((130, False) if pressed else (2, True))
    assert said.startswith(
        "interrupted: finished work is kept" if pressed else "mvp-edge: zoo entry"
    )


def test_a_closed_pipe_is_no_error(tiny: Path) -> None:
    code = "import sys; sys.argv = ['mvp-edge', 'device', 'schema']; from mvp_edge.cli.main import main; main()"
    ended = subprocess.run(
        ["/bin/sh", "-c", f'{sys.executable} -c "{code}" | head -c 1'],
        capture_output=True,
        text=True,
        cwd=tiny,
    )
    assert "Traceback" not in ended.stderr
    assert ended.stdout == "{"


def test_completion_knows_commands_options_and_devices() -> None:
    def complete(line: str) -> set[str]:
        ended = subprocess.run(
            [sys.executable, "-c", "from mvp_edge.cli.main import main; main()"],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "_MVP_EDGE_COMPLETE": "bash_complete",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split(" ")) - 1),
            },
        )
        return {one.partition(",")[2] for one in ended.stdout.splitlines()}

    assert complete("mvp-edge p") == {"prune", "predict"}
    assert "--neighbours" in complete("mvp-edge prune --ne")
    assert complete("mvp-edge prune --device rpi") == {"rpi3", "rpi4", "rpi5", "rpi-zero2w"}
    assert complete("mvp-edge prune --method a") == {"auto", "ahnp"}
    ended, _ = light("completion", "bash")
    assert "_MVP_EDGE_COMPLETE" in ended.stdout


def test_json_is_one_document_and_quiet_is_quiet(place: Path) -> None:
    words = ("prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo", "--steps", "0")
    told = command(*words, "--json", cwd=place)
    json.loads(told.out)
    assert "similarity" in told.err
    quiet = command(*words, "--quiet", cwd=place)
    assert quiet.code == 0
    assert quiet.err == ""
    assert quiet.out.startswith("Run runs/002")
    for more in (("zoo", "list", "zoo"), ("zoo", "verify", "zoo"), ("device", "show", "rpi4")):
        ended = command(*more, "--json", "--quiet", cwd=place)
        json.loads(ended.out)
        assert ended.err == ""


class _Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    import mvp_edge.cli.console

    clock = _Clock()
    monkeypatch.setattr(mvp_edge.cli.console, "time", clock)
    return clock


def test_a_log_has_an_estimate_for_long_phases(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console(as_json=False, quiet=False) as console:
        for done in range(500, 1001, 50):  # a resumed phase: half was done before
            console.progress("tuning", done, 1000)
            clock.now += 4
        for done in range(3):
            console.progress("statistics", done, 2)
    assert capsys.readouterr().err.splitlines() == [
        "tuning …",
        "tuning: 700 of 1000, about 24 s left",
        "tuning: 900 of 1000, about 8.0 s left",
        "tuning: done in 40 s",
        "statistics …",
        "statistics: done in 0.0 s",
    ]


def test_a_terminal_has_a_bar_that_goes_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown: list[Any] = []
    with Console(as_json=False, quiet=False) as console:
        for done in range(0, 11, 5):
            console.progress("tuning", done, 10)
            shown.append([(task.description, task.completed) for task in console._bars.tasks])
        console.share("onnxruntime, 1 thread", 0.25)
        shown.append([(task.description, task.completed) for task in console._bars.tasks])
    assert shown == [[("tuning", 0)], [("tuning", 5)], [], [("onnxruntime, 1 thread", 25)]]
    assert "tuning: done in" in capsys.readouterr().err


def test_many_short_phases_are_told_with_their_share(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(as_json=True, quiet=False) as console:
        for what, share in (("one", 0.0), ("one", 0.4), ("two", 0.5), ("done", 1.0)):
            console.share(what, share)
        console.line("not with --json")
        console.result({"ü": 1}, "nor this")
    told = capsys.readouterr()
    assert told.err.splitlines() == ["  0 %  one", " 50 %  two"]
    assert json.loads(told.out) == {"ü": 1}
    with Console(as_json=False, quiet=True) as console:
        console.say("no")
        console.step("no")
        console.share("no", 0.5)
        console.progress("no", 1, 2)
        console.warn("yes")
    assert capsys.readouterr().err == "yes\n"
