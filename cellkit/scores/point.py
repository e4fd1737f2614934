"""Point-in-mask detection, as DKFZ counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import ranges
from cellkit.errors import UserError
from cellkit.scores.iou import shared_pixels, sorted_runs
from cellkit.scores.matching import ScoredImages, json_number, ranked, ratio

WHY = "a cell counts as found when the centre lies in its mask: no IoU, so outlines do not matter"
ON_BOXES = False
ORDER = 6
_BLOCK_PX = 2**21  # pixels of objects that are looked at together: bounds the memory


def centre_points(objects: Instances) -> np.ndarray:
    """Return the pixel of each object that is nearest to its centroid: (N, 2) int64 rows of (y, x).

    Raises
    ------
    UserError
        An object without pixels.

    Examples
    --------
    >>> centre_points(Instances.from_labels(np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]])))
    array([[1, 0]])
    """
    if not np.all(objects.areas_px):
        raise UserError("an object of no pixel has no centre", "drop empty objects first")
    cuts = np.unique(
        np.searchsorted(np.cumsum(objects.areas_px), np.arange(_BLOCK_PX, objects.areas_px.sum(), _BLOCK_PX))
    )
    bounds = [0, *cuts.tolist(), len(objects)]
    return np.concatenate([_centres(objects[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)])


def _centres(objects: Instances) -> np.ndarray:
    pixels = ranges(objects.starts, objects.lengths)
    owner = np.repeat(objects.owner_of_run, objects.lengths)
    y, x = np.divmod(pixels, max(objects.shape[1], 1))
    n, areas = len(objects), objects.areas_px
    mean_y, mean_x = (np.bincount(owner, part, n) / areas for part in (y, x))
    distance = (y - mean_y[owner]) ** 2 + (x - mean_x[owner]) ** 2
    order = np.lexsort((pixels, distance, owner))
    first = order[np.r_[0, np.cumsum(areas)[:-1]]] if n else order
    return np.stack([y[first], x[first]], axis=1)


def match_points(truth: Instances, points_yx: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Give each point, by descending score, the first true object not yet used up whose mask holds its pixel.

    Parameters
    ----------
    points_yx : (P, 2) int
        Row and column of each point.
    scores : (P,) float, optional
        Default: the order given.

    Returns
    -------
    (P,) int64
        Index of the true object, -1 for a false positive.

    Raises
    ------
    UserError
        A point that is no pixel of the image.

    Examples
    --------
    >>> match_points(Instances.from_labels(np.array([[1, 1, 0]])), np.array([[0, 0], [0, 1], [0, 2]]))
    array([ 0, -1, -1])
    """
    points = np.asarray(points_yx).reshape(-1, 2)
    if points.size and (points.dtype.kind not in "iu" or (points < 0).any() or (points >= truth.shape).any()):
        raise UserError(f"a point is no pixel of its image of {truth.shape} px", "points are integer (row, column)")
    order = np.arange(len(points)) if scores is None else ranked(np.asarray(scores, float))
    starts = (points[:, 0].astype(np.int64) * truth.shape[1] + points[:, 1])[order]
    dots = Instances.from_runs(truth.shape, starts, np.ones(len(points), np.int64), np.arange(len(points) + 1))
    i, j, _ = shared_pixels(sorted_runs(dots), sorted_runs(truth), len(dots), len(truth))
    used, result = set(), np.full(len(points), -1)
    for point, holder in zip(i.tolist(), j.tolist(), strict=True):
        if result[order[point]] < 0 and holder not in used:
            used.add(holder)
            result[order[point]] = holder
    return result


def point(
    truths: Sequence[Instances],
    points_yx: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    class_ids: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """DKFZ point-in-mask detection: recall and precision pooled over images, accuracy over hits of known class.

    No IoU: shown beside MAP IoU, never mixed with it. A class that is not scored (there:
    PartiallydifferentiatedMSC) has class id 0 in the truth.

    Parameters
    ----------
    points_yx : list of (P, 2) int
        One point per found cell, e.g. `centre_points` of its mask.
    """
    ids = [None] * len(truths) if class_ids is None else class_ids
    ranks = [None] * len(truths) if scores is None else scores
    return _told([point_counts(*one) for one in zip(truths, points_yx, ranks, ids, strict=True)])


def _told(counts: Sequence[tuple[int, int, int, int, int]]) -> dict[str, Any]:
    """Return what the counts of `point_counts` of all images say."""
    hit, found, cells, right, classed = np.sum(counts, axis=0, dtype=np.int64) if counts else (0,) * 5
    return {
        "score": json_number(ratio(2 * hit, found + cells)),
        "recall": json_number(ratio(hit, cells)),
        "precision": json_number(ratio(hit, found)),
        "accuracy": json_number(ratio(right, classed)),
        "judged": int(classed),
    }


def point_counts(
    truth: Instances, points_yx: np.ndarray, scores: np.ndarray | None = None, class_ids: np.ndarray | None = None
) -> tuple[int, int, int, int, int]:
    """Count, in one image, hits, points, true cells, hits of the right class, and hits whose true class is known.

    Parameters
    ----------
    points_yx : (P, 2) int
    scores : (P,) float, optional
    class_ids : (P,) int, optional
        Without it the last two are 0.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 0, 2]]), class_ids=[1, 0])
    >>> point_counts(truth, np.array([[0, 0], [0, 2], [0, 3]]), class_ids=np.array([2, 1, 1]))
    (2, 3, 2, 0, 1)
    """
    match = match_points(truth, points_yx, scores)
    ok = np.flatnonzero(match >= 0)
    right = known = np.zeros(0, bool)
    if class_ids is not None:
        true_class = truth.class_ids[match[ok]]
        known = true_class > 0
        right = (np.asarray(class_ids)[ok] == true_class) & known
    return len(ok), len(match), len(truth), int(right.sum()), int(known.sum())


def _matched(truth: Instances, found: Instances) -> np.ndarray:
    """Tell which found objects have their centre in a true one that is theirs, (P,) bool."""
    matched = found.areas_px > 0
    some = found[matched]
    matched[matched] = match_points(truth, centre_points(some), some.scores) >= 0
    return matched


def _counted(image: ScoredImages) -> tuple[int, int, int, int, int]:
    """Count the centres of the found objects of one image."""
    image = image.with_matched(_matched)
    (truth,), (found,) = image.truths, image.founds
    found = found[found.areas_px > 0]
    return point_counts(truth, centre_points(found), found.scores, found.class_ids if image.with_class else None)


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `point` of the centres of the found objects."""
    return _told(images.each(_counted))
