"""ResNetV2, with normalisation and activation before each convolution."""

from mvp_edge.families.family import Family, derived_groups

RESNETV2 = Family(
    name="resnetv2",
    title="ResNetV2 with batch normalisation",
    classes=("ResNetV2",),
    policies=("tied", "inner"),
    groups=derived_groups,
)
