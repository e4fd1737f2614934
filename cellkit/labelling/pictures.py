"""Pictures of images in a folder of corrections: told from label images, which may be called the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError

# Of a picture with what was converted from it. On two_lines (77 images) and Sartorius (85) at least 0.85, with what was converted
# from the image before at most 0.31: the largest `_correlation` of a plane of one file with a plane of the other.
LEAST_CORRELATION = 0.5


def is_picture(path: Path, picture: Path, record: ImageRecord) -> bool:
    """Tell whether a file that cannot be read as labels is the picture of its image.

    That of the run, one in colour, a stack, one of several channels, or one in grey whose pixels all differ.
    """
    from cellkit.formats.labels import NOISE_PX, is_noise
    from cellkit.microscope.open import open_file

    if picture.is_file() and path.read_bytes() == picture.read_bytes():
        return True
    try:
        with open_file(path) as opened:
            series = opened.info.series[0]
            if "S" in series.axes:
                return (series.size("Y"), series.size("X")) == (record.height_px, record.width_px)
            if len(series.channels) > 1 or series.size("Z") > 1 or series.size("T") > 1:
                return True
            plane = opened.plane(0, 0, 0, 0)
            return plane.size >= NOISE_PX and is_noise(plane)
    except UserError:
        return False


def is_shown(path: Path, picture: Path) -> bool:
    """Tell whether a file is no label image, of whatever size, and shows what a picture of the run shows, however converted."""
    from cellkit.formats.label_images import read_labels
    from cellkit.microscope.open import open_file

    if not picture.is_file():
        return False
    with suppress(UserError):
        if are_labels(Instances.from_labels(read_labels(path))):
            return False
    try:
        planes, shown = ([np.float64(one) for one in _planes(open_file, name)] for name in (path, picture))
    except UserError:
        return False
    return any(_correlation(a, b) >= LEAST_CORRELATION for a in planes for b in shown)


def _planes(open_file, path: Path) -> list[np.ndarray]:
    """Return the channels of the first plane of a file, (H, W) each."""
    with open_file(path) as opened:
        series = opened.info.series[0]
        return [opened.plane(0, 0, 0, channel) for channel in range(max(1, len(series.channels)))]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Pearson's correlation of two planes, one sampled as the other is; 0 where one is blank."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(other.shape, one.shape, strict=True))
    one = one[np.ix_(rows, columns)]
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size else 0.0


def are_labels(cells: Instances) -> bool:
    """Tell a label image from a grey picture read as one: in a picture each value lies in many pieces."""
    from skimage.measure import label

    from cellkit.formats.labels import is_noise

    labels = cells.paint()
    return not is_noise(labels) and label(labels, connectivity=2).max(initial=0) <= 2 * len(cells) + 4
