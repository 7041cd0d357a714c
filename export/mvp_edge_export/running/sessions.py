"""The runtimes that a bundle can run in: one class each, with the same few methods.

A runtime is imported when its session is made, never before, so that a device installs only the
one it uses. Adding a runtime is one class here and one line in ``RUNTIMES``.
"""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from mvp_edge_export.errors import BadInput
from mvp_edge_export.measuring.machine import available_memory
from mvp_edge_export.model_files import IR_VERSIONS, ir_version
from mvp_edge_export.profile_sections import NUMBER_FORMATS, NumberFormat
from mvp_edge_export.quantities import format_bytes
from mvp_edge_export.verified import Cost

if TYPE_CHECKING:
    from mvp_edge_export.bundle import Bundle

_REPORTER = "openvino_telemetry"

Floats = npt.NDArray[np.float32]
Arithmetic = Literal["f32"]
Shape = tuple[int | None, ...]
"""Sizes of a tensor's axes; None stands for one that is open."""


class Session(Protocol):
    """A network, loaded and compiled for this machine's CPU."""

    name: str
    """The runtime: a key of ``RUNTIMES``."""
    version: str
    arithmetic: str
    """What it computes in, chosen by the runtime or given: ``f32``, ``bf16`` or ``f16``."""
    options: dict[str, Any]
    """What was asked of the runtime beyond its defaults."""
    takes: Shape
    """Of its input, [N, 3, S, S]."""
    gives: Shape
    """Of its output, [N, C]."""

    def run(self, batch: Floats) -> Floats:
        """Logits [N, C] of ``batch`` [N, 3, S, S]; a network of fixed batch takes it in pieces."""
        ...


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        model: the ``.onnx`` file.
        threads: threads inside an operator; operators run one after the other.
        optimise: all graph optimisations, or none (the parity gate runs both).
        profile: a folder that gets the times of all operators when ``native`` ends its profiling,
            and the graph as it runs; every run takes longer.
    """

    name = "onnxruntime"
    arithmetic = "f32"

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 1,
        optimise: bool = True,
        profile: Path | None = None,
    ) -> None:
        ort = import_runtime(self.name)

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: its warnings about unknown CPUs are harmless
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        )
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "times")
            options.optimized_model_filepath = str(profile / "graph.onnx")
        # ONNX Runtime's exceptions share no base class below Exception, but all live in its C API.
        state = ort.capi.onnxruntime_pybind11_state
        refusals = (
            *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
            *(state.NoSuchFile, state.NotImplemented, state.RuntimeException),
        )
        try:
            self.native = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except refusals as error:
            raise _refused(self.name, ort.__version__, model, error) from error
        self.version = str(ort.__version__)
        self.options: dict[str, Any] = {"threads": threads, "optimise": optimise}
        entry, answer = (
            _only(found, model) for found in (self.native.get_inputs(), self.native.get_outputs())
        )
        self._input = entry.name
        self.takes, self.gives = (
            tuple(size if isinstance(size, int) else None for size in one.shape)
            for one in (entry, answer)
        )
        self._batch = self.takes[0] if self.takes else None

    def run(self, batch: Floats) -> Floats:
        """Logits [N, C] of ``batch`` [N, 3, S, S]."""
        pieces = [
            self.native.run(None, {self._input: piece})[0] for piece in _pieces(batch, self._batch)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class OpenVinoSession:
    """An OpenVINO IR on the CPU.

    Args:
        model: the ``.xml`` file, its ``.bin`` beside it.
        threads: inference threads, all in one stream (the setting for latency).
        arithmetic: ``f32`` forbids the arithmetic in bfloat16 that OpenVINO chooses by itself
            on CPUs that have it; None leaves the choice to OpenVINO, as in a deployment.
        profile: not None makes ``native`` count the time of every layer; runs take longer.
    """

    name = "openvino"

    def __init__(
        self,
        model: Path,
        *,
        threads: int = 1,
        arithmetic: Arithmetic | None = None,
        profile: Path | None = None,
    ) -> None:
        openvino = import_runtime(self.name)
        asked: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
        }
        if arithmetic is not None:
            asked["INFERENCE_PRECISION_HINT"] = arithmetic
        if profile is not None:
            asked["PERF_COUNT"] = True
        version = ir_version(model)
        if version not in (None, *IR_VERSIONS):
            known = " and ".join(IR_VERSIONS)
            raise BadInput(
                f"{model}: an IR of version {version}; {self.name} {openvino.__version__} reads"
                f" {known}: export it again"
            )
        try:
            core = _openvino_core()
            compiled = core.compile_model(core.read_model(model), "CPU", asked)
        except RuntimeError as error:
            raise _refused(self.name, openvino.__version__, model, error) from error
        self.version = str(openvino.__version__).split("-")[0]
        self.arithmetic = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        self.options: dict[str, Any] = {"threads": threads, "arithmetic": arithmetic}
        self.native = compiled.create_infer_request()
        self.takes, self.gives = (
            _sizes(_only(found, model).get_partial_shape())
            for found in (compiled.inputs, compiled.outputs)
        )
        self._batch = self.takes[0] if self.takes else None
        if self._batch is not None:
            self._input = self.native.get_input_tensor().data
            self._output = self.native.get_output_tensor().data

    def run(self, batch: Floats) -> Floats:
        """Logits [N, C] of ``batch`` [N, 3, S, S]."""
        pieces = [self._infer(piece) for piece in _pieces(batch, self._batch)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _infer(self, piece: Floats) -> Floats:
        if self._batch is None:
            logits: Floats = self.native.infer([piece], share_inputs=True)[0]
            return logits
        # Through the tensors that it has: on a thin network, handing over new ones would take half
        # as long as the inference itself.
        np.copyto(self._input, piece)
        self.native.infer()
        copied: Floats = self._output.copy()
        return copied


@cache
def _openvino_core() -> Any:
    """The one core of this process.

    Each core that loads the plugin for CPUs sets the main thread's stack for signals and restores
    the one before at its end; of two that overlap, the second would leave that of the first, which
    is gone, and the next Ctrl-C would crash the process (seen in OpenVINO 2026.4).
    """
    return import_runtime("openvino").Core()


RUNTIMES: dict[str, Callable[..., Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}
"""Runtime name → session class; the names are also the extras that install them."""

FORMATS: dict[str, dict[NumberFormat, str]] = {
    "onnxruntime": {"fp32": "onnx", "int8": "onnx-int8"},
    "openvino": {"fp32": "openvino", "fp16": "openvino-fp16", "int8": "openvino-int8"},
}
"""Runtime name → precision of the weights → the format of the files, as the manifest names it."""


def format_of(runtime: str, precision: NumberFormat = "fp32") -> str:
    """The format of the files that ``runtime`` reads a network of this precision from.

    Raises:
        BadInput: no such runtime, or it has no files of that precision.
    """
    if runtime not in RUNTIMES:
        raise BadInput(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    formats = FORMATS[runtime]
    if precision not in formats:
        raise BadInput(f"{precision}: {runtime} has {', '.join(formats)}", field="precision")
    return formats[precision]


def import_runtime(runtime: str) -> Any:
    """The runtime's Python package.

    Raises:
        BadInput: it is not installed, or not for this machine.
    """
    try:
        with untold():
            return importlib.import_module(runtime)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == runtime:
            fix = f"pip install 'mvp-edge[{runtime}]'"
            raise BadInput(f"{runtime} is not installed: {fix}") from error
        # A wheel for another system: a newer C library, another processor.
        raise BadInput(f"{runtime} cannot be imported on this machine: {error}") from error


@contextmanager
def untold() -> Iterator[None]:
    """Around the import of a runtime or of its tools: they report their use over the network.

    ONNX Runtime does since 1.29 (its Privacy.md; a variable turns it off for the whole process).
    OpenVINO and NNCF do through a package of its own, and make do without it when there is none.
    A user who wants to report sets ``ORT_DISABLE_TELEMETRY=0``, or imports them first.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment] # which is how Python says: not there
    try:
        yield
    finally:
        del sys.modules[_REPORTER]


