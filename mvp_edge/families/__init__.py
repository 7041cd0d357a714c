"""The families of backbones: which networks each has, and what can be pruned in them.

A new family is one file beside this one and one line in `FAMILIES`.
"""

from torch import nn

from mvp_edge.families.convnext import CONVNEXT
from mvp_edge.families.family import Family
from mvp_edge.families.mobile import MOBILE
from mvp_edge.families.regnet import REGNET
from mvp_edge.families.resnet import RESNET
from mvp_edge.families.vit import VIT
from mvp_edge.subnetwork.units import UnitGroup
from mvp_edge_export.errors import BadInput

FAMILIES: tuple[Family, ...] = (RESNET, VIT, MOBILE, REGNET, CONVNEXT)
POLICIES = {family.name: family.policies for family in FAMILIES}
"""Family → its policies, the default first."""


def family_of(model: nn.Module) -> str:
    """The name of the model's family, by the class that timm built; BadInput lists the families that work."""
    return family_for(model).name


def family_for(model: nn.Module) -> Family:
    """The model's family, by the class that timm built; BadInput lists the families that work."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("timm."):
            for family in FAMILIES:
                if cls.__name__ in family.classes:
                    return family
    titles = "; ".join(family.title for family in FAMILIES)
    raise BadInput(
        f"{type(model).__name__} cannot be pruned yet: these families of timm work: {titles}"
    )


def unit_groups(model: nn.Module, policy: str | None = None) -> tuple[UnitGroup, ...]:
    """The unit groups of ``model`` under ``policy`` (None: the family's default).

    Works on an already pruned model too: sizes are read from its modules.

    Raises:
        BadInput: a model of another family, a module that cannot be cut, or an unknown policy.
    """
    family = family_for(model)
    if policy is not None and policy not in family.policies:
        raise BadInput(
            f"policy {policy!r} is unknown for {family.name}: choose {' or '.join(family.policies)}"
        )
    return tuple(family.groups(model, policy or family.policies[0]))
