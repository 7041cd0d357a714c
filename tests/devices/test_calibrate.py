"""Calibration: laws are found again in times that follow one, and written into profiles people wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_edge.devices import calibrate as calibrating
from mvp_edge.devices.calibrate import Sampling, calibrate, sample_networks, sample_widths
from mvp_edge.devices.fitting import fit_law
from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.devices.latency import latency_laws
from mvp_edge_export.devices.law import SORTS, Law, Terms
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring import timing
from mvp_edge_export.measuring.machine import Machine, differences, this_machine
from mvp_edge_export.measuring.timing import Job, JobTiming
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.server.convert import frozen, onnx_graph
from mvp_edge_export.server.graph import live_numbers, operators_of_graph, with_shapes
from tests.support.networks import CIFAR, FAMILIES, SHALLOW, backbone

TINY = {
    "resnet": Architecture(
        "resnet18",
        CIFAR | {"maxpool": "Identity()"},
        {"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 40]},
        16,
    ),
    "deit": Architecture("deit_tiny_patch16_224", {}, SHALLOW, 16),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_module_and_its_export_have_the_same_operators(name: str) -> None:
    whole = backbone(name)
    module = whole.with_head(3)
    graph, shapes = with_shapes(
        onnx_graph(frozen(module, None), torch.zeros(1, *whole.shape), False)[0]
    )
    exported, own = operators_of_graph(graph, shapes), operators(module, whole.shape)
    heavy = ("conv", "conv1x1", "stem", "linear", "matmul", "softmax", "norm", "gelu")

    def rows(found: Operators) -> list[Any]:
        return sorted(row for row in found.to_json() if row[0] in heavy)

    assert rows(exported) == rows(own)
    assert live_numbers(graph, shapes) >= np.prod(whole.shape)


@st.composite
def true_laws(draw: st.DrawFn) -> Law:
    figure = st.floats(0.8, 1.25)
    return Law(
        lanes=draw(st.sampled_from([1, 4, 8, 16])),
        run=draw(figure) * 0.01,
        terms={
            sort: Terms(
                each=0.002 * draw(figure), gmacs=20 * draw(figure), weights=50 * draw(figure)
            )
            for sort in SORTS
        },
    )


@pytest.fixture(scope="module")
def shapes() -> list[Operators]:
    """Operators of networks of both families, without their files."""
    found = []
    for index in range(48):
        architecture = calibrating.FAMILIES[["resnet18", "deit-tiny"][index % 2]]
        with torch.device("meta"):
            whole = architecture.build(10)
        widths = sample_widths(unit_groups(whole), np.random.default_rng(index))
        size = architecture.input_size
        found.append(operators(resize(whole, widths), (3, size, size)))
    return found


@settings(max_examples=8)
@given(law=true_laws())
def test_times_that_follow_a_law_are_predicted_by_the_fitted_one(
    shapes: list[Operators], law: Law
) -> None:
    times = np.array([law.milliseconds(one) for one in shapes])
    fitted = fit_law(shapes[:32], times[:32])
    errors = [
        abs(fitted.milliseconds(one) / t - 1)
        for one, t in zip(shapes[32:], times[32:], strict=True)
    ]
    # Not exactly: what the networks leave open is drawn to what the sorts share.
    assert np.median(errors) < 0.02
    assert max(errors) < 0.08


def test_sampled_widths_are_within_the_network_and_of_many_sizes() -> None:
    with torch.device("meta"):
        groups = unit_groups(calibrating.FAMILIES["resnet18"].build(10))
    shares = []
    for seed in range(60):
        widths = sample_widths(groups, np.random.default_rng(seed))
        assert all(1 <= widths[g.name] <= g.size for g in groups)
        shares.append(sum(widths.values()) / sum(g.size for g in groups))
    assert min(shares) < 0.1
    assert max(shares) > 0.8


@dataclass(frozen=True)
class Imagined:
    """A device that looks like a profile's, and on which times follow a law instead of a clock."""

    law: Law
    profile: DeviceProfile
    factor: float = 1.0
    name: str = "the imagined device"

    @property
    def machine(self) -> Machine:
        hardware = self.profile.hardware
        flags = {"neon": "asimd", "amx": "amx_tile"}
        looks = {
            "arch": hardware.arch,
            "cpu": hardware.cpu,
            "emulated": None,
            "cores": (hardware.cpu,),
            "flags": tuple(flags.get(one, one) for one in hardware.isa),
            "physical_cores": hardware.cores,
            "ram": hardware.ram,
        }
        return this_machine().model_copy(update=looks)

    def prepare(self, offered: Any, asked: Any, denied: Any) -> list[str]:
        assert set(asked) <= set(offered)
        return list(asked)

    def time(self, work: Sequence[Job], told: Any) -> list[JobTiming]:
        assert all(job.model.is_file() for job in work)
        told(len(work), len(work))
        return [_timing(job, self.law, self.factor) for job in work]


