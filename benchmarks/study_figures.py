"""The headline figures of studies, each computed from the rows of its study."""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.figures import RESNET, Figure, cost_figure, difference_figure, made_by
from benchmarks.peer_figures import peer_figures
from benchmarks.study.rows import (
    DEIT,
    MAIN,
    RESULTS,
    Rows,
    compared,
    mean,
    paired,
    study_rows,
)
from benchmarks.study_tables import FEW, SEEDED


def all_study_figures() -> list[Figure]:
    """Those of every study whose rows exist."""
    return [
        *_study_figures(MAIN, "ifp@1000", RESNET),
        *_study_figures("resnet18-keep0.32", "ifp@1000", "ResNet-18, CIFAR-100, tied keep 0.32"),
        *_study_figures("deit-trunk", "ahnp@500", _DEIT),
        *_trial_figures(),
        *_trunk_figures(),
        *peer_figures(),
        *_zoo_figures(),
        *_ratio_figures(),
        *_class_figures(),
        *_few_figures(),
        *_unseen_figures(),
        *_seed_figures(),
    ]


# Of the study on ResNet-18 at keep 0.1; those of other studies are stated without a goal.
_GOALS = {
    ("mvp@100", "scratch"): ("P1-mvp100-minus-ifp1000", "≥ 1"),
    ("mvp@20", "scratch"): ("P1-mvp20-minus-ifp1000", "≥ 0"),
    ("mvp@200", "scratch"): ("P1-mvp200-minus-ifp1000", "≥ 3"),
    ("mvp@400", "scratch"): ("P1-mvp400-minus-ifp1000", "stated"),
    ("mvp@1000", "scratch"): ("P1-mvp1000-minus-ifp1000", "stated"),
    ("unpruned@100", "scratch"): ("P1-unpruned100-minus-ifp1000", "stated"),
    ("mvp@300", "scratch"): ("P1-mvp300-minus-ifp1000", "stated"),
    ("mvp@100", "ahnp@1000"): ("P1-mvp100-minus-ahnp1000", "stated"),
    ("trunk@100", "ahnp@1000"): ("P1-trunk100-minus-ahnp1000", "stated"),
    ("ahnp@1000", "ahnp@500"): ("P1-ahnp1000-minus-ahnp500", "stated"),
    ("mvp@100-disjoint", "scratch"): ("P1-disjoint100-minus-ifp1000", "≥ 2"),
    ("mvp@100-disjoint", "mvp@100"): ("P1-disjoint100-minus-mvp100", "stated"),
    ("mvp@100", "random@100"): ("P1-mvp100-minus-random100", "stated"),
    ("taught@1000", "scratch"): ("P1-taught1000-minus-ifp1000", "stated"),
    ("trunk@100", "taught@1000"): ("P1-trunk100-minus-taught1000", "stated"),
    ("trunk-plain@100", "taught@1000"): ("P1-trunk-plain100-minus-taught1000", "stated"),
    ("mvp@1000", "taught@1000"): ("P1-mvp1000-minus-taught1000", "stated"),
    ("trunk@300", "trunk@100"): ("P1-trunk300-minus-trunk100", "stated"),
    ("ifp-taylor@100", "ifp@100"): ("P1-ifp-taylor100-minus-ifp100", "stated"),
    ("smsp@100", "mvp@100"): ("P1-smsp100-minus-mvp100", "stated"),
    ("smsp@100", "magnitude@100"): ("P1-smsp100-minus-magnitude100", "stated"),
    ("mvp@1000", "random@1000"): ("P1-mvp1000-minus-random1000", "stated"),
    ("random@1000", "scratch"): ("P1-random1000-minus-ifp1000", "stated"),
    ("trunk@100", "random@1000"): ("P1-trunk100-minus-random1000", "stated"),
    ("mvp@100", "random@1000"): ("P1-mvp100-minus-random1000", "stated"),
    ("trunk@100", "scratch"): ("P1-trunk100-minus-ifp1000", "≥ 2"),
    ("trunk@50", "scratch"): ("P1-trunk50-minus-ifp1000", "stated"),
    ("trunk@20", "scratch"): ("P1-trunk20-minus-ifp1000", "≥ 0"),
    ("trunk@20-taught", "scratch"): ("P1-trunk20-taught-minus-ifp1000", "stated"),
    ("trunk-everything@20-taught", "scratch"): (
        "P1-trunk-everything20-taught-minus-ifp1000",
        "stated",
    ),
    ("trunk-everything@100-taught", "scratch"): (
        "P1-trunk-everything100-taught-minus-ifp1000",
        "stated",
    ),
    ("trunk@100", "mvp@100"): ("P1-trunk100-minus-mvp100", "stated"),
    ("trunk@20", "mvp@20"): ("P1-trunk20-minus-mvp20", "stated"),
    ("trunk@20", "mvp@100"): ("P1-trunk20-minus-mvp100", "stated"),
    ("trunk@100", "unpruned@100"): ("P1-trunk100-minus-unpruned100", "stated"),
    ("trunk-plain@100", "scratch"): ("P1-trunk-plain100-minus-ifp1000", "stated"),
    ("trunk-plain@20", "scratch"): ("P1-trunk-plain20-minus-ifp1000", "stated"),
    ("trunk-plain@100", "mvp@100"): ("P1-trunk-plain100-minus-mvp100", "stated"),
    ("ifp@1000-muon", "scratch"): ("P1-ifp1000-muon-minus-ifp1000", "stated"),
    ("trunk@100", "ifp@1000-muon"): ("P1-trunk100-minus-ifp1000-muon", "stated"),
    ("trunk-plain@100", "ifp@1000-muon"): ("P1-trunk-plain100-minus-ifp1000-muon", "stated"),
    ("mvp@100", "magnitude@100"): ("P1-mvp100-minus-magnitude100", "stated"),
    ("mvp@100-backbone-weights-fast", "magnitude@100"): ("P1-voted-minus-largest-units", "stated"),
    ("mvp@100", "mvp@100-backbone-weights-fast"): ("P1-averaged-minus-backbone-weights", "stated"),
}
_SUFFIX = {"resnet18-cifar100": "", "resnet18-keep0.32": "-keep0.32", "deit-trunk": "-deit"}


