"""Windows of a resized image: each pixel from the same pixels, with the same weights, as when the whole image is resized.

OpenCV resizes whole arrays only: a window of the result does not begin where a window of the image does. The weights here are its
own, of INTER_LINEAR and INTER_AREA; results are those of `cv2.resize` to float32 rounding.
"""

from __future__ import annotations

import numpy as np


def source_of(begin: int, end: int, size: int, large: int) -> tuple[int, int]:
    """Return which pixels of a side of `large` px are needed for the pixels from `begin` up to `end` of it at `size` px.

    Examples
    --------
    >>> source_of(0, 10, 100, 200), source_of(50, 60, 100, 100), source_of(90, 100, 100, 50)
    ((0, 21), (49, 61), (44, 50))
    """
    scale = large / size
    return max(int(np.floor(begin * scale)) - 1, 0), min(int(np.ceil(end * scale)) + 1, large)


def weights(begin: int, end: int, size: int, large: int, smaller: bool) -> tuple[np.ndarray, int]:
    """Return by how much each pixel of a side counts in the pixels from `begin` up to `end` of that side at another size.

    Parameters
    ----------
    size, large : int
        Length of the side after and before.
    smaller : bool
        By area, as INTER_AREA; else between the two nearest, as INTER_LINEAR.

    Returns
    -------
    weights : scipy.sparse.csr_array, (end - begin, n) float32
    first : int
        The first of the `n` pixels.
    """
    from scipy import sparse

    scale = large / size
    first, last = source_of(begin, end, size, large)
    places = np.arange(begin, end)
    if smaller and size < large:
        count = int(np.ceil(scale)) + 1
        taps = np.floor(places * scale).astype(int)[:, None] + np.arange(count)
        share = np.minimum(taps + 1, (places[:, None] + 1) * scale) - np.maximum(taps, places[:, None] * scale)
        share = np.clip(share, 0, None) * (taps < large)
        share /= share.sum(axis=1, keepdims=True)
    else:
        at = (places + 0.5) * scale - 0.5
        low = np.floor(at).astype(int)
        taps = low[:, None] + np.arange(2)
        share = np.stack([1 - (at - low), at - low], axis=1)
    taps = np.clip(taps, first, last - 1) - first
    rows = np.repeat(np.arange(len(places)), taps.shape[1])
    shape = (len(places), last - first)
    return sparse.csr_array((share.astype(np.float32).ravel(), (rows, taps.ravel())), shape=shape), first


def to_square(shape: tuple[int, int], size: int) -> list[object]:
    """Return by how much each row, and each column, of an image counts in those of a square that it is brought to.

    It becomes smaller by area, as with INTER_AREA of OpenCV, where a side is longer than `size`, else it grows bilinearly. Where
    one side becomes longer and the other shorter, OpenCV looks at two neighbours only, as here.

    Returns
    -------
    list of two scipy.sparse.csc_array, (size, H) and (size, W) float32
    """
    from scipy import sparse

    if min(shape) >= size or max(shape) <= size:
        return [weights(0, size, size, length, max(shape) > size)[0].tocsc() for length in shape]
    found, places = [], np.arange(size)
    for length in shape:
        low = np.floor(places * length / size).astype(int)
        share = (places + 1) - (low + 1) * size / length
        share = np.where(share <= 0, 0, share - np.floor(share))
        taps, shares = np.clip([low, low + 1], 0, length - 1), np.stack([1 - share, share]).astype(np.float32)
        rows = np.tile(places, 2)
        found.append(sparse.csc_array((shares.ravel(), (rows, taps.ravel())), shape=(size, length)))
    return found


def nearest_of(begin: int, end: int, size: int, large: int) -> np.ndarray:
    """Return which pixel of a side of `large` px is nearest to each of those from `begin` up to `end` of it at `size` px.

    Examples
    --------
    >>> nearest_of(2, 6, 8, 4)
    array([1, 1, 2, 2])
    """
    return np.minimum(((2 * np.arange(begin, end) + 1) * large) // (2 * size), large - 1)


def resampled(plane: np.ndarray, rows: object, columns: object) -> np.ndarray:
    """Return a plane (h, w) float32 with weights applied to its rows and columns."""
    return np.ascontiguousarray((columns @ (rows @ plane).T).T, np.float32)
