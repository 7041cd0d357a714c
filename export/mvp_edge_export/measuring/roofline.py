"""What the machine can do at most, measured: multiply-adds and bytes a second.

    t fresh processes, one thread each, at the same moment
        → float32 matrix products (NumPy's BLAS)   → multiply-adds a second, all together
        → copies of 256 KiB … 64 MiB, all together → bytes a second, by where the data lies

No layer can take less time than its multiply-adds at that rate, nor than its bytes at that rate;
the larger of the two is its *bound*. Small networks live in the caches, which are several times
faster than the memory: a bound with the memory's rate would be beaten.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import Machine

_FROZEN = ConfigDict(frozen=True, extra="forbid")

_SIZES = tuple(1 << power for power in (18, 20, 22, 24, 26))
"""Bytes that are read and written over and over, 256 KiB to 64 MiB, by all threads together."""
_SIDE = 768
"""Of the matrices: three of them take 7 MB, and a product 4 ms at 100 G multiply-adds a second."""
_WINDOWS, _WINDOW_SECONDS = 5, 0.1
# OpenBLAS takes processors that are newer than itself for AVX2 ones, at half their float32 rate.
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

Work = Literal["product", "copy"]

# How many times as many multiply-adds an instruction for narrow numbers does as one for float32,
# for the first of the flags that the processor has. Intel's and ARM's instruction set references:
# vdpbf16ps and bfdot add up 2 products a lane, vpdpbusd and sdot 4, smmla 8; a tile of AMX holds 16
# rows of 16 lanes. Without any of them, nothing is gained.
_NARROW: dict[str, tuple[tuple[str, float], ...]] = {
    "bf16": (("amx_bf16", 16), ("avx512_bf16", 2), ("bf16", 2)),
    "f16": (("amx_fp16", 16), ("avx512_fp16", 2), ("asimdhp", 2)),
    "i8": (
        *(("amx_int8", 32), ("avx512_vnni", 4), ("avx_vnni", 4)),
        *(("i8mm", 8), ("asimddp", 4)),
    ),
}


class Rate(BaseModel):
    """A measured rate in 10⁹ a second: the best of five windows, and the slowest."""

    model_config = _FROZEN

    best: float
    worst: float


class Roofline(BaseModel):
    """What a machine can do at most with a number of threads."""

    model_config = _FROZEN

    threads: int
    multiply_adds: Rate
    """In float32."""
    bandwidth: tuple[tuple[int, Rate], ...]
    """Bytes that are gone through over and over → bytes read or written a second."""
    narrow: dict[str, float]
    """Arithmetic → how many times float32's rate its instructions have here; not measured."""

    def compute_ms(self, macs: int, arithmetic: str = "f32") -> float:
        """The least time in ms for so many multiply-adds."""
        return macs / (self.multiply_adds.best * self.narrow.get(arithmetic, 1.0)) / 1e6

    def memory_ms(self, moved: int, working_set: int) -> float:
        """The least time in ms for so many bytes, out of data of ``working_set`` bytes."""
        return moved / self._rate(working_set) / 1e6

    def _rate(self, working_set: int) -> float:
        """The best rate of data at least as large: what lies nearer is not slower than that."""
        # A rate is a lower bound of what smaller data reach, so it may not rise with the size.
        within = [rate.best for size, rate in self.bandwidth if size >= working_set]
        return max(within, default=self.bandwidth[-1][1].best)

    def __str__(self) -> str:
        (_, near), (_, far) = self.bandwidth[0], self.bandwidth[-1]
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return (
            f"{self.multiply_adds.best:.0f} G multiply-adds/s in float32, {near.best:.0f} GB/s from"
            f" the nearest cache, {far.best:.0f} GB/s from memory with {threads}"
        )


def measure_roofline(machine: Machine, threads: int) -> Roofline:
    """Measure what ``threads`` cores can do at most, in 3 s or so.

    Args:
        machine: whose flags say which narrow arithmetic it has instructions for.
        threads: processes of one thread that work at the same time.

    Raises:
        BadInput: a measuring process died.
    """
    flags = set(machine.flags)
    with ExitStack() as stack:
        workers = [_started(stack, flags) for _ in range(threads)]
        products = _together(workers, "product", _SIDE)
        sizes = [(size, _together(workers, "copy", size // threads)) for size in _SIZES]
    return Roofline(
        threads=threads,
        multiply_adds=products,
        bandwidth=tuple(sizes),
        narrow={
            arithmetic: next((factor for flag, factor in table if flag in flags), 1.0)
            for arithmetic, table in _NARROW.items()
        },
    )


def _started(stack: ExitStack, flags: set[str]) -> "subprocess.Popen[str]":
    settings = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if flags >= _AVX512:
        settings["OPENBLAS_CORETYPE"] = "SkylakeX"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mvp_edge_export.measuring.roofline"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **settings},
        start_new_session=True,  # Ctrl-C comes to us, and we end them
    )
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _together(workers: Sequence["subprocess.Popen[str]"], work: Work, size: int) -> Rate:
    """All workers at the same moment; the sum of their rates, window by window."""
    _tell(workers, {"work": work, "size": size})
    for worker in workers:
        _answer(worker)
    _tell(workers, {"at": time.monotonic() + 0.02})
    totals = [sum(rates) for rates in zip(*map(_answer, workers), strict=True)]
    return Rate(best=max(totals), worst=min(totals))


def _tell(workers: Sequence["subprocess.Popen[str]"], order: dict[str, Any]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # the answer that does not come says so
            worker.stdin.write(json.dumps(order) + "\n")
            worker.stdin.flush()


def _answer(worker: "subprocess.Popen[str]") -> list[float]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise BadInput("the roofline could not be measured: its process died, out of memory?")
    rates: list[float] = json.loads(line)
    return rates


def _serve() -> None:
    """The worker: prepares what it is told, then does it at the moment that it is told."""
    for line in sys.stdin:
        order = json.loads(line)
        prepare = {"product": _product, "copy": _copy}[order["work"]]
        once, amount = prepare(order["size"])
        _window(once, 0.5 * _WINDOW_SECONDS)
        print("[]", flush=True)
        begin = json.loads(sys.stdin.readline())["at"]
        time.sleep(max(0.0, begin - time.monotonic()))
        print([amount * _window(once, _WINDOW_SECONDS) / 1e9 for _ in range(_WINDOWS)], flush=True)


def _window(once: Callable[[], object], seconds: float) -> float:
    """How many times a second."""
    times = 0
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        once()
        times += 1
    return times / elapsed


def _product(side: int) -> tuple[Callable[[], object], int]:
    left, right = np.random.default_rng(0).random((2, side, side), dtype=np.float32)
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out), side**3


def _copy(size: int) -> tuple[Callable[[], object], int]:
    source, target = np.ones((2, size // 2 // 4), np.float32)
    return lambda: np.copyto(target, source), source.nbytes + target.nbytes


if __name__ == "__main__":
    _serve()
