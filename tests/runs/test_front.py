"""A front: nested in size, each member a run of its own, picked by rule, resumed to the same bits."""

import json
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_edge.runs.choice import Front, Limit, Member, MemberLatency, choose, limit_for, undominated
from mvp_edge_export.profile import load_profile
from tests.support.tiny import At, board, command, refused, tree

PRUNE = ("prune", "--device", "board.yaml", "--task", "task", "--zoo", "zoo", "--augment", "shift")
FRONT = (*PRUNE, "--steps", "20", "--front", "3")
BITS = (
    *("network.safetensors", "network.json", "neighbours.json", "votes.json", "history.json"),
    *("test.json", "layers.json", "verified.json", "task.json", "profile.json"),
)
ONE_RUNTIME = "runtime: {backends: [onnxruntime], threads: 1}\n"
"""To be timed in, for speed."""
QUICK = {"mvp_edge.runs.front": {"SECONDS": 0.05}, "mvp_edge_export.measuring.bench": {
    "_WARM_SECONDS": 0.05, "_WARM_CAP": 0.2, "MAX_ATTEMPTS": 1}}  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def bits(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in BITS if (run / name).exists()}


def test_members_are_nested_in_size_and_each_is_what_a_single_run_makes(place: Path) -> None:
    done = command(*FRONT, "--out", "run", "--json", cwd=place, patch=QUICK)
    assert done.code == 0, done.err
    front = Front.load(place / "run")
    assert json.loads(done.out)["front"] == read(place / "run/front.json")
    assert [member.number for member in front.members] == [1, 2, 3]
    widths = [read(place / f"run/front/{n}/run.json")["widths"] for n in (1, 2, 3)]
    for small, large in pairwise(widths):
        assert all(small[name]["kept"] <= large[name]["kept"] for name in small)
    assert [{w["kept"] == w["size"] for w in widths[2].values()}] == [{True}]  # no budget binds
    costs = [member.flops for member in front.members]
    assert costs[2] / costs[1] == pytest.approx(costs[1] / costs[0], rel=0.25)
    for member in front.members:
        assert {timing.runtime for timing in member.timings} == {"onnxruntime", "openvino"}
        assert (
            member.validation
            == read(place / f"run/front/{member.number}/pruned.json")["scores"]["val"]
        )

    # Similarity was found once; a member's own command makes the same network bit by bit.
    assert done.err.count("similarity …") == 1
    for number in ("1", "3"):
        words = read(place / f"run/front/{number}/run.json")["command"][1:]
        assert "--front" not in words
        single = command(*words[:-1], f"single{number}", cwd=place)
        assert single.code == 0, single.err
        assert bits(place / f"single{number}") == bits(place / f"run/front/{number}")

    # What was picked is the run's own; the others can be exported as well.
    assert bits(place / "run") == bits(place / f"run/front/{front.picked}")
    assert read(place / "run/run.json")["keep"]["chosen"] == front.choice.keep
    other = 1 + front.picked % 3
    for run in ("run", f"run/front/{other}"):
        exported = command("export", run, "--format", "onnx", cwd=place)
        assert exported.code == 0, exported.err
        assert (place / run / "bundle/model.onnx").exists()


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(place: Path) -> None:
    (place / "board.yaml").write_text(board() + ONE_RUNTIME)
    words = (*FRONT, "--reference", "--add-to-zoo", "--pick", "best")
    untouched = shutil.copytree(place / "zoo", place / "zoo-as-it-was")
    clean = command(*words, "--out", "clean", cwd=place, patch=QUICK)
    assert clean.code == 0, clean.err
    shutil.rmtree(place / "zoo")
    untouched.rename(place / "zoo")
    shutil.rmtree(place / ".references")
    moments = [
        At("similarity", 3),
        At("reference: tuning", 70),
        At("1 of 3: tuning", 15),
        At(file="pruned.json", signal=signal.SIGINT),
        At("2 of 3: verification", 0),
        At("3 of 3: tuning", 10, signal=signal.SIGINT),
        At("latency", 1),
        At(file="front.json"),
        At("latency", 3, signal=signal.SIGINT),
        At(file="front.json", signal=signal.SIGINT),
    ]
    for at in moments:
        stopped = command(*words, "--out", "stopped", cwd=place, at=at, patch=QUICK)
        assert stopped.code == (130 if at.signal == signal.SIGINT else -at.signal), (
            at,
            stopped.err,
        )
        assert read(place / "stopped/run.json")["finished"] is False
    done = command(*words, "--out", "stopped", cwd=place, patch=QUICK)
    assert done.code == 0, done.err
    assert "tuning" not in done.err  # finished members are not repeated
    pairs = [(place / "clean", place / "stopped")]
    pairs += [(pairs[0][0] / f"front/{n}", pairs[0][1] / f"front/{n}") for n in (1, 2, 3)]
    for one, other in pairs:
        assert bits(one) == bits(other)
    assert tree(place / "stopped") == tree(place / "clean")
    times = {"timings"}
    clean_members, members = (
        [m.model_dump(exclude=times) for m in Front.load(place / name).members]
        for name in ("clean", "stopped")
    )
    assert members == clean_members
    entry = place / "zoo/entries/task/network.safetensors"
    assert entry.read_bytes() == (place / "stopped/network.safetensors").read_bytes()


