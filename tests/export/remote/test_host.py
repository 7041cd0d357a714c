"""A host behind a real sshd: what stands in the way is said in a line, and no process is left."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvp_edge_export.errors import BadInput
from mvp_edge_export.remote import ssh as ssh_module
from mvp_edge_export.remote.agent import descendants
from mvp_edge_export.remote.host import Host, Progress, connect
from mvp_edge_export.storage import sha256_file
from tests.support.sshd import ALIAS, Device, may_mount

Start = Callable[..., Device]
MIB = 2**20


def failure(work: Callable[[], object]) -> str:
    """The one line of an error that ends ``work``."""
    with pytest.raises(BadInput) as failed:
        work()
    message = str(failed.value)
    assert "\n" not in message
    return message


def refusal(target: str = ALIAS, progress: Progress = lambda what, share: None) -> str:
    """Why no connection comes about: one line that names the host."""

    def work() -> None:
        with connect(target, progress):
            pass

    message = failure(work)
    assert message.startswith(f"{target}: ")
    return message


def test_what_a_host_is(start: Start) -> None:
    one = start()
    with connect(ALIAS) as host:
        facts = host.facts
        host.require()
    assert facts.obstacle() is None
    assert facts.arch == os.uname().machine
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.cache == str(one.cache)
    assert not one.cache.exists()  # nothing was written to find that out


def test_unknown_host_key(start: Start) -> None:
    one = start()
    (one.folder / "known_hosts").write_text("")
    assert refusal().startswith(f"{ALIAS}: its host key is not known here: connect once with `ssh")
    assert (one.folder / "known_hosts").read_text() == ""


def test_changed_host_key(start: Start) -> None:
    one = start()
    known = (one.folder / "known_hosts").read_text().split()[0]
    other = (one.folder / "key.pub").read_text().split()[:2]
    (one.folder / "known_hosts").write_text(" ".join([known, *other]) + "\n")
    message = refusal()
    assert "its host key is not the one that is known here" in message
    advice = f"`ssh-keygen -f {one.folder / 'known_hosts'} -R '[127.0.0.1]:{one.port}'`"
    assert advice in message


def test_auth_refused(start: Start) -> None:
    one = start()
    (one.folder / "authorized_keys").write_text("")
    message = refusal()
    assert "does not let you in" in message
    assert "Permission denied (publickey)" in message
    assert "ssh-copy-id" in message


def test_nobody_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    with socket.socket() as one:  # bound, but nobody listens
        one.bind(("127.0.0.1", 0))
        target = f"ssh://127.0.0.1:{one.getsockname()[1]}"
        assert "it cannot be reached" in refusal(target)
    assert "no host of that name" in refusal("nowhere.invalid")
    monkeypatch.setenv("MVP_EDGE_SSH", "no-such-ssh")
    with pytest.raises(BadInput, match="openssh-client"), connect(ALIAS):
        pass


@pytest.mark.parametrize("target", ["", "-oProxyCommand=touch bad", "a host", "pi@\n"])
def test_what_is_no_host_does_not_reach_ssh(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVP_EDGE_SSH", "/bin/false")
    with pytest.raises(BadInput, match="not a host"), connect(target):
        pass


def test_a_server_that_hangs_up(start: Start) -> None:
    start(login="exit 7")
    assert "ssh could not connect" in refusal()


def test_no_python(start: Start, public: Path) -> None:
    one = start(environment={"PATH": str(public / "nothing")})
    assert "it has no python3: `sudo apt install python3 python3-venv` there" in refusal()
    assert one.nothing_runs()


@pytest.fixture
def pretending(public: Path, python: dict[str, str]) -> Iterator[Callable[[str], Path]]:
    """Makes a folder with a `python3` that runs ``code`` before what it was given with -c."""
    folder = Path(tempfile.mkdtemp(dir=public))
    folder.chmod(0o755)

    def make(code: str) -> Path:
        program = folder / "python3"
        start = f"import sys; program = sys.argv.pop(2); {code}; exec(program)"
        real = shutil.which("python3", path=python["PATH"])
        program.write_text(f"#!/bin/sh\nexec {real} -c '{start}' \"$@\"\n")
        program.chmod(0o755)
        return folder

    yield make
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ('sys.version_info = (3, 9, 2, "final", 0)', "Python 3.9.2 ("),
        ('sys.modules["ensurepip"] = None', "lacks ensurepip: `sudo apt install python3-venv`"),
        ('import platform; platform.system = lambda: "Darwin"', "measuring needs Linux"),
        ('import platform; platform.libc_ver = lambda: ("", "")', "its C library is not glibc"),
    ],
)
def test_what_cannot_run_mvp_edge_is_told_before_anything_is_written(
    start: Start, pretending: Callable[[str], Path], code: str, says: str
) -> None:
    one = start(environment={"PATH": str(pretending(code))})
    with connect(ALIAS) as host, pytest.raises(BadInput) as refused:
        host.install(["onnxruntime"])
    assert says in str(refused.value)
    assert not one.cache.exists()


def test_the_newest_of_several_pythons_is_taken(
    start: Start, pretending: Callable[[str], Path], python: dict[str, str]
) -> None:
    programs = pretending("sys.version_info = (3, 8, 0)")
    real = Path(shutil.which("python3", path=python["PATH"]) or "")
    (programs / "python3.11").symlink_to(real.resolve())
    start(environment={"PATH": str(programs)})
    with connect(ALIAS) as host:
        assert host.facts.obstacle() is None


def test_too_little_disk(start: Start) -> None:
    one = start()
    room = r"are free in .*, 9 TiB are needed; make room there"
    with connect(ALIAS) as host, pytest.raises(BadInput, match=room):
        host.require(disk=9 * 2**40)
    assert not one.cache.exists()


NOISE = 'echo "Welcome to $USER"; head -c 100000 /dev/zero; printf "\\nJ\\0\\0\\0\\2{}"'


@pytest.mark.parametrize("login", [NOISE, "exec 3>&1; echo one; echo two >&2"])
def test_a_motd_and_a_login_shell_that_prints(start: Start, tmp_path: Path, login: str) -> None:
    start(login=login, banner="Authorised use only.\n" * 50)
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 1000)
    with connect(ALIAS) as host:
        folder = host.send({"file": file})
        assert printed(host, ["sha256sum", f"{folder}/file"]).split()[0] == sha256_file(file)


def printed(host: Host, argv: list[str]) -> str:
    """What a program on the host writes on stdout."""
    data: list[bytes] = []
    host.run(argv, {"PATH": "/usr/bin:/bin"}, lambda stream, one: data.append(one))
    return b"".join(data).decode()


def test_a_bashrc_that_prints(start: Start) -> None:
    one = start(login='exec /bin/bash -c "$SSH_ORIGINAL_COMMAND"')
    (one.home / ".bashrc").write_text("echo from the bashrc; echo bashrc >&2; touch ~/was-read\n")
    with connect(ALIAS) as host:
        assert printed(host, ["echo", "hello"]) == "hello\n"
    assert (one.home / "was-read").exists()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/dash"])
def test_arguments_arrive_unharmed(start: Start, tmp_path: Path, shell: str) -> None:
    home = 'it\'s $(touch bad) `touch bad` "home" ; é'
    one = start(login=f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"', cache_name=home)
    words = [
        "a b",
        "$(touch bad)",
        "'\"\\",
        "`touch bad`",
        "* ?",
        "",
        "-n",
        "new\nline",
        "é",
        ";&|",
    ]
    file = tmp_path / 'we \'ird $(touch bad) "name".bin'
    file.write_bytes(b"contents")
    with connect(ALIAS) as host:
        folder = host.send({f"in/{file.name}": file})
        assert printed(host, ["printf", "%s\\0", *words]).split("\0")[:-1] == words
        assert printed(host, ["cat", f"{folder}/in/{file.name}"]) == "contents"
        assert home in folder
    assert not list(one.folder.rglob("bad"))


def test_nothing_is_sent_twice_and_what_was_damaged_is_sent_again(
    start: Start, tmp_path: Path
) -> None:
    one = start()
    files = {}
    for name, data in (
        ("a", b"a" * 200_000),
        ("b", b"b"),
        ("also-a", b"a" * 200_000),
        ("none", b""),
    ):
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    told: list[str] = []
    with connect(ALIAS, lambda what, share: told.append(what)) as host:
        for expected in ("copying 3 files", None, "copying 1 file,"):
            told.clear()
            folder = Path(host.send(files))
            assert {n: (folder / n).read_bytes() for n in files} == {
                n: path.read_bytes() for n, path in files.items()
            }
            copied = [what for what in told if "copying" in what]
            assert bool(copied) == bool(expected)
            assert expected is None or expected in copied[0]
            if expected is None:
                kept = next(
                    path for path in (one.cache / "files").iterdir() if path.stat().st_size == 1
                )
                kept.write_bytes(b"x")
    assert one.left() == []


@contextmanager
def cut(one: Device, step: str, how: str, delay: float) -> Iterator[Callable[[str, float], None]]:
    """A progress that cuts the connection while ``step`` is done."""
    timers: list[threading.Timer] = []

    def now() -> None:
        if how == "server":
            one.end_sessions()
        else:
            clients = [pid for pid in descendants(os.getpid()) if name_of(pid) == "ssh"]
            assert clients
            for client in clients:
                os.kill(client, signal.SIGKILL)

    def progress(what: str, share: float) -> None:
        if step in what and not timers:
            timers.append(threading.Timer(delay, now))
            timers[0].start()
            if delay == 0:
                timers[0].join()

    yield progress
    assert timers, f"{step} never came"
    timers[0].join()


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("how", ["client", "server"])
@pytest.mark.parametrize(
    ("step", "delay"),
    [("looking at it", 0.0), ("copying", 0.1), ("installing", 0.7), ("running", 0.5)],
)
def test_a_connection_that_is_cut(
    start: Start, tmp_path: Path, step: str, delay: float, how: str
) -> None:
    one = start()
    big = tmp_path / "big"
    with big.open("wb") as stream:
        stream.truncate(200 * MIB if step == "copying" else 1000)

    def work() -> None:
        with connect(ALIAS, progress) as host:
            host.send({"big": big})
            if step == "running":
                host.step("running a program")
                printed(host, ["sh", "-c", "setsid sleep 100 & sleep 100"])
            host.install(["onnxruntime"], offline=True)

    with cut(one, step, how, delay) as progress:
        message = failure(work)
    assert f"{ALIAS}: the connection was lost while {step}" in message
    assert "run the same command again" in message
    assert one.nothing_runs()
    assert one.left() == []


def test_a_cut_while_connecting(start: Start) -> None:
    one = start(login="/bin/sleep 3")
    with cut(one, "connecting", "server", 1.0) as progress:
        assert "ssh could not connect" in refusal(progress=progress)


def test_a_login_that_never_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start(login="exec /bin/sleep 4")
    monkeypatch.setattr(ssh_module, "START_SECONDS", 1.0)
    assert "no answer within 1 s; does its login wait for something?" in refusal()


def test_a_line_that_falls_silent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of the connection arrives: the cable was pulled."""
    one = start()
    monkeypatch.setattr(ssh_module, "SILENCE_SECONDS", 2.0)
    with connect(ALIAS) as host:
        (client,) = [pid for pid in descendants(os.getpid()) if name_of(pid) == "ssh"]
        seen: list[str] = []

        def pull() -> None:
            seen.extend(one.running().values())  # signs of life arrived until now
            os.kill(client, signal.SIGSTOP)
            seen.append("nothing" if one.nothing_runs(10) else "still there")
            os.kill(client, signal.SIGCONT)

        threading.Timer(3.0, pull).start()
        message = failure(lambda: printed(host, ["sleep", "100"]))
    assert "the connection was lost while" in message
    assert any("sleep 100" in line for line in seen)
    assert seen[-1] == "nothing"


