"""The solver against brute force: every candidate here is counted on a network of that shape."""

import time
from collections.abc import Mapping
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from mvp_edge.families import unit_groups
from mvp_edge.structure import shapes
from mvp_edge.structure.units import Cut, UnitGroup
from mvp_edge.subnetwork import cost
from mvp_edge.subnetwork.budget import LADDER, Plan, Sizer, exact_widths
from mvp_edge.subnetwork.subnet import resize
from mvp_edge_export.errors import BadInput, BudgetMissed
from mvp_edge_export.profile import DeviceProfile

BUDGETS = ("flops", "params", "file", "memory")


@cache
def network(name: str) -> nn.Module:
    """Shapes only; every one has five classes."""
    with torch.device("meta"):
        model: Any
        if name == "small":
            model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(20, 32, 48, 64))
        elif name == "bottleneck":
            model = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=5)
        elif name == "resnet18":
            model = timm.create_model("resnet18", num_classes=5)
            model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            model.maxpool = nn.Identity()
        else:
            model = timm.create_model(name, num_classes=5, depth=2, img_size=64)
    return shapes.blank_copy(model)


VIT = "deit_tiny_patch16_224"
SHAPES = {"small": (3, 32, 32), "bottleneck": (3, 64, 64), "resnet18": (3, 32, 32)}


def shape_of(name: str) -> shapes.Shape:
    return SHAPES.get(name, (3, 64, 64))


def device(
    round_to: int = 8, min_channels: int = 8, batch: int = 1, **budgets: int
) -> DeviceProfile:
    return DeviceProfile.model_validate(
        {
            "schema": 1,
            "id": "bench",
            "name": "a device for tests",
            "source": {"kind": "estimate", "note": "made up", "date": "2026-11-22"},
            "hardware": {"arch": "x86_64", "cpu": "any", "cores": 1, "ram": "64GiB"},
            "runtime": {"backends": ["onnxruntime"], "threads": 1},
            "input": {"batch": batch},
            "budgets": budgets,
            "prune": {"round_to": round_to, "min_channels": min_channels},
        }
    )


def plan_for(
    name: str, profile: DeviceProfile, ceiling: float = 1.0, policy: str | None = None
) -> Plan:
    return Sizer(network(name), policy, shape_of(name), profile).solve(ceiling)


@cache
def _counted(
    name: str, policy: str | None, batch: int, widths: tuple[tuple[str, int], ...]
) -> tuple[cost.Bill, int]:
    model = resize(network(name), dict(widths), policy)
    return cost.itemise(model, shape_of(name), batch), cost.file_bytes(model)


def count(
    name: str, widths: Mapping[str, int], policy: str | None = None, batch: int = 1
) -> dict[str, int]:
    """What a network of these widths costs, counted directly."""
    bill, file = _counted(name, policy, batch, tuple(widths.items()))
    total = bill.cost()
    return {
        "flops": total.flops,
        "params": total.params,
        "file": file,
        "memory": total.memory_bytes,
    }


