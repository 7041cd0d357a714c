"""The demo, small: killed and gone on with, and every command on what it leaves."""

import json
import signal
from pathlib import Path
from typing import Any

from tests.support.tiny import At, command

SMALL: dict[str, dict[str, Any]] = {
    "mvp_edge.demo.digits": {"STEPS": 20, "CHANNELS": [16, 16, 32, 32]},
    "mvp_edge.demo.job": {"ZOO_TASKS": 3, "ZOO_STEPS": 5, "BENCH_SECONDS": 0.1},
}


QUICK = {"mvp_edge_export.measuring.bench": {"MAX_ATTEMPTS": 1}}
"""Other work on this machine is not waited for."""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def demo(place: Path, at: At | None = None) -> Any:
    return command("demo", cwd=place, at=at, patch={**SMALL, **QUICK})


def test_the_demo_from_nothing_to_the_report_and_what_follows(tmp_path: Path) -> None:
    nothing = command("prune", "--device", "rpi4.yaml", cwd=tmp_path)
    assert nothing.code == 2
    assert "--task" in nothing.error
    assert "--zoo" in nothing.error
    assert "make demo" in nothing.error
    assert list(tmp_path.iterdir()) == []

    place = tmp_path / "place"
    place.mkdir()
    for at in (
        At("backbone", 10, signal=signal.SIGINT),
        At("digits-3c-s0-001: tuning", 3),
        At(file="manifest.json", signal=signal.SIGINT),
    ):
        assert demo(place, at).code == (130 if at.signal == signal.SIGINT else -9), at
    run = place / "demo/run"
    assert not [path for path in run.iterdir() if "bundle" in path.name]
    done = demo(place)
    assert done.code == 0, done.err
    assert "tuning" not in done.err
    assert done.out == "the report: demo/run/report.html\n"
    assert (run / "report.html").stat().st_size > 10_000
    assert read(run / "run.json")["command"][:4] == ["mvp-edge", "prune", "--device", "rpi4.yaml"]
    assert {cell["network"] for cell in read(run / "bench.json")["cells"]} == {"pruned", "baseline"}
    before = (run / "bench.json").read_bytes()
    again = demo(place)
    assert again.code == 0
    assert (run / "bench.json").read_bytes() == before

    # Literally this and nothing else goes on from the demo.
    alone = command("prune", "--device", "rpi4.yaml", cwd=place)
    assert alone.code == 0, alone.err
    first = alone.err.splitlines()[0]
    assert "demo/seven-eight-nine" in first
    assert "demo/zoo" in first
    facts = read(place / "runs/001/run.json")
    assert facts["arguments"]["augment"] == ["shift"]
    own = command("prune", "--device", "rpi4", "--augment", "none", "--steps", "1", cwd=place)
    assert own.code == 0, own.err
    assert read(place / "runs/002/run.json")["arguments"]["augment"] == []

    # A network that a runtime computes otherwise leaves no bundle.
    gate = {"mvp_edge_export.server.parity": {"TOLERANCE": 1e-12}}
    failed = command("export", "runs/001", "--format", "onnx", cwd=place, patch=gate)
    assert failed.code == 4, failed.err
    assert "onnxruntime" in failed.error
    assert not [path for path in (place / "runs/001").iterdir() if "bundle" in path.name]

    # Then the commands that the README names, on that run.
    exported = command("export", "runs/001", "--format", "onnx", "--json", cwd=place)
    assert exported.code == 0, exported.err
    manifest = json.loads(exported.out)
    # int8 beside it where the digits' accuracy allows: of ONNX Runtime alone.
    assert list(manifest["models"])[:1] == ["onnx"]
    assert set(manifest["models"]) <= {"onnx", "onnx-int8"}
    assert manifest["profile"]["id"] == "rpi4"
    there = command("export", "runs/001", cwd=place)
    assert there.code == 2
    assert "runs/001/bundle exists" in there.error
    bundle = "runs/001/bundle"
    words = ("bench", bundle, "--runtime", "onnxruntime", "--threads", "1", "--seconds", "0.1")
    measured = command(*words, cwd=place, patch=QUICK)
    assert measured.code == 0, measured.err
    assert "latency.p90 INCONCLUSIVE" in measured.err
    assert "onnxruntime x1" in " ".join(measured.out.split())
    assert read(place / "runs/001/bench.json")["profile"] == "rpi4"
    elsewhere = command(*words, "--choose", cwd=place)
    assert elsewhere.code == 2
    assert "--choose must run on the device: this machine is not rpi4" in elsewhere.error
    (place / "tight.yaml").write_text(
        "schema: 1\nid: tight\nextends: rpi4\nbudgets: {memory: 1kB}\n"
    )
    other = ("--device", "tight.yaml", "--out", "tight.json", "--json")
    missed = command(*words, *other, cwd=place, patch=QUICK)
    assert missed.code == 3
    assert "memory FAIL" in missed.error
    assert json.loads(missed.out) == read(place / "tight.json")
    nowhere = command(*words, "--out", "no/where.json", cwd=place)
    assert nowhere.code == 2
    assert "no/where.json" in nowhere.error

    image = next((place / "demo/seven-eight-nine/seven").iterdir())
    (place / "text.png").write_text("I am text")
    told = command("predict", bundle, image, "text.png", "--top", "2", cwd=place)
    assert told.code == 0, told.err
    assert told.out.startswith(f"{image}: ")
    assert told.out.count("%") == 2
    assert told.err.splitlines()[-1].startswith("text.png: skipped: ")
    listed = json.loads(command("predict", bundle, image.parent, "--json", cwd=place).out)
    labels = [one["label"] for one in listed["predictions"]]
    assert len(labels) > 100
    assert set(labels) <= {"seven", "eight", "nine"}

    both = command("report", "runs/001", "demo/run", "--out", "both.html", "--json", cwd=place)
    assert json.loads(both.out) == {"report": "both.html"}
    assert (place / "both.html").stat().st_size > 10_000
