"""Images without labels: all image files in a folder or a zip, in any sub-folder."""

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
    """Decode the images, or read them from the cache; files that cannot be decoded are left out.

    Args:
        source: a folder or a zip.
        preprocess: the network's.
        most: the largest number of images; of more, this many are drawn at random.
        seed: of the drawing at random.
        progress: called with (phase, done, total).

    Returns:
        uint8 [N, S, S, 3], in the order of the files' names.

    Raises:
        BadInput: no image can be read.
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
        raise BadInput(f"{source}: no image that can be read{first}", field="images")
    key = sha256_json([identity(path), [one[:3] for one in sound]])
    files = {one.file: one.size for one in sound}
    return decoded(path, files, preprocess, key, partial(progress, "decoding images"))
