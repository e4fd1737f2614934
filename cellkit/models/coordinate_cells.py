"""From a map of where cells are to cells: peaks are points, and points grow into masks by seeded watershed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.log import LOG
from cellkit.models.shared.fine_tuning import map_iou, nearest_to_default
from cellkit.models.shared.inputs import two_channels
from cellkit.scores.point import centre_points, match_points

OUTLINES = ("probability", "nuclei", "cytoplasm", "both")  # what a mask is cut out of; the first is the default
PEAKS = {  # what is searched, its default first
    "peak_threshold": (0.5, 0.3, 0.4, 0.6, 0.65, 0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.85, 0.9, 0.95),
    "blur_px": (1.0, 0.5, 1.25, 1.5, 2.0),
    "peak_distance_px": (3, 4, 6, 8, 12),
}
FARTHEST = 1.5  # diameters from its point that a mask may reach
SMOOTH = 0.04  # diameters over which brightness is averaged before it is cut
CERTAIN = 0.1  # diameters around a point that are the cell's whatever is cut


@dataclass(frozen=True)
class Seen:
    """An image, what the network says of each pixel of its square, and the true cells where they are known.

    Parameters
    ----------
    image : (H, W, 3) uint8
    inside : (S, S) float32
        Probability that a cell is there.
    truth : Instances, optional
    """

    image: np.ndarray
    inside: np.ndarray
    truth: Instances | None = None


def peaks(
    inside: np.ndarray, peak_threshold: float, blur_px: float, peak_distance_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (P, 2) int64 (y, x) where a blurred map has a peak of a least height, and their heights (P,).

    Parameters
    ----------
    blur_px : float
        Standard deviation of the Gaussian.
    peak_distance_px : int
        Of two peaks nearer than this the higher one counts.

    Examples
    --------
    >>> spot = np.zeros((9, 9), np.float32); spot[2, 6] = 1
    >>> peaks(spot, 0.5, 0.0, 2)
    (array([[2, 6]]), array([1.], dtype=float32))
    """
    from scipy.ndimage import gaussian_filter
    from skimage.feature import peak_local_max

    smooth = gaussian_filter(inside, blur_px) if blur_px else inside
    places = peak_local_max(
        smooth, min_distance=peak_distance_px, threshold_abs=peak_threshold, exclude_border=False, p_norm=2
    )
    return places, smooth[tuple(places.T)]


