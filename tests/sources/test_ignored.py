"""Regions that nobody annotated, from every source to the run folder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from layout_cases import LABELS, config, listed, save
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.config.sections import SplitConfig
from cellkit.errors import UserError
from cellkit.formats.coco import write_truth
from cellkit.formats.coco_reading import read_coco
from cellkit.sources.ingest import convert_images
from cellkit.sources.inspection import classes_of, summarise
from cellkit.sources.statistics import describe, measure_image, remarks

REGION = np.zeros((24, 32), bool)
REGION[14:, 4:24] = True
MARKED = np.where(REGION & (LABELS == 0), -1, LABELS)
ONE = SplitConfig(train=1.0, val=0.0, test=0.0)


def box(label, x, y, width, height):
    return {"label": label, "shape_type": "rectangle", "points": [[x + width - 1, y], [x, y + height - 1]]}


def labelme(path, *shapes):
    save(path.with_suffix(".png"))
    content = {"shapes": list(shapes), "imagePath": path.with_suffix(".png").name, "imageHeight": 24, "imageWidth": 32}
    path.write_text(json.dumps(content))


def test_minus_one_in_a_label_image(tmp_path):
    save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a_masks.tif", MARKED.astype(np.int16))
    cells = listed(tmp_path, config("folder", pieces="keep"))["a"].load().instances
    assert cells.with_classes(0) == Instances.from_labels(MARKED)
    split = listed(tmp_path, config("folder", pieces="split"))["a"].load().instances
    assert split.unknown_px == cells.unknown_px == (MARKED == -1).sum()
    tifffile.imwrite(tmp_path / "a_masks.tif", np.where(MARKED == -1, -2, MARKED).astype(np.int16))
    with pytest.raises(UserError, match="holds ids from -2 to 9"):
        listed(tmp_path, config("folder"))["a"].load()


def test_minus_one_in_cellposes_file(tmp_path):
    save(tmp_path / "a.png")
    np.save(tmp_path / "a_seg.npy", {"masks": MARKED, "outlines": np.zeros_like(MARKED)})
    cells = listed(tmp_path, config("cellpose"))["a"].load().instances
    assert cells.with_classes(0) == Instances.from_labels(MARKED)
    tifffile.imwrite(tmp_path / "a_masks.tif", MARKED.astype(np.int16))
    assert listed(tmp_path, config("cellpose"))["a"].load().instances.unknown_px == cells.unknown_px, "the same twice"
    tifffile.imwrite(tmp_path / "a_masks.tif", LABELS.astype(np.int16))
    with pytest.raises(UserError, match="masks beside it that differ"):
        listed(tmp_path, config("cellpose"))["a"].load()


def test_a_row_of_the_table_of_classes_makes_a_mask_a_region(tmp_path):
    """For tools that draw cells only, such as Cellpose's GUI: label 9 there is a region."""
    save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a_masks.tif", np.where(MARKED == -1, 99, MARKED).astype(np.uint16))
    (tmp_path / "classes.csv").write_text("file,label,class\na.png,99,ignore\na.png,4,B\n")
    cells = listed(tmp_path, config("folder", classes=("A", "B")))["a"].load().instances
    assert cells.class_ids.tolist() == [0, 2, 0] and np.array_equal(cells.unknown_mask, MARKED == -1)


@pytest.mark.parametrize("label", ["ignore", "Ignore", "nobody looked"])
def test_shapes_of_labelme(tmp_path, label):
    labelme(tmp_path / "a.json", {"label": "A", "shape_type": "polygon", "points": [[2, 2], [8, 2], [8, 8], [2, 8]]},
            box(label, 6, 6, 10, 12))  # fmt: skip
    named = {"class_names": {"nobody looked": "ignore"}, "classes": ("A",)}
    cells = listed(tmp_path, config("labelme", **named))["a"].load().instances
    assert (len(cells), cells.boxes_xywh.tolist(), cells.unknown_px) == (1, [[2, 2, 7, 7]], 10 * 12 - 9)
    assert classes_of(tmp_path, "labelme") == tuple(sorted({"A", label} - {"ignore", "Ignore"}))
    labelme(tmp_path / "a.json", box("A", 6, 6, 10, 12))
    with pytest.raises(UserError, match="is a 'rectangle'"):
        listed(tmp_path, config("labelme", **named))["a"].load()


