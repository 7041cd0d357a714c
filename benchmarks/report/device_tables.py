"""Markdown tables of fronts, widths, predicted latency, arm64 boards, installed size and a run on photographs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.report.grid_tables import RUNTIMES
from benchmarks.study.rows import interval, mean

TRIED_ON = 8
"""Targets on which every way of choosing widths was tried."""


def front_table(facts: Mapping[str, Any], family: str) -> str:
    """Markdown: each size's mean over the tasks, which was picked, and what the front cost."""
    fronts = [row for row in facts["fronts"] if row["family"] == family]
    rungs = list(zip(*(row["members"] for row in fronts), strict=True))
    reference = np.array([row["reference_test"] for row in fronts])
    lines = [
        "| keep | multiply-adds, 10⁶ | top-1 % (95 %) | minus unpruned | ONNX Runtime, ms | OpenVINO, ms "
        "| training, 10¹² | picked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, members in enumerate(rungs, 1):
        test = np.array([member["test"] for member in members])
        cost = np.mean([member["training"]["training_flops"] for member in members])
        picked = sum(row["picked"] == number for row in fronts)
        lines.append(
            f"| {members[0]['keep']:.3g} | {members[0]['flops'] / 1e6:.1f} | {_mean(test)} | "
            f"{_mean(test - reference, '+')} | {_ms(members, 'onnxruntime')} | "
            f"{_ms(members, 'openvino')} | {cost / 1e12:.2f} | {picked or ''} |"
        )
    lines += ["", _picks(fronts, reference, facts["max_drop"])]
    costs = [cost for cost in facts["costs"] if cost["family"] == family]
    lines += [_seconds(cost) for cost in costs]
    return "\n".join(lines)


def _picks(fronts: Sequence[Mapping[str, Any]], reference: Any, drop: float) -> str:
    picked = np.array([row["members"][row["picked"] - 1]["test"] for row in fronts])
    first = np.array([row["members"][0]["test"] for row in fronts])
    lost, at_first = reference - picked, reference - first
    return (
        f"{len(fronts)} targets; *picked*: the smallest within {drop:g} points of the fine-tuned unpruned "
        f"network on validation images. On test images those picked lose {_mean(lost)} points, "
        f"{int((lost <= drop / 100 + 1e-9).sum())} of {len(fronts)} within {drop:g}; the smallest member always "
        f"would lose {_mean(at_first)}, {int((at_first <= drop / 100 + 1e-9).sum())} within {drop:g}. "
        f"{fronts[0]['timed']}"
    )


def _seconds(cost: Mapping[str, Any]) -> str:
    singles = cost["single_seconds"]
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["phases"].items())
    return (
        f"Seconds of the commands on `{cost['target']}`: a front of {len(singles)} {cost['front_seconds']:.0f} "
        f"({phases}); the same {len(singles)} as single runs {sum(singles):.0f}. Their weights are "
        f"{'bit-equal' if cost['equal'] else 'NOT equal'}."
    )


