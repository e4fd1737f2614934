"""COCO of other tools: read as they mean it or refused, never guessed; written as their importers want it."""

import copy
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_dialects import CONVENTIONS, WRITTEN, common_folder, to_plain
from cellkit.formats.coco_reading import read_coco

EMPTY_INFO = {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""}


def cvat_file():
    """As CVAT 2 exports a task of two images: a painted mask, a polygon, a group of two polygons."""
    image = {"width": 4, "height": 3, "license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
    mask = {"counts": [3, 2, 7], "size": [3, 4]}
    plain = {"area": 2.0, "bbox": [1.0, 0.0, 1.0, 2.0], "attributes": {"occluded": False}}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict(EMPTY_INFO),
        "categories": [{"id": 1, "name": "HEK", "supercategory": ""}, {"id": 2, "name": "N2a", "supercategory": ""}],
        "images": [{"id": 1, "file_name": "a.png", **image}, {"id": 2, "file_name": "b.png", **image}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask, "iscrowd": 1, **plain},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[2.0, 0.0, 4.0, 0.0, 4.0, 2.0, 2.0, 2.0]],
             "iscrowd": 0, **plain},
            {"id": 3, "image_id": 2, "category_id": 2, "iscrowd": 0, **plain,
             "segmentation": [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 3.0, 2.0, 3.0, 3.0, 2.0, 3.0]]},
        ],
    }  # fmt: skip


def fiftyone_file():
    """As FiftyOne exports a dataset: class ids from 0, no iscrowd, boxes in fractions of px."""
    return {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne", "contributor": "",
                 "url": "https://voxel51.com/fiftyone", "date_created": "2026-11-21T10:00:00"},
        "licenses": [],
        "categories": [{"id": 0, "name": "HEK", "supercategory": None}, {"id": 1, "name": "N2a", "supercategory": None}],
        "images": [{"id": 1, "file_name": "a.png", "height": 3, "width": 4, "license": None, "coco_url": None}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [1.0, 0.0, 1.0, 2.0], "area": 2.0,
                         "segmentation": [[1, 0, 2, 0, 2, 2, 1, 2]], "score": 0.5}],
    }  # fmt: skip


def label_studio_file():
    return {
        "images": [{"width": 4, "height": 3, "id": 0, "file_name": "images\\ab12-a.png"}],
        "categories": [{"id": 0, "name": "HEK"}, {"id": 1, "name": "N2a"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "segmentation": [[1.0, 0.0, 2.0, 0.0, 2.0, 2.0, 1.0, 2.0]],
                         "bbox": [1.0, 0.0, 1.0, 2.0], "ignore": 0, "iscrowd": 0, "area": 2.0}],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": "",
                 "date_created": "2026-11-21 10:00:00"},
    }  # fmt: skip


def saved(folder, data):
    path = folder / "labels.json"
    path.write_text(json.dumps(data))
    return path


def refused(path, convention=None) -> str:
    with pytest.raises(UserError) as error:
        read_coco(path, convention=convention)
    return str(error.value)


# ---- CVAT ----------------------------------------------------------------------------------------------------------
def test_cvats_masks_are_single_objects(tmp_path):
    coco = read_coco(saved(tmp_path, cvat_file()), convention="cvat")
    assert [cells.areas_px.tolist() for cells in coco.instances] == [[2, 4], [2]]
    assert [cells.class_ids.tolist() for cells in coco.instances] == [[1, 2], [2]]
    assert [cells.unknown_px for cells in coco.instances] == [0, 0]
    assert coco.notes == ("read as single objects, as CVAT means them: 1 mask marked iscrowd",)


@pytest.mark.parametrize("mark", ["attributes", "header"])
def test_whether_crowds_are_objects_is_asked_not_guessed(tmp_path, mark):
    data = cvat_file()
    if mark == "attributes":
        data["info"] = {}
    else:
        for row in data["annotations"]:
            del row["attributes"]
    message = refused(saved(tmp_path, data))
    assert "marks 1 annotation iscrowd" in message
    assert 'convention="cvat" or "plain"' in message
    plain = read_coco(tmp_path / "labels.json", convention="plain")
    assert [len(x) for x in plain.instances] == [1, 1] and plain.notes == ()
    assert [x.unknown_px > 0 for x in plain.instances] == [True, False]


