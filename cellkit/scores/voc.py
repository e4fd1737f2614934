"""Pascal VOC average precision of masks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cellkit.scores.iou import Overlaps
from cellkit.scores.matching import ScoredImages, class_name_of, classes_of_truth, hits, mean_of_defined, ranked

WHY = "IoU >= 0.5 only, per class, ranked by confidence; a second detection of a cell is an error"
ON_BOXES = True
RANKED = True
ORDER = 5


def voc(pairs: Sequence[Overlaps], classes: Sequence[str] = (), threshold: Fraction = Fraction(1, 2)) -> dict[str, Any]:
    """Pascal VOC average precision at IoU 0.5 on masks, per class (area under the envelope, devkit of 2010 on).

    A detection goes to the truth of its class it overlaps most; if that one is taken it is an error. A detection that
    lies on a truth of unknown class counts neither way. Without any class in the truth all objects are one class,
    "cell".

    Returns
    -------
    dict
        score (mean over classes), by_class, and mean_of_images: matterport Mask R-CNN's `compute_ap` (all classes of an
        image in one list, mean over the images that have truth), which notebooks built on it call "VOC mAP".
    """
    known = classes_of_truth(pairs)
    by_class = {class_name_of(k, classes): _voc_class(pairs, k, threshold) for k in known}
    if not known:
        by_class = {"cell": _voc_class(pairs, None, threshold)}
    return {
        "score": mean_of_defined([np.nan if value is None else value for value in by_class.values()]),
        "by_class": by_class,
        "mean_of_images": mean_of_defined([_matterport_image(image, threshold, bool(known)) for image in pairs]),
    }


def _voc_class(pairs: Sequence[Overlaps], category: int | None, threshold) -> float | None:
    """Return the AP of one class over all images, None where the truth has none of it."""
    scores, right, counted, targets = [], [], [], 0
    for image in pairs:
        difficult = np.zeros(image.n_truth, bool)
        if category is not None:
            kept = np.isin(image.truth_classes, (0, category))
            difficult = image.truth_classes[kept] == 0
            image = image.select(kept, image.found_classes == category)
        order = ranked(image.found_scores)
        best = _best_truth(image, threshold)[order]
        hit, on_difficult = best >= 0, np.zeros(len(order), bool)
        on_difficult[hit] = difficult[best[hit]]
        hit &= ~on_difficult
        first = np.zeros(len(order), bool)
        first[np.flatnonzero(hit)[np.unique(best[hit], return_index=True)[1]]] = True
        scores.append(image.found_scores[order])
        right.append(first)
        counted.append(~on_difficult)
        targets += int((~difficult).sum())
    if not targets:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    order = order[np.concatenate(counted)[order]]
    return _area_under(np.concatenate(right)[order], targets)


def _best_truth(image: Overlaps, threshold) -> np.ndarray:
    """Return for each found object the truth of largest IoU if that reaches the threshold, else -1."""
    order = np.lexsort((image.truth, -image.iou, image.found))
    first = order[np.r_[True, image.found[order][1:] != image.found[order][:-1]]] if len(order) else order
    first = first[hits(image, [threshold], strict=False)[0][first]]
    best = np.full(image.n_found, -1)
    best[image.found[first]] = image.truth[first]
    return best


def _area_under(right: np.ndarray, targets: int) -> float:
    """Return the area under the precision envelope over recall; `right` (D,) bool in descending score."""
    tp = np.cumsum(right)
    precision = np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1]
    return float(precision[right].sum() / targets)


def _matterport_image(image: Overlaps, threshold, with_class: bool) -> float:
    """Return one image's AP of matterport Mask R-CNN utils.compute_ap; nan without truth."""
    if not image.n_truth:
        return np.nan
    kept = np.flatnonzero(hits(image, [threshold], strict=False)[0])
    if with_class:
        kept = kept[image.truth_classes[image.truth[kept]] == image.found_classes[image.found[kept]]]
    kept = kept[np.argsort(-image.iou[kept], kind="stable")]
    choices: dict[int, list[int]] = {}
    for k in kept.tolist():
        choices.setdefault(int(image.found[k]), []).append(int(image.truth[k]))
    taken: set[int] = set()
    right = np.zeros(image.n_found, bool)
    for place, found in enumerate(ranked(image.found_scores).tolist()):
        free = next((truth for truth in choices.get(found, ()) if truth not in taken), None)
        if free is not None:
            taken.add(free)
            right[place] = True
    return _area_under(right, image.n_truth)


def score(images: ScoredImages) -> dict[str, Any]:
    """Return `voc`."""
    return voc(images.pairs, images.classes)
