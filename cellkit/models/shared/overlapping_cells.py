"""Labelled cells that cover one another, in one label image: where several share a pixel, it has a number that names them all.

So the image can be turned, scaled and cut like any label image, and every cell is still whole.
"""

from __future__ import annotations

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges

NOBODY = np.zeros((0, 0), np.int64)


def numbered(truth: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Return cells as a label image in which shared pixels have numbers of their own.

    Returns
    -------
    labels : (H, W) int32
        0 = background, -1 = not annotated, 1..N = one cell alone, N + 1 + r = shared by the cells of ``shared[r]``.
    shared : (R, M) int64
        Numbers of cells, 1..N, filled up with 0.

    Examples
    --------
    >>> cells = Instances.from_masks([np.array([[1, 1, 1, 0]], bool), np.array([[0, 0, 1, 1]], bool)], (1, 4))
    >>> labels, shared = numbered(cells)
    >>> labels.tolist(), shared.tolist()
    ([[1, 1, 3, 2]], [[1, 2]])
    """
    labels = truth.paint(unknown=-1)
    if not truth.overlapping:
        return labels, NOBODY
    pixels = ranges(truth.starts, truth.lengths)
    cells = np.repeat(truth.owner_of_run + 1, truth.lengths)
    order = np.lexsort((cells, pixels))
    places, first, count = np.unique(pixels[order], return_index=True, return_counts=True)
    flat, members = labels.reshape(-1), cells[order]
    number: dict[tuple[int, ...], int] = {}
    for k in np.flatnonzero((count > 1) & (flat[places] > 0)):
        owners = tuple(members[first[k] : first[k] + count[k]].tolist())
        flat[places[k]] = len(truth) + 1 + number.setdefault(owners, len(number))
    most = max(map(len, number), default=0)
    return labels, np.array([[*some, *[0] * (most - len(some))] for some in number], np.int64).reshape(-1, most)


def cells_in(labels: np.ndarray, class_of: np.ndarray, shared: np.ndarray = NOBODY) -> Instances:
    """Return the cells of a label image, or of a part of one, with their classes, by their numbers.

    Parameters
    ----------
    labels : (H, W) int
        As `numbered` gives it.
    class_of : (N + 1,) int
        Class of each cell; 0 = unknown.
    shared : (R, M) int
        As `numbered` gives it.
    """
    from scipy import ndimage

    ids = np.unique(labels)
    ids = ids[ids > 0]
    if not len(ids) or ids[-1] < len(class_of):
        return Instances.from_labels(labels).with_classes(class_of[ids])
    several = ids[ids >= len(class_of)]
    members = shared[several - len(class_of)]
    cells = np.setdiff1d(np.r_[ids[ids < len(class_of)], members.ravel()], [0])
    boxes, parts, corners = ndimage.find_objects(np.maximum(labels, 0)), [], []
    for cell in cells:
        own = [cell, *several[(members == cell).any(axis=1)]]
        rows, columns = zip(*(box for box in (boxes[number - 1] for number in own) if box is not None), strict=True)
        top, left = min(side.start for side in rows), min(side.start for side in columns)
        bottom, right = max(side.stop for side in rows), max(side.stop for side in columns)
        parts.append(np.isin(labels[top:bottom, left:right], own))
        corners.append((left, top))
    found = Instances.from_boxed_masks(parts, corners, labels.shape).with_classes(class_of[cells])
    return found.with_unknown(labels < 0) if (labels < 0).any() else found
