"""Counts against boxes: which cells count, and what the tables say."""

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.evaluate.box_counts import box_totals, count_errors
from cellkit.evaluate.evaluation import OF_BOXES, of_images, read_truths, score_models
from cellkit.formats.coco import write_dataset

SHAPE = (40, 60)


def cells_of(*rows, boxes=False):
    """Cells (x, y, side, class, score): squares."""
    table = np.array(rows, float).reshape(-1, 5)
    xywh = np.column_stack([table[:, :2], table[:, 2], table[:, 2]]).astype(int)
    found = Instances.from_boxes(xywh, SHAPE, table[:, 3].astype(int), table[:, 4])
    masks = Instances.from_masks([found.mask(k) for k in range(len(found))], SHAPE, found.class_ids, found.scores)
    return found if boxes else masks


def data_of(*instances, splits=None, classes=("red", "white")):
    names = [f"i{k}" for k in range(len(instances))]
    splits = splits or ["train"] * len(instances)
    records = [ImageRecord(n, f"{n}.png", *SHAPE, split=s) for n, s in zip(names, splits, strict=True)]
    return CellDataset(
        records, list(instances), classes, ids=list(range(1, len(names) + 1)), made_by=["truth"] * len(names)
    )


ROW = [(0, 0, 9, 1, 1), (10, 0, 9, 1, 1), (20, 0, 9, 1, 1), (30, 0, 9, 2, 1)]


def test_counts_per_class_and_image_and_the_totals_with_ap():
    boxes = data_of(*[cells_of(*ROW, boxes=True)] * 3, splits=["val", "val", "test"])
    some = cells_of(*ROW[:2], (30, 0, 9, 2, 0.9), (45, 20, 9, 1, 0.1))
    found = [some, cells_of(*ROW), cells_of()]
    counts = count_errors(boxes, found)
    assert counts.columns.tolist() == [
        "split",
        "image_id",
        "class_name",
        "truth",
        "found",
        "difference",
        "error_percent",
    ]
    assert counts["image_id"].tolist() == ["i0", "i0", "i1", "i1", "all", "all", "i2", "i2", "all", "all"]
    totals = box_totals(counts, boxes, found)
    assert totals.loc[("val", "red"), ["truth", "found", "difference", "error_percent"]].tolist() == [6, 6, 0, 0]
    assert totals.loc[("test", "red"), ["truth", "found", "error_percent"]].tolist() == [3, 0, -100]
    assert totals.loc[("val", "red"), "voc_ap50"] == pytest.approx(5 / 6, abs=1e-3)
    assert totals["voc_ap50"].tolist()[1:] == [1, 0, 0]
    less = count_errors(boxes, [some[:2], *found[1:]])
    assert box_totals(less, boxes, found).loc[("val", "white"), "images_wrong"] == 1


def test_boxes_are_the_truth_that_06_scores_against_and_it_says_so(tmp_path, capfd):
    boxes = data_of(*[cells_of(*ROW, boxes=True)] * 2, splits=["val", "test"])
    paths = {f"coco_{s}": write_dataset(tmp_path / f"{s}.json", part) for s, part in boxes.by_split().items()}
    truths = read_truths(paths, tmp_path)
    assert OF_BOXES in capfd.readouterr().err and all(part.boxes_only for part in truths.values())
    rows, columns = np.indices(SHAPE)
    discs = [(rows - 4) ** 2 + (columns - x - 4) ** 2 <= 4.2**2 for x, *_ in ROW]
    round_cells = Instances.from_masks(discs, SHAPE, [1, 1, 1, 2])
    predictions = {"round": {"i0": round_cells, "i1": round_cells}}
    assert of_images(predictions["round"], truths["val"]) == [round_cells.as_boxes()]
    assert of_images(predictions["round"], boxes.with_records(boxes.records))[0].boxes_only
    scores = score_models(predictions, truths)
    assert (scores["fp"].sum(), scores["fn"].sum()) == (0, 0), "the boxes around the discs are the boxes"
