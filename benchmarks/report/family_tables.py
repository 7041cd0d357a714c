"""Tables and figures of the backbones that can be pruned, and of how fast they train."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.report.figure import Figure

Row = Mapping[str, Any]
EXACT = 1e-6
"""The masked and the cut network count as equal when they differ by at most so much, in float64; nearly all by less
than 1e-14, and ConvNeXt V2 by its global response normalisation's ε."""
PARITY = 1e-4
"""A runtime's logits count as PyTorch's when they differ by at most so much, relative to the largest."""
UNSHOWN = ("mobilenetv2_100", "seresnet18")
"""Networks whose training steps stand in the raw table alone."""
LONGEST = 110
"""Characters of a refusal that the table shows."""
HALF = 0.03
"""Torch-Pruning reached half of the multiply-adds when it came so near to it."""


def whole(row: Row) -> bool:
    """Whether an architecture can be pruned, and everything that was asked of it holds."""
    return (
        "latency_share" in row
        and row["mask_equals_cut"] <= EXACT
        and row["counts_agree"]
        and max(row["parity"].values()) <= PARITY
    )


def families_table(rows: Sequence[Row]) -> str:
    """Markdown: one row an architecture."""
    lines = [
        "| architecture | side | family | masked − cut | runtimes − PyTorch | multiply-adds left | time left "
        "| Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peer = row["torch_pruning"]
        theirs = (
            f"{peer['macs_share']:.2f}" if "macs_share" in peer else f"`{_plain(peer['error'])}`"
        )
        if "latency_share" not in row:
            said: str = row.get("refusal") or row.get("gate") or row["traceback"]
            cells = f"refused: {_plain(said.partition(': these families')[0][:LONGEST])} | | | | |"
        else:
            cells = (
                f"{row['family']} | {row['mask_equals_cut']:.0e} | {max(row['parity'].values()):.0e} | "
                f"{row['macs_share']:.2f} | {row['latency_share']:.2f} |"
            )
        lines.append(f"| {row['name']} | {row['side']} | {cells} {theirs} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("`", "'")


def families_summary(rows: Sequence[Row]) -> str:
    """Markdown: one row a family, with the kinds of networks in it."""
    lines = [
        "| family | architectures tried | all checks hold | time left at half the multiply-adds |",
        "|---|---|---|---|",
    ]
    for family in dict.fromkeys(row["family"] for row in rows if "latency_share" in row):
        own = [row for row in rows if row.get("family") == family and "latency_share" in row]
        left = [row["latency_share"] for row in own]
        kinds = ", ".join(dict.fromkeys(row["kind"] for row in own if row["kind"] != "others"))
        lines.append(
            f"| {kinds} | {len(own)} | {sum(map(whole, own))} | {np.median(left):.2f} "
            f"({min(left):.2f} … {max(left):.2f}) |"
        )
    refused = [row for row in rows if "latency_share" not in row]
    lines.append(f"| refused, with a reason | {len(refused)} | | |")
    return "\n".join(lines)


def family_figures(rows: Sequence[Row]) -> Iterator[Figure]:
    """How many architectures can be pruned and are right in every respect, and what Torch-Pruning makes of them."""
    source, command = "benchmarks/results/families.jsonl", "python -m benchmarks.families"
    needed = [row for row in rows if row["kind"] != "others"]
    cut = [row for row in rows if "latency_share" in row]
    theirs = [abs(row["torch_pruning"].get("macs_share", 1.0) - 0.5) <= HALF for row in rows]
    for name, value, goal, text in (
        ("F1-architectures-tried", len(rows), "≥ 60", "timm architectures with a row"),
        ("F1-required-whole", sum(map(whole, needed)), f"≥ {len(needed)}",
         "architectures of the families that have to work: all checks hold"),
        ("F1-pruned", len(cut), "stated", "architectures that can be pruned"),
        ("F1-tracebacks", sum("traceback" in row for row in rows), "≤ 0", "architectures that end in a traceback"),
        ("F1-torch-pruning-half", sum(theirs), "stated", "the same list: Torch-Pruning 1.6.1 leaves half of the "
         "multiply-adds, and the network runs"),
    ):  # fmt: skip
        yield Figure(name, value, None, None, "", goal, text, source, command)
    left = [row["latency_share"] for row in cut]
    yield Figure(
        "F1-time-at-half", float(np.median(left)), min(left), max(left), "×", "stated",
        "time of the network with half of the multiply-adds over the whole one's, ONNX Runtime, one thread: median "
        "of all architectures, and their range", source, command,
    )  # fmt: skip


def arithmetic_table(facts: Row, *, short: bool = False) -> str:
    """Markdown: how many times faster than plain PyTorch a training step is; ``short``: one a network and size."""
    lines = [
        "| network | side | keep | plain, ms | channels-last | bfloat16, channels-last | as trained here |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        if not short or (row["keep"] == 1 and row["network"] not in UNSHOWN):
            faster = row["faster"]
            lines.append(
                f"| {row['network']} | {row['side']} | {row['keep']:g} | {1000 * row['plain_seconds']:.0f} | "
                f"{faster['channels-last']:.2f} × | {faster['bfloat16']:.2f} × | {faster['product']:.2f} × |"
            )
    return "\n".join(lines)


def arithmetic_figures(facts: Row) -> Iterator[Figure]:
    """The smallest gain of the networks that have a goal, and of all others."""
    source, command = "benchmarks/results/arithmetic.json", "python -m benchmarks.timing.arithmetic"
    text = "training step of 32 images on one thread, over plain float32 PyTorch"
    for name in ("tf_efficientnet_lite0", "mobilenetv3_large_100", "mobilenetv3_small_100"):
        least = min(
            row["faster"]["product"]
            for row in facts["rows"]
            if row["network"] == name and row["keep"] == 1
        )
        yield Figure(
            f"F2-step-{name.removeprefix('tf_').replace('_', '-')}", least, None, None, "×", "≥ 1.8",
            f"{name} at 64 and 128 px, the smaller gain: {text}", source, command,
        )  # fmt: skip
    worst = min(facts["rows"], key=lambda row: row["faster"]["product"])
    yield Figure(
        "F2-step-worst", worst["faster"]["product"], None, None, "×", "≥ 1",
        f"smallest gain of all networks, {worst['network']} at {worst['side']} px, keep {worst['keep']:g}: {text}",
        source, command,
    )  # fmt: skip
