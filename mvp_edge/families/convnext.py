"""ConvNeXt: the nodes of each MLP. Layer normalisation runs across the residual streams, which stay whole."""

from mvp_edge.families.family import Family, derived_groups
from mvp_edge.recipe import Recipe

CONVNEXT = Family(
    name="convnext",
    title="ConvNeXt",
    classes=("timm.models.convnext.ConvNeXt",),
    policies=("inner",),
    groups=derived_groups,
    recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, fused=True),
)
