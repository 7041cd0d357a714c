"""RegNet: a unit of a grouped convolution is a whole group of it."""

from mvp_edge.families.family import Family, derived_groups
from mvp_edge.recipe import Recipe

REGNET = Family(
    name="regnet",
    title="RegNetX, RegNetY",
    classes=("timm.models.regnet.RegNet",),
    policies=("tied", "inner"),
    groups=derived_groups,
    recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, fused=True),
)
