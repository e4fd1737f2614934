"""Pictures larger than the memory that are resized, or of the sharpest z plane: what `convert_frame` makes, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.resampling import resampled, source_of, weights
from cellkit.cells.resize import resized_shape
from cellkit.cells.windows import BLOCK_PX, Window, dask_array, taken, windows_of

if TYPE_CHECKING:
    import dask.array as da


@dataclass(frozen=True, eq=False)
class Resized:
    """A picture (H, W, 3) uint8 resized by a scale; what is taken of it is resized then. `dask.array.from_array` takes it.

    Grey values are those of `cellkit.cells.resize.resize_image` to one level: OpenCV rounds weights to whole numbers.
    """

    image: Any
    scale: float

    ndim, dtype = 3, np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width (px) and 3."""
        return (*resized_shape(self.image.shape[:2], self.scale), 3)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return the pixels in slices of rows, columns and colours, (h, w, c)."""
        key = (key,) if not isinstance(key, tuple) else key
        key = (*key, *(slice(None),) * (3 - len(key)))
        sides = [one.indices(side)[:2] for one, side in zip(key, self.shape, strict=True)]
        if any(end <= begin for begin, end in sides):
            return np.zeros([max(end - begin, 0) for begin, end in sides], np.uint8)
        old, new = self.image.shape[:2], self.shape[:2]
        (top, bottom), (left, right) = (
            source_of(*side, size, length) for side, size, length in zip(sides, new, old, strict=False)
        )
        values = taken(self.image, Window(top, left, bottom, right)).astype(np.float32)
        shares = [
            weights(*side, size, length, self.scale < 1)[0] for side, size, length in zip(sides, new, old, strict=False)
        ]
        planes = [resampled(values[..., colour], *shares) for colour in range(*sides[2])]
        steps = tuple(slice(None, None, one.step) for one in key)
        return np.rint(np.stack(planes, axis=2)).clip(0, 255).astype(np.uint8)[steps]


def resized_array(image: da.Array, scale: float) -> da.Array:
    """Return a picture (H, W, 3) uint8 resized by a scale, as an array that is read window by window."""
    picture = Resized(image, scale)
    chunks = (BLOCK_PX, BLOCK_PX, 3)
    return dask_array().from_array(picture, chunks=chunks, name=False, meta=np.empty((0, 0, 0), np.uint8))


def sharpest(planes: Sequence[Sequence[Any]]) -> int:
    """Return which z plane is sharpest, as `cellkit.microscope.convert.best_focus` does of whole planes.

    Parameters
    ----------
    planes : sequence, for each z plane, of one dask.array.Array (H, W) for each channel
    """
    from scipy.ndimage import laplace

    shape = planes[0][0].shape
    detail = np.zeros((len(planes), len(planes[0])))
    for window in windows_of(shape, BLOCK_PX):
        seen = window.grown(1, shape)
        top, left = window.top - seen.top, window.left - seen.left
        for z, channels in enumerate(planes):
            for k, plane in enumerate(channels):
                edges = laplace(taken(plane, seen).astype(np.float64))
                detail[z, k] += np.sum(edges[top : top + window.shape[0], left : left + window.shape[1]] ** 2)
    relative = detail / np.maximum(detail.mean(axis=0), np.finfo(float).tiny)
    return int(np.argmax(relative.mean(axis=1)))
