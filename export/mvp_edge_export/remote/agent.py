"""The device's side of a connection: sent over it, does what is asked, leaves no process behind.

One file, the standard library alone, in the syntax of Python 3.6: a device whose Python is too old
must still be able to say so. Both sides speak in frames, of which ``Wire`` is the only definition:

    kind (1 byte), length (4 bytes), body
    J  a message, JSON      D  a piece of a file      O, E  what a program wrote      H  still here

What it keeps lies in the user's cache folder, each thing under the hash of what it was made from:

    ~/.cache/mvp-edge/files/<sha256>       what was sent
                      packages/<sha256>/   wheels of mvp-edge, unpacked
                      venvs/<key>/         virtual environments with the runtimes
                      tmp/<session>/       gone at the end of the connection

When the connection ends, or falls silent, everything that was started here is killed.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

PIECE = 65536
"""Bytes of a file, or of a program's output, in one frame at most."""
READY = ".mvp-edge-ready"
"""A virtual environment without this file was never finished."""

_HEADER = struct.Struct(">cI")
_AT_ONCE = 4096  # a pipe that is ready takes this many bytes without blocking (PIPE_BUF)
_DAY = 86400.0
_LINUX = sys.platform.startswith("linux")
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


class Gone(Exception):
    """The other side closed the connection."""


class Silent(Gone):
    """The other side stopped answering."""


class Wire:
    """Frames over two file descriptors.

    Args:
        source: where they come from.
        sink: where they go to.
        patience: seconds without a sign of life after which the other side counts as gone; None
            waits without end.
    """

    def __init__(self, source: int, sink: int, patience: "float | None" = None) -> None:
        self.source = source
        self.patience = patience
        self.sink = sink
        self._buffer = bytearray()

    def send(self, kind: bytes, body: bytes) -> None:
        """Write one frame; raises Gone, or Silent, when nobody reads it any more."""
        data = memoryview(_HEADER.pack(kind, len(body)) + body)
        while data:
            if not select.select([], [self.sink], [], self.patience)[1]:
                raise Silent()
            try:
                data = data[os.write(self.sink, data[:_AT_ONCE]) :]
            except OSError:
                raise Gone() from None

    def message(self, value: "dict[str, object]") -> None:
        """Write a message."""
        self.send(b"J", json.dumps(value).encode())

    def receive(self) -> "tuple[bytes, bytes]":
        """The next frame, signs of life left out; raises Gone when the other side is."""
        while True:
            while not self.whole():
                self.fill(self.patience)
            kind, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if kind != b"H":
                return kind, body

    def whole(self) -> bool:
        """Whether a frame can be taken without waiting."""
        if len(self._buffer) < _HEADER.size:
            return False
        return len(self._buffer) >= _HEADER.size + int(_HEADER.unpack_from(self._buffer)[1])

    def fill(self, timeout: "float | None") -> None:
        """Wait for bytes and take them in; None waits without end."""
        if not select.select([self.source], [], [], timeout)[0]:
            raise Silent()
        try:
            data = os.read(self.source, PIECE)
        except OSError:
            data = b""
        if not data:
            raise Gone()
        self._buffer += data

    def skip_past(self, marker: bytes, timeout: float) -> None:
        """Throw away what a login shell printed, up to and with ``marker``."""
        until = time.monotonic() + timeout
        while marker not in self._buffer:
            del self._buffer[: -len(marker)]
            self.fill(max(0.0, until - time.monotonic()))
        del self._buffer[: self._buffer.index(marker) + len(marker)]


def serve(marker: bytes, patience: float) -> None:
    """Answer requests until the connection ends; then end all that was started."""
    # Whatever else is printed here must not end up among the frames.
    wire = Wire(0, os.dup(1), patience)
    os.dup2(2, 1)
    adopt_orphans()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hung_up)
    device = Device(wire)
    try:
        os.write(wire.sink, marker)
        while True:
            request = json.loads(wire.receive()[1].decode())
            try:
                answer = getattr(device, "do_" + request.pop("do"))(**request)
            except OSError as error:
                place = error.filename or str(device.cache)
                answer = {"error": error.strerror or str(error), "errno": error.errno}
                answer["place"] = os.fsdecode(place)
            wire.message(answer)
    except Gone:
        pass
    finally:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        end_all()
        device.clean()


