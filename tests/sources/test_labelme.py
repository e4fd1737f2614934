"""labelme: masks and polygons, overlaps kept, classes by label; a damaged shape sets its image aside."""

import base64
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellkit.config.sections import ChannelsConfig, ConvertConfig, SplitConfig
from cellkit.errors import UserError
from cellkit.modules import load
from cellkit.sources.ingest import convert_images

DATA = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def config(source, nuclei=0, cytoplasm=None, **options):
    channels = ChannelsConfig(nuclei=nuclei, cytoplasm=cytoplasm)
    return ConvertConfig(source=source, channels=channels, **options)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def listed(root, cfg):
    return {item.image_id: item for item in load("source", cfg.source).read(Path(root), cfg)}


def encoded(picture, kind):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def mask_shape(label, x, y, mask, **more):
    picture = Image.fromarray(np.asarray(mask, np.uint8))
    corners = [[x, y], [x + picture.width - 1, y + picture.height - 1]]
    return {"label": label, "shape_type": "mask", "points": corners, "mask": encoded(picture, "PNG"), **more}


def labelme(path, shapes, picture=None, **more):
    picture = picture or Image.new("RGB", (32, 24), (200, 0, 90))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": shapes, "imageData": encoded(picture, "JPEG"), "imageHeight": 24, "imageWidth": 32, **more}
    path.write_text(json.dumps(content))


LABELME = {"nuclei": "blue", "cytoplasm": "red", "classes": ("A", "B"), "class_names": {"a": "A", "odd": None}}


def test_folders_that_are_no_split_are_the_group_of_a_split_by_group(tmp_path):
    for name in ("train/donor1/1", "donor2/2"):
        labelme(tmp_path / f"{name}.json", [mask_shape("A", 2, 3, np.ones((5, 6)))])
    for by, wanted in (("group", ["donor2", "donor1"]), ("image", ["", ""])):
        items = listed(tmp_path, config("labelme", **LABELME, split_by=by))
        assert [item.group for item in items.values()] == wanted


def test_axes_and_the_most_pixels_of_the_config_hold_and_of_several_frames_none_is_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 24, 32), np.uint8), imagej=True, metadata={"axes": "TYX"})
    labelme(tmp_path / "a.json", [mask_shape("A", 2, 3, np.ones((5, 6)))], imageData=None, imagePath="a.tif")
    labelme(tmp_path / "b.json", [mask_shape("A", 2, 3, np.ones((5, 6)))])
    with pytest.raises(UserError, match="a.tif holds 2 frames"):
        listed(tmp_path, config("labelme", **LABELME))["a"].load()
    named = LABELME | {"nuclei": 0, "cytoplasm": 1}
    assert len(listed(tmp_path, config("labelme", **named, axes="CYX"))["a"].load().instances) == 1
    for item in listed(tmp_path, config("labelme", **LABELME, axes="CYX", max_plane_px=700)).values():
        with pytest.raises(UserError, match="more than 700"):
            item.load()


def test_labelme_masks_and_polygons_keep_overlaps_and_classes(tmp_path):
    square = {"label": "B", "shape_type": "polygon", "points": [[20, 2], [25, 2], [25, 6], [20, 6]]}
    parts = [mask_shape("A", 0, 20, [[1, 1]], group_id=7), mask_shape("A", 10, 20, [[1]], group_id=7)]
    shapes = [mask_shape("a", 2, 3, np.ones((5, 6))), mask_shape("odd", 5, 5, [[1, 0], [1, 1]]), square, *parts]
    labelme(tmp_path / "train" / "1.json", shapes)
    item = listed(tmp_path, config("labelme", **LABELME))["train_1"]
    image, cells = item.load()[:2]
    assert (item.split, item.cell_type, image.shape) == ("train", "mixed", (24, 32, 3))
    assert cells.class_ids.tolist() == [1, 0, 2, 1] and cells.areas_px.tolist() == [30, 3, 30, 3]
    assert cells.boxes_xywh.tolist() == [[2, 3, 6, 5], [5, 5, 2, 2], [20, 2, 6, 5], [0, 20, 11, 1]]
    assert cells.overlapping and cells.mask(0)[5, 5] and cells.mask(1)[5, 5] and not cells.mask(1)[5, 6]


