"""What README and summary.json say is what the committed rows say."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks" / "summary.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["summary"] = module
    spec.loader.exec_module(module)
    return module


def test_figures_and_tables_follow_from_the_rows() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "summary.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_targets_with_both_variants_are_paired(summary: ModuleType) -> None:
    rows = {
        "a": {"x": {"accuracy": 0.8}, "y": {"accuracy": 0.7}},
        "b": {"x": {"accuracy": 0.9}},
        "c": {"x": {"accuracy": 0.6}, "y": {"accuracy": 0.7}},
    }
    assert summary.paired(rows, "x", "y").tolist() == [[0.8, 0.7], [0.6, 0.7]]
    mean, low, high, count = summary.difference(rows, "x", "y")
    assert mean == pytest.approx(0.0)
    assert (low, high, count) == (pytest.approx(-10), pytest.approx(10), 2)


def test_the_interval_covers_the_mean_as_often_as_it_says(summary: ModuleType) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        sample = rng.normal(size=(24, 1))
        low, high = summary.interval(sample, lambda v: float(v.mean()))
        covered += low <= 0 <= high
    assert covered >= 33  # 95 % of 40 is 38; below 33 in one run of a thousand
