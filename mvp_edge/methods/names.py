"""Old names of pruning methods: understood for one release, and in files for ever."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, str] = {"taught": "distill"}
"""Names of version 0.1.0 → present names."""


def current_name(name: Any) -> Any:
    """The present name of a method that may be given by its old one; anything else is returned as it is."""
    return RENAMED.get(name, name) if isinstance(name, str) else name