def test_what_gets_away_from_its_parent_is_ended_too(start: Start) -> None:
    one = start()
    escape = "setsid sh -c 'sleep 100 & sleep 100 &' & sleep 0.3; echo done"
    with connect(ALIAS) as host:
        assert printed(host, ["sh", "-c", escape]) == "done\n"
        assert not [line for line in one.running().values() if "sleep" in line]


def test_a_killed_agent_takes_its_program_with_it(start: Start) -> None:
    one = start()

    def kill() -> None:
        (agent,) = [pid for pid, line in one.running().items() if "mvp-edge agent" in line]
        os.kill(agent, signal.SIGKILL)

    with connect(ALIAS) as host:
        threading.Timer(0.5, kill).start()
        message = failure(lambda: printed(host, ["sleep", "100"]))
    assert "the connection was lost while" in message
    assert one.nothing_runs()


def full(start: Start, room: int) -> Device:
    """A device on whose disk there are ``room`` bytes, or that may write no larger file."""
    if may_mount():
        return start(disk=room)
    return start(login=f"ulimit -f {room // 512}")


def test_a_full_disk_while_copying(start: Start, tmp_path: Path) -> None:
    one = full(start, 2 * MIB)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(5 * MIB))
    with connect(ALIAS) as host:
        host.facts = host.facts.model_copy(update={"disk_free": 2**40})  # it filled up meanwhile
        with pytest.raises(BadInput) as refused:
            host.send({"big": big})
        assert f"{ALIAS}: stopped while copying 1 file, 5 MiB: its disk is full (" in str(
            refused.value
        )
        (tmp_path / "small").write_bytes(b"small")
        assert host.send({"small": tmp_path / "small"})  # the connection is as good as before
        assert len(printed(host, ["ls", f"{one.cache}/files"]).split()) == 1


