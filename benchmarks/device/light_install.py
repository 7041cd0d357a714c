"""The installed size of `pip install mvp-edge[RUNTIME]` in a clean virtual environment.

    python -m benchmarks.device.light_install     → benchmarks/device/light_install.json

A package's size is the sum of all files that pip lists for it, byte-compiled ones included. Counted as
*beside the runtime* is everything except the runtime, NumPy, Pillow, and the requirements of the runtime.
Needs the package index; each Python version on this machine is measured.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvp_edge_export.storage import write_json

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).with_suffix(".json")
PYTHONS = ("3.11", "3.12", "3.13")
RUNTIMES = ("onnxruntime", "openvino")
LIMIT = 60 * 10**6
"""Goal: at most this many bytes beside the runtime, NumPy and Pillow."""

# Run by the Python of the environment: name → [version, bytes, names of what it requires].
_LISTING = """
import json, re
from importlib.metadata import distributions
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
found = {}
for one in distributions():
    files = [file.locate() for file in one.files or ()]
    size = sum(file.stat().st_size for file in files if file.is_file())
    needs = [n for n in one.requires or () if "extra ==" not in n]
    names = [plain(re.match(r"[A-Za-z0-9._-]+", need)[0]) for need in needs]
    found[plain(one.metadata["Name"])] = [one.version, size, names]
print(json.dumps(found))
"""


class Unavailable(Exception):
    """There is no such Python on this machine, or no package index."""


def python_of(version: str) -> Path:
    """The Python of a version, e.g. 3.13, on this machine.

    Raises:
        Unavailable: there is none with the venv module.
    """
    own = (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python3")
    for candidate in (*own, shutil.which(f"python{version}"), sys.executable):
        if candidate is None:
            continue
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        told = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if told.stdout.strip() == version:
            return Path(candidate)
    raise Unavailable(f"no Python {version} with its venv module on this machine")


def pip(*words: str | Path) -> None:
    """Run pip.

    Raises:
        Unavailable: the package index does not answer.
        RuntimeError: pip failed for another reason; its last lines.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1"]
    ended = subprocess.run([*command, *map(str, words)], capture_output=True, text=True)
    if ended.returncode == 0:
        return
    said = (ended.stderr or ended.stdout).strip()
    silent = ("from versions: none", "Failed to establish", "Connection", "timed out", "resolve")
    if any(word in said for word in silent):
        raise Unavailable("the package index cannot be reached")
    raise RuntimeError("\n".join(said.splitlines()[-8:]))


def wheel(folder: Path) -> Path:
    """The repository as a wheel, built in ``folder``."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("mvp_edge-*.whl")
    return built


def environment(version: str, built: Path, runtime: str, folder: Path) -> Path:
    """A new virtual environment with nothing but ``built[runtime]``; returns its Python."""
    subprocess.run([python_of(version), "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--quiet", f"{built}[{runtime}]")
    return python


def listing(python: Path) -> dict[str, tuple[str, int, list[str]]]:
    """Name → version, bytes and requirements of all that is installed there."""
    told = subprocess.run(
        [python, "-I", "-c", _LISTING], capture_output=True, text=True, check=True
    )
    return {name: (v, size, needs) for name, (v, size, needs) in json.loads(told.stdout).items()}


def beside(installed: dict[str, tuple[str, int, list[str]]], runtime: str) -> dict[str, int]:
    """Bytes of each package that is counted."""
    left_out = {"pillow", *_required(installed, runtime)} | _required(installed, "numpy")
    return {name: size for name, (_, size, _) in installed.items() if name not in left_out}


def _required(installed: dict[str, tuple[str, int, list[str]]], name: str) -> set[str]:
    found = {name}
    waiting = [name]
    while waiting:
        for one in installed[waiting.pop()][2]:
            if one in installed and one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _rows() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        built = wheel(Path(folder))
        for version in PYTHONS:
            for runtime in RUNTIMES:
                try:
                    place = Path(folder) / f"{version}-{runtime}"
                    installed = listing(environment(version, built, runtime, place))
                except Unavailable as error:
                    print(f"Python {version}, {runtime}: left out, {error}")
                    continue
                counted = beside(installed, runtime)
                print(
                    f"Python {version}, {runtime}: {sum(counted.values()) / 1e6:.1f} MB beside it"
                )
                yield {
                    "python": version,
                    "runtime": runtime,
                    "arch": platform.machine(),
                    "beside_bytes": sum(counted.values()),
                    "all_bytes": sum(size for _, size, _ in installed.values()),
                    "packages": {
                        name: {"version": v, "bytes": size, "counted": name in counted}
                        for name, (v, size, _) in sorted(installed.items())
                    },
                }


if __name__ == "__main__":
    write_json(RESULT, {"schema": 1, "limit_bytes": LIMIT, "rows": list(_rows())})
