"""Compares one network with the budgets of several devices.

    bundle, run or ONNX file → Footprint → verdict for each budget of each profile → table

No network is run. Values that were measured on a device are used where they exist; other values are
counted, predicted or estimated. A latency that was not measured is never a PASS.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from mvp_edge_export.devices.latency import fastest, latency_laws, open_verdict
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.quantities import format_bytes, format_count, format_duration
from mvp_edge_export.verified import Basis, Verdict, VerdictWord


@dataclass(frozen=True)
class Footprint:
    """The resources that a network needs."""

    flops: int
    """Multiply-adds for one image."""
    params: int
    """Number of parameters."""
    file: int
    """Size of the model file in bytes."""
    file_basis: Basis
    """How ``file`` was obtained."""
    memory: int
    """Size of the weights and the peak activations in bytes."""
    operators: Operators
    measured: BenchResult | None = None
    """Measurement of the network's bundle; None if there is none."""


@dataclass(frozen=True)
class DeviceFit:
    """Verdicts of a network on the budgets of one device."""

    profile: DeviceProfile
    verdicts: tuple[Verdict, ...]

    @property
    def verdict(self) -> VerdictWord:
        """FAIL if any budget fails, PASS if all pass, UNCHECKED without budgets, else INCONCLUSIVE."""
        words = {one.verdict for one in self.verdicts} - {"UNCHECKED"}
        if "FAIL" in words:
            return "FAIL"
        return "UNCHECKED" if not words else "PASS" if words == {"PASS"} else "INCONCLUSIVE"

    def to_json(self) -> dict[str, Any]:
        """The fit as JSON values."""
        return {
            "profile": self.profile.id,
            "name": self.profile.name,
            "verdict": self.verdict,
            "budgets": [one.model_dump(mode="json") for one in self.verdicts],
        }


def fit_all(network: Footprint, profiles: Iterable[DeviceProfile]) -> list[DeviceFit]:
    """Compare a network with the budgets of each profile."""
    return [DeviceFit(profile, tuple(_verdicts(network, profile))) for profile in profiles]


def _verdicts(network: Footprint, profile: DeviceProfile) -> Iterator[Verdict]:
    budgets, batch = profile.budgets, profile.input.batch
    known: dict[str, Verdict] = {}
    if network.measured is not None and network.measured.profile_sha256 == profile.sha256:
        known = {one.budget: one for one in network.measured.verdicts}
    yield _judged("flops", budgets.flops, network.flops, "multiply-adds", "counted")
    yield _judged("params", budgets.params, network.params, "parameters", "counted")
    yield _judged("file", budgets.file, network.file, "B", network.file_basis)
    yield known.get("memory") or _judged("memory", budgets.memory, network.memory, "B", "predicted")
    predicted = fastest(latency_laws(profile), network.operators) if batch == 1 else None
    for key in ("p50", "p90"):
        limit = getattr(budgets.latency, key, None)
        if limit is None:
            continue
        yield known.get(f"latency.{key}") or open_verdict(key, limit, predicted)


def _judged(budget: str, limit: float | None, reached: float, unit: str, basis: Basis) -> Verdict:
    word: VerdictWord = "UNCHECKED" if limit is None else "PASS" if reached <= limit else "FAIL"
    return Verdict(
        budget=budget, limit=limit, reached=reached, unit=unit, verdict=word, basis=basis
    )


_MARKS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "UNCHECKED": "·"}
_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "UNCHECKED": "dim"}
_COLUMNS = {"flops": "multiply-adds", "params": "parameters", "file": "file", "memory": "memory",
            "latency": "latency"}  # fmt: skip


def fit_table(fits: Iterable[DeviceFit]) -> Table:
    """A table with one row per device: value and limit of each budget."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        caption="reached / limit: ✓ within, ✗ over, ? open, · no limit; ~ predicted, ≈ estimated, "
        "others counted or measured",
    )
    table.add_column("device", no_wrap=True)
    table.add_column("")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for fit in fits:
        table.add_row(
            fit.profile.id,
            Text(fit.verdict, style=_COLOURS[fit.verdict]),
            *(_cell(fit, name) for name in _COLUMNS),
        )
    return table


def _cell(fit: DeviceFit, name: str) -> Text:
    own = [one for one in fit.verdicts if one.budget.partition(".")[0] == name]
    if not own:
        return Text("·", style="dim")
    # Of two latency budgets, show the one with the larger ratio of value to limit.
    one = max(own, key=lambda v: (v.reached or 0) / (v.limit or float("inf")))
    shown = "-" if one.reached is None else _figure(name, one.reached)
    limit = "" if one.limit is None else f"/{_figure(name, one.limit)}"
    basis = {"predicted": "~", "estimate": "≈"}.get(one.basis, "")
    return Text(f"{basis}{shown}{limit} {_MARKS[one.verdict]}", style=_COLOURS[one.verdict])


def _figure(name: str, value: float) -> str:
    if name == "latency":
        return format_duration(value)
    return format_bytes(value) if name in ("file", "memory") else format_count(value)
