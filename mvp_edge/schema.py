"""JSON files with a schema: one model writes the file and reads it back.

A reader ignores keys that it does not know, so that a file of a newer version can still be read. It checks
every key that it uses, and says in one line which key of which file is wrong. This module and the
models built on it import neither PyTorch nor timm.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from mvp_edge.methods.names import current_name
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import read_json, write_json
from mvp_edge_export.verified import parse

MethodName = Annotated[str, BeforeValidator(current_name)]
"""A pruning method; files of version 0.1.0 may call it by an older name."""


class Part(BaseModel):
    """A JSON object within a file. It is immutable, and holds neither NaN nor infinity."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that version 0.1.0 did not write; they are left out where there is nothing to say."""

    @model_serializer(mode="wrap")
    def _written(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = usual(self)
        return {k: v for k, v in found.items() if v is not None or k not in self.added}


class JsonFile(Part):
    """A whole JSON file, which states the version of its format."""

    kind: ClassVar[str] = "file"
    """What the file belongs to, as error messages call it: run, zoo, …"""
    omits_null: ClassVar[bool] = False
    """Whether keys without a value are left out of the file."""

    schema_: Literal[1] = Field(default=1, alias="schema")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file at ``path``.

        Raises:
            BadInput: the file is missing, is not JSON, or a value in it is wrong.
        """
        value = read_json(path, cls.kind)
        if isinstance(value, dict) and value.get("schema") != 1:
            found = repr(value["schema"]) if "schema" in value else "(missing)"
            raise BadInput(
                f"{cls.kind}: {path}: schema {found} is unknown; this version reads schema 1"
            )
        return parse(cls, value, cls.kind, path)

    def write(self, path: Path) -> None:
        """Write the file to ``path``, whole or not at all."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=self.omits_null)
        write_json(path, content)
