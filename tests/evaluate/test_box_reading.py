"""How each class is read and counted by boxes: on images that their network has not seen, and so that counts are right."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_box_counts import ROW, SHAPE, cells_of, data_of

from cellkit.cells.instances import Instances
from cellkit.evaluate.box_counts import counted_cells, thresholds_table
from cellkit.evaluate.box_reading import GRID, Threshold, count_thresholds, parted, read_by_class, readings_of
from cellkit.models.shared.live import Live, Reading

WAYS = list(product(*GRID.values()))
PLAIN = WAYS[0]


def in_all_ways(found, **other):
    """What one image's cells are, whichever way it is read; `other` names those of one way."""
    return {way: found for way in WAYS} | {WAYS[int(k[1:])]: cells for k, cells in other.items()}


def test_a_threshold_makes_the_count_that_of_the_boxes():
    boxes = data_of(cells_of(*ROW, boxes=True))
    found = cells_of(
        *[(x, 0, 9, 1, s) for x, s in ((0, 0.9), (10, 0.8), (20, 0.7), (40, 0.3), (50, 0.2))], (30, 0, 9, 2, 0.5)
    )
    rule = count_thresholds(boxes, [in_all_ways(found)])
    assert [(one.class_name, one.true, one.found, one.f1) for one in rule] == [("red", 3, 3, 1), ("white", 1, 1, 1)]
    assert rule[0].least_score == pytest.approx(0.5) and rule[1].least_score == 0
    assert {one.reading for one in rule} == {PLAIN}, "what gains nothing changes nothing"
    (counted,) = counted_cells([found], rule)
    assert np.bincount(counted.class_ids).tolist() == [0, 3, 1]
    assert thresholds_table(rule)["found"].tolist() == [3, 1]


def test_a_class_is_read_the_way_that_hits_most_of_its_boxes_and_the_others_as_suits_them():
    boxes = data_of(*[cells_of(*ROW, boxes=True)] * 4)
    melted = Instances.concatenate([cells_of((0, 0, 19, 1, 0.9)), cells_of(*ROW[2:])])
    rule = count_thresholds(boxes, [in_all_ways(melted, w4=cells_of(*ROW[:3]))] * 4)
    assert [one.reading for one in rule] == [WAYS[4], PLAIN] and [one.found for one in rule] == [12, 4]


