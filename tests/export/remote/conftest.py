"""A device behind ssh, and a package index for it: wheels made from what is installed here."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from mvp_edge_export.remote.host import connect
from mvp_edge_export.remote.wheels import write_wheel
from tests.export.test_light_install import brought_by
from tests.support.sshd import ALIAS, SSHD, Device, device, python_for_all

RUNTIME = "onnxruntime"
_OURS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "WHEEL"}
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs = "start" in getattr(item, "fixturenames", ())
        if SSHD is None and needs and _HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no sshd: sudo apt install openssh-server"))


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user may search, the same for all workers; the last to leave removes it."""
    root = tmp_path_factory.getbasetemp()
    name = "-".join((root.parent if root.name.startswith("popen") else root).parts[-2:])
    folder = Path(tempfile.gettempdir()) / f"mvp-edge-{name}"
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    with (folder / "users").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def index(public: Path) -> Path:
    """A folder with the wheels of all that the light half and the runtime need."""
    folder = public / "index"
    with _alone(public / "index.lock"):
        if not folder.exists():
            partial = public / "index.partial"
            partial.mkdir()
            for name in brought_by("mvp-edge", frozenset({RUNTIME})):
                if name != "mvp-edge":
                    _repacked(name, partial)
            partial.rename(folder)
    return folder


def _repacked(name: str, folder: Path) -> Path:
    one = distribution(name)
    files = [file for file in one.files or () if ".." not in file.parts and file.suffix != ".pyc"]
    place = next(file.parts[0] for file in files if file.name == "METADATA")
    contents, info = {}, {}
    for file in files:
        data = Path(str(one.locate_file(file))).read_bytes()
        if file.parts[0] != place:
            contents[str(file)] = data
        elif file.name not in _OURS:
            info["/".join(file.parts[1:])] = data
    tag = (one.read_text("WHEEL") or "").rpartition("Tag: ")[2].split()[0]  # py3 comes after py2
    return write_wheel(folder, place.removesuffix(".dist-info"), contents, info, tag)


@pytest.fixture(scope="session")
def python(public: Path) -> dict[str, str]:
    """Variables with which the device's user finds a `python3`."""
    folder, variables = public / "programs", public / "programs.json"
    with _alone(public / "programs.lock"):
        if not variables.exists():
            folder.mkdir()
            variables.write_text(json.dumps(python_for_all(folder)))
    found: dict[str, str] = json.loads(variables.read_text())
    return found


def _be_the_server(patch: pytest.MonkeyPatch, public: Path, index: Path) -> None:
    """This machine: its pip takes from ``index`` alone, and its cache is the tests' own."""
    patch.setenv("MVP_EDGE_CACHE", str(public / "server"))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(index))


def _folder(public: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=public))
    folder.chmod(0o755)
    return folder


@pytest.fixture
def start(
    public: Path, python: dict[str, str], index: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Device]]:
    """Starts a device and makes it the one that ssh reaches as ``ALIAS``; options as keywords."""
    _be_the_server(monkeypatch, public, index)
    with ExitStack() as stack:

        def started(**options: Any) -> Device:
            folder = _folder(public)
            stack.callback(shutil.rmtree, folder)
            environment = {**python, **options.pop("environment", {})}
            one = stack.enter_context(device(folder, environment, **options))
            monkeypatch.setenv("MVP_EDGE_SSH", one.ssh)
            return one

        yield started


@pytest.fixture(scope="session")
def installed(public: Path, python: dict[str, str], index: Path) -> Path:
    """A cache folder into which all was installed the normal way, without an index."""
    folder = public / "installed"
    with _alone(public / "installed.lock"), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            there = _folder(public)
            with device(there, python) as one:
                _be_the_server(patch, public, index)
                patch.setenv("MVP_EDGE_SSH", one.ssh)
                with connect(ALIAS) as host:
                    host.install([RUNTIME], offline=True)
            (there / "cache").rename(folder)
            shutil.rmtree(there)
    return folder


@pytest.fixture
def prepared(installed: Path, start: Callable[..., Device]) -> Device:
    """A device on which everything was installed before."""
    return start(cache=installed)
