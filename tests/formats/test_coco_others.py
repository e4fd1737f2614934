"""COCO files and other tools: they score ours right, ours reads theirs, polygons among them."""

import contextlib
import copy
import io
import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from coco_cases import PLACE, SHAPE, WORKED, a_file, annotation, image, refused, saved, worked
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco, read_results


def read_masks(tmp_path, *segmentations, shape=SHAPE):
    rows = [annotation(id=k, segmentation=s, score=1) for k, s in enumerate(segmentations, 1)]  # empty ones stay
    images = [{"id": 1, "file_name": "a.png", "height": shape[0], "width": shape[1]}]
    (found,) = read_coco(saved(tmp_path, a_file(images=images, annotations=rows))).instances
    return found


# ---- other tools score it right ------------------------------------------------------------------------------------


def five_cells():
    return Instances.from_labels(np.kron(np.eye(5, dtype=int) * np.arange(1, 6), np.ones((6, 6), int)))


def mean_ap(truth, results, most=100):
    """Score with pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = copy.deepcopy(truth)
        known.createIndex()
        run = COCOeval(known, known.loadRes(copy.deepcopy(results)), "segm")
        run.params.maxDets = [1, 10, most]
        run.evaluate()
        run.accumulate()
        precision = run.eval["precision"][:, :, :, 0, 2]
    return float(precision[precision > -1].mean())


def truth_and_results(tmp_path, cells, ids=(1,)):
    records = [image(k, cells.shape) for k in ids]
    known = cells.with_classes(1)
    truth = write_coco(tmp_path / "t.json", records, [known] * len(ids), ["HEK"], ids)
    results = write_results(tmp_path / "r.json", ids, [known] * len(ids))
    return json.loads(truth.read_text()), json.loads(results.read_text())


def test_annotation_ids_start_at_1_because_pycocotools_loses_a_match_of_id_0(tmp_path):
    truth, results = truth_and_results(tmp_path, five_cells())
    assert [row["id"] for row in truth["annotations"]] == [1, 2, 3, 4, 5]
    assert mean_ap(truth, results) == pytest.approx(1)
    from_zero = truth | {"annotations": [row | {"id": row["id"] - 1} for row in truth["annotations"]]}
    assert mean_ap(from_zero, results) == pytest.approx(0.6416, abs=1e-4)  # upstream
    ids = read_coco(saved(tmp_path, from_zero)).instances  # harmless here: ids are not kept
    assert ids == [five_cells().with_classes(1)]


def test_annotation_ids_are_unique_over_images(tmp_path):
    truth, results = truth_and_results(tmp_path, five_cells(), ids=(2, 5))
    assert [row["id"] for row in truth["annotations"]] == list(range(1, 11))
    assert mean_ap(truth, results) == pytest.approx(1)


def test_more_than_100_cells_need_a_higher_cap_upstream_and_none_here(tmp_path):
    many = Instances.from_labels(np.arange(1, 145).reshape(12, 12))
    truth, results = truth_and_results(tmp_path, many)
    assert mean_ap(truth, results) < 0.75  # upstream, maxDets 100
    assert mean_ap(truth, results, most=2000) == pytest.approx(1)
    coco = read_coco(saved(tmp_path, truth))
    assert read_results(saved(tmp_path, results), coco) == coco.instances


def test_an_empty_results_list_is_no_cell_where_pycocotools_fails(tmp_path):
    truth, _ = truth_and_results(tmp_path, five_cells())
    with pytest.raises(IndexError):
        mean_ap(truth, [])  # upstream
    (found,) = read_results(saved(tmp_path, "[]", "r.json"), read_coco(saved(tmp_path, truth)))
    assert (len(found), found.shape) == (0, (30, 30))
    assert read_results(saved(tmp_path, "[]"), {}) == []


def test_a_nan_score_is_refused_where_pycocotools_calls_it_perfect(tmp_path):
    truth, results = truth_and_results(tmp_path, five_cells())
    worst = [row | {"score": math.nan} for row in results]
    assert mean_ap(truth, worst) == pytest.approx(1)  # upstream
    coco = read_coco(saved(tmp_path, truth))
    assert "score is nan" in refused(tmp_path, worst, lambda path: read_results(path, coco))


# ---- read what others wrote ----------------------------------------------------------------------------------------


def test_a_bare_file_is_read(tmp_path):
    coco = read_coco(saved(tmp_path, a_file()))
    (record,) = coco.records
    assert (record.image_id, record.path, record.height_px, record.width_px) == ("a", "images/a.png", 3, 4)
    assert (record.split, math.isnan(record.um_per_px)) == ("", True)
    assert coco.instances == [worked(class_ids=[1])]
    assert (coco.classes, coco.ids) == (("HEK",), [1])


def test_ids_may_be_texts_or_whole_floats_and_lists_may_be_in_any_order(tmp_path):
    data = a_file(
        images=[PLACE | {"id": "9", "height": 3.0, "width": "4"}, PLACE | {"id": 2.0}],
        categories=[{"id": 5, "name": "N2a"}, {"id": 3, "name": "HEK"}, {"id": 4, "name": "unknown"}],
        annotations=[
            annotation(id=4, image_id="2", category_id="5"),
            annotation(id=2, image_id=9, category_id=3.0),
            annotation(id="x1", image_id=2, category_id=4),
            annotation(id="x2", image_id=2, category_id=3),
        ],
    )  # fmt: skip
    coco = read_coco(saved(tmp_path, data))
    assert coco.ids == ["9", 2], "as the file has them"
    assert coco.classes == ("HEK", "N2a"), "classes by category id"
    assert [x.class_ids.tolist() for x in coco.instances] == [[1], [2, 0, 1]]


@pytest.mark.parametrize("ids", [(0, 1), (7, 0), ("6f3a", "a b"), ("007", "7"), (0.0, "x")])
@pytest.mark.parametrize("numbers", [(0, 7, 90), (1, 2, 3), ("h", "n", "o"), (90, 7, 0)])
def test_a_foreign_files_own_ids_go_back_into_a_results_list(tmp_path, ids, numbers):
    """Image ids from 0, texts; category 0 and gaps: read as they are, and written as they were."""
    rows = [annotation(id=k, image_id=ids[k % 2], category_id=numbers[k]) for k in range(3)]
    names = [{"id": number, "name": name} for number, name in zip(numbers, ("HEK", "N2a", "odd"), strict=True)]
    data = a_file(images=[PLACE | {"id": number} for number in ids], categories=names, annotations=rows)
    coco = read_coco(saved(tmp_path, data))
    named = [[coco.classes[k - 1] for k in cells.class_ids] for cells in coco.instances]
    assert (named, coco.ids) == ([["HEK", "odd"], ["N2a"]], list(ids))
    path = write_results(tmp_path / "r.json", coco, coco.instances)
    told = [(row["image_id"], row["category_id"]) for row in json.loads(path.read_text())]
    assert told == [(ids[0], numbers[0]), (ids[0], numbers[2]), (ids[1], numbers[1])]
    assert read_results(path, coco) == coco.instances
    loose = [cells.with_classes(0) for cells in coco.instances]
    if 0 in numbers:
        with pytest.raises(UserError, match="no class, and its category 0 is one"):
            write_results(tmp_path / "loose.json", coco, loose)
    else:
        assert read_results(write_results(tmp_path / "loose.json", coco, loose), coco) == loose


@pytest.mark.parametrize(
    ("categories", "classes"),
    [
        ([{"id": 0, "name": "HEK", "supercategory": "none"}, {"id": 1, "name": "HEK", "supercategory": "HEK"}], ("HEK",)),
        ([{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "HEK", "supercategory": "cells"},
          {"id": 2, "name": "N2a", "supercategory": "cells"}], ("HEK", "N2a")),
        ([{"id": 0, "name": "HEK"}, {"id": 1, "name": "HEK"}, {"id": 2, "name": "HEK"}], ("HEK",)),
        ([{"id": 1, "name": "HEK", "supercategory": "HEK"}, {"id": 2, "name": "N2a", "supercategory": "cell"}], ("HEK", "N2a")),
        ([{"id": 1, "name": "HEK", "supercategory": "none"}, {"id": 2, "name": "N2a", "supercategory": "HEK"}], ("HEK", "N2a")),
    ],
)  # fmt: skip
def test_a_category_that_only_heads_or_repeats_others_is_no_class(tmp_path, categories, classes):
    """Roboflow's root; a head that has annotations of its own stays a class, and so does an unused class."""
    coco = read_coco(saved(tmp_path, a_file(categories=categories)))
    assert (coco.classes, coco.instances[0].class_ids.tolist()) == (classes, [1])
    assert len(coco.notes) == len(categories) - len(classes)


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        ([[10, 8, 20, 12], [10.4, 7.6, 19.5, 12.5], None], ""),
        ([[10, 8, 30, 20], [10, 8, 20, 12], [10, 8, 30, 20]], "2 of 3 boxes contradict.*box 10, 8, 30, 20, mask 10, 8, 20, 12; "
         "they are corners x, y, x, y"),
        ([[10, 8, 0, 12], [10, 8, 20, 12]], "1 of 2 boxes contradict .* a: box 10, 8, 0, 12, mask 10, 8, 20, 12; the masks"),
    ],
)  # fmt: skip
def test_boxes_that_contradict_their_masks_are_told_once_and_the_masks_count(tmp_path, boxes, told):
    polygon = [[10, 8, 30, 8, 30, 20, 10, 20]]
    rows = [annotation(id=k, segmentation=polygon, bbox=box) for k, box in enumerate(boxes)]
    coco = read_coco(saved(tmp_path, a_file(images=[PLACE | {"height": 48, "width": 64}], annotations=rows)))
    assert coco.instances[0].boxes_xywh.tolist() == [[10, 8, 20, 12]] * len(boxes)
    assert len(coco.notes) == bool(told) and re.search(told, "".join(coco.notes))


