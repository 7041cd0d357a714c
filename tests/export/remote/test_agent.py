"""The device's side by itself: old Pythons read it, frames survive any way of being cut to pieces."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_edge_export.remote import agent
from mvp_edge_export.remote.agent import PIECE, Device, Gone, Wire


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def test_pythons_that_are_too_old_can_read_it() -> None:
    source = Path(agent.__file__).read_text()
    ast.parse(source, feature_version=(3, 6))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported <= sys.stdlib_module_names


@given(
    frames=st.lists(st.tuples(st.sampled_from([b"J", b"D", b"O", b"E"]), st.binary(max_size=300))),
    cuts=st.lists(st.integers(1, 50)),
    noise=st.binary(max_size=200),
)
def test_frames_survive_noise_before_them_and_every_cut(
    frames: list[tuple[bytes, bytes]], cuts: list[int], noise: bytes
) -> None:
    ours, theirs = os.pipe()
    there, back = os.pipe()
    marker = b"<marker>"
    sender = Wire(ours, back)
    for kind, body in frames:
        sender.send(b"H", b"")  # signs of life may come anywhere
        sender.send(kind, body)
    os.close(back)
    sent = noise.replace(marker, b"") + marker
    while piece := os.read(there, PIECE):
        sent += piece

    def dribble() -> None:
        rest = sent
        for cut in cuts:
            os.write(theirs, rest[:cut])
            rest = rest[cut:]
        for start in range(0, len(rest), 4096):
            os.write(theirs, rest[start : start + 4096])
        os.close(theirs)

    thread = threading.Thread(target=dribble)
    thread.start()
    receiver = Wire(ours, theirs)
    receiver.skip_past(marker, 10.0)
    assert [receiver.receive() for _ in frames] == frames
    with pytest.raises(Gone):
        receiver.receive()
    thread.join()
    os.close(ours)
    os.close(there)


def test_silence_and_a_closed_end_are_told_from_waiting() -> None:
    source, sink = os.pipe()
    begin = time.monotonic()
    with pytest.raises(Gone):
        Wire(source, sink, patience=0.2).receive()
    assert 0.15 < time.monotonic() - begin < 5
    with pytest.raises(Gone):
        Wire(source, sink).skip_past(b"marker", 0.1)
    os.close(source)
    with pytest.raises(Gone):
        Wire(source, sink).send(b"J", b"{}")
    os.close(sink)


def test_all_descendants_are_found_and_ended_in_a_process_of_its_own() -> None:
    """Also those in other sessions, and those whose parents are gone."""
    code = (
        "import os, subprocess, sys, time\n"
        "from mvp_edge_export.remote import agent\n"
        "agent.adopt_orphans()\n"
        "subprocess.Popen(['setsid', 'sh', '-c', 'sleep 100 & (setsid sleep 100 &)'], shell=False)\n"
        "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; sleep 100; :'])\n"
        "while len(agent.descendants(os.getpid())) < 4: time.sleep(0.01)\n"
        "agent.end_all()\n"
        "print(agent.descendants(os.getpid()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_its_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert agent.cache_folder() == tmp_path / ".cache" / "mvp-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert agent.cache_folder() == tmp_path / ".cache" / "mvp-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert agent.cache_folder() == tmp_path / "xdg" / "mvp-edge"


def test_what_killed_connections_left_goes_after_a_day(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old, young = (tmp_path / "mvp-edge" / "tmp" / name for name in ("old", "young"))
    for left in (old, young):
        left.mkdir(parents=True)
    os.utime(old, (0, time.time() - 90_000))
    device = Device(Wire(0, 1))
    assert device.do_lay({})["folder"]
    assert not old.exists()
    assert young.exists()
    device.clean()
    assert list(young.parent.iterdir()) == [young]


def test_a_signal_ends_it_as_a_closed_connection_does(tmp_path: Path) -> None:
    program = Path(agent.__file__).read_text() + "\nserve(b'<marker>', 60.0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    wire = Wire(process.stdout.fileno(), process.stdin.fileno())
    wire.skip_past(b"<marker>", 10.0)
    wire.message({"do": "run", "argv": ["sh", "-c", "echo $$; sleep 100"], "environment": {}})
    kind, body = wire.receive()
    assert kind == b"O"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    assert not Path(f"/proc/{int(body)}").exists()
    assert not list((tmp_path / "mvp-edge" / "tmp").iterdir())
    process.stdin.close()
    process.stdout.close()
