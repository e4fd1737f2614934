"""From what a detector says of an image, every box with a score and a mask, to its cells: disjoint, each once.

Nothing here knows a network: boxes, scores and mask probabilities of any detector can be read, and read again with other
thresholds, see `cellkit.models.shared.detection_search`. The steps, in this order:

1. Boxes that overlap a better one are left out (`box_nms`): by their own scores, so that a network need not make the masks
   of those that go.
2. The score of a box is multiplied by the mean probability of its mask (`rescored`): Huang et al., "Mask Scoring R-CNN", CVPR
   2019, learn that factor; the mean is what the first place of Kaggle's Sartorius competition (2021) took. What is scored low
   is left out.
3. Masks are put into the image. One that is the same cell as a better one is left out, and so is one of which better ones
   cover much: a sliver would be left of it (`stand_apart`). The sixth place of that competition left out what was covered by
   more than 20 %.
4. A pixel that is still contested is the better one's (`cellkit.cells.disjoint`).

Every step goes from high scores to low, and what it does to a box depends on better ones alone. So a higher threshold of the
score leaves the cells above it as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.cells.leftout import too_small
from cellkit.cells.runs import Shape, ranges
from cellkit.models.shared.tiles import SAME, Boxes, paste
from cellkit.scores.iou import Overlaps, overlaps


@dataclass(frozen=True)
class Reading:
    """How detections are read.

    Parameters
    ----------
    score_threshold : float
        What is scored as low or lower is left out.
    nms_threshold : float
        IoU of two boxes above which the one with the lower score, of the box alone, is left out; 1 = none is.
    mask_threshold : float
        Probability above which a pixel is the cell's.
    mask_nms_threshold : float
        IoU of two masks above which the lower score is left out; 1 = none is.
    covered_share : float
        Share of a mask's pixels that better ones may cover; what is covered more is left out, 1 = nothing is.
    min_area_px : int
        Smaller cells are left out, before they can win a pixel and after others won theirs.
    mask_score : bool
        Whether the score of a box is multiplied by the mean probability of its mask.
    """

    score_threshold: float = 0.5
    nms_threshold: float = 0.5
    mask_threshold: float = 0.5
    mask_nms_threshold: float = 1.0
    covered_share: float = 1.0
    min_area_px: int = 15
    mask_score: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Reading:
        """Return the reading that settings of a detector, with all these names, ask for."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


def read_detections(
    found: Boxes, shape: Shape, reading: Reading, left_out: Counter[str] | None = None
) -> tuple[Instances, np.ndarray]:
    """Return the cells of an image.

    Parameters
    ----------
    found : Boxes
        In px of the image; several may be of one cell.
    shape : (int, int)
        Height and width of the image in px.
    left_out : Counter, optional
        Takes the number of cells that are left out, by reason; a second sight of a cell is none.

    Returns
    -------
    cells : Instances
        Disjoint, with scores, of unknown class.
    places : (N,) int64
        Where each stands in `found`.

    Examples
    --------
    >>> boxes = np.array([[0.0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 8, 4]])
    >>> found = Boxes(boxes, np.array([0.9, 0.8, 0.7]), np.ones((3, 28, 28), np.float32))
    >>> cells, places = read_detections(found, (4, 8), Reading(min_area_px=1))  # the second is the first once more
    >>> places, cells.areas_px
    (array([0, 2]), array([16, 16]))
    >>> left_out = Counter()
    >>> cells, places = read_detections(found, (4, 8), Reading(min_area_px=1, covered_share=0.2), left_out)
    >>> places, dict(left_out)
    (array([0]), {'left out: other cells cover more than covered_share = 0.2 of it': 1})
    """
    scores = rescored(found, reading)
    places = np.sort(box_nms(found.boxes, found.scores, reading.nms_threshold))
    places = places[scores[places] > reading.score_threshold]
    shown = found[places]
    masks = paste(shown.masks, shown.mask_boxes, shape, reading.mask_threshold).with_scores(scores[places])
    large = masks.areas_px >= max(reading.min_area_px, 1)
    small = int(((masks.areas_px > 0) & ~large).sum())
    masks, places = masks[large], places[large]
    kept, covered = stand_apart(masks, overlaps(masks, masks), reading.mask_nms_threshold, reading.covered_share)
    cells, log = resolve_overlaps(masks[kept], reading.min_area_px)
    gone = {change.index for change in log if change.what.startswith("dropped")}
    small += sum(change.what.startswith("dropped: smaller") for change in log)
    if left_out is not None and small:
        left_out[too_small(reading.min_area_px)] += small
    if left_out is not None and covered:
        left_out[f"left out: other cells cover more than covered_share = {reading.covered_share:g} of it"] += covered
    stays = np.array([k not in gone for k in range(int(kept.sum()))], bool)
    return cells, places[kept][stays]


