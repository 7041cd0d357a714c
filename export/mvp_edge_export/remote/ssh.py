"""A connection through the system's OpenSSH client, and what its failures mean.

    Target → `ssh -T -o BatchMode=yes … -- host 'exec sh -c …'` → the agent, sent over it → Channel

Host keys, identities, ports, jump hosts and aliases are ssh's own affair: ``known_hosts`` and
``~/.ssh/config`` hold as they do for `ssh host`. Nothing is asked: a host whose key is not known, or
that wants a password, is refused with what to do. ``$MVP_EDGE_SSH`` replaces the `ssh` in front, e.g.
``ssh -F my_config``.
"""

import errno
import json
import os
import re
import secrets
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvp_edge_export.errors import BadInput
from mvp_edge_export.remote.agent import PIECE, Gone, Silent, Wire

CONNECT_SECONDS = 20
"""Until a host that does not answer is given up."""
START_SECONDS = 60.0
"""Until a login that does not come to an end is given up."""
SILENCE_SECONDS = 60.0
"""Without a sign of life from here, after which the agent ends everything there."""
CLOSE_SECONDS = 15.0
"""That the agent has to end what it started, once we have closed our end."""
CONNECTING = "connecting"

_OPTIONS = (
    # Neither a terminal nor questions; binary data goes through.
    *("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    # A dead line is noticed within 45 seconds.
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"),
    # What a config may ask for at this host that would get in the way.
    *("-a", "-x", "-o", "ClearAllForwardings=yes", "-o", "ControlMaster=no"),
    *("-o", "RemoteCommand=none"),
)

NO_PYTHON = "mvp-edge: no python3"
# The newest Python that can be used, else the one there is: it will say what it is. In one line and
# without ! or \, so that every login shell hands it on as it stands.
_START = (
    "for p in python3 python3.14 python3.13 python3.12 python3.11; do "
    '"$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && exec "$p" -c "$0"; '
    f'done; command -v python3 >/dev/null || {{ echo "{NO_PYTHON}" >&2; exit 127; }}; '
    'exec python3 -c "$0"'
)
_BOOTSTRAP = 'import sys; exec(compile(sys.stdin.buffer.read({}), "mvp-edge agent", "exec"))'


class Channel:
    """The agent on a host, asked over one ssh connection; ``close`` ends both.

    Args:
        target: what `ssh` takes: a host, an alias, ``user@host``, ``ssh://user@host:port``.

    Raises:
        BadInput: no connection, or no Python 3 there.
    """

    def __init__(self, target: str) -> None:
        self.target = _checked(target)
        self.doing = CONNECTING
        """What is going on, in words that follow "while"."""
        self._sending = threading.Lock()
        self._closed = threading.Event()
        marker = secrets.token_hex(16)
        agent = Path(__file__).with_name("agent.py").read_bytes()
        program = agent + f"\nserve({marker.encode()!r}, {SILENCE_SECONDS})\n".encode()
        argv = [*_ssh(), *_OPTIONS, "--", self.target, _start(len(program))]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the channel
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C comes to us, and we end it
            )
        except OSError as error:
            self._log.close()
            raise BadInput(
                f"{argv[0]}: {error.strerror}: the OpenSSH client is needed here: "
                "sudo apt install openssh-client"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._wire = Wire(self._process.stdout.fileno(), self._process.stdin.fileno())
        try:
            self._begin(program, marker)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def _begin(self, program: bytes, marker: str) -> None:
        assert self._process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # what ssh said about it is read below
                self._process.stdin.write(program)
            self._wire.skip_past(marker.encode(), START_SECONDS)
        except Silent:
            raise BadInput(
                f"{self.target}: no answer within {START_SECONDS:g} s; does its login wait for "
                f"something? Try: ssh {shlex.quote(self.target)} true"
            ) from None
        except Gone:
            raise self._lost() from None

    def ask(
        self,
        do: str,
        *,
        pieces: Iterable[bytes] = (),
        hear: Callable[[bytes, bytes], None] = lambda stream, data: None,
        **values: object,
    ) -> dict[str, Any]:
        """Send a request, with the pieces of a file behind it, and wait for the answer.

        Args:
            do: one of the agent's requests.
            pieces: bytes of a file, in pieces of at most ``PIECE``.
            hear: told (``b"O"`` or ``b"E"``, bytes) whenever a program there wrote something.
            values: the request's.

        Raises:
            BadInput: it could not be done there, or the connection was lost.
        """
        try:
            with suppress(Gone):  # an answer may still be on its way
                self._send(b"J", json.dumps({"do": do, **values}).encode())
                for piece in pieces:
                    self._send(b"D", piece)
            while True:
                kind, body = self._wire.receive()
                if kind == b"J":
                    break
                hear(kind, body)
        except Gone:
            raise self._lost() from None
        answer: dict[str, Any] = json.loads(body)
        if "error" in answer:
            raise BadInput(_refusal(self.target, self.doing, answer))
        return answer

    def close(self) -> None:
        """End the connection; the agent ends what it started before it ends itself."""
        self._hang_up()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _send(self, kind: bytes, body: bytes) -> None:
        with self._sending:
            self._wire.send(kind, body)

    def _beat(self) -> None:
        while not self._closed.wait(SILENCE_SECONDS / 4):
            with self._sending, suppress(Gone):
                if not self._closed.is_set():
                    self._wire.send(b"H", b"")

    def _hang_up(self) -> None:
        """Close our end; ssh has some time to follow."""
        self._closed.set()
        assert self._process.stdin is not None
        if self._sending.acquire(timeout=1):  # else a heartbeat is stuck in a line that is dead
            self._process.stdin.close()
            self._sending.release()
        try:
            self._process.wait(timeout=CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()

    def _lost(self) -> BadInput:
        """Why the connection ended, from what ssh said."""
        self._hang_up()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").replace("\r", "")
        return BadInput(f"{self.target}: {explain(self.target, said, self.doing)}")


def pieces_of(path: Path) -> Iterable[bytes]:
    """A file's bytes in pieces that fit a frame."""
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece


def explain(target: str, said: str, doing: str) -> str:
    """One line on why ssh ended, and what to do.

    Args:
        target: as the user wrote it.
        said: what ssh, and what it started, wrote on stderr.
        doing: what was going on, in words that follow "while".
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    host = shlex.quote(target)
    if doing == CONNECTING:
        for pattern, meaning in _MEANINGS:
            if match := re.search(pattern, said, re.MULTILINE):
                words = " ".join(match[0].split())
                return meaning.format(host=host, said=words, **_known_hosts(said))
        return f"ssh could not connect: {lines[-1] if lines else 'it said nothing'}"
    reason = f" ({lines[-1]})" if lines else ""
    return (
        f"the connection was lost while {doing}{reason}; what was started there is ended with it, "
        "what was copied is kept: run the same command again"
    )


_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known here: if it was set up anew, forget the old one with "
        "`ssh-keygen {file}-R {key_host}`; if it was not, somebody else may be answering",
    ),
    (
        r"Host key verification failed",
        "its host key is not known here: connect once with `ssh {host}`, compare the key's "
        "fingerprint, and run this again",
    ),
    (
        r"Permission denied \((.*)\)|Too many authentication failures|No supported authentication",
        "it does not let you in with the keys that ssh offers ({said}); nothing is asked, so: "
        "`ssh-copy-id {host}`, and for a key with a passphrase `ssh-add`; then try `ssh {host} true`",
    ),
    (
        r"Could not resolve hostname.*",
        "no host of that name ({said}); a port is written ssh://user@host:port",
    ),
    (
        r"^.*(Connection refused|No route to host|Network is unreachable|[Cc]onnection timed out)",
        "it cannot be reached ({said}): is it on, and does it run an ssh server?",
    ),
    (
        rf"^{NO_PYTHON}",
        "it has no python3: `sudo apt install python3 python3-venv` there; 3.11 or newer is needed",
    ),
)


def _known_hosts(said: str) -> dict[str, str]:
    """What `ssh-keygen -R` needs, from ssh's words about a key that changed."""
    file = re.search(r"^Offending \S+ key in (.*):\d+$", said, re.MULTILINE)
    host = re.search(r"^Host key for (\S+) has changed", said, re.MULTILINE)
    return {
        "file": f"-f {shlex.quote(file[1])} " if file else "",
        "key_host": shlex.quote(host[1]) if host else "HOST",
    }


def _refusal(target: str, doing: str, answer: dict[str, Any]) -> str:
    reason = f"{answer['place']}: {answer['error']}"
    if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = f"its disk is full ({reason}); make room there"
    return f"{target}: stopped while {doing}: {reason}; nothing was left half-written"


def _ssh() -> list[str]:
    return shlex.split(os.environ.get("MVP_EDGE_SSH", "")) or ["ssh"]


def _start(length: int) -> str:
    """The remote command: every login shell reads it alike."""
    return f"exec /bin/sh -c {shlex.quote(_START)} {shlex.quote(_BOOTSTRAP.format(length))}"


def _checked(target: str) -> str:
    if not target or target.startswith("-") or re.search(r"[\s\x00-\x1f]", target):
        raise BadInput(
            f"{target!r}: not a host; write it as for ssh, e.g. pi@raspberrypi", field="on"
        )
    return target
