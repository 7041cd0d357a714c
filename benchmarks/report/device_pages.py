"""The raw files of what was measured on the device side, from the committed measurements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.report import sources
from benchmarks.report.device_tables import (
    arm64_table,
    family_table,
    front_table,
    light_table,
    photos_table,
    predictor_table,
    widths_table,
)
from benchmarks.report.family_tables import arithmetic_table, families_table
from benchmarks.report.grid_tables import (
    UNPRUNED,
    crosscheck_table,
    full_table,
    grids,
    latency_table,
    memory_table,
    roofline_table,
    rounding_table,
)


def device_files() -> dict[str, str]:
    """The name of each raw file of the device side → its Markdown."""
    measured = grids()
    return {
        "latency": _sections(
            "Latency",
            "Median time of one inference (p50). The networks are there to be timed: they keep the backbone's "
            "largest units, rounded to multiples of 8, and are hardly trained.",
            {one.facts["network"]: latency_table(one) for one in measured}
            | {"The full protocol, on a machine without AVX-512": full_table(measured)},
        ),
        "layers": _sections(
            "Time against the machine's measured limits",
            "*At least*: for each layer the larger of its multiply-adds and its bytes at the machine's measured "
            "rates, added up. *Why*: what `mvp-edge bench --layers` prints.",
            {"": roofline_table(measured)},
        ),
        "rounding": _sections("Rounded and exact widths", "", {"": rounding_table(measured)}),
        "memory": _sections("Files, loading time and memory", "", {"": memory_table(measured)}),
        **_single_files(),
    }


@dataclass(frozen=True)
class _File:
    """A raw file of one measurement: its title, a note, and heading → table."""

    title: str
    note: str
    tables: Callable[[dict[str, Any]], Mapping[str, str]]


_FILES = {
    "crosscheck": _File(
        "Our timings against other tools",
        "The same files in OpenVINO's `benchmark_app` and in a plain loop that shares no code with ours.",
        lambda facts: {"": crosscheck_table(facts)},
    ),
    "arm64": _File(
        "The same bundle on emulated arm64 boards",
        "Debian's arm64 root file systems under `qemu-user-static`, with the wheels that a Raspberry Pi gets.",
        lambda facts: {"": arm64_table(facts)},
    ),
    "light_install": _File(
        "Size of the device half on disk",
        "`pip install 'mvp-edge[RUNTIME]'` in a clean environment.",
        lambda facts: {"": light_table(facts)},
    ),
    "front": _File(
        "Five sizes from one command",
        "`prune --front 5 --reference`. DeiT-Tiny's zoo is not committed.",
        lambda facts: {
            "ResNet-18": front_table(facts, "resnet18"),
            "DeiT-Tiny": front_table(facts, "deit-tiny"),
        },
    ),
    "widths": _File(
        "Layer widths by the voters' agreement",
        "Uniform widths against widths that follow the zoo's agreement on a layer's units (β) or the layer's share "
        "of the multiply-adds (γ), with the same multiply-adds in all; MVP, 100 steps.",
        lambda facts: {"": widths_table(facts, "resnet18")},
    ),
    "predictor": _File(
        "Latency predicted for networks that were not measured",
        "Error in per cent: median (90th percentile). *law*: a sum of non-negative terms, the model in the "
        "product; *trees*: gradient-boosted trees; *law and trees*: trees for what the law leaves.",
        lambda facts: {
            "Held out of the fit": predictor_table(facts),
            "Every third network, by architecture and size of the image (law)": family_table(facts),
        },
    ),
}


def _single_files() -> dict[str, str]:
    """The raw files that have a measurement each."""
    found = {}
    for name, file in _FILES.items():
        if facts := sources.device_measurement(name):
            tables = file.tables(facts)
            found[name.replace("_", "-")] = _sections(file.title, file.note, tables)
    if rows := sources.lines("families"):
        note = (
            "Random weights, 128 px (a ViT: seven patches a side). *masked − cut*: largest relative difference of "
            "the masked and the cut network, in float64. *time left*: of the network with half of the "
            "multiply-adds, in ONNX Runtime on one thread. *Torch-Pruning*: the share of the multiply-adds that it "
            "leaves when asked for half, or its error."
        )
        found["backbones"] = _sections("Architectures", note, {"": families_table(rows)})
    if facts := sources.measurement("arithmetic"):
        note = "Steps of 32 images on one thread, four ways in turn; ratios of the same round, median of seven."
        found["training-step"] = _sections("A training step", note, {"": arithmetic_table(facts)})
    if facts := sources.measurement("photos"):
        unpruned = next(one for one in grids() if one.name == "deit-tiny-224").made[UNPRUNED]
        table = photos_table(facts, unpruned["accuracy"][0]["top1"])
        found["photographs"] = _sections("A folder of photographs", "", {"": table})
    return found


def _sections(title: str, note: str, sections: Mapping[str, str]) -> str:
    """Markdown: a title, a note, and each table under its heading (none if the heading is empty)."""
    parts = [f"# {title}", note] if note else [f"# {title}"]
    parts += [f"## {heading}\n\n{text}" if heading else text for heading, text in sections.items()]
    return "\n\n".join(parts)