def test_missing_area_and_iscrowd_and_extra_keys_do_no_harm(tmp_path):
    row = {"image_id": 1, "category_id": 1, "segmentation": WORKED, "area": "wrong", "bbox": None, "attributes": {}}
    data = a_file(annotations=[row], licenses=[], info=None)
    data["images"][0] |= {"license": 1, "flags": 7, "group": None, "um_per_px": "fine", "split": ["x"]}
    coco = read_coco(saved(tmp_path, data))
    assert coco.instances == [worked(class_ids=[1])]
    assert (coco.records[0].flags, coco.records[0].group, coco.records[0].split) == ("", "", "")


def test_crowd_regions_are_not_annotated_and_labelled_cells_in_them_are_known(tmp_path):
    rows = [annotation(id=1), annotation(id=2, iscrowd=1, segmentation={"size": [3, 4], "counts": [0, 12]})]
    coco = read_coco(saved(tmp_path, a_file(annotations=rows)))
    assert [replace(x, unknown=x.unknown[:0]) for x in coco.instances] == [worked(class_ids=[1])]
    assert np.array_equal(coco.instances[0].unknown_mask, coco.instances[0].paint() == 0)


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(a_file()), encoding="utf-8-sig")
    assert len(read_coco(path).records) == 1


def test_a_cell_that_somebody_added_to_those_of_a_model_leaves_these_their_scores(tmp_path):
    rows = [annotation(score=0.25), annotation(id=2)]
    (found,) = read_coco(saved(tmp_path, a_file(annotations=rows))).instances
    assert found.scores.tolist() == [0.25, 1]