def _study_figures(study: str, scratch: str, conditions: str) -> Iterator[Figure]:
    rows, suffix = study_rows(study), _SUFFIX[study]
    for (ours, against), (name, goal) in _GOALS.items():
        theirs = scratch if against == "scratch" else against
        name = name.replace("ifp1000", scratch.replace("@", "")) + suffix
        goal = "stated" if suffix else goal
        how = f"{conditions}, leave-one-out"
        yield from difference_figure(
            rows, ours, theirs, name, goal, _lies(study, ours, theirs), how
        )
    for ours, theirs, name, goal in (
        ("mvp@100", scratch, "P2-cost-ratio", "≥ 100"),
        ("trunk@100", scratch, "P2-cost-ratio-trunk", "≥ 100"),
        ("random@1000", scratch, "P2-cost-ratio-random1000", "stated"),
        ("trunk@100", "random@1000", "P2-random1000-over-trunk100", "stated"),
        ("taught@1000", scratch, "P2-cost-ratio-taught1000", "stated"),
        ("unpruned@100", scratch, "P2-cost-ratio-unpruned100", "stated"),
        (scratch, "ifp@1000-muon", "P2-ifp1000-muon-over-ifp1000", "stated"),
        ("trunk@100", "taught@1000", "P2-taught1000-over-trunk100", "stated"),
    ):
        goal = "stated" if suffix else goal
        whose = _lies(study, ours, theirs)
        yield from cost_figure(rows, ours, theirs, f"{name}{suffix}", goal, whose, conditions)


def _lies(study: str, *names: str) -> str:
    """The study that has rows of these variants: DeiT's trunk has one of its own, beside that of all else."""
    own = any(name.startswith("trunk") for name in names)
    return DEIT if study == "deit-trunk" and not own else study


_POOLED = RESULTS / "pooled"
_DEIT = "DeiT-Tiny at 64 px, keep 0.25"


_STARTS = (
    ("trunk@100", "mvp@100"),
    ("mvp@100", "magnitude@100"),
    ("trunk@100", "taught@1000"),
    ("taught@1000", "mvp@100"),
)


def _start_figures(
    rows: Rows, suffix: str, study: str, conditions: str, more: Sequence[tuple[str, str]] = ()
) -> Iterator[Figure]:
    """What each start is worth on other kinds of tasks."""
    for ours, theirs in (*_STARTS, *more):
        name = f"P1-{ours}-minus-{theirs}-{suffix}".replace("@", "")
        yield from difference_figure(rows, ours, theirs, name, "stated", study, conditions)


