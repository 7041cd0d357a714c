"""P4: the headline figures of what a user could do instead, from the rows of the study `peers`."""

import re
from collections.abc import Iterator

import numpy as np

from benchmarks.figures import RESNET, Figure, cost_figure, difference_figure, made_by
from benchmarks.study.rows import Rows, Values, compared, mean, study_rows


def best_peer(rows: Rows, pattern: str) -> str | None:
    """The most accurate variant of those that the most targets have."""
    found: dict[str, list[float]] = {}
    for row in rows.values():
        for name in row:
            if re.fullmatch(pattern, name):
                found.setdefault(name, []).append(row[name]["accuracy"])
    return max(found, key=lambda n: (len(found[n]), np.mean(found[n])), default=None)


def peer_figures() -> Iterator[Figure]:
    """P4: against Torch-Pruning at its best, and against a thin network that was trained on everything."""
    rows = study_rows("peers")
    for steps, goal in ((100, "≥ 15"), (1000, "stated")):
        best, own = best_peer(rows, rf"tp-.*@{steps}"), f"tp-magnitude-local-own@{steps}"
        name = f"P4-minus-torch-pruning{steps}-own-rate"
        yield from difference_figure(rows, "mvp@100", own, name, "stated", "peers")
        if best:
            name = f"P4-minus-torch-pruning{steps}"
            yield from difference_figure(rows, "mvp@100", best, name, goal, "peers")
            name = f"P4-trunk100-minus-torch-pruning{steps}"
            yield from difference_figure(rows, "trunk@100", best, name, "stated", "peers")
    for theirs in (
        "small@100",
        "thin-distilled@100",
        "thin-distilled@1000",
        "mobilenet-distilled@1000",
        "probe",
    ):
        for ours, start in (("mvp@100", "P4"), ("trunk@100", "P4-trunk100")):
            name = f"{start}-minus-{theirs.replace('@', '')}"
            yield from difference_figure(rows, ours, theirs, name, "stated", "peers")
    best = best_peer(rows, r"tp-.*@1000") or ""
    for ours, theirs in (
        ("thin-distilled@1000", "ifp@1000"),
        ("thin-distilled@1000", "thin-from-nothing@1000"),
        ("thin-distilled@1000", "taught@1000"),
        ("random@1000", "thin-from-nothing@1000"),
        ("magnitude@100", "thin-distilled@100"),
        ("probe", "unpruned@100"),
        ("small@0", "mvp@100"),
        ("small@100", "mvp@100"),
    ):
        name = f"P4-{ours}-minus-{theirs}".replace("@", "")
        yield from difference_figure(rows, ours, theirs, name, "stated", "peers")
    name = "P4-torch-pruning1000-minus-ifp1000"
    yield from difference_figure(rows, best, "ifp@1000", name, "stated", "peers")
    for ours, theirs, name in (
        ("thin-distilled@1000", "ifp@1000", "P2-cost-ratio-thin-distilled1000"),
        ("trunk@100", "thin-distilled@1000", "P2-thin-distilled1000-over-trunk100"),
        (best, "ifp@1000", "P2-cost-ratio-torch-pruning1000"),
    ):
        yield from cost_figure(rows, ours, theirs, name, "stated", "peers")
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
            yield Figure(name, *parity[:3], "×", goal, text, *made_by("peers"))


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