def test_crowds_and_the_category_ignore_of_coco(tmp_path):
    save(tmp_path / "a.png")
    ring = lambda x, y, w, h: [[x, y, x + w, y, x + w, y + h, x, y + h]]  # noqa: E731
    rows = [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": ring(2, 2, 6, 6)},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": ring(20, 2, 5, 5), "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": ring(0, 14, 10, 10)},
    ]
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}], "annotations": rows,
               "categories": [{"id": 7, "name": "A"}, {"id": 3, "name": "ignore"}]}  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    cells = listed(tmp_path, config("coco", classes=("A",)))["a"].load().instances
    assert (cells.class_ids.tolist(), cells.unknown_px) == ([1], 25 + 100)
    assert classes_of(tmp_path, "coco") == ("A",)
    for row in rows:  # boxes, where there are no masks
        x, y, x1, y1 = (row["segmentation"][0][k] for k in (0, 1, 2, 5))
        row |= {"bbox": [x, y, x1 - x, y1 - y], "segmentation": []}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    boxes = listed(tmp_path, config("coco", classes=("A",)))["a"].load().instances
    assert boxes == replace(cells, boxes_only=True)


def test_boxes_of_voc(tmp_path):
    save(tmp_path / "JPEGImages" / "a.png")
    item = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    )
    objects = item.format("A", 3, 3, 8, 8) + item.format("ignore", 7, 7, 16, 16)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    cells = listed(tmp_path, config("voc", classes=("A",)))["a"].load().instances
    assert (cells.boxes_xywh.tolist(), cells.boxes_only, cells.unknown_px) == ([[2, 2, 6, 6]], True, 100 - 4)


def test_an_image_of_which_nothing_is_annotated_has_no_truth(tmp_path, capsys):
    for name, labels in (("a", MARKED), ("b", LABELS), ("c", np.full_like(LABELS, -1))):
        save(
            tmp_path / f"data/{name}.png", np.roll(np.asarray(Image.open(save(tmp_path / "x.png"))), ord(name), axis=0)
        )
        tifffile.imwrite(tmp_path / f"data/{name}_masks.tif", labels.astype(np.int16))
    assert listed(tmp_path / "data", config("folder"))["c"].load().instances is None
    made = convert_images(config("folder", split=ONE), tmp_path / "data", tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["a", "b"]
    assert [item.item for item in made.quarantined] == ["c.png"] and "has no truth" in made.quarantined[0].reason
    known = f"1 image is annotated in part ({100 * (MARKED >= 0).mean():.0f} % known)"
    assert f"{known}\n" in capsys.readouterr().err and known in repr(made.images)
    truth = read_coco(write_truth(tmp_path / "run/truth.json", made.images), tmp_path / "run")
    assert [cells.with_classes(0) for cells in truth.instances] == [Instances.from_labels(x) for x in (MARKED, LABELS)]
    again = convert_images(config("folder", split=ONE), tmp_path / "data", tmp_path / "run")
    assert again.images.instances == made.images.instances
    half = convert_images(config("folder", split=ONE, scale=0.5), tmp_path / "data", tmp_path / "half")
    assert 0.8 < 4 * half.images.instances[0].unknown_px / made.images.instances[0].unknown_px < 1.2


def test_what_is_said_of_a_set(tmp_path):
    save(tmp_path / "data/a.png")
    tifffile.imwrite(tmp_path / "data/a_masks.tif", MARKED.astype(np.int16))
    images = convert_images(config("folder", split=ONE), tmp_path / "data", tmp_path / "run").images
    assert remarks(describe(images))[-1] == f"1 image is annotated in part ({100 * (MARKED >= 0).mean():.0f} % known)"
    told = summarise("folder", [cells.shape for cells in images.instances], images.instances, ["cell"])
    assert (told["in_part"], told["known"]) == (1, round((MARKED >= 0).mean(), 4))
    image = np.where(MARKED[..., None] == -1, 200, 10).astype(np.uint8).repeat(3, axis=2)
    assert measure_image(image, images.instances[0])["ground"] == [10.0] * 3, "the ground is that of what is known"


def test_a_class_cannot_be_called_ignore():
    with pytest.raises(ValueError, match="ignore is the name of regions that nobody annotated"):
        config("folder", classes=("A", "Ignore"))
