"""Wall time of `--help`, `prune` and `export` as a user types them, on an otherwise idle machine.

    python -m benchmarks.timing.speed          needs MVP_EDGE_DATA and benchmarks/zoos/resnet18-cifar100

Each command is a fresh process, imports included. `prune` is timed with a zoo's votes, from a trunk (trained for
only 20 steps, since its accuracy does not affect the duration), and from scratch in 1,000 steps by
`--method distill` and `--method ifp`. The phases are those of run.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import below_data, data_folder
from mvp_edge.machine import this_computer, versions
from mvp_edge_export.storage import write_json

HERE = Path(__file__).parents[1]
ZOO = HERE / "zoos" / "resnet18-cifar100"
COMMAND = [str(Path(sys.executable).parent / "mvp-edge")]
CLASSES = ("chair,clock,elephant,ray,snail", "bear,boy,bridge,cup,tulip", "bus,fox,lamp,pear,worm")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--ifp",
        type=int,
        default=1,
        help="number of tasks on which --method ifp is timed, too (default: 1)",
    )
    options = arguments.parse_args()
    data = data_folder()
    images = str(data / "cifar100.zip")
    backbone = ["--backbone", below_data("weights/resnet18_cifar100.json")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        helps = [timed([*COMMAND, "--help"], folder) for _ in range(10)]
        grown = f"{folder}/grown"
        trunk = ["zoo", "trunk", grown, *backbone, "--tasks", images, "--sample", "20x5"]
        timed([*COMMAND, *trunk, "--steps", "20", "-q"], folder)
        for number, classes in enumerate(CLASSES):
            task = unpacked(Path(images), classes, f"{folder}/t{number}")
            given = ["--device", "x86-laptop", *backbone, "--task", task]
            row = {}
            for way, zoo in (("mvp", ["--zoo", str(ZOO)]), ("trunk", ["--zoo", grown])):
                run = f"{folder}/{way}{number}"
                row[way] = pruned([way, *given, *zoo], run, folder)
                row[way]["export"] = timed([*COMMAND, "export", run, "-q"], folder)
            for way in ("distill", "ifp") if number < options.ifp else ("distill",):
                row[way] = pruned([way, *given], f"{folder}/{way}{number}", folder)
            rows.append({"classes": classes, **row})
            print(json.dumps(row), flush=True)
    entries = len(list(ZOO.glob("entries/*")))
    facts = {
        "schema": 1,
        "machine": this_computer(),
        "versions": versions(),
        "conditions": f"ResNet-18, CIFAR-100, 5 classes, tied keep 0.1, zoo of {entries}, {os.cpu_count()} cores",
        "help": helps,
        "rows": rows,
    }
    write_json(HERE / "results" / "speed.json", facts)


def pruned(how: Sequence[str], run: str, folder: str) -> dict[str, Any]:
    """Seconds of `prune --method …`, of its phases, and of its training steps."""
    prune = timed([*COMMAND, "prune", "-q", "--out", run, "--method", *how], folder)
    made = json.loads(Path(run, "pruned.json").read_text())
    return {"prune": prune, "phases": phases(run), "steps": made["training"]["step_seconds"]}


def unpacked(archive: Path, classes: str, folder: str) -> str:
    """A folder with the images of some classes, as a user would have it."""
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
