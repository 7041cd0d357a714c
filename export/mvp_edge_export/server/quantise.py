"""int8 by post-training quantisation: named schemes are tried, judged, and one is taken.

    training images ─→ ranges ─→ a file a scheme ─ validation images ─→ accuracy, speed ─→ the best

Which parts of a network must stay in float is thus found by measurement, not by rule. Server side.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvp_edge_export.manifest import RuntimeAccuracy, Trial
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.running.sessions import Session
from mvp_edge_export.server import int8_onnx, int8_openvino
from mvp_edge_export.server.parity import MAX_DROP, Floats, Labels, accuracy_of, beyond_chance

CALIBRATION_IMAGES = 256
"""Training images that the ranges are found on; fewer where the task has fewer."""
MOST_JUDGED = 1000
"""Validation images that a scheme is judged by; of more, so many spread evenly."""

_AS_FAST = 1.03
"""Times that differ by less are equal: the machine is not measured more finely while it exports."""
_VNNI = ("avx_vnni", "avx512_vnni")

Opened = Callable[[Path], Session]


@dataclass(frozen=True)
class Images:
    """Images as the network takes them, and what float32 makes of them.

    Args:
        inputs: [N, 3, S, S].
        targets: the right classes [N].
        reference: PyTorch's logits [N, C].
    """

    inputs: Floats
    targets: Labels
    reference: Floats

    def spread(self, most: int) -> "Images":
        """At most so many of them, spread evenly."""
        if len(self.targets) <= most:
            return self
        rows = np.linspace(0, len(self.targets) - 1, most).round().astype(int)
        return Images(self.inputs[rows], self.targets[rows], self.reference[rows])


@dataclass(frozen=True)
class Quantised:
    """The scheme that was taken, all that were tried, and its file."""

    model: Path
    chosen: Trial
    trials: tuple[Trial, ...]
    why: str


def quantised(
    source: Path,
    runtime: str,
    opened: Opened,
    *,
    calibration: Floats,
    validation: Images,
    profile: DeviceProfile,
    folder: Path,
    progress: Callable[[str], None],
) -> Quantised:
    """Try every scheme of a runtime and take the best.

    Of the schemes within the accuracy gate, those whose accuracy is the best but for chance are
    equals; the fastest of them is taken, of equally fast ones that with the fewest layers in float.
    Where none keeps within the gate, the most accurate is, and its trial says that it did not pass.

    Args:
        source: the float32 ``.onnx`` file.
        runtime: a key of ``sessions.RUNTIMES``.
        opened: opens a file of this runtime.
        calibration: training images as the network takes them [N, 3, S, S].
        validation: what the schemes are judged by.
        profile: the device; its architecture decides about number formats, its
            ``accuracy.max_quant_drop`` is the gate.
        folder: where the files go.
        progress: told each scheme as it begins.
    """
    arch, isa = profile.hardware.arch, profile.hardware.isa
    full_range = arch != "x86_64" or any(flag in isa for flag in _VNNI)
    found: Iterator[tuple[int8_onnx.Scheme | int8_openvino.Scheme, Path, int, int]]
    if runtime == "onnxruntime":
        found = int8_onnx.attempts(source, calibration, folder, arch=arch, full_range=full_range)
    else:
        found = int8_openvino.attempts(source, calibration, folder, full_range=full_range)
    judged_by = validation.spread(MOST_JUDGED)
    trials, models, wrong = [], [], []
    begin = time.monotonic()
    for scheme, model, inside, outside in found:
        progress(f"int8 for {runtime}: {scheme.about}")
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
                passed=passes(accuracy, profile),
                milliseconds=milliseconds,
                seconds=now - begin,
            )
        )
        models.append(model)
        wrong.append(logits.argmax(axis=1) != judged_by.targets)
        begin = now
    best = best_trial(trials, wrong)
    return Quantised(models[best], trials[best], tuple(trials), _why(trials[best], profile))


def passes(accuracy: RuntimeAccuracy, profile: DeviceProfile) -> bool:
    """Whether int8 loses no more than the profile's ``max_quant_drop`` points.

    Without a limit there: no more than the export gate lets any runtime lose.
    """
    limit = profile.accuracy.max_quant_drop
    if limit is not None:
        return accuracy.drop <= limit
    lost, gained = accuracy.lost, accuracy.gained
    return lost - gained <= MAX_DROP * accuracy.images or not beyond_chance(lost, gained)


def _timed(session: Session, images: Floats) -> tuple[Floats, float]:
    """The logits, and the milliseconds of the fastest image: other work only ever slows down."""
    logits, times = [], []
    for index in range(len(images)):
        begin = time.perf_counter()
        logits.append(session.run(images[index : index + 1]))
        times.append(time.perf_counter() - begin)
    return np.concatenate(logits), 1e3 * min(times)


def best_trial(trials: list[Trial], wrong: list[np.ndarray]) -> int:
    """The index of the trial that is taken.

    Args:
        trials: one for each scheme that was tried.
        wrong: for each trial the images it got wrong, bool [N].
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
