"""Mask probabilities of a box, as a detector gives them, to pixels of the image."""

from __future__ import annotations

import numpy as np

from cellkit.cells.instances import Instances


def paste(masks: np.ndarray, boxes_xyxy: np.ndarray, shape: tuple[int, int], threshold: float) -> Instances:
    """Put mask probabilities into the image at their exact boxes (torchvision rounds them to whole pixels).

    Parameters
    ----------
    masks : (N, m, m) float32
    boxes_xyxy : (N, 4) float
        In px of the image; pixel (row, column) covers [column, column + 1) x [row, row + 1).
    threshold : float

    Returns
    -------
    Instances
        N objects; one that falls outside the image or below the threshold has no pixel.
    """
    import cv2

    parts, corners = [], []
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        left, top = int(np.floor(x0)), int(np.floor(y0))
        right, bottom = max(int(np.ceil(x1)), left + 1), max(int(np.ceil(y1)), top + 1)
        size = mask.shape[0]
        scale_x, scale_y = size / max(x1 - x0, 1e-6), size / max(y1 - y0, 1e-6)
        padded = np.pad(mask, 1)
        warp = np.array(  # pixel centre of the image -> sample of the padded mask
            [[scale_x, 0, (left + 0.5 - x0) * scale_x - 0.5 + 1], [0, scale_y, (top + 0.5 - y0) * scale_y - 0.5 + 1]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        parts.append(cv2.warpAffine(padded, warp, (right - left, bottom - top), flags=flags) > threshold)
        corners.append((left, top))
    return Instances.from_boxed_masks(parts, corners, shape)
