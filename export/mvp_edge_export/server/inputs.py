"""What an export is made from: a verified network, the task's images, and what is to be written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NUMBER_FORMATS, NumberFormat
from mvp_edge_export.running.sessions import FORMATS
from mvp_edge_export.server.parity import Labels, Pixels
from mvp_edge_export.verified import Verified

RUNTIME_OF = {forms["fp32"]: runtime for runtime, forms in FORMATS.items()}
WRITABLE = tuple(RUNTIME_OF)
"""Formats that can be asked for: ``onnx``, ``openvino``."""


@dataclass(frozen=True)
class VerifiedNetwork:
    """A pruned network that may be exported, because it was verified for a profile."""

    module: nn.Module
    """float32 [N, 3, S, S] → logits [N, C]; it is not changed."""
    verified: Verified
    weights: Path
    """The file whose sha256 ``verified`` holds."""
    labels: Sequence[str]
    """Class names in the order of the logits."""
    preprocess: Preprocess
    """How images become the network's input."""
    kept: Mapping[str, Sequence[int]]
    """Unit group → indices of the backbone's units that the network keeps."""
    operators: Operators
    """The operators of one inference, from which its latency is predicted."""

    def check(self, profile: DeviceProfile) -> None:
        """Raise unless exactly these weights were verified for exactly this profile, and no budget is missed.

        Raises:
            BudgetMissed: a verdict is FAIL.
            BadInput: other weights or another profile were verified.
        """
        if not self.verified.passed:
            missed = "; ".join(str(verdict) for verdict in self.verified.failed)
            raise BudgetMissed(f"not exported, the network misses {profile.id}'s budgets: {missed}")
        if self.verified.profile_sha256 != profile.sha256:
            raise BadInput(
                f"the network was verified for profile {self.verified.profile}, which is not {profile.id} as"
                " it stands now: prune for this profile, or export with the one it was verified for"
            )
        self.verified.check_weights(self.weights)


@dataclass(frozen=True)
class TaskImages:
    """The task's images, uint8 [N, S, S, 3], and their classes, int64 [N]."""

    test: Pixels
    test_labels: Labels
    gate: Pixels | None = None
    """Real images of any split for the parity check; the test images if None."""
    validation: Pixels | None = None
    """Validation images, by which int8 is chosen."""
    validation_labels: Labels | None = None
    calibration: Pixels | None = None
    """Training images, from which int8 finds its ranges."""

    def check(self, size: int, classes: int, precisions: Sequence[NumberFormat]) -> None:
        """Raise unless there are the images that an export in these precisions needs, in this size."""
        if len(self.test) == 0:
            raise BadInput("export: there are no test images to compare the runtimes on")
        if self.test.shape[1:] != (size, size, 3) or self.test.dtype != np.uint8:
            raise ValueError(f"uint8 [N, {size}, {size}, 3] is needed")
        labels = self.test_labels
        if labels.shape != (len(self.test),) or labels.min() < 0 or labels.max() >= classes:
            raise ValueError("the labels of test images must be one class index an image")
        if "int8" in precisions and (self.validation is None or self.calibration is None):
            raise ValueError("int8 needs validation and calibration images")


@dataclass(frozen=True)
class ExportOptions:
    """What is written.

    Raises:
        BadInput: a format or precision is unknown, or they do not fit together.
    """

    formats: Sequence[str] = WRITABLE
    """Some of ``WRITABLE``."""
    precisions: Sequence[NumberFormat] = ("fp32",)
    """fp32; fp16, an OpenVINO IR with weights in float16; int8, the best quantisation for each runtime, if it is
    within the profile's accuracy limit."""
    dynamic_batch: bool = False
    """Leave the batch size open instead of fixing it to 1."""
    embed_preprocess: bool = False
    """Put the division by 255 and the normalisation into the graph."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in WRITABLE]
        if unknown or not self.formats:
            given = ", ".join(unknown) or "none"
            raise BadInput(f"{given}: choose some of {', '.join(WRITABLE)}", field="format")
        strange = [name for name in self.precisions if name not in NUMBER_FORMATS]
        if strange or not self.precisions:
            given = ", ".join(strange) or "none"
            raise BadInput(
                f"{given}: choose some of {', '.join(NUMBER_FORMATS)}", field="precision"
            )
        if "fp16" in self.precisions and "openvino" not in self.formats:
            raise BadInput(
                "fp16 is a form of the OpenVINO files: add openvino to --format", field="precision"
            )
