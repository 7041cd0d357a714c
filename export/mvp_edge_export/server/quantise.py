"""int8 by post-training quantisation: several schemes are tried, and the best one is taken.

    training images ─→ ranges ─→ one file per scheme ─ validation images ─→ accuracy, speed ─→ the best

Which parts of a network must stay in float is found by measurement, not by rule.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mvp_edge_export.manifest import RuntimeAccuracy, Trial
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import Session
from mvp_edge_export.server import int8_onnx, int8_openvino
from mvp_edge_export.server.parity import MAX_DROP, Floats, Labels, accuracy_of, beyond_chance

CALIBRATION_IMAGES = 256
"""Number of training images from which ranges are found; fewer where the task has fewer."""
MOST_JUDGED = 1000
"""Largest number of validation images by which a scheme is judged; evenly spread where there are more."""

_AS_FAST = 1.03
"""Times within this factor count as equal: an export does not measure more precisely."""
_VNNI = ("avx_vnni", "avx512_vnni")

Opened = Callable[[Path], Session]


@dataclass(frozen=True)
class Images:
    """Images as the network takes them, with the logits of the float32 network.

    Args:
        inputs: [N, 3, S, S].
        targets: the right classes [N].
        reference: PyTorch's logits [N, C].
    """

    inputs: Floats
    targets: Labels
    reference: Floats

    def spread(self, most: int) -> "Images":
        """At most ``most`` of the images, evenly spread."""
        if len(self.targets) <= most:
            return self
        rows = np.linspace(0, len(self.targets) - 1, most).round().astype(int)
        return Images(self.inputs[rows], self.targets[rows], self.reference[rows])


@dataclass(frozen=True)
class Quantised:
    """The scheme that was taken with its file, and all schemes that were tried."""

    model: Path
    chosen: Trial
    trials: tuple[Trial, ...]
    why: str


@dataclass(frozen=True)
class Quantiser:
    """Quantises float32 networks for one device, and judges the result."""

    profile: DeviceProfile
    """The device: its processor decides about number formats, its ``accuracy.max_quant_drop`` is the limit."""
    calibration: Floats
    """Training images as the network takes them, [N, 3, S, S], from which int8 finds its ranges."""
    validation: Images
    """The images by which schemes are compared."""
    progress: Callable[[str], None] = field(default=lambda phase: None)
    """Told each scheme as it begins."""

    def best(self, source: Path, runtime: str, opened: Opened, folder: Path) -> Quantised:
        """Try every scheme of a runtime and take the best one.

        Schemes within the accuracy limit whose accuracies do not differ significantly are equals. The fastest of
        them is taken, and among equally fast ones the one with the fewest layers in float. Where no scheme is
        within the limit, the most accurate one is taken, and its trial says that it did not pass.

        Args:
            source: the float32 ``.onnx`` file.
            runtime: a key of ``sessions.RUNTIMES``.
            opened: opens a file of this runtime.
            folder: where the files go.
        """
        judged_by = self.validation.spread(MOST_JUDGED)
        trials, models, wrong = [], [], []
        begin = time.monotonic()
        for scheme, model, inside, outside in self._attempts(source, runtime, folder):
            self.progress(f"int8 for {runtime}: {scheme.about}")
            session = opened(model)
            logits, milliseconds = _timed(session, judged_by.inputs)
            accuracy = accuracy_of(judged_by.reference, logits, judged_by.targets, session)
            now = time.monotonic()
            trials.append(
                Trial(
                    scheme=scheme.name,
                    about=scheme.about,
                    int8_layers=inside,
                    float_layers=outside,
                    validation=accuracy,
                    passed=passes(accuracy, self.profile),
                    milliseconds=milliseconds,
                    seconds=now - begin,
                )
            )
            models.append(model)
            wrong.append(logits.argmax(axis=1) != judged_by.targets)
            begin = now
        best = best_trial(trials, wrong)
        why = _why(trials[best], self.profile)
        return Quantised(models[best], trials[best], tuple(trials), why)

    def _attempts(
        self, source: Path, runtime: str, folder: Path
    ) -> Iterator[tuple[int8_onnx.Scheme | int8_openvino.Scheme, Path, int, int]]:
        """Each scheme with its file and the number of layers in int8 and in float."""
        arch, isa = self.profile.hardware.arch, self.profile.hardware.isa
        full_range = arch != "x86_64" or any(flag in isa for flag in _VNNI)
        if runtime == "onnxruntime":
            return int8_onnx.attempts(
                source, self.calibration, folder, arch=arch, full_range=full_range
            )
        return int8_openvino.attempts(source, self.calibration, folder, full_range=full_range)


def passes(accuracy: RuntimeAccuracy, profile: DeviceProfile) -> bool:
    """Whether int8 loses at most the profile's ``max_quant_drop`` points.

    Where the profile sets no limit: at most what the export gate allows any runtime to lose.
    """
    limit = profile.accuracy.max_quant_drop
    if limit is not None:
        return accuracy.drop <= limit
    lost, gained = accuracy.lost, accuracy.gained
    return lost - gained <= MAX_DROP * accuracy.images or not beyond_chance(lost, gained)


def _timed(session: Session, images: Floats) -> tuple[Floats, float]:
    """The logits, and the time of the fastest image in milliseconds (other load can only slow it down)."""
    logits, times = [], []
    for index in range(len(images)):
        begin = time.perf_counter()
        logits.append(session.run(images[index : index + 1]))
        times.append(time.perf_counter() - begin)
    return np.concatenate(logits), 1e3 * min(times)


def best_trial(trials: list[Trial], wrong: list[np.ndarray]) -> int:
    """Index of the trial that is taken.

    Args:
        trials: one for each scheme.
        wrong: for each trial which images it got wrong, bool [N].
    """
    order = sorted(range(len(trials)), key=lambda k: -trials[k].validation.top1)
    allowed = [k for k in order if trials[k].passed]
    if not allowed:
        return order[0]
    first = allowed[0]
    equals = [
        k
        for k in allowed
        if not beyond_chance(
            int((wrong[k] & ~wrong[first]).sum()), int((wrong[first] & ~wrong[k]).sum())
        )
    ]
    slowest = _AS_FAST * min(trials[k].milliseconds for k in equals)
    fast = [k for k in equals if trials[k].milliseconds <= slowest]
    return min(fast, key=lambda k: (trials[k].float_layers, trials[k].milliseconds))


def _why(trial: Trial, profile: DeviceProfile) -> str:
    limit = profile.accuracy.max_quant_drop
    allowed = "no limit is set" if limit is None else f"{limit:g} are allowed"
    drop = trial.validation.drop
    change = f"loses {drop:.2f}" if drop >= 0 else f"gains {-drop:.2f}"
    return f"{change} points on {trial.validation.images} validation images, {allowed}"
