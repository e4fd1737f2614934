"""COCO files that are refused: each fault by name, and whatever a mangled file holds."""

import contextlib
import copy
import json
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
from coco_cases import PLACE, SHAPE, WORKED, a_file, annotation, image, refused, saved

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco, read_results

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
        whole = replace(found, unknown=found.unknown[:0])
        assert Instances.from_coco_rle(found.to_coco_rle(), shape, found.class_ids, found.scores) == whole


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
        assert len(coco.records) == len(coco.instances) == len(coco.ids)
        assert all(not (cells.unknown_mask & (cells.paint() > 0)).any() for cells in coco.instances)
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
