"""P5: latency of pruned networks against unpruned ones, in both runtimes, one thread.

    python -m benchmarks.latency        needs MVP_EDGE_DATA and an otherwise idle machine

The networks are made by the commands (`prune --method magnitude --steps 0`, `export --baseline`, `bench
--threads 1`): what is timed does not depend on the values of the weights. Device widths (rounded to 8).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mvp_edge.runs.rundir import machine, versions
from mvp_edge_export.storage import write_json

HERE = Path(__file__).parent
COMMAND = [str(Path(sys.executable).parent / "mvp-edge")]
GRID: list[dict[str, Any]] = [
    {"name": "ResNet-18, 32 px", "backbone": "weights/resnet18_cifar100.json", "task": "cifar100.zip",
     "classes": "chair,clock,elephant,ray,snail", "keep": 0.5},
    {"name": "ResNet-18, 32 px", "backbone": "weights/resnet18_cifar100.json", "task": "cifar100.zip",
     "classes": "chair,clock,elephant,ray,snail", "keep": 0.1},
    {"name": "DeiT-Tiny, 224 px", "backbone": "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
     "task": "imagenette_photos.zip", "keep": 0.5},
    {"name": "DeiT-Tiny, 224 px", "backbone": "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
     "task": "imagenette_photos.zip", "keep": 0.25},
]  # fmt: skip


def main() -> None:
    data = Path(os.environ["MVP_EDGE_DATA"])
    rows = []
    for case in GRID:
        with tempfile.TemporaryDirectory() as folder:
            architecture, at, file = case["backbone"].rpartition("@")
            run = [*COMMAND, "prune", "--device", str(HERE / "plans" / "unbudgeted.yaml"), "-q",
                   "--backbone", f"{architecture}{at}{data / file}", "--task", str(data / case["task"]),
                   "--method", "magnitude", "--steps", "0", "--keep", str(case["keep"]),
                   "--out", "run"]  # fmt: skip
            if "classes" in case:
                run += ["--classes", case["classes"]]
            for command in (
                run,
                [*COMMAND, "export", "run", "--baseline", "-q"],
                [*COMMAND, "bench", "run/bundle", "--threads", "1", "-q", "--out", "bench.json"],
            ):
                subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
            bench = json.loads(Path(folder, "bench.json").read_text())
            verified = json.loads(Path(folder, "run/verified.json").read_text())
            rows.append(row(case, bench, verified))
            print(json.dumps(rows[-1]), flush=True)
    facts = {"schema": 1, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(HERE / "results" / "latency.json", facts)


def row(case: dict[str, Any], bench: dict[str, Any], verified: dict[str, Any]) -> dict[str, Any]:
    """FLOPs and, for each runtime, p50 with its interval of both networks."""
    full, small = verified["cost_baseline"]["flops"], verified["cost"]["flops"]
    cells = {
        f"{cell['runtime']}/{cell['network']}": {
            "p50_ms": cell["latency"]["p50"],
            "interval": cell["latency"]["p50_interval"],
            "n": cell["latency"]["n"],
            "status": cell["status"],
        }
        for cell in bench["cells"]
    }
    return {
        "network": case["name"], "keep": case["keep"], "flops": small, "flops_unpruned": full,
        "flops_ratio": full / small, "cells": cells, "protocol": bench["protocol"]["statement"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
