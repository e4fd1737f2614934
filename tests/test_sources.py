"""Foreign layouts in, records and instances out: what belongs to what, what is kept, what is set aside and why."""

import base64
import csv
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellkit.config import ChannelsConfig, ConvertConfig, SplitConfig
from cellkit.convert import convert_file, resize_labels
from cellkit.errors import UserError
from cellkit.instances import Instances
from cellkit.labels import read_labels, write_labels
from cellkit.sources import SOURCES, SourceImage, compose_halves, gather, list_files, source_folder, thin, write_table
from cellkit.synthetic import write_fields

DATA = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[2] / "shared" / "data")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (24, 32), dtype=np.uint8)
LABELS = np.zeros((24, 32), np.int32)
LABELS[2:9, 3:12], LABELS[12:20, 10:30], LABELS[22, 1] = 1, 4, 9


def config(source, nuclei=0, cytoplasm=None, **options):
    channels = ChannelsConfig(nuclei=nuclei, cytoplasm=cytoplasm)
    return ConvertConfig(source=source, channels=channels, **options)


def save(path, pixels=GREY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def listed(root, cfg):
    return {item.image_id: item for item in SOURCES[cfg.source](Path(root), cfg)}


# ---- microscope files ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    files = write_fields(
        folder, images_per_line=4, mixed_images=2, size_px=128, planes=2, diameter_px=24, empty_images=1
    )
    return folder, {Path(file.path).name.removesuffix(".ome.tif"): file for file in files}


def test_drawn_fields_become_records_pictures_and_exact_truth(tmp_path, drawn):
    root, files = drawn
    cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"))
    made = gather(cfg, root, tmp_path)
    assert not made.quarantined and len(made.records) == len(made.instances) == len(files) == 15
    for record, cells in zip(made.records, made.instances, strict=True):
        folder, name = record.image_id.split("_", 1)
        assert record.cell_type == folder and record.group == "" and record.um_per_px == 0.45
        assert record.channels == "red=;green=GFP;blue=DAPI"
        assert record.source == f"{folder}/{name}.ome.tif z max of 2"
        picture = np.asarray(Image.open(tmp_path / record.path))
        (expected,) = convert_file(root / files[name].path, {"nuclei": "DAPI", "cytoplasm": "GFP"})
        np.testing.assert_array_equal(picture, expected.image, strict=True)
        np.testing.assert_array_equal(cells.paint(), read_labels(root / files[name].truth))
        assert len(cells) == files[name].cells
        if folder != "mixed":
            assert set(cells.class_ids.tolist()) == {1 if folder == "HEK" else 2}
    assert {r.split for r in made.records if r.cell_type == "mixed"} == {"test"}
    assert {r.split for r in made.records if r.cell_type == "HEK"} == {"train", "val", "test"}
    for record in made.records:
        defect = files[record.image_id.split("_", 1)[1]].defect
        expected = {"out_of_focus": {"out_of_focus"}, "debris": {"debris", "saturated"}}.get(defect, set())
        assert expected & set(record.flags.split(";")) if expected else record.flags == ""


def test_cells_of_a_mixed_field_have_the_class_that_was_drawn(drawn):
    root, _ = drawn
    items = listed(root, config("drawn", "DAPI", "GFP", classes=("N2a", "HEK")))
    with open(root / "truth" / "classes.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] == "mixed/mixed_01.ome.tif"]
    cells = items["mixed_mixed_01"].load().instances
    assert cells.class_ids.tolist() == [("N2a", "HEK").index(row["class"]) + 1 for row in rows]
    with pytest.raises(UserError, match="the source's label 'HEK' is none of the classes"):
        listed(root, config("drawn", "DAPI", classes=("N2a", "U2OS")))
    nameless = listed(root, config("drawn", "DAPI", classes=("N2a", "U2OS"), class_names={"HEK": None}))
    assert nameless["HEK_HEK_01"].cell_type == "" and not nameless["HEK_HEK_01"].load().instances.class_ids.any()


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, drawn):
    root, _ = drawn
    made = {}
    for workers in (1, 2):
        cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"), scale=0.5, max_images=3, workers=workers)
        made[workers] = gather(cfg, root, tmp_path / str(workers))
    assert made[1].records == made[2].records and made[1].instances == made[2].instances
    names = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(names) == 9 + 2
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_scale_shrinks_pictures_truth_and_pixel_size_together(tmp_path, drawn):
    root, files = drawn
    cfg = config("drawn", "DAPI", "GFP", classes=("HEK", "N2a"), scale=0.5, max_images=1)
    made = gather(cfg, root, tmp_path)
    for record, cells in zip(made.records, made.instances, strict=True):
        truth = read_labels(root / files[record.image_id.split("_", 1)[1]].truth)
        assert (record.height_px, record.width_px, record.um_per_px) == (64, 64, 0.9) and cells.shape == (64, 64)
        expected = Instances.from_labels(resize_labels(truth, 0.5)).paint()
        np.testing.assert_array_equal(cells.paint(), expected)


