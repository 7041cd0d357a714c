"""The latency grid: its rows, network by network, and the tables of latency, layers, rounding and memory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.report.sources import DEVICE
from mvp_edge_export.running.sessions import RUNTIME_BYTES

RESULTS = DEVICE / "results"
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
UNPRUNED = "unpruned"
MEMORY_GOAL = 1.5
"""Times the runtime's own memory, the weights and the peak activations."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """The rows of one network."""

    name: str
    facts: Row

    @cached_property
    def made(self) -> dict[str, Row]:
        """Variant → what is known about it before it was timed."""
        return {one["variant"]: one for one in self.facts["made"]}

    @property
    def rounded(self) -> list[str]:
        """The variants with widths as devices have them, the unpruned one first."""
        return [name for name, one in self.made.items() if one["round_to"] == 8]

    def groups(self, protocol: str = "grid") -> list[tuple[str, int]]:
        """Runtime and threads of what was measured."""
        split = (name.split(" x") for name in self.facts[protocol])
        return [(runtime, int(threads)) for runtime, threads in split]

    def cell(
        self,
        variant: str,
        runtime: str,
        threads: int,
        precision: str = "fp32",
        protocol: str = "grid",
    ) -> Row | None:
        """A cell's row by a protocol, if it was measured."""
        for row in self.facts[protocol].get(f"{runtime} x{threads}", {}).get("cells", ()):
            if (row["variant"], row["precision"]) == (variant, precision):
                found: Row = row
                return found
        return None

    @property
    def flops_ratio(self) -> dict[str, float]:
        """Variant → how many times fewer multiply-adds than unpruned."""
        whole = self.made[UNPRUNED]["flops"]
        return {name: whole / one["flops"] for name, one in self.made.items()}


def grids(results: Path = RESULTS) -> list[Grid]:
    """All networks that were measured."""
    files = sorted(results.glob("*.json"))
    return [Grid(file.stem, json.loads(file.read_text())) for file in files]


def speed_rows(found: Grid) -> Iterator[dict[str, Any]]:
    """For each device width: unpruned and pruned p50 in both runtimes, one thread, fp32."""
    for variant in found.rounded[1:]:
        pairs = {runtime: _pair(found, variant, runtime) for runtime in RUNTIMES}
        if all(pair for _, pair in pairs.values()):
            yield {
                "network": found.facts["network"],
                "keep": found.made[variant]["keep"],
                "flops_ratio": found.flops_ratio[variant],
                "measured": {
                    runtime: _how(found, protocol, runtime)
                    for runtime, (protocol, _) in pairs.items()
                },
                "cells": {
                    f"{runtime}/{network}": {"p50_ms": row["p50"], "interval": row["p50_interval"]}
                    for runtime, (_, pair) in pairs.items()
                    for network, row in zip(("pruned", "baseline"), pair, strict=True)
                },
            }


def _pair(found: Grid, variant: str, runtime: str) -> tuple[str, tuple[Row, ...]]:
    """A pruned network and the unpruned one beside it, by the full protocol where that measured both.

    The two protocols may have run on different machines; a pair is of one.
    """
    for protocol in ("full", "grid"):
        rows = [found.cell(name, runtime, 1, protocol=protocol) for name in (variant, UNPRUNED)]
        both = tuple(row for row in rows if row is not None)
        if len(both) == len(rows):
            return protocol, both
    return "", ()


def _how(found: Grid, protocol: str, runtime: str) -> str:
    """The protocol, and the processor's vector instructions where they were written down."""
    isa = found.facts[protocol][f"{runtime} x1"].get("machine", {}).get("isa")
    name = {"full": "full", "grid": "default"}[protocol]
    return f"{name} protocol" + (f" on {', '.join(isa)}" if isa else "")


