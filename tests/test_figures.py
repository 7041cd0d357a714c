"""What README and summary.json say is what the committed rows say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import figures

ROOT = Path(__file__).parent.parent


def test_figures_and_tables_follow_from_the_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.summary", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_only_targets_with_both_variants_are_paired() -> None:
    rows = {
        "a": {"x": {"accuracy": 0.8}, "y": {"accuracy": 0.7}},
        "b": {"x": {"accuracy": 0.9}},
        "c": {"x": {"accuracy": 0.6}, "y": {"accuracy": 0.7}},
    }
    assert figures.paired(rows, "x", "y").tolist() == [[0.8, 0.7], [0.6, 0.7]]
    found = figures.difference(rows, "x", "y")
    assert found is not None
    mean, low, high, count = found
    assert mean == pytest.approx(0.0)
    assert [low, high] == pytest.approx([-10, 10])
    assert count == 2


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        sample = rng.normal(size=(24, 1))
        low, high = figures.interval(sample, lambda v: float(v.mean()))
        covered += low <= 0 <= high
    assert covered >= 33  # 95 % of 40 is 38; below 33 in one run of a thousand
