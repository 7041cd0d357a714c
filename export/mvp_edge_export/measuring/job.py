"""The `bench` command: measures a bundle, writes the result, and chooses the variant to ship."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.errors import BadInput, BudgetMissed, MvpEdgeError
from mvp_edge_export.manifest import Manifest
from mvp_edge_export.measuring.choice import check_choosable, choose
from mvp_edge_export.measuring.result import BenchResult
from mvp_edge_export.profile import DeviceProfile, load_profile
from mvp_edge_export.storage import write_json


@dataclass(frozen=True)
class Outcome:
    """The result of a measurement, and the choice that was based on it."""

    result: BenchResult
    file: Path
    """File that the result was written to."""
    chosen: Manifest | None = None
    """The bundle's new manifest; None if no choice was made."""
    refused: MvpEdgeError | None = None
    """Error because of which a requested choice was not made; None otherwise."""

    @property
    def facts(self) -> dict[str, Any]:
        """The result as a JSON value, including the choice."""
        facts = self.result.model_dump(mode="json", by_alias=True)
        return facts if self.chosen is None else {**facts, "choice": self.chosen.choice}

    def check(self, where: str) -> None:
        """Raise the error of a measurement whose result was already shown.

        Args:
            where: name of the measured machine for the message.

        Raises:
            BadInput: a choice was requested and could not be made.
            BudgetMissed: no candidate meets the budgets, or a verdict is FAIL.
        """
        if self.refused is not None:
            raise self.refused
        missed = [str(verdict) for verdict in self.result.verdicts if verdict.verdict == "FAIL"]
        if missed:
            raise BudgetMissed(f"missed on {where}: {'; '.join(missed)}")


@dataclass(frozen=True)
class BenchJob:
    """A bundle to measure; all inputs are checked before the measurement, which takes minutes."""

    bundle: Bundle
    given: DeviceProfile | None
    """Profile whose budgets are judged; None means the bundle's own."""
    file: Path
    """File for the result."""
    choose: bool
    """Whether to choose the variant that the bundle ships."""

    @classmethod
    def prepare(
        cls, bundle: Path, device: str | None, out: Path | None, *, choose: bool, here: bool
    ) -> "BenchJob":
        """Open the bundle and check all arguments.

        Args:
            bundle: folder of the bundle.
            device: name or file of the profile whose budgets are judged; None takes the bundle's.
            out: file for the result; None is ``bench.json`` in the folder that contains the bundle.
            choose: whether to choose the variant that the bundle ships by this measurement.
            here: whether this machine is measured, and not a host.

        Raises:
            BadInput: a file cannot be read or written, or no choice would be possible.
        """
        loaded = load_bundle(bundle)
        given = load_profile(device) if device else None
        file = out or loaded.path.resolve().parent / "bench.json"
        if file.is_dir() or not os.access(file.absolute().parent, os.W_OK):
            raise BadInput(f"{file}: cannot be written there", field="out")
        job = cls(loaded, given, file, choose)
        if choose:
            check_choosable(loaded, job.profile, here=here)
        return job

    @property
    def profile(self) -> DeviceProfile:
        """The profile whose budgets are judged."""
        return self.given or self.bundle.manifest.profile

    def finish(self, result: BenchResult) -> Outcome:
        """Write the result and, if requested, choose the variant that the bundle ships."""
        write_json(self.file, result.model_dump(mode="json", by_alias=True))
        if not self.choose:
            return Outcome(result, self.file)
        try:
            return Outcome(result, self.file, chosen=choose(self.bundle, result).manifest)
        except MvpEdgeError as error:  # the caller shows the result before the error
            return Outcome(result, self.file, refused=error)
