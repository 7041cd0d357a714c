"""How well is latency predicted? A linear law and gradient-boosted trees, on pruned networks outside the fit.

    python -m benchmarks.device.predictor collect --threads 1 --until 400    on an idle machine; resumable
    python -m benchmarks.device.predictor compare                            needs scikit-learn

``collect`` gives networks of five architectures widths as pruning does (uniform or not, rounded to 8 or not, 5 % to
all of the units; random weights, on which time does not depend) and times each for 0.6 s, one after the other in a
process for each runtime and number of threads. Measurements that another load disturbed are left out.

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
FAMILIES = {
    "ResNet-18, 32 px": (Architecture("resnet18", CIFAR_STEM, {}, 32), 110),
    "DeiT-Tiny, 224 px": (Architecture("deit_tiny_patch16_224", {}, {}, 224), 70),
    "DeiT-Tiny, 64 px": (Architecture("deit_tiny_patch16_224", {}, {}, 64), 50),
    "ResNet-18, 224 px": (Architecture("resnet18", {}, {}, 224), 40),
    "ResNet-50, 224 px": (Architecture("resnet50", {}, {}, 224), 40),
}
"""Architecture, and the number of networks of it."""
RUNTIMES = ("onnxruntime", "openvino")
CLASSES, SECONDS, TOGETHER = 10, 0.6, 10
HELD_OUT = 3
"""Every third network of a family is predicted and not used in the fit."""
LANES = 16
"""Vector length of this machine in float32 values, for the features of the trees."""


def collect(threads: int, until: float) -> None:
    """Time networks for ``until`` seconds; rows that exist are not measured again."""
    end = time.monotonic() + until
    facts: dict[str, Any] = (
        read_json(TIMES, "times") if TIMES.exists() else {"schema": 1, "networks": {}, "rows": []}
    )
    done = {(r["network"], r["runtime"], r["threads"]) for r in facts["rows"]}
    names = [(f, i) for f, (_, count) in FAMILIES.items() for i in range(count)]
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    templates: dict[str, Template] = {}
    for start in range(0, len(order), TOGETHER):
        with TemporaryDirectory() as folder:
            jobs = []
            for family, index in order[start : start + TOGETHER]:
                name = f"{family}, {index}"
                left = [r for r in RUNTIMES if (name, r, threads) not in done]
                if left and family not in templates:
                    architecture = FAMILIES[family][0]
                    size = architecture.input_size
                    templates[family] = Template(
                        architecture.outline(CLASSES), None, (3, size, size)
                    )
                for runtime in left:
                    template = templates[family]
                    if name not in facts["networks"]:
                        drawn = sample_widths(template.groups, np.random.default_rng([1, index]))
                        facts["networks"][name] = list(drawn.values())
                    own = zip(template.groups, facts["networks"][name], strict=True)
                    widths = {group.name: width for group, width in own}
                    model = Path(folder) / f"{name}.onnx"
                    template.write(widths, model)
                    if runtime == "openvino":
                        save_openvino(model, model.with_suffix(".xml"))
                        model = model.with_suffix(".xml")
                    shape = (1, *template.shape)
                    jobs.append(
                        Job(name=name, model=model, shape=shape, runtime=runtime, threads=threads)
                    )
            for timing in time_models(jobs, seconds=SECONDS) if jobs else ():
                row = timing.model_dump(mode="json")
                facts["rows"].append({"network": row.pop("name"), **row})
        facts["machine"] = this_machine().model_dump(mode="json", exclude={"mhz"})
        write_json(TIMES, facts)
        if time.monotonic() > end:
            return


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
