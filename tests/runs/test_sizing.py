"""A latency budget: solved for, measured and corrected where this machine is the device, open elsewhere."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from mvp_edge_export.measuring.machine import this_machine
from tests.support.tiny import At, command, tree

SLOW = {"lanes": 1, "run": 0.0, "terms": {"conv": {"gmacs": 4000.0}, "stem": {"gmacs": 4000.0}}}
"""Tens of times slower than any machine that runs tests: the first plan is far too small."""
FAST = {"lanes": 1, "run": 1e-6, "terms": {"conv": {"gmacs": 1e-3}}}
WORDS = ("prune", "--device", "here.yaml", "--task", "task", "--zoo", "zoo", "--augment", "shift",
         "--steps", "8", "--keep", "1")  # fmt: skip


def here(place: Path, p90: str, law: dict[str, Any] | None, **hardware: Any) -> None:
    """A profile of this very machine, with a made-up calibration."""
    machine = this_machine()
    facts: dict[str, Any] = {
        "schema": 1, "id": "here", "name": "here",
        "source": {"kind": "measured", "note": "this machine", "date": "2026-11-24"},
        "hardware": {"arch": machine.arch, "cpu": (machine.cores or (machine.cpu,))[-1],
                     "cores": machine.physical_cores, "ram": machine.ram, **hardware},
        "runtime": {"backends": ["onnxruntime"], "threads": 1},
        "budgets": {"latency": {"p90": p90}},
        "prune": {"round_to": 2, "min_channels": 2},
    }  # fmt: skip
    if law is not None:
        facts["calibration"] = {
            "date": "2026-11-24", "machine": "here", "fingerprint": "0" * 64, "networks": 12,
            "fits": [{"runtime": "onnxruntime", "version": "1", "precision": "fp32", "threads": 1, "law": law,
                      "p90_over_p50": 1.0, "error": {"networks": 4, "median": 0.1, "p90": 0.2}}],
        }  # fmt: skip
    (place / "here.yaml").write_text(yaml.safe_dump(facts))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def latency_verdict(run: Path) -> Any:
    (verdict,) = [
        v for v in read(run / "verified.json")["verdicts"] if v["budget"] == "latency.p90"
    ]
    return verdict


def test_a_plan_that_was_far_too_small_is_corrected_by_what_was_measured(place: Path) -> None:
    here(place, "0.6ms", SLOW)
    # Stopped right after the measuring, it goes on with the widths that were measured then.
    stopped = command(*WORDS, cwd=place, at=At("statistics", 1))
    assert stopped.code == -signal.SIGKILL
    run = place / "runs/001"
    sizing = read(run / "sizing.json")
    done = command(*WORDS, cwd=place)
    assert done.code == 0, done.err
    assert read(run / "sizing.json") == sizing

    rounds = sizing["rounds"]
    assert 2 <= len(rounds) <= 3
    sizes = [sum(one["widths"].values()) for one in rounds]
    assert sizes[1] > sizes[0]
    chosen = rounds[sizing["chosen"]]
    assert {n: w["kept"] for n, w in read(run / "run.json")["widths"].items()} == chosen["widths"]
    verdict = latency_verdict(run)
    best = chosen["measured"][chosen["best"]]
    word = (
        "PASS" if best["status"] == "OK" else "INCONCLUSIVE"
    )  # the suite may run on a busy machine
    assert (verdict["basis"], verdict["verdict"]) == ("measured", word)
    assert verdict["reached"] == best["latency"]["p90"] <= 0.6
    assert "sizing" in [phase["name"] for phase in read(run / "run.json")["phases"]]


@pytest.mark.parametrize("law", [SLOW, FAST], ids=["as predicted", "as measured"])
def test_a_budget_that_nothing_meets_ends_before_the_training(place: Path, law: Any) -> None:
    here(place, "0.3us", law)
    before = tree(place)
    ended = command(*WORDS, cwd=place)
    assert ended.code == 3, ended.err
    assert "latency" in ended.error
    assert "the smallest network needs" in ended.error
    assert tree(place) == before


def test_elsewhere_the_prediction_stands_and_the_verdict_stays_open(place: Path) -> None:
    here(place, "0.6ms", SLOW, arch="riscv64")
    done = command(*WORDS, cwd=place)
    assert done.code == 0, done.err
    run = place / "runs/001"
    assert not (run / "sizing.json").exists()
    verdict = latency_verdict(run)
    assert (verdict["basis"], verdict["verdict"]) == ("predicted", "INCONCLUSIVE")
    assert 0 < verdict["reached"] <= 0.6
    assert "within 20 %" in verdict["note"]
    assert read(run / "run.json")["keep"]["binding"] == "latency.p90"


def test_an_estimate_binds_and_never_passes(place: Path) -> None:
    peak = {"macs_per_second": 10**8, "bytes_per_second": 10**9}
    here(place, "2ms", None, arch="riscv64", peak=peak)
    done = command(*WORDS, cwd=place)
    assert done.code == 0, done.err
    verdict = latency_verdict(place / "runs/001")
    assert (verdict["basis"], verdict["verdict"]) == ("estimate", "INCONCLUSIVE")
    assert 0 < verdict["reached"] <= 2
    assert read(place / "runs/001/run.json")["keep"]["binding"] == "latency.p90"

    fitted = command("device", "fit", "runs/001", "--json", cwd=place)
    assert fitted.code == 0, fitted.err
    devices = json.loads(fitted.out)["devices"]
    assert len(devices) == 10
    assert not [
        d for d in devices if d["verdict"] == "PASS"
    ]  # no latency was measured on any of them
    flops = read(place / "runs/001/verified.json")["cost"]["flops"]
    for one in devices:
        budgets = {b["budget"]: b for b in one["budgets"]}
        assert budgets["flops"]["reached"] == flops
        assert budgets["latency.p90"]["basis"] == "estimate"
        assert budgets["latency.p90"]["verdict"] == "INCONCLUSIVE"


def test_a_bundle_and_its_onnx_file_are_held_against_devices_too(place: Path) -> None:
    for words in (
        ("prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo", "--steps", "4"),
        ("export", "runs/001", "--precision", "fp32"),
    ):
        assert command(*words, cwd=place).code == 0
    found = {}
    for name in ("runs/001", "runs/001/bundle", "runs/001/bundle/model.onnx"):
        ended = command("device", "fit", name, "--json", cwd=place)
        assert ended.code == 0, ended.err
        (pi,) = [d for d in json.loads(ended.out)["devices"] if d["profile"] == "rpi4"]
        found[name] = {b["budget"]: b["reached"] for b in pi["budgets"]}
    run, bundle, model = found.values()
    assert bundle["latency.p90"] == pytest.approx(run["latency.p90"])
    assert model["latency.p90"] == pytest.approx(run["latency.p90"], rel=0.01)
    assert model["file"] <= bundle["file"]  # of a bundle the largest form counts
    assert model["file"] < run["file"] < 1.2 * model["file"]  # predicted upwards

    table = command("device", "fit", "runs/001", cwd=place)
    assert "rpi4" in table.out
    nothing = command("device", "fit", "task", cwd=place)
    assert nothing.code == 2
    assert "neither a run directory nor a bundle nor an ONNX file" in nothing.error
    (place / "text.onnx").write_text("no model")
    assert (
        "text.onnx is not an ONNX model" in command("device", "fit", "text.onnx", cwd=place).error
    )
