"""The zoo: the pruned models of earlier tasks of ONE backbone.

zoo/zoo.json                    the backbone's identity, policy and keep ratio
zoo/entries/<name>/
    entry.json                  labels, synsets, scores, cost, recipe: small, read for listings
    network.*                   kept indices, the order in which units fell, the weights
    0.5/network.*               snapshots at larger keep ratios
zoo/trunks/<keep>/              networks of all its tasks, as entries (mvp_edge.zoo.trunk)
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, Unpack

from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_directory, read_json, write_json

if TYPE_CHECKING:  # listing a zoo must not import torch
    from mvp_edge.pruning.votes import Voter
    from mvp_edge.subnetwork.backbone import Backbone
    from mvp_edge.subnetwork.network import Network

_ZOO, _ENTRY = "zoo.json", "entry.json"
_ENTRIES, _TRUNKS = "entries", "trunks"
_Network = TypeVar("_Network")
_FACTS = {"policy", "keep", "name", "sha256", "source", "local", "input_size"}
"""What zoo.json says of the zoo and its backbone."""


class EntryFacts(TypedDict):
    """What is written of an entry beside its networks."""

    synsets: Sequence[str]
    scores: Mapping[str, float]
    cost: Mapping[str, int]
    recipe: Mapping[str, Any]
    keep: float
    snapshots: NotRequired[Mapping[float, "Network"]]


@dataclass(frozen=True)
class Entry:
    """One pruned model of the zoo, by its facts; the tensors are read when they are needed."""

    name: str
    directory: Path
    classes: tuple[str, ...]
    synsets: tuple[str, ...]
    scores: Mapping[str, float]
    cost: Mapping[str, int]
    recipe: Mapping[str, Any]
    keep: float
    snapshots: tuple[str, ...] = ()

    @property
    def network(self) -> "Network":
        """The model itself; BadInput names the entry when its files are broken."""
        return self._load(self.directory)

    @property
    def weights_sha256(self) -> str:
        """Of its tensors, as its description says."""
        from mvp_edge.subnetwork.network import DESCRIPTION

        return str(read_json(self.directory / DESCRIPTION, f"zoo entry {self.name}")["sha256"])

    def voter(self, keep: float, similarity: float = 0.0) -> "Voter":
        """The entry, so similar to the new task, as it votes for a network of ``keep``.

        It votes by its own ranking, with the weights of its smallest network that is wide enough (of
        its widest, where none is).
        """
        from mvp_edge.pruning.votes import Voter

        network = weights = self.network
        if keep > self.keep + 1e-9 and self.snapshots:
            ratio = wide_enough(self.snapshots, keep, float)
            weights = self._load(self.directory / ratio)
        return Voter(self.name, weights.kept, network.ranking, weights.weights, similarity)

    def check(self, backbone: "Backbone") -> None:
        """Read all of it and raise BadInput unless each model is a sound one of ``backbone``."""
        for directory in (self.directory, *(self.directory / ratio for ratio in self.snapshots)):
            self._load(directory).check(backbone)

    def _load(self, directory: Path) -> "Network":
        from mvp_edge.subnetwork.network import Network

        try:
            return Network.load(directory)
        except BadInput as error:
            raise _broken(self.directory, error) from error


@dataclass(frozen=True)
class Zoo:
    """A folder of entries that share one backbone."""

    path: Path
    facts: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Zoo":
        """Open an existing zoo."""
        if not (path / _ZOO).exists():
            raise BadInput(
                f"{path} is not a zoo ({_ZOO} is missing): mvp-edge zoo build --backbone B --tasks DIR --zoo {path}"
            )
        facts = read_json(path / _ZOO, "zoo")
        try:
            if facts["schema"] != 1:
                raise BadInput(
                    f"{path / _ZOO}: schema {facts['schema']!r} is unknown; this version reads 1"
                )
            missing = _FACTS - {*facts, *facts["backbone"]}
            if missing or not 0 < float(facts["keep"]) <= 1:
                raise ValueError(f"{min(missing, default='keep')} is missing or wrong")
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{path / _ZOO} is damaged ({error}): restore it, or build anew"
            ) from error
        return cls(path, facts)

    @classmethod
    def create(cls, path: Path, backbone: "Backbone", policy: str, keep: float) -> "Zoo":
        """Open the zoo at ``path``, made if need be; BadInput if it belongs to something else."""
        if not (path / _ZOO).exists():
            if path.exists() and not _empty(path):
                raise BadInput(f"{path} is neither empty nor a zoo: choose another folder")
            facts = {
                "schema": 1,
                "backbone": {
                    "name": backbone.name,
                    "sha256": backbone.sha256,
                    **_found_from(path, backbone.source),
                    "input_size": backbone.preprocess.size,
                },
                "policy": policy,
                "keep": keep,
            }
            write_json(path / _ZOO, facts)
        zoo = cls.open(path)
        zoo.check(backbone, policy)
        if abs(zoo.keep - keep) > 1e-9:
            raise BadInput(
                f"zoo {path} holds models at keep {zoo.keep:g}, not {keep:g}: choose another folder"
            )
        return zoo

    def __repr__(self) -> str:
        backbone, count = self.facts["backbone"]["name"], len(self.names())
        return f"Zoo {self.path}: {count} tasks pruned from {backbone}, {self.policy}, keep {self.keep:g}"

    @property
    def keep(self) -> float:
        """The keep ratio that the zoo was built at."""
        return float(self.facts["keep"])

    @property
    def input_size(self) -> int:
        """Side of the input images in pixels."""
        return int(self.facts["backbone"]["input_size"])

    @property
    def policy(self) -> str:
        """The policy that the zoo was built with."""
        return str(self.facts["policy"])

    @property
    def backbone_source(self) -> str:
        """What to load the zoo's backbone by."""
        backbone = self.facts["backbone"]
        source = str(backbone["source"])
        if not backbone["local"]:
            return source
        file = os.path.normpath(self.path / source)
        if not Path(file).exists():  # behind a symbolic link, ".." leads elsewhere
            file = os.path.normpath(self.path.resolve() / source)
        architecture = backbone.get("architecture")
        return f"{architecture}@{file}" if architecture else file

    def check(self, backbone: "Backbone", policy: str | None = None) -> None:
        """Refuse another backbone or policy than the zoo's."""
        mine = self.facts["backbone"]
        if mine["sha256"] != backbone.sha256:
            raise BadInput(
                f"zoo {self.path} belongs to the backbone {mine['name']} ({mine['sha256'][:12]}, "
                f"{mine['input_size']} px), not to {backbone.name} ({backbone.sha256[:12]}, "
                f"{backbone.preprocess.size} px): use that zoo's backbone, or another zoo"
            )
        if policy is not None and policy != self.policy:
            raise BadInput(f"zoo {self.path} was built with policy {self.policy!r}, not {policy!r}")

    def entries(self) -> list[Entry]:
        """All entries, by name; BadInput names a broken one."""
        return [self._read(self.path / _ENTRIES / name) for name in self.names()]

    def names(self) -> list[str]:
        """The entries' names, sorted."""
        return self._folders(_ENTRIES)

    def _folders(self, kind: str) -> list[str]:
        folder = self.path / kind
        if not folder.is_dir():
            return []
        return sorted(
            e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")
        )

    def entry(self, name: str) -> Entry:
        """One entry by name."""
        self._must_have(name)
        return self._read(self.path / _ENTRIES / name)

    def trunks(self) -> list[Entry]:
        """The networks of all its tasks, the narrowest first; BadInput names a broken one."""
        found = [self._read(self.path / _TRUNKS / name) for name in self._folders(_TRUNKS)]
        return sorted(found, key=lambda trunk: trunk.keep)

    def readable(self) -> tuple[list[Entry], list[Entry], list[str]]:
        """The entries and the trunks that can be read, and what is wrong with the others."""
        found: dict[str, list[Entry]] = {_ENTRIES: [], _TRUNKS: []}
        broken = []
        for kind, sound in found.items():
            for name in self._folders(kind):
                try:
                    sound.append(self._read(self.path / kind / name))
                except BadInput as error:
                    broken.append(str(error))
        return found[_ENTRIES], sorted(found[_TRUNKS], key=lambda trunk: trunk.keep), broken

    def _must_have(self, name: str) -> None:
        if name not in self.names():
            raise BadInput(f"zoo {self.path} has no entry {name!r}: mvp-edge zoo list {self.path}")

    def _read(self, directory: Path) -> Entry:
        try:
            facts = read_json(directory / _ENTRY, "entry")
            classes, synsets = tuple(facts["classes"]), tuple(facts["synsets"])
            if facts["schema"] != 1 or len(synsets) not in (0, len(classes)):
                raise ValueError(f"{_ENTRY} is not of this version, or not whole")
            return Entry(
                directory.name,
                directory,
                classes,
                synsets,
                facts["scores"],
                facts["cost"],
                facts["recipe"],
                float(facts["keep"]),
                tuple(facts["snapshots"]),
            )
        except (BadInput, KeyError, TypeError, ValueError) as error:
            raise _broken(directory, error) from error

    def add(
        self, name: str, network: "Network", *, force: bool = False, **facts: Unpack[EntryFacts]
    ) -> Entry:
        """Write an entry, whole or not at all."""
        if "/" in name or name.startswith(".") or not name:
            raise BadInput(f"zoo entry name {name!r} must be a plain folder name")
        return self._write(self.path / _ENTRIES / name, network, force, facts)

    def add_trunk(
        self, network: "Network", *, force: bool = False, **facts: Unpack[EntryFacts]
    ) -> Entry:
        """Write a network of all the zoo's tasks, whole or not at all."""
        return self._write(self.path / _TRUNKS / f"{facts['keep']:g}", network, force, facts)

    def _write(self, directory: Path, network: "Network", force: bool, facts: EntryFacts) -> Entry:
        if network.backbone_sha256 != self.facts["backbone"]["sha256"]:
            raise BadInput(
                f"zoo {self.path} belongs to another backbone than this model ({network.backbone})"
            )
        if network.policy != self.policy:
            raise BadInput(
                f"zoo {self.path} was built with policy {self.policy!r}, not {network.policy!r}"
            )
        snapshots = facts.get("snapshots") or {}
        with atomic_directory(directory, force=force) as partial:
            network.save(partial)
            for ratio, larger in snapshots.items():
                (partial / f"{ratio:g}").mkdir()
                larger.save(partial / f"{ratio:g}")
            written = {
                "schema": 1,
                "name": directory.name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "classes": list(network.classes),
                "synsets": list(facts["synsets"]),
                "scores": dict(facts["scores"]),
                "cost": dict(facts["cost"]),
                "recipe": dict(facts["recipe"]),
                "keep": facts["keep"],
                "snapshots": [f"{ratio:g}" for ratio in snapshots],
            }
            write_json(partial / _ENTRY, written)
        return self._read(directory)

    def remove(self, name: str) -> None:
        """Delete an entry."""
        self._must_have(name)
        folder = self.path / _ENTRIES
        try:
            gone = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
            (folder / name).rename(gone / name)
            shutil.rmtree(gone)
        except OSError as error:
            raise BadInput(f"cannot remove {folder / name}: {error.strerror or error}") from error

    def verify(self, backbone: "Backbone") -> dict[str, str]:
        """Folder of an entry or trunk → what is wrong with it, for every broken one."""
        self.check(backbone)
        broken = {}
        for kind in (_ENTRIES, _TRUNKS):
            for name in self._folders(kind):
                try:
                    self._read(self.path / kind / name).check(backbone)
                except BadInput as error:
                    broken[name if kind == _ENTRIES else f"{kind}/{name}"] = str(error)
        return broken


