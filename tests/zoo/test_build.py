"""Building a zoo and looking after it: resumable, one backbone, nothing half-written."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.support.tiny import At, command

BUILD = ("zoo", "build", "--backbone", "backbone.json", "--tasks", "digits", "--augment", "shift")
TWO = (*BUILD, "--sample", "2x3", "--keep", "0.5", "--steps", "60", "--snapshots", "0.75")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tensors(zoo: Path) -> dict[str, bytes]:
    found = sorted((zoo / "entries").rglob("network.safetensors"))
    return {str(path.relative_to(zoo)): path.read_bytes() for path in found}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(place: Path) -> None:
    clean = command(*TWO, "--zoo", "clean", cwd=place)
    assert clean.code == 0, clean.err
    task = "digits-3c-s0-001"
    for at in (
        At("digits-3c-s0-000: tuning", 30),
        At(f"{task}: tuning", 55, signal=signal.SIGINT),
        At(file=task),
    ):
        stopped = command(*TWO, "--zoo", "stopped", cwd=place, at=at)
        assert stopped.code == (130 if at.signal == signal.SIGINT else -9), stopped.err
    done = command(*TWO, "--zoo", "stopped", "--json", cwd=place)
    assert done.code == 0, done.err
    assert "2 tasks, 1 done" in done.err
    assert "digits-3c-s0-000" not in done.err.replace("digits-3c-s0-000: done", "")
    assert json.loads(done.out)["added"] == [task]
    assert tensors(place / "stopped") == tensors(place / "clean")
    assert len(tensors(place / "clean")) == 4  # two entries, each with a snapshot
    assert names(place / "stopped/entries") == names(place / "clean/entries")

    again = command(*TWO, "--zoo", "stopped", cwd=place)
    assert again.code == 0
    assert "0 added, 2 in all" in again.out
    entry = read(place / "clean/entries" / task / "entry.json")
    assert (entry["keep"], entry["snapshots"], entry["recipe"]["steps"]) == (0.5, ["0.75"], 60)


def test_snapshots_are_of_what_shrinks_on_the_way(place: Path) -> None:
    words = (*TWO, "--method", "distill", "--zoo", "none")
    refused = command(*words, cwd=place)
    assert refused.code == 2
    assert "--snapshots needs an iterative method, which distill is not: use ifp" in refused.error
    assert not (place / "none").exists()


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(place: Path) -> None:
    words = (*BUILD, "--sample", "1x3", "--keep", "0.5", "--method", "random")
    clean = command(*words, "--steps", "52", "--zoo", "clean", cwd=place)
    assert clean.code == 0, clean.err
    at = At("digits-3c-s0-000: tuning", 60)
    killed = command(*words, "--steps", "65", "--zoo", "mixed", cwd=place, at=at)
    assert killed.code == -signal.SIGKILL
    done = command(*words, "--steps", "52", "--zoo", "mixed", cwd=place)
    assert done.code == 0, done.err
    assert tensors(place / "mixed") == tensors(place / "clean")


def test_a_zoo_is_of_one_backbone_policy_and_ratio(place: Path) -> None:
    words = (
        *BUILD[:3],
        "other.json",
        *BUILD[4:],
        "--sample",
        "5x3",
        "--steps",
        "1",
        "--zoo",
        "zoo",
    )
    facts = read(place / "backbone.json")
    (place / "other.json").write_text(json.dumps({**facts, "std": [1, 1, 1], "name": "stranger"}))
    other = command(*words, "--keep", "0.5", cwd=place)
    assert other.code == 2
    assert "belongs to the backbone tiny" in other.error
    assert "stranger" in other.error
    pruned = command(
        "prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo",
        "--backbone", "other.json", cwd=place,
    )  # fmt: skip
    assert pruned.code == 2
    assert "stranger" in pruned.error
    same = (*BUILD, "--sample", "5x3", "--steps", "1", "--zoo", "zoo")
    assert "keep 0.5, not 0.1" in command(*same, cwd=place).error
    policy = command(*same, "--keep", "0.5", "--policy", "inner", cwd=place)
    assert "'tied', not 'inner'" in policy.error
    assert names(place / "zoo/entries") == [f"digits-3c-s0-00{n}" for n in range(4)]
    assert not (place / "runs").exists()


def test_two_builds_share_one_zoo(place: Path) -> None:
    """What another process works on is left to it."""
    import fcntl

    (place / "shared/.work").mkdir(parents=True)
    (place / "shared/zoo.json").write_bytes((place / "zoo/zoo.json").read_bytes())
    words = (*BUILD, "--sample", "2x3", "--keep", "0.5", "--steps", "1", "--zoo", "shared")
    with (place / "shared/.work/digits-3c-s0-000.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = command(*words, cwd=place)
        assert first.code == 0, first.err
        assert names(place / "shared/entries") == ["digits-3c-s0-001"]
    second = command(*words, cwd=place)
    assert second.code == 0, second.err
    assert len(names(place / "shared/entries")) == 2


def test_the_zoo_is_listed_shown_checked_and_weeded(place: Path) -> None:
    listed = command("zoo", "list", "zoo", cwd=place)
    assert listed.out.startswith("4 entries of tiny (16 px), policy tied, keep 0.5")
    assert listed.out.count("distill@10") == 4
    shown = json.loads(command("zoo", "show", "zoo", "digits-3c-s0-001", "--json", cwd=place).out)
    assert shown["widths"]["layer4.stream"] == 16
    assert "layer4.stream" in command("zoo", "show", "zoo", "digits-3c-s0-001", cwd=place).out
    assert "4 entries are sound" in command("zoo", "verify", "zoo", cwd=place).out

    moved = (place / "backbone.json").rename(place / "elsewhere.json")
    assert command("zoo", "verify", "zoo", cwd=place).code == 2
    given = command("zoo", "verify", "zoo", "--backbone", moved.name, cwd=place)
    assert "4 entries are sound" in given.out
    moved.rename(place / "backbone.json")

    weights = place / "zoo/entries/digits-3c-s0-001/network.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)  # a flipped bit
    (place / "zoo/entries/digits-3c-s0-002/network.safetensors").unlink()  # half-copied
    (place / "zoo/entries/digits-3c-s0-003/entry.json").unlink()
    checked = command("zoo", "verify", "zoo", "--json", cwd=place)
    assert checked.code == 2
    assert sorted(json.loads(checked.out)["broken"]) == [f"digits-3c-s0-00{n}" for n in (1, 2, 3)]
    for number in (1, 2, 3):
        assert f"zoo entry digits-3c-s0-00{number}" in checked.error

    unknown = command("zoo", "rm", "zoo", "digits-3c-s0-001", "nothing", cwd=place)
    assert unknown.code == 2
    assert "'nothing'" in unknown.error
    assert len(names(place / "zoo/entries")) == 4  # none of them is gone
    broken = [f"digits-3c-s0-00{n}" for n in (1, 2, 3)]
    assert command("zoo", "rm", "zoo", *broken, cwd=place).code == 0
    assert names(place / "zoo/entries") == ["digits-3c-s0-000"]
    assert command("zoo", "verify", "zoo", cwd=place).code == 0
    missing = command("zoo", "show", "zoo", "digits-3c-s0-003", cwd=place)
    assert missing.code == 2
    assert "digits-3c-s0-003" in missing.error


def test_a_zoo_and_a_run_work_from_every_folder(place: Path) -> None:
    """Backbones are recorded so that they are found again, also as ARCHITECTURE@FILE."""
    (place / "elsewhere").mkdir()
    shutil.move(place / "backbone.json", place / "elsewhere/backbone.json")
    shutil.move(place / "backbone.safetensors", place / "elsewhere/backbone.safetensors")
    words = ("--tasks", "digits", "--sample", "1x3", "--keep", "0.5", "--steps", "1")
    made = command(
        "zoo", "build", "--backbone", "elsewhere/backbone.json", *words, "--zoo", "new", cwd=place
    )
    assert made.code == 0, made.err
    assert not names(place / "new/.work") or names(place / "new/.work") == ["digits-3c-s0-000.lock"]
    run = command(
        "prune", "--device", "../board.yaml", "--task", "../task", "--zoo", "../new",
        "--steps", "1", cwd=place / "elsewhere",
    )  # fmt: skip
    assert run.code == 0, run.err
    source = read(place / "elsewhere/runs/001/run.json")["backbone"]["source"]
    assert Path(source).is_file()
