"""COCO files: written so that other tools score them right, read with every field checked, refused with the reason."""

import contextlib
import copy
import io
import json
import math
import random
import re
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_predictions, write_results, write_truth
from cellkit.formats.coco_reading import read_coco, read_results

SHAPE = (3, 4)
WORKED = {"size": [3, 4], "counts": "327"}
PLACE = {"id": 1, "file_name": "a.png", "height": 3, "width": 4}


def image(image_id, shape=SHAPE, **kwargs):
    return ImageRecord(str(image_id), f"images/{image_id}.png", *shape, **kwargs)


def worked(**kwargs):
    mask = np.zeros(SHAPE, int)
    mask[:2, 1] = 1
    return Instances.from_labels(mask, **kwargs)


def a_file(**changes):
    """One image, one class, the worked mask."""
    data = {
        "images": [{"id": 1, "file_name": "images/a.png", "height": 3, "width": 4}],
        "categories": [{"id": 1, "name": "HEK"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": dict(WORKED), "area": 2, "iscrowd": 0}
        ],
    }
    return data | changes


def annotation(**changes):
    return a_file()["annotations"][0] | changes


def saved(tmp_path, data, name="coco.json"):
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def refused(tmp_path, data, read=read_coco):
    path = saved(tmp_path, data)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value), "the file is named"
    return str(error.value)


def read_masks(tmp_path, *segmentations, shape=SHAPE):
    rows = [annotation(id=k, segmentation=s, score=1) for k, s in enumerate(segmentations, 1)]  # empty ones stay
    images = [{"id": 1, "file_name": "a.png", "height": shape[0], "width": shape[1]}]
    (found,) = read_coco(saved(tmp_path, a_file(images=images, annotations=rows))).instances
    return found


# ---- write ---------------------------------------------------------------------------------------------------------
def test_the_file_as_it_is_written(tmp_path):
    record = image("a", cell_type="HEK", group="A1", split="val", um_per_px=0.5)
    data = json.loads(write_coco(tmp_path / "coco.json", [record], [worked(class_ids=[1])], ["HEK", "N2a"]).read_text())
    assert data == {
        "info": {"description": "cellkit"},
        "images": [
            {"id": 1, "file_name": "images/a.png", "height": 3, "width": 4, "image_id": "a", "channels": "", "cell_type": "HEK",
             "group": "A1", "split": "val", "flags": "", "source": "", "um_per_px": 0.5}
        ],
        "categories": [
            {"id": 1, "name": "HEK", "supercategory": "cell"},
            {"id": 2, "name": "N2a", "supercategory": "cell"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": WORKED, "bbox": [1, 0, 1, 2], "area": 2, "iscrowd": 0}
        ],
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "coco.json"]


def test_results_as_they_are_written(tmp_path):
    path = write_results(tmp_path / "r.json", [7], [worked(scores=[0.87654321])])
    row = {"image_id": 7, "category_id": 0, "segmentation": WORKED, "bbox": [1, 0, 1, 2], "score": 0.876543}
    assert json.loads(path.read_text()) == [row]


PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=5)


@st.composite
def sets(draw):
    """Some images with overlapping masks, holes, empty masks; classes of which some are unknown; any file name."""
    classes = draw(st.lists(PLAIN, max_size=3, unique=True))
    classes = [name for name in classes if name.strip() and name != "unknown"]
    records, instances = [], []
    for k in range(draw(st.integers(0, 3))):
        shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        masks = draw(hnp.arrays(bool, (draw(st.integers(0, 4)), *shape)))
        ids = draw(st.lists(st.integers(0, len(classes)), min_size=len(masks), max_size=len(masks)))
        scores = draw(st.lists(st.integers(0, 100).map(lambda v: v / 100), min_size=len(masks), max_size=len(masks)))
        text = {name: draw(PLAIN) for name in ("cell_type", "group", "source")}
        records.append(image(f"{k} {draw(st.sampled_from(['', 'é', '{}', '-x', '細']))}", shape, **text))
        instances.append(Instances.from_masks(masks, shape, ids, scores))
    return records, instances, classes


