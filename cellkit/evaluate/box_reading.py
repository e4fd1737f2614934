"""How the cells of each class are best read where only boxes are known, and from which score on they count.

Cells of one class touch in another way than those of another: each has thresholds of its own. They are chosen on training images,
each as a network sees it that has not learned from it (`cellkit.models.shared.parts`); validation and test images judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.fine_tuning import nearest_to_default
from cellkit.models.shared.live import Live, Read
from cellkit.models.shared.parts import held_parts
from cellkit.scores.iou import overlaps
from cellkit.scores.matching import count

SMALL, LEAST_SHARE = 2.0, 0.5  # a cell may be as small as that share of the box that this per cent are smaller than
GRID = {"border_weight": (1.0, 1.5, 2.0), "neck_share": (0.0, 0.1, 0.25)}  # the default first
ROUND = 0.95  # share of its convex hull that a cell without a neck has at least
COARSE_PX = 40  # height and width that a cell is brought down to, at most, to look for necks


class Threshold(NamedTuple):
    """How cells of one class are read and what they must have to be counted; and how well that went where it was chosen.

    Parameters
    ----------
    class_name : str
    border_weight : float
        A setting of `cellkit.models.unet_border`.
    neck_share : float
        See `parted`; 0 = cells are left as they are.
    least_score : float
    least_area_px : int
    true, found : int
        Boxes, and cells that count, in the images that chose.
    f1 : float
        2 hits / (boxes + cells that count) there; a hit is a cell whose box has more than half in common with a true one (IoU).
    """

    class_name: str
    border_weight: float
    neck_share: float
    least_score: float
    least_area_px: int
    true: int
    found: int
    f1: float

    @property
    def reading(self) -> tuple[float, float]:
        """What distinguishes one reading from another: a value of each setting in `GRID`."""
        return self.border_weight, self.neck_share


Readings = Mapping[tuple[float, float], Instances]  # of an image: cells by a value of each setting in `GRID`


# ---- reading ---------------------------------------------------------------------------------------------------------
def parted(cells: Instances, neck_share: float) -> Instances:
    """Part cells at their necks: where the distance to the outline has several maxima, a watershed deals out the pixels.

    A maximum counts if between it and a higher one the distance falls by `neck_share` of the largest of the cell (h-maxima;
    Soille 1999, Morphological Image Analysis). The parts have the class and the score of the cell; 0 parts nothing.

    Examples
    --------
    >>> y, x = np.mgrid[:20, :40]
    >>> two = ((y - 10) ** 2 + (x - 11) ** 2 < 81) | ((y - 10) ** 2 + (x - 27) ** 2 < 81)
    >>> len(parted(Instances.from_masks([two], two.shape), 0.25)), len(parted(Instances.from_masks([two], two.shape), 0.0))
    (2, 1)
    """
    if not neck_share or not len(cells):
        return cells
    labels, owners = np.zeros(cells.shape, np.int32), []
    painted = cells.paint()
    for number, (x, y, width, height) in enumerate(cells.boxes_xywh.tolist(), 1):
        window = slice(y, y + height), slice(x, x + width)
        own = painted[window] == number
        parts = _parts(own, neck_share)
        labels[window][own] = parts[own] + len(owners)
        owners += [number - 1] * int(parts.max())
    kept = np.unique(labels[labels > 0]) - 1
    found = Instances.from_labels(labels)
    owners = np.array(owners)[kept]
    return found.with_classes(cells.class_ids[owners]).with_scores(cells.scores[owners])


def _parts(mask: np.ndarray, neck_share: float) -> np.ndarray:
    """Return the parts of a mask (h, w) bool as labels, 1 to their number."""
    import cv2
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    whole = mask.astype(np.int32)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hulls = cv2.convexHull(np.concatenate(outlines)) if outlines else None
    if hulls is None or sum(map(cv2.contourArea, outlines)) >= ROUND * cv2.contourArea(hulls):
        return whole
    step = -(-max(mask.shape) // COARSE_PX)
    coarse = np.pad(mask[step // 2 :: step, step // 2 :: step], 1)
    far = ndimage.gaussian_filter(ndimage.distance_transform_edt(coarse), 0.7) * coarse
    # skimage's h_maxima gives every maximum, however low, where the image is of floats (0.26)
    high = local_maxima(reconstruction(far - neck_share * far.max(), far)) & coarse
    middles, count = ndimage.label(high, np.ones((3, 3)))
    if count < 2:
        return whole
    near, (rows, columns) = watershed(-far, middles, mask=coarse), np.indices(mask.shape) // step + 1
    near = near[np.minimum(rows, near.shape[0] - 2), np.minimum(columns, near.shape[1] - 2)]
    return watershed(np.zeros(mask.shape), np.where(mask, near, 0), mask=mask)


def readings_of(read: Read) -> dict[tuple[float, float], Instances]:
    """Return the cells of an image in every way of `GRID`."""
    found = {}
    for weight in GRID["border_weight"]:
        cells = read({"border_weight": weight}, Counter(), False).cells
        found |= {(weight, neck): parted(cells, neck) for neck in GRID["neck_share"]}
    return found


def read_unseen(backend: ModuleType, checkpoints: Sequence[Any], train: CellDataset, config: Any) -> list[Readings]:
    """Read every training image by the network that has not learned from it.

    Parameters
    ----------
    checkpoints : sequence of Path
        Of `cellkit.models.shared.parts.train_parts`, which was given the same images and the same settings.

    Returns
    -------
    list of mapping
        One of each image: see `readings_of`.
    """
    from cellkit.parallel import progress

    found: dict[int, Readings] = {}
    for checkpoint, held in zip(checkpoints, held_parts(train, config.parts, config.seed), strict=True):
        model = backend.live(checkpoint)
        for place in progress(np.flatnonzero(held).tolist(), "images that were held back"):
            found[place] = readings_of(model.look(train.image(place)))
    return [found[place] for place in range(len(train))]


def read_by_class(model: Live, rule: Sequence[Threshold]) -> Segmenter:
    """Return the model that reads each class its own way; a pixel in cells of two classes is that of the higher score."""

    def find(image: np.ndarray, left_out: Counter[str]) -> Instances:
        read, ways = model.look(image), {}
        for one in rule:
            if one.reading not in ways:
                cells = read({"border_weight": one.border_weight}, Counter() if ways else left_out, False).cells
                ways[one.reading] = parted(cells, one.neck_share)
        if len(ways) == 1:
            return ways[rule[0].reading]
        own = [ways[one.reading][ways[one.reading].class_ids == k] for k, one in enumerate(rule, 1)]
        return resolve_overlaps(Instances.concatenate(own))[0]

    return Segmenter(find, model.settings, model.bytes_for)


# ---- what counts -----------------------------------------------------------------------------------------------------
def count_thresholds(boxes: CellDataset, unseen: Sequence[Readings]) -> list[Threshold]:
    """Choose, for each class, how it is read, and the score from which on as many cells are found as there are boxes.

    Cells are left out that are smaller than `LEAST_SHARE` of the box that `SMALL` per cent of the class's boxes are smaller than.
    Where fewer cells are found than there are boxes, every one counts, and `Threshold.found` says how many. A way to read is left
    out if its count, at its own least score, is off by more than the root of misses and inventions, by more than chance. Of the
    others the one nearest to the defaults is taken whose F1 is not clearly below the best
    (`cellkit.models.shared.fine_tuning.nearest_to_default`): where hits are many, counts of other images err least.

    Parameters
    ----------
    boxes : CellDataset
        Images that choose, with their boxes.
    unseen : sequence of mapping
        Of each image, its cells by a value of each setting in `GRID`; see `read_unseen`.
    """
    return [_of_class(k, name, boxes.instances, unseen) for k, name in enumerate(boxes.classes, 1)]


def _of_class(k: int, name: str, truths: Sequence[Instances], unseen: Sequence[Readings]) -> Threshold:
    own = [cells[cells.class_ids == k] for cells in truths]
    true, sizes = sum(map(len, own)), np.concatenate([cells.areas_px for cells in own])
    least_px = int(LEAST_SHARE * np.percentile(sizes, SMALL)) if true else 0
    least, kept, counts = [], [], []
    for values in (ways := list(product(*GRID.values()))):
        found = [of_image[values] for of_image in unseen]
        found = [cells[(cells.class_ids == k) & (cells.areas_px >= least_px)] for cells in found]
        least.append(least_score(np.concatenate([cells.scores for cells in found]), true))
        found = [cells[cells.scores >= least[-1]] for cells in found]
        kept.append(sum(map(len, found)))
        counts.append([_hits(*pair) for pair in zip(own, found, strict=True)])
    hit, either = np.moveaxis(np.array(counts).reshape(len(ways), len(own), 2), 2, 0)  # (ways, images)
    scores = np.divide(2 * hit, either, out=np.ones(hit.shape), where=either > 0)
    apart = np.abs(np.array(kept) - true) / np.sqrt(np.maximum((either - 2 * hit).sum(axis=1), 1))  # in standard errors
    scores = np.where(apart <= max(1.0, apart.min()), scores.T, -1.0)
    at = nearest_to_default(scores.reshape(len(own), *map(len, GRID.values())))
    way = int(np.ravel_multi_index(at, [len(tried) for tried in GRID.values()]))
    f1 = 2 * hit[way].sum() / max(either[way].sum(), 1)
    return Threshold(name, *ways[way], least[way], least_px, true, kept[way], round(float(f1), 3))


def _hits(boxes: Instances, found: Instances) -> tuple[int, int]:
    """Return the hits of cells of one class, and how many boxes and cells there are together."""
    return int(count(overlaps(boxes, found.as_boxes()), [0.5]).tp[0]), len(boxes) + len(found)


def least_score(scores: np.ndarray, true: int) -> float:
    """Return the score from which on as many cells are found as there are boxes; 0 where fewer are found.

    Examples
    --------
    >>> least_score(np.array([0.9, 0.5, 0.7]), 2), least_score(np.array([0.9]), 2), least_score(np.array([0.9]), 0)
    (0.6, 0.0, 1.0)
    """
    ranked = np.sort(scores)[::-1]
    if true == 0:
        return 1.0 if len(ranked) else 0.0
    return float(ranked[true - 1 : true + 1].mean()) if len(ranked) > true else 0.0
