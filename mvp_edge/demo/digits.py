"""The demo's data and its backbone: handwritten digits, and a small ResNet that learns some of them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mvp_edge_export.errors import BadInput

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN, UNSEEN = NAMES[:7], NAMES[7:]
BACKBONE, DIGITS = "backbone.json", "digits"
SIZE, CHANNELS = 16, [32, 64, 128, 256]
"""Side of the backbone's input in pixels, and filters of its four stages."""
STEPS = 300
AUGMENT = ("shift",)
"""No flips: a mirrored digit is another sign."""


def write_digits(folder: Path, names: Iterable[str]) -> None:
    """Class folders of 8×8 greyscale PNGs, from the copy that scikit-learn ships (UCI, CC BY 4.0)."""
    from PIL import Image

    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise BadInput(
            "the demo's digits come with scikit-learn: pip install 'mvp-edge[demo]'"
        ) from error
    digits = load_digits()
    for name in names:
        into = folder / name
        if into.is_dir():
            continue
        partial = folder / f".{name}"
        partial.mkdir(parents=True, exist_ok=True)
        for index in (digits.target == NAMES.index(name)).nonzero()[0]:
            grey = (digits.images[index] * (255 / 16)).astype("uint8")
            Image.fromarray(grey).save(partial / f"{index:04d}.png")
        partial.rename(into)


def train_backbone(folder: Path, progress: Callable[[str, int, int], None]) -> str:
    """Train a ResNet of four small stages on the known digits; writes description and weights.

    Returns:
        Its accuracy in words.
    """
    import torch
    from safetensors.torch import save_file

    from mvp_edge.pruning.finetune import accuracy, predict_logits
    from mvp_edge.pruning.problem import Problem
    from mvp_edge.pruning.training import fine_tune
    from mvp_edge.recipe import Recipe
    from mvp_edge.subnetwork.architecture import Architecture
    from mvp_edge.subnetwork.backbone import Backbone
    from mvp_edge.tasks.task import Task
    from mvp_edge_export.images import Preprocess
    from mvp_edge_export.storage import atomic_file, sha256_file, write_json

    torch.manual_seed(0)
    changes = {
        "conv1": "Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)",
        "maxpool": "Identity()",
    }
    arguments = {"layers": [1, 1, 1, 1], "channels": CHANNELS}
    architecture = Architecture("resnet18", changes, arguments, SIZE)
    preprocess = Preprocess(SIZE, (0.31, 0.31, 0.31), (0.37, 0.37, 0.37))
    fresh = Backbone(
        "digits", architecture, architecture.build(len(KNOWN)), preprocess, KNOWN, "", ""
    )
    task = Task.open(folder / DIGITS)
    problem = Problem(
        backbone=fresh,
        policy="tied",
        classes=len(task.classes),
        train=task.images("train", preprocess),
        validation=task.images("val", preprocess),
        widths={},
        recipe=Recipe(
            steps=STEPS,
            batch=64,
            lr=0.05,
            augment=AUGMENT,
            head="random",
            statistics=False,
        ),
        progress=lambda _phase, done, total: progress("backbone", done, total),
    )
    trained = fine_tune(problem, fresh.with_head(len(task.classes)), {})
    test = task.images("test", preprocess)
    top1 = accuracy(predict_logits(trained.model, test.pixels, preprocess), test.labels)
    weights = folder / "backbone.safetensors"
    with atomic_file(weights) as partial:
        save_file(trained.model.state_dict(), partial)
    write_json(
        folder / BACKBONE,
        {
            "schema": 1,
            "name": "digits-resnet",
            "library": "timm",
            "architecture": "resnet18",
            "changes": changes,
            "arguments": arguments,
            "weights": weights.name,
            "sha256": sha256_file(weights),
            "num_classes": len(task.classes),
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bilinear",
            "mean": preprocess.mean,
            "std": preprocess.std,
            "classes": task.classes,
            "test": {"images": len(test), "top1": top1},
        },
    )
    return f"{100 * top1:.1f} % top-1 on {len(test)} test images of zero … six"
