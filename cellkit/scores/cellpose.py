"""Average precision as Cellpose counts it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import ScoredImages, count_images, keyed_by_threshold, mean_of_defined, ratio

WHY = "IoU >= t at 0.5, 0.75 and 0.9 only: fewer hard thresholds; both empty is undefined, not 1"
ON_BOXES = False
ORDER = 2

CELLPOSE_THRESHOLDS = (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))


def cellpose(pairs: Sequence[Overlaps], thresholds: Sequence[Fraction] = CELLPOSE_THRESHOLDS) -> dict[str, Any]:
    """`cellpose.metrics.average_precision` (4.2): TP / (TP + FP + FN) per image, IoU at least 0.5, 0.75, 0.9.

    Two empty sides are undefined (nan there) and left out of the mean here, their number given as undefined_images.
    """
    counts = count_images(pairs, thresholds, strict=False)
    per_image = ratio(counts.tp, sum(counts))
    means = [mean_of_defined(column) for column in per_image.T]
    return {
        "score": mean_of_defined([np.nan if mean is None else mean for mean in means]),
        "by_threshold": keyed_by_threshold(thresholds, [np.nan if mean is None else mean for mean in means]),
        "undefined_images": int(np.isnan(per_image).any(axis=1).sum()),
    }


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `cellpose`."""
    return cellpose(images.pairs)
