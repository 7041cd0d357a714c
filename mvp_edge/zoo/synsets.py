"""The meanings of class names: noun synsets of WordNet 3.0, and the similarity of two of them.

A class name is looked up in this order:

    the user's own map → senses chosen by hand → ImageNet id → the name → its head noun

Synsets have NLTK's names: ``dog.n.01`` is the first noun sense of which "dog" is the first word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from nltk.corpus.reader.wordnet import WordNetError

from mvp_edge.zoo.wordnet import VERSION, read_nouns
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import read_json

KNOWN_SENSES: Mapping[str, str] = MappingProxyType(
    {
        # CIFAR-100: the first sense of the name is not what the images show, or there is none.
        "aquarium_fish": "fish.n.01",
        "beaver": "beaver.n.07",
        "castle": "castle.n.02",
        "cloud": "cloud.n.02",
        "dolphin": "dolphin.n.02",
        "flatfish": "flatfish.n.02",
        "forest": "forest.n.02",
        "keyboard": "computer_keyboard.n.01",
        "leopard": "leopard.n.02",
        "lobster": "lobster.n.02",
        "maple_tree": "maple.n.02",
        "otter": "otter.n.02",
        "plate": "plate.n.04",
        "raccoon": "raccoon.n.02",
        "ray": "ray.n.07",
        "seal": "seal.n.09",
        "shrew": "shrew.n.02",
        "skunk": "skunk.n.04",
        "sweet_pepper": "sweet_pepper.n.02",
        "table": "table.n.02",
        "television": "television_receiver.n.01",
        "tiger": "tiger.n.02",
        "trout": "trout.n.02",
        "turtle": "turtle.n.02",
        "whale": "whale.n.02",
        # Handwritten digits: "zero" is first of all nothing; one to nine are digits already.
        "zero": "zero.n.02",
        # Imagenette: the building, not the body of believers.
        "church": "church.n.02",
    }
)
"""Class name → the sense that its images show."""

_SYNSET = re.compile(r"[^\s]+\.n\.0*[1-9]\d*")
_IMAGENET_ID = re.compile(r"(n\d{8})(?![^\W_])")  # Stanford Dogs has n02085620-Chihuahua
_PREPOSITION = re.compile(r"_(?:of|with|without|in|on|for|from)_")  # cup_of_coffee is a cup
_LARGEST_MAP = 1 << 20  # bytes


@dataclass(frozen=True)
class Meaning:
    """The meaning that a class name was given."""

    class_name: str
    synset: str
    """For example ``dog.n.01``."""
    how: Literal["map", "ImageNet id", "name", "head noun"]
    """How it was found: in the user's map, by an ImageNet id in the name, by the name, or by its last noun only."""
    gloss: str
    """WordNet's definition, by which a user can recognise a wrong sense."""


