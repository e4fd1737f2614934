"""How many pixels the convex hull of each cell holds, for all cells at once and exactly.

The hull is that of `skimage.morphology.convex_hull_image`, by which `regionprops` computes solidity: a pixel counts as
the diamond of the middles of its four edges, and the hull holds the pixels whose centre lies in it or on its border. The
hull of the diamonds is the hull of the centres, widened by one diamond, so that whole numbers are enough.
"""

from __future__ import annotations

import numpy as np

from cellkit.cells.runs import ranges
from cellkit.measure.rows import Rows, sums_of_each


def hull_areas_px(rows: Rows) -> np.ndarray:
    """Return (N,) int64: the pixels of each cell's convex hull; 0 for a cell without pixels.

    Examples
    --------
    >>> from cellkit.cells.instances import Instances
    >>> hull_areas_px(Rows.of(Instances.from_labels(np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]]))))
    array([9])
    """
    cells = len(rows.offsets) - 1
    first = np.flatnonzero(np.r_[True, (rows.owner[1:] != rows.owner[:-1]) | (rows.row[1:] != rows.row[:-1])])
    if not len(rows.owner):
        return np.zeros(cells, np.int64)
    last = np.r_[first[1:], len(rows.owner)] - 1
    owner, row = rows.owner[first], rows.row[first]
    lefts = _lowest_in_hull(owner, row, rows.left[first])
    rights = -_lowest_in_hull(owner, row, 1 - rows.right[last])
    counts = np.bincount(owner, minlength=cells)
    bounds = np.r_[0, np.cumsum(counts)]
    some = counts > 0
    heights = np.zeros(cells, np.int64)
    heights[some] = row[bounds[1:][some] - 1] - row[bounds[:-1][some]] + 1
    return sums_of_each(np.maximum(rights - lefts + 1, 0), np.r_[0, np.cumsum(heights)])


def _lowest_in_hull(owner: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the lowest column in the hull for every row from the first to the last of each cell.

    Parameters
    ----------
    owner, row, column : (P,) int64
        The lowest column of the cell in each of its rows; rows may be missing.
    """
    corner = _lower_corners(owner, row, column)
    owner, row, column = owner[corner], row[corner], column[corner]
    goes_on = np.r_[owner[1:] == owner[:-1], False]  # else it is the last row of its cell
    high = np.where(goes_on, np.r_[row[1:], 0] - row, 1)  # of the edge from here to the next corner
    wide = np.where(goes_on, np.r_[column[1:], 0] - column, 0)
    edge = np.repeat(np.arange(len(row)), high)
    down = ranges(np.zeros(len(row), np.int64), high)
    twice, wide, high = 2 * column[edge], wide[edge], high[edge]
    here = -((high - twice * high - 2 * wide * down) // (2 * high))  # the edge half a column out, rounded up
    below = -((-twice * high - wide * (2 * down + 1)) // (2 * high))  # the edge half a row further on
    ends = ~goes_on[edge]
    below[ends] = here[ends]
    above = np.r_[here[:1], below[:-1]]
    begins = np.r_[True, ends[:-1]]
    above[begins] = here[begins]
    return np.minimum(here, np.minimum(above, below))


def _lower_corners(owner: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return where the corners of the lower convex hull of each cell's points (row, column) are, in order.

    A point on or above the line between any two others is no corner, so all of them can go at once; after that others may
    be, in those cells only.
    """
    done, left = [], np.arange(len(owner))
    while len(left):
        o, r, c = owner[left], row[left], column[left]
        inner = np.zeros(len(left), bool)
        inner[1:-1] = (o[2:] == o[1:-1]) & (o[:-2] == o[1:-1])
        up, across = np.diff(r), np.diff(c)
        out = np.zeros(len(left), bool)
        out[1:-1] = inner[1:-1] & (across[:-1] * up[1:] >= across[1:] * up[:-1])
        begins = np.flatnonzero(np.r_[True, o[1:] != o[:-1]])
        changed = np.repeat(np.logical_or.reduceat(out, begins), np.diff(np.r_[begins, len(o)]))
        done.append(left[~changed])
        left = left[changed & ~out]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *done]))