def _hung_up(_number: int, _frame: object) -> None:
    raise Gone()


class Device:
    """What can be asked for: each ``do_`` takes a message's values and returns the answer's."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.cache = cache_folder()
        self._session = None  # type: Path | None
        self._unfinished = None  # type: Path | None

    def do_probe(self) -> "dict[str, object]":
        """What an environment is made from here; nothing is written to find it out."""
        there = self.cache
        while not there.is_dir():
            there = there.parent
        modules = ("venv", "ensurepip", "ssl")
        return {
            "system": platform.system(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "executable": sys.executable,
            "lacks": [name for name in modules if importlib.util.find_spec(name) is None],
            "arch": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip(),
            "disk_free": shutil.disk_usage(str(there)).free,
            "cache": str(self.cache),
        }

    def do_missing(self, files: "list[str]") -> "dict[str, object]":
        """Which of these hashes have to be sent; a file that was damaged meanwhile is one."""
        return {"missing": [one for one in files if not self._sound(one)]}

    def do_put(self, sha256: str, size: int) -> "dict[str, object]":
        """Take in a file: pieces follow this message; it has its name when its hash is right."""
        digest = hashlib.sha256()
        left = size
        try:
            partial = self._temporary() / sha256
            with partial.open("wb") as stream:
                while left > 0:
                    piece = self._wire.receive()[1]
                    left -= len(piece)
                    digest.update(piece)
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            if digest.hexdigest() != sha256:
                return {"error": "it arrived damaged", "place": str(partial)}
            self._kept(sha256).parent.mkdir(parents=True, exist_ok=True)
            partial.replace(self._kept(sha256))
        except OSError as error:
            while left > 0:
                left -= len(self._wire.receive()[1])
            error.filename = str(self._kept(sha256))
            raise
        finally:
            with suppress(OSError):
                (self._temporary() / sha256).unlink()  # unless it got its name
        return {}

    def do_lay(self, files: "dict[str, str]") -> "dict[str, object]":
        """A folder for this session in which files that were sent lie under these paths."""
        folder = Path(tempfile.mkdtemp(dir=str(self._temporary())))
        for path, sha256 in files.items():
            there = folder / path
            there.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(str(self._kept(sha256)), str(there))
            except OSError:  # a file system without hard links
                shutil.copyfile(str(self._kept(sha256)), str(there))
        return {"folder": str(folder)}

    def do_forget(self, files: "list[str]", folder: str) -> "dict[str, object]":
        """Remove files that were sent, by their hashes, and the folder in which they were laid."""
        for sha256 in files:
            with suppress(FileNotFoundError):
                self._kept(sha256).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        return {}

    def do_unpack(self, sha256: str) -> "dict[str, object]":
        """The folder in which a wheel that was sent lies unpacked."""
        folder = self.cache / "packages" / sha256
        if not folder.is_dir():
            partial = tempfile.mkdtemp(dir=str(self._temporary()))
            with zipfile.ZipFile(str(self._kept(sha256))) as wheel:
                wheel.extractall(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                Path(partial).rename(folder)
            except OSError:  # another connection was faster
                if not folder.is_dir():
                    raise
        return {"folder": str(folder)}

    def do_ready(self, key: str) -> "dict[str, object]":
        """The Python of a virtual environment that is finished; None if there is none."""
        folder = self.cache / "venvs" / key
        python = folder / "bin" / "python"
        finished = (folder / READY).exists() and python.exists()
        return {"python": str(python) if finished else None}

    def do_install(self, key: str, arguments: "list[str]") -> "dict[str, object]":
        """Make a virtual environment: ``pip install`` with these arguments; its output is sent."""
        folder = self.cache / "venvs" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Held until the connection ends.
        lock = os.open(str(folder) + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # another connection is at it
                self._listen(1.0)
        if self.do_ready(key)["python"] is None:
            shutil.rmtree(str(folder), ignore_errors=True)
            self._unfinished = folder
            python = str(folder / "bin" / "python")
            for argv in (
                [sys.executable, "-m", "venv", "--without-pip", str(folder)],
                [
                    python,
                    "-m",
                    "ensurepip",
                    "--default-pip",
                ],  # venv would keep its errors to itself
                [python, "-m", "pip", "install", "--no-cache-dir", *arguments],
            ):
                code = self._run(argv, {})
                if code != 0:
                    self.clean_unfinished()
                    return {"python": None, "code": code}
            (folder / READY).touch()
            self._unfinished = None
        return self.do_ready(key)

    def do_run(self, argv: "list[str]", environment: "dict[str, str]") -> "dict[str, object]":
        """Run a program, no shell in between; its output is sent while it runs."""
        return {"code": self._run(argv, environment)}

    def _run(self, argv: "list[str]", environment: "dict[str, str]") -> int:
        # What the login sets for other Pythons must not reach this one.
        own = {name: one for name, one in os.environ.items() if not name.startswith("PYTHON")}
        own["TMPDIR"] = str(self._temporary())
        own.update(environment)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=own,
            cwd=str(self._temporary()),
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        pipes = {process.stdout.fileno(): b"O", process.stderr.fileno(): b"E"}
        heard = time.monotonic()
        with process.stdout, process.stderr:
            while pipes or process.poll() is None:
                wait = 1.0 if pipes else 0.02
                ready = select.select([self._wire.source, *pipes], [], [], wait)[0]
                if self._wire.source in ready:
                    self._wire.fill(0.0)
                    heard = time.monotonic()
                elif time.monotonic() - heard > (self._wire.patience or _DAY):
                    raise Silent()
                for pipe in set(ready) & set(pipes):
                    data = os.read(pipe, PIECE)
                    if data:
                        self._wire.send(pipes[pipe], data)
                    else:
                        del pipes[pipe]
                if process.poll() is not None:
                    end_all()  # what it left behind keeps its pipes open
        end_all()
        return process.returncode

    def _listen(self, seconds: float) -> None:
        if select.select([self._wire.source], [], [], seconds)[0]:
            self._wire.fill(0.0)

    def clean(self) -> None:
        """Remove what belongs to this connection alone."""
        self.clean_unfinished()
        if self._session:
            shutil.rmtree(str(self._session), ignore_errors=True)

    def clean_unfinished(self) -> None:
        """Remove a virtual environment whose making was cut short."""
        if self._unfinished:
            shutil.rmtree(str(self._unfinished), ignore_errors=True)
            self._unfinished = None

    def _temporary(self) -> Path:
        """This connection's own folder; those of connections that were killed go after a day."""
        if self._session is None:
            parent = self.cache / "tmp"
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.iterdir():
                if left.exists() and time.time() - left.stat().st_mtime > _DAY:
                    shutil.rmtree(str(left), ignore_errors=True)
            self._session = Path(tempfile.mkdtemp(dir=str(parent)))
        return self._session

    def _kept(self, sha256: str) -> Path:
        return self.cache / "files" / sha256

    def _sound(self, sha256: str) -> bool:
        digest = hashlib.sha256()
        try:
            with self._kept(sha256).open("rb") as stream:
                for piece in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(piece)
        except FileNotFoundError:
            return False
        return digest.hexdigest() == sha256


def cache_folder() -> Path:
    """The user's cache folder for mvp-edge on this device."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "mvp-edge"


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that ``end_all`` finds them."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_all() -> None:
    """Kill all descendants of this process, whatever groups they moved to, and wait for them."""
    until = time.monotonic() + 10
    while _LINUX and time.monotonic() < until:
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def descendants(root: int) -> "list[int]":
    """Processes below ``root``, as /proc tells it."""
    children = {}  # type: dict[int, list[int]]
    for process in Path("/proc").glob("[0-9]*"):
        # "pid (name, which may hold anything) state parent …"
        fields = _read(process / "stat").rpartition(")")[2].split()
        if fields:
            children.setdefault(int(fields[1]), []).append(int(process.name))
    found = []  # type: list[int]
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _die_with_parent() -> None:
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LINUX:  # elsewhere the probe is all that is asked for
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