class WordNet:
    """The nouns of one WordNet; made by ``open_wordnet``."""

    source: str
    """The folder or zip that was read."""

    def __init__(self, reader: Any, source: str) -> None:
        self.source = source
        self._reader = reader
        self._synsets: dict[str, Any] = {}
        self._wup: dict[tuple[str, str], float] = {}
        self._compounds: dict[str, str] = {}

    def synset_of(self, class_name: str, overrides: Mapping[str, str] | None = None) -> str:
        """The synset of one class; see ``meanings``."""
        return self.meanings([class_name], overrides)[0].synset

    def meanings(
        self, class_names: Iterable[str], overrides: Mapping[str, str] | None = None
    ) -> list[Meaning]:
        """The meaning of each class name, in order.

        Args:
            class_names: names, with words separated by spaces, underscores or hyphens, in singular
                or plural; "name, synonym, synonym"; or folders named by ImageNet ids.
            overrides: class name → synset or ImageNet id, as ``load_overrides`` reads it. It
                takes precedence.

        Raises:
            BadInput: naming every class that cannot be mapped, and how to map it.
        """
        by_user = {_folded(name): target for name, target in (overrides or {}).items()}
        by_user |= overrides or {}
        found = [(name, self._meaning(name, by_user)) for name in class_names]
        unknown = [name for name, meaning in found if meaning is None]
        if unknown:
            raise BadInput(
                f"WordNet {VERSION} has no noun for {_classes(unknown)}: name the synset in a "
                f"file with lines like `{unknown[0]}: SYNSET` (e.g. dog.n.01), given by --synsets"
            )
        return [meaning for _, meaning in found if meaning is not None]

    def wup(self, a: str, b: str) -> float:
        """Wu–Palmer similarity of two synsets (Wu and Palmer 1994): in (0, 1], symmetric, 1 for equal synsets.

        NLTK computes it and finds the lowest common ancestor by shortest paths. By shortest paths a
        synset can lie higher than one of its own ancestors; NLTK's wup(s, s) is then below 1, and
        its value for (a, ancestor of a) differs from that for (ancestor of a, a), because it checks
        only its first argument for being a common ancestor. Therefore the first argument is always the
        synset with the smaller depth by *longest* paths, by which no synset lies higher than its ancestors.
        """
        if a == b:
            return 1.0
        pair = (a, b) if a < b else (b, a)
        if pair not in self._wup:
            upper, lower = sorted(map(self._synset, pair), key=lambda synset: synset.max_depth())
            self._wup[pair] = float(upper.wup_similarity(lower))
        return self._wup[pair]

    def _meaning(self, name: str, by_user: Mapping[str, str]) -> Meaning | None:
        target = by_user.get(name, by_user.get(_folded(name)))
        if target is not None:
            return _meaning(name, self._mapped(name, target), "map")
        if imagenet_id := _IMAGENET_ID.match(name):
            return _meaning(name, self._by_imagenet_id(name, imagenet_id[1]), "ImageNet id")
        # Of "brass, memorial tablet, plaque" the sense is meant that most of the names share.
        synonyms = re.split(r"[,;/|]", name)
        votes = Counter(sense for synonym in synonyms for sense in self._senses(synonym))
        if votes:
            return _meaning(name, votes.most_common(1)[0][0], "name")
        for synonym in synonyms:
            if (sense := self._head_noun(synonym)) is not None:
                return _meaning(name, sense, "head noun")
        return None

    def _senses(self, phrase: str) -> list[Any]:
        """The senses of a noun, the likeliest first; [] for what WordNet does not know."""
        folded = _folded(phrase)
        senses: list[Any] = []
        if known := KNOWN_SENSES.get(folded) or KNOWN_SENSES.get(folded.removesuffix("s")):
            senses.append(self._synset(known))
        written = "_".join(phrase.lower().split())  # with its hyphens and apostrophes: jack-o'-...
        forms = (written, folded, folded.replace("_", ""))
        found = next(filter(None, (self._reader.synsets(form, "n") for form in forms)), None)
        if not found and (compound := self._compound(folded)):
            found = self._reader.synsets(compound, "n")
        senses += found or []
        return list(dict.fromkeys(senses))

    def _compound(self, folded: str) -> str | None:
        """WordNet's spelling of a compound: black-footed_albatross for black_footed_albatross."""
        if not self._compounds:
            for lemma in self._reader.all_lemma_names("n"):
                self._compounds.setdefault(re.sub(r"[\W_]", "", lemma), lemma)
        return self._compounds.get(folded.replace("_", ""))

    def _head_noun(self, phrase: str) -> Any | None:
        folded = _folded(phrase)
        noun = _PREPOSITION.split(folded)[0]
        words = noun.split("_")
        first = 1 if noun == folded else 0  # the whole name is not known, as the caller found
        for start in range(first, len(words)):
            tail = "_".join(words[start:])
            # The "7" of class_7 and the "a" of type_a are in WordNet (seven, ångström), but are not meant.
            if re.fullmatch(r"[a-z]{3}.*", tail) and (senses := self._senses(tail)):
                return senses[0]
        return None

    def _mapped(self, class_name: str, target: str) -> Any:
        if _IMAGENET_ID.fullmatch(target):
            return self._by_imagenet_id(class_name, target)
        try:
            return self._synset(target)
        except BadInput as error:
            raise BadInput(f"the map of class {class_name!r}: {error}") from error

    def _by_imagenet_id(self, class_name: str, imagenet_id: str) -> Any:
        try:
            return self._reader.synset_from_pos_and_offset("n", int(imagenet_id[1:]))
        except BadInput as error:
            raise BadInput(
                f"class {class_name!r}: {imagenet_id} is not a noun of WordNet {VERSION}"
            ) from error

    def _synset(self, name: str) -> Any:
        if name not in self._synsets:
            try:
                # NLTK would take sense 0 for the last one.
                self._synsets[name] = self._reader.synset(name) if _SYNSET.fullmatch(name) else None
            except WordNetError:
                self._synsets[name] = None
        if self._synsets[name] is None:
            raise BadInput(
                f"{name!r} is neither a noun synset of WordNet {VERSION} like dog.n.01 nor an "
                f"ImageNet id like n02084071"
            )
        return self._synsets[name]


