"""Another machine, reached through ssh, on which mvp-edge runs.

    with connect("pi@raspberrypi", progress) as host:
        host.require()                                # BadInput: what stands in the way, in one line
        host.install(["onnxruntime"])                 # a virtual environment of its own, reused
        folder = host.send({"b/model.onnx": path})    # by hash: what is there is not sent again
        printed = host.mvp_edge(["bench", f"{folder}/b", "--json"])   # arguments see no shell

At the end of the block, however it comes, nothing that was started runs on. All that is kept there
lies in the user's cache folder, ``~/.cache/mvp-edge``.
"""

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from pydantic import BaseModel, ConfigDict

from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed, MvpEdgeError
from mvp_edge_export.quantities import format_bytes
from mvp_edge_export.remote.ssh import Channel, pieces_of
from mvp_edge_export.remote.wheels import fetch, own_wheel, pip_failure, requirements
from mvp_edge_export.storage import sha256_file, sha256_json

OLDEST_PYTHON = (3, 11)
Progress = Callable[[str, float], None]
"""Told what is done, and the share of it that is, 0..1."""

_RUN = "from mvp_edge.cli.main import main; main()"
# An environment with ONNX Runtime takes 219 MiB, with both runtimes 390 (x86-64, Python 3.11).
_ROOM, _ROOM_EACH = 50 * 2**20, 180 * 2**20


