"""The camera loop in docs/devices-and-budgets.md is a program that runs, here with a camera that shows digits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvp_edge_export.bundle import Bundle
from mvp_edge_export.running.predict import Classifier

PAGE = Path(__file__).parents[3] / "docs" / "devices-and-budgets.md"

# Stands for OpenCV: frames from a file, each of them shown twice, in its order of colours.
CV2 = """
import numpy as np
CAP_PROP_BUFFERSIZE, COLOR_BGR2RGB = 38, 4
frames = list(np.load("frames.npy").repeat(2, axis=0)[..., ::-1])
class VideoCapture:
    def __init__(self, index): assert index == 0
    def set(self, key, value): assert (key, value) == (CAP_PROP_BUFFERSIZE, 1)
    def isOpened(self): return bool(frames)
    def read(self): return (True, frames.pop(0)) if frames else (False, None)
    def release(self): print("released")
def cvtColor(frame, code):
    assert code == COLOR_BGR2RGB
    return np.ascontiguousarray(frame[..., ::-1])
"""


def the_loop() -> str:
    after = PAGE.read_text("utf-8").partition("<!-- camera loop")[2]
    return after.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("there", [True, False])
def test_the_loop_in_the_docs_names_what_the_camera_sees(
    there: bool, bundle: Bundle, digits: Any, tmp_path: Path
) -> None:
    shown = digits.test[:12] if there else digits.test[:0]
    np.save(tmp_path / "frames.npy", shown.repeat(4, axis=1).repeat(4, axis=2))
    (tmp_path / "cv2.py").write_text(CV2)
    (tmp_path / "loop.py").write_text(the_loop())

    ended = subprocess.run(
        [sys.executable, "loop.py", str(bundle.path)], cwd=tmp_path, capture_output=True, text=True
    )

    if not there:
        assert (ended.returncode, ended.stderr) == (1, "camera 0 cannot be opened\n")
        return
    assert ended.stderr == ""
    expected: list[str] = []
    classify = Classifier(bundle)

    for pixels in shown:
        large = Image.fromarray(pixels.repeat(4, axis=0).repeat(4, axis=1))
        label, probability = classify(large, top=1)[0]
        if probability >= 0.8 and [label] != [line.split()[0] for line in expected[-1:]]:
            expected.append(f"{label} {100 * probability:.0f} %")
    assert ended.stdout.splitlines() == [*expected, "released"]
    assert len({line.split()[0] for line in expected}) == 3


def test_it_is_about_thirty_lines() -> None:
    assert len(the_loop().splitlines()) <= 32