def open_wordnet() -> WordNet:
    """Find and read WordNet 3.0.

    Raises:
        BadInput: there is none, with the commands that would fetch it; or it is damaged.
    """
    return WordNet(*read_nouns())


wordnet = cache(open_wordnet)
"""WordNet, read once a process."""


def synsets_of(classes: Sequence[str], overrides: Mapping[str, str] | None = None) -> list[str]:
    """The classes' synsets; [] where not every name has one, or there is no WordNet."""
    try:
        return [meaning.synset for meaning in wordnet().meanings(classes, overrides)]
    except BadInput:
        return []


def load_overrides(path: Path) -> dict[str, str]:
    """Read a user's map: lines of ``class name: synset``, YAML or JSON.

    Returns:
        Class name → synset (``dog.n.01``) or ImageNet id (``n02084071``), not yet looked up.

    Raises:
        BadInput: naming file and line.
    """
    try:
        if path.stat().st_size > _LARGEST_MAP:
            raise BadInput(f"{path} is larger than 1 MB: a map has lines like `cat: cat.n.01`")
        if path.suffix.lower() == ".json":
            return _checked(path, _json_pairs(path))
        # Composed, not constructed: class names like 0, no or 1e3 stay what the user wrote.
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not `class name: synset` ({error.problem})") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BadInput(f"the class map {path} cannot be read ({reason})") from error
    if not isinstance(document, yaml.MappingNode):
        raise BadInput(f"{path} is no map: write lines like `cat: cat.n.01`")
    return _checked(
        path,
        (
            (f"{path}:{key.start_mark.line + 1}", str(key.value), value.value)
            for key, value in document.value
        ),
    )


def _json_pairs(path: Path) -> list[tuple[str, str, Any]]:
    document = read_json(path, "class map")
    if not isinstance(document, dict):
        raise BadInput(f'{path} is no map: write {{"cat": "cat.n.01", ...}}')
    return [(str(path), name, target) for name, target in document.items()]


def _checked(path: Path, pairs: Iterable[tuple[str, str, Any]]) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for where, name, target in pairs:
        if not (
            isinstance(target, str)
            and (_SYNSET.fullmatch(target) or _IMAGENET_ID.fullmatch(target))
        ):
            raise BadInput(
                f"{where}: {name}: not a noun synset like dog.n.01 or an ImageNet id like n02084071"
            )
        if overrides.setdefault(name, target) != target:
            raise BadInput(f"{where}: {name} is mapped twice, to {overrides[name]} and {target}")
    if not overrides:
        raise BadInput(f"{path} is empty: write lines like `cat: cat.n.01`")
    return overrides


def _meaning(
    name: str, synset: Any, how: Literal["map", "ImageNet id", "name", "head noun"]
) -> Meaning:
    return Meaning(name, synset.name(), how, synset.definition())


def _folded(name: str) -> str:
    """Lower case, without accents or what stands in brackets, words joined by underscores."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\(.*?\)", " ", name))  # SeaLake
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'’")
    return "_".join(re.findall(r"[^\W_]+", plain))


def _classes(names: list[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"class{'es' if len(names) > 1 else ''} {listed}{more}"
