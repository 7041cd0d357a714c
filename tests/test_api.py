"""The Python API: its few names, that importing it is cheap, and that its values print well."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mvp_edge
from tests.support.tiny import in_process

PUBLIC = {
    *("Bundle", "DeviceProfile", "Run", "SubNetwork", "Task", "Zoo"),
    *("load_backbone", "load_network", "load_profile"),
    *("prune", "export", "bench", "report"),
}


def test_the_public_names() -> None:
    assert set(mvp_edge.__all__) == PUBLIC
    assert set(dir(mvp_edge)) >= PUBLIC
    assert sorted(mvp_edge.__all__) == mvp_edge.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mvp_edge.nothing


def test_importing_it_is_cheap_and_names_come_when_they_are_used() -> None:
    code = (
        "import sys, mvp_edge\n"
        "assert not {'torch', 'timm', 'onnx', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "from mvp_edge import load_profile\n"
        "assert load_profile('rpi4').id == 'rpi4'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_hides_a_public_name() -> None:
    # Importing a submodule sets it as an attribute of its package: it would hide a function of its name.
    inside = {path.stem for path in Path(mvp_edge.__file__).parent.iterdir()}
    assert not inside & set(mvp_edge.__all__)


def test_a_notebook_from_images_to_a_network_of_ones_own(place: Path) -> None:
    in_process(_notebook, place)


def _notebook(place: Path) -> None:
    import torch

    os.chdir(place)
    torch.set_num_threads(1)
    profile = mvp_edge.load_profile("board.yaml")
    task = mvp_edge.Task.open("digits", classes=["zero", "one", "two"])
    zoo = mvp_edge.Zoo.open(Path("zoo"))
    assert isinstance(profile, mvp_edge.DeviceProfile)
    assert repr(task).startswith("Task digits: 3 classes (one, two, zero), 42 train + 9 val + 9")

    told: list[str] = []
    run = mvp_edge.prune(profile, task, zoo, steps=2, keep=0.5, say=told.append)
    assert "mvp (3 of the zoo's 4 tasks vote), keep 0.5" in told[-1]
    lines = repr(run).splitlines()
    assert lines[0].startswith("Run runs/001: ")
    assert lines[1].startswith("  flops UNCHECKED")
    table = repr(run.subnetwork).splitlines()
    assert isinstance(run.subnetwork, mvp_edge.SubNetwork)
    assert table[0].startswith("SubNetwork of tiny (tied): ")
    assert any(line.split()[:4] == ["layer4.stream", "16", "/", "32"] for line in table)
    assert repr(zoo) == "Zoo zoo: 4 tasks pruned from tiny, tied, keep 0.5"

    made = json.loads(Path("runs/001/run.json").read_text())["training"]
    two_passes = {"steps": 2, "batch": 42, "augmented": []}
    assert {name: made[name] for name in two_passes} == two_passes

    again = mvp_edge.Run.load("runs/001")
    assert again.verified == run.verified

    # The five lines of the README: an ordinary module, to be used or trained on.
    network: Any = mvp_edge.load_network("runs/001")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    loss = network.train()(torch.rand(2, 3, 16, 16)).square().sum()
    loss.backward()
    optimizer.step()

    _refuses(profile, task, zoo)


def _refuses(profile: Any, task: Any, zoo: Any) -> None:
    """The same checks as on the command line, by the same names."""
    from mvp_edge_export.errors import BadInput, BudgetMissed

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"keep": 0}, "^keep 0"),
        ({"keep": float("nan")}, "^keep nan"),
        ({"keep": "half"}, "^keep half"),
        ({"tau": -1}, "^tau"),
        ({"lr": 0}, "^lr 0"),
        ({"steps": -1}, "^steps"),
        ({"neighbours": 9}, "^neighbours 9"),
        ({"method": "magic"}, "^method magic"),
        ({"similarity": "magic"}, "^similarity magic"),
        ({"head": "magic"}, "^head magic"),
        ({"policy": "magic"}, "^policy magic"),
        ({"accelerator": "magic"}, "^accelerator magic"),
        ({"augment": ("magic",)}, "^augment magic"),
        ({"classes": ["one", "two"]}, "^classes"),
        ({"input_size": 4}, "^input_size 4"),
    ]
    for options, culprit in wrong:
        with pytest.raises(BadInput, match=culprit):
            mvp_edge.prune(profile, task, zoo, **options)
    with pytest.raises(BadInput, match="--zoo"):
        mvp_edge.prune(profile, task)
    small = profile.model_copy(update={"budgets": profile.budgets.model_copy(update={"params": 9})})
    with pytest.raises(BudgetMissed, match="params"):
        mvp_edge.prune(small, task, zoo)
    assert {path.name for path in Path("runs").iterdir()} == {"001"}


def test_every_option_changes_the_network(place: Path) -> None:
    in_process(_every_option, place)


def _every_option(place: Path) -> None:
    import torch

    os.chdir(place)
    torch.set_num_threads(1)
    options: dict[str, Any] = {
        "neighbours": 1, "keep": 0.25, "lr": 0.5, "tau": 50.0, "head": "zero",
        "statistics": False, "augment": (), "similarity": "leep",
    }  # fmt: skip
    made = {}
    for name, value in options.items():
        given = {"steps": 2, "augment": ("shift",), name: value}
        run = mvp_edge.prune("board.yaml", "task", "zoo", out=Path("with", name), **given)
        made[name] = run.verified.weights_sha256
    usual = made.pop("similarity")  # leep is the default
    assert usual not in made.values()
    assert len(set(made.values())) == len(made)
