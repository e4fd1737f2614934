"""An image as a model is shown it that sees windows, for the tests of those."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np

from cellkit.models.shared.in_windows import WholeImage


def whole_of(image: np.ndarray, folder: Path) -> WholeImage:
    """Return an image (H, W, 3) uint8 as an array that is read in pieces, with its light; what takes long is kept in `folder`."""
    counts = [np.bincount(image[..., k].ravel()) for k in range(3)]
    light = tuple((np.flatnonzero(one).astype(float), one[one > 0]) for one in counts)
    return WholeImage(da.from_array(image, chunks=(70, 80, 3)), light, folder)
