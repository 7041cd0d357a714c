"""`make demo`: the whole job on scikit-learn's handwritten digits, in a few minutes, without a network.

A small timm ResNet learns the digits zero to six; a zoo of three-digit tasks is pruned from it; then the
zoo votes on a network for seven, eight and nine, which neither has seen. Every step is the command that a
user would type, through the same functions.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mvp_edge.demo.digits import (
    AUGMENT,
    BACKBONE,
    DIGITS,
    KNOWN,
    UNSEEN,
    train_backbone,
    write_digits,
)

TASK, ZOO, RUN = "seven-eight-nine", "zoo", "run"
ZOO_TASKS, ZOO_STEPS, BENCH_SECONDS = 6, 150, 5


class Reporter(Protocol):
    """Who is told how the demo goes on."""

    def say(self, line: str) -> None:
        """A remark."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a phase."""

    def step(self, phase: str) -> None:
        """A phase without a measure begins."""

    def share(self, what: str, share: float) -> None:
        """The share (0 … 1) that is done of a work of many short phases."""


@dataclass(frozen=True)
class DemoDefaults:
    """What `mvp-edge prune --device D` uses without --task, where the demo has run."""

    task: str
    zoo: str
    augment: tuple[str, ...] = AUGMENT


def demo_defaults(folder: Path = Path("demo")) -> DemoDefaults | None:
    """The demo's task and zoo, if it ran in this folder."""
    if (folder / ZOO / "zoo.json").exists() and (folder / TASK).is_dir():
        return DemoDefaults(str(folder / TASK), str(folder / ZOO))
    return None


def run_demo(folder: Path, console: Reporter, seed: int = 0) -> Path:
    """Run the demo, or go on where an earlier run stopped; returns the report's path."""
    digits, task, zoo, run = (folder / name for name in (DIGITS, TASK, ZOO, RUN))
    console.say(f"1/6  handwritten digits → {digits}, {task}")
    write_digits(digits, KNOWN)
    write_digits(task, UNSEEN)  # says which extra is missing, where it is
    from mvp_edge.reporting import report
    from mvp_edge.runs.deliver import export
    from mvp_edge.runs.prune import prune_for
    from mvp_edge.runs.request import Request
    from mvp_edge.zoo.build import ZooBuild
    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.measuring.bench import bench

    console.say(f"2/6  a small ResNet learns zero … six → {folder / BACKBONE}")
    if not (folder / BACKBONE).exists():
        console.say(f"     {train_backbone(folder, console.progress)}")
    shift = "--augment shift"
    console.say(
        f"3/6  mvp-edge zoo build --backbone {folder / BACKBONE} --tasks {digits} --zoo {zoo} "
        f"--sample {ZOO_TASKS}x3 --keep 0.25 --steps {ZOO_STEPS} {shift} --seed {seed}"
    )
    ZooBuild(
        backbone=str(folder / BACKBONE),
        tasks=digits,
        path=zoo,
        sample=f"{ZOO_TASKS}x3",
        keep=0.25,
        steps=ZOO_STEPS,
        augment=AUGMENT,
        seed=seed,
    ).run(console.progress)
    request = Request("rpi4.yaml", str(task), str(zoo), augment=AUGMENT, reference=True, seed=seed)
    console.say(f"4/6  {shlex.join(request.command(run))}")
    if not _finished(run):
        prune_for(request, run, False, console.progress, console.say)
    bundle = run / "bundle"
    console.say(
        f"5/6  mvp-edge export {run} --baseline; mvp-edge bench {bundle} --seconds {BENCH_SECONDS}"
    )
    if not bundle.exists():
        export(run, baseline=True, progress=console.step)
    if not (run / "bench.json").exists():
        measured = bench(load_bundle(bundle), seconds=BENCH_SECONDS, progress=console.share)
        measured.save(run / "bench.json")
    console.say(f"6/6  mvp-edge report {run}")
    return report([run])


def _finished(run: Path) -> bool:
    from mvp_edge_export.storage import read_json

    facts = run / "run.json"
    return facts.exists() and bool(read_json(facts, "run").get("finished"))
