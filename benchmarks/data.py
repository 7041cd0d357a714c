"""Where the research data lies: below $MVP_EDGE_DATA (benchmarks/README.md)."""

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """The folder with the image sets, and the weights below ``weights/``."""
    folder = os.environ.get("MVP_EDGE_DATA")
    if not folder:
        sys.exit(
            "set MVP_EDGE_DATA to the folder with the research data (see benchmarks/README.md)"
        )
    return Path(folder)


def below_data(name: str) -> str:
    """A path in it as the product takes it, with ``ARCHITECTURE@`` kept in front."""
    architecture, at, path = name.rpartition("@")
    return f"{architecture}{at}{data_folder() / path}"