@pytest.mark.skipif(not may_mount(), reason="mounting a small disk is not allowed here")
def test_a_full_disk_while_installing(start: Start) -> None:
    one = start(disk=190 * MIB)
    with connect(ALIAS) as host:
        with pytest.raises(BadInput, match=r"are free in .*; make room there"):
            host.install(["onnxruntime"], offline=True)
        # It was said before anything was copied; `ls` has the session's own folder.
        assert printed(host, ["ls", str(one.cache)]) == "tmp\n"
        host.facts = host.facts.model_copy(update={"disk_free": 2**40})
        with pytest.raises(BadInput, match="the disk is full"):
            host.install(["onnxruntime"], offline=True)
        (lock,) = printed(host, ["ls", f"{one.cache}/venvs"]).split()
        assert lock.endswith(".lock")


def test_an_index_that_is_not_reached(start: Start) -> None:
    start(environment={"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"})
    with connect(ALIAS) as host, pytest.raises(BadInput) as refused:
        host.install(["onnxruntime"])
    assert str(refused.value) == (
        f"{ALIAS}: pip reaches no package index; --offline copies all from here"
    )


def test_the_device_installs_from_its_index(start: Start, index: Path) -> None:
    one = start(environment={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)})
    with connect(ALIAS) as host:
        host.install(["onnxruntime"])
        assert "mvp-edge, version" in host.mvp_edge(["--version"])
        with pytest.raises(BadInput) as refused:
            host.mvp_edge(["device", "show", "no such $(device)"])
        assert str(refused.value).startswith(
            f'{ALIAS}: device profile: no profile is called "no such'
        )
    assert len(list((one.cache / "venvs").glob("*/bin/python"))) == 1
    assert len(list((one.cache / "files").iterdir())) == 1  # our wheel alone was copied


def test_a_denied_release_is_not_installed(start: Start, index: Path) -> None:
    version = next(index.glob("onnxruntime-*")).name.split("-")[1]
    start()
    with connect(ALIAS) as host, pytest.raises(BadInput) as refused:
        host.install(["onnxruntime"], avoid=[f"onnxruntime!={version}"], offline=True)
    assert f"no wheel of onnxruntime!={version},>=1.20 for" in str(refused.value)
