"""A bundle is the directory that is copied to a device; this module opens and checks it.

    bundle/manifest.json           description of the bundle with sha256 and size of every file
           model.onnx              the pruned network
           model.xml, model.bin    the same network as OpenVINO IR
           model_int8.*, …         optional: the pruned network in other number formats
           baseline/…              optional: the unpruned network, for comparison

A bundle may come from an untrusted source. Opening it executes nothing and reads nothing outside of
the directory: listed files are checked by their sha256, other files are never opened, and an ONNX file
whose weights are stored in another file is refused.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.manifest import MANIFEST, BundleFile, Manifest, read_manifest
from mvp_edge_export.model_files import has_external_data
from mvp_edge_export.quantities import format_bytes
from mvp_edge_export.storage import sha256_file


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match its manifest; made by ``load_bundle``."""

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        manifest = self.manifest
        beside = ", the unpruned network beside it" if manifest.baseline else ""
        lines = [
            f"Bundle {self.path} for {manifest.profile.name}: {len(manifest.labels)} labels{beside}"
        ]
        for one in manifest.candidates:
            if one.kept:
                top1 = f"{100 * one.test.top1:.1f} % top-1 in {one.runtime} {one.test.version}"
                lines.append(f"  {one.format:<14} {format_bytes(one.bytes):>10}  {top1}")
        lines.append(f"  to ship: {manifest.choice}")
        return "\n".join(lines)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.labels

    @cached_property
    def preprocess(self) -> Preprocess:
        """Preparation of images for the network."""
        return Preprocess.from_json(self.manifest.preprocess)

    def model(self, form: str, *, baseline: bool = False) -> Path:
        """Path of a model file.

        Args:
            form: format of the file, a value in ``sessions.FORMATS``, e.g. ``onnx``.
            baseline: whether to take the unpruned network instead of the pruned one.

        Raises:
            BadInput: the bundle has no such file.
        """
        models = self.manifest.baseline if baseline else self.manifest.models
        if form not in models:
            which = "unpruned network" if baseline else "network"
            have = ", ".join(models) or "none"
            candidate = None if baseline else self.manifest.candidate(form)
            reason = "" if candidate is None else f"; kept out: {candidate.why}"
            raise BadInput(f"{self.path}: no {which} in format {form} (it has {have}){reason}")
        return self.path / models[form]

    def tensor(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Convert pixels, uint8 [N, S, S, 3], to the network's input, float32 [N, 3, S, S]."""
        return network_input(pixels, self.preprocess, embedded=self.manifest.embedded_preprocess)


def network_input(
    pixels: npt.NDArray[np.uint8], preprocess: Preprocess, *, embedded: bool
) -> npt.NDArray[np.float32]:
    """Convert pixels to the input of a network.

    Args:
        pixels: uint8 [N, S, S, 3].
        preprocess: mean and standard deviation for the normalisation.
        embedded: whether the graph itself normalises; its input then is 0..255.

    Returns:
        float32 [N, 3, S, S], contiguous.
    """
    if embedded:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    return preprocess.normalise(pixels)


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check all of its files; nothing in it is executed.

    Raises:
        BadInput: the directory is no bundle, a file is damaged or missing, a path leads out of the
            directory, a file is a symbolic link, or an ONNX file has external data.
    """
    if not path.is_dir():
        raise BadInput(f"bundle: {path} is not a directory; mvp-edge export makes one")
    listing = path / MANIFEST
    if listing.is_symlink():
        raise BadInput(f"bundle: {listing} is a symbolic link; copy the file itself")
    if listing.exists() and not listing.is_file():
        raise BadInput(f"bundle: {listing} is no regular file")  # reading a pipe would block
    manifest = read_manifest(path)
    if manifest.profile.sha256 != manifest.profile_sha256:
        raise BadInput(
            f"bundle: {listing}: the profile does not match profile_sha256; export again"
        )
    for name, expected in manifest.files.items():
        _check_file(path, name, expected)
    for name in [*manifest.models.values(), *manifest.baseline.values()]:
        if name.endswith(".onnx") and has_external_data(path / name):
            raise BadInput(f"bundle: {path / name} stores its weights in another file; refused")
    bundle = Bundle(path, manifest)
    _ = bundle.preprocess  # creating it validates its values
    return bundle


def _check_file(bundle: Path, name: str, expected: BundleFile) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name:
        raise BadInput(f"bundle: {bundle / MANIFEST}: files: {name!r} leads out of the bundle")
    path = bundle
    for part in pure.parts:
        path /= part
        if path.is_symlink():
            raise BadInput(f"bundle: {path} is a symbolic link; copy the file itself")
    if not path.is_file():
        raise BadInput(f"bundle: {path} is missing; copy the bundle again")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BadInput(
            f"bundle: {path} has {size} bytes instead of {expected.bytes}; copy it again"
        )
    if sha256_file(path) != expected.sha256:
        raise BadInput(f"bundle: {path} is damaged (its sha256 differs); copy it again")
