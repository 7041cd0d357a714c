"""Reads YAML files strictly and reports every mistake with its file, line and key.

    file → read → Entry (text with positions) → validated → a pydantic model, or Mistakes

Scalars stay text until the model's field parses them, so that YAML's implicit types (``on`` is true,
``1:30`` is 90, ``010`` is 8) cannot change a value. Anchors, aliases, tags, duplicate keys, deep nesting
and large files are refused, because a settings file does not need them.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from mvp_edge_export.quantities import format_bytes, quoted

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 8

Keys = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Mistake:
    """One mistake in a file."""

    path: Path
    line: int | None
    """Line number, from 1; None if the mistake concerns the whole file."""
    text: str
    """Description of the form ``key: what is wrong; what to do``."""

    def __str__(self) -> str:
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.text}"


def lines(mistakes: list[Mistake]) -> list[str]:
    """The mistakes as text without duplicates, sorted by file (in order of appearance) and line."""
    files = list(dict.fromkeys(mistake.path for mistake in mistakes))
    ordered = sorted(mistakes, key=lambda m: (files.index(m.path), m.line or 0))
    return list(dict.fromkeys(map(str, ordered)))


@dataclass(frozen=True)
class Entry:
    """A value in a file, with the line of its key."""

    path: Path
    line: int
    value: "str | list[Entry] | dict[str, Entry] | None"

    def plain(self) -> Any:
        """The value without positions: nested dicts and lists of text and None."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def over(self, base: "Entry") -> "Entry":
        """Merge this entry over ``base``: mappings key by key, anything else replaces the base."""
        if not isinstance(self.value, dict) or not isinstance(base.value, dict):
            return self
        merged = {
            key: entry.over(base.value[key]) if key in base.value else entry
            for key, entry in self.value.items()
        }
        return Entry(self.path, self.line, {**base.value, **merged})

    def nearest(self, keys: Keys) -> "Entry":
        """The entry at ``keys``, or its deepest existing parent."""
        inner: Entry | None = None
        if keys and isinstance(self.value, dict):
            inner = self.value.get(str(keys[0]))
        elif keys and isinstance(self.value, list) and isinstance(keys[0], int):
            inner = self.value[keys[0]]
        return self if inner is None else inner.nearest(keys[1:])


# --- Reading --------------------------------------------------------------------------------------

_NULL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"
_LIST, _MAPPING = "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads scalars as text or null and refuses anchors, aliases and deep nesting."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag == _NULL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors (&) and aliases (*) are not allowed"
        elif self.depth > _MAX_DEPTH:
            problem = f"it is nested deeper than {_MAX_DEPTH} levels"
        if problem:
            mark: Any = event.start_mark
            raise yaml.composer.ComposerError(None, None, problem, mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read(path: Path, mistakes: list[Mistake]) -> Entry | None:
    """Read a YAML file.

    Args:
        path: the file, of at most ``MAX_BYTES``.
        mistakes: list to which mistakes are appended.

    Returns:
        The file's entries; None if the file could not be read or parsed.
    """
    try:
        node = _compose(_text(path))
    except _Unreadable as error:
        mistakes.append(Mistake(path, error.line, error.text))
        return None
    return _entry(node, path, node.start_mark.line + 1, "", mistakes)


class _Unreadable(Exception):
    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise _Unreadable(None, "is not a file; give a YAML file")
        if path.stat().st_size > MAX_BYTES:
            limit = format_bytes(MAX_BYTES)
            raise _Unreadable(None, f"is larger than {limit}; give a page of YAML")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise _Unreadable(None, f"cannot be read: {reason}; give a YAML file") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, "is not UTF-8 text; save it as UTF-8") from error


def _compose(text: str) -> yaml.MappingNode:
    try:
        node = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Unreadable(line, "a control character; remove it") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = quoted(" ".join(filter(None, (error.context, error.problem))), 200).strip('"')
        line_of = mark.line + 1 if mark else None
        raise _Unreadable(line_of, f"{what}; correct the YAML here") from error
    if not isinstance(node, yaml.MappingNode):
        raise _Unreadable(None, "is not a mapping of keys to values; begin with schema: 1")
    return node


def _entry(node: yaml.Node, path: Path, line: int, key: str, mistakes: list[Mistake]) -> Entry:
    if isinstance(node, yaml.MappingNode) and node.tag == _MAPPING:
        return Entry(path, line, dict(_mapping(node, path, key, mistakes)))
    if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
        items = (
            _entry(item, path, item.start_mark.line + 1, f"{key}[{i}]", mistakes)
            for i, item in enumerate(node.value)
        )
        return Entry(path, line, list(items))
    if isinstance(node, yaml.ScalarNode) and node.tag in (_NULL, _TEXT):
        return Entry(path, line, None if node.tag == _NULL else node.value)
    text = f"{key}: the tag {quoted(node.tag)} is not allowed; write the value without it"
    mistakes.append(Mistake(path, line, text.removeprefix(": ")))
    return Entry(path, line, None)


