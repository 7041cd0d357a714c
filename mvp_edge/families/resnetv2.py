"""ResNetV2: normalisation and activation come before each convolution, and once more after the last block."""

from typing import Any

from torch import nn

from mvp_edge.families.family import Family, derived_groups
from mvp_edge.recipe import Recipe


def _linear_classifier(model: Any) -> None:
    """Make the classifier, a 1×1 convolution of one pixel, the linear layer that it is."""
    head: Any = model.head
    if isinstance(head.fc, nn.Conv2d):
        linear: Any = nn.Linear(1, 1)
        linear.out_features, linear.in_features = head.fc.weight.shape[:2]
        linear.weight = nn.Parameter(head.fc.weight.detach().flatten(1))
        linear.bias = head.fc.bias
        head.use_conv, head.fc = False, linear
        head.flatten, head.global_pool.flatten = nn.Identity(), nn.Flatten(1)


RESNETV2 = Family(
    name="resnetv2",
    title="ResNetV2",
    classes=("timm.models.resnetv2.ResNetV2",),
    policies=("tied", "inner"),
    groups=derived_groups,
    recipe=Recipe(optimizer="sgd", lr=0.01, weight_decay=5e-4),
    adapt=_linear_classifier,
)
