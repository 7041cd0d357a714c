"""A run: what it writes, that it resumes to the same bits, that budgets bind, where it may write."""

import fcntl
import json
import os
import shutil
import signal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import KNOWN, At, board, command

PRUNE = ("prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo", "--augment", "shift")
FROM_SCRATCH = (*PRUNE[:5], "--backbone", "backbone.json", "--keep", "0.5", "--method", "ifp")
BITS = (
    *("network.safetensors", "network.json", "neighbours.json", "votes.json", "history.json"),
    *("test.json", "layers.json", "verified.json", "task.json", "profile.json"),
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def bits(run: Path) -> dict[str, bytes]:
    """The files of a run that must be the same whatever happened on the way."""
    return {name: (run / name).read_bytes() for name in BITS if (run / name).exists()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_says_what_was_asked_and_what_was_done(place: Path) -> None:
    done = command(*PRUNE, "--steps", "20", "--json", cwd=place)
    assert done.code == 0, done.err
    run = place / "runs/001"
    facts, verified = read(run / "run.json"), read(run / "verified.json")
    assert json.loads(done.out) == {"run": "runs/001", **verified}
    assert facts["finished"] is True
    assert facts["method"] == "mvp"
    assert facts["task"]["images"] == {"train": 42, "val": 9, "test": 9}
    assert facts["keep"] == {
        "asked": "auto", "zoo": 0.5, "chosen": 0.5, "binding": None, "room": None,
    }  # fmt: skip
    assert [phase["name"] for phase in facts["phases"]] == [
        "settling", "images", "similarity", "pruning", "verification",
    ]  # fmt: skip
    assert len(read(run / "votes.json")["neighbours"]) == 3
    assert len(read(run / "history.json")["steps"]) == 20
    assert verified["accuracy"] == read(run / "test.json")["top1"]
    layers = read(run / "layers.json")["layers"]
    assert sum(layer["flops"] for layer in layers) == verified["cost"]["flops"]
    whole = sum(layer["flops_baseline"] for layer in layers)
    assert whole == verified["cost_baseline"]["flops"]
    assert not [name for name in names(run) if name.startswith(".")]

    # The command that it names makes the same network again: same seed, same bits.
    words = facts["command"][1:]
    again = command(*[w if w != "runs/001" else "again" for w in words], cwd=place)
    assert again.code == 0, again.err
    assert bits(place / "again") == bits(run)
    other = command(*PRUNE, "--steps", "20", "--seed", "1", cwd=place)
    assert other.code == 0, other.err
    assert bits(place / "runs/002")["network.safetensors"] != bits(run)["network.safetensors"]


RESUMED = {
    "votes": (
        (*PRUNE, "--steps", "60", "--reference", "--add-to-zoo"),
        [
            At("similarity", 3),
            At(file="neighbours.json", signal=signal.SIGINT),
            At("tuning", 55),
            At(file="network.safetensors", signal=signal.SIGINT),
            At(file="pruned.json"),
            At("reference: tuning", 70),
            At(file="reference.json", signal=signal.SIGINT),
            At("verification", 0, signal=signal.SIGINT),
            At(file="verified.json"),
            At(file="task"),  # the zoo's entry
        ],
    ),
    "scratch": (
        (*FROM_SCRATCH, "--steps", "60"),
        [
            At("statistics", 1, signal=signal.SIGINT),
            At("tuning", 40),
            At("tuning", 57),
            At(file="pruned.json"),
        ],
    ),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_stopped_in_every_phase_it_goes_on_to_the_same_bits(kind: str, place: Path) -> None:
    words, moments = RESUMED[kind]
    untouched = shutil.copytree(place / "zoo", place / "zoo-as-it-was")
    clean = command(*words, "--out", "clean", cwd=place)
    assert clean.code == 0, clean.err
    shutil.rmtree(place / "zoo")
    untouched.rename(place / "zoo")
    shutil.rmtree(place / ".references", ignore_errors=True)

    for at in moments:
        stopped = command(*words, "--out", "stopped", cwd=place, at=at)
        if at.signal == signal.SIGINT:
            assert stopped.code == 130, (at, stopped.err)
            assert "the same command goes on" in stopped.err.splitlines()[-1]
            assert "Traceback" not in stopped.err
        else:
            assert stopped.code == -signal.SIGKILL, (at, stopped.err)
        assert read(place / "stopped/run.json")["finished"] is False
    done = command(*words, "--out", "stopped", cwd=place)
    assert done.code == 0, done.err
    assert bits(place / "stopped") == bits(place / "clean")
    assert names(place / "stopped") == names(place / "clean")
    phases = [phase["name"] for phase in read(place / "stopped/run.json")["phases"]]
    assert len(set(phases)) == len(phases)
    if kind == "votes":
        assert "tuning" not in done.err  # finished phases are not repeated
        entry = place / "zoo/entries/task/network.safetensors"
        assert entry.read_bytes() == (place / "stopped/network.safetensors").read_bytes()


def test_an_unfinished_run_goes_on_under_its_number(place: Path) -> None:
    killed = command(*PRUNE, "--steps", "3", cwd=place, at=At("tuning", 2))
    assert killed.code == -signal.SIGKILL
    other = command(*PRUNE, "--steps", "4", cwd=place)
    assert other.code == 0, other.err
    assert names(place / "runs") == {"001", "002"}
    same = command(*PRUNE, "--steps", "3", cwd=place)
    assert same.code == 0, same.err
    assert names(place / "runs") == {"001", "002"}
    assert read(place / "runs/001/run.json")["finished"] is True
    (place / "runs/002").rename(place / "runs/999")
    (place / "runs/001/run.json").write_text("{")  # nobody's to go on with, and in nobody's way
    for _ in range(2):
        assert command(*PRUNE, "--steps", "0", cwd=place).code == 0
    assert names(place / "runs") == {"001", "999", "1000", "1001"}


def test_what_changed_since_it_began_is_not_gone_on_with(place: Path) -> None:
    words = (*PRUNE, "--steps", "3", "--out", "run")
    assert command(*words, cwd=place, at=At("tuning", 2)).code == -signal.SIGKILL
    chosen = read(place / "run/neighbours.json")["neighbours"][0]["task"]

    (place / "zoo/entries" / chosen).rename(place / "aside")
    gone = command(*words, cwd=place)
    assert gone.code == 2
    assert chosen in gone.error
    (place / "aside").rename(place / "zoo/entries" / chosen)

    (place / "board.yaml").write_text(board(flops="100M"))
    edited = command(*words, cwd=place)
    assert edited.code == 2
    assert "device profile" in edited.error
    (place / "board.yaml").write_text(board())

    image = next((place / "task/seven").iterdir())
    image.rename(image.with_name("other.png"))
    fewer = command(*words, cwd=place)
    assert fewer.code == 2
    assert "images" in fewer.error
    image.with_name("other.png").rename(image)

    assert command(*words, cwd=place).code == 0


def test_two_processes_never_work_on_one_run(place: Path) -> None:
    words = (*PRUNE, "--steps", "3")
    killed = command(*words, "--out", "runs/001", cwd=place, at=At("tuning", 2))
    assert killed.code == -signal.SIGKILL
    handle = os.open(place / "runs/001", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    busy = command(*words, "--out", "runs/001", cwd=place)
    assert busy.code == 2
    assert "runs/001: another process" in busy.error
    assert command(*words, cwd=place).code == 0  # without a place it takes the next number
    os.close(handle)
    assert names(place / "runs") == {"001", "002"}
    assert read(place / "runs/001/run.json")["finished"] is False


def test_a_run_is_only_replaced_with_force(place: Path) -> None:
    words = (*PRUNE, "--steps", "0", "--out", "run")
    assert command(*words, cwd=place).code == 0
    before = bits(place / "run")
    finished = command(*words, cwd=place)
    assert finished.code == 2
    assert "--out run: that run is finished" in finished.error
    assert command(*words, "--seed", "1", cwd=place, at=At("x")).code == 2
    assert bits(place / "run") == before

    # Bad input that shows late leaves the run that it would have replaced.
    _flip(place / "zoo/entries", 0)
    broken = command(*words, "--seed", "1", "--force", cwd=place)
    assert broken.code == 2
    assert "zoo entry digits-3c-s0-000" in broken.error
    assert bits(place / "run") == before
    assert not [name for name in names(place) if name.startswith(".")]
    _flip(place / "zoo/entries", 0)

    forced = (*words, "--seed", "1", "--force")
    killed = command(*forced, cwd=place, at=At(file="network.json"))
    assert killed.code == -signal.SIGKILL
    resumed = command(*forced, cwd=place)  # goes on; not from the beginning
    assert resumed.code == 0, resumed.err
    assert "similarity" not in resumed.err
    assert read(place / "run/run.json")["seed"] == 1

    others = command(*words, "--seed", "2", cwd=place, at=At("x"))
    assert others.code == 2
    unsaid = command(*PRUNE, "--force", cwd=place)
    assert unsaid.code == 2
    assert "--force" in unsaid.error


def test_other_arguments_and_other_folders_are_refused_by_name(place: Path) -> None:
    words = (*PRUNE, "--steps", "3", "--out", "run")
    assert command(*words, cwd=place, at=At("tuning", 2)).code == -signal.SIGKILL
    other = command(*words, "--tau", "1", cwd=place)
    assert other.code == 2
    assert "other arguments (tau)" in other.error
    mine = command(*PRUNE, "--out", "digits", "--force", cwd=place)
    assert mine.code == 2
    assert "--out digits exists and is not a run directory" in mine.error
    assert names(place / "digits") >= {"zero", "one"}
    file = command(*PRUNE, "--out", "board.yaml", "--force", cwd=place)
    assert file.code == 2
    assert "board.yaml" in file.error


@pytest.mark.parametrize("budget", ["flops", "params", "file", "memory"])
def test_each_budget_binds_alone(budget: str, place: Path) -> None:
    limits = {"flops": 180_000, "params": 8_000, "file": 45_000, "memory": 50_000}
    (place / "board.yaml").write_text(board(**{budget: str(limits[budget])}))
    done = command(*PRUNE, "--steps", "0", cwd=place)
    assert done.code == 0, done.err
    assert f"as the {budget} budget asks" in done.err
    facts, verified = read(place / "runs/001/run.json"), read(place / "runs/001/verified.json")
    assert facts["keep"]["binding"] == budget
    assert facts["keep"]["chosen"] < facts["keep"]["zoo"]
    verdicts = {verdict["budget"]: verdict for verdict in verified["verdicts"]}
    assert verdicts[budget]["verdict"] == "PASS"
    assert 0.95 * limits[budget] <= verdicts[budget]["reached"] <= limits[budget]
    others = {"flops", "params", "file", "memory", "accuracy.max_drop"} - {budget}
    assert {verdicts[other]["verdict"] for other in others} == {"UNCHECKED"}


def test_keep_is_the_most_and_budgets_may_ask_for_less(place: Path) -> None:
    more = command(*PRUNE, "--steps", "0", "--keep", "0.75", cwd=place)
    assert more.code == 0, more.err
    assert read(place / "runs/001/run.json")["keep"]["chosen"] == 0.75
    widths = read(place / "runs/001/run.json")["widths"].values()
    assert {width["kept"] / width["size"] for width in widths} == {0.75}
    (place / "board.yaml").write_text(board(flops="200k"))
    less = command(*PRUNE, "--steps", "0", "--keep", "0.75", cwd=place)
    assert less.code == 0, less.err
    assert read(place / "runs/002/run.json")["keep"]["binding"] == "flops"


def test_an_infeasible_budget_is_told_before_anything_is_written(place: Path) -> None:
    (place / "board.yaml").write_text(board(params="100"))
    before = names(place)
    done = command(*PRUNE, cwd=place)
    assert done.code == 3
    assert "params 100 parameters, but the smallest network needs" in done.error
    assert "×" in done.error
    assert names(place) == before


def test_a_budget_missed_after_training_keeps_the_run_and_refuses_its_export(place: Path) -> None:
    (place / "board.yaml").write_text(board() + "accuracy: {max_drop: 0}\n")
    words = (*PRUNE, "--method", "random", "--steps", "1", "--reference", "--add-to-zoo")
    done = command(*words, "--out", "run", cwd=place)
    assert done.code == 3, done.err
    assert "reference: tuning" in done.err
    assert "accuracy.max_drop FAIL" in done.out
    assert "accuracy.max_drop" in done.error
    drop = read(place / "run/verified.json")["verdicts"][-1]
    reference, top1 = (
        read(place / "run" / name)["top1"] for name in ("reference.json", "test.json")
    )
    assert (drop["budget"], drop["verdict"]) == ("accuracy.max_drop", "FAIL")
    assert drop["reached"] == pytest.approx(100 * (reference - top1))
    assert read(place / "run/run.json")["finished"] is True
    assert "task" not in names(place / "zoo/entries")
    exported = command("export", "run", cwd=place)
    assert exported.code == 3
    assert "accuracy.max_drop" in exported.error
    assert not (place / "run/bundle").exists()

    # The reference is tuned once a task, and timed apart.
    again = command(*words, "--head", "zero", "--out", "again", cwd=place)
    assert again.code == 3
    assert "reference: tuning" not in again.err
    assert read(place / "run/reference.json") == read(place / "again/reference.json")
    facts = read(place / "again/run.json")
    phases = {phase["name"]: phase["seconds"] for phase in facts["phases"]}
    assert phases["reference"] < read(place / "run/reference.json")["seconds"]
    assert facts["training"]["steps"] == 1
    assert facts["training"]["augmented"] == ["shift"]


def test_a_taken_name_is_told_before_the_training(place: Path) -> None:
    assert command(*PRUNE, "--steps", "0", "--add-to-zoo", cwd=place).code == 0
    listed = command("zoo", "list", "zoo", "--json", cwd=place)
    added = json.loads(listed.out)["entries"][-1]
    assert (added["name"], added["keep"], added["recipe"]["method"]) == ("task", 0.5, "mvp")
    again = command(*PRUNE, "--steps", "1", "--add-to-zoo", cwd=place)
    assert again.code == 2
    assert "has an entry 'task' already" in again.error
    assert names(place / "runs") == {"001"}
    # The task's own entry never votes for it.
    alone = command(*PRUNE, "--steps", "1", "--neighbours", "5", cwd=place)
    assert "4 tasks beside this one (task)" in alone.error
    # By hand it can be replaced.
    assert command("zoo", "add", "zoo", "runs/001", cwd=place).code == 0  # the same: nothing to do
    assert command(*PRUNE, "--steps", "2", cwd=place).code == 0
    other = command("zoo", "add", "zoo", "runs/002", cwd=place)
    assert other.code == 2
    assert "entries/task" in other.error
    assert command("zoo", "add", "zoo", "runs/002", "--force", cwd=place).code == 0


def test_who_votes_is_said_and_what_cannot_vote_goes_from_scratch(place: Path) -> None:
    for name in sorted(names(place / "zoo/entries"))[2:]:
        shutil.rmtree(place / "zoo/entries" / name)
    two = command(*PRUNE, "--steps", "0", cwd=place)
    assert two.code == 0, two.err
    assert "mvp (2 of the zoo's 2 tasks vote)" in two.err
    shutil.rmtree(place / "zoo/entries")
    none = command(*PRUNE, "--steps", "2", "--tau", "0.5", cwd=place)
    assert none.code == 0, none.err
    assert "distill (from scratch, since zoo zoo has no tasks; --tau unused)" in none.err
    asked = command(*PRUNE, "--method", "mvp", cwd=place)
    assert asked.code == 2
    assert "--method mvp needs neighbours, but zoo zoo has no tasks" in asked.error
    assert names(place / "runs") == {"001", "002"}


def test_disjoint_neighbours_share_no_class(place: Path) -> None:
    entries = json.loads(command("zoo", "list", "zoo", "--json", cwd=place).out)["entries"]
    pairs = {
        pair: [entry["name"] for entry in entries if not {*pair} & {*entry["classes"]}]
        for pair in combinations(KNOWN, 2)
    }
    pair, apart = next(item for item in pairs.items() if 0 < len(item[1]) < len(entries))
    words = (*PRUNE[:4], "digits", *PRUNE[5:], "--classes", ",".join(pair), "--steps", "0")
    done = command(*words, "--disjoint", "--neighbours", str(len(apart)), cwd=place)
    assert done.code == 0, done.err
    assert sorted(read(place / "runs/001/votes.json")["neighbours"]) == apart
    many = command(*words, "--disjoint", "--neighbours", str(len(apart) + 1), cwd=place)
    assert many.code == 2
    assert "without a class of this one" in many.error
    assert names(place / "runs") == {"001"}


def _flip(entries: Path, number: int) -> None:
    """Flip a bit in the weights of an entry."""
    path = sorted(entries.iterdir())[number] / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
