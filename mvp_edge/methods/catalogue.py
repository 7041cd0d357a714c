"""The pruning methods by name, each with the recipe that it is run with. Imports no PyTorch.

All methods get the same images per step, augmentation and initial head. Learning rates and the number of updates
a step are the paper's, or were chosen on tuning tasks that are used neither in a zoo nor in an evaluation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mvp_edge.pruning.recipe import Recipe
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge.pruning.problem import Problem, Pruned

DEFAULT_KEEP = 0.1
"""The keep ratio where neither a zoo nor the user gives one: 90 % pruned, as in the paper."""


@dataclass(frozen=True)
class Method:
    """A pruning method as a user chooses it."""

    function: str
    """Where it is, as "module:function" below `mvp_edge.methods`; imported when it is first used."""
    steps: int
    """Training steps by default."""
    families: tuple[str, ...]
    """Families of backbones that it can prune."""
    asks: Literal["nobody", "neighbours", "zoo", "trunk"] = "nobody"
    """Which networks of the zoo it uses: none, the most similar entries, all entries, or the trunk."""
    one_shot: bool = True
    """Whether it prunes before it trains, so that each additional size costs only fine-tuning the small network."""
    iterative: bool = False
    """Whether it passes through larger sizes, so that it can keep snapshots of them."""

    def prune(self, problem: "Problem") -> "Pruned":
        """Run the method."""
        module, _, name = self.function.partition(":")
        function: Callable[[Problem], Pruned] = getattr(
            import_module(f"mvp_edge.methods.{module}"), name
        )
        return function(problem)


_CONVOLUTIONAL = ("resnet", "mobile", "regnet", "convnext")
_ALL = (*_CONVOLUTIONAL, "vit")
METHODS: Mapping[str, Method] = {
    "trunk": Method("mvp:mvp", 100, _ALL, asks="trunk"),
    "mvp": Method("mvp:mvp", 100, _ALL, asks="neighbours"),
    "smsp": Method("smsp:smsp", 100, _ALL, asks="zoo"),
    "ifp": Method("ifp:ifp", 1000, _CONVOLUTIONAL, one_shot=False, iterative=True),
    "ifp-taylor": Method("ifp:ifp_taylor", 1000, _CONVOLUTIONAL, one_shot=False, iterative=True),
    "ahnp": Method("ahnp:ahnp", 1000, ("vit",), one_shot=False, iterative=True),
    "distill": Method("distill:distill", 1000, _ALL),
    "conventional": Method("conventional:conventional", 1000, _ALL, one_shot=False),
    "magnitude": Method("magnitude:magnitude", 100, _ALL),
    "random": Method("random:random", 100, _ALL),
}

WITHOUT_ZOO = tuple(name for name, method in METHODS.items() if method.asks == "nobody")
"""Methods that prune from scratch: they need nothing but the backbone."""
FROM_SCRATCH: Mapping[str, str] = {
    **dict.fromkeys(_CONVOLUTIONAL, "distill"),
    "vit": "ahnp",
}
"""Family → the method that is used where there is no zoo, and by which zoos are built."""
ITERATIVE: Mapping[str, str] = {
    **dict.fromkeys(_CONVOLUTIONAL, "ifp"),
    "vit": "ahnp",
}
"""Family → the method that leaves snapshots of larger keep ratios on the way."""

_RECIPES: Mapping[str, Recipe] = {
    "resnet": Recipe(optimizer="sgd", lr=0.01, weight_decay=5e-4),
    "vit": Recipe(optimizer="adamw", lr=2e-4, weight_decay=0.05),
    **{
        name: Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05)
        for name in ("mobile", "regnet", "convnext")
    },
}
_OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("ifp", "resnet"): {"schedule": "hold"},
    ("ifp-taylor", "resnet"): {"schedule": "hold"},
    ("ahnp", "vit"): {"schedule": "hold"},
    # A ResNet that is small from the first step learns most from several updates a step by Muon (measured in the
    # trials). Backbone weights are further from a good solution than averaged ones, and need a higher rate.
    **{
        (name, "resnet"): {"optimizer": "muon", "updates": 4, "lr": 0.004, "relative_step": 0.01}
        for name in ("trunk", "mvp")
    },
    **{
        (name, "resnet"): {"optimizer": "muon", "updates": 4, "lr": 0.01, "relative_step": 0.02}
        for name in ("smsp", "distill", "magnitude", "random")
    },
}
"""(method, family) → how its recipe differs from the family's."""

UNPRUNED_STEPS = 100
"""Steps of fine-tuning for the unpruned backbone, the reference of accuracy drops."""


def method_for(name: str, family: str) -> Method:
    """The method called ``name``; BadInput if it does not exist or is not for this family."""
    if name not in METHODS:
        raise BadInput(f"{name}: choose one of auto, {', '.join(METHODS)}", field="method")
    method = METHODS[name]
    if family not in method.families:
        instead = ", ".join(n for n, m in METHODS.items() if family in m.families)
        raise BadInput(f"{name} is not for {family} backbones: choose {instead}", field="method")
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
    """The recipe of a method on a family of backbones, with what the user set instead of its defaults.

    With ``name`` None it is the recipe by which the unpruned backbone is fine-tuned.
    """
    usual = method_for(name, family).steps if name else UNPRUNED_STEPS
    recipe = replace(
        _RECIPES[family], steps=usual if steps is None else steps, accelerator=accelerator
    )
    recipe = replace(recipe, **_OWN.get((name or "", family), {}))
    if lr is not None:  # Muon's relative step follows the rate
        recipe = replace(recipe, lr=lr, relative_step=recipe.relative_step * lr / recipe.lr)
    return replace(recipe, augment=augment)
