"""The unpruned and the pruned network compared, figure by figure.

Counted costs come from verified.json, file sizes from the bundle's manifest, latencies from bench.json. A
line says "not measured" where there is no figure of one of the two networks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mvp_edge.reporting.printed import NNBSP, count, duration, percent, points, size, times, wilson
from mvp_edge.reporting.results import RunResult
from mvp_edge_export.manifest import Manifest, Shipped, parts_of
from mvp_edge_export.measuring.result import Cell
from mvp_edge_export.running.sessions import format_of

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
FORMATS = {
    "onnx": "ONNX",
    "onnx-int8": "ONNX, int8",
    "openvino": "OpenVINO",
    "openvino-fp16": "OpenVINO, fp16 weights",
    "openvino-int8": "OpenVINO, int8",
}
ABSENT = "not measured"


@dataclass(frozen=True)
class Measure:
    """One line of the comparison."""

    label: str
    unpruned: str
    pruned: str
    left: float | None = None
    """Pruned as a share of unpruned; None for accuracy."""
    gain: str = ""
    note: str = ""


@dataclass(frozen=True)
class Quantity:
    """A cost of which less is better, and how it is printed."""

    label: str
    show: Callable[[float], str]
    note: str = ""
    better: str = "smaller"
    worse: str = "larger"

    def compared(self, before: float | None, after: float) -> Measure:
        """The line of the comparison; ``before`` is None if the unpruned network was not measured."""
        unpruned = ABSENT if before is None else self.show(before)
        if before is None or before <= 0 or after <= 0:
            return Measure(self.label, unpruned, self.show(after), note=self.note)
        gain = (
            f"{times(before / after)} {self.better}"
            if before >= after
            else f"{times(after / before)} {self.worse}"
        )
        return Measure(self.label, unpruned, self.show(after), after / before, gain, self.note)


@dataclass(frozen=True)
class Figure:
    """One of the few figures at the top."""

    label: str
    value: str
    about: str


@dataclass(frozen=True)
class LayerShare:
    """A layer's share of the multiply-adds."""

    name: str
    kind: str
    flops: int
    share: float


