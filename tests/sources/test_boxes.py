"""Box sets: the right pixels, the right units, and nothing that pretends a box is an outline."""

import csv
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.outlines import pixel_boxes, refuse_boxes
from cellkit.cells.records import ImageRecord
from cellkit.cells.resize import resize_instances
from cellkit.commands.comparison import score_sides
from cellkit.config.sections import ChannelsConfig, ConvertConfig, SplitConfig
from cellkit.errors import UserError
from cellkit.formats.any import read_side
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.sides import match_sides
from cellkit.labelling.annotate import choose_labels, with_truth_classes
from cellkit.modules import load
from cellkit.scores.conventions import compare_conventions
from cellkit.scores.table import score_table
from cellkit.sources.box_csv import units_of
from cellkit.sources.ingest import convert_images

DATA = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
HEIGHT, WIDTH = 24, 32
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def config(source, classes=("RBC", "WBC"), **options):
    return ConvertConfig(source=source, classes=classes, channels=ChannelsConfig(nuclei="red"), **options)


def listed(root, cfg):
    return {item.image_id: item for item in load("source", cfg.source).read(Path(root), cfg)}


def picture(path, shape=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)).save(path)


def voc(root, stem, *objects, size=(HEIGHT, WIDTH), image=True):
    """Write one image of a Pascal VOC set; objects are (name, xmin, ymin, xmax, ymax)."""
    if image:
        picture(root / "JPEGImages" / f"{stem}.jpg")
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{head}{''.join(OBJECT.format(*one) for one in objects)}</annotation>")
    return path


