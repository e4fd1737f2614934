"""The runs of cells cut at the rows of the image, and sums over what each cell owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import cut_at_rows


@dataclass(frozen=True, eq=False)
class Rows:
    """Runs of pixels, each within one row of the image; sorted by cell, row and column.

    Attributes
    ----------
    owner, row, left, right : (R,) int64
        The cell (from 0), its row, and the columns from `left` up to, not including, `right`.
    offsets : (N + 1,) int64
        Cell i owns ``offsets[i]:offsets[i + 1]``.
    """

    owner: np.ndarray
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, cells: Instances) -> Rows:
        """Cut the runs of cells that may overlap.

        Examples
        --------
        >>> rows = Rows.of(Instances.from_labels(np.array([[0, 1], [1, 1]])))
        >>> rows.row, rows.left, rows.right
        (array([0, 1]), array([1, 0]), array([2, 2]))
        """
        width = max(cells.shape[1], 1)
        starts, ends, run = cut_at_rows(cells.starts, cells.lengths, width)
        owner = cells.owner_of_run[run]
        row = starts // width
        offsets = np.searchsorted(owner, np.arange(len(cells) + 1))
        return cls(owner, row, starts - row * width, ends - row * width, offsets)


def sums_of_each(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the sum of each part ``offsets[i]:offsets[i + 1]`` of integers, exactly; an empty part sums to 0.

    Sums that leave 64 bits on the way wrap, and what is left is right all the same.

    Examples
    --------
    >>> sums_of_each(np.array([1, 2, 3]), np.array([0, 2, 2, 3]))
    array([3, 0, 3])
    """
    total = np.zeros(len(values) + 1, np.uint64 if values.dtype.kind == "u" else np.int64)
    np.cumsum(values, dtype=total.dtype, out=total[1:])
    return total[offsets[1:]] - total[offsets[:-1]]


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return a quotient, nan where `below` is 0.

    Examples
    --------
    >>> divided(np.array([1, 1]), np.array([2, 0]))
    array([0.5, nan])
    """
    below = np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
