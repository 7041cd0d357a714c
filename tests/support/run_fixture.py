"""A finished run directory without a run: plausible figures, consistent with one another.

Nothing here trains; the shapes are those of real networks (ResNet-18 and -50 tied, DeiT-Tiny), votes
and random selection follow the method, and the pictures are drawn. Used by the tests of the report and by
hand, to look at it.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel

from mvp_edge.runs.files import (
    ClassAccuracy,
    Example,
    GroupVotes,
    HistoryFile,
    LayerFlops,
    LayersFile,
    Neighbour,
    NeighboursFile,
    RankedTask,
    ReferenceFile,
    SharedMeaning,
    Step,
    TestFile,
    Validation,
    VotesFile,
)
from mvp_edge.runs.run_file import (
    BackboneFacts,
    Keep,
    Phase,
    ProfileFacts,
    Room,
    RunFile,
    Skipped,
    TaskFacts,
    TrainingFacts,
    Width,
)
from mvp_edge_export.measuring.choice import decided
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import sha256_file, write_json
from mvp_edge_export.verified import Cost, Verdict, Verified
from tests.support.bundle_fixture import Shipment, bench_of, manifest_of, verdict_on

CLASSES = ("beaver", "dolphin", "otter", "seal", "whale")
ZOO = ("aquatic fish", "small mammals", "reptiles", "large carnivores", "household", "trees")


@dataclass
class Recipe:
    """What kind of run to write; everything has a default."""

    classes: Sequence[str] = CLASSES
    task: str = "aquatic mammals"
    network: str = "resnet18"
    neighbours: int = 3
    """0 makes a run from scratch: no neighbours, no votes."""
    keep: float = 0.1
    top1: float = 0.91
    images: int = 250
    exported: bool = True
    benched: bool = True
    int8: bool = True
    """Whether int8 was exported beside fp32."""
    chosen: bool = False
    """Whether `bench --choose` settled what is shipped."""
    reference: bool = True
    examples: int = 16
    limits: dict[str, float] = field(default_factory=dict)
    """Budgets that replace the profile's, e.g. {"flops": 1e6}."""
    machine_is_device: bool = True
    seed: int = 0


class Group(NamedTuple):
    """A unit group of the backbone."""

    name: str
    kind: str
    size: int


def write_run(path: Path, recipe: Recipe | None = None) -> Path:
    """Write a run directory as `prune`, `export` and `bench` would leave it."""
    recipe = recipe or Recipe()
    random = np.random.default_rng(recipe.seed)
    path.mkdir(parents=True)
    profile = _profile(recipe)
    (path / "network.safetensors").write_bytes(random.bytes(2000))
    groups = _groups(recipe.network)
    test = _test(recipe, random)
    verified = _verified(recipe, profile, test, sha256_file(path / "network.safetensors"))
    verified.save(path / "verified.json")
    written = [test, _history(recipe, groups, random), _layers(groups, verified.cost.flops)]
    if recipe.neighbours:
        written += [_votes(recipe, groups, random), _neighbours(recipe)]
    if recipe.reference:
        written.append(
            ReferenceFile(
                top1=0.936, n=recipe.images, steps=1000, training_flops=2.1e14, seconds=1310.0
            )
        )
    for file in (*written, _run(recipe, groups, profile)):
        file.save(path)
    if recipe.exported:
        shipment = Shipment(tuple(recipe.classes), profile, verified, recipe.int8)
        manifest = manifest_of(shipment)
        _save(path / "bundle" / "manifest.json", manifest)
        if recipe.benched:
            bench = bench_of(shipment, manifest, random, recipe.keep, here=recipe.machine_is_device)
            _save(path / "bench.json", bench)
            if recipe.chosen:
                _save(path / "bundle" / "manifest.json", decided(manifest, bench))
    return path


def edit(path: Path, key: str, value: Any) -> None:
    """Replace one value of a JSON file, addressed as "training.steps" or "groups.0.votes"."""
    content = json.loads(path.read_text())
    *way, last = key.split(".")
    at = content
    for part in way:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[int(last) if isinstance(at, list) else last] = value
    path.write_text(json.dumps(content))


