"""The latency of each layer in the report, for the pruned and the unpruned network.

A bar is a layer's share of its own network's latency, so that networks of very different speed can be compared;
the filled part is the least time that the machine needs. There is one drawing for each runtime.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mvp_edge.reporting import charts
from mvp_edge.reporting.charts import Bar, BarRow
from mvp_edge.reporting.measures import RUNTIMES
from mvp_edge.reporting.printed import NNBSP, duration, percent
from mvp_edge_export.measuring.layers import LayerProfile, LayerTime
from mvp_edge_export.measuring.result import BenchResult

SHOWN = 10
"""Layers of each network that have a row of their own."""


@dataclass(frozen=True)
class LayerPart:
    """What the report says of the layers in one runtime."""

    title: str
    drawing: Markup
    sentences: tuple[str, ...]
    watching: str
    """How much profiling slowed the network down, and whether another load disturbed it."""


def layer_parts(bench: BenchResult | None) -> Iterator[LayerPart]:
    """For each runtime the fp32 network's layers, with the fewest threads that were measured."""
    if bench is None:
        return
    explained = {id(one): sentences for one, sentences in bench.explanations()}
    for runtime in dict.fromkeys(one.runtime for one in bench.layers):
        found = [o for o in bench.layers if (o.runtime, o.precision) == (runtime, "fp32")]
        fewest = min((one.threads for one in found), default=0)
        networks = {one.network: one for one in found if one.threads == fewest}
        pruned = networks.get("pruned")
        if pruned is None:
            continue
        yield LayerPart(
            title=f"{RUNTIMES.get(runtime, runtime)}, {fewest}{NNBSP}thread{'s' * (fewest > 1)}",
            drawing=draw_layers(pruned, networks.get("baseline")),
            sentences=tuple(explained[id(pruned)]),
            watching=_watching(pruned),
        )


def draw_layers(pruned: LayerProfile, unpruned: LayerProfile | None) -> Markup:
    """One row for each slow layer of either network, in the order in which they run."""
    networks = {"unpruned": unpruned, "pruned": pruned} if unpruned else {"pruned": pruned}
    layers = {style: _by_name(one) for style, one in networks.items()}
    heavy = {
        name
        for named in layers.values()
        for name in sorted(named, key=lambda name: -_took(named[name]))[:SHOWN]
    }
    order = dict.fromkeys(name for named in reversed(layers.values()) for name in named)
    rows = [
        _row(name, {style: named.get(name, []) for style, named in layers.items()}, networks)
        for name in order
        if name in heavy
    ]
    others = {
        style: [one for name, found in named.items() if name not in heavy for one in found]
        for style, named in layers.items()
    }
    if any(others.values()):
        counts = " / ".join(f"{len(found)}" for found in others.values())
        rows.append(_row(f"{counts} other layers", others, networks))
    bars = [Bar(style, one.rest_ms / one.whole_ms, 0.0) for style, one in networks.items()]
    text = " → ".join(_duration(one.rest_ms) for one in networks.values())
    rows.append(BarRow("between layers", text, bars))
    return charts.bars("Share of each network's time by layer", "of its own time", rows)


def _row(
    name: str,
    layers: Mapping[str, Sequence[LayerTime]],
    networks: Mapping[str, LayerProfile],
) -> BarRow:
    bars = []
    for style, found in layers.items():
        whole = networks[style].run_ms
        took = _took(found)
        least = min(took, sum(layer.roofline_ms for layer in found))
        bars.append(Bar(style, took / whole, least / whole))
    times = " → ".join(_duration(_took(found)) if found else "–" for found in layers.values())
    kinds = {layer.op for found in layers.values() for layer in found}
    label = f"{name} ({kinds.pop()})" if len(kinds) == 1 else name
    return BarRow(label, times, bars)


def _by_name(profile: LayerProfile) -> dict[str, list[LayerTime]]:
    named: dict[str, list[LayerTime]] = {}
    for layer in profile.layers:
        named.setdefault(layer.name, []).append(layer)
    return named


def _took(layers: Sequence[LayerTime]) -> float:
    return sum(layer.milliseconds for layer in layers)


def _duration(milliseconds: float) -> str:
    if milliseconds < 0.1:
        return f"{1000 * milliseconds:.0f}{NNBSP}µs"
    return duration(milliseconds)


def _watching(profile: LayerProfile) -> str:
    longer = profile.profiled_ms / profile.whole_ms - 1
    cost = f"{percent(abs(longer), 0)} {'longer' if longer >= 0 else 'shorter'}"
    noisy = (
        " Another load ran at the same time, so the shares are inaccurate."
        if profile.disturbed
        else ""
    )
    return f"Profiling made an inference {cost}; the shares are scaled to an inference without profiling.{noisy}"