def rescored(found: Boxes, reading: Reading) -> np.ndarray:
    """Return the scores, (N,) float64, times the mean probability of the mask's pixels where the reading wants that.

    Examples
    --------
    >>> found = Boxes(np.zeros((1, 4)), np.array([0.9]), np.array([[[0.8, 0.6], [0.1, 0.0]]]))
    >>> rescored(found, Reading(mask_score=True)).round(3), rescored(found, Reading())
    (array([0.63]), array([0.9]))
    """
    scores = np.asarray(found.scores, np.float64)
    if not reading.mask_score or not len(found):
        return scores
    inside = found.masks > reading.mask_threshold
    pixels = inside.sum(axis=(1, 2))
    return scores * np.where(inside, found.masks, 0).sum(axis=(1, 2), dtype=np.float64) / np.maximum(pixels, 1)


def box_nms(boxes_xyxy: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the boxes that overlap no better one that stays by an IoU above the threshold, best first.

    Parameters
    ----------
    boxes_xyxy : (N, 4) float
    scores : (N,) float
        Of equal scores the first box is the better.

    Returns
    -------
    (K,) int64

    Examples
    --------
    >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [8, 0, 18, 10]])
    >>> box_nms(boxes, np.array([0.5, 0.9, 0.7]), 0.5)
    array([1, 2])
    """
    import torch
    from torchvision.ops import nms

    if threshold >= 1 or not len(boxes_xyxy):
        return np.argsort(-scores, kind="stable")
    boxes = torch.from_numpy(np.ascontiguousarray(boxes_xyxy, np.float64))
    return nms(boxes, torch.from_numpy(np.ascontiguousarray(scores, np.float64)), float(threshold)).numpy()


def stand_apart(
    masks: Instances,
    pairs: Overlaps,
    mask_nms: float,
    covered_share: float,
    candidates: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Tell which masks are no second sight of a better one and not covered by better ones.

    Parameters
    ----------
    masks : Instances
        They may overlap; of equal scores the first is the better.
    pairs : Overlaps
        Of the masks with themselves.
    mask_nms : float
        IoU with a better one that stays, above which a mask goes; 1 = none does.
    covered_share : float
        Share of its pixels in better ones that stay, above which a mask goes; 1 = none does.
    candidates : (N,) bool, optional
        The masks that are there at all.

    Returns
    -------
    kept : (N,) bool
    covered : int
        How many went since they were covered, and are no second sight: no single better one covers them by more than half.

    Examples
    --------
    >>> masks = Instances.from_masks([np.array([[1, 1, 1, 1, 0]], bool), np.array([[0, 0, 0, 1, 1]], bool)], (1, 5))
    >>> stand_apart(masks, overlaps(masks, masks), 1.0, 0.5), stand_apart(masks, overlaps(masks, masks), 1.0, 0.2)
    ((array([ True,  True]), 0), (array([ True, False]), 1))
    """
    kept = np.ones(len(masks), bool) if candidates is None else candidates.copy()
    if mask_nms >= 1 and covered_share >= 1:
        return kept, 0
    rank = np.empty(len(masks), np.int64)
    rank[np.lexsort((np.arange(len(masks)), -masks.scores))] = np.arange(len(masks))
    better = np.flatnonzero((rank[pairs.truth] < rank[pairs.found]) & kept[pairs.truth] & kept[pairs.found])
    better = better[np.lexsort((rank[pairs.truth[better]], rank[pairs.found[better]]))]
    first, lower = pairs.truth[better], pairs.found[better]
    share = pairs.shared_px[better] / pairs.found_areas_px[lower]
    same = pairs.iou[better] > mask_nms if mask_nms < 1 else np.zeros(len(better), bool)
    bounds = np.flatnonzero(np.r_[True, lower[1:] != lower[:-1], True]) if len(lower) else np.zeros(1, np.int64)
    covered = 0
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rivals = begin + np.flatnonzero(kept[first[begin:end]])
        if not len(rivals):
            continue
        mask = int(lower[begin])
        if same[rivals].any():
            kept[mask] = False
        elif covered_share < 1 and _covered(masks, mask, first[rivals], share[rivals], covered_share):
            kept[mask] = False
            covered += bool((share[rivals] <= SAME).all())
    return kept, covered


def _covered(masks: Instances, mask: int, others: np.ndarray, shares: np.ndarray, most: float) -> bool:
    """Tell whether others cover more than a share of a mask; pixels are counted only where two others may share some."""
    if len(others) == 1 or shares.max() > most or shares.sum() <= most:
        return bool(shares.max() > most)
    runs = masks.offsets[mask], masks.offsets[mask + 1]
    pixels = ranges(masks.starts[slice(*runs)], masks.lengths[slice(*runs)])
    below = masks[others]
    return bool(np.isin(pixels, ranges(below.starts, below.lengths)).sum() > most * len(pixels))
