"""The computer that prunes: what it is, which releases compute, and what is said when memory or disk are full."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mvp_edge import __version__
from mvp_edge_export.errors import BadInput

_PACKAGES = ("torch", "timm", "fvcore", "numpy", "pillow", "nltk", "safetensors")

VECTORS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "sve"),
)
"""The instructions that decide how fast a processor multiplies, and in which precision it is trained on."""


def versions() -> dict[str, str]:
    """The releases of the packages that compute."""
    found = {"python": platform.python_version(), "mvp-edge": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def this_computer() -> dict[str, Any]:
    """Processor, vector instructions, cores and system, without the computer's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (told.get("flags") or told.get("Features") or "").split()
    return {
        "cpu": told.get("model name", platform.machine()),
        "isa": [flag for flag in VECTORS if flag in flags],
        "cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.release()}",
    }


@contextmanager
def within_limits(place: Path) -> Iterator[None]:
    """Turn a full disk, as safetensors reports it, and full memory into a BadInput that says so."""
    import torch
    from safetensors import SafetensorError

    from mvp_edge.subnetwork.weights import first_line

    try:
        yield
    except SafetensorError as error:
        raise BadInput(f"cannot write in {place}: {first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BadInput(
            f"out of memory ({first_line(error)}): a smaller --input-size, or another --accelerator"
        ) from error
