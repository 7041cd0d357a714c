"""Two measurements held against each other: what may be compared, and what the figures then say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.compare import compare, ratio_interval
from mvp_edge_export.measuring.machine import Machine, this_machine
from mvp_edge_export.measuring.result import (
    BenchResult,
    Cell,
    Latency,
    Memory,
    Process,
    Protocol,
    summary,
)

MODELS = {"model.onnx": "aa", "baseline/model.onnx": "bb"}
VERSIONS = {"python": "3.13.0", "onnxruntime": "1.31.1"}


def _latency(p50: float, half: float = 0.01) -> Latency:
    values: dict[str, Any] = {"n": 900, "mean": p50, "p90": 1.2 * p50, "p99": None}
    interval = (p50 * (1 - half), p50 * (1 + half))
    return Latency(
        **values, p50=p50, min=0.9 * p50, max=3 * p50, p50_interval=interval, p90_interval=interval
    )


def _cell(network: Any, p50: float, **changes: Any) -> Cell:
    memory = Memory(after_import=30, after_load=60, after_first=65, steady=66, peak=90)
    values: dict[str, Any] = {"import_ms": 1, "load_ms": 1, "first_ms": 1, "warm_runs": 20}
    values |= {"warm_seconds": 2, "warm_settled": True, "latency": _latency(p50), "memory": memory}
    cell = {"runtime": "onnxruntime", "version": "1.31.1", "precision": "fp32", "threads": 1}
    cell |= {"arithmetic": "f32", "options": {}, "status": "OK"}
    process = Process(**values, other_load=0, attempts=1, throttled=False)
    return Cell(
        **(
            {"network": network, **cell, "latency": _latency(p50), "peak_over_import": 60} | changes
        ),
        processes=(process,),
    )


@pytest.fixture
def machine() -> Machine:
    facts = {"cpu": "Cortex-A72", "flags": ("asimd", "crc32"), "affinity": (0, 1, 2, 3)}
    return this_machine().model_copy(update=facts)


@pytest.fixture
def save(tmp_path: Path, machine: Machine) -> Any:
    """Write a bench.json; its fingerprint, machine and protocol can be changed."""

    def write(name: str, *cells: Cell, **changes: Any) -> Path:
        fingerprint = {"models": MODELS, "versions": VERSIONS, "os": "Debian 12, 6.12"}
        protocol = {"full": False, "seconds": 15.0, "processes": 1, "statement": "15 s"}
        path = tmp_path / f"{name}.json"
        BenchResult(
            protocol=Protocol(**(protocol | changes.get("protocol", {}))),
            machine=machine.model_copy(update=changes.get("machine", {})),
            profile="rpi4",
            profile_sha256=changes.get("profile", "00"),
            differences=(),
            cells=cells,
            failures=(),
            judged="",
            verdicts=(),
            warnings=(),
            fingerprint=fingerprint | changes.get("fingerprint", {}),
            fingerprint_sha256="",
        ).save(path)
        return path

    return write


def test_speed_ups_cell_by_cell(save: Any) -> None:
    before = save("a", _cell("pruned", 10), _cell("baseline", 80), _cell("pruned", 6, threads=4))
    files = {"models": MODELS | {"model.onnx": "cc"}, "versions": VERSIONS | {"python": "3.13.1"}}
    after = save(
        "b",
        _cell("pruned", 5, peak_over_import=40),
        _cell("baseline", 80.4),
        _cell("pruned", 9, runtime="openvino"),
        fingerprint=files,
    )
    found = compare(before, after)
    pruned, baseline = found.changes
    assert (pruned.speedup, pruned.word, pruned.peak_over_import) == (2, "faster", (60, 40))
    assert pruned.interval[0] < 2 < pruned.interval[1]
    assert baseline.word == "alike"
    assert found.treatment == ("the files of the pruned network", "python 3.13.0 → 3.13.1")
    assert found.only_before == ("pruned fp32 in onnxruntime, threads 4",)
    assert found.only_after == ("pruned fp32 in openvino, threads 1",)
    assert found.forced == ()
    assert found.table().row_count == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": {"cpu": "Cortex-A53"}}, "processor: Cortex-A72 and Cortex-A53"),
        ({"machine": {"flags": ("asimd",)}}, "processor flags: crc32 only in the first (1)"),
        ({"machine": {"governors": ("powersave",)}}, "governor: powersave only in the second (1)"),
        ({"protocol": {"seconds": 60.0}}, "timed seconds per process: 15.0 and 60.0"),
        ({"protocol": {"processes": 3}}, "processes per cell: 1 and 3"),
    ],
)
def test_what_was_not_measured_alike_is_refused_and_said(
    save: Any, changes: dict[str, Any], said: str
) -> None:
    before, after = save("a", _cell("pruned", 10)), save("b", _cell("pruned", 5), **changes)
    with pytest.raises(BadInput, match="--force-different") as refused:
        compare(before, after)
    assert said in str(refused.value)
    found = compare(before, after, force_different=True)
    assert any(said in difference for difference in found.forced)
    assert found.changes[0].speedup == 2


def test_memory_and_the_frequency_of_the_moment_are_no_identity(save: Any) -> None:
    other = {"ram": 1, "mhz": 600.0, "python": "3.11.2", "kernel": "5.15"}
    before, after = save("a", _cell("pruned", 9)), save("b", _cell("pruned", 9), machine=other)
    assert compare(before, after).forced == ()


def test_an_unpruned_network_that_differs_from_itself_is_a_drift(save: Any) -> None:
    before = save("a", _cell("pruned", 10), _cell("baseline", 80))
    drifted = save("b", _cell("pruned", 9), _cell("baseline", 72))
    assert any("drift" in note for note in compare(before, drifted).notes)
    newer = VERSIONS | {"onnxruntime": "1.32.0"}  # then it is no drift but the release
    other = save("c", _cell("pruned", 9), _cell("baseline", 72), fingerprint={"versions": newer})
    found = compare(before, other)
    assert not any("drift" in note for note in found.notes)
    assert found.treatment == ("onnxruntime 1.31.1 → 1.32.0",)


@pytest.mark.parametrize("status", ["NOISY", "INVALID"])
def test_a_disturbed_cell_decides_nothing(save: Any, status: str) -> None:
    before, after = save("a", _cell("pruned", 10)), save("b", _cell("pruned", 5, status=status))
    found = compare(before, after)
    assert found.changes[0].word == "unsure"
    assert any(f"{status} after" in note for note in found.notes)


def test_files_that_cannot_be_compared(save: Any, tmp_path: Path) -> None:
    good = save("a", _cell("pruned", 10))
    with pytest.raises(BadInput, match="no cell in common"):
        compare(good, save("b", _cell("pruned", 10, threads=4)))
    with pytest.raises(BadInput, match=r"none\.json does not exist"):
        compare(good, tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"schema": 2}')
    with pytest.raises(BadInput, match=r"bench: .*other\.json: protocol: Field required"):
        compare(good, tmp_path / "other.json")


def test_the_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(80):
        before, after = (summary(random.lognormal(mu, 0.4, 300)) for mu in (1.0, 0.2))
        low, high = ratio_interval(before, after)
        hits += low <= math.exp(0.8) <= high
    assert 70 <= hits <= 80  # 95 % of 80 is 76


@given(
    p50=st.tuples(st.floats(0.01, 1e3), st.floats(0.01, 1e3)),
    half=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
)
@settings(max_examples=30, deadline=None)
def test_a_ratio_lies_in_its_interval_and_that_within_the_opposite_ends(
    p50: tuple[float, float], half: tuple[float, float]
) -> None:
    before, after = (_latency(p, h) for p, h in zip(p50, half, strict=True))
    low, high = ratio_interval(before, after)
    ends = [*before.p50_interval, *after.p50_interval]
    assert low <= before.p50 / after.p50 * (1 + 1e-9)
    assert before.p50 / after.p50 <= high * (1 + 1e-9)
    assert ends[0] / ends[3] <= low * (1 + 1e-9)
    assert high <= ends[1] / ends[2] * (1 + 1e-9)
