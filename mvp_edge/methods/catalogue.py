"""The pruning methods by name, each with the recipe that it is run with. Imports no PyTorch.

All methods get the same images per step, augmentation and initial head. Learning rates and the number of updates
a step are the paper's, or were chosen on tuning tasks that are used neither in a zoo nor in an evaluation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from mvp_edge.recipe import Recipe
from mvp_edge_export.errors import BadInput

if TYPE_CHECKING:
    from mvp_edge.families.family import Family
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


METHODS: Mapping[str, Method] = {
    "trunk": Method("mvp:mvp", 100, asks="trunk"),
    "mvp": Method("mvp:mvp", 100, asks="neighbours"),
    "smsp": Method("smsp:smsp", 100, asks="zoo"),
    "ifp": Method("ifp:ifp", 1000, one_shot=False, iterative=True),
    "ifp-taylor": Method("ifp:ifp_taylor", 1000, one_shot=False, iterative=True),
    "ahnp": Method("ahnp:ahnp", 1000, one_shot=False, iterative=True),
    "distill": Method("distill:distill", 1000),
    "conventional": Method("conventional:conventional", 1000, one_shot=False),
    "magnitude": Method("magnitude:magnitude", 100),
    "random": Method("random:random", 100),
}

WITHOUT_ZOO = tuple(name for name, method in METHODS.items() if method.asks == "nobody")
"""Methods that prune from scratch: they need nothing but the backbone."""

UNPRUNED_STEPS = 100
"""Steps of fine-tuning for the unpruned backbone, the reference of accuracy drops."""


def method_for(name: str, family: "Family") -> Method:
    """The method called ``name``; BadInput if it does not exist or is not for this family."""
    if name not in METHODS:
        raise BadInput(f"{name}: choose one of auto, {', '.join(METHODS)}", field="method")
    if name not in family.methods:
        instead = ", ".join(one for one in METHODS if one in family.methods)
        raise BadInput(
            f"{name} is not for {family.name} backbones: choose {instead}", field="method"
        )
    return METHODS[name]


def recipe_for(
    name: str | None,
    family: "Family",
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
        family.recipe, steps=usual if steps is None else steps, accelerator=accelerator
    )
    recipe = replace(recipe, **family.settings.get(name or "", {}))
    if lr is not None:  # Muon's relative step follows the rate
        recipe = replace(recipe, lr=lr, relative_step=recipe.relative_step * lr / recipe.lr)
    return replace(recipe, augment=augment)
