"""The plots of the evidence pages."""

import html
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.container import ErrorbarContainer

from benchmarks.report import curves, panels

ROWS: dict[str, dict[str, Any]] = {
    f"t{n}": {
        name: {
            "accuracy": accuracy + n / 100,
            "total_flops": flops,
            "forward_flops": 6e6,
            "zoo": 23,
        }
        for name, accuracy, flops in (
            ("mvp@0", 0.5, 5e10),  # lower than a curve is drawn
            ("mvp@20", 0.7, 1e11),
            ("mvp@100", 0.8, 3e11),
            ("ifp@100", 0.7, 5e12),
            ("ifp@1000", 0.9, 4e13),
            ("mvp@100-one", 0.75, 3e11),
            ("mvp@100-zoo-1", 0.7, 2e11),
            ("mvp@100-fifth-5", 0.6, 2e11),
            ("mvp@100-keep0.5", 0.9, 2e12),
            ("mvp@100-keep0.05", 0.5, 2e11),
            ("tp-a@100", 0.6, 1e12),
            ("small@100", 0.9, 2e11),
            ("unpruned@100", 0.95, 2e13),
        )
    }
    for n in range(3)
}
CLASSES = {f"cifar100-3c-{target}": rows for target, rows in ROWS.items()}


@pytest.fixture
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "study_rows", lambda s: CLASSES if s == "classes" else ROWS)


def lines(name: str, panel: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Label → the points (x, y) of its line, rounded."""
    figure, axes = plt.subplots()
    assert curves.PLOTS[name].panels[panel](axes)
    handles, labels = axes.get_legend_handles_labels()
    found = {
        label: [(round(float(x), 2), round(float(y), 1)) for x, y in handle[0].get_xydata()]
        for handle, label in zip(handles, labels, strict=True)
        if isinstance(handle, ErrorbarContainer)  # chance and the unpruned are plain lines
    }
    plt.close(figure)
    return found


@pytest.mark.usefixtures("_rows")
def test_points_are_means_of_the_rows_or_paired_differences() -> None:
    assert lines("accuracy") == {
        "MVP": [(1e11, -20.0), (3e11, -10.0)],
        "IFP": [(5e12, -20.0), (4e13, 0.0)],
    }
    assert lines("zoo") == {"MVP, 100 steps": [(1, -10.0), (23, 0.0)]}
    assert lines("zoo", 1) == {"MVP, 100 steps": [(1, 0.0), (5, -20.0)]}
    assert lines("classes-and-images") == {"MVP": [(0.05, 81.0), (1.05, 81.0)]}
    assert lines("classes-and-images", 1) == {"MVP": [(0.05 + n, 81.0) for n in range(4)]}
    assert lines("size") == {"MVP": [(0.05, -45.0), (0.1, -15.0), (0.5, -5.0)]}


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("votes", {"one voter instead of three (3)": -5.0}),
        (
            "peers",
            {
                "Torch-Pruning (a), 100 steps (3)": -20.0,
                "small network pre-trained on all classes, 100 steps (3)": 10.0,
                "IFP, 1,000 steps (3)": 10.0,
            },
        ),
    ],
)
def test_bars_are_paired_differences(name: str, expected: dict[str, float]) -> None:
    figure, axes = plt.subplots()
    assert curves.PLOTS[name].panels[0](axes)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    widths = [round(float(bar.get_width()), 1) for bar in axes.patches]
    plt.close(figure)
    assert expected.items() <= dict(zip(labels, widths, strict=True)).items()


@pytest.mark.parametrize("name", curves.PLOTS)
def test_a_plot_stands_on_its_page_as_the_present_code_draws_it(name: str) -> None:
    plot, file = curves.PLOTS[name], curves.OUT / f"{name}.svg"
    shown = html.unescape(file.read_text())
    words = [plot.title]
    for draw in plot.panels:
        figure, axes = plt.subplots()
        assert draw(axes)
        words += [one.get_text() for one in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
        words += axes.get_legend_handles_labels()[1]
        if axes.patches:  # bars, which have words for ticks
            words += [label.get_text() for label in axes.get_yticklabels()]
        plt.close(figure)
    assert [w for text in words for w in text.splitlines() if w not in shown] == []
    assert f"]({name}.svg)" in (curves.OUT / f"{name}.md").read_text()


def test_every_picture_is_a_plot() -> None:
    assert {file.stem for file in curves.OUT.glob("*.svg")} == set(curves.PLOTS)
