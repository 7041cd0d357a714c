"""The latency law against sums written out, and what must hold of any law."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_edge_export.devices.latency import (
    BANDWIDTH_REACHED,
    fastest,
    latency_laws,
)
from mvp_edge_export.devices.law import Law, Terms
from mvp_edge_export.devices.operators import KINDS, Operators, Row, conv_kind, table
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile, load_profile, shipped_profiles

CONV = ("conv", 64, 10, 20, 9, 64 * 20)
LINEAR = ("linear", 1, 5, 10, 1, 10)


def rows(*given: Any) -> Operators:
    return table(list(given))


def test_a_law_is_the_sum_that_its_docstring_says() -> None:
    law = Law(
        lanes=8,
        run=0.5,
        terms={
            "conv": Terms(each=0.1, gmacs=2, read=3, written=5, weights=7),
            "linear": Terms(each=1),
        },
    )
    macs = 64 * 16 * 24 * 9 / 1e9  # 10 and 20 channels filled up to 16 and 24
    conv = 0.1 + 2 * macs + (3 * 1280 + 5 * 640 + 7 * 1800) * 4 / 1e9
    own = rows(("stem", 1, 1, 1, 1, 1), CONV, LINEAR)
    assert law.per_operator(own) == pytest.approx([0, conv, 1])
    assert law.milliseconds(own) == pytest.approx(0.5 + conv + 1)
    assert law.scaled(3).milliseconds(own) == pytest.approx(3 * law.milliseconds(own))


def test_the_channels_of_an_image_are_not_filled_up() -> None:
    stem, inner = (
        rows(("conv", 64, 8, 3, 9, 192)),
        rows(("stem", 1, 1, 1, 1, 1), ("conv", 64, 8, 3, 9, 192)),
    )
    assert stem.kinds == ("stem",)
    assert stem.padded_macs(8).tolist() == [64 * 8 * 3 * 9]
    assert inner.padded_macs(8)[1] == 64 * 8 * 8 * 9


def test_a_calibration_from_before_a_sort_was_its_own_is_read_as_it_was_meant() -> None:
    own = rows(
        ("stem", 1, 1, 1, 1, 1),
        ("depthwise", 64, 16, 1, 9, 64 * 16),
        ("grouped", 64, 16, 4, 9, 64 * 16),
        ("depthwise", 64, 18, 1, 9, 64 * 18),
    )
    dense = Law(lanes=8, terms={"conv": Terms(each=2)})
    grouped = Law(lanes=8, terms={"conv": Terms(each=2), "grouped": Terms(each=3)})
    present = Law(
        lanes=8,
        terms={
            "grouped": Terms(each=3),
            "unaligned_grouped": Terms(each=4),
            "depthwise": Terms(each=5),
            "unaligned_depthwise": Terms(each=6),
        },
    )
    assert dense.per_operator(own).tolist() == [0, 2, 2, 2]
    assert grouped.per_operator(own).tolist() == [0, 3, 3, 3]
    assert present.per_operator(own).tolist() == [0, 5, 4, 6]  # groups of four are no whole vectors


def test_a_depthwise_convolution_is_bound_by_its_bytes() -> None:
    """Its multiply-adds are not filled up along the channels that it sums over: there is one."""
    one = rows(("stem", 1, 1, 1, 1, 1), ("depthwise", 64, 16, 1, 9, 64 * 16))
    assert one.padded_macs(16)[1] == 64 * 16 * 9
    law = Law(lanes=16, terms={"depthwise": Terms(read=1, written=1)})
    assert law.milliseconds(one) == pytest.approx(2 * 64 * 16 * 4 / 1e9)


def test_what_kind_a_convolution_is() -> None:
    assert conv_kind((3, 3), 16, 16) == "depthwise"
    assert conv_kind((3, 3), 4, 16) == "grouped"
    assert conv_kind((3, 3), 1, 16) == "conv"
    assert conv_kind((1, 1), 1, 16) == "conv1x1"


def test_operators_go_through_json_unchanged() -> None:
    own = rows(CONV, LINEAR)
    back = Operators.from_json(own.to_json())
    assert back.kinds == own.kinds
    assert np.array_equal(back.shapes, own.shapes)
    wrong: list[list[Any]]
    for wrong in ([["warp", 1, 1, 1, 1, 1]], [["conv", 1, 1]], [["conv", 1, -1, 1, 1, 1]], [[]]):
        with pytest.raises(BadInput, match="operators: not what mvp-edge writes"):
            Operators.from_json(wrong)


sizes = st.integers(1, 300)
networks = st.lists(
    st.tuples(st.sampled_from(KINDS), sizes, sizes, sizes, st.sampled_from([1, 9, 49]), sizes),
    min_size=1,
    max_size=6,
)
figures = st.floats(0, 1e3)
laws = st.builds(
    Law,
    lanes=st.sampled_from([1, 4, 8, 16]),
    run=figures,
    terms=st.dictionaries(
        st.sampled_from(KINDS),
        st.builds(Terms, each=figures, gmacs=figures, read=figures, weights=figures),
    ),
)


@given(laws, networks, st.integers(0, 5), st.integers(1, 3))
def test_a_larger_network_never_takes_less(
    law: Law, network: list[Row], at: int, column: int
) -> None:
    larger = [list(row) for row in network]
    larger[at % len(network)][column] += 1  # type: ignore[operator]
    small = law.milliseconds(rows(*network))
    assert 0 <= small <= law.milliseconds(rows(*map(tuple, larger))) + 1e-9


def test_an_uncalibrated_profile_is_estimated_from_its_peaks() -> None:
    profile = load_profile("rpi4")
    (law,) = latency_laws(profile)
    peak = profile.hardware.peak
    assert peak is not None
    assert (law.basis, law.runtime, law.error) == ("estimate", None, None)
    one = rows(("conv", 100, 32, 32, 9, 3200))
    found = fastest([law], one)
    assert found is not None
    by_hand = 1e3 * 100 * 32 * 32 * 9 / (peak.reached * peak.macs_per_second)
    by_hand += 1e3 * 4 * (3200 + 3200 + 32 * 32 * 9) / (BANDWIDTH_REACHED * peak.bytes_per_second)
    assert found.p50 == pytest.approx(by_hand)
    assert found.p90 > found.p50
    assert fastest((), one) is None


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_says_what_its_hardware_can_do(name: str) -> None:
    peak = load_profile(name).hardware.peak
    assert peak is not None
    assert 1e8 < peak.macs_per_second < 1e12
    assert 1e8 < peak.bytes_per_second < 2e11


def calibrated(profile: DeviceProfile, **changes: Any) -> DeviceProfile:
    fit = {
        "runtime": "onnxruntime", "version": "1.32.0", "precision": "fp32", "threads": 1,
        "law": {"lanes": 8, "run": 1.0, "terms": {}}, "p90_over_p50": 1.2,
        "error": {"networks": 8, "median": 0.05, "p90": 0.1},
    }  # fmt: skip
    facts = {
        "date": "2026-11-24", "machine": "a board", "fingerprint": "0" * 64, "networks": 24,
        "fits": [fit, {**fit, "runtime": "openvino", "law": {"lanes": 8, "run": 0.5, "terms": {}}},
                 {**fit, "threads": 64}, {**fit, "precision": "int8"}],
    }  # fmt: skip
    value = profile.model_dump(mode="json", by_alias=True) | {"calibration": facts | changes}
    return DeviceProfile.model_validate(value)


def test_the_fastest_calibrated_runtime_that_the_profile_allows_counts() -> None:
    known = latency_laws(calibrated(load_profile("rpi4")))
    assert [(law.runtime, law.threads) for law in known] == [("onnxruntime", 1), ("openvino", 1)]
    found = fastest(known, rows(CONV))
    assert found is not None
    assert (found.by.runtime, found.p50, found.p90) == ("openvino", 0.5, 0.6)
    assert "within 10 %" in str(found.by)
