"""One tiny backbone, zoo and task for all workers of a run, and a copy of them for each test."""

import os
import shutil
from pathlib import Path

import pytest

from tests.engine.tiny import alone, make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, not to be changed: backbone.json, digits/, task/, zoo/, board.yaml."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with alone(root / "tiny.lock"):
        os.environ["MVP_EDGE_CACHE"] = str(root / "cache")
        if not (root / "tiny").exists():
            make(root / "tiny")
    return root / "tiny"


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it to work in."""
    return Path(shutil.copytree(tiny, tmp_path / "place"))