def installed_runtimes() -> list[str]:
    """The runtimes that this Python has, in the order in which they are preferred."""
    return [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]


RUNTIME_BYTES = {"onnxruntime": 78 * 2**20, "openvino": 112 * 2**20}
"""Resident memory of Python with a runtime and a network of 0.4 MB (measured on x86-64 with ONNX
Runtime 1.32 and OpenVINO 2026.4)."""


def memory_needed(cost: Cost, runtime: str) -> int:
    """Bytes that a process needs to run a network, about: to be held against what is free.

    The weights are counted twice: as read from the file, and as the kernels want them. (ResNet-18
    with 43 MiB of weights took 224 MiB in ONNX Runtime and 176 MiB in OpenVINO: 165 and 199 here.)
    """
    return RUNTIME_BYTES[runtime] + 2 * cost.weight_bytes + cost.activation_bytes


def check_memory(needed: int) -> None:
    """Refuse what this machine lacks the memory for, before the kernel ends it half-way.

    Raises:
        BadInput: less is free than is needed.
    """
    free = available_memory()
    if free is not None and free < needed:
        raise BadInput(
            f"about {format_bytes(needed)} of memory are needed, {format_bytes(free)} are free:"
            " close other programs, or prune further"
        )


def open_session(
    bundle: "Bundle",
    runtime: str | None = None,
    threads: int | None = None,
    *,
    baseline: bool = False,
    precision: NumberFormat | None = None,
) -> Session:
    """Open a bundle's network in a runtime, as it is to be deployed.

    Args:
        bundle: a loaded bundle.
        runtime: a key of ``RUNTIMES``; None takes the one that was chosen for the device, else, and
            if that is not installed, the first installed one that the bundle has a file for.
        threads: threads of one inference; None takes what was chosen for the device, else 1.
        baseline: the unpruned network beside the pruned one, in fp32.
        precision: of the network's file; None takes what was chosen for the device, else fp32.

    Raises:
        BadInput: no such runtime, not installed, the bundle has no file for it, or too little
            memory is free.
    """
    shipped = bundle.manifest.shipped
    if shipped is not None and not baseline:
        fits = runtime in (None, shipped.runtime) and precision in (None, shipped.precision)
        if fits and shipped.runtime in installed_runtimes():
            runtime, precision = shipped.runtime, shipped.precision
            threads = threads or shipped.threads
    if precision is None:
        precision = "fp32" if baseline else _usual_precision(bundle, runtime)
    runtime = runtime or choose_runtime(bundle, precision)
    model = bundle.model(format_of(runtime, precision), baseline=baseline)
    cost = bundle.manifest.cost_baseline if baseline else bundle.manifest.cost
    check_memory(memory_needed(cost, runtime))
    session = RUNTIMES[runtime](model, threads=threads or 1)
    _check_fits(bundle, model, session)
    return session


