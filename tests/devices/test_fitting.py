"""Fitting: what must hold of any fitted law."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mvp_edge.devices.calibrate import FAMILIES, sample_widths
from mvp_edge.devices.fitting import feature_table, fit_law
from mvp_edge.families import unit_groups
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.devices.law import FEATURES_OF, SORTS, Law, Terms
from mvp_edge_export.devices.operators import Operators, Row, table

Floats = NDArray[np.float64]
TRUE = Law(
    lanes=8,
    run=0.02,
    terms={
        sort: Terms(
            **{feature: 5.0 + place for feature in FEATURES_OF[sort] if feature != "each"},
            each=0.001,
        )
        for place, sort in enumerate(SORTS)
    },
)


@cache
def networks(family: str) -> tuple[Operators, ...]:
    architecture = FAMILIES[family]
    outline, size = architecture.outline(10), architecture.input_size
    groups = unit_groups(outline)
    drawn = (sample_widths(groups, np.random.default_rng(seed)) for seed in range(16))
    return tuple(operators(resize(outline, widths), (3, size, size)) for widths in drawn)


def times(own: tuple[Operators, ...]) -> Floats:
    return np.array([TRUE.milliseconds(one) for one in own])


def off(law: Law, own: tuple[Operators, ...]) -> Floats:
    return np.abs(np.array([law.milliseconds(one) for one in own]) / times(own) - 1)


def test_a_family_that_was_not_timed_is_predicted_from_what_the_others_share() -> None:
    """ViTs have what no ResNet has: by least squares alone its figures would be nought, or any."""
    known = networks("resnet18") + networks("resnet50-224")
    law = fit_law(known, times(known), lanes=[8])
    assert np.median(off(law, known)) < 0.02
    assert law.terms["matmul"].gmacs > 0
    assert np.median(off(law, networks("deit-tiny"))) < 0.5


def test_every_figure_is_about_something_that_its_sort_has() -> None:
    known = networks("resnet18") + networks("deit-tiny")
    law = fit_law(known, times(known), lanes=[8])
    for sort, terms in law.terms.items():
        for feature, value in terms:
            assert value >= 0
            assert value == 0 or feature in FEATURES_OF[sort], (sort, feature)


@pytest.mark.parametrize("family", ["resnet18", "deit-tiny"])
def test_no_sort_has_a_feature_that_it_is_said_not_to_have(family: str) -> None:
    columns = feature_table(networks(family), 8)[:, 1:].reshape(16, len(SORTS), -1)
    names = list(Terms.model_fields)
    for place, sort in enumerate(SORTS):
        for column, name in enumerate(names):
            if name not in FEATURES_OF[sort]:
                assert not columns[:, place, column].any(), (sort, name)


def test_convolutions_of_unaligned_channels_are_a_sort_of_their_own() -> None:
    stem: Row = ("stem", 64, 30, 3, 9, 192)
    aligned: Row = ("conv", 64, 32, 28, 9, 1792)
    unaligned: Row = ("conv", 64, 32, 30, 9, 1920)
    thin: Row = ("conv", 64, 32, 6, 9, 384)
    law = Law(lanes=8, terms={"unaligned": Terms(each=1, gmacs=1e9, unrolled=1e9)})
    own = law.per_operator(table([stem, aligned, unaligned, thin]))
    assert own[[0, 1, 3]].tolist() == [0, 0, 0]
    # Its channels are not filled up; an unrolled number has four bytes.
    assert own[2] == pytest.approx(1 + 64 * 32 * 30 * 9 + 4 * 64 * 30 * 9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), group=st.integers(0, 11))
def test_a_wider_group_never_takes_less_time(seed: int, group: int) -> None:
    """Of channels in whole blocks, which is what profiles round to."""
    outline = FAMILIES["resnet18"].outline(10)
    groups = unit_groups(outline)
    rng = np.random.default_rng(seed)
    widths = {g.name: 8 * int(rng.integers(1, g.size // 8)) for g in groups}
    wider = {**widths, groups[group].name: widths[groups[group].name] + 8}
    own, other = (operators(resize(outline, w), (3, 32, 32)) for w in (widths, wider))
    for lanes in (1, 8, 16):
        law = Law(lanes=lanes, run=TRUE.run, terms=TRUE.terms)
        assert 0 < law.milliseconds(own) <= law.milliseconds(other)
