"""What a device's virtual environment is made of: our own wheel, and the wheels that it needs.

installed package files → own_wheel      (repacked: the same files give the same bytes)
metadata, runtimes      → requirements   (releases that the profile denies left out)
requirements, target    → fetch          (`pip download` for another platform, kept by their hash)
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import shipped_folder
from mvp_edge_export.storage import atomic_directory, atomic_file, cache_folder, sha256_json

_PACKAGES = ("mvp_edge", "mvp_edge_export")
_INFO = ("METADATA", "entry_points.txt", "licenses/LICENSE")
_BORN = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
_WHEEL = "Wheel-Version: 1.0\nGenerator: mvp-edge\nRoot-Is-Purelib: {pure}\nTag: {tag}\n"


def own_wheel(folder: Path) -> Path:
    """Write the wheel of the mvp-edge that is running; returns its path in ``folder``.

    It is made from the files that Python imports, in a checkout as in an installation, without a
    build and without a network; the same files give the same bytes.

    Raises:
        BadInput: mvp-edge has no metadata here: it was not installed.
    """
    try:
        distribution = importlib.metadata.distribution("mvp-edge")
    except importlib.metadata.PackageNotFoundError as error:
        raise BadInput("mvp-edge is not installed here, only imported: pip install it") from error
    contents: dict[str, bytes] = {}
    for package in _PACKAGES:
        contents.update(_files(_folder_of(package), package))
    contents.update(_files(shipped_folder(), "mvp_edge_export/profiles"))
    texts = {name: distribution.read_text(name) for name in _INFO}
    return write_wheel(
        folder,
        f"mvp_edge-{distribution.version}",
        contents,
        {name: text.encode() for name, text in texts.items() if text},
    )


def write_wheel(
    folder: Path,
    name: str,
    contents: Mapping[str, bytes],
    info: Mapping[str, bytes],
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel whose bytes depend on nothing but its arguments.

    Args:
        folder: where to.
        name: distribution and version as in ``mvp_edge-0.1.0``.
        contents: path in the site-packages folder → bytes.
        info: name in the ``.dist-info`` folder → bytes, ``METADATA`` among them.
        tag: the compatibility tag.
    """
    place = f"{name}.dist-info"
    statement = _WHEEL.format(pure=str(tag.endswith("-any")).lower(), tag=tag)
    entries = {**contents, **{f"{place}/{key}": data for key, data in info.items()}}
    entries[f"{place}/WHEEL"] = statement.encode()
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in entries.items()]
    entries[f"{place}/RECORD"] = "\n".join([*sorted(record), f"{place}/RECORD,,", ""]).encode()
    wheel = folder / f"{name}-{tag}.whl"
    with atomic_file(wheel) as partial, zipfile.ZipFile(partial, "w") as archive:
        for path in sorted(entries):  # stored as they are: what zlib makes of them may change
            entry = zipfile.ZipInfo(path, _BORN)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, entries[path])
    return wheel


def requirements(runtimes: Sequence[str], avoid: Sequence[str] = ()) -> list[str]:
    """What the light half needs, for pip, with the given runtimes.

    Args:
        runtimes: names of extras.
        avoid: requirements that rule out releases; those of packages that are not needed are dropped.
    """
    found: dict[str, str] = {}
    for requirement in importlib.metadata.requires("mvp-edge") or []:
        extra = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if extra is None or extra[1] in runtimes:
            plain = requirement.partition(";")[0].strip()
            found[_name(plain)] = plain
    for one in sorted(set(avoid)):
        name = _name(one)
        if name in found:
            found[name] += f",{one[len(name) :]}"
    return list(found.values())


def fetch(
    needed: Sequence[str], python: str, tags: Sequence[str], tell: Callable[[str], None]
) -> list[Path]:
    """The wheels of ``needed`` and of all that they need, for another machine.

    They are kept in the user's cache folder under the hash of what was asked for.

    Args:
        needed: requirements for pip.
        python: version of the target's Python, e.g. ``3.11.2``.
        tags: platform tags that the target takes, as in ``manylinux_2_28_aarch64``.
        tell: told what is done when it takes a while.

    Raises:
        BadInput: pip is not there, reaches no index, or there is no such wheel.
    """
    version = ".".join(python.split(".")[:2])
    key = sha256_json([list(needed), version, list(tags)])
    cache = cache_folder() or Path(tempfile.gettempdir()) / "mvp-edge"
    folder = cache / "wheels" / key[:32]
    if not folder.is_dir():
        tell(f"fetching wheels for {tags[0]}, Python {version}")
        with atomic_directory(folder) as partial:
            _download(needed, version, tags, partial)
    return sorted(folder.glob("*.whl"))


def _download(needed: Sequence[str], version: str, tags: Sequence[str], folder: Path) -> None:
    platforms = [word for tag in tags for word in ("--platform", tag)]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
            *("--disable-pip-version-check", "--only-binary", ":all:", "--retries", "2"),
            *("--implementation", "cp", "--python-version", version, *platforms),
            *("--dest", str(folder), *needed),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        place = f"{tags[0]}, Python {version}"
        raise BadInput(
            f"cannot fetch the wheels: {pip_failure(ended.stderr, place)}", field="offline"
        )


def pip_failure(said: str, place: str) -> str:
    """One line on why pip failed, from what it said.

    Args:
        said: its stderr.
        place: what it worked for: the platform, in words.
    """
    if "No module named pip" in said:
        return "pip is missing: `python -m ensurepip`"
    if "No space left on device" in said:
        return "the disk is full (pip: No space left on device)"
    missing = re.search(r"No matching distribution found for (.+)", said)
    unreachable = r"NewConnectionError|name resolution|ConnectTimeoutError|Max retries|ProxyError"
    if re.search(unreachable, said):
        return "pip reaches no package index"
    if missing:
        return f"there is no wheel of {missing[1].strip()} for {place}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["it said nothing"]
    return f"pip failed: {errors[-1].removeprefix('ERROR:').strip()[:300]}"


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _files(folder: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield f"{inside}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
