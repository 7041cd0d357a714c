"""Sub-networks: a backbone with some of its units removed, by masking or physically.

    mask(model, kept)     the full network with every removed unit zeroed
    extract(model, kept)  a physically smaller network, an ordinary nn.Module
    resize(model, widths) a network of that shape: the first units of each group (to count costs)

The first two compute the same function (to float32 rounding), which the tests check for each family.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mvp_edge.families import family_of, unit_groups
from mvp_edge.structure.classifier import heads
from mvp_edge.structure.shapes import follow_shapes, tensors_of
from mvp_edge.structure.units import UnitGroup
from mvp_edge_export.errors import BadInput

Kept = Mapping[str, NDArray[np.int64]]
"""Group → indices of its kept units, ascending (Ω_ℓ in the paper). A group that is missing is whole."""


@dataclass(frozen=True)
class SubNetwork:
    """The units kept of a backbone, group by group. Prints as a table."""

    backbone: str
    policy: str
    sizes: Mapping[str, int]
    kept: Kept

    @property
    def widths(self) -> dict[str, int]:
        """Number of units kept in each group."""
        return {name: len(self.kept.get(name, range(size))) for name, size in self.sizes.items()}

    def __repr__(self) -> str:
        kept, total = sum(self.widths.values()), sum(self.sizes.values())
        lines = [f"SubNetwork of {self.backbone} ({self.policy}): {kept} of {total} units"]
        for name, size in self.sizes.items():
            width = self.widths[name]
            bar = "█" * round(20 * width / size)
            lines.append(f"  {name:<24} {width:>5} / {size:<5} {bar}")
        return "\n".join(lines)


def check_kept(groups: Sequence[UnitGroup], kept: Kept) -> None:
    """Raise BadInput unless ``kept`` has known groups and ascending indices within them, at least one each."""
    sizes = {group.name: group.size for group in groups}
    for name, units in kept.items():
        if name not in sizes:
            raise BadInput(
                f"kept indices name the unit group {name!r}, which this backbone does not have"
            )
        ascending = len(units) > 0 and bool(np.all(np.diff(units) > 0))
        if not ascending or units[0] < 0 or units[-1] >= sizes[name]:
            raise BadInput(
                f"kept indices of {name} must ascend within 0 … {sizes[name] - 1} and not be empty"
            )


def mask(model: nn.Module, kept: Kept, policy: str | None = None) -> nn.Module:
    """A copy of ``model`` in which every tensor slice of a removed unit is zero.

    A filter whose convolution, γ and β are zero outputs zero, and a head whose values are zero adds
    nothing, so no removed unit affects the output, in eval or in train mode.
    """
    groups = unit_groups(model, policy)
    check_kept(groups, kept)
    masked = copy.deepcopy(model)
    tensors = tensors_of(masked)
    with torch.no_grad():
        for group in groups:
            removed = np.setdiff1d(
                np.arange(group.size), kept.get(group.name, np.arange(group.size))
            )
            for cut in group.cuts:
                tensor = tensors[cut.tensor]
                tensor.index_fill_(cut.axis, _index(cut.indices(removed), tensor), 0.0)
    return masked


def extract(model: nn.Module, kept: Kept, policy: str | None = None) -> nn.Module:
    """The physically smaller network: an ordinary nn.Module with sliced copies of the tensors.

    ``model`` is not changed. Works on meta tensors. The result's groups have the kept sizes, so it can
    be extracted from again.
    """
    groups = unit_groups(model, policy)
    check_kept(groups, kept)
    tensors = tensors_of(model)
    # Only the structure is copied; the tensors are shared, so the full weights are not duplicated.
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors.values()})

    new: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, factors in _factors(groups, kept).items():
            new[name] = tensors[name].detach().clone()
            for rows, factor in factors:
                new[name][_index(rows, new[name])] *= factor
        for (name, axis), stay in kept_axes(groups, kept, tensors).items():
            value = new.get(name, tensors[name].detach())
            new[name] = value.index_select(axis, _index(stay, value))
    for name, tensor in tensors.items():
        value = new[name] if name in new else tensor.detach().clone()
        path, _, leaf = name.rpartition(".")
        owner = small.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=tensor.requires_grad)
        else:
            owner._buffers[leaf] = value
    _update_attributes(small, groups, kept)
    return small


def resize(model: nn.Module, widths: Mapping[str, int], policy: str | None = None) -> nn.Module:
    """`extract` of the first ``widths[group]`` units of each group: a network of that shape."""
    return extract(model, {name: np.arange(width) for name, width in widths.items()}, policy)


def kept_axes(
    groups: Sequence[UnitGroup], kept: Kept, tensors: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int], NDArray[np.int64]]:
    """(tensor, axis) → the indices that stay, for each axis that is cut.

    Several groups may cut one axis (heads and the rows within them); an index stays if no group removes it.
    """
    stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.size:
            continue
        removed = np.setdiff1d(np.arange(group.size), kept[group.name])
        for cut in group.cuts:
            key = (cut.tensor, cut.axis)
            if key not in stays:
                stays[key] = np.ones(tensors[cut.tensor].shape[cut.axis], dtype=np.bool_)
            stays[key][cut.indices(removed)] = False
    return {key: np.flatnonzero(flags) for key, flags in stays.items()}


def full_coordinates(
    model: nn.Module, kept: Kept, weights: Mapping[str, torch.Tensor], policy: str | None = None
) -> dict[str, tuple[torch.Tensor, tuple[NDArray[np.int64], ...]]]:
    """Where a sub-network's weights lie in the backbone ``model``: tensor → (values, index per axis).

    The inverse of `extract`: ``full[np.ix_(*index)] = values``. Factors that made up for removed units are
    taken out, so that networks of different widths can be averaged.
    """
    groups = unit_groups(model, policy)
    tensors = tensors_of(model)
    axes = kept_axes(groups, kept, tensors)
    factors = _factors(groups, kept)
    placed = {}
    for name, full in tensors.items():
        if name not in weights or full.dim() == 0:
            continue
        index = tuple(
            axes.get((name, axis), np.arange(length)) for axis, length in enumerate(full.shape)
        )
        values = weights[name]
        if name in factors:
            rows = torch.ones(full.shape[0])
            for rows_of_group, factor in factors[name]:
                rows[torch.from_numpy(rows_of_group)] *= factor
            values = values / rows[torch.from_numpy(index[0])].reshape(-1, *[1] * (full.dim() - 1))
        placed[name] = (values, index)
    return placed


def compose(outer: Kept, inner: Kept) -> dict[str, NDArray[np.int64]]:
    """Indices in the backbone of the units that ``inner`` keeps of the sub-network ``outer``."""
    return {name: outer[name][units] if name in outer else units for name, units in inner.items()}


def _factors(
    groups: Sequence[UnitGroup], kept: Kept
) -> dict[str, list[tuple[NDArray[np.int64], float]]]:
    """Tensor → [(rows, factor)] for the weights that make up for removed units."""
    factors: dict[str, list[tuple[NDArray[np.int64], float]]] = {}
    for group in groups:
        width = len(kept[group.name]) if group.name in kept else group.size
        if width == group.size:
            continue
        for one in group.rescaled:
            rows = one.cut.indices(np.arange(group.size))
            factor = (width / group.size) ** one.power
            factors.setdefault(one.cut.tensor, []).append((rows, factor))
    return factors


def _update_attributes(small: nn.Module, groups: Sequence[UnitGroup], kept: Kept) -> None:
    """Set the modules' size attributes to the shapes of their tensors."""
    before = {name: head.in_features for name, head in _classifiers(small).items()}
    follow_shapes(small)
    for group in groups:
        for one in group.follows if group.name in kept else ():
            setattr(small.get_submodule(one.module), one.attribute, len(kept[group.name]))
    family_of(small).follow(small)
    for name, head in _classifiers(small).items():
        if head.in_features != before[name]:
            _tell(small, name, before[name], head.in_features)


def _tell(model: nn.Module, classifier: str, before: int, now: int) -> None:
    """Set what timm reads where it makes a new classifier: attributes of the modules around it."""
    parts = classifier.split(".")[:-1]
    for depth in range(len(parts) + 1):
        around = model.get_submodule(".".join(parts[:depth]))
        for name in ("num_features", "head_hidden_size", "in_features"):
            if getattr(around, name, None) == before:
                setattr(around, name, now)


def _classifiers(model: nn.Module) -> dict[str, nn.Linear]:
    """The classifiers that are there; a backbone without a head has none."""
    try:
        return heads(model)
    except BadInput:
        return {}


def _index(units: NDArray[np.int64], tensor: torch.Tensor) -> torch.Tensor:
    """Indices where the tensor they index lies."""
    return torch.from_numpy(units).to(tensor.device)
