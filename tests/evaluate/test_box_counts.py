"""Counts against boxes: thresholds that make them right, where they are chosen, and what the tables say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.box_counts import (
    Threshold,
    box_totals,
    count_errors,
    count_thresholds,
    counted_cells,
    held_back,
    thresholds_table,
)
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


@given(st.integers(2, 60), st.floats(0.01, 0.99))
def test_training_images_are_parted_and_none_is_lost(count, share):
    images = data_of(*[cells_of()] * count)
    teach, choose = held_back(images, share)
    names = [r.image_id for part in (teach, choose) for r in part.records]
    assert sorted(names) == sorted(r.image_id for r in images.records) and len(teach) and len(choose)
    assert abs(len(choose) - share * count) <= 1 or len(choose) in (1, count - 1)


def test_one_training_image_cannot_be_parted():
    with pytest.raises(UserError, match="1 training image: some are to teach.*\ngive two or more"):
        held_back(data_of(cells_of()), 0.5)


def test_a_threshold_makes_the_count_that_of_the_boxes():
    boxes = data_of(cells_of(*ROW, boxes=True))
    found = cells_of(
        *[(x, 0, 9, 1, s) for x, s in ((0, 0.9), (10, 0.8), (20, 0.7), (40, 0.3), (50, 0.2))], (30, 0, 9, 2, 0.5)
    )
    rule = count_thresholds(boxes, [found], boxes)
    assert [(one.class_name, one.true, one.found) for one in rule] == [("red", 3, 3), ("white", 1, 1)]
    assert rule[0].least_score == pytest.approx(0.5) and rule[1].least_score == 0
    (counted,) = counted_cells([found], rule)
    assert np.bincount(counted.class_ids).tolist() == [0, 3, 1]
    assert thresholds_table(rule)["found"].tolist() == [3, 1]


def test_what_is_far_smaller_than_the_smallest_boxes_and_what_has_no_class_does_not_count():
    boxes = data_of(cells_of(*ROW, boxes=True))
    found = cells_of((0, 0, 5, 1, 0.9), (10, 0, 9, 1, 0.4), (20, 0, 9, 0, 0.9))
    rule = count_thresholds(boxes, [found], boxes)
    assert rule[0].least_area_px == 40 and rule[0].found == 1
    (counted,) = counted_cells([found], rule)
    assert counted.areas_px.tolist() == [81] and counted.class_ids.tolist() == [1]


def test_a_class_that_the_images_lack_is_not_counted_and_one_never_found_stays_open():
    boxes = data_of(cells_of(*ROW[:3], boxes=True))
    rule = count_thresholds(boxes, [cells_of((0, 0, 9, 2, 0.9))], boxes)
    assert rule == [Threshold("red", 0.0, 40, 3, 0), Threshold("white", 1.0, 0, 0, 0)]


@given(st.lists(st.tuples(st.integers(1, 2), st.floats(0, 1)), max_size=12), st.integers(0, 6), st.integers(0, 6))
def test_no_more_cells_count_than_there_are_boxes_unless_scores_tie(found, red, white):
    boxes = data_of(cells_of(*[(0, 0, 9, 1, 1)] * red, *[(0, 0, 9, 2, 1)] * white, boxes=True))
    cells = cells_of(*[(0, 0, 9, *one) for one in found])
    rule = count_thresholds(boxes, [cells], boxes)
    counted = counted_cells([cells], rule)[0]
    for k, one in enumerate(rule, 1):
        own = cells.scores[cells.class_ids == k]
        assert one.found == (counted.class_ids == k).sum()
        if len(set(own.tolist())) == len(own) and one.true:
            assert one.found == min(len(own), one.true)


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