@settings(max_examples=60, deadline=None)
@given(sets())
def test_what_is_written_comes_back(tmp_path_factory, made):
    records, instances, classes = made
    folder = tmp_path_factory.mktemp("coco")
    ids = [3 * k + 2 for k in range(len(records))]
    coco = read_coco(write_coco(folder / "truth.json", records, instances, classes, ids, with_scores=True))
    assert (coco.records, coco.ids, coco.classes) == (records, ids, tuple(classes))
    assert coco.instances == instances
    assert [len(region) for region in coco.crowd] == [0] * len(records)
    results = write_results(folder / "results.json", ids, instances)
    assert read_results(results, coco) == instances
    assert read_results(results, dict(zip(ids, [x.shape for x in instances], strict=True))) == instances
    assert read_results(folder / "truth.json", coco)[:0] == []


@settings(max_examples=30, deadline=None)
@given(sets())
def test_pycocotools_reads_the_same_cells(tmp_path_factory, made):
    records, instances, classes = made
    path = write_coco(tmp_path_factory.mktemp("coco") / "truth.json", records, instances, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(path)
    for number, found in enumerate(instances, 1):
        rows = theirs.loadAnns(theirs.getAnnIds(imgIds=number))
        assert [row["area"] for row in rows] == found.areas_px.tolist()
        for row, mask in zip(rows, (found.mask(k) for k in range(len(found))), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                np.testing.assert_array_equal(theirs.annToMask(row), mask)
            if mask.any():
                assert row["bbox"] == coco_mask.toBbox(row["segmentation"]).tolist()


def test_what_is_not_there_is_not_written(tmp_path, drawn):
    images = replace(drawn, made_by=["truth", "", "truth", "", "", ""])
    back = read_coco(write_truth(tmp_path / "truth.json", images), drawn.root)
    assert back.ids == [drawn.ids[0], drawn.ids[2]] and back.instances == [drawn.instances[0], drawn.instances[2]]
    assert write_truth(tmp_path / "none.json", replace(drawn, made_by=[""] * 6)) is None
    stage = SimpleNamespace(path=tmp_path.joinpath)
    (tmp_path / "predictions").mkdir()
    found = write_predictions(stage, "a", drawn, drawn.instances)
    shapes = {number: cells.shape for number, cells in zip(drawn.ids, drawn.instances, strict=True)}
    assert found == tmp_path / "predictions/a.json" and read_results(found, shapes) == drawn.instances
    assert write_predictions(stage, "b", drawn, None) is None
    assert sorted(p.name for p in tmp_path.rglob("*.json")) == ["a.json", "truth.json"]


def test_objects_of_unknown_class_are_the_last_category_and_come_back_as_class_0(tmp_path):
    two = Instances.from_labels(np.array([[1, 0, 2, 0]] * 3), class_ids=[0, 2])
    path = write_coco(tmp_path / "c.json", [image("a")], [two], ["HEK", "N2a"])
    data = json.loads(path.read_text())
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(1, "HEK"), (2, "N2a"), (3, "unknown")]
    assert [a["category_id"] for a in data["annotations"]] == [3, 2]
    assert read_coco(path).instances == [two]
    assert read_coco(path).classes == ("HEK", "N2a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"records": []}, "0 records but 1 sets of instances"),
        ({"records": [image("a", (4, 3))]}, "a is 4 x 3 px, its masks are 3 x 4"),
        ({"instances": [worked(class_ids=[2])]}, "a cell of class 2, there are 1 classes"),
        ({"instances": [worked(class_ids=[-1])]}, "a cell of class -1, there are 1 classes"),
        ({"classes": ["HEK", "HEK"]}, "the classes are HEK, HEK\nname each once"),
        ({"classes": ["unknown"]}, "the classes are unknown\nname each once, and none 'unknown'"),
        ({"classes": ["HEK", ""]}, "the classes are HEK, \nname each once"),
        ({"classes": ["HEK\ud800"]}, "the class name .* holds a control character"),
        ({"records": [image("a", group="a\nb")]}, "group .* holds a control character"),
        ({"ids": [0]}, "have the ids .0.\ngive each image one id of its own, a number from 1 on"),
        ({"ids": ["6f3a"]}, "a number from 1 on"),
        ({"ids": [1, 2]}, "1 images have the ids"),
        ({"instances": [worked(scores=[math.nan])], "with_scores": True}, "a cell of score nan"),
    ],
)
def test_what_cannot_be_written_leaves_the_previous_file(tmp_path, change, reason):
    path = saved(tmp_path, "the previous one")
    wanted = {"records": [image("a")], "instances": [worked()], "classes": ["HEK"]} | change
    with pytest.raises(UserError, match=reason):
        write_coco(path, **wanted)
    assert path.read_text() == "the previous one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("ids", "score", "reason"),
    [
        ([-1], 0.5, "ids"),
        ([""], 0.5, "ids"),
        ([1, "1"], 0.5, "ids"),
        ([1], math.nan, "score nan"),
        ([1], 1.5, "score 1.5"),
        ([1], -0.1, "score -0.1"),
    ],
)
def test_results_that_cannot_be_written_are_refused(tmp_path, ids, score, reason):
    with pytest.raises(UserError, match=reason):
        write_results(tmp_path / "r.json", ids, [worked(scores=[score])] * len(ids))
    assert not list(tmp_path.iterdir())


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


