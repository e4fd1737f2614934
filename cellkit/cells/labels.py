"""Label images: check, clean, renumber. (H, W) integers, 0 = background, one id per cell, -1 = not annotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cellkit.errors import UserError

LARGEST_ID = 2**31 - 1


MOST_PX, SURELY_PX, MOST_PX_PER_BYTE = 2**31, 2**25, 2**15  # no image is larger, or packed better above 2**25 px


def smallest_dtype(largest: int, signed: bool = False) -> np.dtype:
    """Return the smallest type that holds `largest`, at least 16 bits; where it is `signed`, -1 as well.

    Examples
    --------
    >>> smallest_dtype(300), smallest_dtype(65_536), smallest_dtype(300, signed=True)
    (dtype('uint16'), dtype('uint32'), dtype('int16'))
    """
    if signed:
        return np.dtype(np.int16 if largest <= 32_767 else np.int32)
    return np.dtype(np.uint16 if largest <= 65_535 else np.uint32)


def refuse_foreground(labels: np.ndarray, path: str | Path, remedy: str) -> None:
    """Refuse a mask of where cells are: one id only, in three pieces or more (of 255: two).

    Raises
    ------
    UserError
        With the number of pieces, and `remedy`.
    """
    from scipy import ndimage

    labels = np.maximum(labels, 0)  # what is not annotated tells nothing
    most = int(labels.max(initial=0))
    if most == 0 or ((labels != 0) & (labels != most)).any():
        return
    count = ndimage.label(labels, np.ones((3, 3)))[1]
    if count > (1 if most == 255 else 2):
        raise UserError(f"{path} holds one id in {count} pieces: where cells are, not which pixel is whose", remedy)


def relabel(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber to 1..N in ascending order of the old ids; 0 and -1 (not annotated) stay.

    Returns
    -------
    labels : (H, W) int32
    old_ids : (N,) int64
        ``old_ids[k - 1]`` is what label k was.

    Examples
    --------
    >>> relabel(np.array([[0, 7], [3, 7]]))
    (array([[0, 2],
           [1, 2]], dtype=int32), array([3, 7]))
    """
    if labels.size and labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() <= 4 * labels.size:
        present = np.zeros(int(labels.max()) + 1, bool)  # ids about as dense as pixels: no need to sort them
        present[labels] = True
        present[0] = False
        return np.where(present, np.cumsum(present), 0).astype(np.int32)[labels], np.flatnonzero(present)
    old, place = np.unique(labels, return_inverse=True)
    kept = old > 0
    lookup = np.where(kept, np.cumsum(kept), np.minimum(old, 0))
    return lookup[place].reshape(labels.shape).astype(np.int32), old[kept].astype(np.int64)


def check_labels(labels: np.ndarray, tiny_px: int = 15) -> dict[str, int]:
    """Count what is unusual in a label image.

    Returns
    -------
    dict
        cells, tiny (area below `tiny_px`), pieces (cells of more than one 8-connected piece), holes (cells with a hole),
        touching (cells that share an edge or corner with another), border (cells cut by the image border).
    """
    from scipy import ndimage

    labels, _ = relabel(labels)
    count = int(labels.max()) if labels.size else 0
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    pieces = holes = 0
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == index
        pieces += ndimage.label(mask, np.ones((3, 3)))[1] > 1
        holes += bool((ndimage.binary_fill_holes(mask) & ~mask).any())
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])) if labels.size else []
    touching = np.unique(np.concatenate([np.zeros(0, np.int32), *_touching_pairs(labels)]))
    return {
        "cells": count,
        "tiny": int((areas < tiny_px).sum()),
        "pieces": int(pieces),
        "holes": int(holes),
        "touching": int(len(touching)),
        "border": int(np.count_nonzero(edge)),
    }


def _touching_pairs(labels: np.ndarray) -> list[np.ndarray]:
    """Return, for each of four directions, the ids on both sides of a border between two cells."""
    found = []
    for a, b in (
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ):
        meet = np.flatnonzero(((a != b) & (a > 0) & (b > 0)).ravel())
        found += [a.ravel()[meet], b.ravel()[meet]] if meet.size else []
    return found


def clean_labels(labels: np.ndarray, pieces: str = "keep") -> np.ndarray:
    """Decide what a cell of several pieces is; renumber to 1..N.

    Parameters
    ----------
    labels : (H, W) int
    pieces : {"keep", "largest", "split"}
        A cell of several 8-connected pieces stays one cell, keeps its largest piece, or becomes several cells.

    Raises
    ------
    ValueError
        Another word for `pieces`.
    """
    from scipy import ndimage

    if pieces not in ("keep", "largest", "split"):
        raise ValueError(f"pieces is 'keep', 'largest' or 'split', not {pieces!r}")
    labels, _ = relabel(labels)
    out = np.zeros_like(labels)
    out[labels < 0] = -1
    next_id = 1
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == index
        parts = [mask]
        if pieces != "keep":
            numbered, count = ndimage.label(mask, np.ones((3, 3)))
            parts = [numbered == k for k in range(1, count + 1)]
            parts = [max(parts, key=np.count_nonzero)] if pieces == "largest" else parts
        for part in parts:
            out[box][part] = next_id
            next_id += 1
    return out
