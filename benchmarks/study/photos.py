"""A folder of photographs → DeiT-Tiny for a Raspberry Pi → report, by the commands that a user types.

    python -m benchmarks.study.photos [--steps 120]       needs MVP_EDGE_DATA

There is no zoo for this backbone, so `prune` works from scratch (AHNP).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.data import below_data, data_folder
from benchmarks.study.rows import RESULTS
from mvp_edge.machine import this_computer, versions
from mvp_edge_export.storage import write_json

COMMAND = str(Path(sys.executable).parent / "mvp-edge")
BACKBONE = "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--steps", default="120", help="pruning and training steps (default: 120)"
    )
    arguments.add_argument("--device", default="rpi4", help="device profile (default: rpi4)")
    arguments.add_argument(
        "--keep", default="0.5", help="largest keep ratio; the budgets may need less (default: 0.5)"
    )
    arguments.add_argument(
        "--keep-in", type=Path, help="where images and run go (default: a temporary folder)"
    )
    options = arguments.parse_args()
    chosen = ["--keep", options.keep, "--steps", options.steps]
    folder = options.keep_in or Path(tempfile.mkdtemp())
    if not (folder / "imagenette_photos").exists():
        with zipfile.ZipFile(data_folder() / "imagenette_photos.zip") as archive:
            archive.extractall(folder)
    commands = {
        "prune": ["prune", "--device", options.device, "--task", "imagenette_photos",
                  "--backbone", below_data(BACKBONE), *chosen, "--out", "run"],
        "export": ["export", "run", "--baseline"],
        "bench": ["bench", "run/bundle"],
        "report": ["report", "run"],
    }  # fmt: skip
    typed = f"prune --device {options.device} --task imagenette_photos {' '.join(chosen)}"
    record = folder / "seconds.json"  # commands that have finished are not repeated
    done: dict[str, Any] = (
        json.loads(record.read_text()) if record.exists() else {"command": typed, "seconds": {}}
    )
    if done["command"] != typed:
        sys.exit(f"{folder} holds `{done['command']}`: choose another --keep-in")
    seconds: dict[str, float] = done["seconds"]
    for name, command in commands.items():
        if name in seconds:
            continue
        start = time.perf_counter()
        ended = subprocess.run([COMMAND, *command, "-q"], cwd=folder, stdout=subprocess.DEVNULL)
        if ended.returncode not in (0, 3):  # 3: a budget is missed, which is a result
            sys.exit(f"{name} ended with {ended.returncode}")
        seconds[name] = time.perf_counter() - start
        print(name, round(seconds[name], 1), flush=True)
        write_json(record, done)
    facts = {
        "schema": 1,
        "machine": this_computer(),
        "versions": versions(),
        "command": typed,
        "seconds": seconds,
        **reached(folder / "run"),
    }
    write_json(RESULTS / "photos.json", facts)


def reached(run: Path) -> dict[str, Any]:
    """What the run's files record: images, verdicts, accuracy in each runtime, latency."""
    facts, verified, bench = (
        json.loads((run / f"{name}.json").read_text()) for name in ("run", "verified", "bench")
    )
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    return {
        "images": facts["task"]["images"],
        "keep": facts["keep"],
        "phases": facts["phases"],
        "training": facts["training"],
        "cost": {"pruned": verified["cost"], "unpruned": verified["cost_baseline"]},
        "verdicts": manifest["verdicts"],
        "accuracy": manifest["accuracy"],
        "cells": bench["cells"],
    }


if __name__ == "__main__":
    main()