def widths_table(facts: Mapping[str, Any], family: str) -> str:
    """Markdown: each way of choosing widths against uniform ones, paired by target and seed."""
    rows = [row for row in facts["rows"] if row["family"] == family]
    again: list[str] = []
    found = {(r["keep"], r["variant"], r["task"], r["seed"]): r for r in rows}
    lines = [
        "| keep | widths | β | γ | pairs | top-1 % | minus uniform (95 %) | on validation | multiply-adds, 10⁶ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for keep in sorted({row["keep"] for row in rows}):
        for variant, (beta, gamma) in facts["tried"].items():
            own = [row for row in rows if (row["keep"], row["variant"]) == (keep, variant)]
            if not own:
                continue
            pairs = [(row, found[keep, "uniform", row["task"], row["seed"]]) for row in own]
            test, val = (np.array([a[key] - b[key] for a, b in pairs]) for key in ("test", "val"))
            uniform = variant == "uniform"
            if not uniform and len(own) > TRIED_ON:
                seen = np.array([row["task"] < f"{row['task'][:-3]}{TRIED_ON:03d}" for row in own])
                again.append(
                    f"`{variant}` on the {seen.sum()} targets that every way was tried on: "
                    f"{_mean(test[seen], '+')}; tried again on {(~seen).sum()} others: {_mean(test[~seen], '+')}."
                )
            lines.append(
                f"| {keep:g} | {variant} | {beta:g} | {gamma:g} | {len(own)} | "
                f"{100 * np.mean([row['test'] for row in own]):.1f} | "
                f"{'' if uniform else _mean(test, '+')} | {'' if uniform else _mean(val, '+')} | "
                f"{np.mean([row['flops'] for row in own]) / 1e6:.2f} |"
            )
    return "\n".join([*lines, *(["", *again] if again else [])])


def _mean(values: Any, sign: str = "") -> str:
    """In per cent or points, with its 95 % interval."""
    text = f"{100 * values.mean():{sign}.1f}"
    if len(values) < 2:
        return text
    low, high = interval(values, mean)
    return f"{text} ({100 * low:{sign}.1f} … {100 * high:{sign}.1f})"


def _ms(members: Sequence[Mapping[str, Any]], runtime: str) -> str:
    found = [t["p50"] for m in members for t in m["timings"] if t["runtime"] == runtime]
    return f"{np.median(found):.3g}" if found else "–"


def predictor_table(facts: Mapping[str, Any]) -> str:
    """Markdown: how many per cent each model was off, on a third of all and on families not fitted to."""
    models = list(facts["rows"][0]["predicted"])
    off = {model: prediction_errors(facts, model) for model in models}
    lines = [
        f"| held out | runtime | networks | {' | '.join(models)} |",
        "|---|---|---|" + "---|" * len(models),
    ]
    for held_out, runtime in off[models[0]]:
        own = [off[model][held_out, runtime] for model in models]
        cells = (f"{np.median(one):.1f} ({np.quantile(one, 0.9):.1f})" for one in own)
        lines.append(f"| {held_out} | {runtime} | {len(own[0])} | {' | '.join(cells)} |")
    noisy = facts["left_out"]["NOISY"]
    note = f"{noisy} of the measurements were disturbed by another load and are left out."
    return "\n".join([*lines, "", f"One thread. {note}"])


def family_errors(
    facts: Mapping[str, Any], model: str = "law"
) -> dict[tuple[str, str], list[float]]:
    """(architecture and size, runtime) → errors in per cent of its networks that were held out, every third one."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in facts["rows"]:
        if row["split"] == "third":
            place = row["network"].rpartition(", ")[0], row["runtime"]
            error = 100 * abs(row["predicted"][model] / row["p50"] - 1)
            found.setdefault(place, []).append(error)
    return found


def family_table(facts: Mapping[str, Any]) -> str:
    """Markdown: for each architecture and size the median error (90th percentile) of the law, in each runtime."""
    errors = family_errors(facts)
    runtimes = sorted({runtime for _, runtime in errors})
    lines = [f"| architecture, image | {' | '.join(runtimes)} |", "|---|" + "---|" * len(runtimes)]
    for family in dict.fromkeys(family for family, _ in errors):
        cells = (errors[family, runtime] for runtime in runtimes)
        told = (f"{np.median(one):.1f} ({np.quantile(one, 0.9):.1f})" for one in cells)
        lines.append(f"| {family} | {' | '.join(told)} |")
    return "\n".join(lines)


def prediction_errors(facts: Mapping[str, Any], model: str) -> dict[tuple[str, str], list[float]]:
    """What was held out of the fit, and the runtime → the error of each prediction in per cent.

    A third of all networks comes first, then each architecture that was held out as a whole.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for split in ("third", "family"):
        for row in facts["rows"]:
            if row["split"] == split:
                family = row["network"].rpartition(", ")[0]
                held_out = "every third network" if split == "third" else f"all of {family}"
                error = 100 * abs(row["predicted"][model] / row["p50"] - 1)
                found.setdefault((held_out, row["runtime"]), []).append(error)
    return dict(sorted(found.items(), key=lambda one: one[0][1]))  # runtime by runtime


def arm64_table(facts: Mapping[str, Any]) -> str:
    """Markdown: each network of the bundle on each emulated board against the same file here."""
    lines = [
        "| emulated board | network | runtime | arithmetic there, here | same label | largest Δ of a logit "
        "| largest Δ of a probability |",
        "|---|---|---|---|---|---|---|",
    ]
    for board in facts["boards"]:
        python = board["versions"]["python"]
        for one in board["networks"]:
            runtime = one["format"].removesuffix("-int8").replace("onnx", "onnxruntime")
            precision = "int8" if one["format"].endswith("int8") else "fp32"
            told = "" if one["how"] == "deployed" else f", forced to {one['how']}"
            there, here = one["arithmetic"]["arm64"], one["arithmetic"]["here"]
            lines.append(
                f"| {board['board']}, Python {python} | {precision}{told} | "
                f"{runtime} {board['versions'][runtime]} | {there}, {here} | "
                f"{one['same_top1']} of {facts['images']} | {one['max_difference']:.2g} | "
                f"{one['max_probability_difference']:.2g} |"
            )
    return "\n".join([*lines, "", f"Claim: {facts['claim']}."])


def light_table(facts: Mapping[str, Any]) -> str:
    """Markdown: what the light half takes on disk beside the runtime, NumPy and Pillow."""
    lines = ["| Python | runtime | beside it, MB | in all, MB |", "|---|---|---|---|"]
    lines += [
        f"| {row['python']} | {row['runtime']} | {row['beside_bytes'] / 1e6:.1f} | "
        f"{row['all_bytes'] / 1e6:.0f} |"
        for row in facts["rows"]
    ]
    limit = facts["limit_bytes"] / 1e6
    return "\n".join([*lines, "", f"On x86-64. Goal: at most {limit:.0f} MB beside."])


def photos_table(facts: Mapping[str, Any], whole: float) -> str:
    """Markdown: the run on a folder of photographs, beside the unpruned network's top-1 on the same images.

    Args:
        facts: ``results/photos.json``.
        whole: top-1 of the unpruned network, a share.
    """
    cost, images = facts["cost"], facts["images"]
    small, full = cost["pruned"], cost["unpruned"]
    lines = [
        f"`{facts['command']}`: {images['train']} photographs to train on, {images['test']} to test on.",
        "",
        "| | unpruned | pruned |",
        "|---|---|---|",
        f"| multiply-adds, 10⁶ | {full['flops'] / 1e6:.0f} | {small['flops'] / 1e6:.0f} |",
        f"| parameters, 10⁶ | {full['params'] / 1e6:.2f} | {small['params'] / 1e6:.2f} |",
    ]
    p50 = {(c["runtime"], c["threads"], c["network"]): c["latency"]["p50"] for c in facts["cells"]}
    for runtime, threads in sorted({key[:2] for key in p50}):
        full_ms, small_ms = (p50[runtime, threads, n] for n in ("baseline", "pruned"))
        where = f"{RUNTIMES[runtime]}, {threads} thread{'s' * (threads > 1)}"
        lines.append(f"| {where}, median | {full_ms:.1f} ms | {small_ms:.1f} ms |")
    for one in facts["accuracy"]:
        lines.append(
            f"| top-1 in {RUNTIMES[one['runtime']]} | {100 * whole:.1f} % | {100 * one['top1']:.1f} % |"
        )
    keep, steps = facts["keep"]["chosen"], facts["training"]["steps"]
    lines += [
        "",
        f"The budget of multiply-adds binds at keep {keep:.3f}; AHNP, {steps} steps (its default is 1,000).",
    ]
    spent = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in facts["seconds"].items())
    return "\n".join([*lines, "", f"From the raw folder to the report: {spent}."])
