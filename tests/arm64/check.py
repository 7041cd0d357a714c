"""`make test-arm64`: the light half on emulated arm64 boards, against the same bundle on this machine.

    python -m tests.arm64.check BUNDLE IMAGES     → benchmarks/device/arm64.json

On each board mvp-edge and both runtimes are installed by pip from the wheels that `--offline` would
copy; then `doctor`, `predict` on every image with every network of the bundle, and `bench` run
there. Labels and logits must be those of this machine; times of an emulator say nothing, and the
result of `bench` must say that.
"""

import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pip

from mvp_edge_export.bundle import Bundle, load_bundle
from mvp_edge_export.remote.wheels import fetch, own_wheel, requirements
from mvp_edge_export.running.sessions import FORMATS
from mvp_edge_export.storage import write_json
from tests.arm64.board import BOARDS, Broken, Emulated, emulated, missing

RESULT = Path(__file__).parents[2] / "benchmarks" / "device" / "arm64.json"
IMAGES_NEEDED = 100
TOLERANCE = 1e-4
"""Of a logit in float32, times the largest logit if that is over 1: the parity gate's."""
SAME_LABELS = 0.99
"""Share of images whose label must be the same where the arithmetic differs: int8, f16 here, bf16 there."""

_NO_CLAIM = "no timing claim"
PYTHON = "/opt/mvp/bin/python"
_MVP_EDGE = "/opt/mvp/bin/mvp-edge"
_GLIBC = {"bookworm": 36, "trixie": 41}


def main(bundle_path: Path, images: Path) -> int:
    """Check every board; 0 if all is as it must be, 1 with a line for each thing that is not."""
    obstacles = missing()
    if obstacles:
        print("test-arm64:", "; ".join(obstacles), file=sys.stderr)
        return 2
    bundle = load_bundle(bundle_path)
    count = len(list(images.rglob("*.png")))
    wrong = [] if count >= IMAGES_NEEDED else [f"{count} images are too few"]
    boards = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(bundle_path, work / "bundle")
        shutil.copytree(images, work / "images")
        shutil.copy(Path(__file__).with_name("logits.py"), work)
        here = _logits_here(work)
        for board in BOARDS:
            _say(f"{board.name}: unpacking Debian {board.suite} for arm64")
            with emulated(board, work) as there:
                row = _board(there, bundle, here)
            boards.append(row)
            wrong += [f"{board.name}: {one}" for one in _mistakes(row)]
    write_json(
        RESULT,
        {
            "schema": 1,
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            "claim": "labels and logits alone; emulated by qemu, no timing claim",
            "images": count,
            "boards": boards,
        },
    )
    _say(f"written to {RESULT}")
    for one in wrong:
        print(f"test-arm64: {one}", file=sys.stderr)
    return 1 if wrong else 0


def _board(there: Emulated, bundle: Bundle, here: dict[str, np.ndarray]) -> dict[str, Any]:
    board = there.board
    install(there)
    _say(f"{board.name}: doctor")
    doctor = json.loads(
        there.run(_MVP_EDGE, "doctor", "--device", board.profile, "--json", "--quiet", limit=300)
    )
    logits = _logits_there(there)
    networks = [_compared(bundle, name, logits, here) for name in sorted(logits)]
    predictions = list(_predictions(there, bundle, logits))
    _say(f"{board.name}: bench")
    words = ("bench", "/work/bundle", "--seconds", "0.3", "--threads", "1", "--json", "--quiet")
    told = there.run(_MVP_EDGE, *words, "--out", "/tmp/bench.json", limit=900, codes=(0, 3))
    bench = json.loads(told)
    return {
        "board": board.name,
        "debian": board.suite,
        "cpu": board.cpu,
        "versions": bench["fingerprint"]["versions"],
        "doctor": [
            f"{one['state']}: {one['subject']}: {one['text']}"
            for one in doctor["findings"]
            if one["subject"] in ("system", "Python", *FORMATS)
        ],
        "networks": networks,
        "predict": predictions,
        "bench": {
            "emulated": bench["machine"]["emulated"],
            "says": [one for one in bench["warnings"] if _NO_CLAIM in one],
            "measured": sorted({f"{c['runtime']} {c['precision']}" for c in bench["cells"]}),
            "verdicts": {one["budget"]: one["verdict"] for one in bench["verdicts"]},
        },
    }


