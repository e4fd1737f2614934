"""How detections are best read: all thresholds together, on labelled images that the network has looked at once.

What the network says of an image, loosely, is kept (`detector_training.raw_detections`); each way of reading it takes
milliseconds. A higher threshold of the score leaves the cells above it as they are (`cellkit.models.shared.detections`), so
cells are made once for all thresholds of the score.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.models.shared.detections import Reading, box_nms, rescored, stand_apart
from cellkit.models.shared.threshold_search import Searched, choose, grid_of
from cellkit.models.shared.tiles import Boxes, paste
from cellkit.parallel import progress
from cellkit.scores.iou import Overlaps, overlaps, scorable
from cellkit.scores.kaggle import kaggle

GRID: dict[str, tuple] = {  # what may be combined, the default first; least areas are shares of the median cell's
    "score_threshold": (0.4, 0.3, 0.5, 0.2, 0.6, 0.1, 0.7, 0.8, 0.9),
    "nms_threshold": (0.5, 0.3, 0.7),
    "mask_threshold": (0.5, 0.4, 0.6),
    "mask_nms_threshold": (1.0, 0.1, 0.3),
    "covered_share": (0.2, 1.0),
    "mask_score": (True, False),
    "min_area_px": (0.025, 0.05, 0.1, 0.2),
}
SEARCHED = (
    "score_threshold",
    "nms_threshold",
    "mask_threshold",
    "min_area_px",
)  # when not set; the others gain nothing


def loosest(grid: Mapping[str, Sequence]) -> float:
    """Return the score below which no reading of a grid looks."""
    return min(grid["score_threshold"])


def readings(
    settings: Mapping[str, Any], searched: Sequence[str], truths: Sequence[Instances]
) -> dict[str, tuple[Any, ...]]:
    """Return the values of each setting to combine, the default first; of one that is not searched the value it has."""
    return grid_of(settings, searched, truths, GRID)


def search_readings(
    raws: Iterable[tuple[Boxes, Instances]],
    grid: Mapping[str, tuple],
    searched: Sequence[str],
    called: str,
    remedy: str,
) -> Searched:
    """Search how detections are best read, by MAP IoU (kaggle, whatever the class) on labelled images.

    Of all combinations the one nearest to the defaults is taken that is not clearly worse than the best, see
    `cellkit.models.shared.fine_tuning.nearest_to_default`.

    Parameters
    ----------
    raws : iterable of (Boxes, Instances)
        What the network says of each image, in its px, down to the `loosest` score; and the truth.
    grid : mapping
        As `readings` gives it.
    searched : sequence of str
        Which of the settings are not set.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.
    remedy : str
        What to try where no cell is found right.
    """
    begun = time.monotonic()
    made = [(score_readings(found, truth, grid), len(truth)) for found, truth in progress(raws, "search on images")]
    scores, cells = np.stack([one for one, _ in made]), sum(count for _, count in made)
    if not any(one.any() for one, count in made if count):  # an image without cells is right where none is found
        where = counted(len(made), "training image")
        LOG.info(f"no cell of {where} is right, whatever the thresholds, so the defaults stay. {remedy}")
        return Searched({key: grid[key][0] for key in searched}, {})
    return choose(scores, grid, searched, cells, called, time.monotonic() - begun)


def score_readings(found: Boxes, truth: Instances, grid: Mapping[str, Sequence]) -> np.ndarray:
    """Return the MAP IoU (kaggle) of an image at every combination of a grid, an axis for each of its settings.

    It is that of `read_detections` with these settings.

    Parameters
    ----------
    found : Boxes
        In px of the image, down to the lowest threshold of the score.
    grid : mapping
        Each field of `Reading` -> its values.
    """
    axes = {name: range(len(values)) for name, values in grid.items()}
    scores = np.zeros([len(values) for values in grid.values()])
    lowest = loosest(grid)
    distinct = {nms: box_nms(found.boxes, found.scores, nms) for nms in grid["nms_threshold"]}
    for k_mask, k_rescored in product(axes["mask_threshold"], axes["mask_score"]):
        reading = Reading(
            score_threshold=lowest,
            mask_threshold=grid["mask_threshold"][k_mask],
            mask_score=grid["mask_score"][k_rescored],
        )
        made = _Made(found, truth, reading, distinct)
        inner = ("nms_threshold", "min_area_px", "mask_nms_threshold", "covered_share")
        for places in product(*(axes[name] for name in inner)):
            nms, least, mask_nms, covered = (grid[name][k] for name, k in zip(inner, places, strict=True))
            at = dict(zip(inner, places, strict=True)) | {"mask_threshold": k_mask, "mask_score": k_rescored}
            place = tuple(slice(None) if name == "score_threshold" else at[name] for name in grid)
            scores[place] = made.scores(grid["score_threshold"], nms, least, mask_nms, covered)
    return scores


class _Made:
    """The masks of all detections, put into the image once, and what was made of them."""

    def __init__(self, found: Boxes, truth: Instances, reading: Reading, distinct: Mapping[float, np.ndarray]):
        scores = rescored(found, reading)
        kept = scores > reading.score_threshold
        self.truth, shown = truth, found[kept]
        self.distinct = {nms: np.isin(np.flatnonzero(kept), places) for nms, places in distinct.items()}
        masks = paste(shown.masks, shown.mask_boxes, truth.shape, reading.mask_threshold)
        self.masks = masks.with_scores(scores[kept])
        self.pairs = overlaps(self.masks, self.masks)
        self.apart: dict[bytes, dict[float, float]] = {}  # different thresholds often leave the same masks

    def scores(
        self, thresholds: Sequence[float], nms: float, min_area_px: int, mask_nms: float, covered: float
    ) -> list[float]:
        """Return the MAP IoU at each threshold of the score."""
        there = self.distinct[nms] & (self.masks.areas_px >= max(min_area_px, 1))
        kept, _ = stand_apart(self.masks, self.pairs, mask_nms, covered, there)
        key = kept.tobytes() + str(min_area_px).encode()
        if key not in self.apart:
            cells, _ = resolve_overlaps(self.masks[kept], min_area_px)
            self.apart[key] = _scores(overlaps(self.truth, scorable(self.truth, cells)), thresholds)
        return [self.apart[key][threshold] for threshold in thresholds]


def _scores(pairs: Overlaps, thresholds: Sequence[float]) -> dict[float, float]:
    every = np.ones(pairs.n_truth, bool)
    return {
        threshold: kaggle([pairs.select(every, pairs.found_scores > threshold)], bootstrap=0)["score"]
        for threshold in thresholds
    }
