"""From detections to cells: each once, disjoint, none a sliver; and what is searched is what is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellkit.cells.instances import Instances
from cellkit.models import maskrcnn_detect
from cellkit.models.shared import detector_training
from cellkit.models.shared.detection_search import GRID, SEARCHED, readings, score_readings, search_readings
from cellkit.models.shared.detections import Reading, box_nms, read_detections, rescored, stand_apart
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.fine_tuning import SEARCHED_ON, images_to_search
from cellkit.models.shared.tiles import Boxes
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle

SHAPE = (48, 60)


def crowd(seed: int, count: int) -> Boxes:
    """Random boxes in a small image, so that many overlap, each with a mask of random height."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.uniform(0, 36, (count, 2)), rng.uniform(3, 20, (count, 2))
    height = rng.uniform(0.3, 1.0, (count, 1, 1))
    y, x = (np.arange(28) - 13.5)[:, None] / 14, (np.arange(28) - 13.5)[None] / 14
    masks = height * np.clip(1.4 - np.hypot(x, y), 0, 1)
    return Boxes(np.hstack([corners, corners + sizes]), rng.uniform(0.05, 1, count), masks.astype(np.float32))


def squares(*corners: tuple[int, int], size: int = 10, scores=None) -> Boxes:
    boxes = np.array([[x, y, x + size, y + size] for x, y in corners], float)
    scores = np.linspace(0.9, 0.6, len(boxes)) if scores is None else np.array(scores)
    return Boxes(boxes, scores, np.ones((len(boxes), 28, 28), np.float32))


crowds = st.builds(crowd, st.integers(0, 10**6), st.integers(0, 25))
some_readings = st.builds(
    Reading,
    score_threshold=st.sampled_from([0.1, 0.4]),
    nms_threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    mask_threshold=st.sampled_from([0.3, 0.5]),
    mask_nms_threshold=st.sampled_from([0.1, 0.5, 1.0]),
    covered_share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    min_area_px=st.sampled_from([1, 20]),
    mask_score=st.booleans(),
)


# ---- by eye --------------------------------------------------------------------------------------------------------
def test_a_second_sight_goes_a_neighbour_stays_and_a_sliver_is_left_out_and_counted():
    found = squares((0, 0), (1, 0), (12, 0), (9, 0), (30, 30))
    left_out = Counter()
    cells, places = read_detections(found, SHAPE, Reading(nms_threshold=0.8, covered_share=0.2), left_out)
    assert places.tolist() == [0, 2, 4] and cells.areas_px.tolist() == [100, 100, 100]
    assert left_out == {}, "one is the first once more, the other mostly the third"
    found = squares((0, 0), (13, 0), (6, 0))
    cells, places = read_detections(found, SHAPE, Reading(covered_share=0.2), left_out)
    assert places.tolist() == [0, 1] and left_out == {
        "left out: other cells cover more than covered_share = 0.2 of it": 1
    }
    trimmed, _ = read_detections(found, SHAPE, Reading(covered_share=1.0))
    assert trimmed.areas_px.tolist() == [100, 100, 30], "which would have been a sliver"


def test_two_that_cover_the_same_pixels_are_counted_once():
    found = squares((0, 0), (2, 0), (7, 0), scores=[0.9, 0.8, 0.7])  # both reach into the third, 3 and 5 columns of it
    masks = [np.zeros(SHAPE, bool) for _ in range(3)]
    for mask, (x0, _, x1, _) in zip(masks, found.boxes.astype(int), strict=True):
        mask[:10, x0:x1] = True
    objects = Instances.from_masks(masks, SHAPE, scores=found.scores)
    kept, _ = stand_apart(objects, overlaps(objects, objects), 1.0, 0.9)
    assert kept.all(), "5 of 10 columns of the third are covered, not 8"
    assert stand_apart(objects, overlaps(objects, objects), 1.0, 0.79)[0].tolist() == [True, False, True]
    assert stand_apart(objects, overlaps(objects, objects), 1.0, 0.49)[0].tolist() == [True, False, True]
    assert stand_apart(objects, overlaps(objects, objects), 1.0, 0.29)[0].tolist() == [True, False, False]