def table(root, rows, header="image_id,image,xmin,ymin,xmax,ymax,label"):
    root.mkdir(parents=True, exist_ok=True)
    (root / "annotations.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


# ---- Pascal VOC ----------------------------------------------------------------------------------------------------
def test_voc_boxes_begin_at_one_and_include_both_ends(tmp_path):
    voc(tmp_path, "a", ("RBC", 1, 1, 32, 24), ("WBC", 3, 2, 3, 5))
    cells = listed(tmp_path, config("voc"))["a"].load().instances
    assert cells.boxes_only and cells.class_ids.tolist() == [1, 2]
    assert cells.boxes_xywh.tolist() == [[0, 0, 32, 24], [2, 1, 1, 4]] and cells.areas_px.tolist() == [768, 4]


def test_voc_lists_are_the_split_and_test_is_carved_from_train(tmp_path):
    for k in range(12):
        voc(tmp_path, f"i{k:02d}", ("RBC", 1, 1, 4, 4))
    (tmp_path / "train.txt").write_text("".join(f"i{k:02d}\n" for k in range(8)))
    (tmp_path / "val.txt").write_text("i08\ni09.jpg\n\n")
    cfg = config("voc", split=SplitConfig(train=0.75, val=0.0, test=0.25))
    items = listed(tmp_path, cfg)
    assert Counter(item.split for item in items.values()) == {"train": 6, "test": 2, "val": 2, "": 2}
    assert [items[f"i{k:02d}"].split for k in (8, 9, 10, 11)] == ["val", "val", "", ""]
    drawn = listed(tmp_path, cfg.model_copy(update={"published_split": False}))
    counts = Counter(item.split for item in drawn.values())
    assert set(counts) == {"train", "test"} and counts["train"] in (8, 9, 10) and counts.total() == 12
    (tmp_path / "val.txt").write_text("i01\n")
    with pytest.raises(UserError, match="lists i01, which is train already"):
        listed(tmp_path, cfg)


def test_voc_with_a_list_of_training_and_validation_images_uses_both(tmp_path):
    for k in range(12):
        voc(tmp_path, f"i{k:02d}", ("RBC", 1, 1, 4, 4))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for name, numbers in (("trainval", range(8)), ("test", range(8, 12))):
        (tmp_path / f"ImageSets/Main/{name}.txt").write_text("".join(f"i{k:02d}\n" for k in numbers))
    split = Counter(item.split for item in listed(tmp_path, config("voc")).values())
    assert split["test"] == 4 and split["train"] + split["val"] == 8 and split["val"]


@pytest.mark.parametrize("place", ["{}/{}", "annotations/{}/{}"])
def test_voc_files_beside_their_pictures_have_the_split_of_their_folder(tmp_path, place):
    for k, folder in enumerate(("train", "valid", "test")):
        path = tmp_path / f"{place.format(folder, f'i{k}')}.xml"
        path.parent.mkdir(parents=True)
        path.write_text(f"<annotation>{OBJECT.format('RBC', 1, 1, 4, 4)}</annotation>")
        picture(path.with_suffix(".png"))
    items = listed(tmp_path, config("voc"))
    assert [items[f"i{k}"].split for k in range(3)] == ["train", "val", "test"] and len(items) == 3
    assert len(items["i0"].load().instances) == 1
    (tmp_path / place.format("train", "i0.png")).unlink()
    with pytest.raises(UserError, match="i0.xml has no picture .*train/i0"):
        listed(tmp_path, config("voc"))["i0"].load()


def test_voc_files_may_lie_in_annotations_beside_images(tmp_path):
    voc(tmp_path, "a", ("RBC", 1, 1, 4, 4))
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    (tmp_path / "Annotations").rename(tmp_path / "annotations")
    assert len(listed(tmp_path, config("voc"))["a"].load().instances) == 1


def test_a_column_of_a_table_of_boxes_is_the_split(tmp_path):
    head = "image,xmin,ymin,xmax,ymax,label,split"
    rows = [(f"i{k}.png", 5, 5, 15, 15, "RBC", split) for k, split in enumerate(("train", "valid", "Test"))]
    for name, *_ in rows:
        picture(tmp_path / name)
    table(tmp_path, rows, head)
    assert [item.split for item in listed(tmp_path, config("box_csv")).values()] == ["train", "val", "test"]
    table(tmp_path, [*rows, ("i0.png", 1, 1, 9, 9, "RBC", "test")], head)
    with pytest.raises(UserError, match="line 5: i0.png has another split above"):
        listed(tmp_path, config("box_csv"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OBJECT.format("RBC", 0, 1, 4, 4), "leave the image of 24 x 32 px"),
        (OBJECT.format("RBC", 1, 1, 33, 4), "leave the image of 24 x 32 px"),
        (OBJECT.format("RBC", 5, 1, 4, 4), "have no extent"),
        (OBJECT.format("RBC", "nan", 1, 4, 4), "leave the image"),
        (OBJECT.format("RBC", "x", 1, 4, 4), "no Pascal VOC file"),
        ("<object><name>RBC</name></object>", "no Pascal VOC file"),
        ("<object><bndbox/></object>", "no Pascal VOC file"),
        ("<object>", "no Pascal VOC file"),
        ("<size><width>30</width><height>24</height></size>", "24 x 30 px"),
    ],
)
def test_damaged_voc_files_set_their_image_aside(tmp_path, text, said):
    voc(tmp_path, "good", ("RBC", 1, 1, 4, 4))
    picture(tmp_path / "JPEGImages" / "bad.jpg")
    (tmp_path / "Annotations" / "bad.xml").write_text(f"<annotation>{text}</annotation>")
    made = convert_images(config("voc"), tmp_path, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["good"]
    assert [q.item for q in made.quarantined] == ["Annotations/bad.xml"] and said in made.quarantined[0].reason


def test_voc_parts_that_are_missing_or_hostile_are_named(tmp_path):  # faults 31, 44 and 52
    root = tmp_path / "set"
    voc(root, "good", ("RBC", 1, 1, 4, 4))
    voc(root, "alone", ("RBC", 1, 1, 4, 4), image=False)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">]><annotation>&b;</annotation>'
    (root / "Annotations" / "bomb.xml").write_text(bomb)
    outside = voc(tmp_path / "other", "out", ("RBC", 1, 1, 4, 4))
    (root / "Annotations" / "out.xml").symlink_to(outside)
    picture(root / "JPEGImages" / "out.jpg")
    (root / "train.txt").write_text("good\nlisted\nbomb\nout\nalone\n")
    made = convert_images(config("voc"), root, tmp_path / "run")
    said = {q.item: q.reason for q in made.quarantined}
    assert [record.image_id for record in made.images.records] == ["good"] and len(said) == 4
    assert "no Annotations/listed.xml" in said["JPEGImages/listed"]
    assert "no picture JPEGImages/alone" in said["Annotations/alone.xml"]
    assert "declares entities" in said["Annotations/bomb.xml"] and "leads out of" in said["Annotations/out.xml"]


def test_a_voc_label_the_config_does_not_know_stops_or_is_unknown(tmp_path):
    voc(tmp_path, "a", ("RBC", 1, 1, 4, 4), ("Platelets", 6, 6, 9, 9))
    with pytest.raises(UserError, match=r"label 'Platelets' is none of the classes \(RBC, WBC\)"):
        listed(tmp_path, config("voc"))
    cells = listed(tmp_path, config("voc", class_names={"Platelets": None}))["a"].load().instances
    assert cells.class_ids.tolist() == [1, 0]


# ---- tables --------------------------------------------------------------------------------------------------------
def test_fractions_and_pixels_give_the_same_boxes(tmp_path):
    boxes = np.array([[0, 0, 8, 6], [4, 3, 32, 24]])
    for name, factor in (("pixels", 1), ("fractions", np.array([WIDTH, HEIGHT, WIDTH, HEIGHT]))):
        picture(tmp_path / name / "images" / "a.png")
        table(tmp_path / name, [(1, "a.png", *row, "RBC") for row in (boxes / factor).tolist()])
        item = listed(tmp_path / name, config("box_csv"))["a"]
        assert item.source == f"images/a.png, boxes in {name}"
        cells = item.load().instances
        assert cells.boxes_only and cells.boxes_xywh.tolist() == [[0, 0, 8, 6], [4, 3, 28, 21]]


@pytest.mark.parametrize(
    "edges",
    [
        [[0, 0, 1, 1]],  # the whole image, or its first pixel
        [[0.1, 0.1, 1.4, 0.9]],  # fractions that leave the image, or px
        [[0.1, 0.2, 0.5, 0.6], [10, 10, 20, 20]],  # both kinds
    ],
)
def test_units_that_could_be_either_are_refused_until_the_config_says(tmp_path, edges):
    picture(tmp_path / "a.png")
    table(tmp_path, [(1, "a.png", *row, "RBC") for row in edges])
    with pytest.raises(UserError, match="fractions of the image or px.*\nset convert.box_units"):
        listed(tmp_path, config("box_csv"))
    assert listed(tmp_path, config("box_csv", box_units="pixels"))["a"].source.endswith("boxes in pixels")


@given(st.lists(st.tuples(*[st.floats(0, 0.9)] * 2, *[st.floats(0.05, 0.1)] * 2), min_size=1), st.integers(40, 4000))
def test_scaled_up_fractions_are_never_taken_for_fractions(rows, size):
    edges = np.array([(x, y, x + w, y + h) for x, y, w, h in rows])
    assert units_of(edges) == "fractions"
    assert units_of(edges * size) == "pixels"


@pytest.mark.parametrize("edges", [[[-1, 0, 5, 5]], [[0, 0, np.inf, 5]], [[0, np.nan, 3, 5]]])
def test_units_of_damaged_numbers_are_refused(edges):
    with pytest.raises(UserError, match="numbers below 0 or none at all"):
        units_of(np.array(edges))


def test_folders_tell_the_split_and_names_may_be_spelled_otherwise(tmp_path):
    rows = [(r"valid\B.PNG", "RBC"), ("a.png", "WBC"), ("c.png", "RBC")]
    for folder, name in (("train", "a"), ("valid", "b"), ("Testing", "c")):
        picture(tmp_path / "csv" / folder / f"{name}.png")
        voc(tmp_path / "voc", name, ("RBC", 2, 2, 9, 9))
    text = "".join(f"{name};1;1;9;9;{label}\n" for name, label in rows)
    (tmp_path / "csv" / "t.csv").write_text(f"image;xmin;ymin;xmax;ymax;label\n{text}")
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    for name, stem in (("training", "a"), ("valid", "b"), ("holdout", "c"), ("trainval", "a")):
        (tmp_path / "voc" / "ImageSets" / "Main" / f"{name}.txt").write_text(stem)
    for source, root in (("box_csv", "csv"), ("voc", "voc")):
        items = listed(tmp_path / root, config(source))
        assert {name: item.split for name, item in items.items()} == {"a": "train", "b": "val", "c": "test"}
        assert all(len(item.load().instances) == 1 for item in items.values())


def test_other_folders_are_the_group_of_a_split_by_group(tmp_path):
    for donor in ("donor1", "donor2"):
        picture(tmp_path / "csv" / "train" / donor / f"{donor}.png")
        voc(tmp_path / "voc" / donor, donor, ("RBC", 2, 2, 9, 9), image=False)
        picture(tmp_path / "voc" / donor / "images" / f"{donor}.png")
    table(tmp_path / "csv", [(k, f"donor{k}.png", 1, 1, 9, 9, "RBC") for k in (1, 2)])
    for source, root in (("box_csv", "csv"), ("voc", "voc")):
        for by, wanted in (("group", ["donor1", "donor2"]), ("image", ["", ""])):
            items = listed(tmp_path / root, config(source, split_by=by))
            assert list(items) == ["donor1", "donor2"] and [item.group for item in items.values()] == wanted


def test_all_rows_of_a_picture_count_however_they_spell_its_name(tmp_path):
    picture(tmp_path / "images" / "a.png")
    names = ("images/a.png", r"images\A.png", "a.png", "./a.PNG", "train/a.png")
    table(tmp_path, [(k, name, k, 1, k + 9, 9, "RBC") for k, name in enumerate(names)])
    assert len(listed(tmp_path, config("box_csv"))["a"].load().instances) == 5
    picture(tmp_path / "plate1" / "b.png")
    table(tmp_path, [(1, "plate1/b.png", 1, 1, 9, 9, "RBC"), (2, "plate2/b.png", 3, 3, 9, 9, "RBC")])
    items = listed(tmp_path, config("box_csv"))
    assert len(items["b"].load().instances) == 1 and not items["plate2_b"].files, "boxes of another plate's picture"


def test_parts_of_a_table_that_do_not_fit_are_named(tmp_path):
    root = tmp_path / "in"
    picture(root / "images" / "a.png"), picture(root / "images" / "wild.png"), picture(root / "images" / "bare.png")
    table(
        root, [(1, "a.png", 1, 1, 9, 9, "RBC"), (2, "gone.png", 1, 1, 9, 9, "RBC"), (3, "wild.png", 1, 1, 99, 9, "RBC")]
    )
    made = convert_images(config("box_csv"), root, tmp_path / "run")
    said = {q.item: q.reason for q in made.quarantined}
    assert [record.image_id for record in made.images.records] == ["a"]
    assert "is in annotations.csv but not below" in said["gone.png, boxes in pixels"]
    assert "leave the image" in said["images/wild.png, boxes in pixels"]
    assert "has no truth" in said["images/bare.png"]
    picture(root / "more" / "a.png")
    with pytest.raises(UserError, match="two pictures are called a.png"):
        listed(root, config("box_csv"))


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("a.png", 1, 1, 9, 9)], "image,xmin,ymin,xmax,ymax", "no column for the label"),
        ([(1, 1, 9, 9, "RBC")], "xmin,ymin,xmax,ymax,label", "no column for the image"),
        ([("a.png", 1, 1, "x", 9, "RBC")], "image,xmin,ymin,xmax,ymax,label", "line 2: could not convert"),
        ([("a.png", 1, 1, 9)], "image,xmin,ymin,xmax,ymax,label", "line 2 has more or fewer fields"),
        ([], "image,xmin,ymin,xmax,ymax,label", "has no rows"),
        ([], "image,x0,y0,x1,y1,label", "has 0 tables with the columns xmin"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, rows, header, said):
    picture(tmp_path / "a.png")
    table(tmp_path, rows, header)
    with pytest.raises(UserError, match=said):
        listed(tmp_path, config("box_csv"))


