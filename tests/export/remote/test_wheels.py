"""Wheels: ours from whatever is installed, the others for the machine that they are for."""

import base64
import csv
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from mvp_edge_export import __file__ as package
from mvp_edge_export.errors import BadInput
from mvp_edge_export.remote.host import Facts
from mvp_edge_export.remote.wheels import fetch, own_wheel, pip_failure, requirements, write_wheel
from mvp_edge_export.storage import sha256_file


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return own_wheel(tmp_path)


@pytest.fixture
def facts() -> Facts:
    return Facts(
        python="3.13.5",
        executable="/usr/bin/python3",
        lacks=(),
        system="Linux",
        arch="aarch64",
        libc="glibc 2.41",
        disk_free=10 * 2**30,
        cache="/home/pi/.cache/mvp-edge",
    )


def test_our_wheel_holds_what_is_imported_and_its_record_is_right(wheel: Path) -> None:
    parse_wheel_filename(wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("mvp_edge_export/__init__.py") == Path(package).read_bytes()
        assert "mvp_edge/cli/main.py" in names
        assert "mvp_edge_export/profiles/rpi4.yaml" in names
        (record,) = [name for name in names if name.endswith(".dist-info/RECORD")]
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(names)
        for path, digest, size in rows:
            if path != record:
                data = archive.read(path)
                right = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
                assert digest == f"sha256={right.rstrip('=')}"
                assert int(size) == len(data)
    assert not [name for name in names if name.endswith(".pyc")]


def test_our_wheel_is_the_same_when_it_is_made_from_an_installed_one(
    wheel: Path, tmp_path: Path
) -> None:
    site, again = tmp_path / "site", tmp_path / "again"
    again.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    code = (
        "import sys, pathlib, mvp_edge_export.remote.wheels as wheels;"
        "print(wheels.__file__); print(wheels.own_wheel(pathlib.Path(sys.argv[1])))"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code, str(again)],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported, made = map(Path, ended.stdout.splitlines())
    assert imported.is_relative_to(site)
    assert sha256_file(made) == sha256_file(wheel)


def test_time_and_order_do_not_change_a_wheel(tmp_path: Path) -> None:
    contents = {"a/b.py": b"x = 1\n", "a/c.py": b""}
    hashes = set()
    for index, order in enumerate((sorted(contents), sorted(contents, reverse=True))):
        folder = tmp_path / str(index)
        folder.mkdir()
        made = write_wheel(
            folder, "a-1", {name: contents[name] for name in order}, {"METADATA": b""}
        )
        hashes.add(sha256_file(made))
    assert len(hashes) == 1


@pytest.mark.parametrize("runtimes", [(), ("onnxruntime",), ("openvino", "onnxruntime")])
def test_requirements_are_those_that_packaging_reads(runtimes: tuple[str, ...]) -> None:
    expected = set()
    for text in importlib.metadata.requires("mvp-edge") or []:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": name}) for name in runtimes):
            expected.add((one.name, one.specifier))
    found = {(one.name, one.specifier) for one in map(Requirement, requirements(runtimes))}
    assert found == expected


def test_what_is_to_be_avoided_is_said_of_what_is_needed_alone() -> None:
    avoid = ["onnxruntime!=1.21.0", "openvino!=2025.1", "numpy<2.4.0", "onnx!=1", "numpy<2.4.0"]
    before, after = requirements(["onnxruntime"]), requirements(["onnxruntime"], avoid)
    changed = set(map(Requirement, after)) - set(map(Requirement, before))
    assert {one.name for one in changed} == {"numpy", "onnxruntime"}
    specifiers = {one.name: one.specifier for one in map(Requirement, after)}
    assert len(specifiers) == len(after) == len(before)
    assert "1.21.0" not in specifiers["onnxruntime"]
    assert "1.21.1" in specifiers["onnxruntime"]
    assert "2.4.0" not in specifiers["numpy"]
    assert "2.3.9" in specifiers["numpy"]


def test_tags_are_those_that_pip_itself_would_take(facts: Facts) -> None:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    here = facts.model_copy(update={"arch": os.uname().machine, "libc": libc})
    mine = {tag.platform for tag in sys_tags() if "manylinux" in tag.platform}
    assert set(here.tags) <= mine
    assert here.tags[0] == f"manylinux_{libc.split()[1].replace('.', '_')}_{here.arch}"


def test_wheels_for_another_machine_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: Facts
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    metadata = b"Metadata-Version: 2.1\nName: thing\nVersion: 1\n"
    tags = ("cp313-cp313-manylinux_2_28_aarch64", "cp313-cp313-manylinux_2_28_x86_64")
    for tag in (*tags, "cp311-cp311-manylinux_2_28_aarch64"):
        write_wheel(index, "thing-1", {"thing.py": tag.encode()}, {"METADATA": metadata}, tag)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("MVP_EDGE_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    (first,) = fetch(["thing"], facts.python, facts.tags, told.append)
    assert first.name == f"thing-1-{tags[0]}.whl"
    (second,) = fetch(["thing"], facts.python, facts.tags, told.append)
    assert (second, len(told)) == (first, 1)
    with pytest.raises(BadInput) as refused:
        fetch(["thing>1"], facts.python, facts.tags, told.append)
    assert str(refused.value) == (
        "offline cannot fetch the wheels: there is no wheel of thing>1 for manylinux_2_41_aarch64,"
        " Python 3.13"
    )
    assert refused.value.command_line.startswith("--offline cannot fetch the wheels: ")
    assert len(list((tmp_path / "cache" / "wheels").iterdir())) == 1  # nothing half-fetched


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"python": "3.10.9"}, "3.10.9 (/usr/bin/python3) is too old"),
        ({"python": "3.9.2"}, "is too old"),
        ({"libc": ""}, "its C library is not glibc"),
        ({"system": "Darwin"}, "it runs Darwin"),
        ({"lacks": ("ensurepip",)}, "sudo apt install python3-venv"),
    ],
)
def test_what_stands_in_the_way(facts: Facts, change: dict[str, object], says: str | None) -> None:
    obstacle = facts.model_copy(update=change).obstacle()
    if says is None:
        assert obstacle is None
    else:
        assert obstacle is not None
        assert says in obstacle


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "pip failed: it said nothing"),
        ("/usr/bin/python3: No module named pip", "`python -m ensurepip`"),
        ("WARNING: a\nERROR: b\nnote: c", "pip failed: b"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        (
            "ERROR: No matching distribution found for x>=1 (from y)",
            "no wheel of x>=1 (from y) for here",
        ),
        (
            "WARNING: Retrying … NewConnectionError …\nERROR: No matching distribution found for x",
            "pip reaches no package index",
        ),
    ],
)
def test_what_pip_says_in_one_line(said: str, reason: str) -> None:
    assert reason in pip_failure(said, "here")
