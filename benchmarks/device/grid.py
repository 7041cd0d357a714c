"""The latency grid: networks × keep ratios × runtimes × precisions × threads, on an idle machine.

    python -m benchmarks.device.grid [NETWORK …]           the default protocol: about 13 min a network
    python -m benchmarks.device.grid [NETWORK …] --full    headline rows: about 20 min a network

All variants of a network are timed alternately in one runtime with one number of threads (a *group*), so that a
drift of the machine affects all of them. Each network has a JSON file in `results/`. Groups that it contains are
not measured again, so an interrupted command can be repeated. `--seconds 0.3 --out FOLDER` tries everything in
minutes. Needs MVP_EDGE_DATA. The networks are made first, which takes longer than timing them (`--make` only makes
them). With one thread, the layers of networks with widths rounded to 8 are compared with the machine's roofline.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.device.networks import ARCHITECTURES, PRECISIONS, WORK, Made, Variant, make
from mvp_edge.machine import this_computer, versions
from mvp_edge_export.measuring.layer_times import layer_profile
from mvp_edge_export.measuring.layers import LayerProfile, explain
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.result import Cell
from mvp_edge_export.measuring.roofline import measure_roofline
from mvp_edge_export.measuring.rounds import CellLength, Subject, measure
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.running.sessions import FORMATS, RUNTIMES, memory_needed
from mvp_edge_export.storage import read_json, write_json

RESULTS = Path(__file__).parent / "results"
KEEPS = (0.5, 0.25, 0.1)
WIDTHS = (1, 16)
"""Multiples that widths are rounded to, beside the default of 8: none, and the vector length of AVX-512."""
THREADS = (1, 2)

Choice = Mapping[Variant, tuple[NumberFormat, ...]]

GRID: Choice = {Variant(keep): PRECISIONS for keep in (1.0, *KEEPS)}
ROUNDING: Choice = {Variant(keep, width): ("fp32",) for keep in KEEPS for width in WIDTHS}
"""Measured in addition to the grid, with one thread."""
ALL = {**GRID, **ROUNDING}
HEADLINE: Choice = {Variant(keep): ("fp32",) for keep in (1.0, 0.5, 0.1)}
PLANS = {"grid": CellLength(15.0), "full": CellLength(60.0, runs=1024, processes=3)}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(ARCHITECTURES))
    arguments.add_argument(
        "--full",
        action="store_true",
        help="longer protocol for unpruned, 0.5 and 0.1, with one thread",
    )
    arguments.add_argument("--make", action="store_true", help="only make the networks")
    arguments.add_argument(
        "--seconds", type=float, help="seconds a cell, to try the command (needs --out)"
    )
    arguments.add_argument(
        "--work",
        type=Path,
        default=WORK,
        help="where networks go (default: benchmarks/device/.work)",
    )
    arguments.add_argument(
        "--out", type=Path, default=RESULTS, help="default: benchmarks/device/results"
    )
    options = arguments.parse_args()
    if options.seconds and options.out == RESULTS:
        arguments.error(
            "--seconds: choose another --out, or these short measurements would count as finished"
        )
    for name in options.networks or ARCHITECTURES:
        if name not in ARCHITECTURES:
            arguments.error(f"{name}: choose among {', '.join(ARCHITECTURES)}")
    protocol = "full" if options.full else "grid"
    plan = CellLength(options.seconds) if options.seconds else PLANS[protocol]
    for name in options.networks or ARCHITECTURES:
        wanted = HEADLINE if options.full else ALL
        networks = [
            make(name, variant, formats, options.work) for variant, formats in wanted.items()
        ]
        if options.make:
            continue
        file = options.out / f"{name}.json"
        facts = read_json(file, "grid") if file.exists() else _facts(name)
        known = {row["variant"] for row in facts["made"]}
        facts["made"] += [one.facts() for one in networks if one.variant.name not in known]
        for runtime in RUNTIMES:
            for threads in (1,) if options.full else THREADS:
                group = f"{runtime} x{threads}"
                if group in facts[protocol]:
                    continue
                chosen = HEADLINE if options.full else ALL if threads == 1 else GRID
                found = _group(networks, chosen, runtime, threads, plan)
                where = {"machine": this_computer(), "versions": versions()}
                facts[protocol][group] = {"plan": asdict(plan), **where, **found}
                write_json(file, facts)
                print(f"{name}, {group}: {len(found['cells'])} cells", flush=True)


def _facts(name: str) -> dict[str, Any]:
    architecture = ARCHITECTURES[name]
    weights = "trained" if architecture.trained else "random"
    return {
        "schema": 1,
        "network": architecture.title,
        "size": architecture.size,
        "weights": weights,
        "steps": architecture.steps,
        "made": [],
        "grid": {},
        "full": {},
    }


def _group(
    networks: Sequence[Made], chosen: Choice, runtime: str, threads: int, plan: CellLength
) -> dict[str, Any]:
    """Measure the chosen variants alternately: one row a cell, and a reason for each that failed."""
    made = {one.variant: one for one in networks}
    subjects: dict[Subject, Variant] = {}
    for variant, precisions in chosen.items():
        bundle = made[variant].bundle
        needs = memory_needed(bundle.manifest.cost, runtime)
        for precision in precisions:
            form = FORMATS[runtime][precision]
            if form in bundle.manifest.models:
                model = bundle.model(form).resolve()
                subjects[Subject("pruned", precision, model, needs)] = variant
    shape = (1, 3, *[networks[0].bundle.preprocess.size] * 2)
    cells, failed = measure(list(subjects), shape, runtime, threads, plan, _no_progress)
    timed = [subject for subject in subjects if subject not in failed]
    pairs = list(zip(timed, cells, strict=True))
    found = {
        "cells": [{"variant": subjects[subject].name, **_row(cell)} for subject, cell in pairs],
        "failures": [
            {"variant": subjects[subject].name, "precision": subject.precision, "why": why}
            for subject, why in failed.items()
        ],
    }
    if threads == 1 and plan.processes == 1:
        widths = [
            (made[subjects[subject]], subject.model, cell)
            for subject, cell in pairs
            if subject.precision == "fp32" and subjects[subject].round_to == 8
        ]
        found |= _against_roofline(widths, shape)
    return found


def _against_roofline(
    networks: Sequence[tuple[Made, Path, Cell]], shape: Sequence[int]
) -> dict[str, Any]:
    """For each network the least time that its layers need on this machine, and why they take longer."""
    roofline = measure_roofline(this_machine(), 1)
    rows = []
    unpruned: LayerProfile | None = None
    for one, model, cell in networks:
        profile = layer_profile(model, shape, cell, one.bundle.manifest.cost.flops, roofline)
        rows.append(
            {
                "variant": one.variant.name,
                "whole_ms": profile.whole_ms,
                "layers_ms": profile.layers_ms,
                "rest_ms": profile.rest_ms,
                "roofline_ms": profile.roofline_ms,
                "macs": profile.macs,
                "network_macs": profile.network_macs,
                "disturbed": profile.disturbed,
                "why": list(explain(profile, unpruned, roofline)),
            }
        )
        unpruned = unpruned or profile
    return {"roofline": roofline.model_dump(mode="json"), "layers": rows}


def _row(cell: Cell) -> dict[str, Any]:
    latency, processes = cell.latency, cell.processes
    return {
        "precision": cell.precision,
        "arithmetic": cell.arithmetic,
        "p50": latency.p50,
        "p50_interval": latency.p50_interval,
        "p90": latency.p90,
        "p99": latency.p99,
        "n": latency.n,
        "status": cell.status,
        "load_ms": min(process.load_ms for process in processes),
        "first_ms": min(process.first_ms for process in processes),
        "rss_import": max(process.memory.after_import for process in processes),
        "rss_peak": max(process.memory.peak for process in processes),
        "other_load": max(process.other_load for process in processes),
        "attempts": max(process.attempts for process in processes),
        "settled": all(process.warm_settled for process in processes),
    }


def _no_progress(what: str, share: float) -> None:
    """Print nothing: each group is printed when it is done."""


if __name__ == "__main__":
    main()
