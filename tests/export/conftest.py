"""A verified network on real handwritten digits, and its bundle, made once a test run."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.images import Preprocess
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.verified import Cost, Verified

if TYPE_CHECKING:
    from torch import nn

SIZE = 16
LABELS = ("zero", "one", "two")
PREPROCESS = Preprocess(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass(frozen=True)
class Digits:
    """Handwritten zeros, ones and twos, uint8 [N, 16, 16, 3]."""

    train: npt.NDArray[np.uint8]
    train_targets: npt.NDArray[np.int64]
    test: npt.NDArray[np.uint8]
    test_targets: npt.NDArray[np.int64]


def _profile(**budgets: Any) -> DeviceProfile:
    return DeviceProfile.model_validate(
        {
            "schema": 1,
            "id": "test-board",
            "name": "A board for tests",
            "source": {"kind": "estimate", "note": "made up", "date": "2026-11-22"},
            "hardware": {"arch": "x86_64", "cpu": "x86-64-v3", "cores": 2, "ram": "4GiB"},
            "runtime": {"backends": ["onnxruntime", "openvino"], "threads": 1},
            "budgets": budgets,
        }
    )


def _verified(weights: Path, profile: DeviceProfile, **changes: Any) -> Verified:
    cost = Cost(flops=2000, flops_norm=20, params=300, weight_bytes=1200, activation_bytes=800)
    values: dict[str, Any] = {
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "cost": cost,
        "cost_baseline": cost.model_copy(update={"flops": 9000}),
        "accuracy": 0.9,
        "images": 0,
        "verdicts": (),
        "profile": profile.id,
        "profile_sha256": profile.sha256,
    }
    return Verified(**(values | changes))


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., DeviceProfile]:
    """A profile with the given budgets."""
    return _profile


@pytest.fixture(scope="session")
def make_verified() -> Callable[..., Verified]:
    """A verification for the given weights and profile, other values as keywords."""
    return _verified


@pytest.fixture(scope="session")
def labels() -> tuple[str, ...]:
    return LABELS


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return PREPROCESS


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits(n_class=len(LABELS))
    images = np.stack(
        [
            np.array(Image.fromarray((image * 15.9).astype(np.uint8)).resize((SIZE, SIZE)))
            for image in data.images
        ]
    )
    pixels = np.repeat(images[..., None], 3, axis=3)
    targets = data.target.astype(np.int64)
    return Digits(pixels[200:], targets[200:], pixels[:200], targets[:200])


def _resnet(*channels: int) -> Any:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(LABELS), channels=channels)


@pytest.fixture(scope="session")
def fitted(digits: Digits) -> Callable[..., "nn.Module"]:
    """Trains a network on the digits, for a second or two."""

    def fit(network: "nn.Module", steps: int = 30) -> "nn.Module":
        import torch

        inputs = torch.from_numpy(PREPROCESS.normalise(digits.train))
        targets = torch.from_numpy(digits.train_targets)
        torch.set_num_threads(1)  # so that every worker of a run gets the same weights
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        network.train()
        for _ in range(steps):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return network.eval()

    return fit


@pytest.fixture(scope="session")
def network(fitted: Callable[..., "nn.Module"]) -> "nn.Module":
    import torch

    torch.manual_seed(0)
    return fitted(_resnet(8, 8, 16, 16))


@pytest.fixture(scope="session")
def unpruned() -> "nn.Module":
    import torch

    torch.manual_seed(1)
    network: nn.Module = _resnet(32, 32, 64, 64).eval()
    return network


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def bundle_path(
    tmp_path_factory: pytest.TempPathFactory, digits: Digits, request: pytest.FixtureRequest
) -> Path:
    """The bundle of ``network``, with ``unpruned`` beside it; one for all workers of a run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path = root / "digits-bundle"
    with _alone(root / "digits-bundle.lock"):
        if path.exists():
            return path
        import torch

        from mvp_edge.subnetwork.operators import operators
        from mvp_edge_export.server.inputs import ExportOptions, TaskImages, VerifiedNetwork
        from mvp_edge_export.server.write import ExportJob

        torch.set_num_threads(1)
        weights = root / "weights.bin"
        weights.write_bytes(b"verified weights")
        profile = _profile(file="1MiB", memory="64MiB", latency={"p90": "50ms"})
        network = request.getfixturevalue("network")
        job = ExportJob(
            VerifiedNetwork(
                module=network,
                verified=_verified(weights, profile),
                weights=weights,
                labels=LABELS,
                preprocess=PREPROCESS,
                kept={"layer1": [0, 2, 5]},
                operators=operators(network, (3, SIZE, SIZE)),
            ),
            profile,
            TaskImages(
                test=digits.test,
                test_labels=digits.test_targets,
                validation=digits.train[:150],
                validation_labels=digits.train_targets[:150],
                calibration=digits.train[150:],
            ),
            ExportOptions(precisions=("fp32", "fp16", "int8")),
            baseline=request.getfixturevalue("unpruned"),
        )
        job.write(path)
    return path


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return load_bundle(bundle_path)


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    import shutil

    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