def _trial_figures() -> Iterator[Figure]:
    """What the recipe that won the trials is worth, on the main study's targets."""
    rows = study_rows(MAIN)
    for steps, ours in (
        (20, "mvp@20-augmented"),
        (100, "mvp@100"),
    ):  # augmented, as the older recipe's were
        name = f"P1-recipe-minus-one-update{steps}"
        yield from difference_figure(rows, ours, f"mvp@{steps}-one-update", name, "stated", MAIN)
    for steps in (20, 50, 100):  # the unpruned backbone's opinion beside the labels
        ours, name = f"trunk@{steps}-taught", f"P1-trunk{steps}-taught-minus-trunk{steps}"
        yield from difference_figure(rows, ours, f"trunk@{steps}", name, "stated", MAIN)
    pair = "trunk@100-again", "trunk@100"  # the same on a processor that multiplies in bfloat16
    kinds = ("bfloat16", "float32")
    differ = {
        target: row
        for target, row in rows.items()
        if all(name in row for name in pair)
        and tuple(row[name].get("arithmetic") for name in pair) == kinds
    }
    yield from difference_figure(differ, *pair, "P1-bfloat16-minus-float32", "stated", MAIN)
    for study, ours, suffix, conditions in (  # short runs, their images as they are
        (MAIN, "mvp@20", "", RESNET),
        (MAIN, "trunk@20", "", RESNET),
        (MAIN, "trunk@50", "", RESNET),
        (DEIT, "mvp@20", "-deit", _DEIT),
        ("deit-trunk", "trunk@20", "-deit", _DEIT),
    ):
        name = f"P1-{ours.replace('@', '')}-minus-augmented{suffix}"
        pair = ours, f"{ours}-augmented"
        yield from difference_figure(study_rows(study), *pair, name, "stated", study, conditions)


def _trunk_figures() -> Iterator[Figure]:
    """What else a trunk could be made of, and what it costs once."""
    rows = study_rows(MAIN)
    for ours, theirs in (
        ("trunk-everything", "trunk"),  # yet more images and steps, a teacher beside the labels
        ("trunk", "trunk-short"),  # more images, more steps
        ("trunk", "trunk-plain"),  # votes
        ("trunk-long", "trunk-short"),  # more steps
        ("trunk-short", "trunk-magnitude"),  # votes
        ("trunk-images", "trunk-magnitude"),  # a teacher instead of labels
    ):
        for steps in (20, 100):
            name = f"P1-{ours}{steps}-minus-{theirs}{steps}"
            pair = f"{ours}@{steps}", f"{theirs}@{steps}"
            yield from difference_figure(rows, *pair, name, "stated", MAIN)
    plain = "trunk-?-plain", "trunk-plain@100"  # those that asked a zoo cost its entries as well
    yield from _trunk_costs(rows, *plain, "ifp@1000", MAIN, RESNET)
    deit = "trunk-deit", "trunk@100", "ahnp@500", "deit-trunk"
    yield from _trunk_costs(study_rows("deit-trunk"), *deit, _DEIT)
    wider = "trunk32-0", "trunk@100-keep0.32", "ifp@1000-keep0.32", "ratios"
    yield from _trunk_costs(study_rows("ratios"), *wider, "ResNet-18, CIFAR-100, tied keep 0.32")


