import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvp_edge_export.errors import BadInput
from mvp_edge_export.profile import DeviceProfile
from mvp_edge_export.verified import Cost, Verdict, Verified


def _verdict(word: Any) -> Verdict:
    return Verdict(
        budget="flops", limit=300e6, reached=310e6, unit="", verdict=word, basis="counted"
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def verified(
    weights: Path,
    make_profile: Callable[..., DeviceProfile],
    make_verified: Callable[..., Verified],
) -> Verified:
    return make_verified(weights, make_profile(), verdicts=(_verdict("PASS"),))


def test_what_was_saved_is_read_back(verified: Verified, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    verified.save(path)

    assert Verified.load(path, weights) == verified
    assert json.loads(path.read_text())["schema"] == 1


def test_changed_weights_are_refused(verified: Verified, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    verified.save(path)
    weights.write_bytes(b"trained on")

    with pytest.raises(BadInput, match=r"network\.safetensors has sha256 .* was changed since"):
        Verified.load(path, weights)
    weights.unlink()
    with pytest.raises(BadInput, match=r"network\.safetensors does not exist"):
        Verified.load(path, weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema", 2), ("accuracy", 1.5), ("weights_sha256", "abc"), ("unknown", 1), ("cost", None)],
)
def test_a_wrong_value_is_named_in_one_line(
    verified: Verified, weights: Path, tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "verified.json"
    verified.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(BadInput) as caught:
        Verified.load(path, weights)
    assert f"{path}: {key}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_fail_stands_in_the_way(verified: Verified) -> None:
    for word in ("PASS", "INCONCLUSIVE", "UNCHECKED"):
        assert verified.model_copy(update={"verdicts": (_verdict(word),)}).passed
    failing = verified.model_copy(update={"verdicts": (_verdict("PASS"), _verdict("FAIL"))})
    assert not failing.passed
    assert [str(verdict) for verdict in failing.failed] == ["flops FAIL: 3.1e+08 of 3e+08"]


def test_memory_is_weights_and_activations() -> None:
    cost = Cost(flops=1, flops_norm=0, params=2, weight_bytes=30, activation_bytes=12)
    assert cost.memory_bytes == 42
