"""Our median latency (p50) against that of other tools that share no code with ours, on the same files.

    python -m benchmarks.device.crosscheck [--seconds 5] [--turns 5]     on an idle machine: 20 min

The tools are OpenVINO's `benchmark_app` (synchronous, one stream, float32 input), and a plain loop in each runtime
that measures as `onnxruntime_perf_test` does. Each measurement is a new process. A turn measures once with each
tool, and the order is reversed from turn to turn. Goal: within 10 %. Needs MVP_EDGE_DATA.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.device.networks import ARCHITECTURES, PRECISIONS, WORK, Variant, make
from mvp_edge.machine import this_computer, versions
from mvp_edge_export.measuring.bench import time_model
from mvp_edge_export.running.sessions import RUNTIMES, format_of
from mvp_edge_export.storage import write_json

RESULT = Path(__file__).with_suffix(".json")
LOOP = Path(__file__).with_name("plain_loop.py")
BENCHMARK_APP = str(Path(sys.executable).parent / "benchmark_app")
NETWORKS = (
    ("resnet18-32", Variant(0.1)),
    ("resnet18-32", Variant(1)),
    ("deit-tiny-224", Variant(0.5)),
)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--seconds", type=float, default=5.0, help="timed seconds a measurement (default: 5)"
    )
    arguments.add_argument(
        "--turns", type=int, default=5, help="measurements with each tool (default: 5)"
    )
    arguments.add_argument(
        "--work",
        type=Path,
        default=WORK,
        help="where networks go (default: benchmarks/device/.work)",
    )
    arguments.add_argument(
        "--out", type=Path, default=RESULT, help="default: crosscheck.json beside this file"
    )
    options = arguments.parse_args()
    rows = []
    for name, variant in NETWORKS:
        bundle = make(name, variant, PRECISIONS, options.work).bundle
        size = bundle.preprocess.size
        for runtime in RUNTIMES:
            model = bundle.model(format_of(runtime)).resolve()
            for threads in (1, 2):
                job = (model, size, runtime, threads, options.seconds)
                row: dict[str, Any] = {
                    "network": ARCHITECTURES[name].title,
                    "variant": variant.name,
                }
                row |= {"runtime": runtime, "threads": threads, **_turns(job, options.turns)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    facts = {"schema": 1, "machine": this_computer(), "versions": versions()}
    facts |= {"seconds": options.seconds, "turns": options.turns, "rows": rows}
    write_json(options.out, facts)


Job = tuple[Path, int, str, int, float]
"""Model, image size, runtime, threads, seconds."""


def _turns(job: Job, turns: int) -> dict[str, Any]:
    """The p50 in ms of each tool in each turn, and the ratio of our median to each other tool's."""
    tools: dict[str, Callable[[Job], float]] = {"ours": _ours, "plain loop": _plain}
    if job[2] == "openvino":
        tools["benchmark_app"] = _benchmark_app
    found: dict[str, list[float]] = {name: [] for name in tools}
    order = list(tools)
    for _ in range(turns):
        for name in order:
            found[name].append(tools[name](job))
        order.reverse()
    ours = median(found["ours"])
    ratios = {name: ours / median(values) for name, values in found.items() if name != "ours"}
    return {"p50_ms": found, "ours_over": ratios}


def _ours(job: Job) -> float:
    model, size, runtime, threads, seconds = job
    return time_model(model, (1, 3, size, size), runtime, threads, seconds=seconds).latency.p50


def _plain(job: Job) -> float:
    model, _, runtime, threads, seconds = job
    words = [sys.executable, "-P", LOOP, model, runtime, threads, seconds]
    output = _run([str(word) for word in words])
    return float(json.loads(output)["p50"])


def _benchmark_app(job: Job) -> float:
    model, _, _, threads, seconds = job
    words = ["-m", model, "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", threads]
    words += ["-api", "sync", "-t", max(1, round(seconds)), "-ip", "f32"]
    output = _run([BENCHMARK_APP, *(str(word) for word in words)])
    # Its JSON report rounds to hundredths of a millisecond.
    median_time = re.search(r"Median:\s+([\d.]+) (us|ms|s)\b", output)
    assert median_time is not None, output
    return float(median_time[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[median_time[2]]


def _run(words: list[str]) -> str:
    # The number of threads is given to each tool; nothing else may limit it.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return ended.stdout


if __name__ == "__main__":
    main()
