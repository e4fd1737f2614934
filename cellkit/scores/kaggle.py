"""MAP IoU, the project's own score: that of the Kaggle competitions DSB2018 and Sartorius 2021.

Hits are IoU strictly above 0.50, 0.55, ..., 0.95, TP / (TP + FP + FN), mean over thresholds, mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.errors import UserError
from cellkit.scores.intervals import BOOTSTRAP, Units, interval
from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import (
    THRESHOLDS,
    Counts,
    ScoredImages,
    count_images,
    json_number,
    keyed_by_threshold,
    ratio,
)

WHY = "MAP IoU: IoU > 0.50:0.05:0.95, TP/(TP+FP+FN), mean over thresholds and images; no confidence, no class"
ON_BOXES = False
ORDER = 0


def kaggle(
    pairs: Sequence[Overlaps],
    pool: str = "images",
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """MAP IoU, the score of DSB2018 and Sartorius 2021.

    Ten thresholds 0.50 ... 0.95, a hit is an IoU strictly greater, TP / (TP + FP + FN), mean over thresholds. No
    confidence, no class. Truth without prediction, and prediction without truth, score 0. Two empty sides score 1:
    nothing missed, nothing invented; the mean without such images is given too.

    Parameters
    ----------
    pool : {"images", "cells"}
        The mean of the images' scores (the competitions), or one score of the counts added up over the images.
    bootstrap, seed : int
        Draws behind the interval, and their seed; 0 = no interval.
    groups : sequence of str, optional
        Well, donor, plate or series of each image ("" = none): images of one are drawn as one, see `cellkit.scores.intervals`.

    Returns
    -------
    dict
        score, by_threshold, interval (95 %), interval_of (what was drawn: "40 images", "4 groups (few)"), pool, images,
        empty_images, score_without_empty.

    Raises
    ------
    UserError
        Another word for `pool`.

    Examples
    --------
    >>> from cellkit.scores.iou import overlaps_of_labels
    >>> once = np.array([[1, 1, 0, 2, 2]])
    >>> kaggle([overlaps_of_labels(once, once), overlaps_of_labels(once, 0 * once)])["score"]
    0.5
    """
    if pool not in ("images", "cells"):
        raise UserError(f"pool is {pool!r}", "pool is 'images' or 'cells'")
    counts = count_images(pairs, THRESHOLDS, strict=True)
    empty = np.array([image.n_truth + image.n_found == 0 for image in pairs], bool)
    units = Units.of(groups, len(pairs))
    score, low, high = pooled_interval(counts, pool, units, bootstrap, seed)
    if pool == "images":
        by_threshold = ratio(counts.tp, sum(counts), 1).mean(axis=0) if len(pairs) else np.full(10, np.nan)
    else:
        by_threshold = ratio(counts.tp.sum(axis=0), sum(counts).sum(axis=0), 1)
    return {
        "score": json_number(score),
        "by_threshold": keyed_by_threshold(THRESHOLDS, by_threshold),
        "interval": [json_number(low), json_number(high)],
        "interval_of": str(units),
        "pool": pool,
        "images": len(pairs),
        "empty_images": int(empty.sum()),
        "score_without_empty": json_number(pooled_score(Counts(*(part[~empty] for part in counts)), pool)),
    }


def pooled_score(counts: Counts, pool: str, weights: np.ndarray | None = None) -> Any:
    """Return the score of all images, or of (B, images) multiplicities."""
    images = counts.tp.shape[0]
    weights = np.ones((1, images)) if weights is None else weights
    if not images:
        return np.nan
    if pool == "images":
        result = weights @ ratio(counts.tp, sum(counts), 1).mean(axis=1) / weights.sum(axis=1)
    else:
        result = ratio(weights @ counts.tp, weights @ sum(counts), 1).mean(axis=1)
    return float(result[0]) if len(result) == 1 else result


def pooled_interval(counts: Counts, pool: str, units: Units, n: int, seed: int) -> tuple[float, float, float]:
    """Return score, low, high."""
    score = pooled_score(counts, pool)
    return score, *interval(lambda weights: pooled_score(counts, pool, weights), score, units, n, seed)


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `kaggle` with its own interval, the pooled score, and how many images a competition would refuse."""
    result = kaggle(images.pairs, bootstrap=images.bootstrap, seed=images.seed, groups=images.groups)
    result["score_pooled"] = kaggle(images.pairs, pool="cells", bootstrap=0)["score"]
    result["overlapping_images"] = sum(found.overlapping for found in images.founds)  # the competitions refuse these
    return result
