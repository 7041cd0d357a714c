"""The folders of `mvp_edge_export` are what they say: ground floor, the device's half, the server's."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mvp_edge_export

ROOT = Path(mvp_edge_export.__file__).parent
DEVICE, SERVER = ("running", "measuring", "remote"), ("server",)
SERVER_ONLY = (
    *("torch", "torchvision", "timm", "onnx", "onnxscript", "fvcore", "nltk", "nncf"),
    *("safetensors", "scipy", "jinja2", "sklearn", "mvp_edge"),
)


def modules(*folders: str) -> list[str]:
    """Names of all modules in these folders; without any, those of the ground floor."""
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    inside = [
        path
        for path in paths
        if (path.parts[0] in folders if folders else path.parts[0] not in (*DEVICE, *SERVER))
    ]
    names = (".".join(("mvp_edge_export", *path.with_suffix("").parts)) for path in inside)
    return sorted(name.removesuffix(".__init__") for name in names)


def imported(module: str) -> set[str]:
    """All modules that a module's source imports, also within functions and for types alone."""
    path = ROOT.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{one.name}" for one in node.names}
    return found


def of(names: set[str], folders: tuple[str, ...]) -> list[str]:
    parts = [(name, name.split(".")) for name in sorted(names)]
    return [n for n, p in parts if p[0] == "mvp_edge_export" and len(p) > 1 and p[1] in folders]


@pytest.mark.parametrize("folders", [(), DEVICE])
def test_a_device_needs_none_of_the_servers_packages(folders: tuple[str, ...]) -> None:
    names = modules(*folders)
    assert len(names) > 8
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split(','): importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", program, ",".join(names)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not set(ended.stdout.split()) & set(SERVER_ONLY)


@pytest.mark.parametrize("module", modules())
def test_the_ground_floor_imports_neither_half(module: str) -> None:
    assert of(imported(module), (*DEVICE, *SERVER)) == []


@pytest.mark.parametrize("module", modules(*DEVICE))
def test_the_devices_half_does_not_import_the_servers(module: str) -> None:
    assert of(imported(module), SERVER) == []