def test_the_demo_draws_what_its_config_says(tmp_path):
    class Stage:
        def path(self, name):
            return tmp_path / name

        def reads(self, **paths):
            self.read = paths

    drawn = {"images_per_line": 1, "mixed_images": 1, "size_px": 64, "planes": 1, "defect_images_per_line": 0}
    cfg = ConvertConfig(classes=("HEK", "N2a"), drawn=drawn, channels={"nuclei": "DAPI"})
    assert sorted(listed(source_folder(cfg, Stage()), cfg)) == ["HEK_HEK_01", "N2a_N2a_01", "mixed_mixed_01"]
    save(tmp_path / "data" / "some" / "a.png")
    stage = Stage()
    cfg = config("folder", data=str(tmp_path / "data"), path="some")
    assert source_folder(cfg, stage) == tmp_path / "data" / "some" == stage.read["data"]


# ---- folders of pictures -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "image, label",
    [
        ("a.png", "a_masks.tif"), ("a.png", "a_cp_masks.png"), ("x/a.png", "x/a_label.tif"), ("a.png", "labels/a.tif"),
        ("images/a.png", "labels/a.png"), ("images/x/a.png", "labels/x/a.tif"), ("x/images/a.png", "x/masks/a.tif"),
        ("a.png", "labels/a_masks.tif"), ("x/a.png", "labels/x/a.tif"),
    ],
)  # fmt: skip
def test_a_label_image_is_found_by_its_name(tmp_path, image, label):
    save(tmp_path / image)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    if label.endswith("png"):
        save(tmp_path / label, LABELS.astype(np.uint8))
    else:
        write_labels(tmp_path / label, LABELS)
    (item,) = listed(tmp_path, config("folder")).values()
    cells = item.load().instances
    np.testing.assert_array_equal(cells.paint(), np.searchsorted([0, 1, 4, 9], LABELS))
    assert cells.class_ids.tolist() == [1, 1, 1] and item.cell_type == "cell"


def test_folders_are_the_split_the_class_and_the_group(tmp_path):
    for name in ("train/A/plate1/a.png", "val/b/plate2/images/b.png", "test/plate3/c.png", "train/d.png"):
        save(tmp_path / name)
    items = listed(tmp_path, config("folder", classes=("A", "B")))
    found = {key: (item.split, item.cell_type, item.group) for key, item in items.items()}
    assert found == {
        "train_A_plate1_a": ("train", "A", "plate1"), "val_b_plate2_b": ("val", "B", "plate2"),
        "test_plate3_c": ("test", "", "plate3"), "train_d": ("train", "", ""),
    }  # fmt: skip
    assert items["train_d"].load().instances is None


def test_a_split_by_group_keeps_groups_whole(tmp_path):
    for k in range(24):
        save(tmp_path / f"plate{k % 6}" / f"{k}.png")
    items = listed(tmp_path, config("folder", split_by="group"))
    assert all(len({i.split for i in items.values() if i.group == f"plate{k}"}) == 1 for k in range(6))
    assert {item.split for item in items.values()} == {"train", "val", "test"}


