"""The networks that the latency grid and the cross-check time, made by the commands that a user types.

    weights (trained, or random: latency does not depend on their values)
        → prune --method magnitude --keep R, widths rounded to N → export, fp32 and int8 → bundle

Networks stay in a work folder and are not made again. Needs MVP_EDGE_DATA.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import below_data
from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.manifest import parts_of
from mvp_edge_export.measuring.machine import this_machine
from mvp_edge_export.profile_sections import NumberFormat
from mvp_edge_export.storage import read_json, write_json, write_text

COMMAND = str(Path(sys.executable).parent / "mvp-edge")
WORK = Path(__file__).parent / ".work"
PRECISIONS: tuple[NumberFormat, ...] = ("fp32", "int8")
_VNNI = ("avx_vnni", "avx512_vnni")


@dataclass(frozen=True)
class Architecture:
    """An architecture at one image size, and the task that it is pruned for."""

    title: str
    backbone: str
    """A timm name, for random weights; or as `--backbone` takes it, below the data folder."""
    size: int
    task: str
    classes: str | None = None
    steps: int = 0
    """Fine-tuning steps of pruned networks whose widths are multiples of 8, so that their accuracy is usable."""

    @property
    def trained(self) -> bool:
        """Whether its weights are those of a trained network."""
        return "/" in self.backbone


CIFAR = "chair,clock,elephant,ray,snail"
ARCHITECTURES = {
    "resnet18-32": Architecture(
        "ResNet-18, 32 px", "weights/resnet18_cifar100.json", 32, "cifar100.zip", CIFAR, 100
    ),
    "resnet18-224": Architecture("ResNet-18, 224 px", "resnet18", 224, "imagenette_photos.zip"),
    "resnet50-224": Architecture("ResNet-50, 224 px", "resnet50", 224, "imagenette_photos.zip"),
    "deit-tiny-224": Architecture(
        "DeiT-Tiny, 224 px",
        "deit_tiny_patch16_224@weights/deit_tiny_patch16_224.safetensors",
        224,
        "imagenette_photos.zip",
    ),
}


@dataclass(frozen=True)
class Variant:
    """A keep ratio, and the multiple that widths are rounded to."""

    keep: float
    round_to: int = 8

    @property
    def name(self) -> str:
        """The name in the rows."""
        if self.keep == 1:
            return "unpruned"
        return f"keep {self.keep:g}" + ("" if self.round_to == 8 else f", round {self.round_to}")


@dataclass(frozen=True)
class Made:
    """A network that was exported."""

    variant: Variant
    bundle: Bundle

    def facts(self) -> dict[str, Any]:
        """Its variant, counted costs, file sizes and accuracy."""
        manifest = self.bundle.manifest
        accuracy = [
            {
                "format": one.format,
                "top1": one.test.top1,
                "images": one.test.images,
                "drop": one.test.drop,
                "drop_interval": one.test.drop_interval,
                "scheme": one.scheme,
                "kept": one.kept,
                "why": one.why,
            }
            for one in manifest.candidates
        ]
        return {
            "variant": self.variant.name,
            "keep": self.variant.keep,
            "round_to": self.variant.round_to,
            **manifest.cost.model_dump(mode="json"),
            "files": {
                form: sum(manifest.files[part].bytes for part in parts_of(name))
                for form, name in manifest.models.items()
            },
            "accuracy": accuracy,
        }


def make(
    name: str, variant: Variant, precisions: tuple[NumberFormat, ...], work: Path = WORK
) -> Made:
    """Prune and export one network, unless that was done already.

    Args:
        name: a key of ``ARCHITECTURES``.
        variant: its keep ratio and rounding.
        precisions: number formats of the files.
        work: the folder that the network goes to.
    """
    architecture = ARCHITECTURES[name]
    folder = work / name / variant.name.replace(", ", "-").replace(" ", "")
    bundle = folder / "bundle"
    record = folder / "asked.json"
    tuned = architecture.steps if variant.keep < 1 and variant.round_to == 8 else 0
    settings = {
        "keep": variant.keep,
        "round_to": variant.round_to,
        "steps": tuned,
        "classes": architecture.classes,
        "precisions": list(precisions),
    }
    if not _is_made(record, settings):
        folder.mkdir(parents=True, exist_ok=True)
        _profile(folder / "device.yaml", variant.round_to)
        prune = ["prune", "--device", "device.yaml", "--task", below_data(architecture.task)]
        prune += ["--backbone", _backbone(architecture, work / name)]
        prune += ["--classes", architecture.classes] if architecture.classes else []
        prune += ["--method", "magnitude", "--keep", f"{variant.keep:g}", "--steps", str(tuned)]
        prune += ["--out", "run", "--force"]
        export = ["export", "run", "--precision", ",".join(precisions)]
        for words in (prune, [*export, "--out", "bundle", "--force"]):
            subprocess.run(
                [COMMAND, *words, "-q"], check=True, cwd=folder, stdout=subprocess.DEVNULL
            )
        write_json(record, settings)
    return Made(variant, load_bundle(bundle))


def _is_made(record: Path, settings: Mapping[str, Any]) -> bool:
    """Whether this network was made already, in these precisions at least."""
    if not record.exists():
        return False
    known = read_json(record, "network")
    more = set(known.pop("precisions")) >= set(settings["precisions"])
    return more and known == {key: settings[key] for key in known}


def _backbone(architecture: Architecture, folder: Path) -> str:
    """As `--backbone` takes it; random weights are drawn once."""
    if architecture.trained:
        return below_data(architecture.backbone)
    file = folder.resolve() / "random.safetensors"
    if not file.exists():
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        model = timm.create_model(architecture.backbone, pretrained=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return f"{architecture.backbone}@{file}"


def _profile(path: Path, round_to: int) -> None:
    """This machine without budgets; int8 is kept whatever it loses, for the sake of its time."""
    isa = ["avx2", "fma", *(flag for flag in _VNNI if flag in this_machine().flags)]
    write_text(
        path,
        "schema: 1\n"
        "id: unbudgeted\n"
        "name: the benchmark machine, no budgets\n"
        "extends: x86-laptop\n"
        "source: {kind: estimate, note: 'not a device: times are measured', date: 2026-11-22}\n"
        f"hardware: {{isa: [{', '.join(isa)}], lacks: []}}\n"
        "budgets: {flops: null, params: null, file: null, memory: null, latency: null}\n"
        "accuracy: {max_quant_drop: 100}\n"
        f"prune: {{round_to: {round_to}, min_channels: {min(8, round_to)}}}\n",
    )
