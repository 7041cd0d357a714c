"""Main program of a measuring process, which times one network in one runtime for ``bench``.

It reads one JSON object per line and answers each with one line. The answer to a round is followed by the
samples as raw bytes, so that measuring itself needs little memory:

    {"model": …, "runtime": …, "threads": …, "shape": …} → {"import_ms", "load_ms", "first_ms", …}
    {"do": "warm", "seconds": …, "cap": …}               → {"runs", "seconds", "settled"}
    {"do": "round", "seconds": …}                        → {"n", "cpu", "rss"} + n · int64 ns
    {"do": "layers", "runs": …}                          → {"runs", "whole_ms", …}
    {"do": "memory"}                                     → {"rss", "peak"}

With "profile": FOLDER in the first line, the runtime records the times of the layers. A later line of the
first kind replaces the network by another one. The process ends when its input ends, so that it does not
outlive ``bench``.
"""

import json
import os
import sys
from array import array
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns, process_time
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from mvp_edge_export.running.sessions import Floats, Session

_SETTLED = 0.02
_BLOCK = 10


def main() -> None:
    """Answer requests until the input ends."""
    # Redirect stdout, so that output of the runtime does not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    job = _request()
    if job is None:
        return
    session, image, ready = _start(job)
    _answer(answers, ready)
    while (request := _request()) is not None:
        if "model" in request:
            session, image, ready = _start(request)
            _answer(answers, ready)
        elif request["do"] == "warm":
            _answer(answers, _warm(session, image, request["seconds"], request["cap"]))
        elif request["do"] == "round":
            _round(answers, session, image, request["seconds"])
        elif request["do"] == "layers":
            from mvp_edge_export.measuring.reports import layers_of

            _answer(answers, layers_of(session, partial(_timed, session, image), request["runs"]))
        else:
            _answer(answers, {"rss": _memory("VmRSS"), "peak": _memory("VmHWM")})


def _start(job: dict[str, Any]) -> tuple["Session", "Floats", dict[str, Any]]:
    """Import the runtime, load the network and run it once, and time each of the three."""
    begin = perf_counter()
    import numpy as np

    from mvp_edge_export.running.sessions import RUNTIMES, import_runtime

    import_runtime(job["runtime"])
    imported = perf_counter()
    rss_import = _memory("VmRSS")
    with suppress(OSError):  # reset the peak memory; some kernels do not allow it
        Path("/proc/self/clear_refs").write_text("5")
    before_load = perf_counter()
    session = RUNTIMES[job["runtime"]](Path(job["model"]), threads=job["threads"], **_profile(job))
    loaded = perf_counter()
    rss_load = _memory("VmRSS")
    image = np.random.default_rng(0).standard_normal(job["shape"], dtype=np.float32)
    before_first = perf_counter()
    session.run(image)
    first = perf_counter()
    facts = {
        "import_ms": 1e3 * (imported - begin),
        "load_ms": 1e3 * (loaded - before_load),
        "first_ms": 1e3 * (first - before_first),
        "rss": {"import": rss_import, "load": rss_load, "first": _memory("VmRSS")},
        "version": session.version,
        "arithmetic": session.arithmetic,
        "options": session.options,
    }
    return session, image, facts


def _profile(job: dict[str, Any]) -> dict[str, Path]:
    return {"profile": Path(job["profile"])} if "profile" in job else {}


def _warm(session: "Session", image: "Floats", seconds: float, cap: float) -> dict[str, Any]:
    """Run until the medians of two successive blocks of 10 runs differ by less than 2 %."""
    times: list[int] = []
    settled = False
    begin = perf_counter()
    while (elapsed := perf_counter() - begin) < cap:
        if settled and elapsed >= seconds:
            break
        times.append(_timed(session, image))
        if len(times) >= 2 * _BLOCK and len(times) % _BLOCK == 0:
            before, now = median(times[-2 * _BLOCK : -_BLOCK]), median(times[-_BLOCK:])
            settled = abs(now - before) < _SETTLED * before
    return {"runs": len(times), "seconds": elapsed, "settled": settled}


def _round(answers: BinaryIO, session: "Session", image: "Floats", seconds: float) -> None:
    cpu = process_time()
    # Another process ran since the last round, so refill the caches before timing.
    begin = perf_counter()
    warm = 0
    while warm < 3 or perf_counter() - begin < 0.05 * seconds:
        session.run(image)
        warm += 1
    times = array("q")
    begin = perf_counter()
    while perf_counter() - begin < seconds:
        times.append(_timed(session, image))
    facts = {"n": len(times), "cpu": process_time() - cpu, "rss": _memory("VmRSS")}
    _answer(answers, facts, times.tobytes())


def _timed(session: "Session", image: "Floats") -> int:
    begin = perf_counter_ns()
    session.run(image)
    return perf_counter_ns() - begin


def _memory(key: str) -> int:
    """Read a size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _request() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def _answer(answers: BinaryIO, facts: dict[str, Any], samples: bytes = b"") -> None:
    answers.write(json.dumps(facts).encode() + b"\n" + samples)
    answers.flush()


if __name__ == "__main__":
    main()
