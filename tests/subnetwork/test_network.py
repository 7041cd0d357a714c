"""A pruned network on disk: the same bits when it is rebuilt, and one line when it is damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mvp_edge.pruning.votes import Voter
from mvp_edge.subnetwork.network import DESCRIPTION, TENSORS, Network, load_network
from mvp_edge.subnetwork.subnet import extract
from mvp_edge_export.errors import BadInput
from tests.support.networks import FAMILIES, backbone, network, problem, prune_by, random_kept

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def random_network(name: str, seed: int = 3) -> tuple[Network, nn.Module]:
    """Any cut of a backbone, of every kind of group that it has."""
    whole = backbone(name)
    kept = random_kept(whole.model, seed)
    module = extract(whole.with_head(3), kept)
    rng = np.random.default_rng(seed)
    sizes = {n: next(g for g in problem(name, "mvp").groups if g.name == n).size for n in kept}
    ranking = {
        n: np.concatenate([rng.permutation(np.setdiff1d(np.arange(sizes[n]), units)), units])
        for n, units in kept.items()
    }
    return network(whole, Voter("", kept, ranking, module.state_dict())), module.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_rebuilding_from_disk_is_bit_equal(name: str, tmp_path: Path) -> None:
    saved, module = random_network(name)
    saved.save(tmp_path)
    rebuilt = load_network(tmp_path)
    own = module.state_dict()
    assert rebuilt.state_dict().keys() == own.keys()
    assert all(torch.equal(t, own[n]) for n, t in rebuilt.state_dict().items())
    with torch.no_grad():
        assert torch.equal(rebuilt(X), module(X))
        assert torch.equal(rebuilt.train()(X), module.train()(X))
    loaded = Network.load(tmp_path)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.preprocess == saved.preprocess
    for before, after in ((saved.kept, loaded.kept), (saved.ranking, loaded.ranking)):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[n], after[n]) for n in before)
    loaded.check(backbone(name))


def test_what_a_method_returns_is_rebuilt_to_the_same_bits(tmp_path: Path) -> None:
    task = problem("deit", "ahnp", steps=4)
    pruned = prune_by("ahnp", task)
    voter = Voter("", pruned.kept, pruned.ranking, pruned.model.state_dict())
    network(task.backbone, voter).save(tmp_path)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path)(X), pruned.model(X))


def test_a_rebuilt_network_owns_its_tensors(tmp_path: Path) -> None:
    """Training it changes neither the loaded description nor a second module."""
    saved, _ = random_network("resnet18d")
    module, second = saved.module(), saved.module()
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    module.train()(X).sum().backward()
    optimizer.step()
    assert all(torch.equal(t, saved.weights[n]) for n, t in second.state_dict().items())


def test_a_subnetwork_prints_its_groups() -> None:
    saved, _ = random_network("vit")
    sub = saved.subnetwork
    assert sub.widths == saved.widths
    assert "SubNetwork of vit (heads-nodes)" in repr(sub)
    assert "blocks.1.head_dim" in repr(sub)


# Damage.


def spoil_tensors(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[len(data) * 3 // 4] ^= 1
    (folder / TENSORS).write_bytes(data)


def edit(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / DESCRIPTION).read_text())
    for key, value in changes.items():
        if value is None:
            del facts[key]
        else:
            facts[key] = value
    (folder / DESCRIPTION).write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (spoil_tensors, "was changed or half-copied"),
        (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-100]), "half-copied"),
        (lambda f: (f / TENSORS).unlink(), "cannot be read"),
        (lambda f: (f / DESCRIPTION).unlink(), "does not exist"),
        (lambda f: (f / DESCRIPTION).write_text("{"), "is not JSON"),
        (lambda f: (f / DESCRIPTION).write_text("[]"), "valid dictionary"),
        (lambda f: edit(f, schema=2), "schema 2 is unknown"),
        (lambda f: edit(f, schema=None), r"schema \(missing\)"),
        (lambda f: edit(f, classes=None), "classes: Field required"),
        (lambda f: edit(f, preprocess={"size": 16}), "preprocess.mean: Field required"),
    ],
)
def test_damaged_files_are_one_line(damage: Any, problem: str, tmp_path: Path) -> None:
    random_network("resnet18d")[0].save(tmp_path)
    damage(tmp_path)
    with pytest.raises(BadInput, match=problem) as caught:
        Network.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architecture": "resnet26d"}, "no resnet26d of these units"),
        ({"architecture": "resnet19"}, "no architecture 'resnet19'"),
        ({"classes": ["a", "b"]}, "no resnet18d of these units"),
        ({"policy": "inner"}, "layer1.stream"),
        ({"arguments": {"checkpoint_path": "/tmp/x"}}, "'checkpoint_path' is not one of"),
        ({"changes": {"conv1.0": "open('/tmp/x')"}}, "is not one of Conv2d"),
    ],
)
def test_files_that_do_not_fit_together_are_one_line(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    random_network("resnet18d")[0].save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(BadInput, match=problem) as caught:
        load_network(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_sound_cut_of_the_backbone() -> None:
    whole = backbone("resnet18d")
    saved, _ = random_network("resnet18d")
    order = saved.ranking["layer2.stream"]
    repeated = {**saved.ranking, "layer2.stream": np.append(order[:-1], order[0])}
    spoilt = {n: t.clone() for n, t in saved.weights.items()}
    spoilt["fc.weight"][0, 0] = torch.nan
    missing = {n: t for n, t in saved.weights.items() if n != "bn1.weight"}
    for broken, problem_ in (
        (replace(saved, backbone_sha256="0" * 64), "another backbone"),
        (replace(saved, ranking=repeated), "ranking of layer2.stream"),
        (replace(saved, ranking={}), "ranking of"),
        (replace(saved, kept={"layer9": np.array([0])}), "layer9"),
        (replace(saved, weights=spoilt), "'fc.weight' holds NaN"),
        (replace(saved, weights=missing), "Missing key"),
    ):
        with pytest.raises(BadInput, match=problem_):
            broken.check(whole)
    saved.check(whole)


def test_the_groups_of_a_deep_network_come_in_the_order_of_its_blocks(tmp_path: Path) -> None:
    whole = backbone("deit")
    kept = {f"blocks.{block}.nodes": np.arange(2) for block in (10, 2, 0, 11, 1)}
    voter = Voter("", kept, kept, whole.model.state_dict())
    network(whole, voter).save(tmp_path)
    numbers = [int(name.split(".")[1]) for name in Network.load(tmp_path).kept]
    assert numbers == [0, 1, 2, 10, 11]