def _mapping(
    node: yaml.MappingNode, path: Path, prefix: str, mistakes: list[Mistake]
) -> Iterator[tuple[str, Entry]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
            text = f"{prefix}: a key must be a word; correct it"
            mistakes.append(Mistake(path, line, text.removeprefix(": ")))
            continue
        key = _dotted((*filter(None, (prefix,)), key_node.value))
        if key_node.value in seen:
            text = f"{key}: stands twice, first in line {seen[key_node.value]}; keep one"
            mistakes.append(Mistake(path, line, text))
            continue
        seen[key_node.value] = line
        yield key_node.value, _entry(value_node, path, line, key, mistakes)


# --- Validating -----------------------------------------------------------------------------------

# Messages for pydantic's types of errors; {ge} and the like are filled from the error's context.
_SAY = {
    "missing": "is missing; add it",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a plain number",
    "float_parsing": "must be a plain number",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "does not have the form that is needed here",
    "date_type": "must be a date",
}


def contradiction(key: str, text: str) -> PydanticCustomError:
    """An error for a field's validator to raise: ``text`` says what is wrong with ``key`` in it."""
    return PydanticCustomError("contradiction", "{text}", {"text": text, "key": key})


def validated(
    model: type[Model],
    tree: Entry,
    mistakes: list[Mistake],
    *,
    also: tuple[str, ...] = (),
    complete: bool = True,
) -> Model | None:
    """Validate entries as a model.

    Args:
        model: class of the model; messages show the ``examples`` of its fields.
        tree: the entries.
        mistakes: list to which mistakes are appended.
        also: top-level keys that a file may have in addition to the model's.
        complete: whether all entries could be read; if not, missing keys are not reported.

    Returns:
        The model; None if there are mistakes.
    """
    try:
        return model.model_validate(tree.plain())
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if complete or detail["type"] != "missing":
                mistakes.append(_mistake(model, tree, detail, also))
        return None


def _mistake(
    model: type[BaseModel], tree: Entry, detail: ErrorDetails, also: tuple[str, ...]
) -> Mistake:
    kind, keys, context = detail["type"], detail["loc"], detail.get("ctx", {})
    field = _field(model, keys)
    if kind == "contradiction":
        keys = (*keys, context["key"])
        what = str(context["text"])
    elif kind == "value_error":
        what = str(context["error"])
    elif kind == "extra_forbidden":
        parent = _field(model, keys[:-1])
        known = _keys(parent.annotation if parent else model) + (() if parent else also)
        what = f"unknown key; {_nearest(keys[-1], known) or 'drop it;'} known: {', '.join(known)}"
    elif kind == "literal_error":
        known = tuple(str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", "))
        near = _nearest(detail["input"], known) or "write another;"
        what = f"{quoted(detail['input'])} is unknown; {near} known: {', '.join(known)}"
    else:
        given = detail["input"]
        what = _SAY[kind].format(**context) if kind in _SAY else detail["msg"]
        what = f"{quoted(given)} {what}" if isinstance(given, str) and kind != "missing" else what
        section = _keys(field.annotation) if field else ()
        if section:
            what += f" with the keys {', '.join(section)}"
        elif field and field.examples:
            what += f", as in {_yaml(field.examples[0])}"
    entry = tree.nearest(keys)
    return Mistake(entry.path, entry.line, f"{_dotted(keys)}: {what}")


def _field(model: type[BaseModel], keys: Keys) -> FieldInfo | None:
    """The field at ``keys``, ignoring list indices; None if there is none."""
    found: FieldInfo | None = None
    inside: type[BaseModel] | None = model
    for key in keys:
        if isinstance(key, int):
            continue
        fields = inside.model_fields.items() if inside else ()
        found = next((field for name, field in fields if (field.alias or name) == key), None)
        inside = _section(found.annotation) if found else None
    return found


def _keys(annotation: object) -> tuple[str, ...]:
    section = _section(annotation)
    fields = section.model_fields.items() if section else ()
    return tuple(field.alias or name for name, field in fields)


def _section(annotation: object) -> type[BaseModel] | None:
    """The model class in a field's annotation, e.g. ``Latency`` in ``Latency | None``."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _nearest(given: object, known: tuple[str, ...]) -> str:
    text = str(given).lower()[:100]
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.75)
    near = near or [name for name in known if text and name.startswith(text)]
    return f"did you mean {near[0]}?" if near else ""


def _dotted(keys: Keys) -> str:
    """Format ``("a", "b", 0)`` as ``a.b[0]``; long or unprintable keys are quoted."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            plain = len(key) <= 100 and key.isprintable()
            text += ("." if text else "") + (key if plain else quoted(key))
    return text


def _yaml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}"
    return str(value)
