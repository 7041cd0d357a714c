"""Images that nobody labelled: every one in a folder or a zip, wherever it lies there."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvp_edge.tasks.decoded import decoded, identity, undecodable
from mvp_edge.tasks.source import list_images
from mvp_edge_export.errors import BadInput
from mvp_edge_export.images import Preprocess
from mvp_edge_export.storage import sha256_json


def unlabelled_images(
    source: Path,
    preprocess: Preprocess,
    most: int,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> NDArray[np.uint8]:
    """Decode them, or take them from the cache; what is no readable image is left out.

    Args:
        source: a folder or a zip.
        preprocess: the network's.
        most: so many at most, drawn by lot.
        seed: of the drawing.
        progress: told of each phase.

    Returns:
        uint8 [N, S, S, 3], in the order of the files' names.

    Raises:
        BadInput: there is none that can be read.
    """
    path = source.absolute()
    listed = sorted(list_images(path))
    if len(listed) > most:
        listed = sorted(random.Random(seed).sample(listed, most))
    problems = {one.file: one.problem for one in listed if one.problem}
    sound = [one for one in listed if not one.problem]
    problems |= undecodable(path, sound, partial(progress, "checking images"))
    sound = [one for one in sound if one.file not in problems]
    if not sound:
        first = next((f": {file}: {why}" for file, why in problems.items()), "")
        raise BadInput(f"--images {source}: no image that can be read{first}")
    key = sha256_json([identity(path), [one[:3] for one in sound]])
    files = {one.file: one.size for one in sound}
    return decoded(path, files, preprocess, key, partial(progress, "decoding images"))
