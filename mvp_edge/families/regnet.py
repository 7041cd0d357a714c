"""RegNet: a unit of a grouped convolution is a whole group of it."""

from mvp_edge.families.family import Family, derived_groups

REGNET = Family(
    name="regnet",
    title="RegNetX, RegNetY",
    classes=("RegNet",),
    policies=("tied", "inner"),
    groups=derived_groups,
)
