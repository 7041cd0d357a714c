"""The zoo: the pruned models of earlier tasks of ONE backbone.

zoo/zoo.json                     the backbone's identity, policy and keep ratio
zoo/entries/<name>/entry.json    labels, synsets, scores, cost, recipe: small, read for listings
network.*     kept indices, the order in which units fell, the weights
0.5/network.* snapshots at larger keep ratios
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import atomic_directory, read_json, write_json

if TYPE_CHECKING:  # listing a zoo must not import torch
    from mvp_edge.backbone import Backbone
    from mvp_edge.network import Network
    from mvp_edge.votes import Voter

_ZOO, _ENTRY = "zoo.json", "entry.json"


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
        from mvp_edge.network import Network

        try:
            return Network.load(self.directory)
        except BadInput as error:
            raise BadInput(
                f"zoo entry {self.name}: {error}; mvp-edge zoo rm {self.name} removes it"
            ) from error

    def voter(self, keep: float) -> "Voter":
        """The entry as it votes for a network of ``keep``, with its smallest sufficient snapshot."""
        from mvp_edge.network import Network
        from mvp_edge.votes import Voter

        enough = [ratio for ratio in self.snapshots if float(ratio) >= keep - 1e-9]
        network = self.network
        if keep > self.keep + 1e-9 and enough:
            network = Network.load(self.directory / min(enough, key=float))
        return Voter(self.name, network.kept, self.network.ranking, network.weights)


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
        if facts.get("schema") != 1:
            raise BadInput(
                f"{path / _ZOO}: schema {facts.get('schema')!r} is unknown; this version reads 1"
            )
        return cls(path, facts)

    @classmethod
    def create(cls, path: Path, backbone: "Backbone", policy: str, keep: float) -> "Zoo":
        """Open the zoo at ``path``, made if need be; BadInput if it belongs to something else."""
        if not (path / _ZOO).exists():
            if path.exists() and any(path.iterdir()):
                raise BadInput(f"{path} is neither empty nor a zoo: choose another folder")
            source = Path(backbone.source)
            local = source.exists()
            facts = {
                "schema": 1,
                "backbone": {
                    "name": backbone.name,
                    "sha256": backbone.sha256,
                    "source": os.path.relpath(source.resolve(), path.resolve())
                    if local
                    else backbone.source,
                    "local": local,
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

    @property
    def keep(self) -> float:
        """The keep ratio that the zoo was built at."""
        return float(self.facts["keep"])

    @property
    def policy(self) -> str:
        """The policy that the zoo was built with."""
        return str(self.facts["policy"])

    @property
    def backbone_source(self) -> str:
        """What to load the zoo's backbone by."""
        backbone = self.facts["backbone"]
        source = str(backbone["source"])
        return os.path.normpath(self.path / source) if backbone["local"] else source

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
        return [self.entry(name) for name in self.names()]

    def names(self) -> list[str]:
        """The entries' names, sorted."""
        folder = self.path / "entries"
        if not folder.is_dir():
            return []
        return sorted(
            e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")
        )

    def entry(self, name: str) -> Entry:
        """One entry by name."""
        directory = self.path / "entries" / name
        if name not in self.names():
            raise BadInput(f"zoo {self.path} has no entry {name!r}: mvp-edge zoo list {self.path}")
        try:
            facts = read_json(directory / _ENTRY, f"zoo entry {name}")
            return Entry(
                name,
                directory,
                tuple(facts["classes"]),
                tuple(facts["synsets"]),
                facts["scores"],
                facts["cost"],
                facts["recipe"],
                float(facts["keep"]),
                tuple(facts["snapshots"]),
            )
        except KeyError as error:
            raise BadInput(f"zoo entry {name}: {directory / _ENTRY} lacks {error}") from error

    def add(
        self,
        name: str,
        network: "Network",
        *,
        synsets: Sequence[str],
        scores: Mapping[str, float],
        cost: Mapping[str, int],
        recipe: Mapping[str, Any],
        keep: float,
        snapshots: Mapping[float, "Network"] | None = None,
        force: bool = False,
    ) -> Entry:
        """Write an entry, whole or not at all."""
        if network.backbone_sha256 != self.facts["backbone"]["sha256"]:
            raise BadInput(
                f"zoo {self.path} belongs to another backbone than this model ({network.backbone})"
            )
        if network.policy != self.policy:
            raise BadInput(
                f"zoo {self.path} was built with policy {self.policy!r}, not {network.policy!r}"
            )
        if "/" in name or name.startswith(".") or not name:
            raise BadInput(f"zoo entry name {name!r} must be a plain folder name")
        snapshots = snapshots or {}
        with atomic_directory(self.path / "entries" / name, force=force) as partial:
            network.save(partial)
            for ratio, larger in snapshots.items():
                (partial / f"{ratio:g}").mkdir()
                larger.save(partial / f"{ratio:g}")
            facts = {
                "schema": 1,
                "name": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "classes": list(network.classes),
                "synsets": list(synsets),
                "scores": dict(scores),
                "cost": dict(cost),
                "recipe": dict(recipe),
                "keep": keep,
                "snapshots": [f"{ratio:g}" for ratio in snapshots],
            }
            write_json(partial / _ENTRY, facts)
        return self.entry(name)

    def remove(self, name: str) -> None:
        """Delete an entry."""
        if name not in self.names():
            raise BadInput(f"zoo {self.path} has no entry {name!r}: mvp-edge zoo list {self.path}")
        shutil.rmtree(self.path / "entries" / name)

    def verify(self, backbone: "Backbone") -> dict[str, str]:
        """Entry name → what is wrong with it, for every broken entry."""
        self.check(backbone)
        broken = {}
        for name in self.names():
            try:
                entry = self.entry(name)
                entry.network.check(backbone)
                for ratio in entry.snapshots:
                    from mvp_edge.network import Network

                    Network.load(entry.directory / ratio).check(backbone)
            except BadInput as error:
                broken[name] = str(error)
        return broken
