"""The pruning methods by name, each with the recipe that it is run with.

Every method is given the same batch, momentum, augmentation and head (METHOD §4, equal chances); the
learning rates and the updates a step are the paper's or were chosen on tuning tasks that are in no zoo
and no target (benchmarks/trials.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from mvp_edge.pruning import scratch
from mvp_edge.pruning.ahnp import ahnp
from mvp_edge.pruning.batches import Recipe
from mvp_edge.pruning.distill import distill
from mvp_edge.pruning.mvp import mvp
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.smsp import smsp
from mvp_edge_export.errors import BadInput


@dataclass(frozen=True)
class Method:
    """A method as a user chooses it."""

    steps: int
    families: tuple[str, ...]
    prune: Callable[[Problem], Pruned]
    asks: Literal["nobody", "neighbours", "zoo", "trunk"] = "nobody"
    """Whom it asks: the nearest entries of the zoo, all of them, or the one that was made of all of them."""
    one_shot: bool = True
    """Whether it cuts before it trains, so that another size costs only its own thin steps (and `distill` what the
    backbone thinks of the images, once more)."""
    gradual: bool = False
    """Whether it shrinks on the way, so that it can leave snapshots of larger ratios."""


METHODS = {
    "trunk": Method(100, ("resnet", "vit"), mvp, asks="trunk"),
    "mvp": Method(100, ("resnet", "vit"), mvp, asks="neighbours"),
    "smsp": Method(100, ("resnet", "vit"), smsp, asks="zoo"),
    "ifp": Method(1000, ("resnet",), scratch.ifp, one_shot=False, gradual=True),
    "ifp-taylor": Method(
        1000, ("resnet",), partial(scratch.ifp, criterion="taylor"), one_shot=False, gradual=True
    ),
    "ahnp": Method(1000, ("vit",), ahnp, one_shot=False, gradual=True),
    "distill": Method(1000, ("resnet", "vit"), distill),
    "conventional": Method(1000, ("resnet", "vit"), scratch.conventional, one_shot=False),
    "magnitude": Method(100, ("resnet", "vit"), scratch.magnitude),
    "random": Method(100, ("resnet", "vit"), scratch.random),
}

FROM_SCRATCH = {"resnet": "distill", "vit": "ahnp"}
"""What `auto` runs where the zoo has no neighbours, and what builds a zoo."""
STEP_BY_STEP = {"resnet": "ifp", "vit": "ahnp"}
"""What builds one with snapshots at larger ratios, which only these and `ifp-taylor` pass through."""

_RECIPES = {
    "resnet": Recipe(optimizer="sgd", lr=0.01, weight_decay=5e-4),
    "vit": Recipe(optimizer="adamw", lr=2e-4, weight_decay=0.05),
}
_OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("ifp", "resnet"): {"schedule": "hold"},
    ("ifp-taylor", "resnet"): {"schedule": "hold"},
    ("ahnp", "vit"): {"schedule": "hold"},
    # Thin from the first step, a ResNet learns most from several small updates along orthogonalised
    # momentum (benchmarks/plans/trials.yaml); from the backbone's weights it has further to go.
    **{
        (name, "resnet"): {"optimizer": "muon", "updates": 4, "lr": 0.004, "relative_step": 0.01}
        for name in ("trunk", "mvp")
    },
    **{
        (name, "resnet"): {"optimizer": "muon", "updates": 4, "lr": 0.01, "relative_step": 0.02}
        for name in ("smsp", "distill", "magnitude", "random")
    },
}
"""What a method wants otherwise than its family (benchmarks/plans/tuning*.yaml)."""

UNPRUNED_STEPS = 100
"""Of fine-tuning the whole backbone, which is no pruning method: the reference."""


def method_for(name: str, family: str) -> Method:
    """The method called ``name``; BadInput if it does not exist or is not for this family."""
    if name not in METHODS:
        raise BadInput(f"--method {name}: choose one of auto, {', '.join(METHODS)}")
    method = METHODS[name]
    if family not in method.families:
        instead = ", ".join(n for n, m in METHODS.items() if family in m.families)
        raise BadInput(f"--method {name} is not for {family} backbones: choose {instead}")
    return method


def recipe_for(
    name: str | None,
    family: str,
    *,
    steps: int | None = None,
    lr: float | None = None,
    augment: tuple[str, ...] | None = None,
    accelerator: str = "cpu",
) -> Recipe:
    """The default recipe of a method on a family, with what the user set instead; None: nothing is pruned."""
    usual = method_for(name, family).steps if name else UNPRUNED_STEPS
    recipe = replace(
        _RECIPES[family], steps=usual if steps is None else steps, accelerator=accelerator
    )
    recipe = replace(recipe, **_OWN.get((name or "", family), {}))
    if lr is not None:  # a higher rate turns matrices further, too
        recipe = replace(recipe, lr=lr, relative_step=recipe.relative_step * lr / recipe.lr)
    return replace(recipe, augment=augment)