def test_without_masks_cvats_file_is_not_ambiguous(tmp_path):
    data = cvat_file()
    del data["annotations"][0]
    assert [len(cells) for cells in read_coco(saved(tmp_path, data)).instances] == [1, 1]


def test_crowds_of_others_are_crowds(tmp_path):
    data = cvat_file() | {"info": {"description": "COCO 2017"}}
    for row in data["annotations"]:
        del row["attributes"]
    assert [x.unknown_px > 0 for x in read_coco(saved(tmp_path, data)).instances] == [True, False]


@pytest.mark.parametrize("convention", [None, "plain", "cvat"])
def test_ids_from_0_stay_what_they_are(tmp_path, convention):
    data = cvat_file()
    del data["annotations"][0]
    for entry in data["images"]:
        entry["id"] -= 1
    for row in data["annotations"]:
        row |= {"id": row["id"] - 1, "image_id": row["image_id"] - 1}
    coco = read_coco(saved(tmp_path, data), convention=convention)
    assert (coco.ids, [len(cells) for cells in coco.instances], coco.notes) == ([0, 1], [1, 1], ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["images"].append(dict(d["images"][0])), "there twice"),
        (lambda d: d["images"].append(d["images"][0] | {"id": "0"}), "there twice"),
        (lambda d: d["annotations"].append(d["annotations"][0] | {"id": 9, "image_id": 1}), "1 annotation of images that are"),
        (lambda d: d["annotations"].append(dict(d["annotations"][0])), "annotation id 0 is there twice"),
        (lambda d: d["images"].append(d["images"][0] | {"id": -1}), "no whole number"),
        (lambda d: d["images"].append(d["images"][0] | {"id": None}), "no whole number"),
        (lambda d: d["images"].append(3), "has no file_name"),
        (lambda d: d["annotations"].append(3), "an annotation is a JSON object"),
        (lambda d: d["categories"].append(dict(d["categories"][0])), "category id 0 is there twice"),
        (lambda d: d.pop("annotations"), "is no COCO file"),
        (lambda d: d["annotations"][0].pop("segmentation"), "box but no mask"),
    ],
)  # fmt: skip
def test_faults_are_named_in_every_convention(tmp_path, change, reason):
    data = label_studio_file()
    change(data)
    assert reason in refused(saved(tmp_path, data), "labelstudio")


def test_an_unknown_convention(tmp_path):
    assert "did you mean 'cvat'" in refused(saved(tmp_path, cvat_file()), "cvta")
    with pytest.raises(UserError, match="conventions: plain, cvat, fiftyone"):
        write_coco(tmp_path / "x.json", [], [], (), convention="labelstudio")


# ---- FiftyOne, Label Studio ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("first", [0, 1])
def test_fiftyones_classes_begin_at_0_or_1(tmp_path, first):
    data = fiftyone_file()
    for row in [*data["categories"], *data["annotations"]]:
        row["category_id" if "bbox" in row else "id"] += first
    coco = read_coco(saved(tmp_path, data), convention="fiftyone")
    assert (coco.classes, coco.instances[0].class_ids.tolist()) == (("HEK", "N2a"), [1])
    assert (coco.instances[0].scores.tolist(), coco.notes) == ([0.5], ())


def test_fiftyones_unlabelled_images(tmp_path):
    data = fiftyone_file()
    del data["annotations"]
    assert [len(cells) for cells in read_coco(saved(tmp_path, data), convention="fiftyone").instances] == [0]
    assert "is no COCO file" in refused(tmp_path / "labels.json")


def test_label_studios_names_on_windows(tmp_path):
    coco = read_coco(saved(tmp_path, label_studio_file()), convention="labelstudio")
    assert (coco.records[0].path, coco.classes, coco.ids) == ("images/ab12-a.png", ("HEK", "N2a"), [0])
    assert coco.instances[0].class_ids.tolist() == [2]


