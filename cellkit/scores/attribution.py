"""Attribution: where the score of each image is lost, and how much MAP IoU the repair of each kind of fault gives back.

Every true and every found object gets one verdict; then the objects of one kind are repaired (a true object gets a
perfect prediction, the predictions at fault are taken away) and the image is scored again. The gains of the kinds do
not sum to the whole loss, because one repair lifts what another is worth; all repaired at once give 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.scores.iou import Overlaps, overlap_images
from cellkit.scores.matching import count, hits, match_pairs

if TYPE_CHECKING:
    import pandas

KINDS = ("missed", "invented", "split", "merged", "boundary", "class")
GOOD = "good"
STRICTEST = Fraction(19, 20)
FAINTEST = Fraction(1, 10)


def fault_kinds(pairs: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """Give every object its verdict, in this order of precedence.

    * merged: a prediction that holds more than half of each of two or more truths, each at least a tenth of it, and
      those truths
    * split: a truth that holds more than half of each of two or more predictions, each at least a tenth of it, and
      those pieces
    * good: matched with IoU > 0.95, right at every threshold
    * boundary: matched with a lower IoU, or, among what is left, with IoU > 0.1: the cell is there, not its outline
    * missed: a truth left over; invented: a prediction left over

    Returns
    -------
    of_truth, of_found : (G,), (P,) object
        Strings out of `KINDS` and "good"; "class" does not occur, it comes on top (`wrong_classes`).

    Examples
    --------
    >>> from cellkit.scores.iou import overlaps_of_labels
    >>> truth = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3]])
    >>> found = np.array([[1, 1, 2, 2, 0, 0, 0, 4, 3]])
    >>> of_truth, of_found = fault_kinds(overlaps_of_labels(truth, found))
    >>> of_truth.tolist(), of_found.tolist()
    (['split', 'missed', 'good'], ['split', 'split', 'good', 'invented'])
    """
    of_truth = np.full(pairs.n_truth, "missed", object)
    of_found = np.full(pairs.n_found, "invented", object)
    for kind in ("merged", "split"):
        open_pairs = (of_truth[pairs.truth] == "missed") & (of_found[pairs.found] == "invented")
        i, j = _one_in_many(pairs, open_pairs, whole="found" if kind == "merged" else "truth")
        of_truth[i], of_found[j] = kind, kind
    for threshold in (Fraction(1, 2), FAINTEST):
        truth_left, found_left = np.flatnonzero(of_truth == "missed"), np.flatnonzero(of_found == "invented")
        rest = pairs.select(of_truth == "missed", of_found == "invented")
        i, j = match_pairs(rest, threshold=threshold)
        of_truth[truth_left[i]], of_found[found_left[j]] = "boundary", "boundary"
        if threshold == Fraction(1, 2):
            perfect = hits(rest, [STRICTEST])[0][rest.places(i, j)]
            of_truth[truth_left[i[perfect]]], of_found[found_left[j[perfect]]] = GOOD, GOOD
    return of_truth, of_found


def _one_in_many(pairs: Overlaps, allowed: np.ndarray, whole: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs in which one object on the `whole` side holds two or more of the other side."""
    truth_area, found_area = pairs.truth_areas_px[pairs.truth], pairs.found_areas_px[pairs.found]
    large, small = (truth_area, found_area) if whole == "truth" else (found_area, truth_area)
    holder = pairs.truth if whole == "truth" else pairs.found
    part = allowed & (2 * pairs.shared_px > small) & (10 * pairs.shared_px >= large)
    many = np.bincount(holder[part], minlength=1) >= 2
    chosen = part.copy()
    chosen[part] = many[holder[part]]
    return pairs.truth[chosen], pairs.found[chosen]


def wrong_classes(pairs: Overlaps) -> np.ndarray:
    """Return the true objects (indices, ascending) of known class that are matched (IoU > 0.5) under another class."""
    i, j = match_pairs(pairs)
    wrong = (pairs.truth_classes[i] > 0) & (pairs.truth_classes[i] != pairs.found_classes[j])
    return i[wrong]


def _score(tp: np.ndarray, total: np.ndarray) -> float:
    """Return the MAP IoU of one image from counts at the ten thresholds; 1 when there is nothing on either side."""
    return float(np.where(total > 0, tp / np.maximum(total, 1), 1.0).mean())


def repaired_score(pairs: Overlaps, fixed: np.ndarray, removed: np.ndarray) -> float:
    """Return the MAP IoU of an image after a repair.

    Parameters
    ----------
    fixed : (G,) bool
        Truths that get a perfect prediction of their own.
    removed : (P,) bool
        Predictions taken away.
    """
    counts = count(pairs.select(~fixed, ~removed)) if fixed.any() or removed.any() else count(pairs)
    return _score(counts.tp + fixed.sum(), sum(counts) + fixed.sum())


