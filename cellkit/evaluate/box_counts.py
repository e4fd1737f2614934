"""Cells counted against boxes: thresholds of each class that make counts right, counts with their errors, AP of boxes.

The thresholds are chosen on training images that taught nothing (`held_back`); validation and test images judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cellkit.cells.dataset import CellDataset, evenly_spaced
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.classes import count_by_class
from cellkit.scores.conventions import compare_conventions

if TYPE_CHECKING:
    import pandas

SMALL, LEAST_SHARE = 2.0, 0.5  # a cell may be as small as that share of the box that this per cent are smaller than


class Threshold(NamedTuple):
    """What a cell of one class must have to be counted, and how many the images that chose it have: true, and found so."""

    class_name: str
    least_score: float
    least_area_px: int
    true: int
    found: int


def held_back(train: CellDataset, share: float) -> tuple[CellDataset, CellDataset]:
    """Return the images that teach, and those held back for counting: every so many of them, at least one of each.

    Raises
    ------
    UserError
        Fewer than two images.

    Examples
    --------
    >>> from cellkit.cells.records import ImageRecord
    >>> images = CellDataset([ImageRecord(str(k), "", 4, 4) for k in range(10)], [Instances.empty((4, 4))] * 10)
    >>> teach, count = held_back(images, 0.2)
    >>> len(teach), [record.image_id for record in count.records]
    (8, ['0', '9'])
    """
    if len(train) < 2:
        raise UserError(
            f"{len(train)} training image: some are to teach, and others to choose thresholds by", "give two or more"
        )
    most = min(max(round(share * len(train)), 1), len(train) - 1)
    kept = np.isin(np.arange(len(train)), evenly_spaced(len(train), most))
    return train.subset(~kept), train.subset(kept)


def count_thresholds(boxes: CellDataset, found: Sequence[Instances], taught: CellDataset) -> list[Threshold]:
    """Choose, for each class, the score from which on as many cells are found as there are boxes.

    Before that, cells are left out that are smaller than `LEAST_SHARE` of the box that `SMALL` per cent of the class's boxes are
    smaller than. Where fewer cells are found than there are boxes, every one counts, and `Threshold.found` says how many.

    Parameters
    ----------
    boxes : CellDataset
        Images that choose, with their boxes.
    found : list of Instances
        What the model found in them.
    taught : CellDataset
        The training images, whose boxes say how small a cell may be.
    """
    rule = []
    for k, name in enumerate(boxes.classes, 1):
        sizes = np.concatenate([cells.areas_px[cells.class_ids == k] for cells in taught.instances])
        least_px = int(LEAST_SHARE * np.percentile(sizes, SMALL)) if len(sizes) else 0
        scores = [x.scores[(x.class_ids == k) & (x.areas_px >= least_px)] for x in found]
        ranked = np.sort(np.concatenate([np.zeros(0), *scores]))[::-1]
        true = sum(int((cells.class_ids == k).sum()) for cells in boxes.instances)
        if true == 0:
            least = 1.0 if len(ranked) else 0.0
        else:
            least = float(ranked[true - 1 : true + 1].mean()) if len(ranked) > true else 0.0
        rule.append(Threshold(name, least, least_px, true, int((ranked >= least).sum())))
    return rule


def counted_cells(found: Sequence[Instances], rule: Sequence[Threshold]) -> list[Instances]:
    """Return the cells that count: of each class those that reach its thresholds; cells of no class are left out."""
    least = np.array([[np.inf, np.inf], *((one.least_score, one.least_area_px) for one in rule)])
    kept = []
    for cells in found:
        score, area = least[cells.class_ids].T
        kept.append(cells[(cells.scores >= score) & (cells.areas_px >= area)])
    return kept


def thresholds_table(rule: Sequence[Threshold]) -> pandas.DataFrame:
    """Return the thresholds as a table: class_name, least_score, least_area_px, true, found in the images that chose them."""
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
        split, image_id ("all" at the end of a split), class_name, truth, found, difference, error_percent (of the boxes; NaN
        where there is none).
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
    single = counts[counts["image_id"] != "all"]
    wrong = (single["difference"] != 0).groupby([single["split"], single["class_name"]]).sum()
    table = counts[counts["image_id"] == "all"].drop(columns="image_id").set_index(["split", "class_name"])
    table["images_wrong"] = wrong.reindex(table.index)
    splits = np.array([record.split for record in truth.records])
    for split, part in truth.by_split().items():
        boxes = part.as_known([found[k] for k in np.flatnonzero(splits == split)])
        told = compare_conventions(part.instances, boxes, classes=part.classes, conventions=["voc"], bootstrap=0)
        for name, value in told["conventions"]["voc"]["by_class"].items():
            table.loc[(split, name), "voc_ap50"] = np.nan if value is None else round(value, 3)
    return table