def as_if(law: Law, profile: str = "rpi4", factor: float = 1.0) -> Imagined:
    return Imagined(law, load_profile(profile), factor)


def _timing(job: Job, law: Law, factor: float) -> JobTiming:
    from mvp_edge_export.server.graph import load_graph

    model = job.model.with_suffix(".onnx")
    p50 = factor * law.milliseconds(operators_of_graph(*load_graph(model)))
    return JobTiming(
        name=job.name, runtime=job.runtime, version="9.9", arithmetic="f32", threads=job.threads, p50=p50,
        p50_interval=(p50, p50), p90=1.25 * p50, runs=100, status="OK",
    )  # fmt: skip


LAW = Law(lanes=8, run=0.01, terms={"conv": Terms(gmacs=10), "linear": Terms(gmacs=10)})


def test_a_profile_keeps_its_text_and_gains_a_calibration(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = "# my board\nschema: 1\nid: mine\nextends: rpi4   # but in my attic\n"
    mine.write_text(text)
    sampling = Sampling(12, [1, 4], ["onnxruntime"], TINY)

    path, calibration = calibrate(str(mine), sampling, place=as_if(LAW))

    assert path == mine
    assert mine.read_text().startswith(text.rstrip())
    loaded = load_profile(str(mine))
    assert loaded.calibration == calibration
    assert [(fit.threads, fit.version) for fit in calibration.fits] == [(1, "9.9"), (4, "9.9")]
    for fit in calibration.fits:
        assert fit.error.networks == 4
        assert fit.error.median < 0.02
        assert fit.p90_over_p50 == pytest.approx(1.25)
    assert {law.basis for law in latency_laws(loaded)} == {"predicted"}

    # Again, on a slower day: the section is replaced, and stands once.
    calibrate(str(mine), sampling, place=as_if(LAW, factor=3))
    assert mine.read_text().count("calibration:") == 1
    slower = load_profile(str(mine)).calibration
    assert slower is not None
    times = [found.fits[0].law.terms["conv"].gmacs for found in (calibration, slower)]
    assert times[1] == pytest.approx(3 * times[0], rel=0.05)
    assert not [p for p in tmp_path.iterdir() if p != mine]


def test_a_shipped_profile_is_extended_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = load_profile("rpi4").path
    assert before is not None
    text = before.read_text()
    path, _ = calibrate("rpi4", Sampling(12, [1], ["onnxruntime"], TINY), place=as_if(LAW))
    assert path == Path("rpi4.yaml")
    assert before.read_text() == text
    extended = load_profile("rpi4.yaml")
    assert extended.calibration is not None
    assert extended.hardware == load_profile("rpi4").hardware


def test_this_machine_is_timed_and_gets_a_profile_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "time_models", partial(timing.time_models, seconds=0.1))
    path, calibration = calibrate(
        None,
        Sampling(12, [1], ["onnxruntime"], TINY),
        out=tmp_path / "new.yaml",
    )
    loaded = load_profile(str(path))
    assert not differences(this_machine(), loaded)
    assert loaded.calibration == calibration
    assert (
        calibration.fits[0].law.milliseconds(operators(TINY["resnet"].build(10), (3, 16, 16))) > 0
    )
    assert loaded.budgets.latency is None
    with pytest.raises(BadInput, match="exists"):
        calibrate(
            None, Sampling(12, [1], ["onnxruntime"], TINY), out=path,
            place=as_if(LAW),
        )  # fmt: skip


def test_another_device_is_not_calibrated_here() -> None:
    with pytest.raises(BadInput, match=r"this machine is not a Raspberry Pi 4 .*architecture"):
        calibrate("rpi4")


def test_networks_that_a_killed_calibration_made_are_used_again(tmp_path: Path) -> None:
    first = list(sample_networks(2, tmp_path, ["onnxruntime"], families=TINY))
    made = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = list(sample_networks(2, tmp_path, ["onnxruntime"], families=TINY))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == made
    assert [one.widths for one in first] == [one.widths for one in again]


def test_a_release_that_a_profile_denies_is_not_timed() -> None:
    here = timing.ThisMachine()
    with pytest.raises(BadInput, match=r"onnxruntime==\S+ is in runtime.denylist"):
        here.prepare(["onnxruntime"], [], [f"onnxruntime=={onnxruntime.__version__}"])
    with pytest.raises(BadInput, match=r"none of the runtimes \(none\) is installed"):
        here.prepare([], [], [])