def test_two_files_that_become_one_image_are_refused_by_name(tmp_path):  # faults 23 and 25
    save(tmp_path / "a" / "1.png"), save(tmp_path / "b" / "1.png")
    assert sorted(listed(tmp_path, config("folder"))) == ["a_1", "b_1"]
    save(tmp_path / "a_1.png")
    with pytest.raises(UserError, match=r"a/1.png and a_1.png would both be image 'a_1'"):
        gather(config("folder"), tmp_path, tmp_path / "run")


def test_awkward_names_go_all_the_way(tmp_path):  # fault 24
    names = ["zell ä.png", "-rf.png", "a{b}.png", "日本 語.png", "=1+1.png", "CON.png"]
    for name in names:
        save(tmp_path / "in" / name)
    made = gather(config("folder"), tmp_path / "in", tmp_path / "run")
    assert sorted(record.source for record in made.records) == sorted(names) and not made.quarantined
    assert all((tmp_path / "run" / record.path).is_file() for record in made.records)
    assert "'=1+1.png" in (tmp_path / "run" / "conversion.csv").read_text()
    assert "\n=" not in (tmp_path / "run" / "conversion.csv").read_text()


def test_links_are_not_followed_in_circles_nor_out_of_the_folder(tmp_path):  # faults 25 and 52
    save(tmp_path / "in" / "a.png"), save(tmp_path / "secret" / "s.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "self.png").symlink_to(tmp_path / "in" / "self.png")
    (tmp_path / "in" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (tmp_path / "in" / "inside.png").symlink_to(tmp_path / "in" / "a.png")
    made = gather(config("folder"), tmp_path / "in", tmp_path / "run")
    assert [record.image_id for record in made.records] == ["a", "inside"]
    assert [q.item for q in made.quarantined] == ["out.png", "self.png"]
    assert all("is a link that leads" in q.reason for q in made.quarantined)
    write_labels(tmp_path / "secret" / "l.tif", LABELS)
    (tmp_path / "in" / "a_masks.tif").symlink_to(tmp_path / "secret" / "l.tif")
    with pytest.raises(UserError, match="leads out of"):
        listed(tmp_path / "in", config("folder"))["a"].load()


# ---- what cannot be used -------------------------------------------------------------------------------------------
def test_bad_images_are_set_aside_with_their_reason_and_the_rest_goes_on(tmp_path):
    root = tmp_path / "in"
    for name in ("a", "b", "short", "sized", "twice", "float", "unlabelled"):
        save(root / f"{name}.png")
        write_labels(root / f"{name}_masks.tif", LABELS)
    (root / "short.png").write_bytes((root / "a.png").read_bytes()[:200])  # fault 2
    write_labels(root / "sized_masks.tif", LABELS[:20])  # fault 21
    write_labels(root / "labels" / "twice.tif", LABELS)
    tifffile.imwrite(root / "float_masks.tif", LABELS / 2)  # fault 13
    (root / "unlabelled_masks.tif").unlink()
    (root / "empty.tif").write_bytes(b"")  # fault 3
    (root / "text.tif").write_text("no image")
    (root / "vendor.czi").write_bytes(b"ZISRAWFILE")
    made = gather(config("folder"), root, tmp_path / "run")
    assert [record.image_id for record in made.records] == ["a", "b"] and len(made.instances) == 2
    said = {q.item: q.reason for q in made.quarantined}
    expected = {
        "short.png": "cannot be read", "twice.png": "several label images", "float.png": "float64",
        "unlabelled.png": "has no truth", "empty.tif": "empty", "text.tif": "cannot be read",
        "vendor.czi": "not read yet", "sized.png": r"sized.png is 24 x 32 px, its label image",
    }  # fmt: skip
    assert set(said) == set(expected)
    assert all(part in said[name] and "\n" not in said[name] for name, part in expected.items())
    assert "sized_masks.tif is 20 x 32" in said["sized.png"]
    assert sorted(path.stem for path in (tmp_path / "run" / "images").iterdir() if path.stem in said) == []


def test_nothing_to_convert_is_an_error_of_two_lines(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.czi").write_bytes(b"x")
    for folder, said in (("missing", "does not exist"), ("empty", "no image"), ("bad", "none of the 1 images")):
        with pytest.raises(UserError, match=said) as error:
            gather(config("folder"), tmp_path / folder, tmp_path / "run")
        assert str(error.value).count("\n") == 1
    assert not (tmp_path / "run" / "conversion.csv").exists()


def test_a_channel_that_no_image_has_is_said_once_with_the_channels_there_are(tmp_path):
    save(tmp_path / "in" / "a.png")
    with pytest.raises(UserError, match=r"none of the 1 images.*'DAPI' is no channel of a.png, which has 1 channel"):
        gather(config("folder", "DAPI"), tmp_path / "in", tmp_path / "run")
    with pytest.raises(UserError, match="names neither nuclei nor cytoplasm"):
        gather(config("folder", None), tmp_path / "in", tmp_path / "run")


# ---- which images --------------------------------------------------------------------------------------------------
@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 12))
def test_thinning_keeps_order_ends_and_the_wanted_number(kinds, wanted):
    items = [SourceImage(str(k), kind, "", "", str(k), None) for k, kind in enumerate(kinds)]
    kept = thin(items, wanted)
    positions = [items.index(item) for item in kept]
    assert positions == sorted(positions) and thin(items, None) == items == thin(items, 100)
    for kind in "ab":
        there = [k for k, item in enumerate(items) if item.cell_type == kind]
        mine = [k for k in positions if items[k].cell_type == kind]
        assert len(mine) == min(wanted, len(there))
        if mine:
            assert mine[0] == there[0] and (wanted == 1 or mine[-1] == there[-1])
        gaps = np.diff([there.index(k) for k in mine])
        assert not gaps.size or gaps.max() - gaps.min() <= 1


def test_files_are_listed_sorted_without_labels_and_hidden_names(tmp_path):
    for name in (
        "b.png",
        "a/2.png",
        "a/10.PNG",
        "a/2_masks.png",
        "labels/b.png",
        ".hidden/c.png",
        "._b.png",
        "note.txt",
    ):
        save(tmp_path / name) if name.lower().endswith("png") else (tmp_path / name).write_text("")
    names = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path, (".png",))]
    assert names == ["a/10.PNG", "a/2.png", "b.png"]


