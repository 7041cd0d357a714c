"""The names of variants in plain words (``words.yaml``)."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict


class _Words(BaseModel):
    """The content of ``words.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: Mapping[str, str]
    variants: Mapping[str, str]


@cache
def _words() -> _Words:
    text = Path(__file__).with_suffix(".yaml").read_text()
    return _Words.model_validate(yaml.safe_load(text))


def in_words(variant: str) -> str:
    """What a reader would call the variant; its own name if nobody has put it into words."""
    words = _words()
    if variant in words.variants:
        return words.variants[variant]
    method, _, steps = variant.partition("@")
    if not steps.isdigit():
        return variant
    if method.startswith("tp-"):
        name = f"Torch-Pruning ({method.removeprefix('tp-').replace('-', ' ')})"
    elif method in words.methods:
        name = words.methods[method]
    else:
        return variant
    return f"{name}, {int(steps):,} steps"


def method_in_words(method: str) -> str:
    """What a reader would call the method, without a number of steps."""
    return _words().methods.get(method, method)
