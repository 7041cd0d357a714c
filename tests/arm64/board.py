"""An arm64 machine without one: a Debian root file system, run by qemu's user mode emulation.

    with emulated(BOARDS[0], work) as board:          # six seconds: nothing is configured
        board.run("/usr/bin/python3", "-c", "…", limit=60)

Every command runs in a mount and a process namespace of its own, so its mounts and processes are
gone when it ends, however it ends. /proc, /sys and /dev are there (OpenVINO hangs for ever without
them); in /proc stands the board's own cpuinfo (ONNX Runtime crashes when it finds that of an x86).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "update-binfmts": "binfmt-support",
}
"""Program → Debian package that it comes in."""

_PACKAGES = "base-files,python3,libstdc++6,libgomp1"
_ENVIRONMENT = {"HOME": "/root", "LC_ALL": "C.UTF-8"}
_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"

# The process that waits is not the one that computes: the first one of a namespace has no default
# handlers of signals, so an illegal instruction would not end it.
_INSIDE = """
set -e
root=$1 work=$2; shift 2
mount -t proc proc "$root/proc"
mount --bind "$root/etc/cpuinfo" "$root/proc/cpuinfo"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount --bind "$work" "$root/work"
if [ ! -e /proc/sys/fs/binfmt_misc/register ]; then
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
fi
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64
set +e
chroot "$root" "$@" < /dev/null
exit $?
"""


@dataclass(frozen=True)
class Board:
    """What is played."""

    name: str
    profile: str
    """The shipped device profile of such a board."""
    suite: str
    """Of Debian, which the board's system is made from."""
    python: str
    cpu: str
    """As qemu and the profiles name it."""
    part: int
    """Its number in /proc/cpuinfo."""
    features: str


BOARDS = (
    Board(
        name="Raspberry Pi 4, Debian 12",
        profile="rpi4",
        suite="bookworm",
        python="3.11",
        cpu="cortex-a72",
        part=0xD08,
        features=_ARMV8_0,
    ),
    Board(
        name="Raspberry Pi 5, Debian 13",
        profile="rpi5",
        suite="trixie",
        python="3.13",
        cpu="cortex-a76",
        part=0xD0B,
        features=f"{_ARMV8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp",
    ),
)


class Broken(Exception):
    """A command failed inside; what it said."""


@dataclass(frozen=True)
class Emulated:
    """A board whose root file system is there; ``work`` lies at /work inside."""

    board: Board
    root: Path
    work: Path

    def run(self, *command: str, limit: float, codes: Sequence[int] = (0,)) -> str:
        """Run a program inside and return what it printed.

        Args:
            command: a program of the root and its arguments.
            limit: seconds after which it is killed.
            codes: exit codes that are no failure.

        Raises:
            Broken: it ended otherwise, or not in time.
        """
        ended = self.end_of(*command, limit=limit)
        if ended.returncode not in codes:
            said = "\n".join(ended.stderr.strip().splitlines()[-12:])
            raise Broken(f"{' '.join(command)}: exit code {ended.returncode}\n{said}")
        return ended.stdout

    def end_of(self, *command: str, limit: float) -> "subprocess.CompletedProcess[str]":
        """Run a program inside; the exit code is 128 and the signal's number when one ended it.

        Raises:
            Broken: it did not end in time, and was killed.
        """
        starter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
        starter += ["--propagation", "private", "--kill-child=KILL", "--", "bash", "-c", _INSIDE]
        with subprocess.Popen(
            [*starter, "bash", str(self.root), str(self.work), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_ENVIRONMENT, "PATH": os.environ["PATH"], "QEMU_CPU": self.board.cpu},
            start_new_session=True,  # Ctrl-C comes to us, and we end it
        ) as process:
            try:
                out, err = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                raise Broken(f"{' '.join(command)}: killed after {limit:.0f} s") from None
            finally:
                process.kill()  # unshare's child, and with it all of the namespace, goes too
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def missing() -> list[str]:
    """What keeps a board from being emulated here, a sentence each."""
    packages = sorted({package for name, package in NEEDED.items() if shutil.which(name) is None})
    found = [f"apt-get install {' '.join(packages)}"] if packages else []
    if os.geteuid() != 0:
        found.append("run it as root: mounting needs that")
    return found


@contextmanager
def emulated(board: Board, work: Path) -> Iterator[Emulated]:
    """Unpack the board's Debian into a temporary folder, for the length of a ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="mvp-edge-arm64-") as folder:
        root = Path(folder) / board.suite
        how = ("--quiet", "--arch=arm64", "--mode=root", "--variant=extract")
        command = ["mmdebstrap", *how, f"--include={_PACKAGES}", board.suite, str(root)]
        subprocess.run(command, check=True)
        for name in ("proc", "sys", "dev", "work"):
            (root / name).mkdir(exist_ok=True)
        (root / "etc" / "cpuinfo").write_text(
            "".join(
                f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {board.features}\n"
                "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
                f"CPU part\t: {board.part:#x}\nCPU revision\t: 3\n\n"
                for number in range(os.cpu_count() or 1)
            )
        )
        yield Emulated(board, root, work)