def test_crowd_regions_stand_apart(tmp_path):
    rows = [annotation(id=1), annotation(id=2, iscrowd=1, segmentation={"size": [3, 4], "counts": [0, 12]})]
    coco = read_coco(saved(tmp_path, a_file(annotations=rows)))
    assert coco.instances == [worked(class_ids=[1])]
    assert [x.areas_px.tolist() for x in coco.crowd] == [[12]]


def test_a_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(a_file()), encoding="utf-8-sig")
    assert len(read_coco(path).records) == 1


def test_results_may_lack_the_category_and_come_in_any_order(tmp_path):
    rows = [{"image_id": k, "segmentation": WORKED, "score": 0.1 * k} for k in (3, 1, 3)]
    found = read_results(saved(tmp_path, rows), {1: SHAPE, 2: SHAPE, 3: SHAPE})
    assert [x.scores.round(3).tolist() for x in found] == [[0.1], [], [0.3, 0.3]]
    assert found[0].class_ids.tolist() == [0]


@pytest.mark.parametrize("mark", [1, True, 1.0, "1", "true"])
def test_a_crowd_region_is_one_in_whatever_spelling(tmp_path, mark):
    coco = read_coco(saved(tmp_path, a_file(annotations=[annotation(), annotation(id=2, iscrowd=mark)])))
    assert (len(coco.instances[0]), len(coco.crowd[0])) == (1, 1)
    coco = read_coco(saved(tmp_path, a_file(annotations=[annotation(iscrowd="0"), annotation(id=2, iscrowd=None)])))
    assert (len(coco.instances[0]), len(coco.crowd[0])) == (2, 0)


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