def test_a_faint_mask_loses_its_rank_among_masks_and_not_its_box_among_boxes():
    found = squares((0, 0), (1, 0), scores=[0.9, 0.8])
    found.masks[0] *= 0.6
    by_masks = {"nms_threshold": 1.0, "mask_nms_threshold": 0.5}
    assert read_detections(found, SHAPE, Reading(**by_masks))[1].tolist() == [0]
    cells, places = read_detections(found, SHAPE, Reading(mask_score=True, **by_masks))
    assert places.tolist() == [1] and cells.scores.tolist() == [0.8]
    assert rescored(found, Reading(mask_score=True)).round(3).tolist() == [0.54, 0.8]
    assert read_detections(found, SHAPE, Reading(mask_score=True))[1].tolist() == [0], "as a network cuts boxes itself"


def test_small_ones_win_no_pixel_and_are_counted():
    left_out = Counter()
    small = squares((2, 2), size=3, scores=[0.95])
    both = Boxes.joined([small, squares((0, 0), scores=[0.6])])
    cells, places = read_detections(both, SHAPE, Reading(min_area_px=20), left_out)
    assert places.tolist() == [1] and cells.areas_px.tolist() == [100]
    assert left_out == {"left out: smaller than min_area_px = 20 px": 1}


def test_nothing_is_found_in_nothing():
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 28, 28), np.float32))
    cells, places = read_detections(nothing, SHAPE, Reading(mask_score=True, covered_share=0.2))
    assert len(cells) == len(places) == 0 and cells.shape == SHAPE
    assert box_nms(nothing.boxes, nothing.scores, 0.5).tolist() == []


# ---- whatever is found ---------------------------------------------------------------------------------------------
@given(crowds, some_readings)
def test_cells_are_disjoint_large_enough_and_what_stands_apart(found, reading):
    cells, places = read_detections(found, SHAPE, reading)
    assert not cells.overlapping and len(cells) == len(places) == len(set(places.tolist()))
    assert (cells.areas_px >= reading.min_area_px).all() and (cells.scores > reading.score_threshold).all()
    assert np.array_equal(cells.scores, rescored(found, reading)[places])
    again, _ = read_detections(found, SHAPE, reading)
    assert again == cells


@given(crowds, some_readings, st.sampled_from([0.3, 0.5, 0.7]))
def test_a_higher_threshold_of_the_score_leaves_the_cells_above_it_as_they_are(found, reading, higher):
    cells, places = read_detections(found, SHAPE, reading)
    fewer, which = read_detections(found, SHAPE, Reading(**(vars(reading) | {"score_threshold": higher})))
    kept = cells.scores > max(higher, reading.score_threshold)
    if higher >= reading.score_threshold:
        assert fewer == cells[kept] and np.array_equal(which, places[kept])


@given(crowds, st.sampled_from([0.0, 0.2, 0.5]))
def test_no_cell_is_trimmed_by_more_than_the_share(found, share):
    whole = Reading(nms_threshold=1.0, score_threshold=0.0, covered_share=share, min_area_px=0)
    cells, places = read_detections(found, SHAPE, whole)
    alone = [read_detections(found[[k]], SHAPE, whole)[0].areas_px[0] for k in places]
    assert (cells.areas_px >= np.array(alone) * (1 - share) - 1e-9).all()


# ---- the search ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_every_combination_scores_what_its_cells_score(seed):
    found = crowd(seed, 25)
    truth, _ = read_detections(crowd(seed, 9), SHAPE, Reading(score_threshold=0.0, min_area_px=1))
    grid = GRID | {"score_threshold": (0.4, 0.1, 0.6), "min_area_px": (15, 40)}
    scores = score_readings(found, truth, grid)
    rng = np.random.default_rng(seed)
    for place in (tuple(int(rng.integers(n)) for n in scores.shape) for _ in range(40)):
        reading = Reading(**{name: values[k] for (name, values), k in zip(grid.items(), place, strict=True)})
        cells, _ = read_detections(found, SHAPE, reading)
        assert scores[place] == kaggle([overlaps(truth, cells)], bootstrap=0)["score"]


