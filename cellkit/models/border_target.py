"""Cells as a picture of three kinds of pixels, background, interior and touching border, and back again.

Cells that touch are one patch in a picture of "cell or not". Here the pixels of a cell that lie near another cell are a class
of their own, so that interiors are islands: each is the seed of one cell, and a watershed gives it back what the border took.
Source of the target: the touching borders of the winners of the 2018 Data Science Bowl (Caicedo et al., Nature Methods 2019);
of the weights: Ronneberger et al., "U-Net", MICCAI 2015, equation 2.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import too_small
from cellkit.models.shared.inputs import resized

BACKGROUND, NOT_KNOWN, SOME_CLASS = (
    0,
    255,
    254,
)  # of a target: the last two are pixels nobody annotated, and cells of no class
CORE = 0.5  # of a cell's greatest depth: pixels deeper than that are never border, so that each cell keeps its seed
FAR_PX = 16  # distances to a second cell are told up to here


def encode(labels: np.ndarray, width_px: float, class_ids: np.ndarray | None = None, classes: int = 1) -> np.ndarray:
    """Return the class of every pixel: 0 = background, 1 to K = interior of a cell of that class, K + 1 = touching border.

    Border is what of a cell lies within `width_px` of another cell, at least a pixel, but for the core of each cell. Where that
    would leave the interior of a cell in several pieces, each of which would become a cell, its border is narrower.

    Parameters
    ----------
    labels : (h, w) int
        0 = background, -1 = not annotated, k = the cell k - 1.
    width_px : float
    class_ids : (N,) int, optional
        Class of each cell, 0 = not known; without it all are of the first.
    classes : int
        K.

    Returns
    -------
    (h, w) uint8
        `NOT_KNOWN` where nobody annotated, `SOME_CLASS` in the interior of a cell whose class is not known.

    Examples
    --------
    >>> encode(np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]).repeat(9, axis=0), 1.0)[4]
    array([1, 1, 1, 2, 2, 1, 1, 1, 0, 0], dtype=uint8)
    """
    cells = np.maximum(labels, 0)
    of_cell = np.ones(int(cells.max(initial=0)) + 1, np.uint8)
    if class_ids is not None and classes > 1:
        of_cell[1 : len(class_ids) + 1] = np.where(class_ids > 0, class_ids, SOME_CLASS)[: len(of_cell) - 1]
    of_cell[0] = BACKGROUND
    target = of_cell[cells]
    target[_border(cells, max(1, int(width_px)))] = classes + 1
    target[labels < 0] = NOT_KNOWN
    return target


def to_second_cell(cells: np.ndarray, most_px: float = FAR_PX) -> np.ndarray:
    """Return how far each pixel is from the second nearest cell, (h, w) float32 in px: inside a cell, from any other.

    In whole pixels, rounded up; infinite beyond `most_px`.

    Parameters
    ----------
    cells : (h, w) int, 0 = background

    Examples
    --------
    >>> to_second_cell(np.array([[1, 1, 0, 0, 2]]))
    array([[4., 3., 2., 2., 3.]], dtype=float32)
    """
    import cv2

    highest = cells.astype(np.float32)
    if not highest.any():
        return np.full(cells.shape, np.inf, np.float32)
    none = highest.max() + 1
    lowest = np.where(highest > 0, highest, none)
    away = np.full(cells.shape, np.inf, np.float32)
    for radius in range(1, int(np.ceil(most_px)) + 1):
        steps = np.arange(-radius, radius + 1)
        disc = (np.add.outer(steps**2, steps**2) <= radius**2 + 0.5).astype(np.uint8)
        first, last = (
            cv2.erode(lowest, disc, borderType=cv2.BORDER_CONSTANT, borderValue=float(none)),
            cv2.dilate(highest, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0.0),
        )
        away[(first < last) & np.isinf(away)] = radius
    return away


def weights_by_distance(labels: np.ndarray, height: float, sigma_px: float) -> np.ndarray:
    """Return Ronneberger's weight of each pixel: 1 + height * exp(-(d1 + d2)^2 / (2 sigma^2)), (h, w) float32.

    d1 and d2 are the distances to the nearest and the second nearest cell; inside a cell d1 is 0.

    Parameters
    ----------
    labels : (h, w) int
        0 = background; below 0 = not annotated, no cell.

    Examples
    --------
    >>> weights_by_distance(np.array([[1, 0, 2]]), 10.0, 2.0).round(1)
    array([[7.1, 7.1, 7.1]], dtype=float32)
    """
    from scipy import ndimage

    cells = np.maximum(labels, 0)
    if not cells.any():
        return np.ones(cells.shape, np.float32)
    away = ndimage.distance_transform_edt(cells == 0) + to_second_cell(cells, min(3 * sigma_px, FAR_PX))
    return (1 + height * np.exp(-np.square(away) / (2 * sigma_px**2))).astype(np.float32)


def one_hot(target: np.ndarray, classes: int) -> np.ndarray:
    """Return a target as the probabilities of a network that is right, (K + 2, h, w) float32: a cell of no class is of all.

    Examples
    --------
    >>> one_hot(np.array([[0, 1, 2, SOME_CLASS]], np.uint8), 1)[:, 0].tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    """
    out = (target == np.arange(classes + 2)[:, None, None]).astype(np.float32)
    out[1:-1, target == SOME_CLASS] = 1 / classes
    out[BACKGROUND, target == NOT_KNOWN] = 1
    return out


def decode(
    probabilities: np.ndarray,
    shape: tuple[int, int],
    border_weight: float = 1.0,
    seed_threshold: float = 0.5,
    cell_threshold: float = 0.5,
    min_area_px: int = 0,
    left_out: Counter[str] | None = None,
) -> Instances:
    """Return the cells in the probabilities of background, interiors and touching border.

    A seed is a patch where interior minus `border_weight` times border is above `seed_threshold`; a patch of cell without any
    is its own. From the seeds a watershed fills all pixels of cells, up the border. Cells are cut apart at the finer of the two
    scales, that of the network and that of the image.

    Parameters
    ----------
    probabilities : (K + 2, h, w) float32
        Background, K interiors, border; at network scale.
    shape : (int, int)
        Height and width of the image.
    cell_threshold : float
        Of interior and border together, above which a pixel is a cell's.
    min_area_px : int
        Smaller cells are left out.
    left_out : Counter, optional
        Takes their number.

    Returns
    -------
    Instances
        Score = mean probability of a cell in it; class = the interior with the largest sum, 0 where K = 1.

    Examples
    --------
    >>> truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]).repeat(9, axis=0)
    >>> decode(one_hot(encode(truth, 1.0), 1), truth.shape).areas_px
    array([36, 36])
    """
    if shape[0] * shape[1] > probabilities[0].size:
        probabilities = resized(probabilities, shape, False)
    cell, inner = 1 - probabilities[BACKGROUND], probabilities[1:-1].sum(axis=0)
    labels = cut(cell, inner, probabilities[-1], border_weight, seed_threshold, cell_threshold)
    if labels.shape != tuple(shape):
        labels = _at_scale(labels, cell, shape, cell_threshold)
        probabilities = resized(probabilities, shape, True)
        cell = 1 - probabilities[BACKGROUND]
    found = Instances.from_labels(_filled(labels))
    if not len(found):
        return found
    painted = found.paint()
    areas = np.maximum(found.areas_px, 1)
    found = found.with_scores(np.clip(np.bincount(painted.ravel(), cell.ravel())[1:] / areas, 0, 1))
    if len(probabilities) > 3:
        votes = [np.bincount(painted.ravel(), one.ravel())[1:] for one in probabilities[1:-1]]
        found = found.with_classes(np.argmax(votes, axis=0) + 1)
    large = found.areas_px >= min_area_px
    if left_out is not None and not large.all():
        left_out.update({too_small(min_area_px): int((~large).sum())})
    return found[large]


def cut(
    cell: np.ndarray,
    inner: np.ndarray,
    border: np.ndarray,
    border_weight: float,
    seed_threshold: float,
    cell_threshold: float,
) -> np.ndarray:
    """Return the label image of seeds that a watershed has grown to cells, (h, w) int32.

    Parameters
    ----------
    cell, inner, border : (h, w) float32
        Probabilities; that of a cell is the sum of the others.
    """
    from scipy import ndimage
    from skimage.segmentation import watershed

    inside = cell > cell_threshold
    patches, count = ndimage.label(inside)
    if not count:
        return np.zeros(cell.shape, np.int32)
    seeds, some = ndimage.label((inner - border_weight * border > seed_threshold) & inside)
    seeded = np.zeros(count + 1, bool)
    seeded[patches[seeds > 0]] = True
    seeds = np.where(seeded[patches], seeds, np.where(inside, patches + some, 0))
    return watershed(border - inner, seeds, mask=inside).astype(np.int32)


def _border(cells: np.ndarray, width_px: int) -> np.ndarray:
    """Return which pixels are border, (h, w) bool: of each cell as wide as leaves its interior as whole as the cell is."""
    away, core = to_second_cell(cells, width_px), _cores(cells)
    pieces, width = _pieces(cells > 0, cells), np.ones(int(cells.max(initial=0)) + 1, np.int32)
    for narrower in range(2, width_px + 1):
        whole = _pieces((cells > 0) & ((away > narrower) | core), cells) <= pieces
        width[whole & (width == narrower - 1)] = narrower
    return (cells > 0) & (away <= width[cells]) & ~core


def _pieces(inside: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return in how many pieces each cell is of which only the pixels `inside` are left, (N + 1,) int."""
    from scipy import ndimage

    count = np.zeros(int(cells.max(initial=0)) + 1, int)
    for k, box in enumerate(ndimage.find_objects(cells), 1):
        if box is not None:
            count[k] = ndimage.label(inside[box] & (cells[box] == k))[1]
    return count


