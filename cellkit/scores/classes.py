"""Classes of matched cells: how often they are right, and how many cells of each class were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.scores.iou import Overlaps, overlap_images
from cellkit.scores.matching import match_pairs, ratio

if TYPE_CHECKING:
    import pandas


def classes_of_truth(pairs: Sequence[Overlaps]) -> list[int]:
    """Return the known classes of the truth, ascending."""
    return sorted({int(k) for image in pairs for k in np.unique(image.truth_classes)} - {0})


def class_name_of(class_id: int, classes: Sequence[str]) -> str:
    """Return the name of a class, its number where it has none."""
    return classes[class_id - 1] if 1 <= class_id <= len(classes) else str(class_id) if class_id else "unknown"


def class_accuracy(
    truths: Sequence[Instances], founds: Sequence[Instances], ignore_unknown: bool = True, classes: Sequence[str] = ()
) -> tuple[float, int, pandas.DataFrame]:
    """Compare the classes of matched cells (IoU > 0.5).

    Parameters
    ----------
    ignore_unknown : bool
        Leave out cells whose true class is unknown (0).
    classes : list of str
        Names of class 1, 2, ...

    Returns
    -------
    accuracy : float
        nan when no cell is matched.
    n : int
        Cells compared.
    confusion : DataFrame
        Rows truth, columns found.
    """
    import pandas as pd

    true, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for image in overlap_images(truths, founds):
        i, j = match_pairs(image)
        true.append(image.truth_classes[i])
        found.append(image.found_classes[j])
    true, found = np.concatenate(true), np.concatenate(found)
    if ignore_unknown:
        true, found = true[true > 0], found[true > 0]
    size = max([len(classes), *true.tolist(), *found.tolist()]) + 1
    table = np.bincount(true * size + found, minlength=size * size).reshape(size, size)
    names = [class_name_of(k, classes) for k in range(size)]
    confusion = pd.DataFrame(table, pd.Index(names, name="truth"), pd.Index(names, name="found"))
    if not table[0].any() and not table[:, 0].any():
        confusion = confusion.iloc[1:, 1:]
    return float(ratio((true == found).sum(), len(true))), len(true), confusion


def counts_by_class(founds: Sequence[Instances], classes: Sequence[str]) -> pandas.DataFrame:
    """Count the objects of each class over all images: columns class_name, cells, share ("unknown" last, when any).

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 2, 3, 4]]), class_ids=[1, 1, 2, 1])
    >>> counts_by_class([cells], ["HEK", "N2a"]).to_dict("list")
    {'class_name': ['HEK', 'N2a'], 'cells': [3, 1], 'share': [0.75, 0.25]}
    """
    import pandas as pd

    ids = np.concatenate([np.zeros(0, np.int64)] + [found.class_ids for found in founds])
    cells = np.bincount(ids, minlength=len(classes) + 1)
    order = [*range(1, len(cells)), *([0] if cells[0] else [])]
    names = [class_name_of(k, classes) for k in order]
    return pd.DataFrame({"class_name": names, "cells": cells[order], "share": ratio(cells[order], cells.sum())})