@dataclass(frozen=True)
class Accuracy:
    """The share of test images that were classified correctly, and its 95 % interval."""

    top1: float
    n: int

    def __str__(self) -> str:
        return percent(self.top1)

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end of the 95 % Wilson interval, 0..1."""
        return wilson(self.top1, self.n)

    @property
    def spread(self) -> str:
        """The interval as text: "87.1 – 94.1 %"."""
        low, high = self.interval
        return f"{100 * low:.1f}{NNBSP}–{NNBSP}{percent(high)}"


def accuracy(result: RunResult) -> Accuracy:
    """Accuracy of the pruned network on the test images."""
    return Accuracy(result.test.top1, result.test.n)


def reference(result: RunResult) -> Accuracy | None:
    """Accuracy of the fine-tuned unpruned backbone on the same images."""
    return Accuracy(result.reference.top1, result.test.n) if result.reference else None


def measures(result: RunResult) -> Iterator[Measure]:
    """Every line of the comparison."""
    before, after = reference(result), accuracy(result)
    if before is None:
        yield Measure("Accuracy", ABSENT, str(after))
    else:
        yield Measure("Accuracy", str(before), str(after), gain=points(after.top1 - before.top1))
    cost, base = result.verified.cost, result.verified.cost_baseline
    yield Quantity("Multiply-adds", count).compared(base.flops, cost.flops)
    yield Quantity("Parameters", count).compared(base.params, cost.params)
    yield Quantity("Memory, predicted", size).compared(base.memory_bytes, cost.memory_bytes)
    if (manifest := result.manifest) is not None:
        for form, name in manifest.models.items():
            other = manifest.baseline.get(form.partition("-")[0])  # which is in fp32 alone
            unpruned = None if other is None else _file_bytes(manifest, other)
            file = Quantity(f"File, {FORMATS.get(form, form)}", size)
            yield file.compared(unpruned, _file_bytes(manifest, name))
    for cell in pruned_cells(result):
        other_p50 = base_cell.latency.p50 if (base_cell := counterpart(result, cell)) else None
        latency = Quantity(f"Latency, {place(cell)}", duration, "median", "faster", "slower")
        yield latency.compared(other_p50, cell.latency.p50)
    for name in dict.fromkeys(cell.runtime for cell in pruned_cells(result)):
        memory = Quantity(f"Peak memory, {RUNTIMES.get(name, name)}", size, "measured")
        before_peak, peak = _peak(result, "baseline", name), _peak(result, "pruned", name)
        yield memory.compared(before_peak, peak or 0)


def headline_figures(result: RunResult) -> tuple[Figure, ...]:
    """The few figures that stand at the top."""
    cost, base, right = result.verified.cost, result.verified.cost_baseline, accuracy(result)
    cells, manifest = pruned_cells(result), result.manifest
    if cells:
        shown = _shown(cells, None if manifest is None else manifest.shipped)
        latency = Figure("Latency, median", duration(shown.latency.p50), place(shown))
    else:
        latency = Figure("Latency", "–", "not benchmarked yet")
    if manifest is not None and manifest.models:
        form = next(iter(manifest.models))
        if (chosen := manifest.shipped) is not None:
            form = format_of(chosen.runtime, chosen.precision)
        name = manifest.models[form]
        file = Figure("File", size(_file_bytes(manifest, name)), FORMATS.get(form, form))
    else:
        file = Figure("File", "–", "not exported yet")
    return (
        Figure("Accuracy, test images", str(right), f"95 %: {right.spread}"),
        _of("Multiply-adds", cost.flops, base.flops),
        _of("Parameters", cost.params, base.params),
        file,
        latency,
    )


def layer_shares(result: RunResult) -> tuple[LayerShare, ...]:
    """The layers with at least 0.5 % of the multiply-adds, and all others as one."""
    found = result.layers.layers if result.layers else ()
    total = sum(layer.flops for layer in found)
    heavy = [
        LayerShare(layer.name, layer.kind, layer.flops, layer.flops / total)
        for layer in found
        if layer.kind in ("conv", "linear", "attention") and layer.flops >= total / 200 > 0
    ]
    rest = total - sum(layer.flops for layer in heavy)
    return (*heavy, LayerShare("all others", "", rest, rest / total)) if rest else tuple(heavy)


def pruned_cells(result: RunResult) -> tuple[Cell, ...]:
    """The pruned network's cells of the benchmark; empty before one."""
    cells = result.bench.cells if result.bench else ()
    return tuple(cell for cell in cells if cell.network == "pruned")


def counterpart(result: RunResult, cell: Cell) -> Cell | None:
    """The unpruned network's cell, in fp32, in the same runtime with as many threads."""
    return result.bench.cell("baseline", cell.runtime, cell.threads) if result.bench else None


def place(cell: Cell) -> str:
    """Where a cell was measured: "ONNX Runtime, int8, 1 thread"; fp32 is not named."""
    threads = f"{cell.threads}{NNBSP}thread" + ("" if cell.threads == 1 else "s")
    precision = "" if cell.precision == "fp32" else f"{cell.precision}, "
    return f"{RUNTIMES.get(cell.runtime, cell.runtime)}, {precision}{threads}"


def _shown(cells: Sequence[Cell], shipped: Shipped | None) -> Cell:
    """The cell of the shipped model; the fastest one if that is undecided or was not measured."""
    if shipped is not None:
        chosen = (shipped.runtime, shipped.precision, shipped.threads)
        for cell in cells:
            if (cell.runtime, cell.precision, cell.threads) == chosen:
                return cell
    return min(cells, key=lambda cell: cell.latency.p50)


def _of(label: str, left: float, whole: float) -> Figure:
    return Figure(label, count(left), f"{percent(left / whole)} of {count(whole)}")


def _peak(result: RunResult, network: str, runtime: str) -> int | None:
    """The most memory over all thread counts, beyond what the runtime takes by itself."""
    cells = result.bench.cells if result.bench else ()
    wanted = (network, runtime)
    return max(
        (c.peak_over_import for c in cells if (c.network, c.runtime) == wanted), default=None
    )


def _file_bytes(manifest: Manifest, name: str) -> int:
    """Bytes of a model in the bundle; OpenVINO's .bin counts with its .xml."""
    return sum(manifest.files[part].bytes for part in parts_of(name) if part in manifest.files)