def _check_fits(bundle: "Bundle", model: Path, session: Session) -> None:
    """Refuse a network whose images or classes are not those of the manifest."""
    size = bundle.preprocess.size
    if session.takes[1:] != (3, size, size):
        raise BadInput(
            f"{model}: it takes images of {_by(session.takes[1:])}, but the manifest prepares them"
            f" as {_by((3, size, size))}; export it again"
        )
    if session.gives[1:] != (len(bundle.labels),):
        raise BadInput(
            f"{model}: {len(bundle.labels)} labels for a network of {_by(session.gives[1:])}"
            " classes; export it again"
        )


def _by(sizes: Shape) -> str:
    return " x ".join("?" if size is None else str(size) for size in sizes) or "no size"


def choose_runtime(bundle: "Bundle", precision: NumberFormat = "fp32") -> str:
    """The first installed runtime that the bundle has files of this precision for.

    Raises:
        BadInput: there is none.
    """
    usable = [r for r in RUNTIMES if FORMATS[r].get(precision) in bundle.manifest.models]
    for runtime in installed_runtimes():
        if runtime in usable:
            return runtime
    raise nothing_to_run(bundle, [precision])


def nothing_to_run(bundle: "Bundle", precisions: Sequence[NumberFormat] | None) -> BadInput:
    """The error that no installed runtime has files in a bundle, with what to do."""
    wanted = NUMBER_FORMATS if precisions is None else precisions
    usable = [
        runtime
        for runtime, forms in FORMATS.items()
        if any(forms.get(one) in bundle.manifest.models for one in wanted)
    ]
    if not usable:
        named = "" if precisions is None else f"{' or '.join(precisions)} "
        return BadInput(f"{bundle.path}: it has no {named}files for any runtime")
    extras = " or ".join(f"pip install 'mvp-edge[{name}]'" for name in usable)
    return BadInput(f"{bundle.path}: none of the runtimes it has files for is installed: {extras}")


def _usual_precision(bundle: "Bundle", runtime: str | None) -> NumberFormat:
    """Of the files that there are for a runtime (or any): fp32, else the first."""
    for precision in NUMBER_FORMATS:
        for name in RUNTIMES if runtime is None else (runtime,):
            if FORMATS.get(name, {}).get(precision) in bundle.manifest.models:
                return precision
    return "fp32"


def _only(tensors: Sequence[Any], model: Path) -> Any:
    if len(tensors) != 1:
        raise BadInput(f"{model}: {len(tensors)} inputs or outputs; it must have one of each")
    return tensors[0]


def _sizes(partial: Any) -> Shape:
    """Of an OpenVINO shape, which may be open in an axis or altogether."""
    if partial.rank.is_dynamic:
        return ()
    return tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in partial)


def _pieces(batch: Floats, size: int | None) -> list[Floats]:
    if size is None or len(batch) == size:
        return [batch]
    if len(batch) % size:
        raise BadInput(f"{len(batch)} images do not divide into the network's batches of {size}")
    return [batch[start : start + size] for start in range(0, len(batch), size)]


# What stands before the reason: codes, the path again, places in the runtime's own source.
_PREAMBLE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:"
    r"|/onnxruntime_src/\S+:\d+ [^()]*\(.*?\) (?=[A-Z])|Exception from src/\S+:\d+:"
)


def _refused(runtime: str, version: str, model: Path, error: Exception) -> BadInput:
    reason = " ".join(_PREAMBLE.sub("", str(error)).split())[:300]
    return BadInput(f"{model}: {runtime} {version} cannot load it: {reason}")
