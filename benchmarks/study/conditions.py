"""Whether a row was made under the conditions that hold now, and what a row records of its machine."""

from collections.abc import Mapping
from typing import Any

import torch

from mvp_edge.machine import this_computer
from mvp_edge.pruning.arithmetic import faster_dtype
from mvp_edge.recipe import AUGMENTATIONS

_DEFAULTS = {"augmented": list(AUGMENTATIONS), "seed": 0, "relative_step": 0.0}
"""The values that hold for rows that were written before these keys existed."""


def is_current(row: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether there is a row, and it was made under the conditions ``now``."""
    return row is not None and all(
        row.get(key, _DEFAULTS.get(key)) == value for key, value in now.items()
    )


def arithmetic(accelerator: str) -> str:
    """The number format that this machine trains in, on which the last digits of a result depend."""
    return str(faster_dtype(accelerator) or torch.float32).removeprefix("torch.")


def processor(accelerator: str) -> str:
    """The name of the CPU or GPU that this machine trains on."""
    return torch.cuda.get_device_name() if accelerator == "cuda" else str(this_computer()["cpu"])