def _save(path: Path, model: BaseModel) -> None:
    write_json(path, model.model_dump(mode="json", by_alias=True))


def _profile(recipe: Recipe) -> DeviceProfile:
    profile = load_profile("rpi4")
    changed = profile.model_dump(mode="json", by_alias=True)
    for name, limit in recipe.limits.items():
        if name.startswith("latency."):
            changed["budgets"]["latency"] = {"p90": f"{limit}ms"}
        else:
            changed["budgets"][name] = limit
    latency = changed["budgets"]["latency"] or {}
    changed["budgets"]["latency"] = {
        name: value if isinstance(value, str) else f"{value}ms"
        for name, value in latency.items()
        if value is not None
    }
    return DeviceProfile.model_validate(changed)


def _verified(recipe: Recipe, profile: DeviceProfile, test: TestFile, weights: str) -> Verified:
    base = _cost(555_400_000, 11_200_000)
    cost = _cost(int(base.flops * recipe.keep**1.98), int(base.params * recipe.keep**1.95))
    cost = cost.model_copy(update={"flops_norm": cost.flops // 50})
    budgets = profile.budgets
    return Verified(
        weights_sha256=weights,
        cost=cost,
        cost_baseline=base,
        accuracy=test.top1,
        images=test.n,
        verdicts=(
            verdict_on("flops", budgets.flops, cost.flops, "multiply-adds", "counted"),
            verdict_on("params", budgets.params, cost.params, "parameters", "counted"),
            verdict_on("file", budgets.file, 4 * cost.params + 20_000, "bytes", "predicted"),
            verdict_on("memory", budgets.memory, cost.memory_bytes, "bytes", "predicted"),
            _latency_unknown(profile),
            verdict_on("accuracy.max_drop", profile.accuracy.max_drop, None, "points", "none"),
        ),
        profile=profile.id,
        profile_sha256=profile.sha256,
    )


def _cost(flops: int, params: int) -> Cost:
    return Cost(
        flops=flops,
        flops_norm=flops // 220,
        params=params,
        weight_bytes=4 * params + 40_000,
        activation_bytes=flops // 100 + 60_000,
    )


def _latency_unknown(profile: DeviceProfile) -> Verdict:
    limit = profile.budgets.latency.p90 if profile.budgets.latency else None
    return Verdict(
        budget="latency.p90",
        limit=limit,
        reached=None,
        unit="ms",
        verdict="UNCHECKED" if limit is None else "INCONCLUSIVE",
        basis="none",
        note="not measured yet: mvp-edge bench, on the device",
    )


def _groups(network: str) -> list[Group]:
    if network == "deit":
        parts = (("heads", "head", 3), ("head_dim", "head_dim", 64), ("nodes", "node", 768))
        return [
            Group(f"blocks.{b}.{name}", kind, size) for b in range(12) for name, kind, size in parts
        ]
    if network == "digits":
        stream = [Group(f"layer{s}.stream", "filter", 8 * s) for s in range(1, 4)]
        return stream + [Group(f"layer{s}.0.conv1.filters", "filter", 8 * s) for s in range(1, 4)]
    expansion, depths = (4, (3, 4, 6, 3)) if network == "resnet50" else (1, (2, 2, 2, 2))
    groups = [Group("stem.stream", "filter", 64)] if expansion > 1 else []
    widths = [64 * 2**stage for stage in range(4)]
    groups += [Group(f"layer{s + 1}.stream", "filter", w * expansion) for s, w in enumerate(widths)]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for block in range(depth):
            for conv in ("conv1", "conv2")[: 2 if expansion > 1 else 1]:
                groups.append(Group(f"layer{stage}.{block}.{conv}.filters", "filter", width))
    return groups


def _kept(keep: float, kind: str, size: int) -> int:
    return size if kind == "head_dim" else max(1, round(keep * size))


def _votes(recipe: Recipe, groups: list[Group], random: np.random.Generator) -> VotesFile:
    found = []
    for name, kind, size in groups:
        m = _kept(recipe.keep, kind, size)
        taste = random.gumbel(size=size)
        votes = np.zeros(size, int)
        for _ in range(recipe.neighbours):
            votes[np.argsort(-(taste + random.gumbel(size=size)))[:m]] += 1
        kept = np.sort(np.argsort(-(votes / 0.2 + random.gumbel(size=size)))[:m])
        drawn = tuple(int(unit) for unit in kept if votes[unit] == 0)
        group = GroupVotes(
            name=name,
            kind=kind,
            size=size,
            kept=tuple(kept.tolist()),
            votes=tuple(votes.tolist()),
            drawn=drawn,
        )
        found.append(group)
    names = tuple(ZOO[index % len(ZOO)] for index in range(recipe.neighbours))
    return VotesFile(neighbours=names, tau=0.2, groups=tuple(found))


def _neighbours(recipe: Recipe) -> NeighboursFile:
    theirs = ("shark", "ray", "shrew", "possum", "skunk", "trout")
    chosen = [
        Neighbour(
            task=ZOO[index % len(ZOO)],
            score=-0.412 - 0.113 * index,
            classes=theirs,
            shared=tuple(
                SharedMeaning(ours=ours, theirs=theirs[(index + k) % 6], wup=0.93 - 0.06 * k)
                for k, ours in enumerate(recipe.classes[:4])
            ),
        )
        for index in range(recipe.neighbours)
    ]
    ranked = [RankedTask(task=one.task, score=one.score) for one in chosen]
    for k, name in enumerate(ZOO[recipe.neighbours :]):
        ranked.append(RankedTask(task=name, score=-0.8 - 0.05 * k))
    return NeighboursFile(similarity="leep", neighbours=tuple(chosen), candidates=tuple(ranked))


def _history(recipe: Recipe, groups: list[Group], random: np.random.Generator) -> HistoryFile:
    total = 100 if recipe.neighbours else 1000
    units = sum(group.size for group in groups)
    steps, validation = [], []
    for step in range(1, total + 1):
        done = 1 - np.exp(-4 * step / total)
        thinned = int(units * max(recipe.keep, 1 - step / (0.8 * total)))
        steps.append(
            Step(
                step=step,
                loss=float(1.6 - 1.3 * done + 0.06 * random.standard_normal()),
                lr=0.01,
                train_accuracy=float(
                    np.clip(0.4 + 0.5 * done + 0.04 * random.standard_normal(), 0, 1)
                ),
                units=units if recipe.neighbours else thinned,
            )
        )
        if step % (total // 5) == 0:
            validation.append(Validation(step=step, top1=float(0.42 + 0.48 * done)))
    return HistoryFile(steps=tuple(steps), validation=tuple(validation))


def _layers(groups: list[Group], flops: int) -> LayersFile:
    names = [one.name.removesuffix(".filters") for one in groups if ".stream" not in one.name]
    shares = np.linspace(1, 2, len(names))
    parts = [int(part) for part in 0.97 * flops * shares / shares.sum()]
    kinds = [*((name, "conv", part) for name, part in zip(names, parts, strict=True))]
    kinds.append(("bn1", "norm", flops - sum(parts)))
    layers = [
        LayerFlops(name=name, kind=kind, flops=part, params=9, output_shape=(1,))
        for name, kind, part in kinds
    ]
    return LayersFile(layers=tuple(layers))


def _test(recipe: Recipe, random: np.random.Generator) -> TestFile:
    classes = len(recipe.classes)
    each = recipe.images // classes
    confusion = np.zeros((classes, classes), int)
    for true in range(classes):
        right = round(each * np.clip(recipe.top1 + 0.05 * random.standard_normal(), 0, 1))
        wrong = random.dirichlet(np.ones(classes) * 0.4)
        wrong[true] = 0
        if classes > 1 and wrong.sum() > 0:
            confusion[true] = random.multinomial(each - right, wrong / wrong.sum())
        confusion[true, true] = each - confusion[true].sum()
    examples = []
    for index in range(recipe.examples):
        true = index % classes
        said = true if index >= recipe.examples // 2 else (true + 1) % classes
        examples.append(
            Example(
                file=f"test/{recipe.classes[true]}/{index:03d}.png",
                true=recipe.classes[true],
                predicted=recipe.classes[said],
                probability=float(random.uniform(0.5, 1)),
                jpeg_base64=picture(true, random),
            )
        )
    return TestFile(
        top1=float(np.trace(confusion) / confusion.sum()),
        n=int(confusion.sum()),
        per_class=tuple(
            ClassAccuracy(name=name, n=each, top1=float(confusion[i, i] / each))
            for i, name in enumerate(recipe.classes)
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
        examples=tuple(examples),
    )


def picture(label: int, random: np.random.Generator) -> str:
    """A 64 × 64 JPEG in base64: a shape on a sea."""
    image = Image.new("RGB", (64, 64), (40 + 20 * (label % 5), 110, 150 - 15 * (label % 5)))
    draw = ImageDraw.Draw(image)
    x, y, r = (int(value) for value in random.integers(12, 34, 3))
    colour = (200 - 30 * (label % 5), 190, 170 + 15 * (label % 5))
    box = (x, y, x + r, y + r * 2 // 3)
    if label % 2:
        draw.ellipse(box, fill=colour)
    else:
        draw.rounded_rectangle(box, 6, fill=colour)
    into = io.BytesIO()
    image.save(into, "JPEG", quality=85)
    return base64.b64encode(into.getvalue()).decode()


def _run(recipe: Recipe, groups: list[Group], profile: DeviceProfile) -> RunFile:
    voting = recipe.neighbours > 0
    phases = {"similarity": 6.1, "images": 0.9, "pruning": 14.2, "verification": 2.2}
    room = Room(
        keep=0.72,
        binding="flops",
        predicted={"flops": 289_000_000, "params": 2_900_000},
        limits={"flops": 300_000_000, "params": 3_000_000},
    )
    return RunFile(
        version="0.1.0",
        created="2026-11-22T21:40:07+00:00",
        command=("mvp-edge", "prune", "--device", "rpi4.yaml", "--task", f"tasks/{recipe.task}"),
        arguments={"device": "rpi4.yaml"},
        versions={"python": "3.11.2", "mvp-edge": "0.1.0", "torch": "2.14.1", "timm": "1.0.31"},
        machine={"cpu": "a small processor", "isa": ["avx2"], "cores": 2, "os": "Linux 6.1"},
        phases=tuple(Phase(name=name, seconds=seconds) for name, seconds in phases.items()),
        seed=recipe.seed,
        backbone=BackboneFacts(
            name="resnet18_cifar100",
            architecture="resnet18",
            source="backbones/resnet18_cifar100.json",
            sha256="c1bc0061" * 8,
            family="resnet",
            policy="tied",
            input_size=32,
            num_classes=100,
        ),
        task=TaskFacts(
            name=recipe.task,
            source="tasks/aquatic",
            classes=tuple(recipe.classes),
            images={"train": 2250, "val": 250, "test": recipe.images},
            skipped=(Skipped(file="train/seal/017.jpg", why="truncated"),),
        ),
        profile=ProfileFacts(id=profile.id, name=profile.name, sha256=profile.sha256),
        method="mvp" if voting else "ifp",
        method_reason=(
            f"{recipe.neighbours} of the zoo's 6 tasks vote"
            if voting
            else "from scratch, since there is no zoo yet"
        ),
        keep=Keep(asked="auto", zoo=recipe.keep, chosen=recipe.keep, room=room),
        widths={
            name: Width(size=size, kept=_kept(recipe.keep, kind, size))
            for name, kind, size in groups
        },
        training=TrainingFacts(
            steps=100 if voting else 1000,
            batch=128,
            updates=4 if voting else 1,
            augmented=("flip", "shift") if voting else (),
            lr=0.01,
            optimizer="sgd",
            similarity_flops=33_000_000_000 if voting else 0,
            statistics_flops=5_000_000_000,
            training_flops=213_000_000_000 if voting else 21_800_000_000_000,
            paper_flops=430_000_000_000,
            seconds=13.4,
        ),
    )