def latency_table(found: Grid) -> str:
    """Markdown: p50 and speed-up of every variant in every runtime, precision and thread count."""
    columns = [
        (runtime, threads, precision)
        for runtime, threads in found.groups()
        for precision in ("fp32", "int8")
    ]
    heads = [
        f"{RUNTIMES[runtime]} {precision}, {threads} thread{'s' * (threads > 1)}"
        for runtime, threads, precision in columns
    ]
    lines = [
        f"| {found.facts['network']} | 10⁶ multiply-adds | {' | '.join(heads)} | top-1 %, int8 |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for variant in found.rounded:
        shown = []
        for runtime, threads, precision in columns:
            row = found.cell(variant, runtime, threads, precision)
            base = found.cell(UNPRUNED, runtime, threads)
            shown.append(_timed(row, base, variant == UNPRUNED and precision == "fp32"))
        made = found.made[variant]
        ratio = found.flops_ratio[variant]
        less = "" if variant == UNPRUNED else f" (1/{ratio:.3g})"
        lines.append(
            f"| {variant} | {made['flops'] / 1e6:.1f}{less} | {' | '.join(shown)} "
            f"| {_accuracy(found, made)} |"
        )
    used = {
        RUNTIMES[name.split(" x")[0]]: group["cells"][0].get("arithmetic", "f32")
        for name, group in found.facts["grid"].items()
    }
    chosen = ", ".join(f"{runtime} {arithmetic}" for runtime, arithmetic in used.items())
    machines = {group["machine"]["cpu"] for group in found.facts["grid"].values()}
    plans = {group["plan"]["seconds"] for group in found.facts["grid"].values()}
    seconds = ", ".join(f"{one:g}" for one in sorted(plans))
    weights = (
        f"trained weights, the pruned networks tuned for {found.facts['steps']} steps"
        if found.facts["weights"] == "trained"
        else "random weights, for the times alone"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"p50 in ms (times faster than unpruned fp32); {weights}; {seconds} s in one process a cell, "
            f"variants in alternation, on {' and '.join(sorted(machines))}; arithmetic of fp32 files: {chosen}. "
            "Top-1: fp32 → int8 in ONNX Runtime, in OpenVINO. *!*: another load ran on the machine.",
        ]
    )


def _timed(row: Row | None, base: Row | None, plain: bool) -> str:
    if row is None:
        return "–"
    noisy = "" if row["status"] == "OK" else "!"
    gain = "" if plain or base is None else f" ({base['p50'] / row['p50']:.3g} ×)"
    return f"{row['p50']:.3g}{noisy}{gain}"


def _accuracy(found: Grid, made: Row) -> str:
    if found.facts["weights"] != "trained" or not made["accuracy"]:
        return "–"
    whole = next((one for one in made["accuracy"] if one["format"] == "onnx"), None)
    narrow = [one for one in made["accuracy"] if one["format"].endswith("int8")]
    lost = ", ".join(f"{100 * one['top1']:.1f}" for one in narrow)
    return (f"{100 * whole['top1']:.1f}" if whole else "–") + (f" → {lost}" if lost else "")


