"""Cells to and from labelling tools: no pixel lost, the tools' own readers agree, and no file does harm."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_png
from exchange_cases import CLASSES, TWO, pictures, records, two  # noqa: F401

from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.roi import write_rois
from cellkit.formats.seg import class_colours

# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def coco_file(tmp_path):
    return write_coco(tmp_path / "c.json", records("a", "b"), [two(), two(scores=[0.5, 1])], CLASSES)


@pytest.mark.parametrize("form", ["seg", "roi"])
def test_there_and_back_with_classes(said, tmp_path, pictures, coco_file, form):
    code, out, err = said("labels", coco_file, "-o", tmp_path / "out", "--format", form, "--images", pictures)
    what = {"seg": "_seg.npy files", "roi": "ROI zips"}[form]
    assert (code, out, err) == (0, f"{tmp_path / 'out'}: 2 {what}\n", "")
    code, out, err = said("coco", tmp_path / "out", "-o", tmp_path / "again.json", "--images", pictures)
    assert (code, out, err) == (0, f"{tmp_path / 'again.json'}: 2 images, 4 cells\n", "")
    coco = read_coco(tmp_path / "again.json")
    assert coco.classes == CLASSES
    assert coco.instances == read_coco(coco_file).instances


def test_a_bad_file_among_many_is_set_aside(said, tmp_path, pictures):
    write_rois(tmp_path / "in/a.zip", two(), CLASSES)
    (tmp_path / "in/b.zip").write_bytes(b"no zip")
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json")
    assert (code, out) == (3, f"{tmp_path / 'c.json'}: 1 image, 2 cells\n")
    assert err.startswith("skipped: b.zip: ") and "is no zip" in err and err.count("\n") == 1
    assert said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--allow-skips")[0] == 0
    (tmp_path / "in/a.zip").unlink()
    code, out, err = said("coco", tmp_path / "in", "-o", tmp_path / "d.json")
    assert (code, out, len(err.splitlines())) == (2, "", 2)
    assert not (tmp_path / "d.json").exists()
    write_png(tmp_path / "pictures/b.png", np.zeros((9, 9, 3), np.uint8))
    coco = write_coco(tmp_path / "e.json", records("a", "b"), [two(), two()], CLASSES)
    code, out, err = said("labels", coco, "-o", tmp_path / "s", "--format", "seg", "--images", pictures)
    assert (code, out) == (3, f"{tmp_path / 's'}: 1 _seg.npy file\n")
    assert "skipped: b: " in err and "the image of b_seg.npy is" in err


def test_gui_files_with_their_classes(said, tmp_path):
    np.save(tmp_path / "a_seg.npy", {"masks": TWO, "outlines": TWO, "colors": class_colours(2)[[2, 1]]})
    assert said("coco", tmp_path, "-o", tmp_path / "c.json", "--classes", "HEK,N2a")[0] == 0
    coco = read_coco(tmp_path / "c.json")
    assert (coco.classes, coco.instances[0].class_ids.tolist()) == (("HEK", "N2a"), [2, 1])
    assert said("coco", tmp_path / "a_seg.npy", "-o", tmp_path / "c.json", "--class", "HEK")[0] == 0
    assert read_coco(tmp_path / "c.json").instances[0].class_ids.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("coco", "none", "-o", "x.json"), "no folder at none"),
        (("coco", "in", "-o", "x.json", "--format", "rio"), "no format 'rio' (did you mean 'roi'?)"),
        (("coco", "in", "-o", "x.json", "--convention", "cvta"), "no convention 'cvta' (did you mean 'cvat'?)"),
        (("coco", "in", "-o", "x.json", "--convention", "labelstudio"), "no convention 'labelstudio'"),
        (("coco", "in", "-o", "x.json", "--from", "cvat"), "--from cvat, but in is no COCO file"),
        (("coco", "in", "-o", "x.json", "--class", "HEK"), "but the cells have classes"),
        (("coco", "c.json", "-o", "x.json", "--class", "HEK"), "c.json is a COCO file"),
        (("coco", "in", "-o", "x.json", "--images", "none"), "no folder at none"),
        (("labels", "c.json", "-o", "x", "--format", "gif"), "no format 'gif'"),
        (("labels", "c.json", "-o", "x", "--format", "seg"), "goes with its picture"),
        (("labels", "c.json", "-o", "x", "--convention", "voc"), "no convention 'voc'"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(said, tmp_path, coco_file, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    write_rois(Path("in/a.zip"), two(), CLASSES)
    code, out, err = said(*arguments)
    assert (code, out) == (2, "")
    assert problem in err.splitlines()[0] and len(err.splitlines()) == 2
    assert not Path("x").exists() and not Path("x.json").exists()


def test_tools_coco_files(said, tmp_path):
    """What CVAT exports becomes label images only when it is said whose file it is; and back."""
    rle = {"size": [3, 5], "counts": [0, 2, 1, 2, 10]}
    data = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), ""),
        "categories": [{"id": 1, "name": "HEK", "supercategory": ""}],
        "images": [{"id": 0, "width": 5, "height": 3, "file_name": "a.png", "license": 0}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": rle, "area": 4.0, "bbox": [0, 0, 2, 2],
                         "iscrowd": 1, "attributes": {"occluded": False}}],
    }  # fmt: skip
    (tmp_path / "cvat.json").write_text(json.dumps(data))
    code, out, err = said("labels", tmp_path / "cvat.json", "-o", tmp_path / "out")
    assert code == 2 and "marks 1 annotation iscrowd" in err and "--from cvat" in err
    code, out, err = said("labels", tmp_path / "cvat.json", "-o", tmp_path / "out", "--convention", "cvat")
    assert (code, out) == (0, f"{tmp_path / 'out'}: 1 label image\n")
    assert "note: read as single objects, as CVAT means them: 1 mask marked iscrowd" in err
    np.testing.assert_array_equal(read_labels(tmp_path / "out/a.tif"), TWO == 1)
    code, out, err = said("coco", tmp_path / "cvat.json", "--from", "cvat", "-o", tmp_path / "plain.json")
    assert code == 0 and read_coco(tmp_path / "plain.json").instances[0].areas_px.tolist() == [4]
    (tmp_path / "crowd.json").write_text(json.dumps(data | {"info": {}, "images": [data["images"][0] | {"id": 2}],
        "annotations": [{**data["annotations"][0], "image_id": 2, "attributes": 0}]}))  # fmt: skip
    code, out, err = said("labels", tmp_path / "crowd.json", "-o", tmp_path / "none")
    assert code == 0 and "note: 1 image is annotated in part (73 % known)" in err
    np.testing.assert_array_equal(read_labels(tmp_path / "none/a.tif"), -(TWO == 1).astype(int))


def test_polygons_come_with_a_statement(said, tmp_path):
    ring = np.array([[1, 1, 1, 0, 2], [1, 0, 1, 0, 2], [1, 1, 1, 0, 2]])
    write_labels(tmp_path / "in/a.tif", ring)
    code, _, err = said("coco", tmp_path / "in", "-o", tmp_path / "c.json", "--polygons")
    assert code == 0
    assert err == "note: as polygons, 1 of 2 objects lost holes, 1 changed pixels (as pycocotools draws them)\n"
    assert read_coco(tmp_path / "c.json").instances[0].areas_px.tolist() == [9, 3]


def test_fiftyones_layout(said, tmp_path, coco_file):
    code, _, err = said("coco", coco_file, "-o", tmp_path / "labels.json", "--convention", "fiftyone")
    assert (code, err) == (0, "file names are relative to images/, the data_path of FiftyOne's importer\n")
    data = json.loads((tmp_path / "labels.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["a.png", "b.png"]