# ---- pixels --------------------------------------------------------------------------------------------------------
@given(
    st.integers(1, 40), st.integers(1, 40),
    st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2, *[st.floats(1e-3, 1)] * 2), max_size=6),
)  # fmt: skip
def test_boxes_have_a_pixel_and_stay_inside_near_their_edges(height, width, boxes):
    size = np.array([width, height, width, height])
    edges = np.array([(x, y, min(x + w, 1), min(y + h, 1)) for x, y, w, h in boxes]).reshape(-1, 4) * size
    edges = edges[(edges[:, 2:] > edges[:, :2]).all(axis=1)]
    found = Instances.from_boxes(pixel_boxes(edges, (height, width), "a"), (height, width))
    assert len(found) == len(edges) and (found.areas_px > 0).all()
    xywh = found.boxes_xywh
    assert np.array_equal(found.areas_px, xywh[:, 2] * xywh[:, 3])
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    assert (corners >= 0).all() and (corners <= size).all() and (np.abs(corners - edges) <= 1).all()


def test_boxes_become_the_same_runs_as_masks():
    boxes = [[0, 0, 5, 4], [1, 1, 2, 2], [0, 3, 5, 1], [4, 0, 1, 4]]
    masks = np.zeros((4, 4, 5), bool)
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        mask[y : y + h, x : x + w] = True
    expected = Instances.from_masks(masks, (4, 5), [1, 2, 0, 1])
    found = Instances.from_boxes(boxes, (4, 5), [1, 2, 0, 1])
    assert found != expected and replace(found, boxes_only=False) == expected
    assert expected.as_boxes() == found and found[1:].boxes_only and found.with_classes(1).boxes_only
    assert Instances.concatenate([found, expected]).boxes_only and resize_instances(found, 0.5).boxes_only
    with pytest.raises(ValueError, match="leaves its image of 4 x 5 px"):
        Instances.from_boxes([[3, 0, 3, 1]], (4, 5))


