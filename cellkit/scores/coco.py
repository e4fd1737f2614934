"""COCO average precision of masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.iou import Overlaps, overlaps
from cellkit.scores.matching import (
    THRESHOLDS,
    ScoredImages,
    class_name_of,
    classes_of_truth,
    keyed_by_threshold,
    ranked,
    ratio,
)

WHY = "IoU >= t, ranked by confidence: an error below every hit costs nothing; one curve over all images"
ON_BOXES = True
RANKED = True
ORDER = 1

# pycocotools: the default of Params.setDetParams, capped as in evaluateImg; .9 is .8999999999999999 there
COCO_THRESHOLDS = np.minimum(np.linspace(0.5, 0.95, 10), 1 - 1e-10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)


def coco(
    pairs: Sequence[Overlaps],
    per_class: bool = False,
    crowd: Sequence[np.ndarray] | None = None,
    max_detections: int | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """COCO average precision of masks, as `pycocotools.cocoeval` 2.0.11 computes it, to 1e-9.

    Per image and category the found objects, by descending score, each take the best free truth with IoU >= t; crowds
    absorb any number; precision is read at 101 recalls. Equal scores keep the order of the list.

    Parameters
    ----------
    per_class : bool
        The mean over the classes that occur in the truth; else all objects are one category. A truth of unknown class
        (0) is then no target, and a detection on it is no error.
    crowd : list of (G,) bool, optional
        Which true objects are crowds.
    max_detections : int, optional
        Per image and category; default as many as there are. pycocotools silently takes the best 100.

    Returns
    -------
    dict
        score (None without any truth), ap50, ap75, by_threshold, recall (the mean of the largest recalls),
        max_detections, by_class where `per_class`.

    Raises
    ------
    UserError
        A score that is not a finite number.
    """
    if crowd is None:
        crowd = [np.zeros(image.n_truth, bool) for image in pairs]
    if max_detections is None:
        max_detections = max([100, *(image.n_found for image in pairs)])
    categories = classes_of_truth(pairs) if per_class else [None]
    curves = [_coco_curves(pairs, category, crowd, max_detections) for category in categories]
    result = _coco_summary(curves)
    result["max_detections"] = int(max_detections)
    if per_class:
        names = [class_name_of(category, classes) for category in categories]
        result["by_class"] = {name: _coco_summary([curve])["score"] for name, curve in zip(names, curves, strict=True)}
    return result


def _coco_summary(curves: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> dict[str, Any]:
    """Average (precision (T, 101), recall (T,)) over the categories that have truth."""
    curves = [curve for curve in curves if curve is not None]
    if not curves:
        nothing = keyed_by_threshold(THRESHOLDS, np.full(10, np.nan))
        return {"score": None, "ap50": None, "ap75": None, "by_threshold": nothing, "recall": None}
    precision = np.stack([p for p, _ in curves]).mean(axis=(0, 2))
    return {
        "score": float(precision.mean()),
        "ap50": float(precision[0]),
        "ap75": float(precision[5]),
        "by_threshold": keyed_by_threshold(THRESHOLDS, precision),
        "recall": float(np.mean([r for _, r in curves])),
    }


def _coco_curves(pairs, category: int | None, crowd, max_detections: int):
    """Return precision (T, 101) and largest recall (T,) of one category; None without a truth that counts."""
    images = []
    for image, crowded in zip(pairs, crowd, strict=True):
        ignored = crowded
        if category is not None:
            kept = np.isin(image.truth_classes, (0, category))
            ignored = (crowded | (image.truth_classes == 0))[kept]
            image, crowded = image.select(kept, image.found_classes == category), crowded[kept]
        images.append(_coco_image(image, crowded, ignored, max_detections))
    targets = sum(image[3] for image in images)
    if not targets:
        return None
    scores = np.concatenate([image[0] for image in images])
    order = np.argsort(-scores, kind="stable")
    matched, ignored = (np.concatenate([image[k] for image in images], axis=1)[:, order] for k in (1, 2))
    tp = np.cumsum(matched & ~ignored, axis=1, dtype=float)
    fp = np.cumsum(~matched & ~ignored, axis=1, dtype=float)
    return _interpolated(tp, fp, targets)


def _interpolated(tp: np.ndarray, fp: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the precision envelope at 101 recalls, as COCOeval.accumulate does."""
    precision = np.zeros((len(tp), len(COCO_RECALLS)))
    if not tp.shape[1]:
        return precision, np.zeros(len(tp))
    recall = tp / targets
    # upstream adds np.spacing(1) below, so that a perfect result gives .9999999999999998 there and 1 here
    envelope = np.maximum.accumulate(ratio(tp, tp + fp, 0)[:, ::-1], axis=1)[:, ::-1]
    for row in range(len(tp)):
        at = np.searchsorted(recall[row], COCO_RECALLS, side="left")
        inside = at < tp.shape[1]
        precision[row, inside] = envelope[row, at[inside]]
    return precision, recall[:, -1]


