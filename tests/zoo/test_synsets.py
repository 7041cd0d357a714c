"""Class names → synsets, on the system's WordNet where there is one and always on a small one."""

import json
import zipfile
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from mvp_edge.zoo import wordnet
from mvp_edge.zoo.synsets import KNOWN_SENSES, Meaning, WordNet, load_overrides, open_wordnet
from mvp_edge_export.errors import BadInput

CIFAR_100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR_100 = CIFAR_100_NAMES.split()
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

# The first word of each line, its sense number and its synonyms | its hypernyms. The hand-made
# hierarchy has the two shapes in which NLTK's wup is not what one expects (see ODD below).
MINIATURE = """
entity.1 | -
animal.1 | entity.1
dog.1 domestic_dog | animal.1
cat.1 | animal.1
mouse.1 | animal.1
fish.1 | animal.1
black-footed_albatross.1 | animal.1
vehicle.1 | entity.1
truck.1 motortruck | vehicle.1
garbage_truck.1 dustcart | truck.1
mouse.2 computer_mouse | vehicle.1
keyboard.1 | vehicle.1
computer_keyboard.1 keypad | vehicle.1
nothing.1 zero.1 | entity.1
zero.2 0 | entity.1
seven.1 7 | entity.1
person.1 | entity.1
adult.1 | person.1
female.1 | entity.1
woman.1 | adult.1 female.1
girl.1 | woman.1
pet.1 | entity.1
toy_dog.1 | dog.1
lapdog.1 | toy_dog.1 pet.1
"""


