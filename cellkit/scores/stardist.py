"""F1, accuracy and panoptic quality as StarDist counts them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import ScoredImages, count_images, json_number, keyed_by_threshold, matched_iou, ratio

WHY = "F1 (a hit counts twice) at IoU >= 0.5 only; counts pooled, so images with many cells weigh more"
ON_BOXES = False
ORDER = 3


def stardist(pairs: Sequence[Overlaps], thresholds: Sequence[Fraction] = (Fraction(1, 2),)) -> dict[str, Any]:
    """`stardist.matching.matching_dataset` (0.9.1): IoU at least the threshold, optimal assignment.

    As its default does, the counts are pooled over the images. Two empty sides score 0 there, and here.

    Returns
    -------
    dict
        score (F1 at the first threshold), and by threshold: f1, accuracy, pq, precision, recall.
    """
    counts = count_images(pairs, thresholds, strict=False)
    matched = np.array([[matched_iou(image, t).sum() for t in thresholds] for image in pairs]).reshape(counts.tp.shape)
    matched = matched.sum(axis=0)
    tp, fp, fn = (part.sum(axis=0) for part in counts)
    table = {
        "f1": ratio(2 * tp, 2 * tp + fp + fn, 0),
        "accuracy": ratio(tp, tp + fp + fn, 0),
        "pq": ratio(matched, tp + fp / 2 + fn / 2, 0),
        "precision": ratio(tp, tp + fp, 0),
        "recall": ratio(tp, tp + fn, 0),
    }
    first = {name: json_number(values[0]) for name, values in table.items()}
    return {
        "score": first["f1"],
        **first,
        "by_threshold": keyed_by_threshold(thresholds, table["f1"]),
        **{f"{name}_by_threshold": keyed_by_threshold(thresholds, table[name]) for name in ("accuracy", "pq")},
        "by_image": False,
    }


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `stardist`."""
    return stardist(images.pairs)
