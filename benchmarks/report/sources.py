"""Where the committed rows and measurements lie that the evidence pages are made from, each read once."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.study import rows as stored
from benchmarks.study.rows import RESULTS, Rows

DEVICE = Path(__file__).parents[1] / "device"
"""Measurements of latency, memory and installed size."""


@cache
def study_rows(study: str) -> Rows:
    """The rows of a study, with those of the study whose targets it shares: target → variant → row."""
    return stored.study_rows(study)


@cache
def task_classes(study: str) -> dict[str, list[str]]:
    """The names of the classes of each of the study's tasks, in the order of the tasks."""
    return stored.task_classes(study)


@cache
def measurement(name: str) -> dict[str, Any] | None:
    """The content of ``results/NAME.json``; None if that was not measured."""
    return _read(RESULTS / f"{name}.json")


@cache
def device_measurement(name: str) -> dict[str, Any] | None:
    """The content of ``device/NAME.json``; None if that was not measured."""
    return _read(DEVICE / f"{name}.json")


@cache
def pooled_networks(pattern: str) -> list[dict[str, Any]]:
    """What is recorded about the training of the trunks, and other networks of many tasks, with such names."""
    files = sorted((RESULTS / "pooled").glob(f"{pattern}.json"))
    return [json.loads(file.read_text()) for file in files]


@cache
def lines(name: str) -> list[dict[str, Any]]:
    """The rows of ``results/NAME.jsonl``; none if that was not measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found
