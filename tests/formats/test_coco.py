"""COCO files: written so that other tools score them right, read with every field checked, refused with the reason."""

import contextlib
import io
import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from coco_cases import WORKED, image, saved, worked
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_predictions, write_results, write_truth
from cellkit.formats.coco_reading import read_coco, read_results

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
    assert [cells.unknown_px for cells in coco.instances] == [0] * len(records)
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
    for entry in images:
        entry.pop("labels_stamp", None)
    old = saved(tmp_path, json.loads(path.read_text()) | {"images": images})
    assert read_coco(old).made_by == ["proposed", "", "corrected"], "a mark without a stamp stands"
    data = read_coco(path, tmp_path)
    assert [r.image_id for r in data.without_proposed().records] == ["b", "c"]
    assert data.subset([2, 0]).made_by == ["corrected", "proposed"]
    assert [data.subset(k).compared_by("MAP IoU")[:9] for k in ([0], [0, 1], [])] == ["agreement", "MAP IoU", "MAP IoU"]
    plain = write_coco(tmp_path / "b.json", records, cells, ["HEK"])
    assert (
        plain.read_bytes()
        == write_coco(tmp_path / "c.json", records, cells, ["HEK"], made_by=["truth"] * 3).read_bytes()
    )


@pytest.mark.parametrize("convention", ["plain", "cvat", "fiftyone"])
@pytest.mark.parametrize("as_polygons", [False, True])
def test_cells_that_somebody_changed_in_the_file_are_no_longer_a_model_s(tmp_path, convention, as_polygons):
    records = [ImageRecord(n, f"{n}.png", 8, 9) for n in "abcd"]
    masks = np.zeros((2, 8, 9), bool)
    masks[0, 1:4, 1:4], masks[1, 4:8, 5:9] = True, True
    cells = Instances.from_masks(masks, (8, 9)).with_classes([1, 2])
    unknown = np.zeros((8, 9), bool)
    unknown[:, 0] = True
    cells = [cells, cells.with_unknown(unknown), cells, cells]
    how = {"convention": convention, "as_polygons": as_polygons, "made_by": ["proposed"] * 4}
    path = write_coco(tmp_path / "a.json", records, cells, ["HEK", "N2a"], **how)
    told = None if convention == "plain" else convention
    assert read_coco(path, convention=told).made_by == ["proposed"] * 4
    data = json.loads(path.read_text())
    rows = data["annotations"]
    data["annotations"] = [row | {"id": 100 - row["id"]} for row in reversed(rows)]  # other ids, another order
    assert read_coco(saved(tmp_path, data), convention=told).made_by == ["proposed"] * 4
    of_b = next(k for k, row in enumerate(rows) if row["image_id"] == 2)
    rows[0]["category_id"] = 2  # a: another class; b: a cell less; c: an outline
    of_c = next(row for row in rows if row["image_id"] == 3)
    of_c["segmentation"] = [[1, 1, 5, 1, 5, 4, 1, 4]]
    del rows[of_b]
    data["annotations"] = rows
    assert read_coco(saved(tmp_path, data), convention=told).made_by == ["", "", "", "proposed"]
