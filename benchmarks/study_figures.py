"""The headline figures of studies, each computed from the rows of its study."""

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.figures import RESNET, Figure
from benchmarks.rows import (
    DEIT,
    MAIN,
    RESULTS,
    Rows,
    Values,
    compared,
    difference,
    mean,
    paired,
    ratio,
    study_rows,
)
from benchmarks.study_tables import FEW, SEEDED


def all_study_figures() -> list[Figure]:
    """Those of every study whose rows exist."""
    return [
        *_study_figures(MAIN, "ifp@1000", RESNET),
        *_study_figures("resnet18-keep0.32", "ifp@1000", "ResNet-18, CIFAR-100, tied keep 0.32"),
        *_study_figures(DEIT, "ahnp@500", _DEIT),
        *_trial_figures(),
        *_trunk_figures(),
        *_peer_figures(),
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
    ("mvp@20", "scratch"): ("P1-mvp20-minus-ifp1000", "≥ -1"),
    ("mvp@200", "scratch"): ("P1-mvp200-minus-ifp1000", "≥ 3"),
    ("mvp@400", "scratch"): ("P1-mvp400-minus-ifp1000", "stated"),
    ("mvp@1000", "scratch"): ("P1-mvp1000-minus-ifp1000", "stated"),
    ("unpruned@100", "scratch"): ("P1-unpruned100-minus-ifp1000", "stated"),
    ("mvp@300", "scratch"): ("P1-mvp300-minus-ifp1000", "stated"),
    ("mvp@100-disjoint", "scratch"): ("P1-disjoint100-minus-ifp1000", "stated"),
    ("mvp@100-disjoint", "mvp@100"): ("P1-disjoint100-minus-mvp100", "stated"),
    ("mvp@100", "random@100"): ("P1-mvp100-minus-random100", "stated"),
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
_SUFFIX = {"resnet18-cifar100": "", "resnet18-keep0.32": "-keep0.32", "deit-tiny-imagenet": "-deit"}


def _study_figures(study: str, scratch: str, conditions: str) -> Iterator[Figure]:
    rows, suffix = study_rows(study), _SUFFIX[study]
    where = f"benchmarks/results/{study}/"
    command = f"python -m benchmarks.study benchmarks/plans/{study}.yaml"
    for (ours, against), (name, goal) in _GOALS.items():
        theirs = scratch if against == "scratch" else against
        got = difference(rows, ours, theirs)
        if got:
            name = name.replace("ifp1000", scratch.replace("@", "")) + suffix
            text = f"{ours} − {theirs}, {conditions}, {got[3]} targets, leave-one-out, test images"
            goal = "stated" if suffix else goal
            yield Figure(name, *got[:3], "points", goal, text, where, command)
    for ours, name in (("mvp@100", "P2-cost-ratio"), ("trunk@100", "P2-cost-ratio-trunk")):
        spent = ratio(rows, ours, scratch, "total_flops")
        if spent:
            text = (
                f"{scratch} over {ours}, real training multiply-adds (similarity, statistics and head "
                f"included), {conditions}, {spent[3]} targets"
            )
            goal = "stated" if suffix else "≥ 100"
            yield Figure(f"{name}{suffix}", *spent[:3], "×", goal, text, where, command)


_POOLED = RESULTS / "pooled"
_DEIT = "DeiT-Tiny at 64 px, keep 0.25"


def _difference_figure(
    rows: Rows, ours: str, theirs: str, name: str, goal: str, study: str, conditions: str = RESNET
) -> Iterator[Figure]:
    got = difference(rows, ours, theirs)
    if got:
        text = f"{ours} − {theirs}, {conditions}, {got[3]} targets, test images"
        where = f"benchmarks/results/{study}/"
        command = f"python -m benchmarks.study benchmarks/plans/{study}.yaml"
        yield Figure(name, *got[:3], "points", goal, text, where, command)


_STARTS = (
    ("trunk@100", "mvp@100"),
    ("mvp@100", "magnitude@100"),
    ("mvp@100", "ifp@1000"),
    ("trunk@100", "ifp@1000"),
)


def _start_figures(
    rows: Rows, suffix: str, study: str, conditions: str, more: Sequence[tuple[str, str]] = ()
) -> Iterator[Figure]:
    """What each start is worth on other kinds of tasks."""
    for ours, theirs in (*_STARTS, *more):
        name = f"P1-{ours}-minus-{theirs}-{suffix}".replace("@", "")
        yield from _difference_figure(rows, ours, theirs, name, "stated", study, conditions)


def _trial_figures() -> Iterator[Figure]:
    """What the recipe that won the trials is worth, on the main study's targets."""
    rows = study_rows(MAIN)
    for steps, ours in (
        (20, "mvp@20-augmented"),
        (100, "mvp@100"),
    ):  # augmented, as the older recipe's were
        name = f"P1-recipe-minus-one-update{steps}"
        yield from _difference_figure(rows, ours, f"mvp@{steps}-one-update", name, "stated", MAIN)
    for steps in (20, 50, 100):  # the unpruned backbone's opinion beside the labels
        ours, name = f"trunk@{steps}-taught", f"P1-trunk{steps}-taught-minus-trunk{steps}"
        yield from _difference_figure(rows, ours, f"trunk@{steps}", name, "stated", MAIN)
    pair = "trunk@100-again", "trunk@100"  # the same on a processor that multiplies in bfloat16
    kinds = ("bfloat16", "float32")
    differ = {
        target: row
        for target, row in rows.items()
        if all(name in row for name in pair)
        and tuple(row[name].get("arithmetic") for name in pair) == kinds
    }
    yield from _difference_figure(differ, *pair, "P1-bfloat16-minus-float32", "stated", MAIN)
    for study, ours, suffix, conditions in (  # short runs, their images as they are
        (MAIN, "mvp@20", "", RESNET),
        (MAIN, "trunk@20", "", RESNET),
        (MAIN, "trunk@50", "", RESNET),
        (DEIT, "mvp@20", "-deit", _DEIT),
        ("deit-trunk", "trunk@20", "-deit", _DEIT),
    ):
        name = f"P1-{ours.replace('@', '')}-minus-augmented{suffix}"
        pair = ours, f"{ours}-augmented"
        yield from _difference_figure(study_rows(study), *pair, name, "stated", study, conditions)


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
            yield from _difference_figure(rows, *pair, name, "stated", MAIN)
    plain = "trunk-?-plain", "trunk-plain@100"  # those that asked a zoo cost its entries as well
    yield from _trunk_costs(rows, *plain, "ifp@1000", MAIN, RESNET)
    deit_rows = study_rows("deit-trunk")
    for steps in (20, 100):
        name = f"P1-trunk{steps}-minus-ahnp500-deit"
        pair = f"trunk@{steps}", "ahnp@500"
        yield from _difference_figure(deit_rows, *pair, name, "stated", "deit-trunk", _DEIT)
    deit = "trunk-deit", "trunk@100"
    yield from _trunk_costs(deit_rows, *deit, "ahnp@500", "deit-trunk", _DEIT)


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
    for tasks in (1, 10, 100):
        ratios = [tasks * dear / (one + tasks * start) for one in own]
        what = f"{scratch} over {ours}, multiply-adds of {tasks} tasks, the trunk's own among them"
        yield figure(f"P2-cost-ratio-trunk-of-{tasks}", ratios, what)


def best_peer(rows: Rows, pattern: str) -> str | None:
    """The most accurate variant of those that the most targets have."""
    found: dict[str, list[float]] = {}
    for row in rows.values():
        for name in row:
            if re.fullmatch(pattern, name):
                found.setdefault(name, []).append(row[name]["accuracy"])
    return max(found, key=lambda n: (len(found[n]), np.mean(found[n])), default=None)


def _peer_figures() -> Iterator[Figure]:
    """P4: against Torch-Pruning at its best, and against a thin network that was trained on everything."""
    rows = study_rows("peers")
    for steps, goal in ((100, "≥ 15"), (1000, "stated")):
        best, own = best_peer(rows, rf"tp-.*@{steps}"), f"tp-magnitude-local-own@{steps}"
        name = f"P4-minus-torch-pruning{steps}-own-rate"
        yield from _difference_figure(rows, "mvp@100", own, name, "stated", "peers")
        if best:
            name = f"P4-minus-torch-pruning{steps}"
            yield from _difference_figure(rows, "mvp@100", best, name, goal, "peers")
            name = f"P4-trunk100-minus-torch-pruning{steps}"
            yield from _difference_figure(rows, "trunk@100", best, name, "stated", "peers")
    for theirs in ("small@100", "thin-distilled@100", "probe"):
        for ours, start in (("mvp@100", "P4"), ("trunk@100", "P4-trunk100")):
            name = f"{start}-minus-{theirs.replace('@', '')}"
            yield from _difference_figure(rows, ours, theirs, name, "stated", "peers")
    for ours, name, goal in (
        ("mvp@100", "P4-cost-to-parity", "≥ 10"),
        ("trunk@100", "P4-trunk-cost-to-parity", "stated"),
    ):
        if parity := cost_to_parity(rows, ours):
            text = (
                f"multiply-adds at which the best of Torch-Pruning is as accurate as {ours}, over {ours}'s "
                "(between its 100 and 1,000 steps, straight in their logarithm; its 1,000 steps' where they "
                f"are less accurate), {RESNET}, {parity[3]} targets"
            )
            where = "benchmarks/results/peers/"
            command = "python -m benchmarks.study benchmarks/plans/peers.yaml"
            yield Figure(name, *parity[:3], "×", goal, text, where, command)


def cost_to_parity(rows: Rows, ours: str) -> tuple[float, float, float, int] | None:
    """How much more Torch-Pruning spends for the accuracy of ``ours``; its 1,000 steps' where that is less."""
    few, many = (best_peer(rows, rf"tp-.*@{steps}") for steps in (100, 1000))
    if not few or not many:
        return None
    names = (ours, few, many)
    both = [[r[n][k] for n in names for k in ("accuracy", "total_flops")] for r in rows.values()
            if all(n in r for n in names)]  # fmt: skip

    def ratio_of(values: Values) -> Values:
        reached, spent, low, cheap, high, dear = np.moveaxis(mean(values), -1, 0)
        share = np.clip((reached - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
        return np.asarray(np.exp((1 - share) * np.log(cheap) + share * np.log(dear)) / spent)

    return compared(np.array(both, dtype=np.float64), ratio_of)


def _zoo_figures() -> Iterator[Figure]:
    """P11: what a smaller zoo costs."""
    rows = study_rows("zoo-size")
    for steps in (20, 100):
        for count in (1, 2, 5, 10, 20):
            pair = f"mvp@{steps}-zoo-{count}", f"mvp@{steps}"
            name = f"P11-mvp{steps}-zoo{count}-minus-whole-zoo"
            yield from _difference_figure(rows, *pair, name, "stated", "zoo-size")
        pair = f"mvp@{steps}-fifth-5", f"mvp@{steps}"
        name = f"P11-mvp{steps}-farthest-fifth-minus-nearest"
        yield from _difference_figure(rows, *pair, name, "stated", "zoo-size")
    whole = study_rows(MAIN)
    for ours, name in (("farthest", "farthest-minus-nearest"), ("one", "one-minus-three")):
        pair = f"mvp@100-{ours}", "mvp@100"
        yield from _difference_figure(whole, *pair, f"P11-mvp100-{name}", "stated", MAIN)
        own = f"P11-mvp100-{name}-deit"
        yield from _difference_figure(study_rows(DEIT), *pair, own, "stated", DEIT, _DEIT)


def _ratio_figures() -> Iterator[Figure]:
    """What the votes of keep 0.1 and a trunk are worth where more may stay."""
    rows = study_rows("ratios")
    against = {
        0.03: [("trunk@100", "mvp@100"), ("mvp@100", "ifp@1000"), ("trunk@100", "ifp@1000")],
        0.2: [("mvp@100", "magnitude@100")],
        0.32: [("mvp@100", "magnitude@100"), ("mvp@100", "ifp@1000"), ("trunk@100", "ifp@1000")],
        0.5: [("mvp@100", "magnitude@100")],
    }
    for keep, pairs in against.items():
        for ours, theirs in pairs:
            pair = f"{ours}-keep{keep}", f"{theirs}-keep{keep}"
            name = f"P1-{ours}-minus-{theirs}-at-{keep}".replace("@", "")
            what = "ResNet-18, CIFAR-100, tied"
            yield from _difference_figure(rows, *pair, name, "stated", "ratios", what)


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
        yield from _difference_figure(few, "trunk@100", "mvp@100", name, "stated", "classes", what)
        if shares:
            text = f"share of the classes that trunk-0 was trained on, {conditions}; mean and range"
            middle = sum(shares.values()) / len(shares)
            low, high = min(shares.values()), max(shares.values())
            command = "python -m benchmarks.study benchmarks/plans/classes.yaml"
            name, where = f"P1-classes-seen-by-the-trunk-of-{count}", "benchmarks/results/classes/"
            yield Figure(name, middle, low, high, "", "stated", text, where, command)


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
        more = [("trunk@100", "trunk@20"), ("trunk@100", "ahnp@500")]
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
            command = "python -m benchmarks.study benchmarks/plans/seeds.yaml"
            id_, where = f"P1-seed-spread-{name.replace('@', '')}", "benchmarks/results/seeds/"
            yield Figure(id_, *got[:3], "points", "stated", text, where, command)
