"""The latency of a network on a device that it has not been copied to yet.

profile with a calibration   → predicted, with the error that held-out networks had
profile with peak figures    → an estimate
neither                      → nothing is said
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mvp_edge_export.devices.law import Law, roofline
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import Calibrated, Peak
from mvp_edge_export.verified import Verdict

BANDWIDTH_REACHED = 0.5
"""Share of the memory's bandwidth that networks are assumed to reach. [choice]"""
ESTIMATED_P90_OVER_P50 = 1.1


@dataclass(frozen=True)
class LatencyLaw:
    """How long networks take on a device in one runtime, and how sure that is."""

    law: Law
    runtime: str | None
    """None for an estimate, which knows of no runtime."""
    threads: int
    p90_over_p50: float
    basis: Literal["predicted", "estimate"]
    error: float | None
    """90th percentile of |error| on held-out networks, as a share; None for an estimate."""

    def predict(self, operators: Operators) -> "Prediction":
        """The time of one inference of a network."""
        p50 = self.law.milliseconds(operators)
        return Prediction(p50, self.p90_over_p50 * p50, self)

    def scaled(self, factor: float) -> "LatencyLaw":
        """The same, ``factor`` times as slow."""
        return LatencyLaw(
            self.law.scaled(factor),
            self.runtime,
            self.threads,
            self.p90_over_p50,
            self.basis,
            self.error,
        )

    def __str__(self) -> str:
        if self.runtime is None:
            return "estimated from the hardware's peak figures"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"predicted for {self.runtime}, {threads}, 9 in 10 networks within {100 * (self.error or 0):.0f} %"


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one inference."""

    p50: float
    p90: float
    by: LatencyLaw


def latency_laws(profile: DeviceProfile) -> tuple[LatencyLaw, ...]:
    """What is known of a device's latency in float32: the calibrated fits, else an estimate, else nothing.

    Fits of runtimes that the profile does not name, or of more threads than it allows, are left out.
    """
    calibration, peak, runtime = profile.calibration, profile.hardware.peak, profile.runtime
    if calibration is not None:
        fits = [
            _calibrated(fit)
            for fit in calibration.fits
            if fit.precision == "fp32"
            and fit.runtime in runtime.backends
            and fit.threads <= runtime.threads
        ]
        if fits:
            return tuple(fits)
    if peak is None:
        return ()
    return (_estimated(peak, runtime.threads),)


def fastest(laws: Sequence[LatencyLaw], operators: Operators) -> Prediction | None:
    """The prediction for the runtime and threads in which the network is fastest; None without laws."""
    return min((law.predict(operators) for law in laws), key=lambda one: one.p50, default=None)


def open_verdict(key: str, limit: float, predicted: Prediction | None) -> Verdict:
    """The verdict on a latency budget (``p50`` or ``p90``) that was not measured: it stays open."""
    return Verdict(
        budget=f"latency.{key}",
        limit=limit,
        reached=None if predicted is None else getattr(predicted, key),
        unit="ms",
        verdict="INCONCLUSIVE",
        basis="none" if predicted is None else predicted.by.basis,
        note=f"{'nothing is known of its speed' if predicted is None else predicted.by}; mvp-edge bench, on the"
        " device, measures it",
    )


def _calibrated(fit: Calibrated) -> LatencyLaw:
    return LatencyLaw(
        fit.law, fit.runtime, fit.threads, fit.p90_over_p50, "predicted", fit.error.p90
    )


@cache
def _estimated(peak: Peak, threads: int) -> LatencyLaw:
    law = roofline(peak.reached * peak.macs_per_second, BANDWIDTH_REACHED * peak.bytes_per_second)
    return LatencyLaw(law, None, threads, ESTIMATED_P90_OVER_P50, "estimate", None)
