"""Alternatives to this project's methods: functions ``Problem → Outcome``.

    unpruned        the whole backbone, fine-tuned
    torch_pruning   DepGraph's groups, several importances, at once or in rounds (pip install torch-pruning)
    distilled       a small timm network, or the backbone's architecture made narrow, distilled from the backbone
    pooled          a network of the pruned shape that was trained once on the images of many classes, fine-tuned
    probe           a linear classifier on the frozen, unpruned backbone

All use the product's batches and augmentation; each row records the other settings of its plan. All but
`unpruned`, `probe` and timm's networks have at most the multiply-adds of the problem's widths, and hardly fewer.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from mvp_edge.methods.distill import network_features, teacher_logits
from mvp_edge.pruning.arithmetic import compute, lay_out, spoils_channels_last
from mvp_edge.pruning.distillation import Teacher
from mvp_edge.pruning.finetune import Ledger, Stepper, estimate_statistics, initialise_head
from mvp_edge.pruning.problem import Problem, Pruned
from mvp_edge.pruning.training import fine_tune
from mvp_edge.structure.classifier import heads
from mvp_edge.subnetwork.cost import forward_macs
from mvp_edge.subnetwork.subnet import resize

Importance = Literal["magnitude", "taylor", "bn-scale", "fpgm", "lamp"]
Scope = Literal["local", "global", "isomorphic"]
TAYLOR_IMAGES = 512
"""Training images whose gradients give a Taylor importance."""


class CannotFitError(ValueError):
    """A peer cannot make a network of the allowed size."""


@dataclass
class Outcome:
    """A network that a peer made, and its cost."""

    model: nn.Module
    ledger: Ledger = field(default_factory=Ledger)


def by_name(variant: dict[str, Any], problem: Problem) -> Pruned | Outcome:
    """Run the peer that a variant names.

    Raises:
        SystemExit: there is no such peer.
    """
    name = variant["method"]
    if name == "unpruned":
        whole = problem.backbone.with_head(problem.classes)
        return fine_tune(replace(problem, widths={}), whole, {})
    if name == "probe":
        return probe(problem)
    if name == "torch-pruning":
        how = {key: variant[key] for key in ("importance", "scope", "rounds")}
        return torch_pruning(problem, **how)
    if name == "distilled":
        torch.manual_seed(problem.seed)
        student = (
            off_the_shelf(variant["student"], problem.classes, variant["pixels"])
            if "student" in variant
            else thin(problem)
        )
        return distilled(
            problem, student, weight=variant["share"], temperature=variant["temperature"]
        )
    sys.exit(f"method {name}: no such method or peer")


def allowed(problem: Problem) -> int:
    """Multiply-adds of the network that has the problem's widths."""
    outline = problem.backbone.outline(problem.classes)
    return forward_macs(resize(outline, problem.widths, problem.policy), problem.backbone.shape)


def torch_pruning(
    problem: Problem, importance: Importance, *, scope: Scope, rounds: int
) -> Outcome:
    """Prune with Torch-Pruning to the same multiply-adds, and fine-tune.

    Args:
        problem: its widths only set the multiply-adds that are allowed.
        importance: of a group of coupled channels.
        scope: the channels that are ranked together: those of a layer, of all layers, or of layers with the
            same structure ("isomorphic", Fang et al. 2024).
        rounds: pruning steps, each by the same ratio, evenly over the first 80 % of the training steps; 1: once,
            before training.
    """
    model = problem.backbone.with_head(problem.classes)
    outcome = Outcome(model)
    if rounds > 1 or importance == "taylor":  # else the whole network is never run
        _begin(outcome, problem)
    dense = forward_macs(model, problem.backbone.shape)
    target, steps = allowed(problem), problem.recipe.steps
    done = 0
    for number in range(1, rounds + 1):
        within = int(dense * (target / dense) ** (number / rounds)) if number < rounds else target
        if importance == "taylor":
            _gradients(outcome, problem)
        _cut(outcome.model, problem, importance, scope, within)
        outcome.model.zero_grad()  # the first update must not use the gradients of the importance
        until = steps if number == rounds else round(0.8 * steps * number / rounds)
        if rounds == 1:  # small from the first step, like the product's own one-shot methods
            _begin(outcome, problem)
        _train(outcome, problem, done, until)
        done = until
    return outcome


