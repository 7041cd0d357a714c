"""The candidates for shipping: forms of the pruned network that were tested, with those that fail kept out.

    files in float32, float16 ─ accuracy in the runtime ─┐
    int8 by the best scheme ─ limit max_quant_drop ──────┴─ file budget ─→ candidates, models

PyTorch's logits are the reference.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from mvp_edge_export.errors import BadInput, BudgetMissed, GateFailed
from mvp_edge_export.manifest import Candidate, RuntimeAccuracy, parts_of
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.quantities import format_bytes
from mvp_edge_export.running.sessions import FORMATS, RUNTIMES, Session
from mvp_edge_export.server.convert import PLACES
from mvp_edge_export.server.parity import Floats, accuracy_of, check_accuracy
from mvp_edge_export.server.quantise import Images, Quantiser


@dataclass(frozen=True)
class Judges:
    """The images with which candidates are made and tested, as the network takes them."""

    test: Images
    validation: Images | None = None
    calibration: Floats | None = None
    progress: Callable[[str], None] = field(default=lambda phase: None)


def float_candidates(
    bundle: Path, models: Mapping[str, str], judges: Judges
) -> Iterator[Candidate]:
    """Every float file, tested in its runtime as it will be deployed.

    Raises:
        GateFailed: a runtime is significantly less accurate than PyTorch.
    """
    for form, name in models.items():
        runtime, precision = _of(form)
        session = loaded(runtime, bundle / name)
        test = _judged(session, judges.test)
        check_accuracy(test, f"{runtime} ({form})")
        yield Candidate(
            format=form,
            runtime=runtime,
            precision=precision,
            bytes=_size(bundle, name),
            validation=None if judges.validation is None else _judged(session, judges.validation),
            test=test,
            kept=True,
            why="the reference" if precision == "fp32" else "as accurate as fp32 but for chance",
        )


def int8_candidate(
    bundle: Path, graph: onnx.ModelProto, runtime: str, judges: Judges, profile: DeviceProfile
) -> Candidate:
    """The best int8 form for a runtime; its files are put into the bundle if it is within the accuracy limit.

    Args:
        bundle: the bundle's directory.
        graph: the float32 graph with its description.
        runtime: a key of ``sessions.RUNTIMES``.
        judges: calibration, validation and test images.
        profile: the device, for its number formats and its accuracy limit.
    """
    assert judges.validation is not None
    assert judges.calibration is not None
    with tempfile.TemporaryDirectory(dir=bundle) as scratch:
        source = Path(scratch) / "source.onnx"
        source.write_bytes(graph.SerializeToString(deterministic=True))
        quantiser = Quantiser(profile, judges.calibration, judges.validation, judges.progress)
        best = quantiser.best(source, runtime, lambda model: loaded(runtime, model), Path(scratch))
        form = FORMATS[runtime]["int8"]
        if form == "onnx-int8":
            _describe(best.model, graph, best.chosen.scheme)
        candidate = Candidate(
            format=form,
            runtime=runtime,
            precision="int8",
            bytes=_size(best.model.parent, best.model.name),
            scheme=best.chosen.scheme,
            trials=best.trials,
            calibration_images=len(judges.calibration),
            validation=best.chosen.validation,
            test=_judged(loaded(runtime, best.model), judges.test),
            kept=best.chosen.passed,
            why=best.why,
        )
        if candidate.kept:
            for part, place in zip(parts_of(best.model.name), parts_of(PLACES[form]), strict=True):
                (best.model.parent / part).rename(bundle / place)
    return candidate


def _describe(model: Path, source: onnx.ModelProto, scheme: str) -> None:
    """Copy the description of the source into a quantised file, and remove operator sets that it does not use."""
    quantised = onnx.load(model)
    used = {node.domain for node in quantised.graph.node}
    opsets = [one for one in quantised.opset_import if one.domain in used]
    del quantised.opset_import[:]
    quantised.opset_import.extend(opsets)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(source.metadata_props)
    for key, value in (("precision", "int8"), ("scheme", scheme)):
        quantised.metadata_props.add(key=f"mvp_edge.{key}", value=value)
    model.write_bytes(quantised.SerializeToString(deterministic=True))


def asked_for(
    candidates: Sequence[Candidate], precisions: Sequence[NumberFormat]
) -> list[Candidate]:
    """The candidates, with those in other precisions than the wanted ones marked as kept out.

    (float32 is always made, because the others are compared with it.)

    Raises:
        GateFailed: no candidate is left.
    """
    wanted = ", ".join(precisions)
    found = [
        one
        if one.precision in precisions
        else one.model_copy(update={"kept": False, "why": f"only {wanted} may be used"})
        for one in candidates
    ]
    if not any(one.kept for one in found):
        reasons = "; ".join(f"{one.format} {one.why}" for one in found if one.precision == "int8")
        raise GateFailed(
            f"export gate: nothing in {wanted} passes: {reasons}; no bundle was written"
        )
    return found


def within_budget(candidates: Sequence[Candidate], profile: DeviceProfile) -> list[Candidate]:
    """The candidates, with those over the file budget marked as kept out.

    Raises:
        BudgetMissed: no candidate is left.
    """
    limit = profile.budgets.file

    def judged(one: Candidate) -> Candidate:
        if limit is None or not one.kept or one.bytes <= limit:
            return one
        why = f"{format_bytes(one.bytes)} are over the file budget of {format_bytes(limit)}"
        return one.model_copy(update={"kept": False, "why": why})

    found = [judged(one) for one in candidates]
    if limit is not None and not any(one.kept for one in found):
        least = min(found, key=lambda one: one.bytes)
        raise BudgetMissed(
            f"budget file of {profile.id}: the smallest form, {least.format}, has"
            f" {format_bytes(least.bytes)} ({least.bytes:,} B), {least.bytes - limit:,} B over the"
            f" limit of {format_bytes(limit)}; prune with a smaller --keep; no bundle was written"
        )
    return found


def loaded(runtime: str, model: Path, **settings: Any) -> Session:
    """A session for a file that this export wrote.

    Raises:
        GateFailed: the runtime refuses the file.
    """
    try:
        return RUNTIMES[runtime](model, threads=torch.get_num_threads(), **settings)
    except BadInput as error:  # not the user's input, but our own file
        raise GateFailed(f"export gate: {error}; no bundle was written") from error


def _judged(session: Session, images: Images) -> RuntimeAccuracy:
    return accuracy_of(images.reference, session.run(images.inputs), images.targets, session)


def _of(form: str) -> tuple[str, NumberFormat]:
    return next(
        (runtime, precision)
        for runtime, forms in FORMATS.items()
        for precision, name in forms.items()
        if name == form
    )


def _size(folder: Path, model: str) -> int:
    return sum((folder / part).stat().st_size for part in parts_of(model))