# ---- refuse --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": None}, "lacks images, annotations or categories"),
        ({"annotations": {}}, "lacks images, annotations or categories"),
        ({"categories": "HEK"}, "lacks images, annotations or categories"),
        ({"images": [PLACE, PLACE]}, "image ids: 1 is there twice"),
        ({"images": [PLACE | {"id": -1}]}, "image 1: id: '-1' is no whole number from 0 on"),
        ({"images": [PLACE | {"id": " "}]}, "' ' is no whole number"),
        ({"images": [PLACE | {"id": True}]}, "'True' is no whole number"),
        ({"images": [PLACE | {"id": 1.5}]}, "'1.5' is no whole number"),
        ({"images": [PLACE | {"id": 2**64}]}, "is no whole number"),
        ({"images": [PLACE | {"height": 0}]}, "image 1 height: '0' is no whole number from 1 on"),
        ({"images": [PLACE | {"width": -4}]}, "image 1 width"),
        ({"images": [PLACE | {"width": True}]}, "image 1 width"),
        ({"images": [PLACE | {"width": math.nan}]}, "image 1 width"),
        ({"images": [PLACE | {"width": 10**12}]}, "claims 3 x 1000000000000 px"),
        ({"images": [{"id": 1, "height": 3, "width": 4}]}, "has no file_name"),
        ({"images": ["a.png"]}, "image 1 has no file_name"),
        ({"categories": []}, "category_id 1 is not among the categories"),
        ({"categories": [{"id": 1}]}, "a category has no name"),
        ({"categories": [{"id": 1, "name": " "}]}, "a category has no name"),
        ({"categories": [{"id": 1, "name": "a\x00"}]}, r"category name 'a\x00' holds a control character"),
        ({"categories": [{"id": -1, "name": "HEK"}]}, "category HEK: '-1' is no whole number"),
        ({"categories": [{"id": 1, "name": "HEK"}, {"id": 2, "name": "HEK"}],
          "annotations": [annotation(), annotation(id=2, category_id=2)]}, "1 and 2 are 'HEK', and both have annotations"),
        ({"categories": [{"id": 1, "name": "HEK"}, {"id": 1, "name": "N2a"}]}, "category id 1 is there twice"),
        ({"annotations": [annotation(), annotation()]}, "annotation id 1 is there twice"),
        ({"annotations": [annotation(id=None)]}, "annotation 1: id: 'None'"),
        ({"annotations": [annotation(image_id=2)]}, "1 annotation of images that are not there, e.g. image_id 2"),
        ({"annotations": [annotation(image_id=None)]}, "annotation 1: image_id: 'None'"),
        ({"annotations": [annotation(category_id=None)]}, "category_id: 'None'"),
        ({"annotations": [annotation(category_id=10**30)]}, "is no whole number"),
        ({"annotations": [annotation(score=1.5)]}, "score is 1.5"),
        ({"annotations": [annotation(iscrowd="yes")]}, "annotation 1: iscrowd is 'yes'"),
        ({"annotations": [annotation(iscrowd=2)]}, "annotation 1: iscrowd is '2'"),
        ({"annotations": [7]}, "annotation 1 is '7'"),
        ({"annotations": [annotation(segmentation={"size": [3, 4], "counts": "32"})]}, "RLE 1 covers 5 px, its image has 12"),
        ({"annotations": [annotation(segmentation={"size": [4, 3], "counts": "327"})]}, "RLE 1 has size [4, 3]"),
        ({"annotations": [annotation(segmentation={"counts": "327"})]}, "lacks 'size' or 'counts'"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 0, 1, 2]}]}, "has a box but no mask"),
    ],
)  # fmt: skip
def test_a_fault_is_named(tmp_path, change, reason):
    message = refused(tmp_path, a_file(**change))
    assert reason in message
    assert "\n" in message, "the second line says what to do"


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"images": [1e', "\x00", "NaN", "[]", "7", '{"images": ' + "9" * 5000 + "}"]
)
def test_what_is_no_coco_file_is_refused(tmp_path, text):
    refused(tmp_path, text)


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="c.json is no JSON"):
        read_coco(tmp_path / "c.json")
    with pytest.raises(UserError, match="is a folder"):
        read_coco(tmp_path)
    with pytest.raises(UserError, match="no file at"):
        read_coco(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image_id": 3}, "1 annotation of images that are not there, e.g. image_id 3"),
        ({"image_id": "a"}, "1 annotation of images that are not there, e.g. image_id a"),
        ({"image_id": None}, "is no whole number"),
        ({"category_id": "HEK"}, "has category_id HEK"),
        ({"score": None}, "score is None"),
        ({"score": 1.01}, "score is 1.01"),
        ({"score": -0.01}, "score is -0.01"),
        ({"score": math.inf}, "score is inf"),
        ({"score": "0.9"}, "score is 0.9"),
        ({"score": True}, "score is True"),
        ({"category_id": -1}, "category_id: '-1'"),
        ({"category_id": 10**30}, "category_id: '1000000"),
        ({"segmentation": None}, "a box but no mask"),
        ({"segmentation": {"size": [3, 4], "counts": "326"}}, "covers 11 px"),
    ],
)
def test_a_fault_in_results_is_named(tmp_path, row, reason):
    good = {"image_id": 1, "category_id": 1, "segmentation": WORKED, "score": 0.5}
    read = lambda path: read_results(path, {1: SHAPE, 2: SHAPE})  # noqa: E731
    assert reason in refused(tmp_path, [good, good | row], read)


