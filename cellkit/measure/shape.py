"""Size and shape of all cells of an image at once, from their runs; nothing is done cell by cell.

Every number is that of `skimage.measure.regionprops` (0.26), in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges
from cellkit.measure.hull import hull_areas_px
from cellkit.measure.rows import Rows, divided, sums_of_each

CANVAS_PX = 2**22  # drawn at once to follow outlines: bounds the memory, but for a cell that is larger


def shapes(cells: Instances, rows: Rows) -> dict[str, np.ndarray]:
    """Measure size and shape; every value is (N,), nan for a cell without pixels.

    Returns
    -------
    dict
        In the order of the table, see `cellkit.measure.dictionary`.
    """
    x0, y0, width, height = cells.boxes_xywh.T
    area = cells.areas_px.astype(np.int64)
    x, y, xx, yy, xy = _moments(rows, x0, y0, area)
    half, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    long, short = half + root, np.maximum(half - root, 0)
    at_border = (area > 0) & ((x0 == 0) | (y0 == 0) | (x0 + width == cells.shape[1]) | (y0 + height == cells.shape[0]))
    return {
        "area_px": area,
        "diameter_px": np.sqrt(4 * area / np.pi),
        "centroid_x_px": x + x0,
        "centroid_y_px": y + y0,
        "box_x_px": x0,
        "box_y_px": y0,
        "box_width_px": width,
        "box_height_px": height,
        "perimeter_px": perimeters_px(rows, cells.boxes_xywh),
        "eccentricity": np.sqrt(1 - np.where(long > 0, divided(short, long), np.where(area > 0, 1, np.nan))),
        "solidity": divided(area, hull_areas_px(rows)),
        "major_axis_px": 4 * np.sqrt(long),
        "minor_axis_px": 4 * np.sqrt(short),
        "orientation_deg": np.degrees(np.where(root > 0, np.arctan2(2 * xy, yy - xx) / 2, np.nan)),
        "at_border": at_border,
    }


def _moments(rows: Rows, x0: np.ndarray, y0: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return mean x and y from the corner of the box, and the variances of x and y and their covariance, each (N,).

    Sums are whole numbers, taken about the pixel nearest to the mean: nothing is lost by subtracting large numbers.
    """
    a, b, y = rows.left - x0[rows.owner], rows.right - x0[rows.owner], rows.row - y0[rows.owner]
    count = b - a
    sum_x = (a + b - 1) * count // 2
    squares = lambda end: (end - 1) * end * (2 * end - 1) // 6  # noqa: E731  of 0, 1, ..., end - 1
    parts = (sum_x, count * y, squares(b) - squares(a), count * y * y, sum_x * y)
    sx, sy, sxx, syy, sxy = (sums_of_each(part, rows.offsets) for part in parts)
    mx, my = (np.where(area > 0, (2 * s + area) // np.maximum(2 * area, 1), 0) for s in (sx, sy))
    left_x, left_y = sx - area * mx, sy - area * my
    dx, dy = divided(left_x, area), divided(left_y, area)
    return (
        mx + dx,
        my + dy,
        divided(sxx - 2 * mx * sx + area * mx * mx, area) - dx * dx,
        divided(syy - 2 * my * sy + area * my * my, area) - dy * dy,
        divided(sxy - mx * sy - my * sx + area * mx * my, area) - dx * dy,
    )


# ---- perimeter -----------------------------------------------------------------------------------------------------
# What a pixel of the outline adds, by its neighbours on the outline: 2 for one that shares an edge, 10 for a corner, 1 for
# itself. Kinds 1, 2, 3 add 1, the root of 2, and the mean of both. Source: Benkrid and Crookes, "Design and FPGA
# Implementation of a Perimeter Estimator", Queen's University of Belfast; the table is that of scikit-image 0.26,
# skimage/measure/_regionprops_utils.py, perimeter.
_KIND = np.zeros(64, np.uint8)
_KIND[[5, 7, 15, 17, 25, 27]] = 1
_KIND[[21, 33]] = 2
_KIND[[13, 23]] = 3


def perimeters_px(rows: Rows, boxes_xywh: np.ndarray) -> np.ndarray:
    """Return (N,) float64: the length of each cell's outline, holes included; each cell as if it were alone.

    Examples
    --------
    >>> square = Instances.from_labels(np.ones((4, 4), int))
    >>> perimeters_px(Rows.of(square), square.boxes_xywh)
    array([12.])
    """
    kinds = np.zeros((len(boxes_xywh), 4), np.int64)
    for chosen in _of_similar_width(boxes_xywh):
        kinds[chosen] = _kinds_of_outlines(rows, boxes_xywh, chosen)
    return (2 * kinds[:, 1] + kinds[:, 3]) / 2 + np.sqrt(2) * (2 * kinds[:, 2] + kinds[:, 3]) / 2


def _of_similar_width(boxes_xywh: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the cells in groups that fit on a canvas: about as wide as each other, `CANVAS_PX` or a single cell."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3] + 1
    order = np.lexsort((np.arange(len(width)), width))
    order = order[width[order] > 0]
    while len(order):
        widest = width[order[0]] * 5 // 4 + 4
        fits = (width[order] <= widest) & (np.cumsum(height[order]) * (widest + 1) <= CANVAS_PX)
        count = max(1, int(fits.argmin()) if not fits.all() else len(order))
        yield order[:count]
        order = order[count:]


def _kinds_of_outlines(rows: Rows, boxes_xywh: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return (n, 4) int64: how many pixels of each kind the outlines of the chosen cells have.

    The cells are drawn below each other in one column, an empty row between them and an empty pixel at the end of each row.
    """
    heights = boxes_xywh[chosen, 3] + 1
    line = int(boxes_xywh[chosen, 2].max()) + 1
    top = 2 + np.r_[0, np.cumsum(heights)]
    counts = np.diff(rows.offsets)[chosen]
    runs = ranges(rows.offsets[chosen], counts)
    place = np.repeat(np.arange(len(chosen)), counts)
    cell = chosen[place]
    row = rows.row[runs] - boxes_xywh[cell, 1] + top[place]
    starts = row * line + rows.left[runs] - boxes_xywh[cell, 0]
    inside = _drawn(starts, rows.right[runs] - rows.left[runs], int(top[-1] + 2) * line)
    outline = inside.copy()
    middle = slice(line, -line)
    outline[middle] &= ~(
        inside[line - 1 : -line - 1] & inside[line + 1 : 1 - line] & inside[: -2 * line] & inside[2 * line :]
    )
    at = np.flatnonzero(outline)
    outline = outline.view(np.uint8)
    edges = outline[at - 1] + outline[at + 1] + outline[at - line] + outline[at + line]
    corners = outline[at - line - 1] + outline[at - line + 1] + outline[at + line - 1] + outline[at + line + 1]
    owner = np.repeat(np.arange(len(chosen)), heights)[at // line - 2]
    return np.bincount(4 * owner + _KIND[1 + 2 * edges + 10 * corners], minlength=4 * len(chosen)).reshape(-1, 4)


def _drawn(starts: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Return (size,) bool that is true in disjoint runs, which are sorted."""
    counts = np.empty(2 * len(starts) + 1, np.int64)
    counts[1::2], counts[::2] = lengths, np.r_[starts, size] - np.r_[0, starts + lengths]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)