def test_tables_cannot_carry_formulas(tmp_path):  # fault 46
    path = write_table(tmp_path / "a.csv", [{"a": "=cmd()", "b": -1.25}, {"a": "@x", "b": 2, "c": "plain"}])
    assert path.read_text() == "a,b,c\n'=cmd(),-1.25,\n'@x,2,plain\n"


# ---- two lines -----------------------------------------------------------------------------------------------------
def two_lines(root, images=6):
    rng = np.random.default_rng(3)
    for line, shape in (("u2os", (40, 60)), ("nih3t3", (36, 64))):
        for k in range(images):
            labels = np.kron(rng.integers(0, 2, (4, 6)) * np.arange(1, 25).reshape(4, 6), np.ones((9, 10), int))
            padded = np.zeros(shape, np.uint8)
            padded[: min(36, shape[0]), : min(60, shape[1])] = labels[:36, :60]
            save(root / line / "images" / f"dna-{k}.png", (padded * 9 + rng.integers(0, 9, shape)).astype(np.uint8))
            save(root / line / "labels" / f"dna-{k}.png", padded)


def test_two_lines_give_one_class_per_image_and_mixed_test_images(tmp_path):
    two_lines(tmp_path, 8)
    cfg = config(
        "two_lines", classes=("U2OS", "NIH3T3"), mixed_images=4, split=SplitConfig(train=0.5, val=0.25, test=0.25)
    )
    items = listed(tmp_path, cfg)
    assert list(items)[-4:] == ["mixed_01", "mixed_02", "mixed_03", "mixed_04"] and len(items) == 20
    for image_id, item in items.items():
        if not image_id.startswith("mixed"):
            cells = item.load().instances
            assert item.cell_type.lower() == image_id.split("_")[0]
            assert set(cells.class_ids.tolist()) == {cfg.classes.index(item.cell_type) + 1}
    sources = {item.source: item for item in items.values()}
    seen = set()
    for number in range(1, 5):
        item = items[f"mixed_{number:02d}"]
        left, right = (sources[part.split("half of ")[1]] for part in item.source.split(", "))
        assert item.split == left.split == right.split == "test" and {left.cell_type, right.cell_type} == set(
            cfg.classes
        )
        seen.add((left.image_id, right.image_id))
        image, cells = item.load()[:2]
        assert image.shape == (36, 60, 3) and cells.shape == (36, 60)
        np.testing.assert_array_equal(image[:, :30], left.load().image[:36, :30])
        np.testing.assert_array_equal(image[:, 30:], right.load().image[:36, 30:60])
        ids = cells.paint(cells.class_ids)
        assert set(np.unique(ids[:, :30])) <= {0, cfg.classes.index(left.cell_type) + 1}
        assert set(np.unique(ids[:, 30:])) <= {0, cfg.classes.index(right.cell_type) + 1}
    assert len(seen) == 4
    with pytest.raises(UserError, match="9 mixed images are wanted, 4 can be made"):
        listed(tmp_path, cfg.model_copy(update={"mixed_images": 9}))


