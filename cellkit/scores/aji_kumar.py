"""Aggregated Jaccard index of Kumar et al. 2017."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.iou import Overlaps, overlaps
from cellkit.scores.matching import ScoredImages, mean_of_defined, ratio

WHY = "pixels, not cells: large cells weigh more; one prediction may serve several truths"
ON_BOXES = False
ORDER = 8


def aji_kumar(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """Aggregated Jaccard index, Kumar et al. 2017: mean over images.

    Every truth takes the prediction of largest IoU (which may serve several truths); shared pixels over united pixels,
    and the area of every prediction never taken is added below. Two empty sides are undefined and left out.
    """
    return {"score": mean_of_defined([_aji_kumar_image(image) for image in pairs])}


def _aji_kumar_image(image: Overlaps) -> float:
    best = _best(image)
    missed, unused = np.ones(image.n_truth, bool), np.ones(image.n_found, bool)
    missed[image.truth[best]] = unused[image.found[best]] = False
    below = image.union_px[best].sum() + image.truth_areas_px[missed].sum() + image.found_areas_px[unused].sum()
    return float(ratio(image.shared_px[best].sum(), below))


def _best(image: Overlaps) -> np.ndarray:
    """Return the pair of largest IoU of each true object that shares a pixel with a found one."""
    order = np.lexsort((image.found, -image.iou, image.truth))
    return order[np.r_[True, image.truth[order][1:] != image.truth[order][:-1]]] if len(order) else order


def _matched(truth: Instances, found: Instances) -> np.ndarray:
    image = overlaps(truth, found)
    return np.isin(np.arange(len(found)), image.found[_best(image)])


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `aji_kumar`."""
    return aji_kumar(images.with_matched(_matched).pairs)
