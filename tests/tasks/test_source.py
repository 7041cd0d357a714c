"""Folders, zips and list files: what is read off them, and what each kind of bad input gets."""

import os
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mvp_edge.tasks import labels as image_labels
from mvp_edge.tasks import source as image_source
from mvp_edge.tasks.source import opener, scan
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Undecodable, open_rgb


def png(colour: int = 0, side: int = 4) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (side, side), (colour % 256, 80, 160)).save(stream, "PNG")
    return stream.getvalue()


def folder(root: Path, *files: str) -> Path:
    for n, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
    return root


def zipped(path: Path, *files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for n, file in enumerate(files):
            archive.writestr(file, b"" if file.endswith("/") else png(n))
    return path


def as_folder(tmp_path: Path, *files: str) -> Path:
    return folder(tmp_path / "pets", *files)


def as_zip(tmp_path: Path, *files: str) -> Path:
    return zipped(tmp_path / "pets.zip", *files)


def labelled(source: Path) -> list[tuple[str, str, str]]:
    return [(one.file, one.label, one.split) for one in scan(source).found]


def refusal(source: Path) -> str:
    with pytest.raises(BadInput) as caught:
        scan(source)
    message = str(caught.value)
    assert "\n" not in message
    assert source.name in message
    return message


both = pytest.mark.parametrize("make", [as_folder, as_zip])
Make = Callable[..., Path]


@both
def test_class_folders(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path, "dog/1.JPG", "cat/2.png", "cat/deeper/1.webp")
    assert labelled(source) == [
        ("cat/2.png", "cat", ""),
        ("cat/deeper/1.webp", "cat", ""),
        ("dog/1.JPG", "dog", ""),
    ]


@both
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_below_lone_top_level_folders(make: Make, val: str, tmp_path: Path) -> None:
    # "train" is a class of CIFAR-100, too.
    files = [
        f"a/b/{split}/{label}/1.png"
        for split in ("Train", val, "test")
        for label in ("train", "cat")
    ]
    found = labelled(make(tmp_path, *files))
    assert {(label, split) for _, label, split in found} == {
        (label, split) for split in ("train", "val", "test") for label in ("train", "cat")
    }
    assert len(found) == 6


@both
def test_what_is_no_image_or_hidden_is_ignored(make: Make, tmp_path: Path) -> None:
    source = make(
        tmp_path,
        "data/words.txt",
        "data/cat/1.png",
        "data/cat/Thumbs.db",
        "data/cat/._1.png",
        "data/.cache/x/1.png",
        "__MACOSX/data/cat/1.png",
        "data/dog/1.png",
    )
    assert [file for file, *_ in labelled(source)] == ["data/cat/1.png", "data/dog/1.png"]
    assert scan(source).skipped == ()


@both
def test_what_is_left_out_is_listed(make: Make, tmp_path: Path) -> None:
    source = make(
        tmp_path, "train/cat/1.png", "train/stray.png", "extra/cat/1.png", "extra/2.png", "logo.png"
    )
    assert [file for file, *_ in labelled(source)] == ["train/cat/1.png"]
    reasons = {skipped.file: skipped.why for skipped in scan(source).skipped}
    assert reasons.keys() == {"train/stray.png", "extra/", "logo.png"}
    assert "2 images" in reasons["extra/"]


@both
def test_an_empty_class_folder_is_reported(make: Make, tmp_path: Path) -> None:
    source = make(tmp_path, "top/train/cat/1.png", "top/train/dog/note.txt", "other/note.txt")
    assert scan(source).empty == ("dog",)


@both
def test_class_names_are_nfc(make: Make, tmp_path: Path) -> None:
    name = "žirafa-çà-日本"
    decomposed = unicodedata.normalize("NFD", name)
    assert decomposed != name
    source = make(tmp_path, f"{decomposed}/1.png", f"{name}/2.png", "cat/1.png")
    assert {label for _, label, _ in labelled(source)} == {name, "cat"}
    for one in scan(source).found:
        open_rgb(opener(source)(one.file), one.file)


@both
@pytest.mark.parametrize(
    ("files", "culprit"),
    [
        (["words.txt"], "no image"),
        (["1.png", "2.png"], "no class folders"),
        (["train/1.png", "test/2.png"], "'test' holds images but no class folders"),
        (["training/cat/1.png", "testing/cat/1.png"], "'testing'"),
        (["train/cat/1.png", "dev/cat/1.png"], "'dev'"),
        (["train/cat/1.png", "val/cat/1.png", "valid/cat/1.png"], "val and valid"),
        (["c\nat/1.png", "dog/1.png"], r"'c\nat' has a control character"),
    ],
)
def test_near_misses_name_the_culprit(
    make: Make, files: list[str], culprit: str, tmp_path: Path
) -> None:
    assert culprit in refusal(make(tmp_path, *files))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    assert "no image" in refusal(tmp_path / "pets")


def test_what_is_no_source(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "pets.tar").write_bytes(b"x")
    assert "neither a folder" in refusal(tmp_path / "pets.tar")


def test_links_in_a_folder(tmp_path: Path) -> None:
    source = folder(tmp_path / "pets", "cat/1.png", "dog/1.png")
    folder(tmp_path / "elsewhere", "bird.png", "birds/2.png")
    (source / "cat" / "2.png").symlink_to(tmp_path / "elsewhere" / "bird.png")
    (source / "bird").symlink_to(tmp_path / "elsewhere" / "birds")
    (source / "dog" / "gone.png").symlink_to(tmp_path / "absent.png")
    (source / "gone").symlink_to(tmp_path / "absent")
    (source / "loop").symlink_to(source)
    (source / "cat" / "up").symlink_to(source)
    found = {one.file: one for one in scan(source).found}
    assert found.keys() == {
        "cat/1.png",
        "cat/2.png",
        "bird/2.png",
        "dog/1.png",
        "dog/gone.png",
    }
    assert found["dog/gone.png"].problem == "a broken link"
    assert found["cat/2.png"].size == (tmp_path / "elsewhere" / "bird.png").stat().st_size
    assert {one.file for one in scan(source).skipped} == {"gone", "loop", "cat/up"}


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    source = folder(tmp_path / "pets", "cat/1.png", "dog/1.png")
    os.mkfifo(source / "cat" / "pipe.png")
    found = {one.file: one.problem for one in scan(source).found}
    assert found["cat/pipe.png"] == "not a regular file"


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    source = folder(tmp_path / "pets", "cat/1.png", "dog/1.png")
    Path(os.fsdecode(os.fsencode(source / "cat") + b"/\xff.png")).write_bytes(png())
    assert "not UTF-8" in refusal(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    source = folder(tmp_path / "pets", "cat/1.png", "dog/1.png")
    (source / "dog").chmod(0)
    try:
        message = refusal(source)
    finally:
        (source / "dog").chmod(0o700)
    assert "dog" in message
    assert "Permission denied" in message


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "MAX_FILES", 2)
    files = ("cat/1.png", "cat/2.png", "dog/1.png")
    assert "more than 2" in refusal(as_folder(tmp_path, *files))
    assert "more than 2" in refusal(as_zip(tmp_path, *files))


def test_images_of_a_zip_are_read_in_place(tmp_path: Path) -> None:
    source = as_zip(tmp_path, "top/cat/1.png", "top/dog/1.png", "top/empty/")
    before = sorted(tmp_path.rglob("*"))
    image = open_rgb(opener(source)("top/dog/1.png"), "1.png")
    assert image.getpixel((0, 0)) == (1, 80, 160)
    assert sorted(tmp_path.rglob("*")) == before
    assert scan(source).empty == ("empty",)


def test_a_zip_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    first = scan(as_zip(tmp_path, "cat/1.png", "dog/1.png"))
    second = scan(as_zip(tmp_path, "cat/1.png", "dog/1.png", "emu/1.png"))
    assert (len(first.found), len(second.found)) == (2, 3)


def member(name: str, change: Callable[[zipfile.ZipInfo], None]) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    change(info)
    return info


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def bzip(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_BZIP2


def plain(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("../cat/evil.png", plain, "leads out"),
        ("cat/../../evil.png", plain, "leads out"),
        ("/etc/evil.png", plain, "absolute"),
        ("C:/cat/evil.png", plain, "absolute"),
        ("cat\\evil.png", plain, "backslash"),
        ("cat/evil.png", link, "a link"),
        ("cat/evil.png", bzip, "method 12"),
        ("cat/1.png", plain, "twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_hostile_members_are_refused_by_name(
    name: str, change: Callable[[zipfile.ZipInfo], None], why: str, tmp_path: Path
) -> None:
    source = as_zip(tmp_path, "cat/1.png", "dog/1.png")
    assert len(scan(source).found) == 2
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(member(name, change), png())
    message = refusal(source)
    assert repr(name) in message
    assert why in message


def test_an_encrypted_member(tmp_path: Path) -> None:
    source = as_zip(tmp_path, "cat/1.png", "dog/1.png")
    data = bytearray(source.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    source.write_bytes(data)
    message = refusal(source)
    assert "'dog/1.png' is encrypted" in message


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_zip(tmp_path, "cat/1.png", "dog/1.png")
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(2_000_000))
    assert len(scan(source).found) == 2
    for constant, value, culprit in (
        ("_BOMB_BYTES", 10**6, "'zeros.bin' unpacks to over 200 times"),
        ("MAX_ZIP_BYTES", 10**6, "GiB unpacked"),
        ("MAX_MEMBER_BYTES", 10, "'cat/1.png' is an image of"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(image_source, constant, value)
            image_source._checked_zip.cache_clear()
            assert culprit in refusal(source)


def test_a_bomb_of_overlapping_members(tmp_path: Path) -> None:
    source = as_zip(tmp_path, *(f"{label}/{n}.png" for label in "ab" for n in range(30)))
    data = bytearray(source.read_bytes())
    first = data.index(b"PK\x01\x02")
    kept, packed = data[:first], data[first:]
    # Every entry of the directory says that its member is nearly as long as the zip.
    position = 0
    while packed[position : position + 4] == b"PK\x01\x02":
        packed[position + 20 : position + 28] = struct.pack("<II", len(data), len(data))
        name, extra, comment = struct.unpack_from("<HHH", packed, position + 28)
        position += 46 + name + extra + comment
    source.write_bytes(kept + packed)
    assert "overlap" in refusal(source)


def test_damaged_zips(tmp_path: Path) -> None:
    source = as_zip(tmp_path, "cat/1.png", "dog/1.png")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert "not a zip or is damaged" in refusal(source)
    # A flipped bit in a member is found by its checksum, and concerns this image alone.
    data = bytearray(whole)
    data[whole.index(b"PNG") + 20] ^= 1
    source.write_bytes(data)
    assert len(scan(source).found) == 2
    open_ = opener(source)
    with pytest.raises(Undecodable, match="damaged in the zip"):
        open_("cat/1.png")
    open_rgb(open_("dog/1.png"), "dog")


LISTS = {
    "pets.csv": "path,label\nimg/1.png,cat\nimg/2.png,dog\n",
    "plain.csv": "img/1.png,cat\nimg/2.png,dog\n",
    "quoted.csv": '\ufeff"label","extra","filename"\ncat,7,"img/1.png"\ndog,8,"img/2.png"\n',
    "pets.tsv": "img/1.png\tcat\r\nimg/2.png\tdog\r\n",
    "pets.txt": "img/1.png cat\n\nimg/2.png dog",
    "tabs.txt": "img/1.png\tcat\nimg/2.png\tdog\n",
    "pets.jsonl": '{"path": "img/1.png", "label": "cat"}\n{"path":"img/2.png","label":"dog"}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_list_files(name: str, tmp_path: Path) -> None:
    folder(tmp_path, "img/1.png", "img/2.png")
    (tmp_path / name).write_text(LISTS[name], encoding="utf-8")
    assert labelled(tmp_path / name) == [("img/1.png", "cat", ""), ("img/2.png", "dog", "")]
    image = open_rgb(opener(tmp_path / name)("img/2.png"), "2.png")
    assert image.getpixel((0, 0)) == (1, 80, 160)


def test_a_list_with_splits_absolute_paths_and_an_absent_image(tmp_path: Path) -> None:
    folder(tmp_path, "img/1.png", "img/2.png")
    source = tmp_path / "lists" / "pets.csv"
    source.parent.mkdir()
    first = tmp_path / "img" / "1.png"
    source.write_text(f"{first},cat,train\n../img/2.png,cat,Valid\ngone.png,7,test\n")
    found = {one.file: one for one in scan(source).found}
    assert [(one.label, one.split) for one in found.values()] == [
        ("cat", "val"),
        ("cat", "train"),
        ("7", "test"),
    ]
    assert found["gone.png"].problem == "does not exist"
    assert found["../img/2.png"].problem == found[str(first)].problem == ""


@pytest.mark.parametrize(
    ("name", "text", "culprit"),
    [
        ("a.csv", "", "lists no image"),
        ("a.csv", "path,label\n", "lists no image"),
        (
            "a.csv",
            "1.png,cat\n2.png,black/white\n",
            "a.csv:2: class name 'black/white' has a slash",
        ),
        ("a.csv", "1.png,cat\n2.png,\n", "a.csv:2: class name '' is empty"),
        ("a.csv", "1.png,cat\n,dog\n", "a.csv:2: the image's path"),
        ("a.csv", "1.png,cat\n2.png,dog\n1.png,cat\n", "a.csv:3: '1.png' is listed twice"),
        ("a.csv", "1.png;cat\n", "a.csv:1: 1 columns"),
        ("a.csv", "1.png,cat,train\n2.png,dog\n", "a.csv:2: 2 columns"),
        ("a.csv", "1.png,cat,train\n2.png,dog,\n", "a.csv:2: give the split"),
        ("a.csv", "1.png,cat,train\n2.png,dog,dev\n", "a.csv:2: 'dev' is not a split"),
        ("a.jsonl", '{"path": "1.png", "label": "a"}\n{"path"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl", '["1.png", "cat"]\n', "a.jsonl:1:"),
        ("a.jsonl", '{"path": "1.png", "label": true}\n', "a.jsonl:1: label must be a string"),
        ("a.jsonl", '{"path": "1.png"}\n', "a.jsonl:1: class name '' is empty"),
    ],
)
def test_bad_lists_name_the_line(name: str, text: str, culprit: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert culprit in refusal(tmp_path / name)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1.png,caf\xe9\n")
    assert "not UTF-8" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("x" * 200_000)
    assert "b.csv:1: field larger" in refusal(tmp_path / "b.csv")


def test_a_list_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_labels, "MAX_FILES", 1)
    (tmp_path / "a.csv").write_text("1.png,cat\n2.png,dog\n")
    assert "a.csv:2: more than 1" in refusal(tmp_path / "a.csv")
