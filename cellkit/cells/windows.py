"""Windows of an image that is larger than the memory, and what is taken of it: arrays of Dask, read window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.errors import UserError

if TYPE_CHECKING:
    import dask.array as da

BLOCK_PX = 2048  # side of what is read at once
EDGE_PX = 4  # a box that comes nearer to a side within the image may go on beyond it


@dataclass(frozen=True)
class Window:
    """A part of an image: rows from `top` up to, not including, `bottom`, columns from `left` up to `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, as an array of the whole image takes them."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width (px)."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, by_px: int, shape: tuple[int, int]) -> Window:
        """Return the window with a margin around it, within an image of `shape`.

        Examples
        --------
        >>> Window(0, 10, 20, 30).grown(5, (22, 100))
        Window(top=0, left=5, bottom=22, right=35)
        """
        top, left = max(self.top - by_px, 0), max(self.left - by_px, 0)
        return Window(top, left, min(self.bottom + by_px, shape[0]), min(self.right + by_px, shape[1]))

    def meets(self, other: Window) -> Window:
        """Return what two windows have in common; of no pixel where that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Window(top, left, max(min(self.bottom, other.bottom), top), max(min(self.right, other.right), left))

    @classmethod
    def around(cls, boxes_xyxy: np.ndarray, margin_px: int, shape: tuple[int, int]) -> Window:
        """Return the window that holds all boxes with a margin, within the image."""
        left, top = np.floor(boxes_xyxy[:, :2].min(axis=0)).astype(int) - margin_px
        right, bottom = np.ceil(boxes_xyxy[:, 2:].max(axis=0)).astype(int) + margin_px
        return cls(max(int(top), 0), max(int(left), 0), min(int(bottom), shape[0]), min(int(right), shape[1]))

    @property
    def area_px(self) -> int:
        """Pixels in it."""
        return (self.bottom - self.top) * (self.right - self.left)

    def cuts(self, boxes_xyxy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Return, (N, 4) bool, which boxes reach the left, upper, right, lower side, where that is no side of the image."""
        x0, y0, x1, y1 = boxes_xyxy.T
        left, top = (x0 < self.left + EDGE_PX) & (self.left > 0), (y0 < self.top + EDGE_PX) & (self.top > 0)
        right, bottom = x1 > self.right - EDGE_PX, y1 > self.bottom - EDGE_PX
        return np.stack([left, top, right & (self.right < shape[1]), bottom & (self.bottom < shape[0])], axis=1)


def windows_of(shape: tuple[int, int], side_px: int) -> list[Window]:
    """Return the windows that an image of `shape` is cut into, row by row; those at the right and lower side are smaller.

    Examples
    --------
    >>> [(w.top, w.left, *w.shape) for w in windows_of((5, 4), 3)]
    [(0, 0, 3, 3), (0, 3, 3, 1), (3, 0, 2, 3), (3, 3, 2, 1)]
    """
    return [
        Window(y, x, min(y + side_px, shape[0]), min(x + side_px, shape[1]))
        for y in range(0, shape[0], side_px)
        for x in range(0, shape[1], side_px)
    ]


def dask_array() -> Any:
    """Import dask.array.

    Raises
    ------
    UserError
        It is not installed.
    """
    try:
        import dask.array
    except ImportError as error:
        raise UserError(
            f"images larger than the memory are read by Dask, which cannot be imported: {error}",
            'pip install "dask[array]>=2025.1"',
        ) from error
    return dask.array


def blocks(array: da.Array, side_px: int = BLOCK_PX) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield the windows of an array (H, W, ...) and their values, one at a time in memory."""
    for window in windows_of(array.shape[:2], side_px):
        yield window, taken(array, window)


def taken(array: da.Array, window: Window) -> np.ndarray:
    """Return the values of an array (H, W, ...) in a window; read here, on this thread."""
    return np.asarray(array[window.slices].compute(scheduler="synchronous"))
