"""Which releases of the runtimes run a network on which processor, tried on the emulated boards.

    python -m tests.arm64.releases BUNDLE     → benchmarks/device/releases.json

The doctor's table of facts rests on issues that others reported; this confirms what can be.
"""

import datetime
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from mvp_edge_export.remote.wheels import fetch
from mvp_edge_export.storage import write_json
from tests.arm64.board import BOARDS, Broken, Emulated, emulated, missing
from tests.arm64.check import PYTHON, install

RESULT = Path(__file__).parents[2] / "benchmarks" / "device" / "releases.json"
RELEASES = {
    "onnxruntime": (
        *("1.20.1", "1.21.0", "1.21.1", "1.22.1", "1.23.2", "1.24.4", "1.28.0", "1.31.1", "1.32.0"),
    ),
    "openvino": (
        *("2025.0.0", "2025.4.1", "2026.0.0", "2026.1.0", "2026.2.1", "2026.3.1", "2026.4.1"),
    ),
}
_TAGS = [f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27)]
_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.running.sessions import FORMATS, RUNTIMES
bundle = load_bundle(Path("/work/bundle"))
session = RUNTIMES[sys.argv[2]](bundle.model(FORMATS[sys.argv[2]]["fp32"]))
size = bundle.preprocess.size
assert np.isfinite(session.run(np.zeros((1, 3, size, size), np.float32))).all()
print(session.version, session.arithmetic)
"""
_SIGNALS = {132: "SIGILL", 134: "SIGABRT", 139: "SIGSEGV"}


def main(bundle: Path) -> int:
    """Try every release on every board."""
    obstacles = missing()
    if obstacles:
        print("releases:", "; ".join(obstacles), file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(bundle, work / "bundle")
        for board in BOARDS:
            with emulated(board, work) as there:
                install(there)
                for runtime, releases in RELEASES.items():
                    for release in releases:
                        ended = _tried(there, runtime, release)
                        print(f"{board.cpu}, {runtime} {release}: {ended}", flush=True)
                        row = {"cpu": board.cpu, "python": board.python, "runtime": runtime}
                        rows.append({**row, "release": release, "ended": ended})
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    write_json(RESULT, {"schema": 1, "date": date, "how": "qemu user mode", "rows": rows})
    return 0


def _tried(there: Emulated, runtime: str, release: str) -> str:
    """How it ended: ``ran in f32``, a signal's name, or the error's last line."""
    place = there.work / f"{runtime}-{release}-{there.board.python}"
    wheels = fetch([f"{runtime}=={release}"], there.board.python, _TAGS, lambda what: None)
    (wheel,) = (one for one in wheels if one.name.startswith(f"{runtime}-{release}"))
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(place)
    try:
        ended = there.end_of(PYTHON, "-c", _RUN, f"/work/{place.name}", runtime, limit=1200)
    except Broken:
        return "did not end"
    if ended.returncode == 0:
        version, arithmetic = ended.stdout.split()
        return f"ran in {arithmetic}" if version == release else f"another release: {version}"
    said = ended.stderr.strip().splitlines()
    return _SIGNALS.get(ended.returncode, said[-1] if said else f"exit code {ended.returncode}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
