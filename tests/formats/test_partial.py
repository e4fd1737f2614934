"""What is not annotated, through every format and back; where a file cannot carry it, that is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from conftest import write_png
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.formats.any import read_folder, write_folder
from cellkit.formats.coco import write_coco, write_dataset
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import as_written, read_labels, refuse_changed, stamp_of, write_labels
from cellkit.formats.labels import write_label_png
from cellkit.formats.roi import read_rois, write_rois
from cellkit.formats.seg import read_seg, write_seg

MARKED = np.array([[1, 1, 0, -1, -1], [1, 0, 0, -1, 2], [0, 0, -1, -1, 2]])
IMAGES = st.tuples(st.integers(1, 7), st.integers(2, 8)).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.integers(-1, 3))
)
quick = settings(max_examples=40, deadline=None)


def one(labels: np.ndarray, name: str = "a") -> tuple[ImageRecord, Instances]:
    cells = Instances.from_labels(labels)
    return ImageRecord(name, f"{name}.png", *cells.shape), cells


# ---- there and back ----------------------------------------------------------------------------------------------------
@quick
@given(IMAGES)
def test_label_tiffs(tmp_path_factory, labels):
    path = write_labels(tmp_path_factory.mktemp("tif") / "a.tif", labels, stamp_of(labels))
    assert np.array_equal(read_labels(path), labels) and as_written(path)
    signed = labels.min(initial=0) < 0
    assert tifffile.imread(path).dtype == (np.int16 if signed else np.uint16)


def test_ids_that_need_32_bits_and_floats_as_fiji_stores_them(tmp_path):
    for kind, largest in ((np.int32, 40_000), (np.float32, 300)):
        labels = np.array([[0, largest, -1]], kind)
        tifffile.imwrite(tmp_path / "a.tif", labels)
        assert read_labels(tmp_path / "a.tif").tolist() == labels.astype(int).tolist()
    assert tifffile.imread(write_labels(tmp_path / "b.tif", np.array([[40_000, -1]]))).dtype == np.int32
    with pytest.raises(UserError, match=r"holds ids from -2 to 0\nids are 0 \(background\) to 2147483647, or -1"):
        tifffile.imwrite(tmp_path / "a.tif", np.array([[0, -2]], np.int16))
        read_labels(tmp_path / "a.tif")


@quick
@given(IMAGES, st.sampled_from(["plain", "cvat", "fiftyone"]), st.booleans())
def test_coco_files(tmp_path_factory, labels, convention, as_polygons):
    record, cells = one(labels)
    cells = cells.with_classes(np.arange(len(cells)) % 3)
    path = tmp_path_factory.mktemp("coco") / "labels.json"
    write_coco(path, [record], [cells], ("A", "B"), convention=convention)
    read = read_coco(path, convention=convention)
    assert (read.instances, read.classes) == ([cells], ("A", "B"))
    write_coco(path, [record], [cells], ("A", "B"), convention=convention, as_polygons=as_polygons)
    assert not (read_coco(path, convention=convention).instances[0].unknown_mask & (cells.paint() > 0)).any()


def test_what_a_coco_file_says_of_it(tmp_path):
    record, cells = one(MARKED)
    data = json.loads(write_coco(tmp_path / "a.json", [record], [cells.with_classes([1, 0])], ("A",)).read_text())
    assert [entry["name"] for entry in data["categories"]] == ["A", "unknown", "ignore"]
    assert [(row["category_id"], row["iscrowd"], row["area"]) for row in data["annotations"]] == [
        (1, 0, 3),
        (2, 0, 2),
        (3, 1, 5),
    ]
    data = json.loads(write_coco(tmp_path / "a.json", [record], [cells], ("A",), convention="cvat").read_text())
    assert [row["iscrowd"] for row in data["annotations"]] == [0, 0, 0], "CVAT marks objects so"
    for name in ("ignore", " Ignore"):
        with pytest.raises(UserError, match="none 'unknown' or 'ignore'"):
            write_coco(tmp_path / "b.json", [record], [cells], (name,))


def test_a_coco_file_of_boxes(tmp_path):
    record = ImageRecord("a", "a.png", 4, 6)
    boxes = Instances.from_boxes([[0, 0, 2, 2]], (4, 6), [1]).with_unknown(np.arange(24).reshape(4, 6) % 6 > 3)
    path = write_coco(tmp_path / "boxes.json", [record], [boxes], ("A",))
    assert read_coco(path, boxes=True).instances == [boxes]
    data = json.loads(path.read_text())
    data["annotations"][1] = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [4, 0, 2, 4]}
    path.write_text(json.dumps(data))
    assert read_coco(path, boxes=True).instances == [boxes], "a box of the category ignore"


@quick
@given(IMAGES)
def test_seg_files(tmp_path_factory, labels):
    _, cells = one(labels)
    path = write_seg(tmp_path_factory.mktemp("seg") / "a_seg.npy", None, cells, stamped=True)
    assert read_seg(path).instances == cells and as_written(path)
    assert np.load(path, allow_pickle=True).item()["masks"].min() >= 0, "the GUI would read -1 as background"


def test_masks_of_minus_one_in_seg_files(tmp_path):
    path = tmp_path / "a_seg.npy"
    for content in (MARKED, {"masks": MARKED, "outlines": np.maximum(MARKED, 0)}):
        np.save(path, content)
        assert read_seg(path).instances == Instances.from_labels(MARKED)
    np.save(path, np.array([[0, 0, -1, -1, -1]]))
    assert read_seg(path).instances.unknown_px == 3, "a bare array is none of Cellpose's oldest files"
    np.save(path, {"masks": MARKED, "cellkit": {"classes": [], "class_ids": np.zeros(2, int), "scores": np.ones(2),
                                               "unknown": np.array([[3, 99]])}})  # fmt: skip
    with pytest.raises(UserError, match="notes as not annotated what does not fit"):
        read_seg(path)


@quick
@given(IMAGES)
def test_roi_zips(tmp_path_factory, labels):
    _, cells = one(labels)
    path = write_rois(tmp_path_factory.mktemp("roi") / "a_rois.zip", cells)
    read = read_rois(path, cells.shape)
    assert read.instances == cells and len(read.names) == len(cells)


@pytest.mark.parametrize(("form", "ending"), [("tif", "labels"), ("seg", "seg"), ("roi", "roi")])
def test_a_folder_of_files_and_back(tmp_path, form, ending):
    record, cells = one(np.kron(MARKED, np.ones((4, 4), int)))
    write_png(tmp_path / "pictures/a.png", np.zeros((12, 20, 3), np.uint8))
    done = write_folder(
        tmp_path / "out", [record], [cells], form=form, images=tmp_path / "pictures", made_by=["corrected"]
    )
    assert (done.files, done.quarantined) == (1, [])
    side, quarantined = read_folder(tmp_path / "out", ending, tmp_path / "pictures")
    assert quarantined == [] and [found.with_classes(0) for found in side.instances] == [cells]
    assert write_folder(tmp_path / "out", [record], [cells], form=form, images=tmp_path / "pictures").files == 1, (
        "as it was"
    )


def test_a_label_image_whose_mark_was_changed_is_not_written_over(tmp_path):
    path = write_labels(tmp_path / "a.tif", MARKED, stamp_of(MARKED))
    refuse_changed(path)
    tifffile.imwrite(path, np.where(MARKED == -1, 0, MARKED).astype(np.int16), software=stamp_of(MARKED))
    with pytest.raises(UserError, match="was changed since cellkit wrote it"):
        refuse_changed(path)


# ---- what cannot carry it ----------------------------------------------------------------------------------------------
def test_a_png_holds_no_negative_numbers(tmp_path):
    with pytest.raises(
        UserError, match=r"parts that are not annotated \(-1\), and a PNG holds no negative numbers\nwrite TIFF"
    ):
        write_label_png(tmp_path / "a.png", MARKED)
    records, cells = zip(one(MARKED), one(np.maximum(MARKED, 0), "b"), strict=True)
    done = write_folder(tmp_path, records, cells, form="png")
    assert done.files == 1 and [item.item for item in done.quarantined] == ["a"] and not (tmp_path / "a.png").exists()


def test_what_a_tool_or_a_submission_loses_is_said(tmp_path, said):
    record, cells = one(np.kron(MARKED, np.ones((4, 4), int)))
    data = CellDataset([record], [cells.with_classes(1)], ("cell",), tmp_path, [1])
    path = write_dataset(tmp_path / "a.json", data)
    Image.new("RGB", (20, 12)).save(tmp_path / "a.png")
    known = "1 image is annotated in part (67 % known)"
    code, _, err = said("labels", path, "-o", tmp_path / "seg", "--format", "seg", "--images", tmp_path)
    assert code == 0 and f"{known}; Cellpose drops what says so when it saves" in err
    code, _, err = said("labels", path, "-o", tmp_path / "tif")
    assert code == 0 and err == f"note: {known}\n"
    code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
    assert code == 0 and f"note: {known}; a submission cannot say so" in err
    code, out, _ = said("score", path, path)
    assert code == 0 and f"{known}; found mostly elsewhere and not counted: 0 cells" in out
    code, out, _ = said("inspect", path)
    assert code == 0 and "annotated in part: 1 image; of all 67 % is known" in out
