"""ConvNeXt: the nodes of each MLP. Layer normalisation runs across the residual streams, which stay whole."""

from mvp_edge.families.family import Family, derived_groups

CONVNEXT = Family(
    name="convnext",
    title="ConvNeXt",
    classes=("ConvNeXt",),
    policies=("inner",),
    groups=derived_groups,
)
