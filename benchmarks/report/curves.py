"""The plots of the evidence pages, one a page, from the committed rows (needs matplotlib).

python -m benchmarks.report.curves     writes docs/evidence/*.svg
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import panels
from benchmarks.study.rows import MAIN

OUT = Path(__file__).parents[2] / "docs" / "evidence"
RESNET = "ResNet-18, five-class tasks of CIFAR-100"
INTERVALS = "bars: 95 % interval over tasks"
COUNTS = "in brackets: number of tasks"


@dataclass(frozen=True)
class Plot:
    """A plot of one or two panels, each of which says whether it had rows to draw."""

    title: str
    panels: tuple[Callable[[Axes], bool], ...]
    height: float = 3.6

    def save(self, path: Path) -> bool:
        """Write the SVG; nothing if a panel has no rows."""
        width = 6.6 if len(self.panels) == 1 else 8.6
        figure, axes = plt.subplots(
            1, len(self.panels), figsize=(width, self.height), layout="constrained", squeeze=False
        )
        drawn = [draw(one) for draw, one in zip(self.panels, axes[0], strict=True)]
        if all(drawn):
            figure.suptitle(self.title, fontsize=9)
            for one in axes[0]:
                one.grid(alpha=0.3)
                one.spines[["top", "right"]].set_visible(False)
            figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        return all(drawn)


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "mvp-edge", "svg.fonttype": "none", "font.size": 9})
    OUT.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        if plot.save(OUT / f"{name}.svg"):
            print(OUT / f"{name}.svg")


PLOTS: Mapping[str, Plot] = {
    "accuracy": Plot(
        f"Accuracy against training: {RESNET}, 1 % of the multiply-adds\n"
        f"({INTERVALS}; below {panels.LOWEST:g} points not drawn)",
        (panels.accuracy_against_cost(MAIN, "ifp@1000"),),
    ),
    "training-cost": Plot(
        f"Training of many tasks: {RESNET}, 1 % of the multiply-adds",
        (panels.training_of_many_tasks,),
    ),
    "votes": Plot(
        f"One change to MVP at a time, 100 steps each: {RESNET}, keep 0.1\n({INTERVALS}; {COUNTS})",
        (panels.votes,),
    ),
    "trunk": Plot(
        f"Trunks of different making: {RESNET}, keep 0.1\n({INTERVALS}; {COUNTS})", (panels.trunks,)
    ),
    "zoo": Plot(
        f"How large the zoo is, and how similar the voters' tasks: {RESNET}, keep 0.1\n({INTERVALS})",
        (panels.zoo_size, panels.similarity),
    ),
    "size": Plot(f"Accuracy by size, 100 steps: {RESNET}\n({INTERVALS})", (panels.sizes,)),
    "classes-and-images": Plot(
        f"Number of classes and of training images, 100 steps: ResNet-18, CIFAR-100, keep 0.1\n({INTERVALS})",
        (panels.classes, panels.few_images),
    ),
    "unseen": Plot(
        f"Images that nothing had seen: ResNet-18, 32 px, keep 0.1\n({INTERVALS})", (panels.unseen,)
    ),
    "vit": Plot(
        "Accuracy against training: DeiT-Tiny, five-class tasks of Tiny-ImageNet at 64 px, keep 0.25\n"
        f"({INTERVALS})",
        (panels.accuracy_against_cost("deit-trunk", "ahnp@500"),),
    ),
    "peers": Plot(
        f"Other ways against MVP, 100 steps: {RESNET}, 1 % of the multiply-adds\n({INTERVALS}; {COUNTS})",
        (panels.peers,),
    ),
    "device-speed": Plot(
        "Speed-up against multiply-adds, one thread, fp32, two x86 machines", (panels.speed,)
    ),
    "predicted-latency": Plot(
        "Latency predicted for networks that were not measured, one thread", (panels.prediction,)
    ),
    "tried": Plot(
        f"Changes to MVP that were tried, 100 steps: ResNet-18, keep 0.1\n({INTERVALS}; {COUNTS})",
        (panels.tried,),
    ),
}
"""Name of the page → its plot."""


if __name__ == "__main__":
    main()