def full_table(found: list[Grid]) -> str:
    """Markdown: the rows of the full protocol, with their intervals."""
    lines = [
        "| network | | runtime | p50 of three processes, ms (95 %) | times faster | multiply-adds |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        for runtime, threads in one.groups("full"):
            base = one.cell(UNPRUNED, runtime, threads, protocol="full")
            for variant in one.rounded:
                row = one.cell(variant, runtime, threads, protocol="full")
                if row is None or base is None:
                    continue
                low, high = row["p50_interval"]
                faster = "" if variant == UNPRUNED else f"{base['p50'] / row['p50']:.3g} ×"
                ratio = "" if variant == UNPRUNED else f"1/{one.flops_ratio[variant]:.3g}"
                lines.append(
                    f"| {one.facts['network']} | {variant} | {RUNTIMES[runtime]} | "
                    f"{_timed(row, None, True)} ({low:.3g} … {high:.3g}) | {faster} | {ratio} |"
                )
    arithmetic: dict[str, set[str]] = {}
    for group in (group for one in found for group in one.facts["full"].values()):
        own = arithmetic.setdefault(_machine(group["machine"]), set())
        own |= {cell["arithmetic"] for cell in group["cells"]}
    for told, own in sorted(arithmetic.items()):
        lines += ["", f"On {told}; arithmetic {', '.join(sorted(own))}."]
    return "\n".join(lines)


def _machine(facts: Row) -> str:
    """The processor, and which vector instructions it has."""
    return f"{facts['cores']} cores of an {facts['cpu']} with {', '.join(facts['isa'])}"


def rounding_table(found: list[Grid]) -> str:
    """Markdown: what rounding the widths to 8 or 16 does to multiply-adds and time."""
    lines = [
        "| network | keep | widths | 10⁶ multiply-adds | ONNX Runtime, ms | OpenVINO, ms |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        chosen = [made for name, made in one.made.items() if name != UNPRUNED]
        for made in sorted(chosen, key=lambda made: (-made["keep"], made["round_to"])):
            times = [
                _timed(one.cell(made["variant"], runtime, 1), None, True) for runtime in RUNTIMES
            ]
            widths = "any" if made["round_to"] == 1 else f"multiples of {made['round_to']}"
            lines.append(
                f"| {one.facts['network']} | {made['keep']:g} | {widths} | {made['flops'] / 1e6:.2f} "
                f"| {' | '.join(times)} |"
            )
    return "\n".join([*lines, "", "One thread, fp32."])


def roofline_table(found: list[Grid]) -> str:
    """Markdown: the time of each network beside the least that the machine's measured rates allow, and why."""
    lines = [
        "| network | | runtime | takes, ms | layers, ms | at least, ms | of that | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for runtime, threads in one.groups():
            for row in one.facts["grid"][f"{runtime} x{threads}"].get("layers", ()):
                reached = 100 * row["roofline_ms"] / row["whole_ms"]
                # One sentence of the explanation is this row's own figures.
                why = " ".join(w for w in row["why"] if not w.startswith("The machine needs"))
                lines.append(
                    f"| {one.facts['network']} | {row['variant']} | {RUNTIMES[runtime]} | "
                    f"{row['whole_ms']:.3g} | {row['layers_ms']:.3g} | {row['roofline_ms']:.3g} | "
                    f"{reached:.0f} % | {why} |"
                )
    return "\n".join([*lines, "", "One thread, fp32, widths rounded to 8."])


def memory_ratio(found: Grid, variant: str, runtime: str) -> float | None:
    """Peak resident memory over the runtime's own, the weights and the peak activations predicted.

    The runtime's own memory is measured with a tiny network, because importing it loads only a part of it.
    """
    row, made = found.cell(variant, runtime, 1), found.made[variant]
    if row is None:
        return None
    expected = RUNTIME_BYTES[runtime] + made["weight_bytes"] + made["activation_bytes"]
    return float(row["rss_peak"] / expected)


def memory_table(found: list[Grid]) -> str:
    """Markdown: file, loading time and peak memory of each device width."""
    mib = 2**20
    lines = [
        "| network | | weights + activations, MiB | runtime | file, MiB (int8) | load, ms | peak, MiB "
        "| after import, MiB | peak / predicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        for variant in one.rounded:
            made = one.made[variant]
            needed = (made["weight_bytes"] + made["activation_bytes"]) / mib
            for runtime, form in (("onnxruntime", "onnx"), ("openvino", "openvino")):
                row, ratio = (
                    one.cell(variant, runtime, 1),
                    memory_ratio(one, variant, runtime),
                )
                if row is None or ratio is None:
                    continue
                files, narrow = made["files"], f"{form}-int8"
                small = f" ({files[narrow] / mib:.2f})" if narrow in files else ""
                lines.append(
                    f"| {one.facts['network']} | {variant} | {needed:.2f} | {RUNTIMES[runtime]} | "
                    f"{files[form] / mib:.2f}{small} | {row['load_ms']:.0f} | "
                    f"{row['rss_peak'] / mib:.0f} | {row['rss_import'] / mib:.0f} | {ratio:.2f} |"
                )
    own = ", ".join(f"{RUNTIMES[name]} {RUNTIME_BYTES[name] / mib:.0f} MiB" for name in RUNTIMES)
    note = (
        f"Predicted: what Python and the runtime take with a network of 0.4 MB ({own}), the weights and the "
        f"peak activations. Goal for pruned networks: at most {MEMORY_GOAL} times that."
    )
    return "\n".join([*lines, "", note])


def crosscheck_table(facts: Row) -> str:
    """Markdown: our median latency over that of tools that share no code with ours."""
    lines = [
        "| network | | runtime | threads | ours, ms | plain loop | benchmark_app |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        ours = sorted(row["p50_ms"]["ours"])
        ratios = [
            f"{row['ours_over'][tool]:.3f}" if tool in row["ours_over"] else ""
            for tool in ("plain loop", "benchmark_app")
        ]
        lines.append(
            f"| {row['network']} | {row['variant']} | {RUNTIMES[row['runtime']]} | {row['threads']} | "
            f"{ours[len(ours) // 2]:.4g} ({ours[0]:.4g} … {ours[-1]:.4g}) | {' | '.join(ratios)} |"
        )
    note = (
        f"Ours: median and range of {facts['turns']} fresh processes of {facts['seconds']:g} s, in alternation "
        "with the others; then our median over theirs."
    )
    return "\n".join([*lines, "", note])