def test_a_way_whose_count_is_off_by_more_than_chance_is_not_taken():
    row = [(10 * (k % 6), 10 * (k // 6), 9, 1, 1) for k in range(24)]
    boxes = data_of(*[cells_of(*row, boxes=True)] * 3)
    few = cells_of(*row[:16])
    moved = cells_of(
        *row[:15],
        *[(x + 5, y, 9, 1, 0.8) for x, y, *_ in row[15:17]],
        *[(x, y + 1, 8, 1, 0.8) for x, y, *_ in row[17:]],
    )
    (red, _) = count_thresholds(boxes, [in_all_ways(few, w3=moved)] * 3)
    assert red.reading == WAYS[3] and red.found == red.true == 72


def test_what_is_far_smaller_than_the_smallest_boxes_and_what_has_no_class_does_not_count():
    boxes = data_of(cells_of(*ROW, boxes=True))
    found = cells_of((0, 0, 5, 1, 0.9), (10, 0, 9, 1, 0.4), (20, 0, 9, 0, 0.9))
    rule = count_thresholds(boxes, [in_all_ways(found)])
    assert rule[0].least_area_px == 40 and rule[0].found == 1
    (counted,) = counted_cells([found], rule)
    assert counted.areas_px.tolist() == [81] and counted.class_ids.tolist() == [1]


def test_a_class_that_the_images_lack_is_not_counted_and_one_never_found_stays_open():
    boxes = data_of(cells_of(*ROW[:3], boxes=True))
    rule = count_thresholds(boxes, [in_all_ways(cells_of((0, 0, 9, 2, 0.9)))])
    assert rule == [Threshold("red", *PLAIN, 0.0, 40, 3, 0, 0.0), Threshold("white", *PLAIN, 1.0, 0, 0, 0, 0.0)]


@given(st.lists(st.tuples(st.integers(1, 2), st.floats(0, 1)), max_size=12), st.integers(0, 6), st.integers(0, 6))
def test_no_more_cells_count_than_there_are_boxes_unless_scores_tie(found, red, white):
    boxes = data_of(cells_of(*[(0, 0, 9, 1, 1)] * red, *[(0, 0, 9, 2, 1)] * white, boxes=True))
    cells = cells_of(*[(0, 0, 9, *one) for one in found])
    rule = count_thresholds(boxes, [in_all_ways(cells)])
    counted = counted_cells([cells], rule)[0]
    for k, one in enumerate(rule, 1):
        own = cells.scores[cells.class_ids == k]
        assert one.found == (counted.class_ids == k).sum()
        if len(set(own.tolist())) == len(own) and one.true:
            assert one.found == min(len(own), one.true)


# ---- necks -----------------------------------------------------------------------------------------------------------
def two_discs(apart_px: int, radius: int = 9) -> Instances:
    y, x = np.mgrid[:40, :60]
    either = [(y - 20) ** 2 + (x - at) ** 2 <= radius**2 for at in (14, 14 + apart_px)]
    return Instances.from_masks([either[0] | either[1]], (40, 60), [2], [0.7])


def test_two_discs_that_touch_are_parted_at_their_neck_and_a_disc_or_a_long_cell_is_not():
    whole = two_discs(16)
    parts = parted(whole, 0.1)
    assert len(parts) == 2 and parts.class_ids.tolist() == [2, 2] and parts.scores.tolist() == [0.7, 0.7]
    assert parts.areas_px.sum() == whole.areas_px.sum() and not parts.overlapping
    assert np.ptp(parts.areas_px) <= 0.1 * parts.areas_px.max(), "in the middle"
    assert parted(two_discs(0), 0.1) == two_discs(0)
    assert [len(parted(two_discs(12), share)) for share in (0.1, 0.25)] == [2, 1], "a shallow neck"
    assert len(parted(two_discs(5), 0.1)) == 1 and len(parted(whole, 0.9)) == 1
    assert parted(whole, 0.0) is whole and not len(parted(Instances.empty(SHAPE), 0.1))


@given(st.integers(0, 30), st.sampled_from(GRID["neck_share"]))
def test_parting_loses_no_pixel(apart_px, neck_share):
    cells = two_discs(apart_px)
    assert (parted(cells, neck_share).paint() > 0).tolist() == (cells.paint() > 0).tolist()


# ---- a model read by class -------------------------------------------------------------------------------------------
def model_of(by_weight: dict) -> Live:
    """A model that finds what is given, by the weight of the border."""
    return Live(lambda image: lambda changed, left_out, quick: Reading(by_weight[changed["border_weight"]]), {}, {})


def test_each_class_comes_from_its_own_reading_and_no_pixel_is_in_two_cells():
    one = Instances.concatenate([cells_of((0, 0, 9, 1, 0.9)), cells_of((30, 0, 9, 2, 0.5))])
    other = Instances.concatenate([cells_of((0, 0, 9, 1, 0.9), (20, 0, 15, 1, 0.4)), cells_of((30, 0, 9, 2, 0.6))])
    model = model_of({1.0: one, 2.0: other})
    rule = [Threshold("red", 2.0, 0.0, 0, 0, 0, 0, 0), Threshold("white", 1.0, 0.0, 0, 0, 0, 0, 0)]
    (found,) = read_by_class(model, rule)([np.zeros((*SHAPE, 3), np.uint8)])
    assert found.class_ids.tolist() == [1, 1, 2] and found.areas_px.tolist() == [81, 225 - 45, 81]
    same = [row._replace(border_weight=1.0) for row in rule]
    assert list(read_by_class(model, same)([np.zeros((*SHAPE, 3), np.uint8)])) == [one]


def test_all_ways_are_read_from_one_look():
    found = readings_of(model_of(dict.fromkeys(GRID["border_weight"], two_discs(16))).look(None))
    assert list(found) == WAYS and {way: len(cells) for way, cells in found.items()}[1.0, 0.1] == 2
    assert Counter(map(len, found.values())) == {1: 3, 2: 6}