@pytest.mark.parametrize("convention", [None, *CONVENTIONS])
@pytest.mark.parametrize("make", [cvat_file, fiftyone_file, label_studio_file])
def test_what_was_read_is_not_changed(make, convention):
    data = make()
    before = copy.deepcopy(data)
    try:
        to_plain(data, convention, "a.json")
    except UserError:
        assert convention is None
    assert data == before


# ---- writing -------------------------------------------------------------------------------------------------------
def two():
    return Instances.from_labels(np.array([[1, 1, 0, 2], [1, 1, 0, 0], [0, 0, 0, 2]]), class_ids=[1, 2])


def written(tmp_path, **how):
    record = ImageRecord("a", "images/a.png", 3, 4, group="A1")
    path = write_coco(tmp_path / "c.json", [record], [two()], ("HEK", "N2a"), **how)
    return json.loads(path.read_text())


def test_what_cvat_imports(tmp_path):
    data = written(tmp_path, convention="cvat")
    assert list(data) == ["licenses", "info", "categories", "images", "annotations"]
    assert (data["licenses"], data["info"]) == ([{"name": "", "id": 0, "url": ""}], EMPTY_INFO)
    assert data["categories"][1] == {"id": 2, "name": "N2a", "supercategory": ""}
    image, (first, second) = data["images"][0], data["annotations"]
    assert (image["id"], image["file_name"], image["license"], image["date_captured"]) == (1, "images/a.png", 0, 0)
    assert first["segmentation"] == {"size": [3, 4], "counts": [0, 2, 1, 2, 7]}, "run lengths as a list"
    assert (first["iscrowd"], first["attributes"], second["bbox"]) == (0, {"occluded": False}, [3, 0, 1, 3])


def test_what_fiftyone_imports(tmp_path):
    """Its importer looks up classes by index from 0, finds images by name below data/, and cuts the mask by its box."""
    data = written(tmp_path, convention="fiftyone")
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(1, "HEK"), (2, "N2a")]
    assert (data["images"][0]["file_name"], data["licenses"]) == ("a.png", [])
    for row, area in zip(data["annotations"], (4, 2), strict=True):
        x, y, w, h = row["bbox"]
        with warnings.catch_warnings():  # pycocotools' own, of numpy 2
            warnings.simplefilter("ignore", DeprecationWarning)
            mask = coco_mask.decode(row["segmentation"])
        assert mask[round(y) : round(y + h), round(x) : round(x + w)].sum() == area


def test_polygons_only_where_they_are_asked_for(tmp_path):
    assert all(isinstance(row["segmentation"], dict) for row in written(tmp_path)["annotations"])
    first, second = written(tmp_path, as_polygons=True, convention="cvat")["annotations"]
    assert first["segmentation"] == [[0, 0, 2, 0, 2, 2, 0, 2]]
    assert len(second["segmentation"]) == 2
    coco = read_coco(tmp_path / "c.json")
    assert coco.instances == [two()]


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)), st.sampled_from(WRITTEN), st.booleans())
def test_every_convention_comes_back(tmp_path_factory, masks, convention, told):
    found = Instances.from_masks(masks, masks.shape[1:])
    found = found[found.areas_px > 0].with_classes(
        np.arange((found.areas_px > 0).sum()) % 3
    )  # others are left out, told
    record = ImageRecord("x", "images/x.png", *found.shape, cell_type="HEK")
    path = tmp_path_factory.mktemp("coco") / "c.json"
    write_coco(path, [record], [found], ("HEK", "N2a"), convention=convention)
    coco = read_coco(path, convention=convention if told else None)
    assert coco.instances == [found]
    assert (coco.records[0].image_id, coco.records[0].cell_type, coco.notes) == ("x", "HEK", ())


def test_the_folder_that_all_share():
    assert common_folder(["images/a/1.png", "images/a/2.png"]) == "images/a"
    assert common_folder(["a/1.png", "ab/2.png"]) == ""
    assert common_folder(["./a/1.png"]) == ""
    assert common_folder(["1.png"]) == common_folder([]) == ""
