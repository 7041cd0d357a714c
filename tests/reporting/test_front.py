"""The report's part on a front: its table, its drawings, and that it says what was not measured."""

from pathlib import Path

import pytest

from mvp_edge.reporting import report
from mvp_edge.runs.choice import Front, Images, Limit, Member, MemberLatency, choose
from mvp_edge_export.errors import BadInput
from tests.reporting.test_page import Page
from tests.support.run_fixture import edit, write_run

MS = {1: 0.5, 2: 1.25, 3: 1.0, 4: 8.0}
VALIDATION = {1: 0.7, 2: 0.86, 3: 0.88, 4: 0.885}


def front(*, timed: bool = True, status: str = "OK") -> Front:
    members = tuple(
        Member(
            number=number,
            keep=number / 10,
            flops=1_000_000 * 4**number,
            params=20_000 * number,
            file=100_000 * number,
            validation=VALIDATION[number],
            test=VALIDATION[number] - 0.123,
            timings=tuple(
                MemberLatency(
                    runtime=runtime, version="1", threads=2, p50=ms * slower,
                    p50_interval=(ms, ms), p90=ms * 2, status=status,
                )
                for runtime, slower in (("onnxruntime", 3), ("openvino", 1))
            ) if timed else (),
        )
        for number, ms in MS.items()
    )  # fmt: skip
    limit = Limit(least=0.875, rule="at most 1 point under the best")
    picked, why = choose(members, "smallest", limit)
    return Front(
        asked=4, pick="smallest", picked=picked.number, why=why, limit=limit, reference=None,
        images=Images(validation=200, test=500), timed="Timed here.", members=members,
    )  # fmt: skip


def page(path: Path, one: Front) -> Page:
    run = write_run(path)
    one.save(run)
    return Page(report([run]))


def test_a_front_is_a_table_and_two_drawings_with_the_picked_one_marked(tmp_path: Path) -> None:
    found = page(tmp_path / "run", front())
    assert "Picked: 3, the smallest that is at most 1 point under the best." in found.text
    assert "4 networks of this task" in found.text
    rows = [row for row in found.named("tr") if row.get("class") in ("picked", "soft")]
    assert [row["class"] for row in rows] == ["soft", "picked"]  # 2 is beaten by 3
    # 3 in OpenVINO (the fastest), its validation and its test accuracy.
    assert "3 0.3 64 M 293 KiB 3 ms 1 ms 88.0 % 75.7 %" in found.text
    drawings = [svg.get("aria-label") or "" for svg in found.named("svg")]
    titles = ["ms for one image", "multiply-adds"]
    assert [d for d in drawings if "validation images against" in d] == [
        f"Accuracy on validation images against {title}" for title in titles
    ]
    assert found.text.count("3, picked") == 2
    assert found.source.count('class="line floor"') == 2
    assert "Timed here." in found.text
    assert "picked from a front of 4." in found.text
    assert "/front/1" in found.text


def test_without_times_it_is_one_drawing_and_doubts_are_told(tmp_path: Path) -> None:
    plain = page(tmp_path / "plain", front(timed=False))
    assert plain.text.count("3, picked") == 1  # no drawing against time
    assert "3 0.3 64 M 293 KiB 88.0 % 75.7 %" in plain.text
    noisy = page(tmp_path / "noisy", front(status="NOISY"))
    assert "1 ms*" in noisy.text
    assert "* NOISY." in noisy.text


def test_a_run_without_a_front_has_no_such_part(tmp_path: Path) -> None:
    assert "Picked:" not in Page(report([write_run(tmp_path / "run")])).text


def test_a_damaged_front_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    front().save(run)
    edit(run / "front.json", "picked", "three")
    with pytest.raises(BadInput, match=r"front\.json: picked"):
        report([run])
    edit(run / "front.json", "picked", 9)
    with pytest.raises(BadInput, match=r"front\.json.*no member 9"):
        report([run])
