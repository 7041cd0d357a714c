"""The zoo: the pruned models of earlier tasks of ONE backbone.

zoo/zoo.json                    the backbone's identity, policy and keep ratio
zoo/entries/<name>/
    entry.json                  labels, synsets, scores, cost, recipe: small, read for listings
    network.*                   kept indices, the order in which units were pruned, the weights
    0.5/network.*               snapshots at larger keep ratios
zoo/trunks/<keep>/              networks trained on all of its tasks, stored as entries (mvp_edge.zoo.trunk)
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, Unpack

from mvp_edge.zoo.files import EntryFile, EntryRecipe, ZooBackbone, ZooFile
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_directory

if TYPE_CHECKING:  # listing a zoo must not import torch
    from mvp_edge.pruning.votes import Voter
    from mvp_edge.subnetwork.backbone import Backbone
    from mvp_edge.subnetwork.network import Network

_ZOO, _ENTRY = "zoo.json", "entry.json"
_ENTRIES, _TRUNKS = "entries", "trunks"
_Network = TypeVar("_Network")


class EntryFacts(TypedDict):
    """What is written of an entry in addition to its networks."""

    synsets: Sequence[str]
    scores: Mapping[str, float]
    cost: Mapping[str, int]
    recipe: Mapping[str, Any]
    keep: float
    snapshots: NotRequired[Mapping[float, "Network"]]


@dataclass(frozen=True)
class Entry:
    """One pruned model of the zoo. Its tensors are read only when they are needed."""

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
        """The model itself; BadInput names the entry if its files are broken."""
        return self._load(self.directory)

    @property
    def weights_sha256(self) -> str:
        """The sha256 of its tensors, as its description states it."""
        from mvp_edge.subnetwork.network import DESCRIPTION, NetworkFile

        try:
            return NetworkFile.read(self.directory / DESCRIPTION).sha256
        except BadInput as error:
            raise _broken(self.directory, error) from error

    def voter(self, keep: float, similarity: float = 0.0) -> "Voter":
        """The entry as a voter for a network of keep ratio ``keep``.

        It votes by its own ranking. Its weights are those of its narrowest network with at least that
        keep ratio, or of its widest if none has. ``similarity`` is that of its task to the new one.
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
    facts: ZooFile = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> "Zoo":
        """Open an existing zoo."""
        if not (path / _ZOO).exists():
            raise BadInput(
                f"{path} is not a zoo ({_ZOO} is missing): mvp-edge zoo build --backbone B --tasks DIR --zoo {path}"
            )
        try:
            return cls(path, ZooFile.read(path / _ZOO))
        except BadInput as error:
            raise BadInput(f"{error}: restore the file, or build the zoo anew") from error

    @classmethod
    def create(cls, path: Path, backbone: "Backbone", policy: str, keep: float) -> "Zoo":
        """Open the zoo at ``path``, made if need be; BadInput if it belongs to something else."""
        if not (path / _ZOO).exists():
            if path.exists() and not _empty(path):
                raise BadInput(f"{path} is neither empty nor a zoo: choose another folder")
            described = ZooBackbone(
                name=backbone.name,
                sha256=backbone.sha256,
                input_size=backbone.preprocess.size,
                **_found_from(path, backbone.source),
            )
            ZooFile(backbone=described, policy=policy, keep=keep).write(path / _ZOO)
        zoo = cls.open(path)
        zoo.check(backbone, policy)
        if abs(zoo.keep - keep) > 1e-9:
            raise BadInput(
                f"zoo {path} holds models at keep {zoo.keep:g}, not {keep:g}: choose another folder"
            )
        return zoo

    def __repr__(self) -> str:
        backbone, count = self.facts.backbone.name, len(self.names())
        return f"Zoo {self.path}: {count} tasks pruned from {backbone}, {self.policy}, keep {self.keep:g}"

    @property
    def keep(self) -> float:
        """The keep ratio that the zoo was built at."""
        return self.facts.keep

    @property
    def policy(self) -> str:
        """The policy that the zoo was built with: which units are pruned together."""
        return self.facts.policy

    @property
    def backbone_source(self) -> str:
        """What to load the zoo's backbone by."""
        backbone = self.facts.backbone
        if not backbone.local:
            return backbone.source
        file = os.path.normpath(self.path / backbone.source)
        if not Path(file).exists():  # behind a symbolic link, ".." leads elsewhere
            file = os.path.normpath(self.path.resolve() / backbone.source)
        return f"{backbone.architecture}@{file}" if backbone.architecture else file

    @property
    def input_size(self) -> int:
        """Side in pixels of the square input that the zoo's models take."""
        return self.facts.backbone.input_size

    def check(self, backbone: "Backbone", policy: str | None = None) -> None:
        """Refuse another backbone or policy than the zoo's."""
        mine = self.facts.backbone
        if mine.sha256 != backbone.sha256:
            raise BadInput(
                f"zoo {self.path} belongs to the backbone {mine.name} ({mine.sha256[:12]}, "
                f"{mine.input_size} px), not to {backbone.name} ({backbone.sha256[:12]}, "
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
        """The networks trained on all of its tasks, the narrowest first; BadInput names a broken one."""
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
            facts = EntryFile.read(directory / _ENTRY)
            if directory.parent.name == _TRUNKS and "val" not in facts.scores:
                raise BadInput(f"entry: {directory / _ENTRY}: scores: val is missing")
        except BadInput as error:
            raise _broken(directory, error) from error
        return Entry(
            directory.name,
            directory,
            facts.classes,
            facts.synsets,
            facts.scores,
            facts.cost,
            facts.recipe.model_dump(mode="json", exclude_none=True),
            facts.keep,
            facts.snapshots,
        )

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
        """Write a network trained on all of the zoo's tasks, whole or not at all."""
        return self._write(self.path / _TRUNKS / f"{facts['keep']:g}", network, force, facts)

    def _write(self, directory: Path, network: "Network", force: bool, facts: EntryFacts) -> Entry:
        if network.backbone_sha256 != self.facts.backbone.sha256:
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
            EntryFile(
                name=directory.name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                classes=tuple(network.classes),
                synsets=tuple(facts["synsets"]),
                scores=dict(facts["scores"]),
                cost=dict(facts["cost"]),
                recipe=EntryRecipe.model_validate(dict(facts["recipe"])),
                keep=facts["keep"],
                snapshots=tuple(f"{ratio:g}" for ratio in snapshots),
            ).write(partial / _ENTRY)
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


def _broken(entry: Path, reason: BadInput) -> BadInput:
    zoo = entry.parent.parent
    if entry.parent.name == _TRUNKS:
        remedy = f"mvp-edge zoo trunk {zoo} --tasks DIR --keep {entry.name} --force makes it anew"
        return BadInput(f"the zoo's trunk {entry.name} is broken: {reason}; {remedy}")
    remedy = f"mvp-edge zoo rm {zoo} {entry.name} removes it"
    return BadInput(f"zoo entry {entry.name} is broken: {reason}; {remedy}")


def is_zoo(path: Path) -> bool:
    """Whether there is a zoo at ``path``, sound or not."""
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
    """The narrowest network with a keep ratio of at least ``keep``; if there is none, the widest."""
    enough = [one for one in networks if width(one) >= keep - 1e-9]
    return min(enough, key=width) if enough else max(networks, key=width)


def _empty(path: Path) -> bool:
    """Whether the folder holds nothing but what an interrupted write left."""
    if not path.is_dir():
        raise BadInput(f"{path} is a file: a zoo is a folder")
    return all(entry.name.startswith(".") for entry in path.iterdir())


def _found_from(zoo: Path, source: str) -> dict[str, Any]:
    """Where the backbone is, for zoo.json: a file's path is relative to the zoo, so that both can be moved."""
    architecture, at, file = source.partition("@")
    for prefix, path in (("", source), (architecture, file if at else "")):
        if path and Path(path).is_file():
            relative = os.path.relpath(Path(path).resolve(), zoo.resolve())
            named = {"architecture": prefix} if prefix else {}
            return {"source": relative, "local": True, **named}
    return {"source": source, "local": False}
