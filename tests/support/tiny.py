"""A backbone, a zoo and a task small enough to be made in seconds, and commands run as a shell would.

`command` starts each command as a process of its own, forked from a server that has done nothing but
import: exit codes, signals, streams and working folder are those of a user's command, without the
seconds that importing PyTorch takes.
"""

import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN, UNSEEN = NAMES[:6], NAMES[7:]
IMAGES = 20
"""Of each class."""
PATIENCE = 300
"""Seconds after which a command has hung, on a busy machine too."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["mvp_edge.cli.main", "mvp_edge.runs.deliver", "mvp_edge.reporting", "nltk"]
)


@dataclass(frozen=True)
class Ended:
    """A process that came to its end."""

    code: int
    """Exit code; −9 when SIGKILL ended it."""
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails when there is more, or less, than that and remarks."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("mvp-edge")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), self.err
        return lines[0]


@dataclass(frozen=True)
class At:
    """A moment of a command: when ``phase`` reports ``done``, or just before ``file`` gets its name."""

    phase: str = ""
    done: int = 0
    file: str = ""
    signal: int = signal.SIGKILL


def command(
    *words: str | Path,
    cwd: Path,
    at: At | None = None,
    file_limit: int | None = None,
    wordnet: bool = False,
    patch: Mapping[str, Mapping[str, Any]] | None = None,
) -> Ended:
    """Run ``mvp-edge WORDS`` in ``cwd``.

    ``file_limit``: bytes that a file may have, as on a disk that is nearly full; ``wordnet``: leave
    the machine's WordNet in sight (reading it takes longer than all else); ``patch``: module → name
    → value, set before the command begins.
    """
    said, told = cwd.parent / f"{cwd.name}.out", cwd.parent / f"{cwd.name}.err"
    arguments = ([str(w) for w in words], cwd, (said, told), at, file_limit, wordnet, patch or {})
    started = _SERVER.Process(target=_main, args=arguments)
    started.start()
    started.join(PATIENCE)
    assert started.exitcode is not None, f"still running after {PATIENCE} s"
    return Ended(started.exitcode, said.read_text("utf-8"), told.read_text("utf-8"))


GIVEN = {"--device": "board.yaml", "--task": "task", "--zoo": "zoo", "--steps": "1"}


def prune(place: Path, *extra: str, drop: tuple[str, ...] = (), **changed: str) -> Ended:
    """`mvp-edge prune` with valid arguments, but for these."""
    given = {**GIVEN, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    words = [word for key, value in given.items() if key not in drop for word in (key, value)]
    return command("prune", *words, *extra, cwd=place)


def refused(ended: Ended, place: Path, *culprits: str, before: set[str]) -> None:
    """Exit code 2, one line with the culprits, and the files in ``place`` are those of ``before``."""
    assert ended.code == 2, ended.err
    for culprit in culprits:
        assert culprit in ended.error, ended.error
    assert ended.out == ""
    assert tree(place) == before


def tree(place: Path) -> set[str]:
    """Every file and folder below ``place``."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def halve(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def in_process(work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work`` in such a process, without WordNet; fails when it does."""
    started = _SERVER.Process(target=_call, args=(work, arguments))
    started.start()
    started.join(PATIENCE)
    assert started.exitcode == 0