# ---- boxes stay boxes ----------------------------------------------------------------------------------------------
@pytest.fixture
def boxed(tmp_path):
    """Two images of two boxes each, as a COCO file, and round masks in those boxes as predictions."""
    records, truths, founds = [], [], []
    y, x = np.mgrid[:40, :40]
    for k in range(2):
        picture(tmp_path / f"{k}.png", (40, 40))
        records.append(ImageRecord(str(k), f"{k}.png", 40, 40, split="train"))
        truths.append(Instances.from_boxes([[2, 2, 15, 15], [20, 20, 15, 15]], (40, 40), [1, 2]))
        discs = [(y - c) ** 2 + (x - c) ** 2 <= 7.5**2 for c in (9, 27)]
        founds.append(Instances.from_masks(discs, (40, 40), [1, 2]))
    return write_coco(tmp_path / "truth.json", records, truths, ("RBC", "WBC")), records, truths, founds


def test_a_coco_file_of_boxes_comes_back_as_boxes_where_boxes_are_wanted(boxed):
    path, _, truths, _ = boxed
    assert '"segmentation"' not in path.read_text()
    coco = read_coco(path, boxes=True)
    assert coco.instances == truths and all(found.boxes_only for found in coco.instances)
    with pytest.raises(UserError, match="a box but no mask, and boxes are not masks"):
        read_coco(path)


