"""A bundle: the directory that goes to the device, and how it is opened there.

    bundle/manifest.json           everything below, with the sha256 and size of every file
           model.onnx              the pruned network
           model.xml, model.bin    the same as OpenVINO IR
           model_int8.*, …         optional: the pruned network in other precisions
           baseline/…              optional: the unpruned network, for the comparison

Opening one executes nothing and follows nothing out of the directory: files that are listed are
checked by their sha256, files that are not listed are never looked at, and an ONNX file that would
pull its weights from somewhere else is refused.
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
    """An opened bundle, whose files were checked against its manifest."""

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
        """How the network wants its images."""
        return Preprocess.from_json(self.manifest.preprocess)

    def model(self, form: str, *, baseline: bool = False) -> Path:
        """The network's file in a format, e.g. ``onnx``; with ``baseline`` the unpruned one's.

        Raises:
            BadInput: the bundle has none.
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
        """What the network is fed, float32 [N, 3, S, S], for pixels uint8 [N, S, S, 3]."""
        return network_input(pixels, self.preprocess, embedded=self.manifest.embedded_preprocess)


def network_input(
    pixels: npt.NDArray[np.uint8], preprocess: Preprocess, *, embedded: bool
) -> npt.NDArray[np.float32]:
    """Float32 [N, 3, S, S] of uint8 [N, S, S, 3]: normalised, unless the graph does it itself."""
    if embedded:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
    return preprocess.normalise(pixels)


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file of it; nothing in it is executed.

    Raises:
        BadInput: no bundle, a damaged or missing file, a path that leads out of the directory, a
            symbolic link, or an ONNX file with external data.
    """
    if not path.is_dir():
        raise BadInput(f"bundle: {path} is not a directory; mvp-edge export makes one")
    listing = path / MANIFEST
    if listing.is_symlink():
        raise BadInput(f"bundle: {listing} is a symbolic link; copy the file itself")
    if listing.exists() and not listing.is_file():
        raise BadInput(f"bundle: {listing} is no regular file")  # a pipe would be waited for
    manifest = read_manifest(path)
    if manifest.profile.sha256 != manifest.profile_sha256:
        raise BadInput(f"bundle: {listing}: profile does not have its profile_sha256; export again")
    for name, expected in manifest.files.items():
        _check_file(path, name, expected)
    for name in [*manifest.models.values(), *manifest.baseline.values()]:
        if name.endswith(".onnx") and has_external_data(path / name):
            raise BadInput(f"bundle: {path / name} keeps its weights in another file; refused")
    bundle = Bundle(path, manifest)
    _ = bundle.preprocess  # its values are checked when it is made
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
