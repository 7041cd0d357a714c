"""The runtimes that can run a bundle: one class each, with the same interface ``Session``.

A runtime is only imported when a session is created, so that a device needs only the runtime that it
uses. To add a runtime, add a class here and an entry in ``RUNTIMES`` and ``FORMATS``.
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
"""Sizes of a tensor's axes; None for an axis of variable size."""


class Session(Protocol):
    """A network that is loaded and compiled for this machine's CPU."""

    name: str
    """Name of the runtime: a key of ``RUNTIMES``."""
    version: str
    """Release of the runtime."""
    arithmetic: str
    """Number format of the computation outside of int8 layers: ``f32``, ``bf16`` or ``f16``."""
    options: dict[str, Any]
    """Settings of the runtime that differ from its defaults."""
    takes: Shape
    """Shape of the input, [N, 3, S, S]."""
    gives: Shape
    """Shape of the output, [N, C]."""

    def run(self, batch: Floats) -> Floats:
        """Compute the logits of a batch.

        A network with a fixed batch size runs on pieces of that size.

        Args:
            batch: float32 [N, 3, S, S].

        Returns:
            float32 [N, C].

        Raises:
            BadInput: N is not a multiple of the fixed batch size.
        """
        ...


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        model: the ``.onnx`` file.
        threads: number of threads within an operator; operators run one after the other.
        optimise: whether to apply all graph optimisations or none; the parity check runs both.
        profile: folder for the optimised graph and for the times of all operators, which are written
            when profiling of ``native`` is ended; makes every run slower.

    Raises:
        BadInput: ONNX Runtime is not installed or cannot load the file.
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
        options.log_severity_level = (
            3  # errors only, because the warnings about unknown CPUs are harmless
        )
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        )
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "times")
            options.optimized_model_filepath = str(profile / "graph.onnx")
        # ONNX Runtime's exceptions have no common base class below Exception.
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
        """Compute the logits [N, C] of a batch [N, 3, S, S]; see ``Session.run``."""
        pieces = [
            self.native.run(None, {self._input: piece})[0] for piece in _pieces(batch, self._batch)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class OpenVinoSession:
    """An OpenVINO IR in OpenVINO on the CPU.

    Args:
        model: the ``.xml`` file, with its ``.bin`` file in the same folder.
        threads: number of inference threads, all in one stream, which gives the lowest latency.
        arithmetic: ``f32`` prevents OpenVINO from computing in bfloat16 on CPUs that support it;
            None leaves the choice to OpenVINO, as in a deployment.
        profile: any value but None makes ``native`` measure the time of every layer; makes every run
            slower.

    Raises:
        BadInput: OpenVINO is not installed or cannot load the file.
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
        """Compute the logits [N, C] of a batch [N, 3, S, S]; see ``Session.run``."""
        pieces = [self._infer(piece) for piece in _pieces(batch, self._batch)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _infer(self, piece: Floats) -> Floats:
        if self._batch is None:
            logits: Floats = self.native.infer([piece], share_inputs=True)[0]
            return logits
        # Reuse the existing tensors: for a small network, passing new ones would take half as long as
        # the inference itself.
        np.copyto(self._input, piece)
        self.native.infer()
        copied: Floats = self._output.copy()
        return copied


@cache
def _openvino_core() -> Any:
    """The only OpenVINO core of this process.

    Each core that loads the CPU plugin replaces the main thread's signal stack and restores the previous
    one when it is destroyed. If the lifetimes of two cores overlapped, the stack of a destroyed core
    could be restored, and the next Ctrl-C would crash the process (seen in OpenVINO 2026.4).
    """
    return import_runtime("openvino").Core()


RUNTIMES: dict[str, Callable[..., Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}
"""Session class of each runtime; the names are also the extras of the package that install them."""

FORMATS: dict[str, dict[NumberFormat, str]] = {
    "onnxruntime": {"fp32": "onnx", "int8": "onnx-int8"},
    "openvino": {"fp32": "openvino", "fp16": "openvino-fp16", "int8": "openvino-int8"},
}
"""For each runtime and number format of the network, the format of its files in the manifest."""


def format_of(runtime: str, precision: NumberFormat = "fp32") -> str:
    """The manifest's format of the files that a runtime reads, e.g. ``onnx-int8``.

    Args:
        runtime: a key of ``RUNTIMES``.
        precision: number format of the network.

    Raises:
        BadInput: the runtime is unknown or does not support the number format.
    """
    if runtime not in RUNTIMES:
        raise BadInput(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    formats = FORMATS[runtime]
    if precision not in formats:
        raise BadInput(f"{precision}: {runtime} has {', '.join(formats)}", field="precision")
    return formats[precision]


def import_runtime(runtime: str) -> Any:
    """Import the Python package of a runtime, with its telemetry disabled.

    Raises:
        BadInput: the package is not installed or does not work on this machine.
    """
    try:
        with untold():
            return importlib.import_module(runtime)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == runtime:
            fix = f"pip install 'mvp-edge[{runtime}]'"
            raise BadInput(f"{runtime} is not installed: {fix}") from error
        # E.g. a wheel for a newer C library or another processor.
        raise BadInput(f"{runtime} cannot be imported on this machine: {error}") from error


@contextmanager
def untold() -> Iterator[None]:
    """Disable the telemetry of the runtimes and their tools, for imports within the context.

    ONNX Runtime sends telemetry since 1.29 (see its Privacy.md) unless an environment variable is set.
    OpenVINO and NNCF send it through a separate package and work without that package. To keep
    telemetry enabled, set ``ORT_DISABLE_TELEMETRY=0`` or import OpenVINO's telemetry package first.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if _REPORTER in sys.modules:
        yield
        return
    sys.modules[_REPORTER] = None  # type: ignore[assignment] # makes the import raise ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[_REPORTER]


def installed_runtimes() -> list[str]:
    """Names of the installed runtimes, in order of preference."""
    return [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]


RUNTIME_BYTES = {"onnxruntime": 78 * 2**20, "openvino": 112 * 2**20}
"""Resident memory in bytes of Python with each runtime and a network of 0.4 MB (measured on x86-64
with ONNX Runtime 1.32 and OpenVINO 2026.4)."""


def memory_needed(cost: Cost, runtime: str) -> int:
    """Estimate the memory in bytes of a process that runs a network, including the runtime.

    The weights are counted twice: as read from the file and as rearranged for the kernels. (ResNet-18
    with 43 MiB of weights took 224 MiB in ONNX Runtime and 176 MiB in OpenVINO; the estimates are 165
    and 199 MiB.)
    """
    return RUNTIME_BYTES[runtime] + 2 * cost.weight_bytes + cost.activation_bytes


def check_memory(needed: int) -> None:
    """Check that enough memory is free, because the kernel kills processes that exceed it.

    Args:
        needed: required memory in bytes.

    Raises:
        BadInput: less memory is free.
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
    """Load a bundle's network in a runtime, with the settings of a deployment.

    Args:
        bundle: the bundle, from ``load_bundle``.
        runtime: a key of ``RUNTIMES``. None takes the runtime that was chosen for the device; if none
            was chosen or it is not installed, the first installed one that the bundle has files for.
        threads: number of threads of one inference; None takes the number that was chosen for the
            device, or else 1.
        baseline: whether to load the unpruned network, in fp32, instead of the pruned one.
        precision: number format of the network; None takes the one that was chosen for the device, or
            else fp32.

    Raises:
        BadInput: the runtime is unknown or not installed, the bundle has no file for it, the network
            does not match the manifest, or too little memory is free.
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
    """Check that the network's input and output have the sizes that the manifest states."""
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
    """The first installed runtime for which the bundle has files in a number format.

    Raises:
        BadInput: there is no such runtime.
    """
    usable = [r for r in RUNTIMES if FORMATS[r].get(precision) in bundle.manifest.models]
    for runtime in installed_runtimes():
        if runtime in usable:
            return runtime
    raise nothing_to_run(bundle, [precision])


def nothing_to_run(bundle: "Bundle", precisions: Sequence[NumberFormat] | None) -> BadInput:
    """The error that a bundle has no files for any installed runtime; it says what to install."""
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
    """Number format of the files for a runtime (None: any runtime): fp32 if available, else the first."""
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
    """Convert an OpenVINO shape; the empty tuple if even the number of axes is unknown."""
    if partial.rank.is_dynamic:
        return ()
    return tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in partial)


def _pieces(batch: Floats, size: int | None) -> list[Floats]:
    if size is None or len(batch) == size:
        return [batch]
    if len(batch) % size:
        raise BadInput(f"{len(batch)} images: not a multiple of the network's batch size {size}")
    return [batch[start : start + size] for start in range(0, len(batch), size)]


# Text in front of the reason: error codes, the path again, lines of the runtime's source code.
_PREAMBLE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:"
    r"|/onnxruntime_src/\S+:\d+ [^()]*\(.*?\) (?=[A-Z])|Exception from src/\S+:\d+:"
)


def _refused(runtime: str, version: str, model: Path, error: Exception) -> BadInput:
    reason = " ".join(_PREAMBLE.sub("", str(error)).split())[:300]
    return BadInput(f"{model}: {runtime} {version} cannot load it: {reason}")
