"""What is shipped, from measurements made up so that the right answer is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.manifest import Candidate, Manifest, read_manifest
from mvp_edge_export.measuring import choice
from mvp_edge_export.measuring.bench import bench
from mvp_edge_export.measuring.choice import check_choosable, choose, decided
from mvp_edge_export.measuring.result import BenchResult, Cell
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import open_session
from mvp_edge_export.storage import read_json
from tests.support.run_fixture import Recipe, write_run

Times = dict[tuple[str, str, int], tuple[float, float, float]]
"""(runtime, precision, threads) → median and its interval."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("choice") / "run", Recipe(network="digits"))


@pytest.fixture
def manifest(run: Path) -> Manifest:
    return read_manifest(run / "bundle")


@pytest.fixture
def measured(run: Path) -> Callable[..., BenchResult]:
    """The run's measurement, some of its figures replaced."""
    result = BenchResult.model_validate(read_json(run / "bench.json", "run"))

    def replaced(times: Times | None = None, **changes: Any) -> BenchResult:
        def at(cell: Cell) -> Cell:
            found = (times or {}).get((cell.runtime, cell.precision, cell.threads))
            if found is None or cell.network != "pruned":
                return cell
            p50, low, high = found
            latency = cell.latency.model_copy(update={"p50": p50, "p50_interval": (low, high)})
            return cell.model_copy(update={"latency": latency})

        return result.model_copy(update={"cells": tuple(map(at, result.cells)), **changes})

    return replaced


def _with_profile(
    manifest: Manifest, result: BenchResult, change: Callable[[dict[str, Any]], None]
) -> tuple[Manifest, BenchResult]:
    value = manifest.profile.model_dump(mode="json", by_alias=True)
    value["budgets"]["latency"] = {"p90": "50ms"}
    change(value)
    profile = DeviceProfile.model_validate(value)
    changed = {"profile": profile, "profile_sha256": profile.sha256}
    return (
        manifest.model_copy(update=changed),
        result.model_copy(update={"profile_sha256": profile.sha256}),
    )


def _of(manifest: Manifest, form: str) -> Candidate:
    found = manifest.candidate(form)
    assert found is not None
    return found


