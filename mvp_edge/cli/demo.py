"""`make demo`: the whole job on scikit-learn's handwritten digits, in a few minutes, without a network.

A small timm ResNet learns the digits zero to six; a zoo of three-digit tasks is pruned from it; then the
zoo votes on a network for seven, eight and nine, which neither has seen. Every step is the command that a
user would type, through the same functions.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mvp_edge.cli.console import Console
from mvp_edge_export.errors import BadInput

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN, UNSEEN = NAMES[:7], NAMES[7:]
BACKBONE, DIGITS, TASK, ZOO, RUN = "backbone.json", "digits", "seven-eight-nine", "zoo", "run"
SIZE, CHANNELS = 16, [32, 64, 128, 256]
"""Of the backbone: pixels of its input's side, and filters of its four stages."""
BACKBONE_STEPS, ZOO_TASKS, ZOO_STEPS, BENCH_SECONDS = 300, 6, 150, 5
AUGMENT = ("shift",)
"""Mirrored digits are other signs: no flips."""


@dataclass(frozen=True)
class DemoDefaults:
    """What `mvp-edge prune --device D` uses when nothing else is said, after the demo ran."""

    task: str
    zoo: str
    augment: tuple[str, ...] = AUGMENT


def demo_defaults(folder: Path = Path("demo")) -> DemoDefaults | None:
    """The demo's task and zoo, if it ran in this folder."""
    if (folder / ZOO / "zoo.json").exists() and (folder / TASK).is_dir():
        return DemoDefaults(str(folder / TASK), str(folder / ZOO))
    return None


def run_demo(folder: Path, console: Console, seed: int = 0) -> Path:
    """Run it, going on where an earlier one stopped; returns the report's path."""
    digits, task, zoo, run = (folder / name for name in (DIGITS, TASK, ZOO, RUN))
    console.say(f"1/6  handwritten digits → {digits}, {task}")
    write_digits(digits, KNOWN)
    write_digits(task, UNSEEN)  # says which extra is missing, where it is
    from mvp_edge.reporting import report
    from mvp_edge.runs.deliver import export
    from mvp_edge.runs.prune import prune_for
    from mvp_edge.runs.settle import Request
    from mvp_edge.zoo.build import ZooBuild
    from mvp_edge_export.bundle import load_bundle
    from mvp_edge_export.measuring.bench import bench

    console.say(f"2/6  a small ResNet learns zero … six → {folder / BACKBONE}")
    if not (folder / BACKBONE).exists():
        train_backbone(folder, console)
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


def write_digits(folder: Path, names: Iterable[str]) -> None:
    """Class folders of 8×8 greyscale PNGs, from the copy that scikit-learn ships (UCI, CC BY 4.0)."""
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise BadInput(
            "the demo's digits come with scikit-learn: pip install 'mvp-edge[demo]'"
        ) from error
    digits = load_digits()
    for name in names:
        into = folder / name
        if into.is_dir():
            continue
        partial = folder / f".{name}"
        partial.mkdir(parents=True, exist_ok=True)
        for index in (digits.target == NAMES.index(name)).nonzero()[0]:
            grey = (digits.images[index] * (255 / 16)).astype("uint8")
            Image.fromarray(grey).save(partial / f"{index:04d}.png")
        partial.rename(into)


def train_backbone(folder: Path, console: Console) -> None:
    """Train a ResNet of four small stages on the known digits; writes description and weights."""
    import torch
    from safetensors.torch import save_file

    from mvp_edge.pruning.finetune import accuracy, predict_logits
    from mvp_edge.pruning.problem import Problem
    from mvp_edge.pruning.recipe import Recipe
    from mvp_edge.pruning.training import fine_tune
    from mvp_edge.subnetwork.backbone import Architecture, Backbone
    from mvp_edge.tasks.task import Task
    from mvp_edge_export.images import Preprocess
    from mvp_edge_export.storage import atomic_file, sha256_file, write_json

    torch.manual_seed(0)
    changes = {
        "conv1": "Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)",
        "maxpool": "Identity()",
    }
    arguments = {"layers": [1, 1, 1, 1], "channels": CHANNELS}
    architecture = Architecture("resnet18", changes, arguments, SIZE)
    preprocess = Preprocess(SIZE, (0.31, 0.31, 0.31), (0.37, 0.37, 0.37))
    fresh = Backbone(
        "digits", architecture, architecture.build(len(KNOWN)), preprocess, KNOWN, "", ""
    )
    task = Task.open(folder / DIGITS)
    problem = Problem(
        backbone=fresh,
        policy="tied",
        classes=len(task.classes),
        train=task.images("train", preprocess),
        validation=task.images("val", preprocess),
        widths={},
        recipe=Recipe(
            steps=BACKBONE_STEPS,
            batch=64,
            lr=0.05,
            augment=AUGMENT,
            head="random",
            statistics=False,
        ),
        progress=lambda _phase, done, total: console.progress("backbone", done, total),
    )
    trained = fine_tune(problem, fresh.with_head(len(task.classes)), {})
    test = task.images("test", preprocess)
    top1 = accuracy(predict_logits(trained.model, test.pixels, preprocess), test.labels)
    weights = folder / "backbone.safetensors"
    with atomic_file(weights) as partial:
        save_file(trained.model.state_dict(), partial)
    write_json(
        folder / BACKBONE,
        {
            "schema": 1,
            "name": "digits-resnet",
            "library": "timm",
            "architecture": "resnet18",
            "changes": changes,
            "arguments": arguments,
            "weights": weights.name,
            "sha256": sha256_file(weights),
            "num_classes": len(task.classes),
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bilinear",
            "mean": preprocess.mean,
            "std": preprocess.std,
            "classes": task.classes,
            "test": {"images": len(test), "top1": top1},
        },
    )
    console.say(f"     {100 * top1:.1f} % top-1 on {len(test)} test images of zero … six")