class Facts(BaseModel):
    """What an environment for mvp-edge is made from on a host; ``running.doctor`` knows more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    python: str
    executable: str
    lacks: tuple[str, ...]
    """Of the modules that a virtual environment takes."""
    arch: str
    """As its kernel names it."""
    libc: str
    """``glibc 2.36``; empty where Python does not know."""
    disk_free: int
    """Bytes, where the cache folder is or would be."""
    cache: str

    def obstacle(self) -> str | None:
        """Why no environment can be made there, and what to do; None if nothing is known."""
        if self.system != "Linux":
            return f"it runs {self.system}; measuring needs Linux"
        if tuple(map(int, self.python.split(".")[:2])) < OLDEST_PYTHON:
            return (
                f"Python {self.python} ({self.executable}) is too old: 3.11 or newer is needed, as "
                "Debian 12 and the Raspberry Pi OS made from it have"
            )
        if not self.libc.startswith("glibc"):
            return "its C library is not glibc, and no runtime has a wheel for another"
        if self.lacks:
            return (
                f"its Python {self.python} lacks {', '.join(self.lacks)}: "
                "`sudo apt install python3-venv` there"
            )
        return None

    @property
    def tags(self) -> list[str]:
        """Platform tags of the wheels that run there, the newest first (PEP 600)."""
        minor = int(self.libc.rpartition(".")[2])
        return [
            *(f"manylinux_2_{one}_{self.arch}" for one in range(minor, 16, -1)),
            f"manylinux2014_{self.arch}",
        ]


class Host:
    """A host that is connected; made by ``connect``."""

    def __init__(self, channel: Channel, progress: Progress) -> None:
        self._channel = channel
        self._progress = progress
        self.target = channel.target
        self.step("looking at it")
        self.facts = Facts.model_validate(channel.ask("probe"))
        self._python = self._package = ""
        self._laid: dict[str, list[str]] = {}

    def require(self, disk: int = 0) -> None:
        """Say what stands in the way of an environment, or of so many bytes, before anything is copied.

        Raises:
            BadInput: something does, in one line.
        """
        facts = self.facts
        problem = facts.obstacle()
        if problem is None and disk > facts.disk_free:
            problem = (
                f"{format_bytes(facts.disk_free)} are free in {facts.cache}, "
                f"{format_bytes(disk)} are needed; make room there"
            )
        if problem is not None:
            raise BadInput(f"{self.target}: {problem}")

    def send(self, files: Mapping[str, Path]) -> str:
        """Send files that are not there yet.

        Args:
            files: relative path there → file here.

        Returns:
            The folder there in which they lie until the connection ends.

        Raises:
            BadInput: no room for them, or the connection was lost.
        """
        hashes = {path: sha256_file(file) for path, file in files.items()}
        self._channel.doing = "looking for what is there already"
        missing = self._channel.ask("missing", files=sorted(set(hashes.values())))["missing"]
        waiting = {hashes[path]: file for path, file in files.items() if hashes[path] in missing}
        sizes = {sha256: file.stat().st_size for sha256, file in waiting.items()}
        self.require(disk=sum(sizes.values()))
        if waiting:
            total = sum(sizes.values())
            what = f"copying {_counted(len(waiting), 'file')}, {format_bytes(total)}"
            self.step(what)
            done = 0
            for sha256, file in waiting.items():
                pieces = pieces_of(file)
                self._channel.ask("put", pieces=pieces, sha256=sha256, size=sizes[sha256])
                done += sizes[sha256]
                self._progress(f"{self.target}: {what}", done / total)
        folder = str(self._channel.ask("lay", files=hashes)["folder"])
        self._laid[folder] = sorted(set(hashes.values()))
        return folder

    def forget(self, folder: str) -> None:
        """Remove a folder that ``send`` laid files in, and the files, which will not be needed again there."""
        self._channel.ask("forget", files=self._laid.pop(folder), folder=folder)

    def install(
        self, runtimes: Sequence[str], *, avoid: Sequence[str] = (), offline: bool = False
    ) -> None:
        """Put this mvp-edge there, and the runtimes in a virtual environment; what is there is used.

        Args:
            runtimes: extras of mvp-edge: ``onnxruntime``, ``openvino``.
            avoid: requirements that rule releases out, e.g. ``onnxruntime!=1.21.0``.
            offline: the host reaches no package index: its wheels are fetched here and copied.

        Raises:
            BadInput: something stands in the way.
        """
        needed = requirements(runtimes, avoid)
        key = sha256_json([needed, self.facts.python, self.facts.executable])[:32]
        self.require()
        python = self._channel.ask("ready", key=key)["python"]
        if python is None:
            self.require(disk=_ROOM + len(runtimes) * _ROOM_EACH)
        with tempfile.TemporaryDirectory() as folder:
            wheel = own_wheel(Path(folder))
            self.send({wheel.name: wheel})
            self._package = self._channel.ask("unpack", sha256=sha256_file(wheel))["folder"]
        self._python = python or self._make(key, needed, ", ".join(runtimes), offline)

    def _make(self, key: str, needed: Sequence[str], names: str, offline: bool) -> str:
        if offline:
            wheels = fetch(needed, self.facts.python, self.facts.tags, self.step)
            folder = self.send({wheel.name: wheel for wheel in wheels})
            source = ["--isolated", "--no-index", "--find-links", folder]
        else:
            source = ["--retries", "2"]
        fixed = ["--no-input", "--disable-pip-version-check", "--only-binary", ":all:"]
        said: list[bytes] = []
        self.step(f"installing {names}")
        answer = self._channel.ask(
            "install",
            key=key,
            arguments=[*fixed, *source, *needed],
            hear=lambda stream, data: said.append(data),
        )
        if answer["python"] is None:
            text = b"".join(said).decode(errors="replace")
            reason = pip_failure(text, f"{self.facts.arch}, Python {self.facts.python}")
            hint = "" if offline or "index" not in reason else "; --offline copies all from here"
            raise BadInput(f"{self.target}: {reason}{hint}")
        return str(answer["python"])

    def mvp_edge(
        self,
        arguments: Sequence[str],
        *,
        accept: Sequence[int] = (0,),
        hear: Callable[[str], None] = lambda line: None,
    ) -> str:
        """Run an mvp-edge command there, after ``install``.

        Args:
            arguments: as they are; no shell sees them.
            accept: exit codes that are not an error.
            hear: told each line that it writes on stderr, as it comes.

        Returns:
            What it printed.

        Raises:
            MvpEdgeError: the command's own error, or that of a lost connection.
        """
        assert self._python, "install first"
        lines: list[str] = []
        printed: list[bytes] = []
        rest = b""

        def listen(stream: bytes, data: bytes) -> None:
            nonlocal rest
            if stream == b"O":
                printed.append(data)
                return
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                lines.append(line.decode(errors="replace"))
                hear(lines[-1])

        self._channel.doing = f"running mvp-edge {shlex.quote(arguments[0])}"
        argv = [self._python, "-P", "-c", _RUN, *arguments]
        environment = {"PYTHONPATH": self._package, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}
        code = self.run(argv, environment, listen)
        if code not in accept:
            raise _failed(self.target, arguments[0], code, lines)
        return b"".join(printed).decode()

    def python(self, program: str) -> str:
        """Run a program text with the host's own Python, which needs nothing installed.

        Args:
            program: its text; it must be one for that Python (see ``facts.python``).

        Returns:
            What it printed.

        Raises:
            BadInput: it failed, or the connection was lost.
        """
        printed: dict[bytes, bytes] = {b"O": b"", b"E": b""}

        def listen(stream: bytes, data: bytes) -> None:
            printed[stream] += data

        self.step("asking its Python")
        code = self.run([self.facts.executable, "-c", program], {}, listen)
        if code != 0:
            said = printed[b"E"].decode(errors="replace").strip().splitlines()
            raise BadInput(f"{self.target}: {said[-1] if said else f'exit code {code}'}")
        return printed[b"O"].decode()

    def tell(self, what: str) -> None:
        """Say something about the host."""
        self._progress(f"{self.target}: {what}", 0.0)

    def step(self, what: str) -> None:
        """Report what is done from now on; the error of a lost connection names it too."""
        self._channel.doing = what
        self.tell(what)

    def run(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        hear: Callable[[bytes, bytes], None] = lambda stream, data: None,
    ) -> int:
        """Run a program on the host; no shell sees its arguments.

        Args:
            argv: the program and its arguments.
            environment: variables that it gets in addition to those of the login.
            hear: called with each piece of output as it arrives: the stream, ``b"O"`` (stdout) or
                ``b"E"`` (stderr), and the bytes.

        Returns:
            Its exit code; a negative number is the signal that ended it.

        Raises:
            BadInput: the connection was lost.
        """
        answer = self._channel.ask("run", argv=[*argv], environment={**environment}, hear=hear)
        return int(answer["code"])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@contextmanager
def connect(target: str, progress: Progress = lambda what, share: None) -> Iterator[Host]:
    """Connect to a host for the length of a ``with`` block.

    Args:
        target: what `ssh` takes: a host, an alias, ``user@host``, ``ssh://user@host:port``.
        progress: told what is being done.

    Raises:
        BadInput: no connection (unknown key, refused, unreachable, …), or no Python 3 there.
    """
    progress(f"{target}: connecting", 0.0)
    channel = Channel(target)
    try:
        yield Host(channel, progress)
    finally:
        channel.close()


def _failed(target: str, command: str, code: int, lines: Sequence[str]) -> MvpEdgeError:
    kinds: dict[int, type[MvpEdgeError]] = {3: BudgetMissed, 4: GateFailed}
    kind = kinds.get(code, BadInput)
    if code < 0:
        reason = f"mvp-edge {command} was ended there by {Signals(-code).name}"
        if code == -9:
            reason += "; the kernel does that when memory runs out"
        return kind(f"{target}: {reason}")
    said = [line for line in lines if line.startswith("mvp-edge")] or list(lines)
    reason = said[-1].removeprefix("mvp-edge: ") if said else f"exit code {code}"
    return kind(f"{target}: {reason}")
