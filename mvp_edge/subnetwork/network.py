"""A pruned network on disk: what a run leaves, what a zoo entry holds, and what a stranger loads.

    network.json          architecture, kept indices' policy, classes, preprocessing, backbone's identity
    network.safetensors   weights/<tensor>, kept/<group> and ranking/<group> (indices in the backbone)

Rebuilding from these two files is bit-equal: the bare architecture is cut to the kept widths and the
stored tensors are laid in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.subnetwork.backbone import Architecture, Backbone
from mvp_edge.subnetwork.subnet import SubNetwork, check_kept, resize
from mvp_edge.subnetwork.units import unit_groups
from mvp_edge.subnetwork.weights import first_line
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import atomic_file, read_json, sha256_file, write_json

DESCRIPTION, TENSORS = "network.json", "network.safetensors"


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
        """What is kept of the backbone; prints as a table."""
        sizes = {name: len(order) for name, order in self.ranking.items()}
        return SubNetwork(self.backbone, self.policy, sizes, self.kept)

    def module(self) -> nn.Module:
        """An ordinary nn.Module in eval mode, bit-equal to the one that was saved."""
        with torch.device("meta"):
            bare = self.architecture.build(len(self.classes))
        small = resize(bare, self.widths, self.policy)
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
        description = {
            "schema": 1,
            **self.architecture.to_json(),
            "policy": self.policy,
            "backbone": self.backbone,
            "backbone_sha256": self.backbone_sha256,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_json(),
            "sha256": digest,
        }
        write_json(directory / DESCRIPTION, description)
        return digest

    @classmethod
    def load(cls, directory: Path) -> "Network":
        """Read both files; BadInput names what is missing, damaged or does not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = directory / TENSORS
        facts: dict[str, Any] = read_json(directory / DESCRIPTION, "network")
        try:
            if facts["schema"] != 1:
                raise BadInput(
                    f"{directory / DESCRIPTION}: schema {facts['schema']!r} is unknown; "
                    "this version reads 1"
                )
            found = sha256_file(path)
            if found != facts["sha256"]:
                raise BadInput(
                    f"{path} is not the file that {DESCRIPTION} describes: it was changed or half-copied"
                )
            tensors = load_file(path)
            architecture = Architecture.from_json(facts)
            parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "kept": {}, "ranking": {}}
            for name in sorted(tensors, key=_counted):
                part, _, rest = name.partition("/")
                parts[part][rest] = tensors[name]
            return cls(
                architecture,
                facts["policy"],
                facts["backbone"],
                facts["backbone_sha256"],
                tuple(facts["classes"]),
                Preprocess.from_json(facts["preprocess"]),
                {n: t.numpy().astype(np.int64) for n, t in parts["kept"].items()},
                {n: t.numpy().astype(np.int64) for n, t in parts["ranking"].items()},
                parts["weights"],
            )
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise BadInput(
                f"network in {directory} cannot be read ({first_line(error)})"
            ) from error

    def check(self, backbone: Backbone) -> None:
        """Raise BadInput unless this is a sound sub-network of ``backbone``."""
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
    """Sorts names as people count: ``blocks.2`` before ``blocks.10``, which a file's order does not."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def load_network(run: str | Path) -> nn.Module:
    """The pruned network of a run directory (or zoo entry), ready to be used or trained on."""
    return Network.load(Path(run)).module()
