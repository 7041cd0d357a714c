"""Where the milliseconds of a network go, and why: its layers beside what the machine can do.

    layers as the runtime reports them + roofline → LayerTime → LayerProfile → table, sentences

What the whole takes and no layer does is the *rest*: the runtime's work between layers, and
copying input and output. It does not shrink when layers do.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from mvp_edge_export.measuring.roofline import Roofline
from mvp_edge_export.profile_sections import NumberFormat

_FROZEN = ConfigDict(frozen=True, extra="forbid")

_LISTED = 12
_NOTABLE = 0.15
"""The share of the time from which on a cause is named."""
_PADDED = 1.15
"""Multiply-adds over those of the network from which on padding is spoken of."""
_FOLLOWS = 0.8
"""Of the multiply-adds' ratio: a speed-up from which on the time follows them."""


class LayerTime(BaseModel):
    """One layer as a runtime ran it."""

    model_config = _FROZEN

    name: str
    op: str
    """In the runtime's words."""
    kernel: str
    """Which implementation of it, if the runtime says."""
    arithmetic: str
    output: tuple[int, ...]
    """The shape that it writes."""
    milliseconds: float
    share: float
    """Of the run, 0..1: of the whole without the profile, or of all layers where watching made them longer."""
    macs: int
    """Multiply-adds, the runtime's padding included."""
    bytes: int
    """Weights read, activations read and written."""
    roofline_ms: float
    """The least time that it can take on this machine."""
    bound: Literal["compute", "memory"]
    """What sets that least time."""

    @property
    def gmacs(self) -> float:
        """Its multiply-adds a second, in 10⁹."""
        return self.macs / self.milliseconds / 1e6

    @property
    def reached(self) -> float:
        """How much of the machine it uses: its least time over its time."""
        return self.roofline_ms / self.milliseconds


