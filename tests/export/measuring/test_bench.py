import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.manifest import Shipped
from mvp_edge_export.measuring import bench as bench_module
from mvp_edge_export.measuring import rounds
from mvp_edge_export.measuring.bench import bench, time_model
from mvp_edge_export.measuring.choice import judged_cell
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.measuring.result import (
    BenchResult,
    Cell,
    Latency,
    Memory,
    Process,
    Protocol,
    Status,
    combined,
    judge,
    quantile_interval,
    summary,
)
from mvp_edge_export.measuring.rounds import MAX_ATTEMPTS
from mvp_edge_export.profile import DeviceProfile


@pytest.fixture(scope="module")
def result(bundle_path: Path) -> BenchResult:
    return bench(load_bundle(bundle_path), threads=[1], seconds=0.3)


def test_every_cell_is_measured_in_its_own_process(result: BenchResult) -> None:
    assert [(cell.network, cell.runtime, cell.precision) for cell in result.cells] == [
        ("pruned", "onnxruntime", "fp32"),
        ("pruned", "onnxruntime", "int8"),
        ("baseline", "onnxruntime", "fp32"),
        ("pruned", "openvino", "fp32"),
        ("pruned", "openvino", "fp16"),
        ("pruned", "openvino", "int8"),
        ("baseline", "openvino", "fp32"),
    ]
    assert {cell.threads for cell in result.cells} == {1}
    assert result.failures == ()
    for cell in result.cells:
        (process,) = cell.processes
        memory = process.memory
        assert 10e6 < memory.after_import <= memory.after_load <= memory.peak
        assert memory.after_first <= memory.peak
        assert 0 < cell.peak_over_import < 500e6
        assert min(process.import_ms, process.load_ms, process.first_ms) > 0
        assert process.warm_runs >= 10
        assert cell.latency.n >= 10


def test_the_figures_are_in_order(result: BenchResult) -> None:
    for cell in result.cells:
        latency = cell.latency
        assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.max
        assert latency.min <= latency.mean <= latency.max
        low, high = latency.p50_interval
        assert latency.min <= low <= high <= latency.p90_interval[1] <= latency.max
        assert (latency.p99 is None) == (latency.n < 1000)


def test_the_wider_network_is_slower(result: BenchResult) -> None:
    cell = result.cell("pruned", "onnxruntime", 1)
    assert cell is not None
    speedup = result.speedup(cell)
    assert speedup is not None
    assert speedup > 1
    baseline = result.cell("baseline", "onnxruntime", 1)
    assert baseline is not None
    assert result.speedup(baseline) is None


def test_the_result_names_what_it_depends_on(result: BenchResult, tmp_path: Path) -> None:
    result.save(tmp_path / "bench.json")

    value = json.loads((tmp_path / "bench.json").read_text())

    assert value["schema"] == 2
    assert value["fingerprint"]["cpu"] == this_machine().cpu
    assert set(value["fingerprint"]["versions"]) == {
        "python", "mvp-edge", "onnxruntime", "openvino"
    }  # fmt: skip
    assert "model.onnx" in value["fingerprint"]["models"]
    statement = value["protocol"]["statement"]
    assert statement == "not --full: 0.3 s in one process a cell, warm-up from 0.04 s"
    assert BenchResult.model_validate(value) == result


def test_latency_is_judged_on_the_profile_s_device_only(result: BenchResult) -> None:
    verdicts = {verdict.budget: verdict for verdict in result.verdicts}

    assert verdicts["latency.p50"].verdict == "UNCHECKED"
    assert verdicts["latency.p90"].verdict == "INCONCLUSIVE"  # a board with 4 GiB, says the profile
    assert "measured on another machine: " in verdicts["latency.p90"].note
    assert verdicts["memory"].verdict in ("PASS", "FAIL")
    assert verdicts["memory"].basis == "measured"


def test_the_table_fits_a_terminal(result: BenchResult) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [
        line for line in lines if line.strip().startswith(("pruned", "baseline", "int8", "fp16"))
    ]
    assert len(rows) == len(result.cells)  # one line a cell
    assert not any("…" in line for line in lines)


def test_another_load_is_measured_again_and_marked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    # As if another program used half a core all the time.
    monkeypatch.setattr(rounds, "busy_seconds", lambda: 100 + 2.5 * (time.monotonic() - begin))
    steps: list[tuple[str, float]] = []

    result = bench(
        bundle,
        runtimes=["onnxruntime"],
        threads=[1],
        seconds=0.05,
        progress=lambda what, share: steps.append((what, share)),
    )

    assert {cell.status for cell in result.cells} == {"NOISY"}
    assert {cell.processes[0].attempts for cell in result.cells} == {MAX_ATTEMPTS}
    assert any("NOISY, other programs used" in warning for warning in result.warnings)
    assert any(f"attempt {MAX_ATTEMPTS} of {MAX_ATTEMPTS}" in what for what, _ in steps)
    assert steps[-1] == ("done", 1.0)