def _call(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _hide_wordnet()
    work(*arguments)


def _hide_wordnet() -> None:
    import nltk.data

    import mvp_edge.zoo.wordnet

    nltk.data.path = []
    for name in ("WNHOME", "WNSEARCHDIR"):
        os.environ.pop(name, None)
    setattr(mvp_edge.zoo.wordnet, "SYSTEM_FOLDERS", ())  # noqa: B010 - of another length


def _main(
    words: list[str],
    cwd: Path,
    streams: tuple[Path, Path],
    at: At | None,
    file_limit: int | None,
    wordnet: bool,
    patch: Mapping[str, Mapping[str, Any]],
) -> None:
    import importlib
    import warnings

    import torch

    from mvp_edge.cli.main import main

    os.chdir(cwd)
    # The suite may itself have been started in the background, where Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, descriptor in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if not wordnet:
        _hide_wordnet()
    for module, values in patch.items():
        vars(importlib.import_module(module)).update(values)
    if at is not None:
        _arm(at)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["mvp-edge", *words]
    main()


def _arm(at: At) -> None:
    """Send this process a signal at that moment."""
    from mvp_edge.cli.console import Console

    shown, renamed = Console.progress, Path.replace

    def progress(self: Console, phase: str, done: int, total: int) -> None:
        shown(self, phase, done, total)
        if (phase, done) == (at.phase, at.done):
            os.kill(os.getpid(), at.signal)

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == at.file:
            os.kill(os.getpid(), at.signal)
        return renamed(self, target)

    Console.progress = progress  # type: ignore[method-assign]
    Path.replace = replace  # type: ignore[method-assign,assignment]


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One worker of a test run at a time."""
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(folder: Path) -> None:
    """Backbone, zoo and task, at ``folder`` when all is there."""
    partial = folder.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_digits(partial / "digits", KNOWN)
    write_digits(partial / "task", UNSEEN)
    in_process(_train, partial)
    built = command(
        "zoo", "build", "--backbone", "backbone.json", "--tasks", "digits", "--sample", "4x3",
        "--zoo", "zoo", "--keep", "0.5", "--steps", "10", "--augment", "shift",
        cwd=partial,
    )  # fmt: skip
    assert built.code == 0, built.err
    (partial / "board.yaml").write_text(board())
    partial.rename(folder)


def board(name: str = "board", **budgets: str) -> str:
    """A device profile that rounds to 2 channels, with these budgets alone."""
    limits = {"flops": "null", "params": "null", "file": "null", "memory": "null", **budgets}
    lines = [f"  {key}: {value}" for key, value in limits.items()]
    head = f"schema: 1\nid: {name}\nextends: rpi4\nprune: {{round_to: 2, min_channels: 2}}"
    return "\n".join([head, "budgets:", *lines, "  latency: {p90: null}\n"])


def write_digits(folder: Path, names: tuple[str, ...]) -> None:
    """Class folders of real handwritten digits, 8×8 pixels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in (digits.target == NAMES.index(name)).nonzero()[0][:IMAGES]:
            grey = (digits.images[index] * (255 / 16)).astype("uint8")
            Image.fromarray(grey).save(folder / name / f"{index:04d}.png")


def _train(folder: Path) -> None:
    """A ResNet of four thin stages that has seen the known digits for 20 steps."""
    import torch
    from safetensors.torch import save_file

    from mvp_edge.pruning.problem import Problem
    from mvp_edge.pruning.training import fine_tune
    from mvp_edge.recipe import Recipe
    from mvp_edge.subnetwork.architecture import Architecture
    from mvp_edge.subnetwork.backbone import Backbone
    from mvp_edge.tasks.task import Task
    from mvp_edge_export.images import Preprocess
    from mvp_edge_export.storage import sha256_file, write_json

    torch.set_num_threads(1)
    torch.manual_seed(0)
    changes = {
        "conv1": "Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)",
        "maxpool": "Identity()",
    }
    arguments = {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]}
    architecture = Architecture("resnet18", changes, arguments, 16)
    preprocess = Preprocess(16, (0.31, 0.31, 0.31), (0.37, 0.37, 0.37))
    task = Task.open(folder / "digits")
    fresh = Backbone("tiny", architecture, architecture.build(6), preprocess, task.classes, "", "")
    problem = Problem(
        backbone=fresh,
        policy="tied",
        classes=6,
        train=task.images("train", preprocess),
        validation=None,
        widths={},
        recipe=Recipe(20, 32, lr=0.1, augment=("shift",), head="random", statistics=False),
    )
    trained = fine_tune(problem, fresh.with_head(6), {}).model
    save_file(trained.state_dict(), folder / "backbone.safetensors")
    write_json(
        folder / "backbone.json",
        {
            "schema": 1,
            "name": "tiny",
            "library": "timm",
            "architecture": "resnet18",
            "changes": changes,
            "arguments": arguments,
            "weights": "backbone.safetensors",
            "sha256": sha256_file(folder / "backbone.safetensors"),
            "num_classes": 6,
            "input_size": [3, 16, 16],
            "mean": preprocess.mean,
            "std": preprocess.std,
            "classes": task.classes,
        },
    )