def _broken(entry: Path, why: Exception) -> BadInput:
    reason = f"it lacks {why}" if isinstance(why, KeyError) else str(why)
    zoo = entry.parent.parent
    if entry.parent.name == _TRUNKS:
        remedy = f"mvp-edge zoo trunk {zoo} --tasks DIR --keep {entry.name} --force makes it anew"
        return BadInput(f"the zoo's trunk {entry.name} is broken: {reason}; {remedy}")
    remedy = f"mvp-edge zoo rm {zoo} {entry.name} removes it"
    return BadInput(f"zoo entry {entry.name} is broken: {reason}; {remedy}")


def is_zoo(path: Path) -> bool:
    """Whether there is a zoo already, sound or not."""
    return (path / _ZOO).exists()


def origin(trunk: Entry) -> str:
    """What a trunk was trained on, in words."""
    images = trunk.recipe.get("images", {"labelled": 1})
    if not images["labelled"]:
        return f"{images['unlabelled']} images"
    return f"{len(trunk.classes)} classes"


def wide_enough(
    networks: Sequence[_Network], keep: float, width: Callable[[_Network], float]
) -> _Network:
    """The narrowest of them that is as wide as ``keep``; where none is, the widest."""
    enough = [one for one in networks if width(one) >= keep - 1e-9]
    return min(enough, key=width) if enough else max(networks, key=width)


def _empty(path: Path) -> bool:
    """Whether there is nothing in the folder but what an interrupted write left."""
    if not path.is_dir():
        raise BadInput(f"{path} is a file: a zoo is a folder")
    return all(entry.name.startswith(".") for entry in path.iterdir())


def _found_from(zoo: Path, source: str) -> dict[str, Any]:
    """How a zoo says where its backbone is: a file relative to itself, so that both can be moved."""
    architecture, at, file = source.partition("@")
    for prefix, path in (("", source), (architecture, file if at else "")):
        if path and Path(path).is_file():
            relative = os.path.relpath(Path(path).resolve(), zoo.resolve())
            named = {"architecture": prefix} if prefix else {}
            return {"source": relative, "local": True, **named}
    return {"source": source, "local": False}