def test_without_another_load_one_attempt_is_enough(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "busy_seconds", lambda: 0.0)
    result = bench(bundle, runtimes=["openvino"], threads=[1], seconds=0.05)
    assert {cell.status for cell in result.cells} == {"OK"}
    assert {cell.processes[0].attempts for cell in result.cells} == {1}


def test_a_throttled_board_is_no_evidence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0, 0x50000])
    monkeypatch.setattr(rounds, "throttling", lambda: next(readings))
    monkeypatch.setattr(rounds, "busy_seconds", lambda: 0.0)
    monkeypatch.setattr(bench_module, "differences", lambda *_: [])

    result = bench(bundle, runtimes=["onnxruntime"], threads=[1], seconds=0.05)

    assert {cell.status for cell in result.cells} == {"INVALID"}
    verdicts = {verdict.budget: verdict for verdict in result.verdicts}
    assert verdicts["latency.p90"].verdict == "INCONCLUSIVE"
    assert "throttled" in verdicts["latency.p90"].note


def test_full_takes_three_processes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_FULL_RUNS", 40)
    monkeypatch.setattr(rounds, "busy_seconds", lambda: 0.0)
    manifest = bundle.manifest.model_copy(update={"baseline": {}})

    result = bench(
        Bundle(bundle.path, manifest),
        runtimes=["openvino"],
        threads=[1],
        precisions=["fp32"],
        full=True,
        seconds=0.02,
    )

    (cell,) = result.cells
    assert len(cell.processes) == 3
    assert all(process.latency.n >= 40 for process in cell.processes)
    assert not result.protocol.full  # cut short, and says so
    assert result.protocol.statement.startswith("not --full: 0.02 s in 3 processes")
    medians = sorted(process.latency.p50 for process in cell.processes)
    assert cell.latency.p50 == medians[1]
    assert cell.latency.p50_interval[0] <= medians[0] <= medians[2] <= cell.latency.p50_interval[1]


def test_a_network_that_does_not_run_says_why(copied: Path) -> None:
    bundle = load_bundle(copied)
    (copied / "model.onnx").write_bytes(b"overwritten after it was checked")

    arguments: dict[str, Any] = {"runtimes": ["onnxruntime"], "threads": [1], "seconds": 0.05}

    result = bench(bundle, **arguments)

    (failure,) = result.failures
    assert (failure.network, failure.precision) == ("pruned", "fp32")
    assert "cannot load it" in failure.why
    assert [cell.precision for cell in result.cells] == ["int8", "fp32"]  # and the baseline's
    with pytest.raises(BadInput, match="nothing could be measured: pruned fp32 in onnxruntime, 1"):
        bench(bundle, precisions=["fp32"], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtimes": ["tflite"]}, "unknown runtime 'tflite'"),
        ({"threads": [0]}, "^threads 0: at least 1"),
    ],
)
def test_bad_arguments(bundle: Bundle, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        bench(bundle, **arguments)


def _children_of(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_an_interrupted_bench(bundle_path: Path, way: signal.Signals) -> None:
    program = (
        "import sys; from pathlib import Path; from mvp_edge_export.measuring.bench import bench;"
        "from mvp_edge_export.bundle import load_bundle;"
        "bench(load_bundle(Path(sys.argv[1])), runtimes=['onnxruntime'], threads=[1], seconds=6)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(bundle_path)], stderr=subprocess.DEVNULL
    )
    children: list[int] = []
    deadline = time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        children = _children_of(running.pid)
    assert len(children) == 3

    running.send_signal(way)

    assert running.wait(20) != 0
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in children):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


# Figures


def test_the_summary_of_known_samples() -> None:
    latency = summary(np.arange(1.0, 1002.0))
    assert (latency.n, latency.min, latency.max, latency.p50) == (1001, 1, 1001, 501)
    assert latency.p90 == pytest.approx(901)
    assert latency.p99 == pytest.approx(991)
    assert summary(np.arange(1.0, 1000.0)).p99 is None


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        low, high = quantile_interval(random.lognormal(size=400), 0.5)
        hits += low <= 1.0 <= high
    assert 50 <= hits <= 60


def test_samples_that_resemble_their_neighbours_say_less() -> None:
    random = np.random.default_rng(0)
    independent = random.normal(10, 1, 2000)
    drifting = np.repeat(random.normal(10, 1, 20), 100)
    narrow = np.ptp(quantile_interval(independent, 0.5))
    assert np.ptp(quantile_interval(drifting, 0.5)) > 2 * narrow


@given(
    samples=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300),
    q=st.sampled_from([0.5, 0.9]),
)
@settings(max_examples=15, deadline=None)
def test_an_interval_lies_within_its_samples(samples: list[float], q: float) -> None:
    low, high = quantile_interval(np.array(samples), q)
    assert min(samples) <= low <= high <= max(samples)


FULL = Protocol(full=True, seconds=60, processes=3, statement="full")


def _latency(p50: float = 10, half: float = 0.5, **changes: Any) -> Latency:
    values: dict[str, Any] = {"n": 2000, "min": 8, "mean": 11, "p50": p50, "p90": 12, "p99": 15}
    values |= {"max": 30, "p50_interval": (p50 - half, p50 + half), "p90_interval": (11, 13)}
    return Latency(**(values | changes))