def _trunk_costs(
    rows: Rows, trunks: str, ours: str, scratch: str, study: str, conditions: str
) -> Iterator[Figure]:
    """The price of a trunk that needs no zoo: beside one task from scratch, and as a part of what many cost."""
    found = [json.loads(path.read_text()) for path in sorted(_POOLED.glob(f"{trunks}.json"))]
    both = paired(rows, ours, scratch, "total_flops")
    if not found or not len(both):
        return
    own = [trunk["total_flops"] for trunk in found]
    start, dear = (float(each) for each in both.mean(0))

    def figure(name: str, values: Sequence[float], what: str) -> Figure:
        text = f"{what}, {conditions}; mean and range of {len(values)}"
        command = f"python -m benchmarks.pooled benchmarks/plans/{study}.yaml"
        middle, low, high = float(np.mean(values)), min(values), max(values)
        source = "benchmarks/results/pooled/"
        return Figure(name, middle, low, high, "×", "stated", text, source, command)

    name = f"P2-trunk-over-{scratch.replace('@', '')}"
    yield figure(
        name, [one / dear for one in own], f"multiply-adds of a trunk over one {scratch}'s"
    )
    if study != MAIN:
        return
    small = _POOLED / "small.json"
    if small.exists():
        dearer = [json.loads(small.read_text())["total_flops"] / one for one in own]
        what = "multiply-adds of the network trained on all classes over a trunk's"
        yield figure("P2-small-over-trunk", dearer, what)
    flops = [row["taught@1000"]["total_flops"] for row in rows.values() if "taught@1000" in row]
    taught = float(np.mean(flops))
    what = "multiply-adds of a trunk over one taught@1000's"
    yield figure("P2-trunk-over-taught1000", [one / taught for one in own], what)
    for tasks in (1, 10, 100):
        for against, name, each in (
            (scratch, "P2-cost-ratio-trunk-of", dear),
            ("taught@1000", "P2-taught-cost-ratio-trunk-of", taught),
        ):
            ratios = [tasks * each / (one + tasks * start) for one in own]
            what = (
                f"{against} over {ours}, multiply-adds of {tasks} tasks, the trunk's own among them"
            )
            yield figure(f"{name}-{tasks}", ratios, what)


def _zoo_figures() -> Iterator[Figure]:
    """P11: what a smaller zoo costs, one of other entries, or whom one asks."""
    rows = study_rows("zoo-size")
    for steps in (20, 100):
        for count in (1, 2, 5, 10, 20):
            pair = f"mvp@{steps}-zoo-{count}", f"mvp@{steps}"
            name = f"P11-mvp{steps}-zoo{count}-minus-whole-zoo"
            yield from difference_figure(rows, *pair, name, "stated", "zoo-size")
        pair = f"mvp@{steps}-fifth-5", f"mvp@{steps}"
        name = f"P11-mvp{steps}-farthest-fifth-minus-nearest"
        yield from difference_figure(rows, *pair, name, "stated", "zoo-size")
    taught = study_rows("zoo-taught")  # whose entries were not pruned step by step
    for steps in (20, 100):
        pair = f"mvp@{steps}-taught-zoo-11", f"mvp@{steps}-ifp-zoo-11"
        name = f"P11-mvp{steps}-taught-zoo-minus-ifp-zoo"
        yield from difference_figure(taught, *pair, name, "stated", "zoo-taught")
    for ours in ("wordnet", "by-lot"):
        name = f"P11-mvp20-{ours}-minus-nearest"
        yield from difference_figure(rows, f"mvp@20-{ours}", "mvp@20", name, "stated", "zoo-size")
    whole = study_rows(MAIN)
    for ours, name in (("farthest", "farthest-minus-nearest"), ("one", "one-minus-three")):
        pair = f"mvp@100-{ours}", "mvp@100"
        yield from difference_figure(whole, *pair, f"P11-mvp100-{name}", "stated", MAIN)
        own = f"P11-mvp100-{name}-deit"
        yield from difference_figure(study_rows(DEIT), *pair, own, "stated", DEIT, _DEIT)


def _ratio_figures() -> Iterator[Figure]:
    """What the votes of keep 0.1 and a trunk are worth where more may stay."""
    rows = study_rows("ratios")
    against = {
        0.03: [
            ("trunk@100", "mvp@100"),
            ("mvp@100", "magnitude@100"),
            ("magnitude@100", "random@100"),
        ],
        0.05: [("mvp@100", "magnitude@100"), ("magnitude@100", "random@100")],
        0.2: [("mvp@100", "magnitude@100")],
        0.32: [
            ("mvp@100", "magnitude@100"),
            ("trunk@100", "magnitude@100"),
            ("mvp@100", "ifp@1000"),
            ("trunk@20", "ifp@1000"),
            ("trunk@100", "ifp@1000"),
        ],
        0.5: [("mvp@100", "magnitude@100")],
    }
    for keep, pairs in against.items():
        for ours, theirs in pairs:
            pair = f"{ours}-keep{keep}", f"{theirs}-keep{keep}"
            name = f"P1-{ours}-minus-{theirs}-at-{keep}".replace("@", "")
            what = "ResNet-18, CIFAR-100, tied"
            yield from difference_figure(rows, *pair, name, "stated", "ratios", what)


