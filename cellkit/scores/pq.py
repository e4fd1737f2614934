"""Panoptic quality of Kirillov et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import ScoredImages, json_number, matched_iou, ratio

WHY = "mean IoU of the hits (IoU > 0.5) times their F1, counts pooled over images"
ON_BOXES = False
ORDER = 7


def pq(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """Panoptic quality, Kirillov et al. 2019: sum of IoU (where > 0.5) / (TP + FP / 2 + FN / 2), over all images.

    sq is the mean IoU of the hits, rq their F1. Nothing on either side of any image: undefined (None).
    """
    matched = np.concatenate([np.zeros(0)] + [matched_iou(image, Fraction(1, 2), strict=True) for image in pairs])
    tp, both = len(matched), sum(image.n_truth + image.n_found for image in pairs)
    return {
        "score": json_number(ratio(2 * matched.sum(), both)),
        "sq": json_number(ratio(matched.sum(), tp)),
        "rq": json_number(ratio(2 * tp, both)),
    }


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `pq`."""
    return pq(images.pairs)