def _cell(status: Status = "OK", threads: int = 1, runtime: str = "onnxruntime", **p: Any) -> Cell:
    memory = Memory(after_import=30, after_load=60, after_first=65, steady=66, peak=90)
    latency = _latency(**p)
    values: dict[str, Any] = {"import_ms": 1, "load_ms": 1, "first_ms": 1, "warm_runs": 20}
    values |= {"warm_seconds": 2, "warm_settled": True, "latency": latency, "memory": memory}
    process = Process(**values, other_load=0, attempts=1, throttled=False)
    return Cell(
        network="pruned",
        runtime=runtime,
        version="1",
        precision="fp32",
        arithmetic="f32",
        threads=threads,
        options={},
        latency=latency,
        peak_over_import=memory.peak_over_import,
        status=status,
        processes=(process,),
    )


def test_several_processes_give_the_median_and_the_widest_interval() -> None:
    latency = combined([_latency(10), _latency(14, half=1), _latency(11, p99=None)])
    assert (latency.p50, latency.n, latency.p99) == (11, 6000, None)
    assert latency.p50_interval == (9.5, 15)


@pytest.mark.parametrize(
    ("limit", "cell", "other", "verdict"),
    [
        (10.5, _cell(), [], "PASS"),
        (10.4, _cell(), [], "INCONCLUSIVE"),
        (9.5, _cell(), [], "INCONCLUSIVE"),
        (9.4, _cell(), [], "FAIL"),
        (50, _cell(), ["4 cores, not 2"], "INCONCLUSIVE"),
        (1, _cell(), ["4 cores, not 2"], "INCONCLUSIVE"),
        (50, _cell("NOISY"), [], "INCONCLUSIVE"),
        (9.4, _cell("NOISY"), [], "INCONCLUSIVE"),  # slower for another's sake, perhaps
        (7.9, _cell("NOISY"), [], "FAIL"),  # even the fastest run took 8 ms
        (50, _cell("INVALID"), [], "INCONCLUSIVE"),
    ],
)
def test_a_latency_budget(
    make_profile: Callable[..., DeviceProfile],
    limit: float,
    cell: Cell,
    other: list[str],
    verdict: str,
) -> None:
    profile = make_profile(latency={"p50": limit})
    p50, p90, memory = judge(profile, cell, other, FULL)
    assert (p50.budget, p50.verdict) == ("latency.p50", verdict)
    assert (p50.limit, p50.reached, p50.unit) == (limit, 10, "ms")
    assert (p90.verdict, memory.verdict) == ("UNCHECKED", "UNCHECKED")


@pytest.mark.parametrize(("limit", "verdict"), [(60, "PASS"), (59, "FAIL")])
def test_a_memory_budget_is_held_against_the_peak_over_the_import(
    make_profile: Callable[..., DeviceProfile], limit: int, verdict: str
) -> None:
    *_, memory = judge(make_profile(memory=limit), _cell(), ["another machine"], FULL)
    assert (memory.reached, memory.verdict) == (60, verdict)
    *_, memory = judge(make_profile(memory=limit), _cell(), ["emulated by qemu-aarch64"], FULL)
    assert memory.verdict == "INCONCLUSIVE"


def test_judged_is_what_a_deployment_would_run(make_profile: Callable[..., DeviceProfile]) -> None:
    profile = make_profile()  # one thread, either runtime
    slow, fast = _cell(), _cell(runtime="openvino", p50=9)
    more = _cell(threads=2, p50=5)
    assert judged_cell(profile, [slow, more, fast], [], FULL) is fast
    assert judged_cell(profile, [more], [], FULL) is more
    shipped = Shipped(runtime="onnxruntime", precision="fp32", threads=1, why="")
    assert judged_cell(profile, [slow, more, fast], [], FULL, shipped) is slow


def test_judged_is_the_fastest_that_meets_the_budgets(
    make_profile: Callable[..., DeviceProfile],
) -> None:
    light, heavy = _cell(), _cell(runtime="openvino", p50=9)
    heavy = heavy.model_copy(update={"peak_over_import": 1000})
    assert judged_cell(make_profile(), [light, heavy], [], FULL) is heavy
    assert judged_cell(make_profile(memory=100), [light, heavy], [], FULL) is light
    assert judged_cell(make_profile(memory=10), [light, heavy], [], FULL) is heavy  # none does


def test_a_model_file_is_timed_by_itself(bundle: Bundle) -> None:
    shape = (1, 3, bundle.preprocess.size, bundle.preprocess.size)
    cell = time_model(bundle.model("onnx"), shape, "onnxruntime", 1, seconds=0.2)
    assert (cell.network, cell.runtime, cell.threads) == ("pruned", "onnxruntime", 1)
    assert cell.latency.n >= 10
    with pytest.raises(BadInput, match="does not run here"):
        time_model(bundle.path / "manifest.json", shape, "onnxruntime", 1, seconds=0.2)