def test_outlines_are_neither_scored_on_boxes_nor_learned_from_them(boxed, tmp_path):
    path, records, truths, founds = boxed
    with pytest.raises(
        UserError, match="scoring masks needs outlines, and 2 image.* have boxes only.*\n.*voc and coco"
    ):
        score_table(truths, founds, records)
    for convention in ("kaggle", "pq", "aji_kumar", "point"):
        with pytest.raises(UserError, match=f"the convention {convention} needs outlines"):
            compare_conventions(truths, founds, conventions=["voc", convention])
    with pytest.raises(UserError, match="a box but no mask"):  # what notebook 05 trains on
        read_coco(path, tmp_path)
    images = CellDataset(records, truths, ("RBC", "WBC"), tmp_path, [1, 2])
    with pytest.raises(UserError, match="label.use: truth needs outlines"):  # what notebooks 02 and 03 learn from
        choose_labels(images, founds, {"truth": path}, "truth")
    with pytest.raises(UserError, match="a results list needs outlines"):
        write_results(tmp_path / "r.json", [1, 2], truths)
    refuse_boxes(founds, "this")


def test_boxes_are_scored_as_boxes(boxed, tmp_path):
    path, records, truths, founds = boxed
    result = compare_conventions(truths, founds, classes=("RBC", "WBC"))
    assert list(result["conventions"]) == ["coco", "voc"]
    assert all(told["why"].startswith("of boxes: ") for told in result["conventions"].values())
    assert result["conventions"]["voc"]["score"] == result["conventions"]["coco"]["score"] == 1
    assert compare_conventions([x.as_boxes() for x in founds], founds[::-1])["conventions"]["voc"]["score"] == 1
    with pytest.raises(UserError, match="MAP IoU by split needs outlines"):
        compare_conventions(truths, founds, records, by="split")
    found_path = write_results(tmp_path / "found.json", [1, 2], [founds[0], founds[1][:1]])
    truth = read_side(path)
    told = score_sides(*match_sides(truth, read_side(found_path, of=truth)))
    assert told["conventions"]["voc"]["by_class"] == {"RBC": 1.0, "WBC": 0.5} and told["truth_cells"] == 4


