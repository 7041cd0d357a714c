"""Finding WordNet 3.0 on this machine, and reading its nouns through NLTK.

    the user's NLTK data → $WNSEARCHDIR, $WNHOME → the system's folders → the noun reader

The names of synsets and ImageNet's ids mean something only within one version of WordNet, and zoo
entries keep them: so no other version than 3.0 is read.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import nltk.data
from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

from mvp_edge_export.errors import BadInput

VERSION = "3.0"

SYSTEM_FOLDERS = ("/usr/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/WordNet-3.0/dict")
"""The folders in which Debian, Arch and Princeton's installer put WordNet's files."""

HOW_TO_FETCH = "`python -m nltk.downloader wordnet` or, on Debian, `sudo apt install wordnet-base`"

LEXNAMES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event"),
    *("noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object"),
    *("noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
    *("verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition"),
    *("verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather"),
    "adj.ppl",
)
"""The lexicographer files in the order of their numbers, from lexnames(5WN)."""

# What reading a damaged file ends in; AssertionError and StopIteration are NLTK's for a line that
# ends too soon.
_DAMAGE = (OSError, ValueError, LookupError, EOFError, BadZipFile, AssertionError, StopIteration)


def read_nouns() -> tuple[Any, str]:
    """Read the first WordNet 3.0 that is found.

    Returns:
        NLTK's ``WordNetCorpusReader``, of which only the nouns can be asked, and where it read.

    Raises:
        BadInput: there is none, with the commands that would fetch it; or it is damaged.
    """
    others = ""
    for root in _candidates():
        try:
            with root.join("data.noun").open() as stream:
                header = stream.read(1 << 12).decode()
        except _DAMAGE as error:
            raise _damaged(root, error) from error
        licence = re.search(r"WordNet (\S+) Copyright", header)
        if licence is not None and licence[1] == VERSION:
            return _reader(root), str(root)
        others += f" ({root} has another version)"
    raise BadInput(f"WordNet {VERSION} was not found{others}: fetch it with {HOW_TO_FETCH}")


class _Folder(nltk.data.PathPointer):  # type: ignore[misc]
    """A folder outside ``nltk.data.path``, from which NLTK's own pointers refuse to read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self, encoding: str | None = None) -> BinaryIO:
        return self.path.open("rb")

    def file_size(self) -> int:
        return self.path.stat().st_size

    def join(self, fileid: str) -> "_Folder":
        return _Folder(self.path / fileid)


def _candidates() -> Iterator[Any]:
    """The places with a WordNet, as NLTK's path pointers, in the order of preference."""
    try:
        yield nltk.data.find("corpora/wordnet/")
    except LookupError:
        pass  # the system's will do
    except (OSError, BadZipFile) as error:
        raise _damaged("NLTK's data", error) from error
    folders = [*SYSTEM_FOLDERS]
    if home := os.environ.get("WNHOME"):
        folders = [f"{home}/dict", home, *folders]
    if dictionary := os.environ.get("WNSEARCHDIR"):
        folders = [dictionary, *folders]
    yield from (_Folder(Path(folder)) for folder in folders if Path(folder, "index.noun").is_file())


class _Index(Mapping[str, dict[str, list[int]]]):
    """Lemma → {"n": offsets of its synsets, most frequent first}, from index.noun, as wndb(5WN) has it."""

    def __init__(self, content: bytes, root: Any) -> None:
        lines = content.decode().splitlines()
        self._lines = {line.partition(" ")[0]: line for line in lines if not line.startswith(" ")}
        self._root = root

    def __getitem__(self, lemma: str) -> dict[str, list[int]]:
        fields = self._lines[lemma].split()
        try:
            synsets, pointers = int(fields[2]), int(fields[3])
            offsets = [int(field) for field in fields[6 + pointers :]]
            if not len(offsets) == synsets == int(fields[4 + pointers]) > 0:
                raise ValueError(f"{lemma} has not the {synsets} synsets that it says")
        except (ValueError, IndexError) as error:
            raise _damaged(self._root, f"index.noun: {error}") from error
        return {fields[1]: offsets}

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def _reader(root: Any) -> Any:
    """NLTK's reader over the three noun files of ``root``; all other files appear empty."""
    read: dict[int, Any] = {}  # offset → synset

    class NounReader(WordNetCorpusReader):  # type: ignore[misc]
        def open(self, file: str) -> io.TextIOWrapper:
            content = b""
            if file == "lexnames":  # Debian leaves it out
                lines = (f"{number:02d} {name} 1\n" for number, name in enumerate(LEXNAMES))
                content = "".join(lines).encode()
            elif file in ("index.noun", "data.noun", "noun.exc"):
                with self.root.join(file).open() as stream:
                    content = stream.read()
            return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="\n")

        def _load_lemma_pos_offset_map(self) -> None:
            # NLTK would parse 118,000 lines, where a few are asked for.
            with self.root.join("index.noun").open() as stream:
                self._lemma_pos_offset_map = _Index(stream.read(), root)

        def map_wn(self, version: str = "wordnet") -> dict[str, str]:
            return {}  # to other versions: it would need index.sense, which Debian leaves out

        def get_version(self) -> str:
            return VERSION

        def synset_from_pos_and_offset(self, pos: str, offset: int) -> Any:
            if offset in read:
                return read[offset]
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "No WordNet synset found")
                    synset = super().synset_from_pos_and_offset(pos, offset)
            except (WordNetError, *_DAMAGE) as error:
                raise _damaged(root, error) from error
            if synset is None:
                raise _damaged(root, f"no noun at {offset:08d}")
            return read.setdefault(offset, synset)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The multilingual functions are not available")
        try:
            return NounReader(root, omw_reader=None)
        except (WordNetError, *_DAMAGE) as error:
            raise _damaged(root, error) from error


def _damaged(root: Any, why: Exception | str) -> BadInput:
    reason = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
    return BadInput(f"WordNet in {root} is damaged ({reason}): remove it and use {HOW_TO_FETCH}")
