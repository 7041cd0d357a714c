"""Measures the roofline of a machine: its peak multiply-adds and bytes per second.

    t new processes with one thread each, at the same time
        → float32 matrix products (NumPy's BLAS) → multiply-adds per second, summed
        → copies of 256 KiB … 64 MiB in total    → bytes per second by size of the data, summed

A layer cannot be faster than its multiply-adds at the peak rate nor than its bytes at the peak rate; the
larger of the two times is its *bound*. The bandwidth depends on the size of the data because small
networks fit into the caches, which are several times faster than main memory.
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
"""Sizes of the copied data in bytes, 256 KiB to 64 MiB, for all threads together."""
_SIDE = 768
"""Rows and columns of the matrices: three take 7 MB; a product takes 4 ms at 10¹¹ multiply-adds/s."""
_WINDOWS, _WINDOW_SECONDS = 5, 0.1
# OpenBLAS treats processors it does not know as AVX2, which halves the float32 rate on AVX-512.
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

Work = Literal["product", "copy"]

# Multiply-adds per instruction for narrow number formats relative to float32, for the first flag that
# the processor has; 1 without any. From Intel's and ARM's instruction set references: vdpbf16ps and
# bfdot sum 2 products per lane, vpdpbusd and sdot 4, smmla 8; an AMX tile has 16 rows of 16 lanes.
_NARROW: dict[str, tuple[tuple[str, float], ...]] = {
    "bf16": (("amx_bf16", 16), ("avx512_bf16", 2), ("bf16", 2)),
    "f16": (("amx_fp16", 16), ("avx512_fp16", 2), ("asimdhp", 2)),
    "i8": (
        *(("amx_int8", 32), ("avx512_vnni", 4), ("avx_vnni", 4)),
        *(("i8mm", 8), ("asimddp", 4)),
    ),
}


class Rate(BaseModel):
    """A measured rate in 10⁹ per second: the best and the worst of five time windows."""

    model_config = _FROZEN

    best: float
    worst: float


class Roofline(BaseModel):
    """Peak performance of a machine with a number of threads."""

    model_config = _FROZEN

    threads: int
    multiply_adds: Rate
    """Multiply-adds per second in float32, in 10⁹."""
    bandwidth: tuple[tuple[int, Rate], ...]
    """Bytes read and written per second, in 10⁹, for each size of the data in bytes."""
    narrow: dict[str, float]
    """Rate of each number format relative to float32, from the processor's flags, not measured."""

    def compute_ms(self, macs: int, arithmetic: str = "f32") -> float:
        """Minimum time in ms for a number of multiply-adds in a number format, e.g. ``f32``."""
        return macs / (self.multiply_adds.best * self.narrow.get(arithmetic, 1.0)) / 1e6

    def memory_ms(self, moved: int, working_set: int) -> float:
        """Minimum time in ms to move ``moved`` bytes of data with ``working_set`` bytes in total."""
        return moved / self._rate(working_set) / 1e6

    def _rate(self, working_set: int) -> float:
        """Best bandwidth that was measured with data of this size or larger."""
        # Smaller data reach at least the bandwidth of larger data, so a lower value is noise.
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
    """Measure the roofline of this machine in about 3 s.

    Args:
        machine: this machine, whose flags tell which instructions it has for narrow number formats.
        threads: number of single-threaded processes that work at the same time.

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
        start_new_session=True,  # Ctrl-C must reach only this process, which ends the workers
    )
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def _together(workers: Sequence["subprocess.Popen[str]"], work: Work, size: int) -> Rate:
    """Run all workers at the same time and sum their rates in each time window."""
    _tell(workers, {"work": work, "size": size})
    for worker in workers:
        _answer(worker)
    _tell(workers, {"at": time.monotonic() + 0.02})
    totals = [sum(rates) for rates in zip(*map(_answer, workers), strict=True)]
    return Rate(best=max(totals), worst=min(totals))


def _tell(workers: Sequence["subprocess.Popen[str]"], order: dict[str, Any]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer raises the error
            worker.stdin.write(json.dumps(order) + "\n")
            worker.stdin.flush()


def _answer(worker: "subprocess.Popen[str]") -> list[float]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise BadInput("the roofline could not be measured: a process ended, perhaps out of memory")
    rates: list[float] = json.loads(line)
    return rates


def _serve() -> None:
    """Main loop of a worker: prepare the requested work, then do it at the requested time."""
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
    """Call a function for some seconds; returns calls per second."""
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
