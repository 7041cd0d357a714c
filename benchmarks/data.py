"""Where the research data lies: in the folder that MVP_EDGE_DATA names (see benchmarks/README.md)."""

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """The folder with the image sets, and with the backbones in ``weights/``.

    Raises:
        SystemExit: MVP_EDGE_DATA is not set.
    """
    folder = os.environ.get("MVP_EDGE_DATA")
    if not folder:
        sys.exit(
            "set MVP_EDGE_DATA to the folder with the research data (see benchmarks/README.md)"
        )
    return Path(folder)


def below_data(name: str) -> str:
    """A path in the data folder as `--backbone` takes it, with ``ARCHITECTURE@`` kept in front."""
    architecture, at, path = name.rpartition("@")
    return f"{architecture}{at}{data_folder() / path}"
