"""When an iterative method removes how many units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mvp_edge.recipe import SHRINKING
from mvp_edge_export.errors import BadInput

DROP_SHARE = 0.1
"""About this share of the remaining units is removed at each drop (p in the paper, which does not give it)."""


@dataclass(frozen=True)
class Drop:
    """The network shrinks to ``widths`` at a step."""

    step: int
    widths: Mapping[str, int]
    snapshot: float | None = None
    """The keep ratio that is reached, where a snapshot of it is wanted."""


def drop_schedule(
    sizes: Mapping[str, int], widths: Mapping[str, int], steps: int, snapshots: Sequence[float] = ()
) -> list[Drop]:
    """Drops of equal shares of what remains, evenly spaced; the target is reached at 0.8 of the steps.

    A snapshot's ratio replaces that of the nearest drop, so that a network of exactly that ratio exists and is
    fine-tuned until the next drop.

    Raises:
        BadInput: a snapshot does not lie on the way, or there are too few steps for all of them.
    """
    final = min((width / sizes[name] for name, width in widths.items()), default=1.0)
    wanted = sorted(set(snapshots), reverse=True)
    for ratio in wanted:
        if not final < ratio < 1:
            raise BadInput(f"a snapshot at {ratio:g} does not lie between {final:g} and 1")
    if final >= 1 or steps < 2:
        return [Drop(0, dict(widths))]
    span = max(1, int(steps * SHRINKING))
    if span <= len(wanted):
        raise BadInput(f"{steps} steps are too few for {len(wanted)} snapshots on the way")
    count = max(1, len(wanted) + 1, round(np.log(final) / np.log(1 - DROP_SHARE)))
    count = min(span, count)
    ratios = [final ** (k / count) for k in range(1, count)]
    for ratio in wanted:
        if ratio not in ratios:
            own = [r for r in ratios if r not in wanted]
            ratios[ratios.index(min(own, key=lambda r: abs(r - ratio)))] = ratio
    drops: list[Drop] = []
    now = {name: sizes[name] for name in widths}
    for k, ratio in enumerate(sorted(ratios, reverse=True), start=1):
        share = np.log(ratio) / np.log(final)
        for name, width in widths.items():
            size = sizes[name]
            left = ratio if ratio in wanted else (width / size) ** share
            now[name] = min(now[name], max(width, int(size * left + 0.5)))
        at = round(span * k / count)
        drops.append(Drop(at, dict(now), ratio if ratio in wanted else None))
    return [*drops, Drop(span, dict(widths))]