def _class_aware_score(pairs: Overlaps) -> float:
    """Return the MAP IoU in which a hit must be of the truth's class, where that is known."""
    true_class = pairs.truth_classes[pairs.truth]
    kept = (true_class == 0) | (true_class == pairs.found_classes[pairs.found])
    alike = replace(pairs, truth=pairs.truth[kept], found=pairs.found[kept], shared_px=pairs.shared_px[kept])
    counts = count(alike)
    return _score(counts.tp, sum(counts))


def attribute(
    truths: Sequence[Instances], founds: Sequence[Instances], records: Sequence[ImageRecord] | None = None
) -> pandas.DataFrame:
    """Return, of every image and every kind of fault, how many cells have it and what MAP IoU its repair would gain.

    Parameters
    ----------
    truths, founds : list of Instances
        One per image, in order.
    records : list of ImageRecord, optional
        Name the images; without them they are called "1", "2", ...

    Returns
    -------
    DataFrame
        image_id, cell_type, group, split, score (MAP IoU of the image), kind, cells (true ones; found ones for
        "invented"), gain (MAP IoU of the image after repairing this kind alone, minus score). The gain of "class" is
        what is lost on top when a hit must also be of the right class; 0 where either side has no classes.

    Raises
    ------
    UserError
        Not as many records, truths and predictions.
    """
    import pandas as pd

    if records is not None and len(records) != len(truths):
        raise UserError(f"{len(records)} records, {len(truths)} truths", "give one record per image, in order")
    images = overlap_images(truths, founds)
    with_class = any(p.truth_classes.any() for p in images) and any(p.found_classes.any() for p in images)
    rows = []
    for position, pairs in enumerate(images):
        record = records[position] if records is not None else None
        about = {"image_id": record.image_id if record else str(position + 1)}
        about |= {name: getattr(record, name) if record else "" for name in ("cell_type", "group", "split")}
        rows += [{**about, **line} for line in _attribute_image(pairs, with_class)]
    columns = ["image_id", "cell_type", "group", "split", "score", "kind", "cells", "gain"]
    return pd.DataFrame(rows, columns=columns)


def _attribute_image(pairs: Overlaps, with_class: bool) -> list[dict]:
    of_truth, of_found = fault_kinds(pairs)
    counts = count(pairs)
    score = _score(counts.tp, sum(counts))
    lines = []
    for kind in KINDS[:-1]:
        fixed, removed = of_truth == kind, of_found == kind
        cells = int(removed.sum() if kind == "invented" else fixed.sum())
        gain = repaired_score(pairs, fixed, removed) - score if cells else 0.0
        lines.append({"score": score, "kind": kind, "cells": cells, "gain": gain})
    wrong = len(wrong_classes(pairs)) if with_class else 0
    gain = score - _class_aware_score(pairs) if with_class else 0.0
    return [*lines, {"score": score, "kind": "class", "cells": wrong, "gain": gain}]


def gains(table: pandas.DataFrame) -> pandas.DataFrame:
    """Sum up an attribution over the images, most rewarding repair first.

    Parameters
    ----------
    table : DataFrame
        From `attribute`.

    Returns
    -------
    DataFrame
        kind, cells, images (that have the fault), gain: what the MAP IoU of all images would gain.
    """
    grouped = table.assign(images=table["cells"] > 0).groupby("kind", sort=False)
    result = grouped.agg(cells=("cells", "sum"), images=("images", "sum"), gain=("gain", "mean")).reset_index()
    return result.sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def worst_images(table: pandas.DataFrame, n: int = 6) -> pandas.DataFrame:
    """Return the `n` images of lowest score, worst first (equal scores by image_id), with the gain of every kind.

    Returns
    -------
    DataFrame
        image_id, cell_type, group, split, score, main (the kind whose repair gives most; "" when nothing is lost), and
        gain_missed, gain_invented, ...: one column per kind.
    """
    about = ["image_id", "cell_type", "group", "split", "score"]
    wide = table.pivot(index="image_id", columns="kind", values="gain").reindex(columns=list(KINDS)).fillna(0.0)
    wide.columns = [f"gain_{kind}" for kind in KINDS]
    result = table[about].drop_duplicates("image_id").join(wide, on="image_id")
    values = result[list(wide.columns)].to_numpy(float)
    main = np.array(KINDS, object)[values.argmax(axis=1)]
    main[values.max(axis=1) <= 0] = ""
    result.insert(len(about), "main", main)
    return result.sort_values(["score", "image_id"], kind="stable").head(n).reset_index(drop=True)
