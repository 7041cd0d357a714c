"""`mvp-edge doctor --backbone`: what a pre-trained network is, and what it sees on a photo."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.support.tiny import command


def test_what_a_backbone_is_and_how_images_are_prepared(place: Path) -> None:
    said = command("doctor", "--backbone", "backbone.json", cwd=place)
    assert said.code == 0, said.err
    assert "can be pruned (--policy tied or inner)" in said.out
    told = command("doctor", "--backbone", "backbone.json", "--json", cwd=place)
    facts = json.loads(told.out)
    described = json.loads((place / "backbone.json").read_text("utf-8"))
    assert facts["mean"] == described["mean"]
    assert facts["input size"] == described["input_size"][1]
    assert facts["classes"] == described["num_classes"]


def test_what_it_sees_on_a_photo(place: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "p.png")
    told = command("doctor", "--backbone", "backbone.json", "p.png", "--json", cwd=place)
    guesses = json.loads(told.out)["photo"]
    shares = [guess["probability"] for guess in guesses]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1 + 1e-6
    (place / "broken.png").write_bytes(b"no image")
    broken = command("doctor", "--backbone", "backbone.json", "broken.png", cwd=place)
    assert broken.code == 2
    assert "broken.png" in broken.error


def test_what_cannot_be_is_said(place: Path) -> None:
    refused = command("doctor", "--backbone", "levit_128s", cwd=place)
    assert refused.code == 2
    assert "LevitDistilled cannot be pruned" in refused.error
    alone = command("doctor", "photo.jpg", cwd=place)
    assert alone.code == 2
    assert "PHOTO needs --backbone" in alone.error
    both = command("doctor", "--backbone", "backbone.json", "--device", "rpi4", cwd=place)
    assert both.code == 2


def test_a_file_of_weights_with_a_key_and_without_a_classifier(place: Path) -> None:
    import timm

    torch.manual_seed(0)
    own = timm.create_model("resnet18", num_classes=0).state_dict()
    held = {"teacher": {f"module.{n}": t for n, t in own.items()}, "student": own}
    torch.save(held, place / "ssl.pth")
    words = ("doctor", "--backbone", "resnet18@ssl.pth", "--input-size", "64", "--json")
    facts = json.loads(command(*words, cwd=place).out)
    assert facts["classes"] == 0
    assert "its teacher was taken, not its student" in facts["notes"]
    assert "the prefix module. was removed" in facts["notes"]
    other = json.loads(command(*words, "--weights-key", "student", cwd=place).out)
    assert other["source"].endswith("ssl.pth#student")
