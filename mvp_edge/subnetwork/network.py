"""A pruned network on disk, in a run directory or a zoo entry.

    network.json          architecture, pruning policy, classes, preprocessing, the backbone's identity
    network.safetensors   weights/<tensor>, kept/<group> and ranking/<group> (indices in the backbone)

A network that is rebuilt from these two files is bit-equal to the one that was saved: the architecture is
built at the kept widths, and the stored tensors are loaded into it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.schema import JsonFile, Part
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.subnet import SubNetwork, check_kept, resize
from mvp_edge.subnetwork.weights import first_line
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import atomic_file, sha256_file

DESCRIPTION, TENSORS = "network.json", "network.safetensors"


class PreprocessFacts(Part):
    """How images are prepared; the values are checked further by `Preprocess`."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0


class NetworkFile(JsonFile):
    """network.json: everything but the tensors."""

    kind: ClassVar[str] = "network"

    architecture: str
    changes: dict[str, str]
    arguments: dict[str, bool | int | float | str | list[int]]
    input_size: int = Field(ge=1)
    """Side of the square input in pixels."""
    policy: str
    """Which units were pruned together."""
    backbone: str
    backbone_sha256: str
    classes: tuple[str, ...]
    preprocess: PreprocessFacts
    sha256: str
    """Of the file with the tensors."""


@dataclass(frozen=True)
class Network:
    """A pruned network: how to build it, what it kept, and its weights."""

    architecture: Architecture
    policy: str
    backbone: str
    backbone_sha256: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    kept: Mapping[str, NDArray[np.int64]]
    ranking: Mapping[str, NDArray[np.int64]]
    weights: Mapping[str, torch.Tensor]

    @property
    def widths(self) -> dict[str, int]:
        """Units kept in each group."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def subnetwork(self) -> SubNetwork:
        """The units of the backbone that are kept; prints as a table."""
        sizes = {name: len(order) for name, order in self.ranking.items()}
        return SubNetwork(self.backbone, self.policy, sizes, self.kept)

    def module(self) -> nn.Module:
        """An ordinary nn.Module in eval mode, bit-equal to the one that was saved."""
        with torch.device("meta"):
            bare = self.architecture.build(len(self.classes))
        try:
            small = resize(bare, self.widths, self.policy)
        except AttributeError as error:  # e.g. a ResNet of three stages
            reason = first_line(error)
            raise BadInput(f"network: no prunable {self.architecture.name}: {reason}") from error
        own = {name: tensor.clone() for name, tensor in self.weights.items()}
        try:
            small.load_state_dict(own, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split()).partition(": ")[2][:160]
            raise BadInput(
                f"network: no {self.architecture.name} of these units: {reason}"
            ) from error
        return small.eval()

    def save(self, directory: Path) -> str:
        """Write both files; returns the tensors' sha256."""
        from safetensors.torch import save_file

        tensors = {f"weights/{n}": t.contiguous() for n, t in self.weights.items()}
        tensors |= {f"kept/{n}": torch.from_numpy(u.astype(np.int32)) for n, u in self.kept.items()}
        tensors |= {
            f"ranking/{n}": torch.from_numpy(u.astype(np.int32)) for n, u in self.ranking.items()
        }
        with atomic_file(directory / TENSORS) as partial:
            save_file(tensors, partial)
        digest = sha256_file(directory / TENSORS)
        NetworkFile(
            **self.architecture.to_json(),
            policy=self.policy,
            backbone=self.backbone,
            backbone_sha256=self.backbone_sha256,
            classes=tuple(self.classes),
            preprocess=PreprocessFacts.model_validate(self.preprocess.to_json()),
            sha256=digest,
        ).write(directory / DESCRIPTION)
        return digest

    @classmethod
    def load(cls, directory: Path) -> "Network":
        """Read both files; BadInput names what is missing, damaged or does not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = directory / TENSORS
        facts = NetworkFile.read(directory / DESCRIPTION)
        try:
            found = sha256_file(path)
            if found != facts.sha256:
                raise BadInput(
                    f"{path} is not the file that {DESCRIPTION} describes: it was changed or half-copied"
                )
            tensors = load_file(path)
            parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "kept": {}, "ranking": {}}
            for name in sorted(tensors, key=_counted):
                part, _, rest = name.partition("/")
                parts[part][rest] = tensors[name]
            return cls(
                Architecture(facts.architecture, facts.changes, facts.arguments, facts.input_size),
                facts.policy,
                facts.backbone,
                facts.backbone_sha256,
                facts.classes,
                Preprocess(**facts.preprocess.model_dump()),
                {n: t.numpy().astype(np.int64) for n, t in parts["kept"].items()},
                {n: t.numpy().astype(np.int64) for n, t in parts["ranking"].items()},
                parts["weights"],
            )
        except (SafetensorError, OSError, KeyError) as error:
            raise BadInput(
                f"network in {directory} cannot be read ({first_line(error)})"
            ) from error

    def check(self, backbone: Backbone) -> None:
        """Raise BadInput unless this is a valid sub-network of ``backbone``."""
        if self.backbone_sha256 != backbone.sha256:
            raise BadInput(f"it is a sub-network of another backbone ({self.backbone})")
        groups = unit_groups(backbone.model, self.policy)
        check_kept(groups, self.kept)
        for group in groups:
            order = self.ranking.get(group.name)
            if order is None or not np.array_equal(np.sort(order), np.arange(group.size)):
                raise BadInput(
                    f"the ranking of {group.name} does not name each of its {group.size} units once"
                )
        for name, tensor in self.weights.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise BadInput(f"tensor {name!r} holds NaN or infinite values")
        self.module()


def _counted(name: str) -> list[tuple[int, str]]:
    """Sort key for natural order: ``blocks.2`` before ``blocks.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def load_network(run: str | Path) -> nn.Module:
    """The pruned network of a run directory or zoo entry, to be used or trained further."""
    return Network.load(Path(run)).module()
