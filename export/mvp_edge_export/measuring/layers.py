"""Explains the latency of a network by comparing its layers with the machine's roofline.

    layers as the runtime reports them + roofline → LayerTime → LayerProfile → table, sentences

The part of a run that is not spent in layers is the *rest*: the runtime's work between layers, and
copying of input and output. Pruning does not reduce it.
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
"""Share of the time above which a cause is reported."""
_PADDED = 1.15
"""Ratio of computed to needed multiply-adds above which padding is reported."""
_FOLLOWS = 0.8
"""Ratio of speed-up to reduction of multiply-adds above which the latency counts as proportional."""


class LayerTime(BaseModel):
    """One layer as the runtime executed it, with its time and its roofline."""

    model_config = _FROZEN

    name: str
    op: str
    """Type of the operator as the runtime names it."""
    kernel: str
    """Implementation of the operator; empty if the runtime does not report it."""
    arithmetic: str
    """Number format of the computation: ``f32``, ``bf16``, ``f16`` or ``i8``."""
    output: tuple[int, ...]
    """Shape of the output."""
    milliseconds: float
    share: float
    """Share of the time of a run, 0..1; see ``LayerProfile.run_ms``."""
    macs: int
    """Multiply-adds including the runtime's padding."""
    bytes: int
    """Bytes of weights read and of activations read and written."""
    roofline_ms: float
    """Minimum time of the layer on this machine in ms."""
    bound: Literal["compute", "memory"]
    """Whether multiply-adds or bytes determine the minimum time."""

    @property
    def gmacs(self) -> float:
        """Multiply-adds per second, in 10⁹."""
        return self.macs / self.milliseconds / 1e6

    @property
    def reached(self) -> float:
        """Fraction of the peak performance that is reached: minimum time over measured time."""
        return self.roofline_ms / self.milliseconds


class LayerProfile(BaseModel):
    """Times of all layers of a network in one runtime with one number of threads."""

    model_config = _FROZEN

    network: str
    runtime: str
    version: str
    precision: NumberFormat
    threads: int
    runs: int
    """Number of profiled runs."""
    whole_ms: float
    """Median time of a run without profiling."""
    profiled_ms: float
    """Median time of a run with profiling."""
    disturbed: bool
    """Whether other load disturbed the profiled runs in all attempts, so that times are inaccurate."""
    network_macs: int
    """Multiply-adds of the network without the runtime's padding."""
    layers: tuple[LayerTime, ...]
    """The layers in the order of execution."""

    @property
    def macs(self) -> int:
        """Multiply-adds that the runtime computes, including padding."""
        return sum(layer.macs for layer in self.layers)

    @property
    def layers_ms(self) -> float:
        """Total time of the layers in ms; profiling slows layers, so it may exceed ``whole_ms``."""
        return sum(layer.milliseconds for layer in self.layers)

    @property
    def run_ms(self) -> float:
        """The time in ms of which ``LayerTime.share`` is a part: the run's or, if longer, the layers'."""
        return max(self.whole_ms, self.layers_ms)

    @property
    def rest_ms(self) -> float:
        """Time of a run in ms that is not spent in layers."""
        return max(0.0, self.whole_ms - self.layers_ms)

    @property
    def roofline_ms(self) -> float:
        """Minimum time in ms of all layers, one after the other."""
        return sum(layer.roofline_ms for layer in self.layers)

    @property
    def title(self) -> str:
        """Description of network, runtime and number of threads."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.network} {self.precision} in {self.runtime} {self.version}, {threads}"

    def table(self) -> Table:
        """A table of the slowest layers and the rest, at most 80 columns wide."""
        watched = self.profiled_ms / self.whole_ms - 1
        table = Table(
            title=f"{self.title}: {self.whole_ms:.3g} ms",
            caption=f"{len(self.layers)} layers over {self.runs} runs; profiling made a run"
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
    """Combine the reported layers of a network with their minimum times.

    Args:
        reported: all layers of a network, each with the fields of ``reports.Layer``.
        roofline: roofline of the machine with the same number of threads.
        whole_ms: time of a run in ms.
    """
    layers = list(reported)
    run_ms = max(whole_ms, sum(layer["ms"] for layer in layers))
    weights = sum(layer["weight_bytes"] for layer in layers)
    for layer in layers:
        # Between two uses of a layer's weights all other weights are read; activations were just written.
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
    """Yield sentences on why a network takes its time and what would help.

    Args:
        profile: layers of the network.
        baseline: layers of the unpruned network with the same runtime and threads; None if there is none.
        roofline: roofline of the machine with the same number of threads.
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
    """The vector width, 16 or 8, that divides the channels of all padded layers; empty if none."""
    widths = {layer.output[1] for layer in profile.layers if layer.kernel == "nchwc"}
    block = next((b for b in (16, 8) if widths and all(w % b == 0 for w in widths)), None)
    return f" of {block}" if block else ""


def _causes(
    profile: LayerProfile, baseline: LayerProfile | None
) -> Iterator[tuple[float, str, str]]:
    """Disjoint parts of a run, each as (share of the time, description, what would help)."""
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