def test_labelme_splits_follow_the_folders_and_test_is_carved_from_train(tmp_path):
    for k in range(12):
        labelme(tmp_path / ("val" if k < 2 else "train") / f"{k:02d}.json", [])
    items = listed(tmp_path, config("labelme", **LABELME, split=SplitConfig(train=0.8, val=0.0, test=0.2)))
    splits = Counter(item.split for item in items.values())
    assert splits == {"train": 8, "test": 2, "val": 2}
    assert all(item.split == "val" for key, item in items.items() if key.startswith("val"))
    assert items["val_00"].load().instances.shape == (24, 32) and not len(items["val_00"].load().instances)
    kept = listed(tmp_path, config("labelme", **LABELME, split=SplitConfig(train=1.0, val=0.0, test=0.0)))
    assert Counter(item.split for item in kept.values()) == {"train": 10, "val": 2}


def test_a_label_the_config_does_not_know_stops_before_anything_is_read(tmp_path):
    labelme(tmp_path / "1.json", [mask_shape("a", 0, 0, [[1]]), mask_shape("Bb", 0, 0, [[1]])])
    with pytest.raises(UserError, match=r"label 'Bb' is none of the classes \(A, B\).*\n.*Bb: A"):
        convert_images(config("labelme", **LABELME), tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("points", "box"),
    [
        ([[10.5, 12.5], [17.5, 17.5]], [10, 12, 8, 6]),
        ([[10.9, 12.2], [17.9, 17.2]], [10, 12, 8, 6]),
        ([[9.9999999, 12], [16.9999999, 17]], [10, 12, 8, 6]),
        ([[10, 12], [17, 17]], [10, 12, 8, 6]),
        ([[17.5, 17.5], [10.5, 12.5]], [10, 12, 8, 6]),
        ([[-2.5, -1.5], [4.5, 3.5]], [0, 0, 5, 4]),
        ([[27.5, 20.5], [34.5, 25.5]], [27, 20, 5, 4]),
    ],
)
def test_a_moved_mask_is_where_labelme_draws_it(tmp_path, points, box):
    """Its corners lie between pixels; what hangs over the edge of the picture is cut."""
    labelme(tmp_path / "a.json", [mask_shape("a", 0, 0, np.ones((6, 8))) | {"points": points}])
    made = convert_images(config("labelme", **LABELME), tmp_path, tmp_path / "run")
    assert made.quarantined == [] and made.images.instances[0].boxes_xywh.tolist() == [box]


