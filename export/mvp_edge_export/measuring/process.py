"""The measuring processes of ``bench``, seen from outside: started, asked, and always ended."""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.result import Network

PATIENCE = 300.0
"""Seconds, beyond the work itself, until a process that does not answer is given up."""

_OTHER_THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "KMP_AFFINITY")

Nanoseconds = npt.NDArray[np.int64]


class Child:
    """A measuring process and what it said at its start."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[bytes], name: str) -> None:
        self._process = process
        self._log = log
        self._name = name
        self._buffer = b""
        self.ready: dict[str, Any] = {}

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Send a request and wait for its answer, at most ``limit`` seconds."""
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
        """The raw samples that follow the answer to a round."""
        deadline = time.monotonic() + limit
        while len(self._buffer) < 8 * n:
            self._receive(deadline)
        raw, self._buffer = self._buffer[: 8 * n], self._buffer[8 * n :]
        return np.frombuffer(raw, np.int64)

    def _receive(self, deadline: float) -> None:
        assert self._process.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
            raise BadInput(f"{self._name}: no answer; the measurement was given up")
        received = os.read(self._process.stdout.fileno(), 1 << 20)
        if not received:
            raise self._died()
        self._buffer += received

    def _died(self) -> BadInput:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        reason = re.sub(r"^[\w.]+: ", "", said[-1]) if said else f"exit code {code}"
        return BadInput(f"{self._name}: the network does not run here: {reason[:300]}")


@contextmanager
def started(
    models: Mapping[Network, Path], shape: Sequence[int], runtime: str, threads: int
) -> Iterator[dict[Network, Child]]:
    """Start a process a model, one after the other; all are gone at the end, whatever happens.

    Args:
        models: network → its file, in a format that ``runtime`` reads.
        shape: of the input, [N, 3, S, S].
        runtime: a key of ``sessions.RUNTIMES``.
        threads: threads of one inference.
    """
    # The number of threads comes from the session alone; NumPy's pool would only take memory.
    environment = {name: value for name, value in os.environ.items() if name not in _OTHER_THREADS}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as stack:
        children: dict[Network, Child] = {}
        for network, model in models.items():
            log = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mvp_edge_export.measuring.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C comes to us, and we end them
            )
            stack.callback(_end, process)
            child = Child(process, log, f"{network} network in {runtime}")
            job = {"model": str(model), "runtime": runtime, "threads": threads}
            child.ready = child.ask({**job, "shape": list(shape)}, PATIENCE)
            children[network] = child
        yield children


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a request that it no longer read
                pipe.close()