def test_boxes_give_segmented_cells_their_class(boxed, tmp_path):
    path, records, _, founds = boxed
    cells = CellDataset(records, [found.with_classes(0) for found in founds], ("RBC", "WBC"), tmp_path, [1, 2])
    assert [found.class_ids.tolist() for found in with_truth_classes(cells, path).instances] == [[1, 2], [1, 2]]


# ---- real data -----------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_bccd():
    items = listed(
        DATA / "bccd", config("voc", ("RBC", "WBC", "Platelets"), split=SplitConfig(train=0.8, val=0.0, test=0.2))
    )
    assert len(items) == 292 and Counter(item.split for item in items.values()) == {"train": 164, "val": 87, "test": 41}
    whole = listed(
        DATA / "bccd", config("voc", ("RBC", "WBC", "Platelets"), split=SplitConfig(train=1.0, val=0.0, test=0.0))
    )
    assert Counter(item.split for item in whole.values()) == {"train": 205, "val": 87}
    counts = Counter()
    for item in list(items.values())[::20]:
        cells = item.load().instances
        text = (DATA / "bccd" / item.source).read_text()
        assert cells.shape == (480, 640) and len(cells) == text.count("<object>") and cells.boxes_only
        counts.update(cells.class_ids.tolist())
    assert set(counts) == {1, 2, 3}


@pytest.mark.realdata
def test_blood():
    items = listed(DATA / "blood", config("box_csv", ("rbc", "wbc")))
    assert len(items) == 80 and all(item.source.endswith("boxes in fractions") for item in items.values())
    with open(DATA / "blood" / "annotations.csv", newline="") as file:
        rows = Counter((Path(row["image"]).stem, row["label"]) for row in csv.DictReader(file))
    assert sum(rows.values()) == 1849
    for name in sorted(items)[::8]:
        cells = items[name].load().instances
        assert cells.shape == (256, 256) and cells.boxes_only
        assert Counter(cells.class_ids.tolist()) == Counter({1: rows[name, "rbc"], 2: rows[name, "wbc"]}) - Counter()


def test_two_annotations_of_one_picture_are_refused(tmp_path):
    for folder in ("Annotations", "Annotations/old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.xml").write_text("<annotation/>")
    (item,) = load("source", "voc").read(tmp_path, config("voc"))
    with pytest.raises(UserError, match="2 files are called a: Annotations/a.xml and Annotations/old/a.xml"):
        item.load()