def test_a_folder_that_is_no_class_is_refused_or_named(tmp_path):
    two_lines(tmp_path, 2)
    with pytest.raises(UserError, match=r"the folder nih3t3/ is none of the classes \(U2OS, 3T3\)"):
        listed(tmp_path, config("two_lines", classes=("U2OS", "3T3")))
    items = listed(tmp_path, config("two_lines", classes=("U2OS", "3T3"), class_names={"nih3t3": "3T3"}))
    assert Counter(item.cell_type for item in items.values()) == {"U2OS": 2, "3T3": 2}
    (tmp_path / "u2os" / "labels" / "dna-1.png").unlink()
    cfg = config("two_lines", classes=("U2OS", "NIH3T3"))
    made = gather(cfg, tmp_path, tmp_path / "run")
    assert len(made.records) == 3 and "dna-1.png has no label image dna-1" in made.quarantined[0].reason


label_images = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=16), elements=st.integers(0, 5)
)


@given(label_images, label_images, st.integers(0, 6))
def test_halves_keep_every_whole_cell_and_cut_the_others_at_the_seam(a, b, min_piece_px):
    sides = []
    for labels, value in ((a, 50), (b, 200)):
        classes = np.arange(len(np.unique(labels[labels > 0]))) % 2 + (1 if value == 50 else 3)
        cells = Instances.from_labels(labels, classes)
        sides.append((np.full((*labels.shape, 3), value, np.uint8), cells))
    image, cells = compose_halves(*sides, min_piece_px)
    height, width = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    seam = width // 2
    assert image.shape == (height, width, 3) and cells.shape == (height, width) and not cells.overlapping
    assert (image[:, :seam] == 50).all() and (image[:, seam:] == 200).all()
    painted = cells.paint()
    for columns, labels, classes in ((slice(0, seam), a, {1, 2}), (slice(seam, width), b, {3, 4})):
        part, found = labels[:height, columns], painted[:, columns]
        assert set(cells.class_ids[np.unique(found[found > 0]) - 1].tolist()) <= classes
        for value in np.unique(part[part > 0]):
            area, whole = (part == value).sum(), (labels == value).sum()
            ids = np.unique(found[part == value])
            assert len(ids) == 1 and (ids[0] > 0) == (area == whole or area >= min_piece_px)
            assert ids[0] == 0 or (found == ids[0]).sum() == area
    assert len(cells) == len(np.unique(painted[painted > 0])) and cells.areas_px.all()


# ---- labelme -------------------------------------------------------------------------------------------------------
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
        gather(config("labelme", **LABELME), tmp_path, tmp_path / "run")


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
    made = gather(config("labelme", **LABELME), tmp_path, tmp_path / "run")
    assert [record.image_id for record in made.records] == ["good"]
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
    made = gather(config("labelme", **LABELME), root, tmp_path / "run")
    assert [record.image_id for record in made.records] == ["beside"]
    said = {q.item: q.reason for q in made.quarantined}
    expected = {"outside": "leads out of", "neither": "neither imageData nor imagePath", "sized": "25 x 32",
                "text": "no JSON", "other": "no labelme file"}  # fmt: skip
    assert all(part in said[f"{name}.json"] for name, part in expected.items()) and len(said) == 5