def write_miniature(folder: Path, version: str = "3.0") -> dict[str, int]:
    """Write MINIATURE as index.noun, data.noun and noun.exc; return synset → offset."""
    folder.mkdir(parents=True)
    header = f"  1 WordNet {version} Copyright 2006 by nobody.  \n"
    rows = [line.split(" | ") for line in MINIATURE.strip().splitlines()]
    names = [row[0].split()[0] for row in rows]
    offsets = dict.fromkeys(names, 0)
    lines: list[str] = []
    for _ in range(2):  # a line's length does not depend on the offsets in it
        lines, position = [], len(header)
        for name, (words, parents) in zip(names, rows, strict=True):
            lemmas = [word.split(".")[0] for word in words.split()]
            pointers = [f"@ {offsets[p]:08d} n 0000" for p in parents.split() if p != "-"]
            lines.append(
                f"{position:08d} 03 n {len(lemmas):02x} {' '.join(f'{w} 0' for w in lemmas)} "
                f'{len(pointers):03d} {" ".join(pointers)} | what {lemmas[0]} is; "so"  \n'
            )
            offsets[name] = position
            position += len(lines[-1])
    senses: dict[str, list[int]] = {}
    for name, (words, _) in zip(names, rows, strict=True):
        for word in words.split():
            senses.setdefault(word.split(".")[0], []).append(offsets[name])
    index = [
        f"{lemma} n {len(at)} 1 @ {len(at)} 0 {' '.join(f'{o:08d}' for o in at)}  \n"
        for lemma, at in sorted(senses.items())
    ]
    (folder / "data.noun").write_text(header + "".join(lines))
    (folder / "index.noun").write_text(header + "".join(index))
    (folder / "noun.exc").write_text("mice mouse\n")
    return offsets


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any WordNet."""
    import nltk.data

    for name in ("WNHOME", "WNSEARCHDIR", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDERS", ())


@pytest.fixture
def mini(nowhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WordNet:
    write_miniature(tmp_path / "WordNet/dict")
    monkeypatch.setenv("WNHOME", str(tmp_path / "WordNet"))
    return open_wordnet()


@pytest.fixture(scope="module")
def real() -> WordNet:
    try:
        return open_wordnet()
    except BadInput as reason:
        pytest.skip(str(reason))


# Where WordNet comes from


def test_the_index_says_of_every_lemma_what_nltks_own_parser_does(real: WordNet) -> None:
    reader = wordnet.read_nouns()[0]
    ours = dict(reader._lemma_pos_offset_map)
    reader._lemma_pos_offset_map = defaultdict(dict)
    WordNetCorpusReader._load_lemma_pos_offset_map(reader)
    assert len(ours) > 100_000
    assert ours == reader._lemma_pos_offset_map


@pytest.mark.usefixtures("nowhere")
def test_without_wordnet_the_error_names_the_two_commands() -> None:
    with pytest.raises(BadInput) as caught:
        open_wordnet()
    assert "python -m nltk.downloader wordnet" in str(caught.value)
    assert "sudo apt install wordnet-base" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_a_folder_that_nltk_refuses_and_leaves_its_settings_alone(
    mini: WordNet, tmp_path: Path
) -> None:
    import nltk.data

    assert mini.source == str(tmp_path / "WordNet/dict")
    assert mini.synset_of("dog") == "dog.n.01"
    assert nltk.data.path == []


@pytest.mark.parametrize("packed", [False, True])
def test_the_users_nltk_data_come_first(
    packed: bool, mini: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk.data

    corpora = tmp_path / "nltk_data/corpora"
    write_miniature(corpora / "wordnet")
    if packed:  # as `python -m nltk.downloader wordnet` leaves it
        with zipfile.ZipFile(corpora / "wordnet.zip", "w") as archive:
            for file in sorted((corpora / "wordnet").iterdir()):
                archive.write(file, f"wordnet/{file.name}")
                file.unlink()
        (corpora / "wordnet").rmdir()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    found = open_wordnet()
    assert found.source.startswith(str(corpora))
    assert found.meanings(["mice"]) == mini.meanings(["mice"])
    assert found.wup("dog.n.01", "cat.n.01") == mini.wup("dog.n.01", "cat.n.01")


@pytest.mark.usefixtures("nowhere")
def test_another_version_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_miniature(tmp_path / "new/dict", version="3.1")
    monkeypatch.setenv("WNHOME", str(tmp_path / "new"))
    with pytest.raises(BadInput, match=r"3\.0 was not found .*new/dict has another version"):
        open_wordnet()
    write_miniature(tmp_path / "old")
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDERS", (str(tmp_path / "old"),))
    assert open_wordnet().source == str(tmp_path / "old")


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("file", ["index.noun", "data.noun", "noun.exc", "wordnet.zip"])
def test_a_damaged_wordnet_is_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk.data

    folder = tmp_path / "corpora/wordnet"
    write_miniature(folder)
    if file == "wordnet.zip":
        folder.rename(tmp_path / "elsewhere")
        folder.with_suffix(".zip").write_bytes(b"PK\3\4 no zip")
    elif file == "noun.exc":
        (folder / file).unlink()
    else:
        whole = (folder / file).read_text()
        (folder / file).write_text(whole[: whole.index("woman") - 15])
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(BadInput, match=r"damaged|not found.*corpora"):
        open_wordnet().synset_of("woman")


# From names to synsets


@pytest.mark.parametrize(
    ("name", "synset", "how"),
    [
        ("dog", "dog.n.01", "name"),
        ("Dogs", "dog.n.01", "name"),
        ("mice", "mouse.n.01", "name"),
        ("Domestic-Dog", "dog.n.01", "name"),
        ("garbage trucks", "garbage_truck.n.01", "name"),
        ("GarbageTruck", "garbage_truck.n.01", "name"),
        ("Black_footed albatross", "black-footed_albatross.n.01", "name"),
        ("dóg (big)", "dog.n.01", "name"),
        ("mouse, computer mouse", "mouse.n.02", "name"),
        ("keyboard", "computer_keyboard.n.01", "name"),
        ("keyboards", "computer_keyboard.n.01", "name"),
        ("aquarium_fish", "fish.n.01", "name"),
        ("zero", "zero.n.02", "name"),
        ("0", "zero.n.02", "name"),
        ("7", "seven.n.01", "name"),
        ("pickup_truck", "truck.n.01", "head noun"),
        ("001.very_small_trucks", "truck.n.01", "head noun"),
        ("truck_of_the_cat", "truck.n.01", "head noun"),
        ("old keyboard", "computer_keyboard.n.01", "head noun"),
    ],
)
def test_names(name: str, synset: str, how: str, mini: WordNet) -> None:
    [meaning] = mini.meanings([name])
    assert (meaning.synset, meaning.how) == (synset, how)
    assert mini.synset_of(name) == synset


def test_a_meaning_carries_its_gloss(mini: WordNet) -> None:
    assert mini.meanings(["cat"]) == [Meaning("cat", "cat.n.01", "name", "what cat is")]


def test_imagenet_ids_are_offsets(mini: WordNet, tmp_path: Path) -> None:
    offsets = write_miniature(tmp_path / "again")
    [plain, named] = mini.meanings([f"n{offsets['cat.1']:08d}", f"n{offsets['dog.1']:08d}-Dog"])
    assert (plain.synset, named.synset) == ("cat.n.01", "dog.n.01")
    assert plain.how == named.how == "ImageNet id"
    with pytest.raises(BadInput, match="class 'n99999999'"):
        mini.synset_of("n99999999")
    with pytest.raises(BadInput, match="not a noun of WordNet"):  # between two synsets
        mini.synset_of(f"n{offsets['cat.1'] + 1:08d}")


def test_the_users_map_decides_before_all_else(mini: WordNet, tmp_path: Path) -> None:
    offsets = write_miniature(tmp_path / "again")
    cat = f"n{offsets['cat.1']:08d}"
    names = ["dog", "keyboard", "Мышь", cat, "Small Cat"]
    overrides = {
        **{"dog": "toy_dog.n.01", "keyboard": "keyboard.n.01", "Мышь": "mouse.n.2"},
        **{cat: "pet.n.01", "small_cat": cat},
    }
    meanings = mini.meanings(names, overrides)
    assert [m.synset for m in meanings] == [
        *("toy_dog.n.01", "keyboard.n.01", "mouse.n.02", "pet.n.01", "cat.n.01")
    ]
    assert {m.how for m in meanings} == {"map"}


@pytest.mark.parametrize("target", ["dog.n.02", "unicorn.n.01", "dog.n.00", "dog.v.01", "dog", ""])
def test_a_map_to_nothing_names_class_and_target(target: str, mini: WordNet) -> None:
    with pytest.raises(BadInput, match=rf"class 'hound'.*'{target}'"):
        mini.synset_of("hound", {"hound": target})


def test_what_cannot_be_mapped_is_named_all_at_once(mini: WordNet) -> None:
    # class_7 and type_0 end in digits that the miniature knows, but do not mean them
    names = ["dog", "healthy", "кошка", "class_7", "type_0", "_"]
    with pytest.raises(BadInput) as caught:
        mini.meanings(names)
    message = str(caught.value)
    assert all(repr(name) in message for name in names[1:])
    assert "'dog'" not in message
    assert "`healthy: SYNSET`" in message
    assert "\n" not in message


# Overrides files


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("map.txt", "# mine\ncat: cat.n.01\n0: zero.n.02\nno: n01440764\n"),
        ("map.yaml", "---\n'cat': \"cat.n.01\"\n0: zero.n.02   # the digit\nno: n01440764\n"),
        ("flow.yml", "{cat: cat.n.01, 0: zero.n.02, no: n01440764}"),
        ("map.json", '{\n\t"cat": "cat.n.01",\n\t"0": "zero.n.02", "no": "n01440764"}'),
    ],
)
def test_maps_in_three_notations(file: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(text)
    assert load_overrides(path) == {"cat": "cat.n.01", "0": "zero.n.02", "no": "n01440764"}


@pytest.mark.parametrize(
    ("file", "text", "culprit"),
    [
        ("map.txt", "cat: cat.n.01\ndog: dog\n", r"map\.txt:2: dog: not a noun synset"),
        ("map.txt", "dog: dog.v.01\n", r"map\.txt:1: dog"),
        ("map.txt", "cat: cat.n.01\n\ncat: cat.n.02\n", r"map\.txt:3: cat is mapped twice"),
        ("map.txt", "cat: [cat.n.01]\n", r"map\.txt:1: cat"),
        ("map.txt", "cat: cat.n.01\n  dog: : dog.n.01\n", r"map\.txt:2"),
        ("map.txt", "cat = cat.n.01\n", r"map\.txt is no map"),
        ("map.txt", "", r"map\.txt is no map"),
        ("map.yaml", "{}", r"map\.yaml is empty"),
        ("map.yaml", "[" * 1000, r"map\.yaml"),
        ("map.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"map\.yaml:1: a"),
        ("map.json", '["cat"]', r"map\.json is no map"),
        ("map.json", '{"cat": 3}', r"map\.json: cat"),
        ("map.json", '{\n"cat": }', r"map\.json:2"),
        ("map.json", "[" * 100_000, r"map\.json"),
        ("map.txt", "cat: cat.n.01\n" * 100_000, r"map\.txt is larger"),
        ("map.txt", "\0", r"map\.txt"),
    ],
)
def test_a_wrong_map_is_named_with_its_line(
    file: str, text: str, culprit: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(BadInput, match=culprit) as caught:
        load_overrides(path)
    assert "\n" not in str(caught.value)


def test_a_map_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.txt cannot be read \(No such file"):
        load_overrides(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("café: cafe.n.01".encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.txt cannot be read"):
        load_overrides(tmp_path / "latin.txt")


# Similarity of synsets


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [  # 2·depth(common) / (depth(a) + depth(b)), where the root has depth 1
        ("dog.n.01", "cat.n.01", 4 / 6),
        ("dog.n.01", "truck.n.01", 2 / 6),
        ("dog.n.01", "garbage_truck.n.01", 2 / 7),
        ("truck.n.01", "garbage_truck.n.01", 6 / 7),
        ("dog.n.01", "entity.n.01", 2 / 4),
        ("woman.n.01", "girl.n.01", 8 / 9),
        ("lapdog.n.01", "lapdog.n.01", 1.0),
    ],
)
def test_wup_by_hand(a: str, b: str, expected: float, mini: WordNet) -> None:
    assert mini.wup(a, b) == pytest.approx(expected, abs=1e-15)
    assert mini.wup(b, a) == mini.wup(a, b)


def test_the_miniature_has_the_odd_cases_of_nltk(mini: WordNet) -> None:
    """Else the last two rows above would prove nothing."""
    woman, girl, lapdog = map(mini._synset, ["woman.n.01", "girl.n.01", "lapdog.n.01"])
    assert woman.wup_similarity(girl) == pytest.approx(8 / 9)
    assert girl.wup_similarity(woman) == pytest.approx(6 / 9)
    assert lapdog.wup_similarity(lapdog) == pytest.approx(8 / 10)


def test_wup_of_an_unknown_synset(mini: WordNet) -> None:
    with pytest.raises(BadInput, match=r"'unicorn\.n\.01'"):
        mini.wup("dog.n.01", "unicorn.n.01")


# On a whole WordNet


def test_every_cifar_100_name_has_its_own_sense(real: WordNet) -> None:
    meanings = real.meanings(CIFAR_100)
    assert len(meanings) == 100 == len({m.synset for m in meanings})
    assert {m.how for m in meanings} == {"name"}
    assert {m.class_name: m.synset for m in meanings if m.class_name in KNOWN_SENSES} == {
        name: synset for name, synset in KNOWN_SENSES.items() if name in CIFAR_100
    }


@pytest.mark.parametrize(
    "superclass",
    [  # as CIFAR-100's authors grouped them: a wrong sense of one name would tear it off
        "beaver dolphin otter seal whale",
        "aquarium_fish flatfish ray shark trout",
        "orchid poppy rose sunflower tulip",
        "bottle bowl can cup",
        "apple orange pear sweet_pepper",
        "bed chair couch table wardrobe",
        "bear leopard lion tiger wolf",
        "crocodile dinosaur lizard snake turtle",
        "fox porcupine possum raccoon skunk",
        "hamster mouse rabbit shrew squirrel",
        "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "bicycle bus motorcycle pickup_truck train",
        "bridge castle house skyscraper",
    ],
)
def test_superclasses_of_cifar_100_hang_together(superclass: str, real: WordNet) -> None:
    synsets = [real.synset_of(name) for name in superclass.split()]
    assert min(real.wup(a, b) for a, b in combinations(synsets, 2)) >= 0.6


def test_digits_are_digits(real: WordNet) -> None:
    synsets = [m.synset for m in real.meanings(DIGITS)]
    assert synsets == [m.synset for m in real.meanings("0123456789")]
    assert len(set(synsets)) == 10
    assert len({real.wup(a, b) for a, b in combinations(synsets, 2)}) == 1


def test_imagenet_ids_of_wordnet_3_0(real: WordNet) -> None:
    ids = ["n01440764", "n02099601", "n03085013", "n07720875"]
    expected = ["tench.n.01", "golden_retriever.n.01", "computer_keyboard.n.01", "bell_pepper.n.02"]
    assert [real.synset_of(name) for name in ids] == expected
    assert real.synset_of("brass, memorial tablet, plaque") == "brass.n.07"


def test_wup_is_nltks_where_nltk_is_symmetric(real: WordNet) -> None:
    names = [m.synset for m in real.meanings(CIFAR_100[::4])]
    names += ["girl.n.01", "woman.n.01", "palace.n.01", "house.n.01", "entity.n.01"]
    asymmetric, nltks = 0, wordnet.read_nouns()[0]
    for a, b in combinations(dict.fromkeys(names), 2):
        one, other = nltks.synset(a), nltks.synset(b)
        there, back = one.wup_similarity(other), other.wup_similarity(one)
        asymmetric += there != back
        assert real.wup(a, b) == real.wup(b, a) == max(there, back)
        # Where there is one way up from each, wup is a matter of two lists.
        if len(one.hypernym_paths()) == 1 == len(other.hypernym_paths()):
            up, down = one.hypernym_paths()[0], other.hypernym_paths()[0]
            common = sum(x == y for x, y in zip(up, down, strict=False))
            assert real.wup(a, b) == pytest.approx(2 * common / (len(up) + len(down)))
    assert asymmetric  # girl and woman, palace and house
    assert all(real.wup(a, a) == 1 for a in [*names, "apple.n.01", "tiger.n.01", "cup.n.01"])


def test_maps_survive_json(tmp_path: Path, real: WordNet) -> None:
    """What a run writes down can be given back as the user's map."""
    path = tmp_path / "synsets.json"
    written = {m.class_name: m.synset for m in real.meanings(CIFAR_100[:20])}
    path.write_text(json.dumps(written))
    assert [m.synset for m in real.meanings(written, load_overrides(path))] == [*written.values()]
