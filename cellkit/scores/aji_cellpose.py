"""Aggregated Jaccard index as Cellpose counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.iou import Overlaps, overlaps
from cellkit.scores.matching import ScoredImages, heaviest_matching, mean_of_defined, ratio

WHY = "pixels, one-to-one, over all covered pixels: not Kumar's number"
ON_BOXES = False
ORDER = 9


def aji_cellpose(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """`cellpose.metrics.aggregated_jaccard_index` (4.2), a different number under the same name: mean over images.

    Shared pixels of the optimal one-to-one assignment over all pixels in any object. Two empty sides are left out.
    """
    return {"score": mean_of_defined([_aji_cellpose_image(image) for image in pairs])}


def _aji_cellpose_image(image: Overlaps) -> float:
    if image.covered_px < 0:
        raise ValueError("aji_cellpose needs all objects of the image, not a selection")
    return float(ratio(image.shared_px[_chosen(image)].sum(), image.covered_px))


def _chosen(image: Overlaps) -> np.ndarray:
    """Return the pairs of the optimal one-to-one assignment."""
    smaller = max(min(image.n_truth, image.n_found), 1)
    weight = (2 * image.shared_px >= image.union_px) + image.iou / (2 * smaller)
    return heaviest_matching(image.truth, image.found, weight)


def _matched(truth: Instances, found: Instances) -> np.ndarray:
    image = overlaps(truth, found)
    return np.isin(np.arange(len(found)), image.found[_chosen(image)])


def _of_image(image: ScoredImages) -> float:
    return _aji_cellpose_image(image.with_matched(_matched).pairs[0])


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `aji_cellpose`."""
    return {"score": mean_of_defined(images.each(_of_image))}