def in_image(places: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an image that hold the centres of pixels (P, 2) of its square map; two may be one.

    Examples
    --------
    >>> in_image(np.array([[0, 0], [3, 3]]), 4, (40, 8))
    array([[ 5,  1],
           [35,  7]])
    """
    return ((places + 0.5) / size * shape).astype(np.int64)


def point_score(truths: Sequence[Instances], points: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> float:
    """Return 2 hits / (points + cells) of a few images together, `point` as of cellkit.scores; 1 where there is neither."""
    hit = sum(int((match_points(*one) >= 0).sum()) for one in zip(truths, points, scores, strict=True))
    total = sum(map(len, truths)) + sum(map(len, points))
    return 2 * hit / total if total else 1.0


def search_peaks(seen: Sequence[Seen], fixed: dict[str, float | None]) -> dict[str, float]:
    """Return how peaks are best found in labelled images: nearest to the defaults of what is not clearly worse.

    Parameters
    ----------
    fixed : dict
        Name -> value of each of `PEAKS`; None = it is searched.
    """
    from itertools import product

    grid = {name: own if fixed[name] is None else (fixed[name],) for name, own in PEAKS.items()}
    thresholds, *others = grid.values()
    scores = []
    for one in seen:
        columns = []
        for values in product(*others):
            places, heights = peaks(one.inside, min(thresholds), *values)
            points, column = in_image(places, len(one.inside), one.truth.shape), []
            for kept in (heights > least for least in thresholds):  # a lower peak never hides a higher one
                column.append(point_score([one.truth], [points[kept]], [heights[kept]]))
            columns.append(column)
        scores.append(np.transpose(columns).reshape([len(own) for own in grid.values()]))
    at = nearest_to_default(np.stack(scores)) if scores else (0,) * len(grid)
    return {name: own[k] for (name, own), k in zip(grid.items(), at, strict=True)}


def search_outline(seen: Sequence[Seen], diameter_px: float) -> str:
    """Return what masks are best cut out of, by MAP IoU of masks that grow from the true centres."""
    scores = []
    for one in seen:
        points = centre_points(one.truth[one.truth.areas_px > 0])
        grown = [grow(one.image, one.inside, points, diameter_px, outline) for outline in OUTLINES]
        scores.append([map_iou([(one.truth, cells)]) for cells in grown])
    if not scores:
        return OUTLINES[0]
    best = nearest_to_default(np.array(scores))[0]
    means = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(OUTLINES, np.mean(scores, axis=0), strict=True))
    LOG.info(f"MAP IoU of masks that grow from the true centres: {means}; taken: {OUTLINES[best]}")
    return OUTLINES[best]


def grow(
    image: np.ndarray,
    inside: np.ndarray,
    points_yx: np.ndarray,
    diameter_px: float,
    outline: str,
    scores: np.ndarray | None = None,
) -> Instances:
    """Grow a mask from each point: a watershed deals out the pixels around the points, then each part is cut by Otsu's threshold.

    What of a part is brighter and connected to the point is the cell, with holes filled; a small disc around the point always.

    Parameters
    ----------
    image : (H, W, 3) uint8
    inside : (S, S) float32
        Probability that a cell is there, of the square that the image was brought to.
    points_yx : (P, 2) int
    diameter_px : float
        Of a typical cell.
    outline : {"probability", "nuclei", "cytoplasm", "both"}
        What is dealt out and cut: the map, at 0.5, or the brightness of the image.
    scores : (P,) float, optional

    Returns
    -------
    Instances
        One per point, in order; two points in one pixel are one cell, the first.
    """
    import cv2

    shape = image.shape[:2]
    if not len(points_yx):
        return Instances.empty(shape)
    if outline == "probability":
        light = cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        light = two_channels(image, outline).max(axis=0)
    return grown(light, points_yx, diameter_px, outline, scores)[0]


def grown(
    light: np.ndarray,
    points_yx: np.ndarray,
    diameter_px: float,
    outline: str,
    scores: np.ndarray | None = None,
) -> tuple[Instances, np.ndarray]:
    """Grow a mask from each point as `grow` does, and tell how far what is dealt out reaches.

    Parameters
    ----------
    light : (H, W) float32
        What `outline` names, of every pixel.

    Returns
    -------
    cells : Instances
        N of them.
    boxes_xyxy : (N, 4) int64
        Of the part that each was cut out of: left, top, right, lower side.
    """
    import cv2
    from scipy import ndimage
    from skimage.filters import threshold_otsu
    from skimage.segmentation import watershed

    shape = light.shape
    if not len(points_yx):
        return Instances.empty(shape), np.zeros((0, 4), np.int64)
    light = ndimage.gaussian_filter(light, SMOOTH * diameter_px)
    markers = np.zeros(shape, np.int32)
    for number, (y, x) in reversed(list(enumerate(points_yx.tolist(), 1))):
        markers[y, x] = number
    far = cv2.distanceTransform((markers == 0).astype(np.uint8), cv2.DIST_L2, 5)
    parts = watershed(-light, markers, mask=far <= FARTHEST * diameter_px)
    labels, boxes = np.zeros(shape, np.int32), np.zeros((len(points_yx), 4), np.int64)
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        if box is None:  # another point lies in the same pixel
            continue
        own, bright = parts[box] == number, light[box]
        least = 0.5 if outline == "probability" else _otsu(bright[own], threshold_otsu)
        sure = own & (far[box] <= CERTAIN * diameter_px) | (markers[box] == number)
        pieces, _ = ndimage.label(own & (bright > least) | sure)
        y, x = points_yx[number - 1] - (box[0].start, box[1].start)
        cell = ndimage.binary_fill_holes(pieces == pieces[y, x]) & own
        labels[box][cell] = number
        boxes[number - 1] = box[1].start, box[0].start, box[1].stop, box[0].stop
    kept = np.unique(labels[labels > 0]) - 1
    found = Instances.from_labels(labels)
    return found if scores is None else found.with_scores(np.clip(scores[kept], 0, 1)), boxes[kept]


def _otsu(values: np.ndarray, threshold_otsu) -> float:
    """Return Otsu's threshold of some values; the least of them where they are all the same."""
    return float(threshold_otsu(values)) if np.ptp(values) > 0 else float(values[0]) - 1