class LayerProfile(BaseModel):
    """The layers of one network in one runtime with one number of threads."""

    model_config = _FROZEN

    network: str
    runtime: str
    version: str
    precision: NumberFormat
    threads: int
    runs: int
    """Runs that a layer's time comes from."""
    whole_ms: float
    """Median of a run, without the profile."""
    profiled_ms: float
    """The same with it: what watching costs."""
    disturbed: bool
    """Another load interrupted the watched runs, again and again: their shares are rough."""
    network_macs: int
    """What the network itself needs, without a runtime's padding."""
    layers: tuple[LayerTime, ...]
    """In the order in which they ran."""

    @property
    def macs(self) -> int:
        """Multiply-adds that the runtime does."""
        return sum(layer.macs for layer in self.layers)

    @property
    def layers_ms(self) -> float:
        """What all layers take; may exceed the whole run, since watching slows layers too."""
        return sum(layer.milliseconds for layer in self.layers)

    @property
    def run_ms(self) -> float:
        """What shares are of."""
        return max(self.whole_ms, self.layers_ms)

    @property
    def rest_ms(self) -> float:
        """What the whole takes and no layer does."""
        return max(0.0, self.whole_ms - self.layers_ms)

    @property
    def roofline_ms(self) -> float:
        """The least time that the machine needs for all layers, one after the other."""
        return sum(layer.roofline_ms for layer in self.layers)

    @property
    def title(self) -> str:
        """The network, the runtime and the threads."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.network} {self.precision} in {self.runtime} {self.version}, {threads}"

    def table(self) -> Table:
        """The heaviest layers and the rest, at most 80 columns wide."""
        watched = self.profiled_ms / self.whole_ms - 1
        table = Table(
            title=f"{self.title}: {self.whole_ms:.3g} ms",
            caption=f"{len(self.layers)} layers over {self.runs} runs; watching them made a run"
            f" {abs(watched):.0%} {'longer' if watched >= 0 else 'shorter'}"
            f"{'; NOISY, another load ran' * self.disturbed}",
            box=None,
            padding=(0, 1, 0, 0),
        )
        table.add_column("layer", max_width=26, no_wrap=True)
        table.add_column("what", max_width=14, no_wrap=True)
        for name in ("µs", "share", "M mult-adds", "KiB", "of roofline"):
            table.add_column(name, justify="right", no_wrap=True)
        heaviest = sorted(self.layers, key=lambda layer: -layer.milliseconds)
        for layer in heaviest[:_LISTED]:
            table.add_row(*_row(layer.name, layer.op, [layer], self.run_ms))
        others = heaviest[_LISTED:]
        if others:
            table.add_row(*_row(f"{len(others)} other layers", "", others, self.run_ms))
        rest = self.rest_ms
        table.add_row("between layers", "", f"{1e3 * rest:.1f}", f"{rest / self.run_ms:.0%}")
        return table


def _row(name: str, op: str, layers: Sequence[LayerTime], run: float) -> list[str]:
    took = sum(layer.milliseconds for layer in layers)
    least = sum(layer.roofline_ms for layer in layers)
    return [
        name,
        op,
        f"{1e3 * took:.1f}",
        f"{took / run:.0%}",
        f"{sum(layer.macs for layer in layers) / 1e6:.2f}",
        f"{sum(layer.bytes for layer in layers) / 1024:.0f}",
        f"{least / took:.0%}",
    ]


def against_roofline(
    reported: Iterable[dict[str, Any]], roofline: Roofline, whole_ms: float
) -> Iterator[LayerTime]:
    """Layers beside their bounds.

    Args:
        reported: fields of ``reports.Layer``, all layers of a network.
        roofline: of the machine with as many threads.
        whole_ms: what a run takes.
    """
    layers = list(reported)
    run_ms = max(whole_ms, sum(layer["ms"] for layer in layers))
    weights = sum(layer["weight_bytes"] for layer in layers)
    for layer in layers:
        # Weights come round once a run, after all the others; activations were just written.
        moving = roofline.memory_ms(layer["weight_bytes"], weights)
        moving += roofline.memory_ms(layer["activation_bytes"], layer["activation_bytes"])
        computing = roofline.compute_ms(layer["macs"], layer["arithmetic"])
        yield LayerTime(
            name=layer["name"],
            op=layer["op"],
            kernel=layer["kernel"],
            arithmetic=layer["arithmetic"],
            output=layer["output"],
            milliseconds=layer["ms"],
            share=layer["ms"] / run_ms,
            macs=layer["macs"],
            bytes=layer["weight_bytes"] + layer["activation_bytes"],
            roofline_ms=max(moving, computing),
            bound="compute" if computing >= moving else "memory",
        )


def explain(
    profile: LayerProfile, baseline: LayerProfile | None, roofline: Roofline
) -> Iterator[str]:
    """Why a network takes the time it takes, and what would help; from the figures alone.

    Args:
        profile: of the network.
        baseline: of the unpruned one in the same runtime with as many threads.
        roofline: of the machine.
    """
    whole = profile.whole_ms
    if baseline is not None:
        fewer, faster = baseline.network_macs / profile.network_macs, baseline.whole_ms / whole
        yield (
            f"{fewer:.3g}× fewer multiply-adds made it {faster:.3g}× faster in {profile.runtime}"
            f" ({baseline.whole_ms:.3g} → {whole:.3g} ms)."
        )
        if faster >= _FOLLOWS * fewer:
            yield "Its time follows its multiply-adds: pruning further makes it faster as well."
            return
    for share, what, advice in sorted(_causes(profile, baseline), reverse=True):
        if share >= _NOTABLE:
            yield f"{share:.0%} of its time {what}: {advice}."
    padding = profile.macs / profile.network_macs
    if padding >= _PADDED:
        yield (
            f"{profile.runtime} computes {padding:.2g}× the multiply-adds that the network has,"
            f" since it pads channels to whole vectors{_vector(profile)}: units up to the next"
            " multiple would cost no time."
        )
    yield (
        f"The machine needs at least {profile.roofline_ms:.2g} ms for these layers,"
        f" {profile.roofline_ms / whole:.0%} of what the network takes ({roofline})."
    )


def _vector(profile: LayerProfile) -> str:
    """The largest power of two that divides the channels of all padded layers."""
    widths = {layer.output[1] for layer in profile.layers if layer.kernel == "nchwc"}
    block = next((b for b in (16, 8) if widths and all(w % b == 0 for w in widths)), None)
    return f" of {block}" if block else ""


def _causes(
    profile: LayerProfile, baseline: LayerProfile | None
) -> Iterator[tuple[float, str, str]]:
    """Disjoint parts of a run: (share of its time, what goes on in it, what would help)."""
    before = {layer.name: layer for layer in baseline.layers} if baseline else {}
    pruned = "pruned layers" if baseline else "layers"
    unchanged, moving, memory, compute = [], [], [], []
    for layer in profile.layers:
        if layer.macs == 0:
            moving.append(layer)
        elif layer.name in before and before[layer.name].macs <= layer.macs:
            unchanged.append(layer)
        elif layer.bound == "memory":
            memory.append(layer)
        else:
            compute.append(layer)

    def share(layers: Sequence[LayerTime]) -> float:
        return sum(layer.share for layer in layers)

    yield (
        profile.rest_ms / profile.whole_ms,
        f"passes between its {len(profile.layers)} layers",
        "thinner layers do not help; fewer layers or another runtime may",
    )
    if unchanged:
        heaviest = max(unchanged, key=lambda layer: layer.milliseconds)
        yield (
            share(unchanged),
            f"goes into layers that pruning left as they were ({heaviest.name} above all)",
            "a smaller input or another backbone helps, keeping fewer units does not",
        )
    kinds: dict[str, float] = {}
    for layer in moving:
        kinds[layer.op] = kinds.get(layer.op, 0.0) + layer.share
    named = ", ".join(sorted(kinds, key=lambda op: -kinds[op])[:3])
    yield (
        share(moving),
        f"goes into layers without multiply-adds ({named})",
        "they move data and shrink less than multiply-adds do; another runtime may fuse them",
    )
    yield (
        share(memory),
        f"goes into {pruned} whose bytes take longer than their multiply-adds",
        "what moves fewer bytes helps (int8), fewer multiply-adds alone do not",
    )
    if compute:
        least = sum(layer.roofline_ms for layer in compute)
        reached = least / sum(layer.milliseconds for layer in compute)
        yield (
            share(compute),
            f"goes into {pruned} that use {reached:.0%} of the machine's arithmetic",
            "only fewer units make them faster"
            if reached > 0.5
            else "they are too small to fill it, so their time shrinks less than their work",
        )
