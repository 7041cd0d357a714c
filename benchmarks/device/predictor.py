"""How well is latency predicted? A linear law and gradient-boosted trees, on pruned networks outside the fit.

    python -m benchmarks.device.predictor collect --threads 1 --until 1800   on an idle machine; resumable
    python -m benchmarks.device.predictor compare                            needs scikit-learn

``collect`` gives networks of every family (EfficientNet-Lite0 at three sizes of image) widths as pruning does
(uniform or not, rounded to 8 or not, 5 % to all of the units; random weights, on which time does not depend) and
times each for 0.6 s, one after the other in a process for each runtime and number of threads. Measurements that
another load disturbed are left out, and made again by the next call. All rows are of one type of machine.

``compare`` fits the models twice and predicts the networks outside the fit: every third network of each family
("split": third), and a whole family at a time ("split": family). Rows contain every prediction.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.device_tables import predictor_table
from mvp_edge.devices.calibrate import CIFAR_STEM, sample_widths
from mvp_edge.devices.fitting import feature_table, fit_law
from mvp_edge.devices.template import Template
from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.devices.law import FEATURES
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.timing import Job, time_models
from mvp_edge_export.server.convert import save_openvino
from mvp_edge_export.storage import read_json, write_json

HERE = Path(__file__).parent
TIMES, RESULT = HERE / "predictor_times.json", HERE / "predictor.json"


def _plain(name: str, size: int) -> Architecture:
    return Architecture(name, {}, {}, size)


FAMILIES = {
    "ResNet-18, 32 px": (Architecture("resnet18", CIFAR_STEM, {}, 32), 60),
    "DeiT-Tiny, 224 px": (_plain("deit_tiny_patch16_224", 224), 40),
    "DeiT-Tiny, 64 px": (_plain("deit_tiny_patch16_224", 64), 36),
    "ResNet-18, 224 px": (_plain("resnet18", 224), 36),
    "ResNet-50, 224 px": (_plain("resnet50", 224), 36),
    "EfficientNet-Lite0, 128 px": (_plain("efficientnet_lite0", 128), 40),
    "EfficientNet-Lite0, 64 px": (_plain("efficientnet_lite0", 64), 40),
    "EfficientNet-Lite0, 32 px": (_plain("efficientnet_lite0", 32), 40),
    "EfficientNet-B0, 128 px": (_plain("efficientnet_b0", 128), 36),
    "MobileNetV2, 128 px": (_plain("mobilenetv2_100", 128), 36),
    "MobileNetV3-small, 128 px": (_plain("mobilenetv3_small_100", 128), 36),
    "MobileNetV4-conv-small, 224 px": (_plain("mobilenetv4_conv_small", 224), 36),
    "RegNetY-002, 128 px": (_plain("regnety_002", 128), 36),
    "SE-ResNeXt-26, 128 px": (_plain("seresnext26t_32x4d", 128), 36),
    "ConvNeXt-atto, 128 px": (_plain("convnext_atto", 128), 36),
    "ConvNeXt-V2-atto, 64 px": (_plain("convnextv2_atto", 64), 36),
}
"""Architecture, and the number of networks of it."""
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}
RUNTIMES = tuple(SUFFIXES)
CLASSES, SECONDS, TOGETHER = 10, 0.6, 10
HELD_OUT = 3
"""Every third network of a family is predicted and not used in the fit."""
LANES = 16
"""Vector length of this machine in float32 values, for the features of the trees."""


SAME_MACHINE = ("arch", "cpu", "flags", "physical_cores")
"""Properties in which two machines agree whose measurements may stand side by side."""


def collect(threads: int, until: float) -> None:
    """Time networks for ``until`` seconds; undisturbed rows that exist are not measured again.

    Rows of another type of machine are dropped.
    """
    end = time.monotonic() + until
    facts = _collected()
    done = {(r["network"], r["runtime"], r["threads"]) for r in facts["rows"]}
    names = [(f, i) for f, (_, count) in FAMILIES.items() for i in range(count)]
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    wanted = [
        (family, index, left)
        for family, index in order
        if (left := [r for r in RUNTIMES if (f"{family}, {index}", r, threads) not in done])
    ]
    templates: dict[str, Template] = {}
    for start in range(0, len(wanted), TOGETHER):
        with TemporaryDirectory() as folder:
            jobs = []
            for family, index, runtimes in wanted[start : start + TOGETHER]:
                if family not in templates:
                    architecture = FAMILIES[family][0]
                    shape = (3, architecture.input_size, architecture.input_size)
                    templates[family] = Template(architecture.outline(CLASSES), None, shape)
                template, name = templates[family], f"{family}, {index}"
                if name not in facts["networks"]:
                    drawn = sample_widths(template.groups, np.random.default_rng([1, index]))
                    facts["networks"][name] = list(drawn.values())
                own = zip(template.groups, facts["networks"][name], strict=True)
                files = {r: Path(folder) / f"{name}{SUFFIXES[r]}" for r in RUNTIMES}
                template.write({group.name: width for group, width in own}, files["onnxruntime"])
                if "openvino" in runtimes:
                    save_openvino(files["onnxruntime"], files["openvino"])
                jobs += [
                    Job(
                        name=name,
                        model=files[runtime],
                        shape=(1, *template.shape),
                        runtime=runtime,
                        threads=threads,
                    )
                    for runtime in runtimes
                ]
            for timing in time_models(jobs, seconds=SECONDS):
                row = timing.model_dump(mode="json")
                facts["rows"].append({"network": row.pop("name"), **row})
        write_json(TIMES, facts)
        print(f"{min(start + TOGETHER, len(wanted))} of {len(wanted)} networks timed", flush=True)
        if time.monotonic() > end:
            return


def _collected() -> dict[str, Any]:
    """What was timed undisturbed on this type of machine."""
    machine = this_machine().model_dump(mode="json", exclude={"mhz"})
    facts: dict[str, Any] = {"schema": 1, "networks": {}, "rows": []}
    if TIMES.exists():
        found = read_json(TIMES, "times")
        if all(found["machine"][key] == machine[key] for key in SAME_MACHINE):
            facts |= found
            facts["rows"] = [row for row in found["rows"] if row["status"] == "OK"]
        else:
            print("the rows are of another machine and are dropped: all networks are timed again")
    return {**facts, "machine": machine}


def compare() -> dict[str, Any]:
    """Fit the models, and predict the networks that were held out."""
    facts = read_json(TIMES, "times")
    networks = dict(_networks(facts["networks"]))
    quiet = [row for row in facts["rows"] if row["status"] == "OK"]
    rows = []
    for runtime, threads in sorted({(r["runtime"], r["threads"]) for r in quiet}):
        own = [r for r in quiet if (r["runtime"], r["threads"]) == (runtime, threads)]
        family = np.array([r["network"].rpartition(", ")[0] for r in own])
        index = np.array([int(r["network"].rpartition(", ")[2]) for r in own])
        splits = {"third": [index % HELD_OUT == 0], "family": [family == f for f in FAMILIES]}
        times = np.array([r["p50"] for r in own])
        shapes = [networks[r["network"]] for r in own]
        for split, parts in splits.items():
            for held in parts:
                predicted = {
                    name: predict(
                        [s for s, out in zip(shapes, held, strict=True) if not out],
                        times[~held],
                        [s for s, out in zip(shapes, held, strict=True) if out],
                    )
                    for name, predict in MODELS.items()
                }
                for position, at in enumerate(np.flatnonzero(held)):
                    row = {
                        k: own[at][k]
                        for k in ("network", "runtime", "threads", "p50", "p50_interval")
                    }
                    guesses = {k: float(f"{v[position]:.4g}") for k, v in predicted.items()}
                    rows.append({"split": split, **row, "predicted": guesses})
    versions = {r["runtime"]: r["version"] for r in facts["rows"]}
    return {
        "schema": 1,
        "machine": facts["machine"],
        "versions": versions,
        "arithmetic": {r["runtime"]: r["arithmetic"] for r in facts["rows"]},
        "seconds": SECONDS,
        "left_out": {"NOISY": len(facts["rows"]) - len(quiet)},
        "rows": rows,
    }


def _networks(widths: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Operators]]:
    outlines = {name: one.outline(CLASSES) for name, (one, _) in FAMILIES.items()}
    groups = {name: unit_groups(outline) for name, outline in outlines.items()}
    for name, own in widths.items():
        family = name.rpartition(", ")[0]
        size = FAMILIES[family][0].input_size
        kept = {group.name: width for group, width in zip(groups[family], own, strict=True)}
        yield name, operators(resize(outlines[family], kept), (3, size, size))


Floats = NDArray[np.float64]
Predict = Callable[[Sequence[Operators], Floats, Sequence[Operators]], Floats]


def _linear(known: Sequence[Operators], times: Floats, asked: Sequence[Operators]) -> Floats:
    law = fit_law(known, times)
    return np.array([law.milliseconds(one) for one in asked])


def _trees(known: Sequence[Operators], times: Floats, asked: Sequence[Operators]) -> Floats:
    """Gradient-boosted trees on the same features, and the logarithm of the time."""
    from sklearn.ensemble import GradientBoostingRegressor

    trees = GradientBoostingRegressor(
        n_estimators=600, learning_rate=0.03, max_depth=4, subsample=0.7, random_state=0
    )
    table = _totals(known)
    trees.fit(table, np.log(times))
    return np.asarray(np.exp(trees.predict(_totals(asked))))


def _trees_on_law(known: Sequence[Operators], times: Floats, asked: Sequence[Operators]) -> Floats:
    """The law, and trees for its residual: the logarithm of measured over predicted."""
    from sklearn.ensemble import GradientBoostingRegressor

    law = fit_law(known, times)
    left = np.log(times / np.array([law.milliseconds(one) for one in known]))
    trees = GradientBoostingRegressor(
        n_estimators=200, learning_rate=0.03, max_depth=3, subsample=0.7, random_state=0
    )
    trees.fit(_totals(known), left)
    own = np.array([law.milliseconds(one) for one in asked])
    return np.asarray(own * np.exp(trees.predict(_totals(asked))))


def _totals(networks: Sequence[Operators]) -> Floats:
    """The features by kind of operator, and summed over all kinds, since trees cannot add; as logarithms."""
    table = feature_table(networks, LANES)
    sums = table[:, 1:].reshape(len(table), -1, len(FEATURES)).sum(axis=1)
    return np.log1p(1e6 * np.concatenate([table, sums], axis=1))


MODELS: Mapping[str, Predict] = {"law": _linear, "trees": _trees, "law and trees": _trees_on_law}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["collect", "compare"], help="see above")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of the runtimes (default: 1)"
    )
    parser.add_argument(
        "--until", type=float, default=400.0, help="seconds until it stops (default: 400)"
    )
    given = parser.parse_args()
    if given.what == "collect":
        collect(given.threads, given.until)
        return
    result = compare()
    write_json(RESULT, result)
    print(predictor_table(result))


if __name__ == "__main__":
    main()