def test_what_is_no_results_list_is_refused(tmp_path):
    read = lambda path: read_results(path, {1: SHAPE})  # noqa: E731
    assert "is no COCO results list" in refused(tmp_path, {"images": []}, read)
    assert "annotation 1 is '7'" in refused(tmp_path, [7], read)
    assert "is no JSON" in refused(tmp_path, "]", read)


# ---- mangled -------------------------------------------------------------------------------------------------------
NASTY = [
    None, True, False, 0, 1, -1, 2, 0.5, 1e9, -1e9, 1e308, math.nan, math.inf, 2**31, 2**53, 2**63, 10**30, 10**400, "", "1",
    "unknown", "x" * 300, "\ud800", "٣", "327", [], [[]], [1, 2, 3, 4, 5, 6], [[0, 0, 5, 0, 5, 5]], [[1e7, -1e7, 3, 3, 1, 9]], {},
    {"size": [6, 7], "counts": [42]}, {"size": [6, 7], "counts": "Z1"},
]  # fmt: skip


def places(value, at=()):
    """List every place of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in items for place in places(part, (*at, key)))]


def mangled(data, rng):
    """Change a JSON value at one to three places: drop, repeat, replace, swap or nudge."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        *path, key = rng.choice(places(data)[1:])
        parent = data
        for step in path:
            parent = parent[step]
        change = rng.randrange(5)
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif change == 2 and type(parent[key]) in (int, float) and parent[key] < 1e300:
            parent[key] += rng.choice([-1, 1, 0.5, 1000])
        elif change == 3:
            *other, last = rng.choice(places(data)[1:])
            source = data
            for step in other:
                source = source[step]
            parent[key] = copy.deepcopy(source[last])
        else:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
        if not isinstance(data, (dict, list)) or not data:
            break
    return data


def good_file():
    rng = np.random.default_rng(0)
    cells = [
        Instances.from_labels(rng.integers(0, 4, (6, 7)), scores=[0.2, 0.5, 0.9]).with_classes([0, 1, 2])
        for _ in range(2)
    ]
    records = [image(name, (6, 7), um_per_px=0.3, split="train") for name in "ab"]
    return records, cells


def assert_sound(found, shape):
    assert found.shape == shape
    assert found.starts.min(initial=0) >= 0 and (found.starts + found.lengths).max(initial=0) <= shape[0] * shape[1]
    assert np.isfinite(found.scores).all()
    if shape[0] * shape[1] < 10**6:
        assert Instances.from_coco_rle(found.to_coco_rle(), shape, found.class_ids, found.scores) == found


