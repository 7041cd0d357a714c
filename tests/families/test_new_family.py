"""A family of its own: one object, one entry in the list, and the whole engine works with it."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import register_model
from torch import nn

import mvp_edge
from mvp_edge import families
from mvp_edge.families import FAMILIES, unit_groups
from mvp_edge.families.family import Family, LayerRule, derived_groups
from mvp_edge.methods.catalogue import METHODS, method_for, recipe_for
from mvp_edge.pruning.problem import Problem
from mvp_edge.recipe import Recipe
from mvp_edge.structure.units import Follows, UnitGroup
from mvp_edge.subnetwork.architecture import Architecture
from mvp_edge.subnetwork.backbone import Backbone
from mvp_edge.subnetwork.budget import Sizer, exact_widths
from mvp_edge.subnetwork.cost import cross_check, itemise
from mvp_edge.subnetwork.network import Network
from mvp_edge.subnetwork.operators import operators
from mvp_edge.subnetwork.subnet import extract, mask
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import load_profile
from tests.support.networks import digits, shaken

SIDE = 16


class Gram(nn.Module):
    """A layer with products of activations: how its channels go together, position by position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.share = 1 / channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        likeness = flat.transpose(1, 2) @ flat * self.share
        return x * likeness.mean((1, 2))[:, None, None, None]


class Toy(nn.Module):
    """Two convolutions, and a layer that no other family has."""

    def __init__(self, num_classes: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.gram = Gram(12)
        self.body = nn.Conv2d(12, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.num_features = 8
        self.fc = nn.Linear(8, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body(self.gram(torch.relu(self.norm(self.stem(x)))))
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(x).flatten(1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


@register_model  # type: ignore[untyped-decorator]  # timm leaves it untyped
def toy_network(pretrained: bool = False, num_classes: int = 6, **_: Any) -> Toy:
    return Toy(num_classes)


def _groups(model: Toy, policy: str) -> list[UnitGroup]:
    """Every filter; the body's are derived, the stem's go through the layer that only this family knows."""
    gram, model.gram = model.gram, nn.Identity()  # type: ignore[assignment]
    stem, body = derived_groups(model, policy)
    model.gram = gram
    follows = (Follows("gram", "channels"),)
    return [
        UnitGroup(stem.name, "filter", stem.size, stem.cuts, stem.points, follows=follows),
        body,
    ]


def _follow(model: Toy) -> None:
    model.gram.share = 1 / 12  # as it was trained, however many channels are left


def _macs(layer: Gram, x: torch.Tensor) -> int:
    images, channels, height, width = x.shape
    return images * channels * (height * width) ** 2


def _operators(layer: Gram, x: torch.Tensor) -> list[Any]:
    images, channels, height, width = x.shape
    pixels = height * width
    return [("matmul", images * pixels, pixels, channels, 1, x.numel())]


TOY = Family(
    name="toy",
    title="toy networks",
    classes=(f"{__name__}.Toy",),
    policies=("tied",),
    groups=_groups,
    recipe=Recipe(optimizer="adamw", lr=2e-3, batch=32),
    settings={"magnitude": {"lr": 5e-3}},
    layers={"Gram": LayerRule("gram", _macs, _operators, 300)},
    follow=_follow,
)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A network of the family, which is known as long as the test lasts."""
    monkeypatch.setattr(families, "FAMILIES", [*FAMILIES, TOY])
    torch.manual_seed(0)
    architecture = Architecture("toy_network", {}, {}, SIDE)
    preprocess = Preprocess(SIDE, (0.3,) * 3, (0.4,) * 3)
    model = shaken(architecture.build(6))
    return Backbone("toy", architecture, model, preprocess, (), "0" * 64, "toy_network")


def test_it_is_refused_before_it_is_in_the_list() -> None:
    with pytest.raises(BadInput, match="Toy cannot be pruned yet"):
        unit_groups(Toy())


def test_it_is_cut_counted_and_planned_for(backbone: Backbone) -> None:
    kept = {"stem.stream": np.array([0, 3, 4, 9, 11]), "body.stream": np.array([1, 2, 7])}
    small: Any = extract(backbone.model, kept)
    images = torch.randn(3, *backbone.shape)
    with torch.no_grad():
        masked = mask(backbone.model, kept)(images)
        torch.testing.assert_close(small(images), masked, rtol=1e-5, atol=1e-5)
    assert (small.gram.channels, small.gram.share, small.num_features) == (5, 1 / 12, 3)
    counts = cross_check(small, backbone.shape)  # fvcore and PyTorch count the products as well
    assert counts["hand"] == SIDE**2 * (5 * 27 + 3 * 45) + 5 * SIDE**4 + 3 * 6
    assert "matmul" in operators(small, backbone.shape).kinds
    sizer = Sizer(backbone.model, None, backbone.shape, load_profile("rpi4"))
    predicted = sizer.predict({"stem.stream": 5, "body.stream": 3})[0]
    assert predicted == itemise(small, backbone.shape).cost()


def test_its_methods_and_recipes_are_its_own(backbone: Backbone) -> None:
    assert backbone.family is TOY
    assert recipe_for("magnitude", TOY).lr == 5e-3
    assert recipe_for("distill", TOY).lr == 2e-3
    with pytest.raises(BadInput, match="ahnp is not for toy backbones: choose trunk, mvp"):
        method_for("ahnp", TOY)


@pytest.mark.parametrize("method", ["magnitude", "ifp", "distill"])
def test_it_is_pruned_and_rebuilt(method: str, backbone: Backbone, tmp_path: Path) -> None:
    widths = exact_widths(unit_groups(backbone.model), 0.5)
    recipe = recipe_for(method, TOY, steps=12)
    made = METHODS[method].prune(
        Problem(backbone, "tied", 3, digits(size=SIDE), None, widths, recipe)
    )
    assert {name: len(units) for name, units in made.kept.items()} == widths
    assert len(made.history.steps) == 12
    Network(
        architecture=backbone.architecture,
        policy="tied",
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        classes=("zero", "one", "two"),
        preprocess=backbone.preprocess,
        kept=made.kept,
        ranking=made.ranking,
        weights=made.model.state_dict(),
    ).save(tmp_path)
    images = torch.randn(2, *backbone.shape)
    with torch.no_grad():
        assert torch.equal(Network.load(tmp_path).module()(images), made.model(images))


def test_nothing_outside_the_families_knows_one_by_name() -> None:
    names = {family.name for family in FAMILIES}
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(Path(mvp_edge.__file__).parent.rglob("*.py"))
        if path.parent.name != "families"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []
