"""The report: what it says, what it draws, what it refuses, and that it needs nothing but itself."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mvp_edge.reporting import charts, printed, report
from mvp_edge.reporting.charts import Axis, Cells
from mvp_edge.reporting.findings import Findings
from mvp_edge.reporting.results import read_run
from mvp_edge_export.errors import BadInput
from tests.support.run_fixture import Recipe, edit, write_run

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """A parsed page: every tag closed in order, its attributes and its text kept."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self._open == [], f"never closed: {self._open}"
        words = self.text.replace("\N{NARROW NO-BREAK SPACE}", " ").split()
        self.text = re.sub(r" ([,.;])", r"\1", " ".join(words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data + " "

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def page_of(path: Path, recipe: Recipe | None = None) -> Page:
    return Page(report([write_run(path, recipe)]))


KINDS = {
    "voted": Recipe(),
    "from scratch": Recipe(neighbours=0, exported=False, reference=False),
    "exported only": Recipe(benched=False, network="digits"),
    "many classes": Recipe(classes=[f"class {k}" for k in range(30)], images=300, neighbours=6),
    "heads": Recipe(network="deit", keep=0.25, neighbours=1),
    "nasty names": Recipe(
        classes=[NASTY, "Kätzchen", "a/b", "عنكبوت"], task=NASTY, network="digits"
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_well_formed_and_needs_nothing_else(tmp_path: Path, kind: str) -> None:
    page = page_of(tmp_path / "run", KINDS[kind])
    assert {name for name, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "form"}
    )
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert style.count("{") == style.count("}")
    policy = [one["content"] for one in page.named("meta") if one.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert len(page.source) < 400_000


def test_names_of_the_user_are_text(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run", KINDS["nasty names"])
    assert NASTY in page.text
    assert "Kätzchen" in page.text
    assert all(
        (image["src"] or "").startswith("data:image/jpeg;base64,/9j/")
        for image in page.named("img")
    )


@pytest.mark.parametrize(
    ("recipe", "headline", "words"),
    [
        (Recipe(network="digits"), "Meets all 5 budgets of Raspberry Pi 4", []),
        (
            Recipe(network="digits", limits={"flops": 4_000_000}),
            "Misses 1 of 5 budgets of Raspberry Pi 4",
            ["FAIL Multiply-adds: 5.82 M of 4 M, 45.4 % over.", "refuses it"],
        ),
        (
            Recipe(network="digits", limits={"params": 1000}),
            "Misses 1 of 5 budgets of Raspberry Pi 4",
            ["FAIL Parameters: 126 k of 1 k, 126 × the limit."],
        ),
        (
            Recipe(network="digits", machine_is_device=False),
            "INCONCLUSIVE: 1 of 5 budgets of Raspberry Pi 4",
            ["measured on another machine: architecture x86_64, not aarch64"],
        ),
        (
            Recipe(network="digits", benched=False),
            "INCONCLUSIVE: 1 of 5 budgets of Raspberry Pi 4",
            ["limit 50 ms; not measured yet: mvp-edge bench, on the device"],
        ),
    ],
)
def test_verdict_in_words(tmp_path: Path, recipe: Recipe, headline: str, words: list[str]) -> None:
    page = page_of(tmp_path / "run", recipe)
    assert headline in page.text.split("Budgets The bar")[0]
    for phrase in words:
        assert phrase in page.text


def test_unchecked_budget_is_never_a_pass(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits", benched=False, exported=False))
    content = json.loads((run / "verified.json").read_text())
    for verdict in content["verdicts"]:
        verdict |= {"limit": None, "verdict": "UNCHECKED"}
    (run / "verified.json").write_text(json.dumps(content))
    found = Findings(read_run(run))
    assert found.verdict == "UNCHECKED"
    page = Page(report([run]))
    assert "No budget of Raspberry Pi 4 Model B, 4 GB was checked" in page.text
    assert "PASS" not in page.text


def test_what_was_measured_stands_in_for_what_was_predicted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits"))
    by_name = {budget.verdict.budget: budget.verdict for budget in Findings(read_run(run)).budgets}
    assert {by_name[name].basis for name in ("file", "memory", "latency.p90")} == {"measured"}
    assert by_name["flops"].basis == "counted"


def test_verdicts_of_another_profile_do_not_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits"))
    edit(run / "bench.json", "profile_sha256", "0" * 64)
    edit(run / "bench.json", "profile", "another")
    found = Findings(read_run(run))
    assert found.verdict == "INCONCLUSIVE"
    assert "Measured for another profile, another" in Page(report([run])).text


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", replace(KINDS["from scratch"], network="digits"))
    text = Page(report([run])).text
    for phrase in (
        "--reference",
        f"mvp-edge export '{run}' --baseline",
        f"mvp-edge bench '{run / 'bundle'}'",
        "from scratch, since there is no zoo yet",
        "No votes",
        "not exported yet",
        "not benchmarked yet",
    ):
        assert phrase in text


def test_figures_of_the_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = read_run(run)
    text = Page(report([run])).text
    cost, base = result.verified.cost, result.verified.cost_baseline
    assert f"Multiply-adds {base.flops / 1e6:.0f} M {cost.flops / 1e6:.2f} M" in text
    assert f"{base.flops / cost.flops:.0f} × smaller" in text
    assert f"Accuracy 93.6 % {100 * result.test.top1:.1f} %" in text
    assert f"−{93.6 - 100 * result.test.top1:.1f} points" in text
    assert result.bench is not None
    cell = result.bench.cell("pruned", "openvino", 1)
    other = result.bench.cell("baseline", "openvino", 1)
    assert cell is not None
    assert other is not None
    line = (
        f"Latency, OpenVINO, 1 thread median {other.latency.p50:.3g} ms {cell.latency.p50:.3g} ms"
    )
    assert line in text
    assert "one fused multiply-add is one" in text


def test_disturbed_times_are_said_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits"))
    edit(run / "bench.json", "cells.0.status", "NOISY")
    edit(run / "bench.json", "warnings", ["pruned: NOISY, others", "frequency governor powersave"])
    text = Page(report([run])).text
    assert "NOISY: another load ran during 1 of 12 cells" in text
    assert "NOISY, others" not in text  # the warning repeats what the line above says
    assert "frequency governor powersave." in text
    assert "ONNX Runtime, 1 thread, NOISY" in text


@pytest.mark.parametrize(("limit", "drawn"), [(50, True), (5000, False)])
def test_a_far_latency_budget_does_not_squeeze_the_times(
    tmp_path: Path, limit: float, drawn: bool
) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits", limits={"latency.p90": limit}))
    source = report([run]).read_text()
    assert ('class="limit"' in source) == drawn
    assert ("the vertical line is the budget" in source) == drawn


def test_deploying_takes_six_lines_and_reproducing_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits"))
    blocks = re.findall(r"<pre>(.*?)</pre>", report([run]).read_text(), re.DOTALL)
    assert len(blocks[0].splitlines()) == 6
    assert "mvp-edge predict bundle photo.jpg" in blocks[0]
    assert blocks[1] == "mvp-edge prune --device rpi4.yaml --task &#39;tasks/aquatic mammals&#39;"
    text = Page(run / "report.html").text
    verified = read_run(run).verified
    assert verified.weights_sha256 in text
    assert "torch 2.14.1" in text


def drawn_cells(svg: str, kind: str) -> int:
    """Cells of a kind in a strip: a stroke of length 10·(n − 1) + size stands for n of them."""
    strokes = re.findall(rf'class="{kind} [^"]*" d="([^"]*)"', svg)
    lengths = [float(length) for stroke in strokes for length in re.findall(r"h([\d.]+)", stroke)]
    return sum(round((length - (8.6 if kind == "cell" else 3.6)) / 10) + 1 for length in lengths)


@settings(max_examples=30, deadline=None)
@given(
    kept=st.lists(st.integers(0, 3), max_size=150),
    dropped=st.lists(st.integers(0, 3), max_size=150),
    columns=st.sampled_from([32, 64, 128]),
)
def test_every_unit_has_its_cell(kept: list[int], dropped: list[int], columns: int) -> None:
    runs = []
    for votes in range(4):
        units = [k for k, v in enumerate(kept) if v == votes]
        runs.append(Cells(f"v{votes}", True, units, "kept"))
        others = [len(kept) + k for k, v in enumerate(dropped) if v == votes]
        runs.append(Cells(f"v{votes}", False, others, "not kept"))
    svg = str(charts.votes("strip", runs, columns))
    assert drawn_cells(svg, "cell") == len(kept)
    assert drawn_cells(svg, "speck") == len(dropped)
    rows = -(-(len(kept) + len(dropped)) // columns)
    assert f'viewBox="0 0 {columns * 10} {rows * 10}"' in svg
    rightmost = [float(x) + float(h) for x, h in re.findall(r"M([\d.]+) \d+h([\d.]+)", svg)]
    assert max(rightmost, default=0) <= columns * 10


def units_told(text: str) -> list[int]:
    """The units behind "3, 7–9"."""
    ends = [[int(end) for end in part.split("–")] for part in text.split(", ")]
    return [unit for end in ends for unit in range(end[0], end[-1] + 1)]


def test_votes_are_drawn_as_they_were_cast(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    source = report([run]).read_text()
    strips = re.findall(r'<svg class="strip".*?</svg>', source, re.DOTALL)
    groups = json.loads((run / "votes.json").read_text())["groups"]
    assert len(strips) == len(groups)
    for group, strip in zip(groups, strips, strict=True):
        assert drawn_cells(strip, "cell") == len(group["kept"])
        assert drawn_cells(strip, "speck") == group["size"] - len(group["kept"])
        marked = re.search(r'class="cell drawn".*?<title>no vote, kept \((\d+)\): ([^<]*)<', strip)
        told = units_told(marked[2]) if marked else []
        assert told == group["drawn"]
        assert len(told) == (int(marked[1]) if marked else 0)


@pytest.mark.parametrize(
    ("tau", "said"), [(0.2, "(temperature τ = 0.2)"), (0.0, "most votes are kept")]
)
def test_how_votes_became_a_network_is_said(tmp_path: Path, tau: float, said: str) -> None:
    run = write_run(tmp_path / "run")
    edit(run / "votes.json", "tau", tau)
    assert said in Page(report([run])).text


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (["flip", "shift"], ", flip and shift at random,"),
        ([], ", no augmentation,"),
        (None, "updates, learning"),
    ],
)
def test_what_was_done_to_the_images_is_said(
    tmp_path: Path, done: list[str] | None, said: str
) -> None:
    run = write_run(tmp_path / "run")
    edit(run / "run.json", "training.augmented", done)
    assert said in Page(report([run])).text


def test_groups_kept_whole_are_named_not_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path / "run", KINDS["heads"])
    strips = [one for one in page.named("svg") if one.get("class") == "strip"]
    assert len(strips) == 24
    assert "12 groups kept all their units and are not shown: blocks.0.head_dim" in page.text


def test_wide_layers_stay_small_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="resnet50", examples=0))
    groups = json.loads((run / "votes.json").read_text())["groups"]
    assert max(group["size"] for group in groups) == 2048
    assert sum(group["size"] for group in groups) > 10_000
    assert report([run]).stat().st_size < 250_000


def test_large_thumbnails_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(network="digits", examples=24))
    content = json.loads((run / "test.json").read_text())
    for example in content["examples"]:
        picture = base64.b64decode(example["jpeg_base64"])
        example["jpeg_base64"] = base64.b64encode(picture.ljust(45_000, b".")).decode()
    (run / "test.json").write_text(json.dumps(content))
    out = report([run])
    assert out.stat().st_size < 1_500_000
    assert "11 more examples would make this page too large" in Page(out).text


FEW = Recipe(network="digits", examples=2)
BROKEN: list[tuple[str, str, Any, str]] = [
    ("run.json", "training.steps", "many", "training.steps"),
    ("run.json", "schema", 2, "schema"),
    ("run.json", "keep", 7, "keep"),
    ("run.json", "finished", False, "not finished"),
    ("votes.json", "groups.0.votes", [3], "groups.0"),
    ("votes.json", "groups.0.kept", [0, 999], "groups.0"),
    ("votes.json", "neighbours", ["one"], "other than 0..1 votes"),
    ("history.json", "steps.3.step", 1, "numbered upwards"),
    ("history.json", "steps.3.loss", None, "steps.3.loss"),
    ("neighbours.json", "neighbours.1.score", "near", "neighbours.1.score"),
    ("test.json", "confusion", [[1]], "confusion is not 5 × 5"),
    ("test.json", "top1", 0.2, "not verified.json's"),
    ("test.json", "examples.1.probability", 3, "examples.1.probability"),
    ("test.json", "examples.1.jpeg_base64", "PHN2Zz4=", "examples.1.jpeg_base64"),
    ("test.json", "examples.1.jpeg_base64", "</img>", "examples.1.jpeg_base64"),
    ("reference.json", "top1", 94, "top1"),
    ("verified.json", "cost_baseline.flops", 0, "cost_baseline"),
    ("verified.json", "weights_sha256", "0" * 64, "was verified"),
    ("bundle/manifest.json", "weights_sha256", "0" * 64, "export again"),
    ("bench.json", "fingerprint.models", {}, "bench again"),
    ("bench.json", "cells.0.latency.min", 0, "not above 0"),
    ("layers.json", "layers", [], "layers"),
]


@pytest.mark.parametrize(("name", "key", "value", "told"), BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str, key: str, value: Any, told: str) -> None:
    run = write_run(tmp_path / "run", FEW)
    edit(run / name, key, value)
    with pytest.raises(BadInput) as error:
        report([run])
    line = str(error.value)
    assert "\n" not in line
    assert told in line
    # A changed hash is told of the file that no longer has it.
    assert (str(run / name) if told not in ("not finished", "was verified") else str(run)) in line
    assert not (run / "report.html").exists()


def test_other_bad_input(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", FEW)
    with pytest.raises(BadInput, match=r"run\.json is missing"):
        report([tmp_path])
    with pytest.raises(BadInput, match="no run was given"):
        report([])
    with pytest.raises(BadInput, match="given twice"):
        report([run, tmp_path / "." / "run"])
    with pytest.raises(BadInput, match="too many"):
        report([tmp_path / str(k) for k in range(13)])
    with pytest.raises(BadInput, match="is a directory"):
        report([run], tmp_path)
    (run / "history.json").write_text("{")
    with pytest.raises(BadInput, match=r"history\.json:1 is not JSON"):
        report([run])


def test_runs_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "small", Recipe(network="digits", keep=0.1)),
        write_run(
            tmp_path / "large", Recipe(network="digits", keep=0.3, limits={"flops": 9_000_000})
        ),
        write_run(tmp_path / "plain", Recipe(network="digits", neighbours=0, exported=False)),
    ]
    out = report(runs)
    assert out == tmp_path / "comparison.html"
    page = Page(out)
    assert (
        "3 runs of aquatic mammals on Raspberry Pi 4 Model B, 4 GB: 1 of 3 meet all budgets"
        in page.text
    )
    assert "The same in all runs: task aquatic mammals, device" in page.text
    assert "Verdict PASS FAIL INCONCLUSIVE" in page.text
    assert "Method MVP, 100 steps MVP, 100 steps IFP, 1000 steps" in page.text
    assert "different devices or budgets" in page.text
    flops = [read_run(run).verified.cost.flops / 1e6 for run in runs]
    assert f"Multiply-adds {flops[0]:.2f} M {flops[1]:.1f} M {flops[2]:.2f} M" in page.text
    plots = re.findall(r'<svg class="plot".*?</svg>', page.source, re.DOTALL)
    assert len(plots) == 5  # one by multiply-adds, four by latency
    across = [float(x) for x in re.findall(r'class="dot pruned" cx="([\d.]+)"', plots[0])]
    assert across[1] > across[0] == across[2]
    assert all(name in plots[0] for name in ("small", "large", "plain"))
    assert "plain" not in plots[1]


def test_runs_of_different_tasks_are_cautioned(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "one" / "run", Recipe(network="digits", exported=False)),
        write_run(tmp_path / "two" / "run", Recipe(network="digits", exported=False, task="birds")),
    ]
    page = Page(report(runs, tmp_path / "page.html"))
    assert "different tasks: their accuracies were not measured on the same images" in page.text
    assert "different devices or budgets" not in page.text
    assert "one/run two/run" in page.text
    assert "No plot of latency" in page.text


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e12), st.floats(1.01, 1e6), st.booleans())
def test_ticks_lie_on_the_axis(low: float, factor: float, log: bool) -> None:
    axis = Axis("x", low, low * factor, log=log)
    if log:
        axis = charts.span_axis("x", [low, low * factor], str)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(ticks)
    assert all(-1e-6 <= axis(tick) <= 1 + 1e-6 for tick in ticks)


def test_log_axis_is_logarithmic() -> None:
    axis = Axis("x", 1, 100, log=True)
    assert axis(10) == pytest.approx(0.5)
    assert axis.ticks(3) == [1, 10, 100]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (5, 10), (243, 250), (50, 50)])
def test_wilson_interval_against_scipy(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert printed.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_all_right_is_a_hundred_per_cent_and_no_digits_more() -> None:
    for n in range(1, 400):
        assert printed.wilson(1.0, n)[1] == 1.0
        assert printed.wilson(0.0, n)[0] == 0.0


@given(st.floats(0, 1), st.integers(0, 2))
def test_percent_never_rounds_to_the_end(share: float, digits: int) -> None:
    text = printed.percent(share, digits).removesuffix("\N{NARROW NO-BREAK SPACE}%")
    if 0 < share < 1 and share < 1 - 1e-9:
        assert 0 < float(text) < 100
    assert float(text) == pytest.approx(100 * share, abs=0.5)


def test_figures_carry_their_units() -> None:
    narrow = "\N{NARROW NO-BREAK SPACE}"
    assert printed.count(5_620_000) == f"5.62{narrow}M"
    assert printed.count(7) == "7"
    assert printed.size(1536) == f"1.5{narrow}KiB"
    assert printed.duration(0.3456) == f"0.35{narrow}ms"
    assert printed.duration(1200) == f"1.2{narrow}s"
    assert printed.seconds(1310) == f"21{narrow}min 50{narrow}s"
    assert printed.seconds(119.7) == f"2{narrow}min 0{narrow}s"
    assert printed.points(-0.048) == f"−4.8{narrow}points"
    assert printed.shown(None, "ms") == "–"


def test_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", FEW)
    first = report([run], tmp_path / "a.html").read_bytes()
    assert report([run], tmp_path / "b.html").read_bytes() == first


def test_the_fixture_is_consistent(tmp_path: Path) -> None:
    votes = json.loads((write_run(tmp_path / "run") / "votes.json").read_text())
    for group in votes["groups"]:
        kept = np.array(group["kept"])
        assert (np.array(group["votes"])[kept] == 0).sum() == len(group["drawn"])
