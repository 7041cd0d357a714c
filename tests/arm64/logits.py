"""Run here and there: the logits of a bundle's networks on a folder of images.

    python logits.py BUNDLE IMAGES OUT.npz

Writes an array [N, classes] for each format that this machine has a runtime for: in float32 where
the runtime leaves a choice (``f32/…``), and as it is deployed (``deployed/…``).
"""

import sys
from pathlib import Path

import numpy as np

from mvp_edge_export.bundle import load_bundle
from mvp_edge_export.images import open_rgb
from mvp_edge_export.running.sessions import FORMATS, RUNTIMES, Session, installed_runtimes


def main(bundle_path: Path, images: Path, out: Path) -> None:
    """Write the logits of every network on every image, in the order of the images' paths."""
    bundle = load_bundle(bundle_path)
    files = sorted(images.rglob("*.png"))
    pixels = [bundle.preprocess.pixels(open_rgb(file, str(file))) for file in files]
    batch = bundle.tensor(np.stack(pixels))
    arrays: dict[str, np.ndarray] = {}
    for runtime in installed_runtimes():
        for form in FORMATS[runtime].values():
            if form not in bundle.manifest.models:
                continue
            model = bundle.model(form)
            sessions: dict[str, Session] = {"deployed": RUNTIMES[runtime](model)}
            if runtime == "openvino":
                sessions["f32"] = RUNTIMES[runtime](model, arithmetic="f32")
            for how, session in sessions.items():
                print(how, form, session.version, session.arithmetic, flush=True)
                arrays[f"{how}/{form}/{session.version}/{session.arithmetic}"] = session.run(batch)
    np.savez(out, **arrays)  # type: ignore[arg-type] # numpy's own keyword comes first


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
