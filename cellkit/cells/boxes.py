"""Boxes: cells of which only a box is known, and the pixels a box covers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import UserError


# ---- boxes ---------------------------------------------------------------------------------------------------------
def refuse_boxes(instances: Iterable[Instances], what: str) -> None:
    """Refuse truth of which only boxes are known, where outlines are needed.

    Raises
    ------
    UserError
        Saying what cannot be done, why, and what can.
    """
    count = sum(found.boxes_only for found in instances)
    if count:
        raise UserError(
            f"{what} needs outlines, and {count} image(s) have boxes only: even a perfect round cell fills 79% of its box",
            "score boxes with the conventions voc and coco; to learn or score outlines, label masks (label.use)",
        )


def pixel_boxes(edges: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """Turn edges (left, top, right, bottom; px from the image's corner) into whole pixels (column, row, width, height).

    Edges are rounded to the nearest pixel border; a box too thin for that gets the pixel of its middle.

    Raises
    ------
    UserError
        A box without extent, with a number that is not finite, or that leaves the image by half a pixel or more.

    Examples
    --------
    >>> pixel_boxes(np.array([[0, 0, 25.2, 40.8]]), (256, 256), "a.png")
    array([[ 0,  0, 25, 41]])
    """
    edges = np.asarray(edges, float).reshape(-1, 4)
    height, width = shape
    most = np.array([width, height, width, height])
    wrong = ~np.isfinite(edges).all(axis=1)
    wrong |= ~((edges > -0.5) & (edges < most + 0.5)).all(axis=1) | ~(edges[:, 2:] > edges[:, :2]).all(axis=1)
    if wrong.any():
        box = ", ".join(f"{value:g}" for value in edges[wrong][0])
        raise UserError(
            f"{where}: {int(wrong.sum())} of {len(edges)} boxes leave the image of {height} x {width} px or have no extent, "
            f"e.g. {box} (left, top, right, bottom edge)",
            "correct them, or leave them out",
        )
    corners = np.clip(np.floor(edges + 0.5), 0, most).astype(np.int64)
    middle = np.clip(np.floor((edges[:, :2] + edges[:, 2:]) / 2), 0, most[:2] - 1).astype(np.int64)
    size = corners[:, 2:] - corners[:, :2]
    return np.concatenate([np.where(size > 0, corners[:, :2], middle), np.maximum(size, 1)], axis=1)
