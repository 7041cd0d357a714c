"""Networks of inverted residual blocks: MobileNetV2, V3 and V4, EfficientNet, EfficientNet-Lite, MNASNet.

A channel of an expansion goes with its depthwise filter, its squeeze-and-excitation weights and its column of the
projection; residual streams are units, too, or stay (policy ``inner``).
"""

from torch import nn

from mvp_edge.families.family import Family, derived_groups, no_attention
from mvp_edge.recipe import Recipe
from mvp_edge.structure.units import UnitGroup


def _groups(model: nn.Module, policy: str) -> list[UnitGroup]:
    no_attention(model)  # the hybrids of MobileNetV4
    return derived_groups(model, policy)


MOBILE = Family(
    name="mobile",
    title="MobileNetV2, V3, V4, EfficientNet(-Lite), MNASNet",
    classes=("timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3"),
    policies=("tied", "inner"),
    groups=_groups,
    recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, fused=True),
)
