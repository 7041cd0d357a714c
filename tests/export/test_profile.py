import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mvp_edge_export import profile as profiles
from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import (
    DeviceProfile,
    check_profile,
    load_profile,
    profile_schema,
    shipped_profiles,
)

REPOSITORY = Path(__file__).parents[2]
SHIPPED = [
    "android-mid",
    "cortex-m",
    "intel-n100",
    "jetson-nano",
    "jetson-orin-nano",
    "rpi-zero2w",
    "rpi3",
    "rpi4",
    "rpi5",
    "x86-laptop",
]
WHOLE = """\
schema: 1
id: dev
name: A device
source: {kind: estimate, note: guessed, date: 2026-11-22}
hardware: {arch: aarch64, cpu: cortex-a72, cores: 4, ram: 4GiB}
runtime: {backends: [onnxruntime], threads: 4}
budgets: {flops: 300M}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str | bytes) -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


# --- The shipped ones -----------------------------------------------------------------------------


def test_ten_are_shipped() -> None:
    assert shipped_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_is_whole_and_says_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.id == name
    assert profile.source.date.isoformat() == "2026-11-22"
    assert "estimated" in profile.source.note
    budgets = profile.budgets
    assert budgets.flops
    assert budgets.params
    assert budgets.latency
    assert budgets.file
    assert budgets.memory
    # fp32 weights alone must fit where the model with them must fit.
    assert 4 * budgets.params < min(budgets.file, budgets.memory)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_flops_fit_the_latency(name: str) -> None:
    # Multiply-adds a cycle and core, and the lasting clock in GHz, as the notes state them.
    per_cycle, clock = {
        "android-mid": (8, 2.2),
        "cortex-m": (1, 0.216),
        "intel-n100": (8, 2.4),
        "jetson-nano": (4, 1.43),
        "jetson-orin-nano": (8, 1.5),
        "rpi-zero2w": (4, 1.0),
        "rpi3": (4, 1.2),
        "rpi4": (4, 1.5),
        "rpi5": (8, 2.4),
        "x86-laptop": (16, 2.5),
    }[name]
    profile = load_profile(name)
    assert profile.budgets.flops
    assert profile.budgets.latency
    assert profile.budgets.latency.p90
    peak = per_cycle * clock * 1e6 * profile.runtime.threads  # multiply-adds a millisecond
    assert 0.08 < profile.budgets.flops / (profile.budgets.latency.p90 * peak) < 0.3


def test_rpi4_is_the_documented_one() -> None:
    p = load_profile("rpi4")
    assert p.budgets.model_dump() == {
        "flops": 300_000_000,
        "params": 3_000_000,
        "file": 12 * 2**20,
        "memory": 64 * 2**20,
        "latency": {"p50": None, "p90": 50.0},
    }
    assert p.hardware.lacks == ("asimddp", "sve")
    assert p.runtime.model_dump() == {
        "backends": ("onnxruntime", "openvino"),
        "threads": 4,
        "denylist": ("onnxruntime==1.21.0",),
    }
    assert (p.accuracy.max_drop, p.accuracy.max_quant_drop) == (None, 0.5)
    assert (p.prune.round_to, p.prune.min_channels, p.input.batch) == (8, 8, 1)


def test_what_cannot_run_says_so() -> None:
    assert "glibc 2.27" in load_profile("jetson-nano").source.note
    assert "Python 3.6" in load_profile("jetson-nano").source.note
    assert load_profile("cortex-m").runtime.backends == ()
    assert load_profile("cortex-m").budgets.memory == 256 * 1024


def test_published_schema_is_current() -> None:
    published = json.loads((REPOSITORY / "profiles" / "schema.json").read_text())
    assert published == profile_schema(), "write profile_schema() to profiles/schema.json"


def test_schema_asks_for_inherited_keys_only_without_extends() -> None:
    schema = profile_schema()
    assert schema["required"] == ["schema", "id"]
    assert "hardware" in schema["else"]["required"]
    assert schema["else"]["properties"]["hardware"]["required"] == ["arch", "cpu", "cores", "ram"]
    assert not any("required" in section for section in schema["$defs"].values())
    assert schema["additionalProperties"] is False


# --- Finding --------------------------------------------------------------------------------------


def test_name_path_and_suffix() -> None:
    shipped = load_profile("rpi4")
    assert load_profile("rpi4.yaml").sha256 == shipped.sha256
    own = write("rpi4.yaml", WHOLE)
    assert load_profile(own).id == "dev"
    assert load_profile("./rpi4.yaml").path == Path("rpi4.yaml")
    assert load_profile("rpi4").id == "rpi4"
    Path("rpi5").mkdir()  # such as a run directory
    assert load_profile("rpi5").id == "rpi5"


@pytest.mark.parametrize("name", ["rpi44", "RPI4", "./rpi4.yaml", "", "nothing/at/all", "x" * 5000])
def test_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(BadInput) as error:
        load_profile(name)
    text = str(error.value)
    assert all(shipped in text for shipped in SHIPPED)
    assert ("did you mean rpi4" in text) == ("pi4" in name.lower())
    assert len(text) < 500


# --- Content --------------------------------------------------------------------------------------


def test_frozen_and_hashed_by_content() -> None:
    one, same = load_profile(write("a.yaml", WHOLE)), load_profile(write("b.yaml", WHOLE))
    assert one.sha256 == same.sha256
    assert load_profile(write("c.yaml", WHOLE.replace("300M", "299M"))).sha256 != one.sha256
    assert load_profile(write("d.yaml", WHOLE.replace("300M", "0.3G"))).sha256 == one.sha256
    with pytest.raises(ValidationError):
        one.id = "other"


def test_json_round_trip() -> None:
    one = load_profile("rpi4")
    again = DeviceProfile.model_validate(json.loads(one.model_dump_json(by_alias=True)))
    assert again.sha256 == one.sha256


def test_what_is_null_or_left_out_is_not_checked() -> None:
    p = load_profile(write("a.yaml", WHOLE.replace("300M", "null")))
    assert (p.budgets.flops, p.budgets.latency, p.accuracy.max_drop) == (None, None, None)


def test_extends_merges_deeply() -> None:
    write(
        "mine.yaml",
        "schema: 1\nid: mine\nextends: rpi4\nbudgets: {flops: 100M, latency: null}\n"
        "hardware:\n  isa: []\n",
    )
    mine, base = load_profile("mine.yaml"), load_profile("rpi4")
    assert (mine.id, mine.budgets.flops, mine.budgets.latency) == ("mine", 100_000_000, None)
    assert mine.budgets.params == base.budgets.params
    assert (mine.hardware.isa, mine.hardware.lacks) == ((), base.hardware.lacks)
    assert mine.sha256 != base.sha256


def test_extends_is_relative_to_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("sub").mkdir()
    write("base.yaml", WHOLE)
    write("sub/dev.yaml", "schema: 1\nid: sub\nextends: ../base.yaml\n")
    assert load_profile("sub/dev.yaml").hardware.cores == 4
    monkeypatch.chdir("sub")
    assert load_profile("dev.yaml").id == "sub"


def test_mistakes_are_placed_in_the_file_that_made_them() -> None:
    write("base.yaml", WHOLE.replace("cores: 4", "cores: 0"))
    write("dev.yaml", "schema: 1\nid: sub\nextends: base.yaml\nprune:\n  round_to: big\n")
    inherited, own = sorted(check_profile("dev.yaml"))
    assert own.startswith('dev.yaml:5: prune.round_to: "big" must be a whole number')
    assert inherited.startswith('base.yaml:5: hardware.cores: "0" must be at least 1')


@pytest.mark.parametrize(
    ("extends", "says"),
    [
        ("dev.yaml", "leads back"),
        ("other.yaml", "leads back"),
        ("rpi44", "did you mean rpi4"),
        ("/etc/hostname", "relative path"),
        ("[rpi4]", "must be a shipped profile's name"),
        ("null", "must be a shipped profile's name"),
        ('"a\\0b"', "no profile is called"),
    ],
)
def test_extends_refused(extends: str, says: str) -> None:
    write("other.yaml", "schema: 1\nid: other\nextends: ./dev.yaml\n")
    write("dev.yaml", f"schema: 1\nid: dev\nextends: {extends}\nbudgets: {{flop: 1M}}\n")
    mistakes = check_profile("dev.yaml")
    assert any("extends: " in mistake and says in mistake for mistake in mistakes)
    # What can be told without the rest is told, and what may be inherited is not called missing.
    assert any(mistake.startswith("dev.yaml:4: budgets.flop:") for mistake in mistakes)
    assert not any("missing" in mistake for mistake in mistakes)


def test_extends_chain_ends() -> None:
    for i in range(12):
        write(f"p{i}.yaml", f"schema: 1\nid: p{i}\nextends: p{i + 1}.yaml\n")
    assert "more than 8 files" in check_profile("p0.yaml")[0]


def test_own_id_and_schema_are_not_inherited() -> None:
    write("dev.yaml", "extends: rpi4\n")
    assert [m.split(":")[2].strip() for m in check_profile("dev.yaml")] == ["schema", "id"]


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("schema: 1", "schema: 2", 'dev.yaml:1: schema: "2" is not a version'),
        ("id: dev", "id: My Pi", 'dev.yaml:2: id: "My Pi" does not have the form'),
        ("name: A device", "name:", "dev.yaml:3: name: must be text, as in Raspberry Pi 4"),
        ("name: A device\n", "", "dev.yaml:1: name: is missing; add it, as in Raspberry Pi 4"),
        ("budgets", "budget", "dev.yaml:7: budget: unknown key; did you mean budgets?"),
        ("flops", "flop", "dev.yaml:7: budgets.flop: unknown key; did you mean flops?"),
        ("300M", "300MiB", 'dev.yaml:7: budgets.flops: "300MiB": MiB is not a unit'),
        ("300M", "-300M", 'dev.yaml:7: budgets.flops: "-300M" must be more than zero'),
        ("300M", "2000T", 'dev.yaml:7: budgets.flops: "2000T" is more than'),
        ("300M", "300M, latency: 5", "dev.yaml:7: budgets.latency: "),
        ("300M", "300M, latency: {p50: 9ms, p90: 8ms}", "budgets.latency.p90: is less than p50"),
        ("300M", "300M, memory: 5GiB", "budgets.memory: is more than the 4 GiB of hardware.ram"),
        ("300M", "300M, flops: 1M", "budgets.flops: stands twice, first in line 7; keep one"),
        ("arch: aarch64", "arch: arm64", 'hardware.arch: "arm64" is unknown; write another; known'),
        ("[onnxruntime]", "[onnx]", "runtime.backends[0]: "),
        ("[onnxruntime]", "onnxruntime", "must be a list, as in [onnxruntime, openvino]"),
        ("threads: 4", "threads: 5", "runtime.threads: 5 threads are more than the 4 cores"),
        ("cores: 4", "cores: 99999999999999999999", "hardware.cores: "),
        ("2026-11-22", "2026-13-45", 'source.date: "2026-13-45" is not a date'),
        ("guessed", '""', 'source.note: "" must not be empty'),
        ("ram: 4GiB", "ram: 4GiB, isa: [neon], lacks: [neon]", "neon stands in isa too"),
        ("budgets:", "accuracy: {max_drop: nan}\nbudgets:", "must be a finite number"),
        ("budgets:", "accuracy: {max_drop: 2%}\nbudgets:", "must be a plain number, as in 2"),
        ("budgets:", "precision: {allowed: [fp32], prefer: int8}\nbudgets:", "int8 is not among"),
        ("id: dev", "id: &a dev", "dev.yaml:2: anchors (&) and aliases (*) are not allowed"),
        ("id: dev", "id: *a", "dev.yaml:2: anchors (&) and aliases (*) are not allowed"),
        ("id: dev", "id: !!python/name:os.system dev", "dev.yaml:2: id: the tag "),
        ("id: dev", "<<: {id: dev}", "dev.yaml:2: <<: unknown key"),
        ("id: dev", "? [a]\n: b", "dev.yaml:2: a key must be a word"),
        ("id: dev", "id: [dev", "dev.yaml:3: "),
        ("id: dev", "id: " + "[" * 50_000, "dev.yaml:2: it is nested deeper than 8 levels"),
        ("id: dev", "id: d\x00ev", "dev.yaml:2: a control character"),
        ("id: dev", '"a\\e[31m\\nb": 1', 'dev.yaml:2: "a [31m b": unknown key'),
    ],
)
def test_mistake_names_line_key_and_remedy(old: str, new: str, says: str) -> None:
    assert check_profile(write("dev.yaml", WHOLE)) == []
    mistakes = check_profile(write("dev.yaml", WHOLE.replace(old, new, 1)))
    assert any(says in mistake for mistake in mistakes), mistakes
    assert all(mistake.isprintable() and len(mistake) < 300 for mistake in mistakes)
    with pytest.raises(BadInput) as error:
        load_profile("dev.yaml")
    assert str(error.value).split("\n") == mistakes


def test_all_mistakes_at_once_in_order() -> None:
    text = (
        WHOLE.replace("300M", "300MiB").replace("cores: 4", "cores: 0").replace("id: dev", "i: d")
    )
    places = [mistake.split(": ")[0:2] for mistake in check_profile(write("dev.yaml", text))]
    assert places == [
        ["dev.yaml:1", "id"],
        ["dev.yaml:2", "i"],
        ["dev.yaml:5", "hardware.cores"],
        ["dev.yaml:7", "budgets.flops"],
    ]


def test_alias_bomb_ends_at_its_first_line() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (mistake,) = check_profile(write("bomb.yaml", bomb))
    assert mistake.startswith("bomb.yaml:1: anchors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a mapping"),
        (b"- a\n- b\n", "is not a mapping"),
        (b"id: a\nname: \xff\n", "dev.yaml:2: is not UTF-8"),
        (b"# \n" * 90_000, "is larger than 256 KiB"),
        (b"a: 1\n---\nb: 2\n", "dev.yaml:2: "),
    ],
)
def test_file_as_a_whole(content: bytes, says: str) -> None:
    (mistake,) = check_profile(write("dev.yaml", content))
    assert says in mistake


def test_large_file_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("big.yaml").open("wb") as stream:
        stream.truncate(10 * 2**20)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("was opened"))
    (mistake,) = check_profile("big.yaml")
    assert "larger than 256 KiB" in mistake


def test_what_is_no_file() -> None:
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    for name in ("folder.yaml", "pipe.yaml"):
        assert check_profile(name) == [f"{name}: is not a file; give a YAML file"]
    assert "No such file" in check_profile("none.yaml")[0]


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_is_shown_can_be_loaded(name: str) -> None:
    shown = load_profile(name)
    assert load_profile(write("shown.yaml", shown.text())).sha256 == shown.sha256


def test_text_stays_text() -> None:
    # YAML 1.1 would read these as 8, true and 90.
    text = WHOLE.replace("name: A device", "name: on").replace("cpu: cortex-a72", "cpu: 1:30")
    p = load_profile(write("dev.yaml", text.replace("cores: 4", "cores: 010")))
    assert (p.name, p.hardware.cpu, p.hardware.cores) == ("on", "1:30", 10)


def test_package_data_wins_over_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "mvp_edge_export"
    (package / "profiles").mkdir(parents=True)
    (package / "profiles" / "only.yaml").write_text(WHOLE)
    monkeypatch.setattr(profiles, "__file__", str(package / "profile.py"))
    assert shipped_profiles() == ["only"]


def test_light_half_stays_light() -> None:
    code = (
        "import sys, mvp_edge_export.profile, mvp_edge_export.images;"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'openvino'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
