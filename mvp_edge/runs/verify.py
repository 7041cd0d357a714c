"""Verification: a network's cost and accuracy, compared with the budgets of a device.

Only its result, `Verified`, can be exported.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mvp_edge.pruning.finetune import accuracy, predict_logits
from mvp_edge.runs.files import ClassAccuracy, Example, TestFile
from mvp_edge.runs.sizing import PROTOCOL
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.cost import cross_check, file_bytes, measure
from mvp_edge.subnetwork.operators import operators
from mvp_edge.tasks.task import Images, Task
from mvp_edge_export.devices.latency import fastest, latency_laws, open_verdict
from mvp_edge_export.devices.operators import Operators
from mvp_edge_export.measuring.result import Cell, judge_latency
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.verified import Cost, Verdict, Verified


@dataclass(frozen=True)
class Verification:
    """What a network is verified against: the task's test images and the budgets of a profile."""

    backbone: Backbone
    task: Task
    profile: DeviceProfile
    reference: float | None = None
    """Top-1 of the fine-tuned unpruned backbone, 0..1, which the accuracy budget needs."""
    timed: Cell | None = None
    """The latency of a network with the same widths, if it was measured on the device."""

    def verify(self, module: nn.Module, weights_sha256: str) -> tuple[Verified, TestFile]:
        """Count, cross-check and test ``module``, whose weights have the given hash."""
        shape, batch = self.backbone.shape, self.profile.input.batch
        cost = measure(module, shape, batch)
        images = self.task.images("test", self.backbone.preprocess)
        logits = predict_logits(module, images.pixels, self.backbone.preprocess)
        top1 = accuracy(logits, images.labels)
        verified = Verified(
            weights_sha256=weights_sha256,
            cost=cost,
            cost_baseline=measure(self.backbone.outline(len(self.task.classes)), shape, batch),
            accuracy=top1,
            images=len(images.labels),
            verdicts=(
                *verdicts(cost, file_bytes(module), top1, self.reference, self.profile),
                *latency_verdicts(operators(module, shape, batch), self.profile, self.timed),
            ),
            profile=self.profile.id,
            profile_sha256=self.profile.sha256,
            checks=cross_check(module, shape),
        )
        return verified, tested(logits, images, self.task)


def verdicts(
    cost: Cost, file: int, top1: float, reference: float | None, profile: DeviceProfile
) -> list[Verdict]:
    """One verdict for each budget but latency; the accuracy budget is INCONCLUSIVE without a reference."""
    budgets = profile.budgets
    result = [
        _judge("flops", budgets.flops, cost.flops, "multiply-adds", "counted"),
        _judge("params", budgets.params, cost.params, "parameters", "counted"),
        _judge("file", budgets.file, file, "bytes", "predicted", "the export measures the file"),
        _judge(
            "memory",
            budgets.memory,
            cost.memory_bytes,
            "bytes",
            "predicted",
            "mvp-edge bench measures it",
        ),
    ]
    most = profile.accuracy.max_drop
    drop = None if reference is None else 100 * (reference - top1)
    if most is None or drop is None:
        word: Literal["UNCHECKED", "INCONCLUSIVE"] = "UNCHECKED" if most is None else "INCONCLUSIVE"
        note = "" if most is None else "needs the fine-tuned unpruned backbone: --reference"
        result.append(
            Verdict(
                budget="accuracy.max_drop",
                limit=most,
                reached=drop,
                unit="points",
                verdict=word,
                basis="none" if drop is None else "measured",
                note=note,
            )
        )
    else:
        result.append(_judge("accuracy.max_drop", most, drop, "points", "measured"))
    return result


def latency_verdicts(
    network: Operators, profile: DeviceProfile, timed: Cell | None
) -> Iterator[Verdict]:
    """One verdict for each latency budget: PASS or FAIL only if the latency was measured on the device."""
    limits = profile.budgets.latency
    predicted = fastest(latency_laws(profile), network)
    for key in ("p50", "p90"):
        limit = getattr(limits, key, None)
        if limit is None:
            continue
        if timed is not None:
            measured = judge_latency(key, limit, timed, (), PROTOCOL)
            where = f"{timed.runtime}, threads {timed.threads}, these widths with random weights"
            yield measured.model_copy(update={"note": f"{measured.note}; {where}".lstrip("; ")})
            continue
        yield open_verdict(key, limit, predicted)


def _judge(
    budget: str, limit: float | None, reached: float, unit: str, basis: Any, note: str = ""
) -> Verdict:
    word: Any = "UNCHECKED" if limit is None else "PASS" if reached <= limit else "FAIL"
    return Verdict(
        budget=budget, limit=limit, reached=reached, unit=unit, verdict=word, basis=basis, note=note
    )


def tested(logits: NDArray[np.float32], images: Images, task: Task) -> TestFile:
    """Accuracy per class, the confusion matrix, and a few example images."""
    predicted = logits.argmax(1)
    count = len(task.classes)
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (images.labels, predicted), 1)
    per_class = [
        ClassAccuracy(name=name, n=int(row.sum()), top1=_share(row[i], row.sum()))
        for i, (name, row) in enumerate(zip(task.classes, confusion, strict=True))
    ]
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    examples = [
        Example(
            file=task.splits["test"][i].file,
            true=task.classes[images.labels[i]],
            predicted=task.classes[predicted[i]],
            probability=min(1.0, float(probabilities[i, predicted[i]])),
            jpeg_base64=_thumbnail(images.pixels[i]),
        )
        for i in _shown(probabilities, images.labels)
    ]
    return TestFile(
        top1=accuracy(logits, images.labels),
        n=len(images.labels),
        per_class=tuple(per_class),
        confusion=tuple(map(tuple, confusion.tolist())),
        examples=tuple(examples),
    )


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _shown(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> list[int]:
    """Indices of up to 16 examples: the most confident mistakes, then one confident hit of each class."""
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    mistakes = list(wrong[np.argsort(-sure[wrong], kind="stable")][:8])
    hits = []
    for label in np.unique(labels)[:8]:
        right = np.flatnonzero((predicted == label) & (labels == label))
        hits += list(right[np.argsort(-sure[right], kind="stable")][:1])
    return [int(i) for i in (*mistakes, *hits)]


def _thumbnail(pixels: NDArray[np.uint8], side: int = 64) -> str:
    """A JPEG of ``side`` × ``side`` pixels in base64; smaller pictures are enlarged without smoothing."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    smooth = Image.Resampling.NEAREST if image.width < side else Image.Resampling.LANCZOS
    into = io.BytesIO()
    image.resize((side, side), smooth).save(into, "JPEG", quality=85)
    return base64.b64encode(into.getvalue()).decode()
