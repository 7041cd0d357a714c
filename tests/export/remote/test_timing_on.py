"""`device calibrate --on` against a real sshd: networks are made here, timed there, and gone after."""

from pathlib import Path
from typing import Any

import pytest

from mvp_edge.devices.calibrate import Sampling, calibrate
from mvp_edge_export.bundle import Bundle
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import differences, this_machine
from mvp_edge_export.measuring.timing import Job
from mvp_edge_export.profile import load_profile
from mvp_edge_export.remote import timing
from mvp_edge_export.remote.timing import place_on
from tests.devices.test_calibrate import TINY
from tests.export.remote.test_bench_on import command, contents
from tests.support.sshd import ALIAS, Device


def test_models_are_timed_there_batch_by_batch(
    prepared: Device, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_BATCH", 2)
    models = [bundle.model("onnx"), bundle.path / bundle.manifest.baseline["onnx"]]
    size = bundle.preprocess.size
    jobs = [
        Job(name=f"{model.stem} {turn}", model=model.resolve(), shape=(1, 3, size, size),
            runtime="onnxruntime", threads=1)
        for turn in range(2) for model in models
    ][:3]  # fmt: skip
    told: list[Any] = []
    with place_on(ALIAS, offline=True) as place:
        assert place.machine.cpu == this_machine().cpu
        assert place.prepare(["onnxruntime"], [], []) == ["onnxruntime"]
        before = contents(prepared.cache)
        found = place.time(jobs, lambda *done: told.append(done))
        assert contents(prepared.cache) == before
    assert [(one.name, one.threads) for one in found] == [(job.name, 1) for job in jobs]
    assert all(one.p50 > 0 for one in found)
    assert told[-1] == (3, 3)
    assert prepared.left() == []


def test_a_host_that_is_another_device_is_not_calibrated(prepared: Device) -> None:
    ended = command("device", "calibrate", "rpi4", "--on", ALIAS, "--offline")
    _, said = ended.communicate()
    assert ended.returncode == 2
    assert f"{ALIAS} is not a Raspberry Pi 4" in said
    assert "Traceback" not in said


def test_no_runtime_is_said(prepared: Device) -> None:
    with place_on(ALIAS, offline=True) as place, pytest.raises(BadInput, match="has no runtime"):
        place.prepare([], [], [])


def test_the_hosts_profile_is_written_here(prepared: Device, tmp_path: Path) -> None:
    with place_on(ALIAS, offline=True) as place:
        path, calibration = calibrate(
            None, Sampling(12, [1], ["onnxruntime"], TINY),
            out=tmp_path / "host.yaml", place=place,
        )  # fmt: skip
    profile = load_profile(str(path))
    assert profile.calibration == calibration
    assert [fit.runtime for fit in calibration.fits] == ["onnxruntime"]
    assert not differences(this_machine(), profile)
    assert prepared.left() == []
