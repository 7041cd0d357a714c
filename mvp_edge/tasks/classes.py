"""Chooses the classes of a task and refuses classes and images that cannot be used.

scan ─▶ choose_classes ─▶ check_images ─▶ refuse_unusable ─▶ (splits)
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mvp_edge.tasks.decoded import Progress, undecodable
from mvp_edge.tasks.labels import Found, Scan, class_name
from mvp_edge_export.errors import BadInput


def choose_classes(source: Path, scanned: Scan, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The classes to use, sorted: those wanted, or all.

    Raises:
        BadInput: one is unknown, named twice or without an image, or there are fewer than two.
    """
    known = sorted({one.label for one in scanned.found} | set(scanned.empty))
    chosen = known if wanted is None else sorted(class_name(one, "task") for one in wanted)
    for label, following in zip(chosen, [*chosen[1:], None], strict=True):
        if label not in known:
            near = difflib.get_close_matches(label, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {_named(known)}"
            raise BadInput(f"task {source}: there is no class {label!r} in it; {hint}")
        if label == following:
            raise BadInput(f"task {source}: class {label!r} is named twice")
        if label in scanned.empty:
            raise BadInput(
                f"task {source}: class folder {label!r} has no image in it: add some, or remove it"
            )
    if len(chosen) < 2:
        raise BadInput(f"task {source}: one class only, {_named(chosen)}: at least two are needed")
    return tuple(chosen)


def check_images(
    source: Path, found: Iterable[Found], progress: Progress | None = None
) -> list[Found]:
    """Decode every image once; the problem of an undecodable image is the reason."""
    images = list(found)
    bad = undecodable(source, [one for one in images if not one.problem], progress)
    return [one._replace(problem=bad.get(one.file, one.problem)) for one in images]


def refuse_unusable(source: Path, classes: Sequence[str], found: Sequence[Found]) -> None:
    """Raise BadInput, naming the class, if splits differ in classes or a class has no training image."""
    labels: dict[str, set[str]] = {}
    for one in found:
        labels.setdefault(one.split or "train", set()).add(one.label)
    if "train" not in labels:
        raise BadInput(f"task {source} has {' and '.join(sorted(labels))}, but no train images")
    trained = [one for one in found if one.split in ("", "train")]
    left = {one.label for one in trained if not one.problem}
    for label in classes:
        missing = sorted(split for split, of in labels.items() if label not in of)
        if missing:
            there = sorted(labels.keys() - missing)
            raise BadInput(
                f"task {source}: class {label!r} is in {' and '.join(there)}, "
                f"but not in {' and '.join(missing)}: every split needs the same classes"
            )
        if label not in left:
            lost = [one for one in trained if one.label == label]
            raise BadInput(
                f"task {source}: class {label!r} has no image left to train on: none of its "
                f"{len(lost)} can be read ({lost[0].file!r}: {lost[0].problem})"
            )


def _named(labels: Sequence[str]) -> str:
    more = ["..."] if len(labels) > 8 else []
    return ", ".join([*map(repr, labels[:8]), *more])