def install(there: Emulated) -> None:
    """A virtual environment with mvp-edge and both runtimes, by pip, from the target's wheels."""
    board, work = there.board, there.work
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(_GLIBC[board.suite], 16, -1)]
    needed = requirements(["onnxruntime", "openvino"])
    wheels = work / f"wheels-{board.python}"
    wheels.mkdir()
    for wheel in fetch(needed, board.python, [*tags, "manylinux2014_aarch64"], _say):
        shutil.copy(wheel, wheels)
    name = own_wheel(wheels).name
    if not (work / "pip").exists():
        # Debian's own pip is a package of its own; this one is pure Python.
        shutil.copytree(Path(pip.__file__).parent, work / "pip" / "pip")
    _say(f"{board.name}: pip install {name}[onnxruntime,openvino]")
    there.run("/usr/bin/python3", "-m", "venv", "--without-pip", "/opt/mvp", limit=300)
    code = (
        "import sys; sys.path.insert(0, '/work/pip'); from pip._internal.cli.main import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    there.run(
        *(PYTHON, "-c", code, "install", "--quiet", "--no-compile", "--no-index"),
        *(
            "--find-links",
            f"/work/{wheels.name}",
            f"mvp-edge[onnxruntime,openvino] @ file:///work/{wheels.name}/{name}",
        ),
        limit=1200,
    )


def _logits_here(work: Path) -> dict[str, np.ndarray]:
    _say("this machine: logits")
    words = ("logits.py", "bundle", "images", "here.npz")
    subprocess.run([sys.executable, *words], cwd=work, check=True, stdout=subprocess.DEVNULL)
    return dict(np.load(work / "here.npz"))


def _logits_there(there: Emulated) -> dict[str, np.ndarray]:
    _say(f"{there.board.name}: logits")
    words = ("/work/logits.py", "/work/bundle", "/work/images", "/work/there.npz")
    there.run(PYTHON, *words, limit=1200)
    return dict(np.load(there.work / "there.npz"))


def _compared(
    bundle: Bundle, name: str, there: dict[str, np.ndarray], here: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One network's logits on the board against those on this machine."""
    how, form, version, arithmetic = name.split("/")
    other = next(key for key in here if key.split("/")[:2] == [how, form])
    mine, theirs = here[other].astype(np.float64), there[name].astype(np.float64)
    fp32 = next(here[key] for key in here if key.split("/")[:2] == ["deployed", "onnx"])
    return {
        "format": form,
        "how": how,
        "version": {"arm64": version, "here": other.split("/")[2]},
        "arithmetic": {"arm64": arithmetic, "here": other.split("/")[3]},
        "same_top1": int((mine.argmax(1) == theirs.argmax(1)).sum()),
        "max_difference": float(np.abs(mine - theirs).max()),
        "max_probability_difference": float(np.abs(_shares(mine) - _shares(theirs)).max()),
        "max_logit": float(np.abs(mine).max()),
        "max_difference_to_fp32": {
            "arm64": float(np.abs(theirs - fp32).max()),
            "here": float(np.abs(mine - fp32).max()),
        },
    }


def _shares(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _predictions(
    there: Emulated, bundle: Bundle, logits: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """The command `predict` with every network: its labels are those of the logits."""
    for runtime, forms in FORMATS.items():
        for precision, form in forms.items():
            if form not in bundle.manifest.models:
                continue
            _say(f"{there.board.name}: predict, {runtime} {precision}")
            told = there.run(
                *(_MVP_EDGE, "predict", "/work/bundle", "/work/images", "--quiet", "--json"),
                *("--runtime", runtime, "--precision", precision),
                limit=900,
            )
            found = [one["label"] for one in json.loads(told)["predictions"]]
            key = next(name for name in logits if name.startswith(f"deployed/{form}/"))
            wanted = [bundle.labels[k] for k in logits[key].argmax(1)]
            yield {
                "runtime": runtime,
                "precision": precision,
                "images": len(found),
                "as_logits": sum(a == b for a, b in zip(found, wanted, strict=True)),
            }


def _mistakes(row: dict[str, Any]) -> Iterator[str]:
    for one in row["networks"]:
        name = f"{one['format']} ({one['how']}, {one['arithmetic']['arm64']})"
        images = row["predict"][0]["images"]
        exact = one["format"] in ("onnx", "openvino") and set(one["arithmetic"].values()) == {"f32"}
        if exact and one["same_top1"] != images:
            yield f"{name}: {images - one['same_top1']} labels differ"
        if exact and one["max_difference"] > TOLERANCE * max(1.0, one["max_logit"]):
            yield f"{name}: logits differ by {one['max_difference']:.2g}"
        if one["same_top1"] < SAME_LABELS * images:
            yield f"{name}: {images - one['same_top1']} of {images} labels differ"
    for one in row["predict"]:
        if one["as_logits"] != one["images"] or one["images"] < IMAGES_NEEDED:
            yield f"predict, {one['runtime']} {one['precision']}: not the labels of its logits"
    if any(one.startswith("blocked") for one in row["doctor"]):
        yield "the doctor says that nothing can run there"
    if not row["bench"]["emulated"] or not row["bench"]["says"]:
        yield "bench does not say that it was emulated"
    for budget, verdict in row["bench"]["verdicts"].items():
        if verdict in ("PASS", "FAIL"):
            yield f"bench judges {budget} on an emulator: {verdict}"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(*map(Path, sys.argv[1:])))
    except Broken as error:
        sys.exit(f"test-arm64: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
