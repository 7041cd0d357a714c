"""The families of backbones: which networks each has, and what can be pruned in them.

A new family is one file beside this one and one line in `FAMILIES`.
"""

from torch import nn

from mvp_edge.families.convnext import CONVNEXT
from mvp_edge.families.family import Family, LayerRule
from mvp_edge.families.mobile import MOBILE
from mvp_edge.families.regnet import REGNET
from mvp_edge.families.resnet import RESNET
from mvp_edge.families.resnetv2 import RESNETV2
from mvp_edge.families.vit import VIT
from mvp_edge.structure.units import UnitGroup
from mvp_edge_export.errors import BadInput

FAMILIES: list[Family] = [RESNET, RESNETV2, VIT, MOBILE, REGNET, CONVNEXT]


def family_of(model: nn.Module) -> Family:
    """The model's family, by its class or one that it inherits from; BadInput lists the families that work."""
    found = _known(model)
    if found is not None:
        return found
    titles = "; ".join(family.title for family in FAMILIES)
    raise BadInput(
        f"{type(model).__name__} cannot be pruned yet: these families of timm work: {titles}"
    )


def adapt(model: nn.Module) -> None:
    """Change a network that timm has just built into an equal one that the engine understands."""
    family = _known(model)
    if family is not None:
        family.adapt(model)


def _known(model: nn.Module) -> Family | None:
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    return next((one for name in names for one in FAMILIES if name in one.classes), None)


def unit_groups(model: nn.Module, policy: str | None = None) -> tuple[UnitGroup, ...]:
    """The unit groups of ``model`` under ``policy`` (None: the family's default).

    Works on an already pruned model too: sizes are read from its modules.

    Raises:
        BadInput: a model of another family, a module that cannot be cut, or an unknown policy.
    """
    family = family_of(model)
    if policy is not None and policy not in family.policies:
        raise BadInput(
            f"policy {policy!r} is unknown for {family.name}: choose {' or '.join(family.policies)}"
        )
    return tuple(family.groups(model, policy or family.policies[0]))


def rule_for(layer: nn.Module) -> LayerRule | None:
    """How a layer of a family's own is counted; None for PyTorch's layers, and for those that compute nothing."""
    name = type(layer).__name__
    return next((family.layers[name] for family in FAMILIES if name in family.layers), None)