def test_the_fastest_ships_and_int8_that_is_slower_is_kept_out(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    chosen = decided(manifest, measured())  # int8 takes half the time in one runtime, not the other

    assert chosen.shipped is not None
    assert (chosen.shipped.runtime, chosen.shipped.precision) == ("onnxruntime", "int8")
    assert chosen.shipped.threads == 4
    assert set(chosen.models) == {"onnx", "openvino", "onnx-int8"}
    assert not {"model_int8.xml", "model_int8.bin"} & set(chosen.files)
    assert "model_int8.onnx" in chosen.files
    slower = _of(chosen, "openvino-int8")
    times = {t.threads: t for t in slower.timings}
    exact = {t.threads: t for t in _of(chosen, "openvino").timings}
    assert not slower.kept
    assert slower.why.startswith("not faster than fp32: ")
    assert f"{times[4].p50:.2f}" in slower.why or f"{times[4].p50:.3f}" in slower.why
    assert f"fp32 {exact[4].p50:.2f}" in slower.why or f"fp32 {exact[4].p50:.3f}" in slower.why
    assert {t.machine for t in slower.timings} == {"Cortex-A72"}
    assert all(t.protocol.startswith("not --full") for t in slower.timings)
    file = next(verdict for verdict in chosen.verdicts if verdict.budget == "file")
    assert (file.reached, file.note) == (_of(chosen, "onnx-int8").bytes, "onnx-int8")
    lost = next(v for v in chosen.verdicts if v.budget == "accuracy.max_quant_drop")
    assert lost.verdict == "PASS"
    assert lost.reached == pytest.approx(0.4)


def test_int8_must_be_faster_beyond_doubt(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    times: Times = {
        ("onnxruntime", "fp32", 4): (1.00, 0.97, 1.03),
        ("onnxruntime", "int8", 4): (0.98, 0.96, 0.99),  # faster, but for the overlap
    }
    chosen = decided(manifest, measured(times))
    assert chosen.shipped is not None
    assert (chosen.shipped.runtime, chosen.shipped.precision) == ("onnxruntime", "fp32")
    assert not _of(chosen, "onnx-int8").kept

    times["onnxruntime", "int8", 4] = (0.95, 0.94, 0.96)
    chosen = decided(manifest, measured(times))
    assert chosen.shipped is not None
    assert chosen.shipped.precision == "int8"


def test_fewer_threads_ship_when_they_are_faster_and_never_more_than_the_profile_s(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    times: Times = {("openvino", "fp32", 1): (0.01, 0.01, 0.01)}
    chosen = decided(manifest, measured(times))
    assert chosen.shipped is not None
    assert (chosen.shipped.runtime, chosen.shipped.threads) == ("openvino", 1)

    def narrow(profile: dict[str, Any]) -> None:
        profile["runtime"]["threads"] = 1

    chosen = decided(*_with_profile(manifest, measured(), narrow))
    assert chosen.shipped is not None
    assert chosen.shipped.threads == 1


def test_a_preferred_precision_ships_though_it_is_slower(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    def prefer(profile: dict[str, Any]) -> None:
        profile["precision"]["prefer"] = "fp32"

    chosen = decided(*_with_profile(manifest, measured(), prefer))
    assert chosen.shipped is not None
    assert chosen.shipped.precision == "fp32"
    assert chosen.shipped.why.startswith("the profile prefers fp32: ")


def test_a_candidate_must_meet_every_budget(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    result = measured()
    peak = max(cell.peak_over_import for cell in result.cells if cell.network == "pruned")
    heavy = tuple(
        cell.model_copy(update={"peak_over_import": 10 * peak})
        if (cell.runtime, cell.precision) == ("onnxruntime", "int8")
        else cell
        for cell in result.cells
    )

    def tight(profile: dict[str, Any]) -> None:
        profile["budgets"]["memory"] = 2 * peak

    chosen = decided(*_with_profile(manifest, measured(cells=heavy), tight))
    assert chosen.shipped is not None
    assert chosen.shipped.precision == "fp32"

    def tighter(profile: dict[str, Any]) -> None:
        profile["budgets"]["memory"] = peak // 2

    with pytest.raises(
        BudgetMissed, match=r"no candidate meets the budgets; int8 in onnx.*memory F"
    ):
        decided(*_with_profile(manifest, measured(), tighter))


def test_what_was_measured_elsewhere_decides_nothing(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    with pytest.raises(BadInput, match=r"this machine is not rpi4 \(2 cores, not 4\)"):
        decided(manifest, measured(differences=("2 cores, not 4",)))
    with pytest.raises(BadInput, match="leave out --device"):
        decided(manifest, measured(profile_sha256="0" * 64))
    result = measured()
    invalid = tuple(cell.model_copy(update={"status": "INVALID"}) for cell in result.cells)
    with pytest.raises(BadInput, match="nothing was measured that could be shipped"):
        decided(manifest, measured(cells=invalid))


def test_a_denied_release_does_not_ship(
    manifest: Manifest, measured: Callable[..., BenchResult]
) -> None:
    def deny(profile: dict[str, Any]) -> None:
        profile["runtime"]["denylist"] = ["onnxruntime==1.32.0"]

    result = measured()
    cells = tuple(
        cell.model_copy(update={"version": "2026.4"}) if cell.runtime == "openvino" else cell
        for cell in result.cells
    )
    chosen = decided(*_with_profile(manifest, measured(cells=cells), deny))
    assert chosen.shipped is not None
    assert chosen.shipped.runtime == "openvino"


def test_noise_is_said(manifest: Manifest, measured: Callable[..., BenchResult]) -> None:
    noisy = tuple(cell.model_copy(update={"status": "NOISY"}) for cell in measured().cells)
    chosen = decided(manifest, measured(cells=noisy))
    assert chosen.shipped is not None
    assert "another load ran" in chosen.choice


def test_the_bundle_becomes_what_was_chosen(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(copied)
    with pytest.raises(
        BadInput, match=r"^choose must run on the device: this machine is not test-board"
    ):
        check_choosable(bundle, bundle.manifest.profile)
    monkeypatch.setattr(choice, "differences", lambda *_: [])
    monkeypatch.setattr("mvp_edge_export.measuring.bench.differences", lambda *_: [])
    check_choosable(bundle, bundle.manifest.profile)
    result = bench(bundle, threads=[1], seconds=0.1)
    # So that the answer does not depend on this machine: its speed, its memory, its other loads.
    times = {"fp32": 1.0, "int8": 2.0, "fp16": 3.0}

    def at(cell: Cell) -> Cell:
        p50 = times[cell.precision] + (cell.runtime == "onnxruntime")
        figures = {"p50": p50, "p50_interval": (p50, p50), "p90": p50, "p90_interval": (p50, p50)}
        here = {"latency": cell.latency.model_copy(update=figures), "status": "OK"}
        return cell.model_copy(update={**here, "peak_over_import": 2**20})

    chosen = choose(bundle, result.model_copy(update={"cells": tuple(map(at, result.cells))}))

    assert chosen.manifest.models == {"onnx": "model.onnx", "openvino": "model.xml"}
    left = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert left == {*chosen.manifest.files, "manifest.json"}
    assert load_bundle(copied).manifest == chosen.manifest
    session = open_session(chosen)
    assert (session.name, session.options["threads"]) == ("openvino", 1)
    assert open_session(chosen, "onnxruntime").name == "onnxruntime"
    with pytest.raises(BadInput, match=r"no network in format onnx-int8 .*; kept out: not faster"):
        chosen.model("onnx-int8")


def test_a_choice_cut_short_leaves_a_whole_bundle(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(copied)
    monkeypatch.setattr("mvp_edge_export.measuring.bench.differences", lambda *_: [])
    result = bench(bundle, runtimes=["onnxruntime"], threads=[1], seconds=0.05)

    def interrupted(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    # Just after the manifest got its name, before the files go.
    slow = tuple(
        cell.model_copy(
            update={"latency": cell.latency.model_copy(update={"p50": 9.0, "p50_interval": (9, 9)})}
        )
        if cell.precision == "int8"
        else cell
        for cell in result.cells
    )
    slower = result.model_copy(update={"cells": slow})
    with monkeypatch.context() as during:
        during.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            choose(bundle, slower)

    assert (copied / "model_int8.onnx").exists()  # left over, listed nowhere
    again = load_bundle(copied)
    assert again.manifest.shipped is not None
    assert "onnx-int8" not in again.manifest.models
    assert json.loads((copied / "manifest.json").read_text())["schema"] == 2
