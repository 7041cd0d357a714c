"""The classifier of a network, as timm names it."""

from typing import Any

from torch import nn

from mvp_edge_export.errors import BadInput


def heads(model: nn.Module) -> dict[str, nn.Linear]:
    """The classifier layers by module path; a distilled DeiT has two.

    Raises:
        BadInput: the network has no classifier, or one that is not a linear layer.
    """
    timm_model: Any = model
    found = timm_model.get_classifier()
    classifiers = found if isinstance(found, tuple) else (found,)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(module is one for one in classifiers)
    }
    if not layers:
        raise BadInput(
            f"{type(model).__name__}: its classifier is a {type(classifiers[0]).__name__}; "
            "only linear ones can be replaced by a task's own"
        )
    return layers
