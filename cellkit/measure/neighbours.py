"""Which cells touch, and how far the next one is; cells may overlap."""

from __future__ import annotations

import numpy as np

from cellkit.cells.runs import ranges
from cellkit.measure.rows import Rows


def touching(rows: Rows, width: int) -> np.ndarray:
    """Return (N,) int64: how many other cells share an edge, a corner or a pixel with each cell.

    Parameters
    ----------
    width : int
        Columns of the image.

    Examples
    --------
    >>> from cellkit.cells.instances import Instances
    >>> touching(Rows.of(Instances.from_labels(np.array([[1, 2, 0, 0], [0, 0, 3, 0], [4, 0, 0, 0]]))), 4)
    array([1, 2, 1, 0])
    """
    cells = len(rows.offsets) - 1
    wider = np.maximum(rows.left - 1, 0), np.minimum(rows.right + 1, width)
    pairs = np.zeros((0, 2), np.int64)
    for down in (0, 1):  # the row itself, and the next; the one before is the next of the other cell
        runs, others = _meeting(rows, (rows.row + down) * width + wider[0], (rows.row + down) * width + wider[1], width)
        pairs = np.concatenate([pairs, np.stack([rows.owner[runs], rows.owner[others]], axis=1)])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    keys = np.unique(pairs.min(axis=1) * cells + pairs.max(axis=1))
    return np.bincount(np.r_[keys // max(cells, 1), keys % max(cells, 1)], minlength=cells)


def _meeting(rows: Rows, begins: np.ndarray, ends: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (i, j) such that the stretch ``begins[i]:ends[i]`` of the flattened image shares a pixel with run j."""
    first, last = rows.row * width + rows.left, rows.row * width + rows.right
    order = np.argsort(first, kind="stable")
    first, last = first[order], last[order]
    low = np.searchsorted(np.maximum.accumulate(last), begins, "right")  # none before reaches this far
    count = np.maximum(np.searchsorted(first, ends, "left") - low, 0)
    asks, found = np.repeat(np.arange(len(begins)), count), ranges(low, count)
    meets = last[found] > begins[asks]
    return asks[meets], order[found[meets]]


def shared_pixels(rows: Rows, other: Rows, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the stretches of pixels that cells of two sets share.

    Returns
    -------
    cell, other : (S,) int64
        Whose they are, in the one set and in the other.
    starts, lengths : (S,) int64
        In the flattened image; sorted by cell, other and start.
    """
    begins, ends = rows.row * width + rows.left, rows.row * width + rows.right
    runs, others = _meeting(other, begins, ends, width)
    starts = np.maximum(begins[runs], other.row[others] * width + other.left[others])
    ends = np.minimum(ends[runs], other.row[others] * width + other.right[others])
    cell, whose = rows.owner[runs], other.owner[others]
    order = np.lexsort((starts, whose, cell))
    return cell[order], whose[order], starts[order], (ends - starts)[order]


def nearest_px(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (N,) float64: from each centre to the nearest other one, in px; nan where there is no other.

    Examples
    --------
    >>> nearest_px(np.array([0.0, 3.0, 9.0]), np.array([0.0, 4.0, 4.0])).tolist()
    [5.0, 5.0, 6.0]
    """
    from scipy.spatial import cKDTree

    known = np.flatnonzero(np.isfinite(x))
    found = np.full(len(x), np.nan)
    if len(known) > 1:
        points = np.stack([x[known], y[known]], axis=1)
        found[known] = cKDTree(points).query(points, k=2)[0][:, 1]
    return found