@pytest.mark.parametrize("seed", range(2))
def test_mangled_files_are_read_right_or_refused(tmp_path, seed):
    rng, begun = random.Random(seed), time.monotonic()
    records, cells = good_file()
    truth = json.loads(write_coco(tmp_path / "t.json", records, cells, ["A", "B"], with_scores=True).read_text())
    truth["annotations"] += [
        {
            "id": 90,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[0, 0, 5, 0, 5, 4, 0, 4]],
            "iscrowd": 1,
            "score": 1,
        },
        {
            "id": 91,
            "image_id": 2,
            "category_id": 2,
            "segmentation": {"size": [6, 7], "counts": [3, 5, 34]},
            "score": 0.1,
        },
    ]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(250):
        path = saved(tmp_path, json.dumps(mangled(truth, rng)), "mangled.json")
        try:
            coco = read_coco(path)
        except UserError as error:
            outcomes["refused"] += 1
            assert "\n" in str(error)
            continue
        outcomes["read"] += 1
        assert len(coco.records) == len(coco.instances) == len(coco.ids) == len(coco.crowd)
        for record, found in zip(coco.records, coco.instances, strict=True):
            assert_sound(found, (record.height_px, record.width_px))
            assert found.class_ids.max(initial=0) <= len(coco.classes)
    assert min(outcomes.values()) > 20, outcomes
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("seed", range(2))
def test_mangled_results_are_read_right_or_refused(tmp_path, seed):
    rng, outcomes = random.Random(seed), {"read": 0, "refused": 0}
    _, cells = good_file()
    rows = json.loads(write_results(tmp_path / "r.json", [1, 2], cells).read_text())
    for _ in range(250):
        path = saved(tmp_path, json.dumps(mangled(rows, rng)), "mangled.json")
        try:
            found = read_results(path, {1: (6, 7), 2: (6, 7)})
        except UserError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        for one in found:
            assert_sound(one, (6, 7))
    assert min(outcomes.values()) > 20, outcomes


def test_mangled_text_is_read_or_refused(tmp_path):
    rng = random.Random(0)
    records, cells = good_file()
    text = write_coco(tmp_path / "t.json", records, cells, ["A", "B"]).read_text()
    for _ in range(300):
        place = rng.randrange(len(text))
        torn = (
            text[:place]
            + rng.choice(["", "", '"', "}", ",", "\\", "9", "-", "é", "\x00"])
            + text[place + rng.randrange(3) :]
        )
        with contextlib.suppress(UserError):
            read_coco(saved(tmp_path, rng.choice([torn, text[:place]]), "mangled.json"))


# ---- large ---------------------------------------------------------------------------------------------------------
def test_seventy_thousand_cells(tmp_path):
    cells = Instances.from_labels(np.arange(1, 70_001).reshape(250, 280))
    record = replace(image("a"), height_px=250, width_px=280)
    coco = read_coco(write_coco(tmp_path / "c.json", [record], [cells], []))
    assert coco.instances == [cells]
    with pytest.raises(UserError, match="annotation id 70000 is there twice"):
        data = json.loads((tmp_path / "c.json").read_text())
        data["annotations"].append(data["annotations"][-1])
        read_coco(saved(tmp_path, data))


def test_who_made_the_cells_is_carried_and_truth_is_not_marked(tmp_path):
    records = [ImageRecord(n, f"{n}.png", 4, 5) for n in "abc"]
    cells = [Instances.empty((4, 5))] * 3
    makers = ["proposed", "truth", "corrected"]
    path = write_coco(tmp_path / "a.json", records, cells, ["HEK"], made_by=makers, marks=[{"x": n} for n in "abc"])
    images = json.loads(path.read_text())["images"]
    assert [image.get("labels") for image in images] == ["proposed", None, "corrected"]
    assert [image["x"] for image in images] == list("abc")
    assert read_coco(path).made_by == ["proposed", "", "corrected"]
    data = read_coco(path, tmp_path)
    assert [r.image_id for r in data.without_proposed().records] == ["b", "c"]
    assert data.subset([2, 0]).made_by == ["corrected", "proposed"]
    assert [data.subset(k).compared_by("MAP IoU")[:9] for k in ([0], [0, 1], [])] == ["agreement", "MAP IoU", "MAP IoU"]
    plain = write_coco(tmp_path / "b.json", records, cells, ["HEK"])
    assert (
        plain.read_bytes()
        == write_coco(tmp_path / "c.json", records, cells, ["HEK"], made_by=["truth"] * 3).read_bytes()
    )