def rounded(name: str, keep: float, policy: str | None = None) -> dict[str, int]:
    """The rule of rounding, written again: down to eights, but at least eight."""
    widths = {}
    for group in unit_groups(network(name), policy):
        asked = int(keep * group.size + 0.5)
        if group.kind == "head":
            widths[group.name] = max(1, asked)
        elif group.kind == "head_dim" or asked == group.size:
            widths[group.name] = group.size
        else:
            widths[group.name] = max(asked // 8 * 8, min(8, group.size))
    return widths


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("name", "share"), [("small", 0.7), ("small", 0.35), (VIT, 0.5)])
def test_no_larger_uniform_ratio_and_no_further_step_is_feasible(
    name: str, budget: str, share: float
) -> None:
    limit = int(share * count(name, rounded(name, 1.0))[budget])
    plan = plan_for(name, device(**{budget: limit}))
    assert count(name, rounded(name, plan.keep))[budget] <= limit
    larger = [n / 250 for n in range(251) if n / 250 > plan.keep]
    assert larger
    assert all(count(name, rounded(name, keep))[budget] > limit for keep in larger)
    for group in unit_groups(network(name)):
        width, quantum = plan.widths[group.name], 1 if "head" in group.kind else 8
        if width < group.size:
            wider = min((width // quantum + 1) * quantum, group.size)
            assert count(name, {**plan.widths, group.name: wider})[budget] > limit


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("name", "policy", "share"),
    [
        ("resnet18", "tied", 0.05),
        ("small", "inner", 0.85),
        ("bottleneck", "tied", 0.3),
        (VIT, None, 0.5),
    ],
)
def test_each_budget_binds_alone_and_is_used(
    name: str, policy: str | None, share: float, budget: str
) -> None:
    whole = {group.name: group.size for group in unit_groups(network(name), policy)}
    limit = int(share * count(name, whole, policy)[budget])
    plan = plan_for(name, device(**{budget: limit}), policy=policy)
    reached = count(name, plan.widths, policy)
    assert plan.binding == budget
    assert plan.keep < 1
    assert plan.reached == reached
    assert 0.95 * limit < reached[budget] <= limit


def test_memory_binds_by_activations_too() -> None:
    """With 32 images a pass the activations outweigh the weights."""
    whole = rounded("small", 1.0)
    limit = count("small", whole, batch=32)["memory"] // 2
    plan = plan_for("small", device(batch=32, memory=limit))
    assert plan.predicted.activation_bytes > 2 * plan.predicted.weight_bytes
    reached = count("small", plan.widths, batch=32)["memory"]
    assert 0.95 * limit < reached == plan.reached["memory"] <= limit


def test_the_ceiling_holds_and_is_reached_without_a_budget() -> None:
    for ceiling in (0.1, 0.5, 1.0):
        plan = plan_for("resnet18", device(), ceiling)
        assert plan.widths == rounded("resnet18", ceiling)
        assert (plan.keep, plan.binding, plan.room) == (ceiling, None, None)
    limit = count("resnet18", rounded("resnet18", 0.3))["flops"]
    plan = plan_for("resnet18", device(flops=limit), 0.5)
    top = rounded("resnet18", 0.5)
    assert all(width <= top[name] for name, width in plan.widths.items())


def test_the_tightest_of_several_budgets_is_named() -> None:
    full = count("resnet18", rounded("resnet18", 1.0))
    both = device(flops=full["flops"] // 2, params=full["params"] // 30)
    plan = plan_for("resnet18", both)
    assert plan.binding == "params"
    assert plan.reached["flops"] <= plan.limits["flops"]


def test_heads_stop_at_one_then_nodes_then_head_dim_give_way() -> None:
    groups = unit_groups(network(VIT))

    def widths(head: int, dim: int, node: int) -> dict[str, int]:
        return {g.name: {"head": head, "head_dim": dim, "node": node}[g.kind] for g in groups}

    by_nodes = plan_for(VIT, device(params=count(VIT, widths(1, 64, 80))["params"]))
    assert by_nodes.widths == widths(1, 64, 80)

    limit = count(VIT, widths(1, 30, 8))["params"]
    by_head_dim = plan_for(VIT, device(params=limit))
    assert by_head_dim.widths == widths(1, 30, 8)
    assert by_head_dim.binding == "params"
    assert plan_for(VIT, device(params=limit - 1)).widths != by_head_dim.widths


@pytest.mark.parametrize(
    ("name", "budget"), [*(("small", budget) for budget in BUDGETS), (VIT, "params")]
)
def test_infeasible_names_budget_excess_and_the_smallest_network(name: str, budget: str) -> None:
    floors = {"filter": 8, "node": 8, "head": 1, "head_dim": 1}
    smallest = {group.name: floors[group.kind] for group in unit_groups(network(name))}
    least = count(name, smallest)
    assert plan_for(name, device(**{budget: least[budget]})).widths == smallest
    with pytest.raises(BudgetMissed) as missed:
        plan_for(name, device(**{budget: least[budget] // 2}))
    line = str(missed.value)
    assert f"{budget} {least[budget] // 2:,}" in line
    assert f"needs {least[budget]:,} (2.00 ×)" in line
    assert all(f"{figure:,}" in line for figure in least.values())
    assert "profile bench" in line
    assert "\n" not in line
    assert missed.value.exit_code == 3


def test_room_says_what_a_larger_ratio_would_use() -> None:
    limit = count("resnet18", rounded("resnet18", 1.0))["params"] // 4
    plan = plan_for("resnet18", device(params=limit), 0.1)
    assert plan.widths == rounded("resnet18", 0.1)
    assert plan.binding is None
    assert plan.room == plan_for("resnet18", device(params=limit))
    assert plan.room.keep > 0.4
    assert plan.to_json()["room"]["predicted"]["params"] > 0.95 * limit

    roomy = plan_for("resnet18", device(params=10**9), 0.1)
    assert roomy.room is not None
    assert roomy.room.keep == 1.0
    assert roomy.room.widths == rounded("resnet18", 1.0)


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["small", "bottleneck", VIT]),
    round_to=st.sampled_from([1, 4, 8, 12]),
    min_channels=st.integers(1, 20),
    ceiling=st.floats(0.05, 1.0),
    shares=st.dictionaries(st.sampled_from(BUDGETS), st.floats(0.3, 1.2), max_size=3),
)
def test_a_plan_is_within_budgets_rounding_and_bounds(
    name: str, round_to: int, min_channels: int, ceiling: float, shares: dict[str, float]
) -> None:
    groups = unit_groups(network(name))
    full = count(name, {group.name: group.size for group in groups})
    budgets = {budget: int(share * full[budget]) for budget, share in shares.items()}
    floors = {"filter": min_channels, "node": min_channels, "head": 1, "head_dim": 1}
    least = {group.name: min(floors[group.kind], group.size) for group in groups}
    try:
        plan = plan_for(name, device(round_to, min_channels, **budgets), ceiling)
    except BudgetMissed:
        smallest = count(name, least)
        assert any(smallest[budget] > limit for budget, limit in budgets.items())
        return
    reached = count(name, plan.widths)
    assert reached == plan.reached
    assert all(reached[budget] <= limit for budget, limit in budgets.items())
    assert plan.limits == budgets
    assert plan.keep <= ceiling
    assert (plan.binding is None) == (plan.keep == ceiling)
    for group in groups:
        width = plan.widths[group.name]
        assert least[group.name] <= width <= group.size
        if group.kind in ("filter", "node"):
            assert width % round_to == 0 or width in (least[group.name], group.size)
            assert width <= max(ceiling * group.size + 0.5, least[group.name])


def test_a_group_that_owns_half_an_axis_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers side by side on one axis: a sum, which the monomials of the solver cannot say."""
    group = UnitGroup("half", "filter", 32, (Cut("fc.weight", 1),))
    monkeypatch.setattr("mvp_edge.subnetwork.budget.unit_groups", lambda *_: (group,))
    with pytest.raises(BadInput, match="half owns a part of fc"):
        plan_for("small", device(), 0.5)


def test_the_tasks_classes_are_counted_not_the_backbones() -> None:
    """1,000 ImageNet classes on the backbone, three in the task; a distilled DeiT has two heads."""
    for name, head_inputs, heads in (
        ("resnet18", 512, 1),
        ("deit_tiny_distilled_patch16_224", 192, 2),
    ):
        with torch.device("meta"):
            model = timm.create_model(name)
        plan = Sizer(model, None, (3, 224, 224), device(), num_classes=3).solve(1.0)
        before = sum(p.numel() for p in model.parameters())
        assert plan.predicted.params == before - heads * 997 * (head_inputs + 1)


def test_exact_widths_round_half_up_and_keep_one() -> None:
    widths = exact_widths(unit_groups(network("small")), 0.1)
    assert widths == {
        "stem.stream": 6,
        "layer1.stream": 2,
        "layer2.stream": 3,
        "layer3.stream": 5,
        "layer4.stream": 6,
        "layer1.0.conv1.filters": 2,
        "layer2.0.conv1.filters": 3,
        "layer3.0.conv1.filters": 5,
        "layer4.0.conv1.filters": 6,
    }
    assert exact_widths(unit_groups(network("small")), 0.125)["layer1.stream"] == 3  # 2.5
    vit = exact_widths(unit_groups(network(VIT)), 0.1)
    assert [vit[f"blocks.0.{kind}"] for kind in ("heads", "head_dim", "nodes")] == [1, 64, 77]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(BadInput, match="the keep ratio is"):
        plan_for("small", device(), keep)
    with pytest.raises(BadInput, match="the keep ratio is"):
        exact_widths(unit_groups(network("small")), keep)


@pytest.mark.parametrize(
    ("name", "side", "seconds"), [("resnet18", 32, 2.0), ("deit_tiny_patch16_224", 224, 3.0)]
)
def test_solving_is_quick_and_leaves_the_backbone_alone(
    name: str, side: int, seconds: float
) -> None:
    model = timm.create_model(name, num_classes=100)
    before = {key: (tensor.shape, tensor.data_ptr()) for key, tensor in model.state_dict().items()}
    began = time.process_time()
    plan = Sizer(model, None, (3, side, side), device(memory=10 * 2**20), 5).solve(1.0)
    assert time.process_time() - began < seconds
    assert plan.binding == "memory"
    after = {key: (tensor.shape, tensor.data_ptr()) for key, tensor in model.state_dict().items()}
    assert after == before
    assert model.training


def rungs_for(
    name: str, profile: DeviceProfile, ceiling: float, count: int, small: float
) -> list[float]:
    return Sizer(network(name), None, shape_of(name), profile).ladder(ceiling, count, small=small)


@pytest.mark.parametrize("name", ["resnet18", VIT])
def test_a_front_is_a_geometric_series_up_to_what_the_budget_allows(name: str) -> None:
    whole = count(name, {g.name: g.size for g in unit_groups(network(name), None)})
    profile = device(round_to=1, min_channels=1, flops=whole["flops"] // 2)
    keeps = rungs_for(name, profile, 1.0, 5, small=0.25)
    assert keeps[-1] == 1.0
    plans = [plan_for(name, profile, keep) for keep in keeps]
    costs = [count(name, plan.widths)["flops"] for plan in plans]
    assert costs[-1] <= whole["flops"] // 2
    assert len(costs) == 5
    ratios = [large / small for small, large in pairwise(costs)]
    assert max(ratios) / min(ratios) < 1.25
    assert costs[0] <= costs[-1] / LADDER or plans[0].widths == rounded_to_least(name)
    for small, large in pairwise(plans):
        assert all(small.widths[group] <= large.widths[group] for group in small.widths)


def rounded_to_least(name: str) -> dict[str, int]:
    """One unit a group, but for the dimensions of the heads."""
    groups = unit_groups(network(name), None)
    return {g.name: g.size if g.kind == "head_dim" else 1 for g in groups}


def test_where_latency_is_limited_a_front_is_a_series_in_milliseconds() -> None:
    """By an estimate from peaks so unequal that bytes decide: other sizes than by multiply-adds."""
    peak = {"macs_per_second": 10**12, "bytes_per_second": 10**8}
    plain = device(round_to=1, min_channels=1)
    hardware = plain.hardware.model_validate({**plain.hardware.model_dump(), "peak": peak})
    budgets = plain.budgets.model_validate({"latency": {"p50": "200ms"}})
    timed = plain.model_copy(update={"hardware": hardware, "budgets": budgets})
    keeps = rungs_for("resnet18", timed, 1.0, 4, small=0.25)
    found = [plan_for("resnet18", timed, keep).latency for keep in keeps]
    times = [prediction.p50 for prediction in found if prediction is not None]
    assert len(times) == 4
    assert 190 < times[-1] <= 200
    ratios = [large / small for small, large in pairwise(times)]
    assert max(ratios) / min(ratios) < 1.1
    assert rungs_for("resnet18", plain, keeps[-1], 4, small=0.25)[:-1] != keeps[:-1]


def test_a_front_reaches_down_to_the_zoos_ratio_and_no_two_members_are_alike() -> None:
    profile = device()
    low = rungs_for("resnet18", profile, 1.0, 4, small=0.1)
    assert plan_for("resnet18", profile, low[0]).widths == plan_for("resnet18", profile, 0.1).widths
    # Between 8 and 16 channels there is nothing, so there are fewer rungs than asked.
    few = rungs_for("small", profile, 0.6, 12, small=0.5)
    found = [plan_for("small", profile, keep).widths for keep in few]
    assert 1 < len(few) < 12
    assert all(one != other for one, other in combinations(found, 2))
    # The smallest network possible leaves no room below it.
    assert rungs_for("small", profile, 0.01, 5, small=0.01) == [0.01]
    with pytest.raises(BudgetMissed):
        rungs_for("small", device(flops=10), 1.0, 5, small=0.1)
