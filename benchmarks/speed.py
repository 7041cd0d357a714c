"""P3, P8, P10: wall time of the commands as a user types them, on an otherwise idle machine.

    python -m benchmarks.speed          needs MVP_EDGE_DATA and benchmarks/zoos/resnet18-cifar100

Each command is a fresh process, imports included. P3 compares `prune --method mvp` with `prune --method ifp`
(1,000 steps) on the same task, the phases that prune (similarity and pruning), taken from run.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from mvp_edge.runs.rundir import machine, versions
from mvp_edge_export.storage import write_json

HERE = Path(__file__).parent
ZOO = HERE / "zoos" / "resnet18-cifar100"
COMMAND = [str(Path(sys.executable).parent / "mvp-edge")]
CLASSES = ("chair,clock,elephant,ray,snail", "bear,boy,bridge,cup,tulip", "bus,fox,lamp,pear,worm")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--ifp", type=int, default=1, help="tasks on which IFP@1000 is timed too"
    )
    options = arguments.parse_args()
    data = Path(os.environ["MVP_EDGE_DATA"])
    given = ["--device", "x86-laptop", "--zoo", str(ZOO)]
    given += ["--backbone", str(data / "weights" / "resnet18_cifar100.json")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        helps = [timed([*COMMAND, "--help"], folder) for _ in range(10)]
        for number, classes in enumerate(CLASSES):
            task = [
                *given,
                "--task",
                unpacked(data / "cifar100.zip", classes, f"{folder}/t{number}"),
            ]
            run = f"{folder}/mvp{number}"
            command = [*COMMAND, "prune", *task, "-q", "--method"]
            prune = timed([*command, "mvp", "--out", run], folder)
            export = timed([*COMMAND, "export", run, "-q"], folder)
            row = {"classes": classes, "prune": prune, "export": export, "phases": phases(run)}
            made = json.loads(Path(run, "pruned.json").read_text())
            row["steps"] = made["training"]["step_seconds"]
            if number < options.ifp:
                scratch = f"{folder}/ifp{number}"
                timed([*command, "ifp", "--out", scratch], folder)
                row["ifp_phases"] = phases(scratch)
            rows.append(row)
            print(json.dumps(row), flush=True)
    entries = len(list(ZOO.glob("entries/*")))
    facts = {
        "schema": 1,
        "machine": machine(),
        "versions": versions(),
        "conditions": f"ResNet-18, CIFAR-100, 5 classes, tied keep 0.1, zoo of {entries}, 2 cores",
        "help": helps,
        "rows": rows,
    }
    write_json(HERE / "results" / "speed.json", facts)


def unpacked(archive: Path, classes: str, folder: str) -> str:
    """A user's folder: the images of some classes."""
    wanted = set(classes.split(","))
    with zipfile.ZipFile(archive) as zip_:
        zip_.extractall(folder, [n for n in zip_.namelist() if n.split("/")[-2] in wanted])
    return f"{folder}/{archive.stem}"


def timed(command: list[str], folder: str) -> float:
    """Seconds of a command as a fresh process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def phases(run: str) -> dict[str, float]:
    """Phase → seconds, from run.json."""
    facts = json.loads(Path(run, "run.json").read_text())
    return {phase["name"]: phase["seconds"] for phase in facts["phases"]}


if __name__ == "__main__":
    main()
