"""Networks of inverted residual blocks: MobileNetV2, V3 and V4, EfficientNet, EfficientNet-Lite, MNASNet.

A channel of an expansion goes with its depthwise filter, its squeeze-and-excitation weights and its column of the
projection; residual streams are units, too, or stay (policy ``inner``).
"""

from mvp_edge.families.family import Family, derived_groups
from mvp_edge.recipe import Recipe

MOBILE = Family(
    name="mobile",
    title="MobileNetV2, V3, V4, EfficientNet(-Lite), MNASNet",
    classes=("timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3"),
    policies=("tied", "inner"),
    groups=derived_groups,
    recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, fused=True),
)
