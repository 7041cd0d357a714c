"""Fronts of five networks on targets of two families: accuracy at each size, the choice, and what it costs.

    python -m benchmarks.device.front make --family resnet18 --targets 0,1,2,3      resumable, on any machine
    python -m benchmarks.device.front time --family resnet18                        on an idle machine
    python -m benchmarks.device.front cost --family resnet18 --targets 0            on an idle machine

`make` runs `prune --front 5 --reference` for each target, leave-one-out, and adds rows to front.json (--rows).
`time` measures the latency of these networks. `cost` measures the wall time of a front, and of the same five sizes
as single runs, by the commands that a user types. Needs MVP_EDGE_DATA; DeiT's zoo is not committed (--zoo).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import below_data, data_folder
from mvp_edge.machine import this_computer, versions
from mvp_edge.runs.choice import Front
from mvp_edge.runs.front import Bench, time_member
from mvp_edge.runs.prune import prune_for
from mvp_edge.runs.request import Request
from mvp_edge.runs.run import Run
from mvp_edge.runs.rundir import RunDirectory
from mvp_edge.subnetwork.network import TENSORS
from mvp_edge.tasks.task import Task, sample_tasks
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import read_json, sha256_file, write_json

HERE = Path(__file__).parent
ROWS = HERE / "front.json"
MAX_DROP = 3.0


@dataclass(frozen=True)
class Family:
    """A backbone, its tasks, and the size of its fronts."""

    backbone: str
    images: str
    input_size: int | None
    targets: int
    keep: float
    """Keep ratio of the largest member; no budget is tighter."""


FAMILIES = {
    "resnet18": Family("weights/resnet18_cifar100.json", "cifar100.zip", None, 24, 0.5),
    "deit-tiny": Family(
        "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
        "tiny_imagenet_100.zip",
        64,
        7,
        0.75,
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("which", choices=["make", "time", "cost"], help="see above")
    arguments.add_argument(
        "--family", choices=FAMILIES, default="resnet18", help="default: resnet18"
    )
    arguments.add_argument(
        "--zoo",
        type=Path,
        default=HERE.parent / "zoos" / "resnet18-cifar100",
        help="default: benchmarks/zoos/resnet18-cifar100",
    )
    arguments.add_argument(
        "--targets", default="0,1,2,3", help="indices, with commas (default: 0,1,2,3)"
    )
    arguments.add_argument(
        "--work", type=Path, default=Path("fronts"), help="where runs go (default: fronts)"
    )
    arguments.add_argument(
        "--rows",
        type=Path,
        default=ROWS,
        help="default: front.json; one process at a time may write it",
    )
    options = arguments.parse_args()
    torch.set_num_threads(1)
    family, data = FAMILIES[options.family], data_folder()
    tasks = sample_tasks(data / family.images, family.targets, 5, 0)
    chosen = [tasks[int(number)] for number in options.targets.split(",")]
    rows: dict[str, Any] = {"schema": 1, "fronts": [], "costs": []}
    rows |= read_json(options.rows, "rows") if options.rows.exists() else {}
    rows |= {"max_drop": MAX_DROP, "machine": this_computer(), "versions": versions()}
    for task in chosen:
        where = options.work / options.family / task.name
        known = {(row["family"], row["target"]): row for row in rows["fronts"]}
        row = known.get((options.family, task.name))
        if options.which == "make" and row is None:
            request = _request(options.family, options.zoo, task, data)
            if not RunDirectory.finished(where):
                prune_for(request, where, False, _progress, _print)
            rows["fronts"].append({"family": options.family, **_row(where, task)})
        if options.which == "time" and row is not None:
            bench = Bench.here(_profile())
            for member in row["members"]:
                run = Run.load(where / "front" / str(member["number"]))
                member["timings"] = [t.model_dump(mode="json") for t in time_member(run, bench)]
            row["timed"] = bench.told
        if options.which == "cost":
            cost = _cost(options.family, options.zoo, task, data)
            rows["costs"].append({"family": options.family, **cost})
        write_json(options.rows, rows)


def _profile() -> DeviceProfile:
    profile = load_profile("x86-laptop")
    runtime = profile.runtime.model_copy(update={"threads": 1})
    accuracy = profile.accuracy.model_copy(update={"max_drop": MAX_DROP})
    return profile.model_copy(update={"runtime": runtime, "accuracy": accuracy})


def _request(name: str, zoo: Path, task: Task, data: Path) -> Request:
    family = FAMILIES[name]
    return Request(
        _profile(),
        task,
        str(zoo),
        backbone=below_data(family.backbone),
        input_size=family.input_size,
        keep=family.keep,
        reference=True,
        front=5,
        accelerator="cpu",
    )


def _row(where: Path, task: Task) -> dict[str, Any]:
    front, facts = Front.load(where), read_json(where / "run.json", "run")
    reference = read_json(where / "reference.json", "reference")
    inside = [where / "front" / str(member.number) for member in front.members]
    spent = [read_json(path / "pruned.json", "run")["training"] for path in inside]
    return {
        "target": task.name,
        "classes": list(task.classes),
        **front.model_dump(mode="json", exclude={"schema_", "members"}),
        "reference_test": reference["top1"],
        "members": [
            {**member.model_dump(mode="json"), "training": cost}
            for member, cost in zip(front.members, spent, strict=True)
        ],
        "phases": facts["phases"],
        "method": facts["method_reason"],
    }


def _cost(name: str, zoo: Path, task: Task, data: Path) -> dict[str, Any]:
    """Wall time of a front and of its members as single runs, in seconds; each is a new process."""
    family = FAMILIES[name]
    command = [str(Path(sys.executable).parent / "mvp-edge"), "prune", "--device", "x86-laptop"]
    command += ["--task", str(data / family.images), "--classes", ",".join(task.classes)]
    command += ["--zoo", str(zoo.resolve()), "--backbone", below_data(family.backbone), "-q"]
    with tempfile.TemporaryDirectory() as folder:
        front = f"{folder}/front"
        whole = _timed([*command, "--keep", f"{family.keep}", "--front", "5", "--out", front])
        phases = {p["name"]: p["seconds"] for p in read_json(Path(front, "run.json"), "")["phases"]}
        keeps = [member.keep for member in Front.load(Path(front)).members]
        singles = [
            _timed([*command, "--keep", f"{keep}", "--out", f"{folder}/{number}"])
            for number, keep in enumerate(keeps, 1)
        ]
        equal = all(
            sha256_file(Path(front, "front", str(number), TENSORS))
            == sha256_file(Path(folder, str(number), TENSORS))
            for number in range(1, len(keeps) + 1)
        )
    return {
        "target": task.name,
        "keeps": keeps,
        "front_seconds": whole,
        "phases": phases,
        "single_seconds": singles,
        "equal": equal,
    }


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 2)


def _progress(phase: str, done: int, total: int) -> None:
    if done == total:
        print(f"{time.strftime('%H:%M:%S')} {phase}", flush=True)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
