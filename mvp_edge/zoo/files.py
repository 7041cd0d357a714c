"""The JSON files of a zoo: zoo.json of the zoo itself, entry.json of each entry and trunk."""

from typing import ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from mvp_edge.schema import JsonFile, MethodName, Part


class ZooBackbone(Part):
    """The backbone that all models of the zoo were pruned from."""

    name: str
    sha256: str
    source: str
    """What to load it by; a path relative to the zoo if it is ``local``."""
    local: bool
    architecture: str | None = None
    """timm's architecture, where ``source`` is a file that does not name it."""
    input_size: int = Field(ge=1)
    """Side of the square input in pixels."""


class ZooFile(JsonFile):
    """zoo.json: the zoo's backbone, and how it was pruned."""

    kind: ClassVar[str] = "zoo"
    omits_null: ClassVar[bool] = True

    backbone: ZooBackbone
    policy: str
    """Which units are pruned together."""
    keep: float = Field(gt=0, le=1)
    """The keep ratio of the entries."""


class PooledImages(Part):
    """Numbers of images that a trunk was trained on."""

    labelled: int
    unlabelled: int


class EntryRecipe(Part):
    """How an entry was made. Further keys, as the learning rate, are kept as they are."""

    model_config = ConfigDict(extra="allow")

    method: MethodName
    steps: int
    images: PooledImages | None = None
    """Only for trunks."""


class EntryFile(JsonFile):
    """entry.json: what is known of an entry without reading its tensors."""

    kind: ClassVar[str] = "entry"
    omits_null: ClassVar[bool] = True

    name: str = ""
    created: str = ""
    """When it was written, in ISO 8601, UTC."""
    classes: tuple[str, ...] = Field(min_length=1)
    synsets: tuple[str, ...]
    """WordNet synset of each class; empty if not every class has one."""
    scores: dict[str, float]
    """Split → top-1, 0..1."""
    cost: dict[str, int]
    """Multiply-adds of a forward pass, parameters, multiply-adds of the statistics and the training."""
    recipe: EntryRecipe
    keep: float = Field(gt=0, le=1)
    snapshots: tuple[str, ...]
    """Folders of networks at larger keep ratios, each named by its ratio."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.synsets and len(self.synsets) != len(self.classes):
            raise ValueError(f"{len(self.synsets)} synsets for {len(self.classes)} classes")
        for ratio in self.snapshots:
            try:
                float(ratio)
            except ValueError as error:
                raise ValueError(f"snapshots: {ratio!r} is not a keep ratio") from error
        return self
