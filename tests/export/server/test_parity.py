from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mvp_edge_export.errors import GateFailed
from mvp_edge_export.manifest import Parity, RuntimeAccuracy
from mvp_edge_export.running.sessions import Shape
from mvp_edge_export.server.parity import (
    RANDOM_IMAGES,
    REAL_IMAGES,
    Floats,
    accuracy_of,
    check_accuracy,
    check_parity,
    gate_images,
)


@dataclass
class _Runtime:
    name: str = "runtime"
    version: str = "1.0"
    arithmetic: str = "bf16"
    native: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    takes: Shape = (None, 3, 16, 16)
    gives: Shape = (None, 3)

    def run(self, batch: Floats) -> Floats:
        raise NotImplementedError


def _check(reference: Any, logits: Any, exact: Any = None) -> Parity:
    return check_parity(
        np.asarray(reference, np.float32),
        np.asarray(logits, np.float32),
        _Runtime(),
        network="pruned",
        setting="f32",
        real_images=1,
        exact=None if exact is None else lambda rows: np.asarray(exact, np.float64)[rows],
    )


def test_equal_logits_pass() -> None:
    check = _check([[1, 2], [4, 3]], [[1, 2], [4, 3]])
    assert (check.max_difference, check.ties) == (0, 0)
    assert (check.real_images, check.random_images) == (1, 1)


def test_where_pytorch_itself_is_uncertain_more_is_allowed() -> None:
    reference, found = [[0, 0.5], [0, 1000]], [[0, 0.5], [0.3, 1000]]
    with pytest.raises(GateFailed, match=r"image 1 is 3\.00e-01 away .* 1\.00e-01 is allowed"):
        _check(reference, found)
    with pytest.raises(GateFailed, match=r"image 1 is 3\.00e-01 away .* 2\.00e-01 is allowed"):
        _check(reference, found, exact=[[0, 0.5], [0.02, 1000]])
    assert _check(reference, found, exact=[[0, 0.5], [0.04, 1000]]).tolerance == pytest.approx(0.4)
    with pytest.raises(GateFailed, match="image 0"):  # one image's uncertainty is not another's
        _check([[0, 0.5], [0, 1000]], [[0.01, 0.5], [0, 1000]], exact=[[0, 0.5], [9, 1000]])


def test_the_tolerance_grows_with_an_image_s_own_logits() -> None:
    assert _check([[0, 1000]], [[0.09, 1000]]).max_difference == pytest.approx(0.09)
    assert _check([[0, 0.5]], [[0.00009, 0.5]]).tolerance == pytest.approx(1e-4)
    with pytest.raises(GateFailed, match=r"a logit of image 1 is 9\.00e-02 away .* 1\.00e-04"):
        _check([[0, 1000], [0, 0.5]], [[0, 1000], [0.09, 0.5]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    with pytest.raises(GateFailed, match="no numbers"):
        _check([[0, 1]], [[0, value]])
    with pytest.raises(GateFailed, match="no numbers"):
        _check([[0, value]], [[0, value]])


def test_another_shape_fails() -> None:
    with pytest.raises(GateFailed, match=r"logits \(1, 3\) instead of \(1, 2\)"):
        _check([[0, 1]], [[0, 1, 2]])


def test_classes_within_the_tolerance_may_swap() -> None:
    assert _check([[1.0, 1.00005]], [[1.00004, 1.0]]).ties == 1
    # Each logit is within the tolerance, but the classes were further apart than it.
    with pytest.raises(GateFailed, match="another best class"):
        _check([[1.0, 1.00015]], [[1.00009, 1.00007]])


@given(
    logits=arrays(np.float32, (4, 3), elements=st.floats(-50, 50, width=32)),
    row=st.integers(0, 3),
    factor=st.sampled_from([0.5, 0.9, 1.2, 100.0]),
)
@settings(max_examples=40, deadline=None)
def test_one_logit_too_far_away_is_enough(logits: Any, row: int, factor: float) -> None:
    moved = logits.astype(np.float64)
    best = int(logits[row].argmax())
    moved[row, best] += factor * 1e-4 * max(1.0, float(np.abs(logits[row]).max()))
    if factor < 1:  # raising the best logit swaps no classes
        assert _check(logits, moved).ties == 0
    else:
        with pytest.raises(GateFailed):
            _check(logits, moved)


def _accuracy(right: int, wrong: int, lost: int, gained: int) -> RuntimeAccuracy:
    """PyTorch gets ``right`` images right; the runtime loses and gains some."""
    reference = np.array([[0, 1]] * right + [[1, 0]] * wrong, np.float32)
    logits = reference.copy()
    logits[:lost] = [1, 0]
    logits[right : right + gained] = [0, 1]
    targets = np.ones(right + wrong, np.int64)
    found = accuracy_of(reference, logits, targets, _Runtime())
    check_accuracy(found, "fake (onnx)")
    return found


def test_accuracy_counts_what_was_lost_and_gained() -> None:
    accuracy = _accuracy(right=180, wrong=20, lost=2, gained=1)
    assert (accuracy.top1, accuracy.images) == (179 / 200, 200)
    assert (accuracy.lost, accuracy.gained, accuracy.arithmetic) == (2, 1, "bf16")


def test_a_drop_must_be_larger_than_chance_to_fail() -> None:
    _accuracy(right=180, wrong=20, lost=4, gained=0)  # 2 points, but 4 coins may all fall alike
    _accuracy(right=180, wrong=20, lost=9, gained=4)
    _accuracy(right=9000, wrong=1000, lost=49, gained=0)  # sure, but half a point is allowed
    with pytest.raises(GateFailed, match=r"fake \(onnx\) 1\.0 computing in bf16: top-1 87\.5% on"):
        _accuracy(right=180, wrong=20, lost=5, gained=0)
    with pytest.raises(GateFailed):
        _accuracy(right=9000, wrong=1000, lost=51, gained=0)


def test_the_gate_s_images_are_spread_over_the_real_ones() -> None:
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)

    chosen, real = gate_images(images)

    assert real == REAL_IMAGES
    assert len(chosen) == REAL_IMAGES + RANDOM_IMAGES
    picked = chosen[:real, 0, 0, 0]
    assert (picked[0], picked[-1]) == (0, 199)
    assert len(set(picked.tolist())) == REAL_IMAGES
    assert len(np.unique(chosen[real:])) > 100


def test_noise_makes_up_for_missing_images() -> None:
    chosen, real = gate_images(np.zeros((10, 4, 4, 3), np.uint8))
    assert real == 10
    assert len(chosen) == REAL_IMAGES + RANDOM_IMAGES
    assert chosen[:10].max() == 0
    assert all(image.max() > 0 for image in chosen[10:])