@pytest.mark.parametrize(
    "shape, said",
    [
        ({"points": [[0, 0], [4, 4]]}, "its corners span"),
        ({"mask": "no base64!"}, "cannot be read"),
        ({"mask": None}, "cannot be read"),
        ({"points": [[0, float("nan")], [1, 1]]}, "far outside"),
        ({"shape_type": "polygon", "points": [[0, 0], [1, 1]]}, "polygon of 2 points"),
        ({"shape_type": "polygon", "points": [[0, 0], [1e9, 1], [3, 3]]}, "far outside"),
        ({"shape_type": "polygon", "points": "none"}, "no pairs of numbers"),
        ({"shape_type": "rectangle"}, "is a 'rectangle'"),
    ],
)
def test_damaged_shapes_set_their_image_aside(tmp_path, shape, said):  # fault 28
    labelme(tmp_path / "good.json", [mask_shape("a", 0, 0, [[1, 1]])])
    labelme(tmp_path / "bad.json", [mask_shape("a", 0, 0, [[1, 1]]) | shape])
    made = convert_images(config("labelme", **LABELME), tmp_path, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["good"]
    assert made.quarantined[0].item == "bad.json" and said in made.quarantined[0].reason


def test_damaged_labelme_files_are_set_aside_and_pictures_beside_them_are_read(tmp_path):
    root = tmp_path / "in"
    labelme(root / "beside.json", [], imageData=None, imagePath="pictures\\p.png")
    save(root / "pictures" / "p.png", np.zeros((24, 32, 3), np.uint8))
    labelme(root / "outside.json", [], imageData=None, imagePath="../secret.png")
    save(tmp_path / "secret.png", np.zeros((24, 32, 3), np.uint8))
    labelme(root / "neither.json", [], imageData=None)
    labelme(root / "sized.json", [], imageHeight=25)
    (root / "text.json").write_text("{")
    (root / "other.json").write_text("[]")
    made = convert_images(config("labelme", **LABELME), root, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["beside"]
    said = {q.item: q.reason for q in made.quarantined}
    expected = {"outside": "leads out of", "neither": "neither imageData nor imagePath", "sized": "25 x 32",
                "text": "no JSON", "other": "no labelme file"}  # fmt: skip
    assert all(part in said[f"{name}.json"] for name, part in expected.items()) and len(said) == 5


# ---- real data -----------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_labelme_files_of_dkfz():
    names = {"PartiallydifferentiatedMSC": None}
    cfg = config(
        "labelme", "blue", "red", classes=("UndifferentiatedMSC", "Myofibroblast"), class_names=names,
        split=SplitConfig(train=0.85, val=0.0, test=0.15),
    )  # fmt: skip
    items = listed(DATA / "dkfz", cfg)
    assert Counter(item.split for item in items.values()) == {"train": 151, "test": 24, "val": 25}
    counts = Counter()
    for path in sorted((DATA / "dkfz").glob("*/*.json")):
        counts.update(shape["label"] for shape in json.loads(path.read_text())["shapes"])
    assert counts == {"Myofibroblast": 951, "UndifferentiatedMSC": 815, "PartiallydifferentiatedMSC": 236}
    for image_id in ("train_0000", "val_0006"):
        folder, stem = image_id.split("_")
        shapes = json.loads((DATA / "dkfz" / folder / f"{stem}.json").read_text())["shapes"]
        image, cells = items[image_id].load()[:2]
        ids = {"UndifferentiatedMSC": 1, "Myofibroblast": 2, "PartiallydifferentiatedMSC": 0}
        assert image.shape == (1040, 1388, 3) and cells.class_ids.tolist() == [ids[s["label"]] for s in shapes]
        for box, shape in zip(cells.boxes_xywh, shapes, strict=True):
            corners = np.array(shape["points"])
            assert (box[:2] >= corners[0]).all() and (box[:2] + box[2:] - 1 <= corners[1]).all()


def test_a_picture_with_an_orientation_is_turned_as_labelme_turns_it(tmp_path):
    seen = np.zeros((24, 32, 3), np.uint8)
    seen[4:10, 4:20] = 250
    shape = {"label": "A", "shape_type": "polygon", "points": [[4, 4], [19, 4], [19, 9], [4, 9]]}
    exif = Image.Exif()
    exif[0x112] = 3
    stored = Image.fromarray(np.ascontiguousarray(seen[::-1, ::-1]))
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    labelme(tmp_path / "a.json", [shape], imageData=None, imagePath="a.jpg")
    cfg = ConvertConfig(source="labelme", channels=ChannelsConfig(nuclei="blue"), classes=("A",))
    loaded = listed(tmp_path, cfg)["a"].load()
    assert loaded.image[..., 2][loaded.instances.mask(0)].min() > 200
    held = base64.b64encode((tmp_path / "a.jpg").read_bytes()).decode()
    labelme(tmp_path / "a.json", [shape], imageData=held)
    with pytest.raises(UserError, match="nobody knows which way it was outlined"):
        listed(tmp_path, cfg)["a"].load()
