"""For every test: the same examples of hypothesis in each run; a tiny backbone, zoo and task to work on."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.tiny import alone, make

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell without job control starts what it puts into the background deaf to Ctrl-C, and all children
# inherit that: those that are interrupted here would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