def test_results_may_lack_the_category_and_come_in_any_order(tmp_path):
    rows = [{"image_id": k, "segmentation": WORKED, "score": 0.1 * k} for k in (3, 1, 3)]
    found = read_results(saved(tmp_path, rows), {1: SHAPE, 2: SHAPE, 3: SHAPE})
    assert [x.scores.round(3).tolist() for x in found] == [[0.1], [], [0.3, 0.3]]
    assert found[0].class_ids.tolist() == [0]


@pytest.mark.parametrize("mark", [1, True, 1.0, "1", "true"])
def test_a_crowd_region_is_one_in_whatever_spelling(tmp_path, mark):
    coco = read_coco(saved(tmp_path, a_file(annotations=[annotation(), annotation(id=2, iscrowd=mark)])))
    assert (len(coco.instances[0]), coco.instances[0].unknown_px) == (1, 0), "the two are the same pixels"
    elsewhere = annotation(id=2, iscrowd=mark, segmentation={"size": [3, 4], "counts": [0, 1, 11]})
    coco = read_coco(saved(tmp_path, a_file(annotations=[annotation(), elsewhere])))
    assert (len(coco.instances[0]), coco.instances[0].unknown_px) == (1, 1)
    coco = read_coco(saved(tmp_path, a_file(annotations=[annotation(iscrowd="0"), annotation(id=2, iscrowd=None)])))
    assert (len(coco.instances[0]), coco.instances[0].unknown_px) == (2, 0)


