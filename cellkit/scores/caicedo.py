"""F1, splits and merges as Caicedo et al. 2019 count them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import THRESHOLDS, Counts, ScoredImages, hits, keyed_by_threshold, mean_of_defined

WHY = "F1, IoU > 0.50:0.05:0.90 (ten: to 0.95); a truth matched twice is no hit and no miss; both empty is 0"
ON_BOXES = False
ORDER = 4


def caicedo(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """F1 of Caicedo et al., Cytometry A 2019 (github.com/carpenterlab/2019_caicedo_cytometryA, evaluation.py).

    IoU strictly greater; a hit is a truth with exactly one match, a miss a truth with none, an invention a prediction
    with none; F1 = 2 TP / (2 TP + FP + FN + 1e-9), mean over images. Nine thresholds 0.50 ... 0.90 in the paper's code
    (score), ten, to 0.95, as others count it (score_ten). Splits: truths with more than one overlap of IoU > 0.1; merges:
    predictions likewise. Two empty sides score 0.
    """
    rows = [_caicedo_counts(image) for image in pairs]
    tp, fp, fn = (np.array(part).reshape(-1, 10) for part in (zip(*rows, strict=True) if rows else ([], [], [])))
    f1 = 2 * tp / (2 * tp + fp + fn + 1e-9)
    means = f1.mean(axis=0) if len(f1) else np.full(10, np.nan)
    crossings = [_splits_and_merges(image) for image in pairs]
    return {
        "score": mean_of_defined(means[:9]),
        "score_ten": mean_of_defined(means),
        "by_threshold": keyed_by_threshold(THRESHOLDS, means),
        "splits": sum(s for s, _ in crossings),
        "merges": sum(m for _, m in crossings),
        "tp": tp.sum(axis=0).tolist(),
        "fp": fp.sum(axis=0).tolist(),
        "fn": fn.sum(axis=0).tolist(),
    }


def _caicedo_counts(image: Overlaps) -> Counts:
    table = hits(image)
    of_truth = np.stack([np.bincount(image.truth[row], minlength=image.n_truth) for row in table])
    of_found = np.stack([np.bincount(image.found[row], minlength=image.n_found) for row in table])
    return Counts((of_truth == 1).sum(axis=1), (of_found == 0).sum(axis=1), (of_truth == 0).sum(axis=1))


def _splits_and_merges(image: Overlaps) -> tuple[int, int]:
    some = hits(image, [Fraction(1, 10)])[0]
    return int((np.bincount(image.truth[some]) > 1).sum()), int((np.bincount(image.found[some]) > 1).sum())


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `caicedo`."""
    return caicedo(images.pairs)
