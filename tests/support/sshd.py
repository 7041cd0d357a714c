"""A real `sshd` on 127.0.0.1, with its own port and keys, run by an unprivileged user: a device.

Started by root, it sees an /etc/passwd with a user of its own in it; where mounting is not allowed, a
system user is added instead. Started by anybody else, it lets in that user. What runs on the device is
known by a variable in its environment, whatever it does to its parents and groups.
"""

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mvp_edge_export.remote.agent import descendants

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
USER, UID = "mvp-edge-device", 47011
ALIAS = "device"
"""The device's name in the ssh configuration."""
ROOT = os.geteuid() == 0
PATIENCE = 30.0
"""Seconds until something that has to happen did not."""

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
Banner {folder}/banner
ForceCommand {folder}/login
SetEnv {environment}
"""
_SSH_CONFIG = """\
Host {alias}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""
LOGIN = 'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
"""What a login does, as a script for /bin/sh."""


@dataclass(frozen=True)
class Device:
    """A running sshd and what belongs to it."""

    folder: Path
    """Keys and configuration; the device's user may read it."""
    home: Path
    """Belongs to the device's user, as does what it keeps."""
    cache: Path
    """Where mvp-edge keeps things there."""
    port: int
    server: int
    """Process of the sshd that listens."""

    @property
    def ssh(self) -> str:
        """A value of MVP_EDGE_SSH with which ``ALIAS`` is this device."""
        return shlex.join(["ssh", "-F", str(self.folder / "ssh_config")])

    def running(self) -> dict[int, str]:
        """Command lines of all processes that were started on the device, by their numbers."""
        mark = f"MVP_EDGE_DEVICE={self.port}\0".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes() + b"\0":
                    words = (process / "cmdline").read_bytes().decode(errors="replace")
                    found[int(process.name)] = words.replace("\0", " ")
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
        return found

    def nothing_runs(self, seconds: float = 10) -> bool:
        """Whether all that was started there is gone, at the latest in that time."""
        until = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def left(self) -> list[str]:
        """What half-done work would leave behind: files of a session, environments not ready."""
        venvs = [path for path in self.cache.glob("venvs/*") if path.is_dir()]
        unready = [path for path in venvs if not (path / ".mvp-edge-ready").exists()]
        return [str(path) for path in [*self.cache.glob("tmp/*"), *unready]]

    def end_sessions(self) -> None:
        """Kill the server's part of every connection, as if the network had gone away."""
        for process in set(descendants(self.server)) - set(self.running()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def may_mount() -> bool:
    """Whether the device can have an /etc/passwd and disks of its own."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return ROOT and tried.returncode == 0


@contextmanager
def device(
    folder: Path,
    environment: Mapping[str, str],
    *,
    login: str = "",
    banner: str = "",
    cache_name: str = "cache",
    cache: Path | None = None,
    disk: int | None = None,
) -> Iterator[Device]:
    """Run an sshd until the end of the block.

    Args:
        folder: an empty one, that everybody may search.
        environment: of its user; PATH among it.
        login: lines of a shell script that every login runs first.
        banner: what it says before a login.
        cache_name: of the folder in which mvp-edge keeps things there.
        cache: what that folder holds at the start; linked, not to be changed.
        disk: bytes of a disk that has nothing on it but the cache; needs ``may_mount``.
    """
    home = folder / "home"
    home.mkdir()
    port = _free_port()
    where = folder / cache_name
    if cache is None:
        where.mkdir()
    else:
        shutil.copytree(cache, where, symlinks=True, copy_function=os.link)
    variables = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(where),
        "MVP_EDGE_DEVICE": str(port),
        **environment,
    }
    (folder / "banner").write_text(banner)
    (folder / "login").write_text(f"#!/bin/sh\n{login}\n{LOGIN}")
    (folder / "login").chmod(0o755)
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    known = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(" ".join([f"[127.0.0.1]:{port}", *known]) + "\n")
    user = USER if ROOT else pwd.getpwuid(os.geteuid()).pw_name
    words = " ".join(_quoted(f"{name}={value}") for name, value in variables.items())
    filled = {"folder": folder, "port": port, "user": user, "alias": ALIAS, "environment": words}
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(**filled))
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(**filled))
    if ROOT:
        for path in (home, folder / "host_key", where, *where.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
    assert SSHD is not None
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*_as_user(folder, home, where, disk), *command], stdout=stream, stderr=stream
        )
    try:
        _wait_for(port, server, log)
        made = Device(
            folder, home, Path(variables["XDG_CACHE_HOME"]) / "mvp-edge", port, server.pid
        )
        yield made
        assert made.nothing_runs(), made.running()
    finally:
        server.terminate()
        server.wait()


def _as_user(folder: Path, home: Path, where: Path, disk: int | None) -> Sequence[str]:
    """What comes before a command so that the device's user runs it."""
    if not ROOT:
        return []
    lower = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    if not may_mount():
        _add_user()
        return lower
    passwd = folder / "passwd"
    line = f"{USER}:x:{UID}:{UID}::{home}:/bin/sh\n"
    passwd.write_text(Path("/etc/passwd").read_text().rstrip("\n") + "\n" + line)
    steps = [shlex.join(["mount", "--bind", str(passwd), "/etc/passwd"])]
    if disk is not None:
        options = f"size={disk},uid={UID},gid={UID},mode=755"
        steps.append(shlex.join(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]))
    return ["unshare", "--mount", "sh", "-c", " && ".join([*steps, 'exec "$0" "$@"']), *lower]


def _add_user() -> None:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/sh"]
        subprocess.run([*command, "--uid", str(UID), USER], check=True)


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"sshd did not start: {log.read_text()}")


def python_for_all(folder: Path) -> dict[str, str]:
    """This Python, as every user may run it; its files are linked to ``folder`` where need be.

    Returns:
        Variables with which it is found: PATH, and perhaps where its library lies.
    """
    base = Path(sys.base_prefix)
    program = base / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    variables = {}
    if not all(path.stat().st_mode & 0o001 for path in (program.resolve(), *base.parents, base)):
        there = folder / "python"
        ignored = shutil.ignore_patterns("site-packages", "test", "*.a", "__pycache__")
        for part in ("bin", "lib"):
            shutil.copytree(
                base / part, there / part, symlinks=True, copy_function=_linked, ignore=ignored
            )
        variables["LD_LIBRARY_PATH"] = str(there / "lib")
        base = there
    # A virtual environment looks for the library beside the program: no link stands in for it.
    return {**variables, "PATH": f"{base / 'bin'}:/usr/bin:/bin"}


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