def _coco_image(image: Overlaps, crowd, ignored, max_detections: int):
    """Match one image: scores (D,), matched (T, D), ignored (T, D) in descending score, and the number of targets."""
    order = ranked(image.found_scores)[:max_detections]
    rank = np.full(image.n_found, -1)
    rank[order] = np.arange(len(order))
    below = np.where(crowd[image.truth], image.found_areas_px[image.found], image.union_px)
    iou = image.shared_px / below
    kept = (iou >= COCO_THRESHOLDS[0]) & (rank[image.found] >= 0)
    i, j, iou = image.truth[kept], rank[image.found[kept]], iou[kept]
    matched, ignored_found = np.zeros((2, len(COCO_THRESHOLDS), len(order)), bool)
    alone = np.bincount(j, minlength=len(order))[j] == 1
    alone &= crowd[i] | (np.bincount(i, minlength=image.n_truth)[i] == 1)
    matched[:, j[alone]] = iou[alone] >= COCO_THRESHOLDS[:, None]
    ignored_found[:, j[alone]] = matched[:, j[alone]] & ignored[i[alone]]
    if not alone.all():
        _greedy(i[~alone], j[~alone], iou[~alone], crowd, ignored, matched, ignored_found)
    return image.found_scores[order], matched, ignored_found, int((~ignored).sum())


def _greedy(i, j, iou, crowd, ignored, matched, ignored_found) -> None:
    """Match contested pairs in order of detection as COCOeval.evaluateImg does; fills `matched`, `ignored_found`."""
    order = np.lexsort((i, ignored[i], j))
    candidates: dict[int, list[tuple[int, float, bool, bool]]] = {}
    for k in order.tolist():
        candidates.setdefault(int(j[k]), []).append((int(i[k]), float(iou[k]), bool(ignored[i[k]]), bool(crowd[i[k]])))
    for row, threshold in enumerate(COCO_THRESHOLDS.tolist()):
        taken: set[int] = set()
        for detection, choices in candidates.items():
            best, best_iou, best_ignored = -1, threshold, False
            for truth, value, is_ignored, is_crowd in choices:
                if truth in taken and not is_crowd:
                    continue
                if best >= 0 and not best_ignored and is_ignored:
                    break
                if value >= best_iou:
                    best, best_iou, best_ignored = truth, value, is_ignored
            if best >= 0:
                taken.add(best)
                matched[row, detection] = True
                ignored_found[row, detection] = best_ignored


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `coco` of all objects as one category; what is not annotated is a crowd region in each image."""
    pairs, crowd = _with_regions(images)
    return coco(pairs, crowd=crowd)


def _with_regions(images: ScoredImages) -> tuple[list[Overlaps], list[np.ndarray]]:
    """Return the pairs with what is not annotated as one more true object, and which true objects are that."""
    pairs, crowd = list(images.pairs), [np.zeros(image.n_truth, bool) for image in images.pairs]
    for k, truth in enumerate(images.truths):
        if truth.unknown_px:
            pairs[k] = overlaps(Instances.concatenate([truth, truth.region()]), images.every[k])
            crowd[k] = np.r_[crowd[k], True]
    return pairs, crowd


def details(images: ScoredImages) -> dict[str, Any]:
    """Return the AP of each class, where there are classes."""
    if not images.with_class:
        return {}
    pairs, crowd = _with_regions(images)
    return {"by_class": coco(pairs, per_class=True, crowd=crowd, classes=images.classes)["by_class"]}
