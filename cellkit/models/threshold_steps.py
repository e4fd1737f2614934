"""The steps of Otsu's threshold and the watershed, on a whole image or on a window of one: the pixels around tell all."""

from __future__ import annotations

import numpy as np

from cellkit.cells.instances import Instances

SMOOTHED_PX = 4  # how far a pixel is seen when the image is smoothed, by a Gaussian of 1 px
NO_DIAMETER_PX = 10.0  # of an image without any object


def smoothed(image: np.ndarray) -> np.ndarray:
    """Return the brightest of the channels of an image (H, W, 3) uint8 at each pixel, smoothed; (H, W) float32."""
    from scipy import ndimage

    return ndimage.gaussian_filter(image.max(axis=2).astype(np.float32), 1)


def brighter(grey: np.ndarray, limit: float) -> np.ndarray:
    """Return where an image (H, W) is brighter than a limit, or enclosed by what is; (H, W) bool."""
    from scipy import ndimage

    return ndimage.binary_fill_holes(grey > limit)


def pieces_of(cells: np.ndarray) -> np.ndarray:
    """Return the connected parts of (H, W) bool as a label image."""
    from scipy import ndimage

    return ndimage.label(cells)[0]


def depth_of(cells: np.ndarray) -> np.ndarray:
    """Return how far each pixel of (H, W) bool is from one that is not true, (H, W) float64."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(cells)


def typical_diameter(areas: np.ndarray, min_area_px: int) -> float:
    """Return the median diameter (px) of objects of these areas that are not too small."""
    areas = areas[areas >= max(min_area_px, 1)]
    return float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)) if areas.size else NO_DIAMETER_PX


def parted(grey: np.ndarray, pieces: np.ndarray, depth: np.ndarray, limit: float, diameter_px: float) -> Instances:
    """Cut the brighter part of an image into cells, by a watershed of the distance to what is darker.

    Parameters
    ----------
    grey : (H, W) float32
    pieces, depth : (H, W)
        Of where it is brighter than `limit`: `pieces_of`, `depth_of`.
    diameter_px : float
        Two peaks of the distance map nearer than half of it are one cell.

    Returns
    -------
    Instances
        Score = contrast of the object to the limit, in [0, 1].
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    depth = ndimage.gaussian_filter(depth, diameter_px / 15)
    peaks = peak_local_max(depth, min_distance=max(1, round(diameter_px / 4)), labels=pieces, exclude_border=False)
    markers = np.zeros(pieces.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-depth, markers, mask=pieces > 0).astype(np.int32)
    found = Instances.from_labels(labels)
    total = np.bincount(labels.ravel(), grey.ravel())[np.unique(labels[labels > 0])] if len(found) else np.zeros(0)
    contrast = (total / found.areas_px - limit) / max(255 - limit, 1) if len(found) else np.zeros(0)
    return found.with_scores(np.clip(contrast, 0, 1))
