"""Images, label images and cells resized on one grid, so that they still fit each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import cut_at_rows
from cellkit.errors import UserError


def resized_shape(shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (H, W) after resizing by `scale`, at least 1 x 1.

    Raises
    ------
    UserError
        A scale below 0.01 or above 100, or none at all.

    Examples
    --------
    >>> resized_shape((1030, 1349), 0.5)
    (515, 674)
    """
    if not 0.01 <= scale <= 100:
        raise UserError(f"scale is {scale}", "give a resize factor from 0.01 to 100; 1 keeps the size")
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def resize_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize (H, W, 3) uint8: pixel areas are averaged when it shrinks, linear when it grows; 1 returns `image`."""
    height, width = resized_shape(image.shape[:2], scale)
    if (height, width) == image.shape[:2]:
        return image
    import cv2

    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def grid(old: int, new: int) -> np.ndarray:
    """Return which old row each of `new` rows takes: the one its centre lies in, on the grid of `resize_image`."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)


def resize_instances(instances: Instances, scale: float) -> Instances:
    """Resize object by object, so that overlaps survive; objects left without a pixel go.

    What is not annotated is resized likewise, and stays marked.
    A new pixel belongs to the objects that its centre lies in.
    """
    resized = instances_on(instances, resized_shape(instances.shape, scale))
    return resized if resized is instances else resized[np.diff(resized.offsets) > 0]


def instances_on(instances: Instances, shape: tuple[int, int]) -> Instances:
    """Return the same objects on another grid of the same field, one by one, also those that are left without a pixel.

    Works on runs: a run keeps the new columns whose centres lie in it, once for every new row that takes its row.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 1, 2], [1, 1, 0]]))
    >>> instances_on(cells, (4, 6)).areas_px, instances_on(cells, (1, 1)).areas_px
    (array([16,  4]), array([1, 0]))
    """
    height, width = instances.shape
    new_height, new_width = map(int, shape)
    if (new_height, new_width) == instances.shape:
        return instances
    rows, columns = grid(height, new_height), grid(width, new_width)
    starts, ends, run = cut_at_rows(instances.starts, instances.lengths, width)
    owner = instances.owner_of_run[run]
    row = starts // width
    first, last = np.searchsorted(rows, row, "left"), np.searchsorted(rows, row, "right")
    left, right = np.searchsorted(columns, starts - row * width), np.searchsorted(columns, ends - row * width)
    copies = np.where(right > left, last - first, 0)
    which = np.repeat(np.arange(len(row)), copies)
    new_row = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies)
    begin, length, owner = new_row * new_width + left[which], (right - left)[which], owner[which]
    order = np.lexsort((begin, owner))
    begin, length, owner = begin[order], length[order], owner[order]
    new = np.r_[True, (begin[1:] != begin[:-1] + length[:-1]) | (owner[1:] != owner[:-1])][: len(begin)]
    length = np.add.reduceat(length, np.flatnonzero(new)) if len(begin) else length
    offsets = np.r_[0, np.cumsum(np.bincount(owner[new], minlength=len(instances)))]
    resized = Instances.from_runs(
        (new_height, new_width), begin[new], length, offsets, instances.class_ids, instances.scores
    )
    resized = replace(resized, boxes_only=instances.boxes_only)
    return resized.with_unknown(instances.unknown_mask[np.ix_(rows, columns)]) if instances.unknown_px else resized


def fit_to(found: Instances, shape: tuple[int, int]) -> Instances:
    """Bring cells found in a resized picture back to the pixels of its file: nearest; overlaps go to the higher score.

    Examples
    --------
    >>> small = Instances.from_labels(np.array([[1, 2]]))
    >>> fit_to(small, (2, 4)).paint()
    array([[1, 1, 2, 2],
           [1, 1, 2, 2]], dtype=int32)
    """
    if found.shape == tuple(shape):
        return found
    rows, columns = map(grid, found.shape, shape)
    labels = found.paint()[np.ix_(rows, columns)]
    kept = np.unique(labels[labels > 0]) - 1
    return Instances.from_labels(labels, found.class_ids[kept], found.scores[kept])