def _cores(cells: np.ndarray) -> np.ndarray:
    """Return which pixels are in the innermost part of their cell, (h, w) bool."""
    import cv2
    from scipy import ndimage

    plain, cross = cells.astype(np.float32), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    edge = cv2.dilate(plain, cross) != cv2.erode(plain, cross)  # beyond the image lies no edge
    if not edge.any():
        return cells > 0
    depth = ndimage.distance_transform_edt(~edge)
    deepest = ndimage.maximum(depth, cells, np.arange(int(cells.max()) + 1))
    return (depth >= CORE * np.asarray(deepest)[cells]) & (depth > 0) & (cells > 0)


def _at_scale(labels: np.ndarray, cell: np.ndarray, shape: tuple[int, int], cell_threshold: float) -> np.ndarray:
    """Return labels at the scale of a smaller image: each pixel is that of the nearest, within the outlines there."""
    import cv2
    from skimage.segmentation import expand_labels

    size = (shape[1], shape[0])
    grown = expand_labels(labels, distance=2).astype(np.float64)
    small = cv2.resize(grown, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    small[resized(cell[None], shape, True)[0] <= cell_threshold] = 0
    return small


def _filled(labels: np.ndarray) -> np.ndarray:
    """Return a label image (h, w) int32 without holes: background that one cell alone encloses becomes that cell's."""
    import cv2
    from scipy import ndimage

    holes, count = ndimage.label(labels == 0)
    if count < 2:
        return labels
    around, cross = labels.astype(np.float32), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    none, every = around.max() + 1, np.arange(count + 1)
    highest = ndimage.maximum(cv2.dilate(around, cross), holes, every)
    lowest = ndimage.minimum(cv2.erode(np.where(around > 0, around, none), cross), holes, every)
    owner = np.where((highest == lowest) & (every > 0), highest, 0).astype(np.int32)
    owner[np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])] = 0
    return np.where(labels > 0, labels, owner[holes])
