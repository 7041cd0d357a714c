"""One `bench` from the bundle to the file of its result, and to the choice of what the bundle ships."""

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
    """What was measured, and what was chosen by it."""

    result: BenchResult
    file: Path
    """Where the result was written."""
    chosen: Manifest | None = None
    """The bundle's new manifest, where a choice was asked for and made."""
    refused: MvpEdgeError | None = None
    """Why no choice could be made, where one was asked for."""

    @property
    def facts(self) -> dict[str, Any]:
        """The result as JSON, with the choice."""
        facts = self.result.model_dump(mode="json", by_alias=True)
        return facts if self.chosen is None else {**facts, "choice": self.chosen.choice}

    def check(self, where: str) -> None:
        """Raise why no choice was made, or BudgetMissed if a verdict is FAIL."""
        if self.refused is not None:
            raise self.refused
        missed = [str(verdict) for verdict in self.result.verdicts if verdict.verdict == "FAIL"]
        if missed:
            raise BudgetMissed(f"missed on {where}: {'; '.join(missed)}")


@dataclass(frozen=True)
class BenchJob:
    """A bundle that is to be measured, checked before minutes of measuring."""

    bundle: Bundle
    given: DeviceProfile | None
    """The profile to judge by, where it is not the bundle's."""
    file: Path
    choose: bool

    @classmethod
    def prepare(
        cls, bundle: Path, device: str | None, out: Path | None, *, choose: bool, here: bool
    ) -> "BenchJob":
        """Open and check everything.

        Args:
            bundle: the bundle's folder.
            device: name or file of another profile to judge by.
            out: where the result goes; bench.json beside the bundle if None.
            choose: whether the bundle is to ship what is fastest by this measurement.
            here: whether this machine measures.

        Raises:
            BadInput: one of them cannot be read or written, or no choice can be made.
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
        """The profile that the result is judged by."""
        return self.given or self.bundle.manifest.profile

    def finish(self, result: BenchResult) -> Outcome:
        """Write the result; choose what the bundle ships, if that is asked for."""
        write_json(self.file, result.model_dump(mode="json", by_alias=True))
        if not self.choose:
            return Outcome(result, self.file)
        try:
            return Outcome(result, self.file, chosen=choose(self.bundle, result).manifest)
        except MvpEdgeError as error:  # what was measured is shown first
            return Outcome(result, self.file, refused=error)
