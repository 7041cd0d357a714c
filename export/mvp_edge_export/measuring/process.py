"""Starts, controls and ends the measuring processes of ``bench``, which run ``child``."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mvp_edge_export.errors import BadInput

PATIENCE = 300.0
"""Seconds, in addition to the work itself, after which a silent process is considered hanging."""

_DEATHS: dict[int, str] = {
    signal.SIGILL: "died with an illegal instruction: this release of {runtime} needs instructions"
    " that the processor lacks; see mvp-edge doctor",
    signal.SIGSEGV: "crashed (segmentation fault); try another release of {runtime}",
    signal.SIGBUS: "crashed (bus error); try another release of {runtime}",
    signal.SIGABRT: "aborted; try another release of {runtime}",
    signal.SIGFPE: "crashed (arithmetic error); try another release of {runtime}",
    signal.SIGKILL: "was killed, as the kernel does when memory runs out; close other programs, or"
    " prune further",
}
_NO_MEMORY = re.compile("bad_alloc|MemoryError|[Cc]annot allocate memory|[Oo]ut of memory")

_OTHER_THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "KMP_AFFINITY")

Nanoseconds = npt.NDArray[np.int64]


class ChildDied(BadInput):
    """A measuring process ended or hangs; the message gives the reason."""

    def __init__(self, message: str, child: "Child") -> None:
        super().__init__(message)
        self.child = child


class Child:
    """A measuring process; ``ready`` is what it reported after its start."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[bytes], runtime: str) -> None:
        self._process = process
        self._log = log
        self._runtime = runtime
        self._buffer = b""
        self.ready: dict[str, Any] = {}

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send a request and wait for its answer for at most ``limit`` seconds; may raise ChildDied."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            self._receive(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def samples(self, n: int, limit: float) -> Nanoseconds:
        """Receive the ``n`` samples [n] in ns that follow the answer to a round; may raise ChildDied."""
        deadline = time.monotonic() + limit
        while len(self._buffer) < 8 * n:
            self._receive(deadline)
        raw, self._buffer = self._buffer[: 8 * n], self._buffer[8 * n :]
        return np.frombuffer(raw, np.int64)

    def _receive(self, deadline: float) -> None:
        assert self._process.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
            raise ChildDied(f"{self._runtime} hangs: no answer in time", self)
        received = os.read(self._process.stdout.fileno(), 1 << 20)
        if not received:
            raise self._died()
        self._buffer += received

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a request that the process did not read any more
                    pipe.close()

    def _died(self) -> ChildDied:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        if _NO_MEMORY.search("\n".join(said[-20:])):
            what = f"{self._runtime} ran out of memory; close other programs, or prune further"
        elif code < 0:
            death = _DEATHS.get(-code, f"was ended by signal {-code}")
            what = f"{self._runtime} {death.format(runtime=self._runtime)}"
        else:
            reason = re.sub(r"^[\w.]+: ", "", said[-1]) if said else f"exit code {code}"
            what = f"the network does not run here: {reason[:300]}"
        return ChildDied(what, self)


@contextmanager
def started(
    model: Path,
    shape: Sequence[int],
    runtime: str,
    threads: int,
    *,
    profile: Path | None = None,
) -> Iterator[Child]:
    """Start a process that loads a model and runs it once; the process ends with the context.

    Args:
        model: model file in a format that ``runtime`` reads.
        shape: shape of the input, [N, 3, S, S].
        runtime: a key of ``sessions.RUNTIMES``.
        threads: number of threads of one inference.
        profile: folder in which the runtime records the times of the layers; None records none.

    Raises:
        ChildDied: the runtime crashed, hangs, or cannot load the model.
    """
    # Only the session sets the number of threads; NumPy's thread pool would just use memory.
    environment = {name: value for name, value in os.environ.items() if name not in _OTHER_THREADS}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mvp_edge_export.measuring.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only this process, which ends the child
        )
        child = Child(process, log, runtime)
        try:
            job = {"model": str(model), "runtime": runtime, "threads": threads}
            if profile is not None:
                job["profile"] = str(profile)
            child.ready = child.ask({**job, "shape": list(shape)}, PATIENCE)
            yield child
        finally:
            child.end()
