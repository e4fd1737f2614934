"""Cells counted against boxes: which count, their counts with errors, AP of boxes; thresholds are `box_reading`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.evaluate.box_reading import Threshold
from cellkit.evaluate.classes import count_by_class
from cellkit.scores.conventions import compare_conventions

if TYPE_CHECKING:
    import pandas


def counted_cells(found: Sequence[Instances], rule: Sequence[Threshold]) -> list[Instances]:
    """Return the cells that count: of each class those that reach its thresholds; cells of no class are left out."""
    least = np.array([[np.inf, np.inf], *((one.least_score, one.least_area_px) for one in rule)])
    kept = []
    for cells in found:
        score, area = least[cells.class_ids].T
        kept.append(cells[(cells.scores >= score) & (cells.areas_px >= area)])
    return kept


def thresholds_table(rule: Sequence[Threshold]) -> pandas.DataFrame:
    """Return how each class is read and counted as a table, see `cellkit.evaluate.box_reading.Threshold`."""
    import pandas as pd

    return pd.DataFrame(rule, columns=Threshold._fields)


def count_errors(truth: CellDataset, counted: Sequence[Instances]) -> pandas.DataFrame:
    """Count cells against boxes, per class and image.

    Parameters
    ----------
    truth : CellDataset
        The images with their boxes.
    counted : list of Instances
        The cells that count, one per image.

    Returns
    -------
    DataFrame
        split, image_id ("all" at the end of a split, see `count_by_class`), class_name, truth, found, difference,
        error_percent (of the boxes; NaN where there is none).
    """
    import pandas as pd

    by_image = dict(zip([record.image_id for record in truth.records], counted, strict=True))
    tables = [count_by_class(by_image, part, part).assign(split=split) for split, part in truth.by_split().items()]
    counts = pd.concat(tables, ignore_index=True)
    counts["difference"] = counts["found"] - counts["truth"]
    counts["error_percent"] = (100 * counts["difference"] / counts["truth"].where(counts["truth"] > 0)).round(1)
    return counts[["split", "image_id", "class_name", "truth", "found", "difference", "error_percent"]]


def box_totals(counts: pandas.DataFrame, truth: CellDataset, found: Sequence[Instances]) -> pandas.DataFrame:
    """Return counts over all images of each split, with their errors and how well the boxes of the cells lie.

    Parameters
    ----------
    counts : DataFrame
        Of `count_errors`.
    truth : CellDataset
        The images with their boxes.
    found : list of Instances
        What is ranked by its score, one per image: all that a model found, counted or not.

    Returns
    -------
    DataFrame
        split and class_name as its index; truth, found, difference, error_percent; images_wrong, in how many images the count
        is another; voc_ap50, Pascal VOC's AP at IoU 0.5 of the boxes around the cells (`cellkit.scores.voc`).
    """
    overall = counts["image_id"] == counts.groupby("split")["image_id"].transform("last")
    single = counts[~overall]
    wrong = (single["difference"] != 0).groupby([single["split"], single["class_name"]]).sum()
    table = counts[overall].drop(columns="image_id").set_index(["split", "class_name"])
    table["images_wrong"] = wrong.reindex(table.index)
    splits = np.array([record.split for record in truth.records])
    for split, part in truth.by_split().items():
        boxes = part.as_known([found[k] for k in np.flatnonzero(splits == split)])
        told = compare_conventions(part.instances, boxes, classes=part.classes, conventions=["voc"], bootstrap=0)
        for name, value in told["conventions"]["voc"]["by_class"].items():
            table.loc[(split, name), "voc_ap50"] = np.nan if value is None else round(value, 3)
    return table