def test_the_search_finds_what_helps_every_image_and_leaves_what_is_set():
    pairs = []
    for shift in range(4):  # faint cells, all of them right
        found = squares((0, shift), (15, shift), (30, shift), scores=[0.25, 0.25, 0.25])
        truth, _ = read_detections(found, SHAPE, Reading(score_threshold=0.1))
        pairs.append((found, truth))
    grid = readings(DEFAULTS, SEARCHED, [truth for _, truth in pairs])
    searched = search_readings(pairs, grid, SEARCHED, "MAP IoU", "")
    assert searched.settings == {
        "score_threshold": 0.2, "nms_threshold": 0.5, "mask_threshold": 0.5, "min_area_px": 15,
    }  # fmt: skip
    assert (searched.card["images"], searched.card["cells"], searched.card["score"]) == (4, 12, 1)
    assert set(searched.card["settings"]) == set(SEARCHED)


def test_where_nothing_is_right_the_defaults_stay_and_that_is_said(capsys):
    truth, _ = read_detections(squares((20, 20)), SHAPE, Reading())
    grid = readings(DEFAULTS, SEARCHED, [truth])
    searched = search_readings([(squares((0, 0)), truth)], grid, SEARCHED, "MAP IoU", "Train longer.")
    assert searched.settings == {key: DEFAULTS[key] for key in SEARCHED} and not searched.card
    assert "no cell of 1 training image is right, whatever the thresholds" in capsys.readouterr().err
    empty = squares((0, 0), scores=[0.0])  # an image without cells, in which nothing is found, is no hope
    search_readings([(squares((0, 0)), truth), (empty, truth[:0])], grid, SEARCHED, "MAP IoU", "Train longer.")
    assert "no cell of 2 training images is right, whatever the thresholds" in capsys.readouterr().err


# ---- by line -------------------------------------------------------------------------------------------------------
def test_an_image_is_read_as_the_line_of_most_of_its_cells(monkeypatch):
    found = squares((0, 0), (15, 0), (30, 0), (0, 30), scores=[0.9, 0.8, 0.7, 0.3])
    for classes, cells in (([2, 2, 1, 1], 4), ([1, 1, 2, 2], 3)):  # of line 2 what is scored 0.3 is a cell, too
        shown = (found, np.zeros((3, *SHAPE), np.float32))
        monkeypatch.setattr(maskrcnn_detect, "raw_detections", lambda *given, shown=shown: shown)
        told = np.eye(2)[np.array(classes) - 1]
        monkeypatch.setattr(maskrcnn_detect.SeenByDetector, "_logits_of", lambda self, places, told=told: told[places])
        settings = DEFAULTS | {"by_line": {"2": {"score_threshold": 0.2}}}
        model = SimpleNamespace(cell_classifier=None)
        assert len(maskrcnn_detect.detect_image(model, np.zeros((*SHAPE, 3), np.uint8), settings)) == cells


def test_thresholds_of_a_line_are_searched_on_its_images(caplog):
    raws = []
    for line, score in ((1, 0.25), (1, 0.25), (1, 0.25), (2, 0.9)):
        found = squares((0, 0), (15, 0), scores=[score, score])
        truth, _ = read_detections(found, SHAPE, Reading(score_threshold=0.1))
        raws.append((found, truth.with_classes(line)))
    by_line = detector_training._by_line(raws, DEFAULTS, SEARCHED, "MAP IoU", ("cort", "astro", "shsy5y"))
    assert set(by_line) == {"1"} and by_line["1"]["score_threshold"] == 0.2, "one image of line 2 is too few"
    assert "MAP IoU, class cort" in caplog.text and "class astro: 1 image to search on" in caplog.text
    assert "class shsy5y: 0 images to search on, so its images are read as all are" in caplog.text


def test_each_of_three_lines_has_images_to_search_on(drawn):
    lines = [1] * 9 + [2] * 3 + [3] * 2
    train = drawn.subset([0] * len(lines))
    train = replace(train, instances=[x.with_classes(k) for x, k in zip(train.instances, lines, strict=True)])
    line = lambda truth: maskrcnn_detect.line_of(truth.class_ids)  # noqa: E731
    count = lambda pairs: Counter(line(truth) for _, truth in pairs)  # noqa: E731
    assert count(images_to_search(train, line)[0]) == {"1": SEARCHED_ON, "2": 3, "3": 2}
    assert sum(count(images_to_search(train)[0]).values()) == SEARCHED_ON == 6