def _class_figures() -> Iterator[Figure]:
    """Tasks of other numbers of classes, and how many of those the trunk that they start from has seen."""
    rows = study_rows("classes")
    targets = [json.loads(path.read_text()) for path in sorted((RESULTS / MAIN).glob("*.json"))]
    trunk = json.loads((_POOLED / "trunk-0.json").read_text())
    apart = {name for one in targets[slice(*trunk["apart"])] for name in one["classes"]}
    seen = {name for one in targets[: trunk["images"]] for name in one["classes"]} - apart
    for count in (3, 10, 20):
        own = {target: row for target, row in rows.items() if f"-{count}c-" in target}
        conditions = f"{count} classes, ResNet-18, CIFAR-100, tied keep 0.1"
        yield from _start_figures(own, f"of-{count}-classes", "classes", conditions)
        files = sorted((RESULTS / "classes").glob(f"*-{count}c-*.json"))
        known = {one.stem: set(json.loads(one.read_text())["classes"]) & seen for one in files}
        shares = {target: len(some) / count for target, some in known.items()}
        few = {target: row for target, row in own.items() if shares[target] <= 0.1}
        name = f"P1-trunk100-minus-mvp100-of-{count}-unseen-classes"
        what = f"{conditions}, at most a tenth of them seen by the trunk"
        yield from difference_figure(few, "trunk@100", "mvp@100", name, "stated", "classes", what)
        if shares:
            text = f"share of the classes that trunk-0 was trained on, {conditions}; mean and range"
            middle = sum(shares.values()) / len(shares)
            low, high = min(shares.values()), max(shares.values())
            name, made = f"P1-classes-seen-by-the-trunk-of-{count}", made_by("classes")
            yield Figure(name, middle, low, high, "", "stated", text, *made)


def _few_figures() -> Iterator[Figure]:
    """Tasks of few training images."""
    more = [("trunk@100", "trunk@20")]
    for each in FEW:
        study, conditions = f"few-{each}", f"{each} training images a class, {RESNET}"
        yield from _start_figures(study_rows(study), f"of-{each}-images", study, conditions, more)


def _unseen_figures() -> Iterator[Figure]:
    """Tasks of data sets that neither the zoo nor its trunk has seen."""
    for study, images, conditions in (
        ("unseen", "tiny_imagenet_100", "Tiny-ImageNet from a zoo of CIFAR-100, ResNet-18, 32 px"),
        ("unseen", "imagenette_photos", "photographs from a zoo of CIFAR-100, ResNet-18, 32 px"),
        ("deit-unseen", "cifar100", "CIFAR-100 from a zoo of Tiny-ImageNet, DeiT-Tiny, 64 px"),
    ):
        rows = {
            target: row for target, row in study_rows(study).items() if target.startswith(images)
        }
        more = [
            ("trunk@100", "trunk@20"),
            ("trunk@100", "ahnp@500"),
            ("trunk@100", "ifp@1000"),
            ("mvp@100", "ifp@1000"),
            ("taught@1000", "ifp@1000"),
            ("taught@1000", "magnitude@1000"),
        ]
        suffix = f"on-{images.replace('_', '-')}"
        yield from _start_figures(rows, suffix, study, conditions, more)


def _seed_figures() -> Iterator[Figure]:
    """How far runs of one method on one task lie apart that differ by their seed alone."""
    rows = study_rows("seeds")
    for name in SEEDED:
        others = {n for row in rows.values() for n in row if n.startswith(f"{name}-seed-")}
        seeds = [name, *sorted(others)]
        whole = [row for row in rows.values() if all(n in row for n in seeds)]
        own = 100 * np.array([[row[n]["accuracy"] for n in seeds] for row in whole])
        got = (
            compared(own, lambda values: np.sqrt(mean(values.var(-2, ddof=1)))) if others else None
        )
        if got:
            text = f"standard deviation over {len(seeds)} seeds within a target, {name}, {RESNET}, {got[3]} targets"
            id_ = f"P1-seed-spread-{name.replace('@', '')}"
            yield Figure(id_, *got[:3], "points", "stated", text, *made_by("seeds"))