def test_the_largest_is_what_the_budget_allows_and_none_exceeds_it(place: Path) -> None:
    (place / "board.yaml").write_text(board(flops="200k") + ONE_RUNTIME)
    words = (*PRUNE, "--steps", "0", "--front", "4", "--out")
    done = command(*words, "run", cwd=place, patch=QUICK)
    assert done.code == 0, done.err
    members = Front.load(place / "run").members
    assert all(member.flops <= 200_000 and not member.missed for member in members)
    assert members[-1].flops > 0.95 * 200_000
    single = command(*PRUNE, "--steps", "0", "--keep", "1", "--out", "single", cwd=place)
    assert single.code == 0, single.err
    assert bits(place / "single") == bits(place / f"run/front/{len(members)}")
    capped = command(*words, "capped", "--keep", "0.5", cwd=place, patch=QUICK)
    assert capped.code == 0, capped.err
    assert Front.load(place / "capped").members[-1].keep <= 0.5


REFUSED = {
    "pick alone": (("--pick", "best"), "--pick best chooses from several networks: add --front"),
    "one is none": (("--front", "1"), "--front"),
    "too many": (("--front", "13"), "--front"),
    "from scratch": (("--front", "3", "--method", "ifp"), "--front 3 with ifp (as asked)"),
    "no room": (("--front", "3", "--keep", "0.05"), "leave room for one network only"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_front_can_be_made_of_is_refused(kind: str, place: Path) -> None:
    extra, culprit = REFUSED[kind]
    before = tree(place)
    refused(command(*PRUNE, *extra, cwd=place), place, culprit, before=before)


def test_a_drop_is_only_judged_against_a_reference(place: Path) -> None:
    (place / "board.yaml").write_text(board() + "accuracy: {max_drop: 2}\n")
    before = tree(place)
    alone = command(*FRONT, cwd=place)
    refused(alone, place, "--pick smallest", "add --reference, or --pick best", before=before)
    best = command(*PRUNE, "--steps", "0", "--front", "2", "--pick", "best", cwd=place, patch=QUICK)
    assert best.code == 0, best.err


@pytest.mark.parametrize(
    ("drop", "how", "tried"), [(90, ["20"], 1), (0, ["0", "--head", "zero"], 4)]
)
def test_with_a_drop_and_a_reference_sizes_are_tried_up_to_the_first_that_is_enough(
    drop: int, how: list[str], tried: int, place: Path
) -> None:
    limited = f"accuracy: {{max_drop: {drop}}}\n{ONE_RUNTIME}"
    (place / "board.yaml").write_text(board(flops="400k") + limited)
    words = (*PRUNE, "--reference", "--out", "run", "--steps", *how)
    done = command(*words, cwd=place, patch=QUICK)
    assert done.code == (0 if tried == 1 else 3), done.err
    front = Front.load(place / "run")
    limit = read(place / "run/reference.json")["validation"] - drop / 100
    assert front.limit.least == pytest.approx(limit)
    assert len(front.members) >= tried
    enough = [one.validation >= limit - 1e-9 for one in front.members]
    assert enough == [tried == 1] * len(enough)
    assert ("since none is" in front.why) == (tried > 1)
    assert front.members[-1].flops <= 400_000
    assert bits(place / "run") == bits(place / f"run/front/{front.picked}")
    # Without a reference nothing can be held to it: the zoo's ratio, as ever.
    plain = command(*PRUNE, "--steps", "0", "--out", "plain", cwd=place)
    assert plain.code == 0, plain.err
    assert not (place / "plain/front.json").exists()


def member(number: int, validation: float, p50: float | None = None, *missed: str) -> Member:
    timings = () if p50 is None else (_timing(p50 * 2), _timing(p50))
    return Member(
        number=number, keep=number / 10, flops=100 * number, params=number, file=number,
        validation=validation, test=1 - validation, timings=timings, missed=missed,
    )  # fmt: skip


def _timing(p50: float) -> MemberLatency:
    return MemberLatency(
        runtime="onnxruntime", version="1", threads=1, p50=p50,
        p50_interval=(p50, p50), p90=p50, status="OK",
    )  # fmt: skip


TABLE = (member(1, 0.80, 1.0), member(2, 0.90, 3.0), member(3, 0.905, 2.0), member(4, 0.91, 4.0))


@pytest.mark.parametrize(
    ("pick", "least", "number"),
    [
        ("smallest", 0.90, 2),
        ("fastest", 0.90, 3),  # larger, but faster
        ("best", 0.90, 4),
        ("smallest", 0.5, 1),
        ("fastest", 0.91, 4),
        ("smallest", 0.95, 4),  # none is good enough: the most accurate
        ("fastest", 0.95, 4),
    ],
)
def test_the_rule_of_each_pick(pick: Any, least: float, number: int) -> None:
    chosen, why = choose(TABLE, pick, Limit(least=least, rule="good enough"))
    assert chosen.number == number
    assert ("since none is good enough" in why) == (least == 0.95)


def test_ties_go_to_the_smaller_and_missed_budgets_are_passed_over() -> None:
    rule = Limit(least=0.0, rule="anything")
    assert choose((member(1, 0.9), member(2, 0.9)), "best", rule)[0].number == 1
    late = (member(1, 0.8), member(2, 0.9, None, "latency.p90"))
    assert choose(late, "best", rule)[0].number == 1
    assert choose((late[1],), "best", rule)[0].number == 2


def test_what_counts_as_enough_is_the_profiles_word_or_near_the_best() -> None:
    plain = load_profile("rpi4")
    strict = plain.model_copy(
        update={"accuracy": plain.accuracy.model_copy(update={"max_drop": 3.0})}
    )
    assert limit_for(strict, TABLE, 0.95).least == pytest.approx(0.92)
    assert "max_drop" in limit_for(strict, TABLE, 0.95).rule
    assert limit_for(plain, TABLE, None).least == pytest.approx(0.90)
    assert limit_for(plain, TABLE, 0.95).least == pytest.approx(0.90)
    assert "91.0 %" in limit_for(plain, TABLE, None).rule


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=8))
def test_the_undominated_are_those_that_nobody_beats(pairs: list[tuple[int, int]]) -> None:
    members = [member(n, val / 5, float(ms)) for n, (val, ms) in enumerate(pairs, 1)]
    kept = {one.number for one in undominated(members)}
    for one in members:
        beaten = any(
            o.validation >= one.validation and o.price <= one.price
            and (o.validation > one.validation or o.price < one.price)
            for o in members
        )  # fmt: skip
        assert (one.number in kept) != beaten
    assert kept