def _cut(
    model: nn.Module, problem: Problem, importance: Importance, scope: Scope, within: int
) -> None:
    """Prune in place by the smallest ratio found whose network has at most ``within`` multiply-adds.

    Raises:
        CannotFitError: no ratio gives so few.
    """
    import torch_pruning as tp

    measures: Mapping[str, Callable[[], Any]] = {
        "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
        "bn-scale": lambda: tp.importance.BNScaleImportance(),
        "fpgm": lambda: tp.importance.FPGMImportance(p=2),
        "lamp": lambda: tp.importance.LAMPImportance(p=2),
    }
    example = torch.zeros(1, *problem.backbone.shape, device=next(model.parameters()).device)

    def pruned(one: nn.Module, ratio: float) -> nn.Module:
        tp.pruner.BasePruner(
            one,
            example,
            importance=measures[importance](),
            global_pruning=scope != "local",
            isomorphic=scope == "isomorphic",
            pruning_ratio=ratio,
            max_pruning_ratio=0.98,
            ignored_layers=list(heads(one).values()),
        ).step()
        return one

    def macs(ratio: float) -> int:
        return forward_macs(pruned(_copied(model), ratio), problem.backbone.shape)

    low, ratio = 0.0, 0.995
    for _ in range(10):
        middle = (low + ratio) / 2
        low, ratio = (low, middle) if macs(middle) <= within else (middle, ratio)
    if macs(ratio) > within:
        # Torch-Pruning does not prune a layer that would vanish, so a larger ratio may leave more.
        found = {one: macs(one) for one in 1 - np.geomspace(0.5, 0.002, 80)}
        fits = {one: size for one, size in found.items() if size <= within}
        if not fits:
            raise CannotFitError(
                f"by {importance}, {scope}: no ratio leaves {within:,} multiply-adds or fewer"
            )
        ratio = max(fits, key=fits.__getitem__)
    pruned(model, ratio)


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy that has the gradients, too."""
    other = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    return other


def _gradients(outcome: Outcome, problem: Problem) -> None:
    """Leave the gradients of the loss on some training images in the parameters, and count the cost."""
    model = lay_out(outcome.model, problem.recipe.accelerator).eval()
    model.zero_grad()
    macs = forward_macs(model, problem.backbone.shape)
    plain = spoils_channels_last(model, problem.recipe.accelerator)
    for x, y in problem.batches.plain(TAYLOR_IMAGES):
        with compute(problem.recipe.accelerator):
            loss = F.cross_entropy(model(x.contiguous() if plain else x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        outcome.ledger.statistics_flops += 3 * macs * len(x)


def _begin(outcome: Outcome, problem: Problem) -> None:
    outcome.model.to(problem.recipe.accelerator)
    estimate_statistics(outcome.model, problem.batches, outcome.ledger)
    initialise_head(outcome.model, problem.batches, problem.classes, outcome.ledger)


def _train(outcome: Outcome, problem: Problem, first: int, until: int) -> None:
    """Train from step ``first`` to ``until`` at the network's present size."""
    batches, loss = problem.batches, problem.loss
    dense = forward_macs(problem.backbone.outline(problem.classes), problem.backbone.shape)
    stepper = Stepper(outcome.model, problem.recipe, problem.backbone.shape, dense)
    stepper.model.train()
    with stepper.threads():
        for number in range(first, until):
            stepper.step(batches, number, outcome.ledger, loss)
    outcome.model = stepper.model.eval()


def distilled(
    problem: Problem, student: nn.Module, *, weight: float, temperature: float
) -> Outcome:
    """Train another network, with knowledge distillation from the unpruned backbone (Hinton et al. 2015).

    Args:
        problem: its recipe, images and backbone; the widths are not used. The teacher sees images without
            augmentation.
        student: any classifier of the task's classes and image size.
        weight: of the distillation loss; 0: the labels alone.
        temperature: of the distillation loss.
    """
    outcome = Outcome(student)
    if weight:
        logits = teacher_logits(problem, outcome.ledger)
        problem = replace(problem, teacher=Teacher(logits, weight, temperature, same_classes=True))
    _train(outcome, problem, 0, problem.recipe.steps)
    return outcome


def off_the_shelf(name: str, classes: int, pixels: int) -> nn.Module:
    """A network of timm with random weights, whose input is enlarged to ``pixels``.

    Of 32 px hardly one pixel would be left in the last stages of a network made for 224 px.
    """
    enlarge = nn.Upsample((pixels, pixels), mode="bilinear")
    return nn.Sequential(enlarge, timm.create_model(name, num_classes=classes))


def pooled(problem: Problem, weights: Mapping[str, torch.Tensor]) -> Pruned:
    """Fine-tune a network of the pruned shape that `benchmarks.study.pooled` trained from random weights."""
    model = thin(problem)
    own = tuple(f"{name}." for name in heads(model))
    body = {n: t for n, t in weights.items() if not n.startswith(own)}
    model.load_state_dict(body, strict=False)
    return fine_tune(problem, model, first_units(problem))


def thin(problem: Problem) -> nn.Module:
    """A network of the problem's widths with random weights, initialised as its architecture does."""
    torch.manual_seed(problem.seed)
    whole = problem.backbone.architecture.build(problem.classes)
    return resize(whole, problem.widths, problem.policy)


def first_units(problem: Problem) -> dict[str, NDArray[np.int64]]:
    """The units of a network that has only the shape of a pruned one: the first ones of each group."""
    return {name: np.arange(width) for name, width in problem.widths.items()}


def probe(problem: Problem) -> Outcome:
    """The frozen backbone with a logistic regression on its features, regularised by 5-fold cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV

    model = problem.backbone.with_head(problem.classes).eval()
    outcome = Outcome(model)
    features = network_features(model, problem, outcome.ledger)
    fitted = LogisticRegressionCV(
        Cs=8,
        l1_ratios=(0,),
        cv=5,
        scoring="accuracy",
        max_iter=2000,
        random_state=problem.seed,
        use_legacy_attributes=False,
    )
    fitted.fit(features.numpy(), problem.train.labels)
    rows, bias = fitted.coef_, fitted.intercept_
    if len(rows) == 1:  # two classes: scikit-learn gives the odds of the second alone
        rows, bias = np.vstack([-rows, rows]) / 2, np.hstack([-bias, bias]) / 2
    (head,) = heads(model).values()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(rows))
        head.bias.copy_(torch.from_numpy(bias))
    return outcome