@pytest.mark.parametrize("nothing", [[[0, 1, 1, 1, 2, 1]], [[9, 9, 12, 9, 12, 12]], {"size": [3, 4], "counts": [12]}])
def test_a_true_cell_without_a_pixel_is_left_out_and_told_and_a_prediction_stays(tmp_path, nothing):
    rows = [annotation(id=1, segmentation=nothing, bbox=[0, 1, 2, 0]), annotation(id=2)]
    coco = read_coco(saved(tmp_path, a_file(annotations=rows)))
    assert coco.instances[0].areas_px.tolist() == [2]
    assert coco.notes == ("left out: 1 annotation without a pixel in the image",)
    scored = read_coco(saved(tmp_path, a_file(annotations=[row | {"score": 0.5} for row in rows])))
    assert scored.instances[0].areas_px.tolist() == [0, 2] and not scored.notes


# ---- polygons ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-14, 27), st.integers(-12, 23)), min_size=3, max_size=7), st.booleans())
def test_a_polygon_near_the_image_is_what_pycocotools_makes_of_it(tmp_path_factory, points, half):
    shape, polygon = (12, 14), [value + 0.5 * half for point in points for value in point]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wanted = coco_mask.decode(coco_mask.frPyObjects([polygon], *shape))[:, :, 0]
    found = read_masks(tmp_path_factory.mktemp("polygon"), [polygon], shape=shape)
    np.testing.assert_array_equal(found.mask(0), wanted)


def test_a_polygon_through_the_centres_of_pixels_comes_back_a_row_and_a_column_smaller(tmp_path):
    """Corners of pixels are what COCO means; of a square of 10 x 10 px drawn from centre to centre 81 px are left."""
    along, through = [0, 0, 0, 10, 10, 10, 10, 0], [0, 0, 0, 9, 9, 9, 9, 0]
    assert read_masks(tmp_path, [along], [through], shape=(12, 14)).areas_px.tolist() == [100, 81]


def test_polygons_of_one_object_are_joined(tmp_path):
    found = read_masks(tmp_path, [[0, 0, 2, 0, 2, 2, 0, 2], [2, 1, 4, 1, 4, 3, 2, 3], [0, 0, 2, 0, 2, 2, 0, 2]])
    assert found.mask(0).astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("polygon", "mask"),
    [
        ([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9], [[1, 1, 1, 1]] * 3),
        ([2, -1e8, 1e9, -1e8, 1e9, 1e8, 2, 1e8], [[0, 0, 1, 1]] * 3),
        ([-1e6, 0, 1e6, 0, 1e6, 1, -1e6, 1], [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ([1e6, 1e6, 2e6, 1e6, 2e6, 2e6], [[0, 0, 0, 0]] * 3),
        ([-500, -500, -400, -500, -400, -400], [[0, 0, 0, 0]] * 3),
        ([1, 1, 1, 1, 1, 1], [[0, 0, 0, 0]] * 3),
    ],
)
def test_a_polygon_far_beyond_the_image_is_cut_and_neither_hangs_nor_crashes(tmp_path, polygon, mask):
    assert read_masks(tmp_path, [polygon]).mask(0).astype(int).tolist() == mask


def test_cutting_keeps_the_slope_of_an_edge(tmp_path):
    shape, far = (40, 60), 10_000
    found = read_masks(tmp_path, [[0, 0, far, far, 0, far]], shape=shape).mask(0)  # below the diagonal
    rows, columns = np.indices(shape)
    assert found[rows > columns + 1].all() and not found[rows < columns - 1].any()


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ([[0, 0, 1, 1]], "fewer than three points"),
        ([[0, 0, 1, 1, 2]], "fewer than three points"),
        ([[0, 0, 1, 1, 2, 2, 3]], "fewer than three points or no numbers"),
        ([[0, 0, 1, 1, 2, "2"]], "no numbers"),
        ([[0, 0, 1, 1, 2, None]], "no numbers"),
        ([[0, 0, 1, 1, 2, True]], "no numbers"),
        ([0, 0, 1, 1, 2, 2], "no numbers"),
        ([[[0, 0], [1, 1], [2, 2]]], "no numbers"),
        ([{"x": 1}], "no numbers"),
        ([[0, 0, 1, 1, 2, math.nan]], "not finite or far away"),  # pycocotools would not return
        ([[0, 0, 1, 1, 2, math.inf]], "not finite or far away"),
        ([[0, 0, 1, 1, 2, 1e10]], "not finite or far away"),
        ([[0, 0, 1, 1, 2, 10**400]], "not finite or far away"),
        ([], "has a box but no mask"),
        (None, "has a box but no mask"),
        ("327", "has a box but no mask"),
    ],
)
def test_what_is_no_polygon_is_refused(tmp_path, polygons, reason):
    assert reason in refused(tmp_path, a_file(annotations=[annotation(segmentation=polygons)]))
