"""The plots of benchmarks/README.md."""

import html
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.container import ErrorbarContainer

from benchmarks import curves

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
    monkeypatch.setattr(curves, "study_rows", lambda s: CLASSES if s == "classes" else ROWS)


def lines(name: str) -> dict[str, list[tuple[float, float]]]:
    """Label → the points (x, y) of its line, rounded."""
    figure, axes = plt.subplots()
    assert curves.PLOTS[name][0](axes)
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
    assert lines("cost-resnet18") == {
        "MVP": [(1e11, -20.0), (3e11, -10.0)],
        "IFP": [(5e12, -20.0), (4e13, 0.0)],
    }
    assert lines("zoo-size") == {"MVP, 100 steps": [(1, -10.0), (23, 0.0)]}
    assert lines("similarity") == {"MVP, 100 steps": [(1, 0.0), (5, -20.0)]}
    assert lines("classes") == {"MVP, 100 steps": [(0.05, 81.0), (1.05, 81.0)]}
    assert lines("few") == {"MVP, 100 steps": [(0.05 + n, 81.0) for n in range(4)]}
    assert lines("ratios") == {"MVP, 100 steps": [(0.05, -45.0), (0.1, -15.0), (0.5, -5.0)]}


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("controls", {"one voter (3)": -5.0, "IFP from scratch, 1,000 steps (3)": 10.0}),
        (
            "peers",
            {"Torch-Pruning (a), 100 steps (3)": -20.0, "small network of all classes (3)": 10.0},
        ),
    ],
)
def test_bars_are_paired_differences(name: str, expected: dict[str, float]) -> None:
    figure, axes = plt.subplots()
    assert curves.PLOTS[name][0](axes)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    widths = [round(float(bar.get_width()), 1) for bar in axes.patches]
    plt.close(figure)
    assert expected.items() <= dict(zip(labels, widths, strict=True)).items()


def test_every_plot_of_the_page_is_there() -> None:
    page = (Path(curves.__file__).parent / "README.md").read_text()
    for name, (draw, title) in curves.PLOTS.items():
        figure, axes = plt.subplots()
        drawn = draw(axes)
        words = [one.get_text() for one in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
        words += [title, *axes.get_legend_handles_labels()[1]]
        if name in ("controls", "peers"):
            words += [label.get_text() for label in axes.get_yticklabels()]
        plt.close(figure)
        file = curves.OUT / f"{name}.svg"
        assert file.exists() == drawn, name
        if drawn:  # and drawn by the present code
            shown = html.unescape(file.read_text())
            assert [w for text in words for w in text.splitlines() if w not in shown] == [], name
        assert f"docs/evidence/{name}.svg" in page or not drawn, name