# ---- DSB2018 -------------------------------------------------------------------------------------------------------
def test_both_forms_of_dsb2018_give_the_same(tmp_path):
    rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    for name in ("0b1", "a2c"):
        save(tmp_path / "packed" / "images" / f"{name}.png", rgba)
        save(tmp_path / "packed" / "labels" / f"{name}.png", LABELS.astype(np.uint16))
        save(tmp_path / "kaggle" / name / "images" / f"{name}.png", rgba)
        for k, value in enumerate((1, 4, 9)):
            save(tmp_path / "kaggle" / name / "masks" / f"{k}.png", ((value == LABELS) * 255).astype(np.uint8))
    (tmp_path / "packed" / "index.csv").write_text("id,modality\na2c,fluor_small\n0b1,pink_he\n")
    cfg = config("dsb2018", "red", classes=("nucleus",))
    packed, kaggle = listed(tmp_path / "packed", cfg), listed(tmp_path / "kaggle", cfg)
    assert list(packed) == list(kaggle) == ["0b1", "a2c"]
    for name in packed:
        a, b = packed[name].load(), kaggle[name].load()
        np.testing.assert_array_equal(a.image, b.image, strict=True)
        assert a.instances == b.instances and a.instances.class_ids.tolist() == [1, 1, 1]
        assert packed[name].cell_type == "nucleus" and not a.image[..., :2].any()
    save(tmp_path / "kaggle" / "a2c" / "masks" / "3.png", np.full((9, 9), 255, np.uint8))
    save(tmp_path / "kaggle" / "0b1" / "masks" / "3.png", LABELS.astype(np.uint8))
    with pytest.raises(UserError, match="masks are as large as their image"):
        listed(tmp_path / "kaggle", cfg)["a2c"].load()
    with pytest.raises(UserError, match="a mask is one object"):
        listed(tmp_path / "kaggle", cfg)["0b1"].load()


# ---- real data -----------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_two_lines_of_coelho():
    cfg = config("two_lines", classes=("u2os", "nih3t3"), mixed_images=6)
    items = listed(DATA / "two_lines", cfg)
    assert Counter(item.cell_type for item in items.values()) == {"u2os": 38, "nih3t3": 39, "mixed": 6}
    for line, shape, cells in (("u2os", (1030, 1349), 38), ("nih3t3", (1024, 1344), 60)):
        loaded = items["u2os_dna-1" if line == "u2os" else "nih3t3_dna-21"].load()
        assert loaded.image.shape == (*shape, 3) and len(loaded.instances) == cells
        assert set(loaded.instances.class_ids.tolist()) == {cfg.classes.index(line) + 1}
        assert not loaded.image[..., :2].any() and loaded.image[..., 2].max() == 255
    image, cells = items["mixed_01"].load()[:2]
    assert image.shape == (1024, 1344, 3) and set(cells.class_ids.tolist()) == {1, 2} and not cells.overlapping


@pytest.mark.realdata
def test_labelme_files_of_dkfz():
    names = {"PartiallydifferentiatedMSC": None}
    cfg = config(
        "labelme", "blue", "red", classes=("UndifferentiatedMSC", "Myofibroblast"), class_names=names,
        split=SplitConfig(train=0.85, val=0.0, test=0.15),
    )  # fmt: skip
    items = listed(DATA / "dkfz", cfg)
    assert Counter(item.split for item in items.values()) == {"train": 149, "test": 26, "val": 25}
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


@pytest.mark.realdata
def test_packed_dsb2018():
    items = listed(DATA / "dsb2018", config("dsb2018", "red", classes=("nucleus",)))
    with open(DATA / "dsb2018" / "index.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(items) == 565 == len(rows) and set(items) == set(rows)
    for image_id in sorted(items)[::60]:
        loaded, row = items[image_id].load(), rows[image_id]
        assert loaded.image.shape == (int(row["height"]), int(row["width"]), 3)
        assert len(loaded.instances) == int(row["n_nuclei"]) and loaded.instances.class_ids.all()
