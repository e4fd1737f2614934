"""COCO sets and LIVECell: which class, which split; duplicates and damage said, not swallowed."""

import json
from collections import Counter

import numpy as np
import pytest
import tifffile
from cocoset_cases import cell, config, image, listed, picture, save

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.sections import SplitConfig
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_maker import stamp_of_rows
from cellkit.formats.coco_reading import read_coco
from cellkit.sources.coco import looks_like_coco, read_sheets
from cellkit.sources.ingest import convert_images, detect_kind
from cellkit.sources.inspection import classes_of, inspect_folder


# ---- any COCO set --------------------------------------------------------------------------------------------------
def test_a_file_of_several_frames_is_none_of_them_unless_the_config_says_what_they_are(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((2, 24, 32), np.uint8), imagej=True, metadata={"axes": "TYX"})
    save(tmp_path / "all.json", [image(1, "m.tif")], [cell(1)])
    with pytest.raises(UserError, match="m.tif holds 2 frames .*do not say which one"):
        listed(tmp_path, config("coco"))["m"].load()
    assert len(listed(tmp_path, config("coco", axes="CYX"))["m"].load().instances) == 1


def test_classes_go_by_name_whatever_the_numbers(tmp_path):
    picture(tmp_path / "images" / "i.png")
    rows = [cell(1, 9), cell(1, 4, [[12, 2, 15, 2, 15, 9, 12, 9]], bbox=[12, 2, 15, 9]), cell(1, 7, iscrowd=1)]
    file = {"images": [image(1, "i.png")], "annotations": rows}
    file["categories"] = [
        {"id": 9, "name": "b"},
        {"id": 4, "name": "A"},
        {"id": 7, "name": "odd"},
        {"id": 1, "name": "never"},
    ]
    (tmp_path / "cells.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match=r"label 'odd' is none of the classes"):
        listed(tmp_path, config("coco"))
    item = listed(tmp_path, config("coco", class_names={"odd": None}))["i"]
    loaded = item.load()
    assert loaded.instances.class_ids.tolist() == [2, 1] and item.cell_type == "mixed"
    assert loaded.planes.startswith("(1 of 2 boxes contradict their masks")
    assert loaded.levels[0].note.startswith("1 of 2 boxes")
    assert loaded.instances.unknown_px == 0, "the crowd region is where a cell is"
    assert not loaded.instances.boxes_only


def test_cells_without_a_pixel_are_left_out_and_told(tmp_path):
    from cellkit.sources.ingest import _convert_one
    from cellkit.sources.loading import without_empty

    picture(tmp_path / "i.png")
    dot, nowhere = [[1, 1, 2, 1, 2, 2, 1, 2]], [[90, 90, 95, 90, 95, 95]]
    save(tmp_path / "c.json", [image(1, "i.png")], [cell(1), cell(1, 1, dot), cell(1, 1, nowhere)])
    item = listed(tmp_path, config("coco", classes=("A",)))["i"]
    loaded = item.load()
    assert len(loaded.instances) == 2
    entry = _convert_one((item, None), tmp_path, tmp_path / "out", 0.25, None)
    assert len(entry["instances"]["class_ids"]) == 1
    assert "left out: 1 annotation without a pixel in the image" in entry["levels"][0]["note"]
    assert "left out: 1 cell without a pixel at convert.scale 0.25" in entry["levels"][0]["note"]
    empty = loaded._replace(instances=Instances.from_masks([np.zeros((24, 32), bool)], (24, 32)))
    assert (
        not len(without_empty(empty).instances)
        and "left out: 1 true outline or mask without a pixel" in without_empty(empty).levels[0].note
    )


def test_what_cellkit_wrote_comes_back_whole(tmp_path):
    labels = np.zeros((24, 32), np.int32)
    labels[2:9, 3:12], labels[12:20, 10:30] = 1, 2
    cells = [Instances.from_labels(labels, [1, 2]), Instances.empty((24, 32))]
    records = [
        ImageRecord("p_1", "images/p 1.png", 24, 32, cell_type="mixed", group="plate1", split="test"),
        ImageRecord("q", "images/q.png", 24, 32, cell_type="A", group="plate2", split="train"),
    ]
    for record in records:
        picture(tmp_path / record.path)
    write_coco(tmp_path / "all.json", records, cells, ("A", "B"))
    items = listed(tmp_path, config("coco", split=SplitConfig(train=1.0, val=0.0, test=0.0)))
    assert {k: (i.cell_type, i.group, i.split) for k, i in items.items()} == {
        "p_1": ("mixed", "plate1", "test"), "q": ("A", "plate2", "train"),
    }  # fmt: skip
    assert [item.load().instances for item in items.values()] == cells


def test_a_model_s_proposals_are_no_truth(tmp_path):
    picture(tmp_path / "1.png"), picture(tmp_path / "2.png")
    save(
        tmp_path / "all.json",
        [image(1, "1.png", labels="proposed"), image(2, "2.png", labels="corrected")],
        [cell(1), cell(2)],
    )
    made = convert_images(config("coco"), tmp_path, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["2"]
    assert "a model's proposals, no truth" in made.quarantined[0].reason
    data = json.loads((tmp_path / "all.json").read_text())
    data["images"][0]["labels_stamp"] = stamp_of_rows(data["annotations"][:1], data["categories"])
    (tmp_path / "all.json").write_text(json.dumps(data))
    assert "no truth" in convert_images(config("coco"), tmp_path, tmp_path / "again").quarantined[0].reason
    data["annotations"][0]["segmentation"] = [[1, 1, 4, 1, 4, 4]]
    (tmp_path / "all.json").write_text(json.dumps(data))
    made = convert_images(config("coco"), tmp_path, tmp_path / "corrected")
    assert [record.image_id for record in made.images.records] == ["1", "2"]


def test_files_called_after_a_split_are_it_and_missing_ones_are_carved(tmp_path):
    for split, numbers in (("train", range(10)), ("test", range(10, 12))):
        images = [image(k, picture(tmp_path / split / f"{k}.png").name) for k in numbers]
        save(tmp_path / "annotations" / f"instances_{split}2017.json", images, [cell(k) for k in numbers])
    items = listed(tmp_path, config("coco", split=SplitConfig(train=0.7, val=0.3, test=0.0)))
    counts = Counter(item.split for item in items.values())
    assert counts["test"] == 2 and counts["train"] + counts["val"] == 10 and counts["train"] in (6, 7, 8)
    assert sorted(items)[:2] == ["test_10", "test_11"]


def test_the_folder_of_a_coco_file_or_of_a_picture_tells_the_split(tmp_path):
    wanted = {"training": "train", "Valid": "val", "TEST": "test"}
    for name in wanted:  # a: as Roboflow exports; b: one file of all pictures
        picture(tmp_path / "a" / name / f"{name}.png")
        save(tmp_path / "a" / name / "_annotations.coco.json", [image(1, f"{name}.png")], [cell(1)])
        picture(tmp_path / "b" / "images" / name / f"{name}.png")
    save(tmp_path / "b" / "all.json", [image(k, f"{name}.png") for k, name in enumerate(wanted)], [cell(1)])
    for root in (tmp_path / "a", tmp_path / "b"):
        assert {item.own_id: item.split for item in listed(root, config("coco")).values()} == wanted


def test_a_category_that_one_file_lacks_is_told(tmp_path, capsys):
    for name, categories in (("train", ("A", "B")), ("val", ("B",))):
        picture(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}.json", [image(1, f"{name}.png")], [cell(1)], categories)
    items = listed(tmp_path, config("coco"))
    assert [items[name].load().instances.class_ids.tolist() for name in ("train", "val")] == [[1], [2]], "by name"
    assert "val.json names no category A, which another file uses" in capsys.readouterr().err


def test_boxes_without_masks_are_boxes_in_every_image(tmp_path):
    picture(tmp_path / "1.png"), picture(tmp_path / "2.png")
    save(tmp_path / "b.json", [image(1, "1.png"), image(2, "2.png")], [cell(1, 1, [], bbox=[2, 3, 1, 20.6])])
    made = convert_images(config("coco"), tmp_path, tmp_path / "run")
    assert [found.boxes_only for found in made.images.instances] == [True, True]
    assert made.images.instances[0].boxes_xywh.tolist() == [[2, 3, 1, 21]] and not len(made.images.instances[1])
    told = inspect_folder(tmp_path)[0]
    assert (told["kind"], told["truth"], told["objects"], told["faults"]) == ("coco", "boxes", 1, {})


@pytest.mark.parametrize(
    ("entry", "row", "said"),
    [
        ({"file_name": "gone.png"}, {}, "gone.png of c.json is not there"),
        ({"file_name": "two.png"}, {}, "is 2 pictures"),
        ({"file_name": "../secret.png"}, {}, "is a link that leads out of"),
        ({"file_name": ""}, {}, "is not there"),
        ({"file_name": ".."}, {}, "is not there"),
        ({"file_name": "x" * 300}, {}, "File name too long"),
        ({"file_name": None}, {}, "is not there"),
        ({"height": 25}, {}, r"1.png is 24 x 32 px, its label image c.json image 2 is 25 x 32"),
        ({"height": "x"}, {}, "no whole number"),
        ({}, {"segmentation": []}, "a box but no mask"),
        ({}, {"segmentation": [[1, 2, 3]]}, "fewer than three points"),
        ({}, {"segmentation": [["a", 2, 3, 4, 5, 6]]}, "no numbers"),
        ({}, {"segmentation": [[float("nan"), 2, 3, 4, 5, 6]]}, "not finite"),
        ({}, {"segmentation": {"size": [24, 32], "counts": [5]}}, "its image has 768"),
    ],
)
def test_damaged_entries_set_their_image_aside(tmp_path, entry, row, said):  # faults 26 to 28 and 31
    root = tmp_path / "in"
    for name in ("good.png", "1.png", "a/two.png", "b/two.png", "../secret.png"):
        picture(root / name)
    save(root / "c.json", [image(1, "good.png"), image(2, "1.png") | entry], [cell(1), cell(2) | row])
    made = convert_images(config("coco"), root, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["good"]
    first, *others = made.quarantined
    assert said in first.reason and all("belongs to no image" in other.reason for other in others)
    assert [other.item for other in others] == (["1.png"] if "file_name" in entry else []), "nothing names it now"


@pytest.mark.parametrize(
    ("images", "annotations", "said"),
    [
        (
            [image(1, "a.png")],
            [cell(1), cell(5), cell(5)],
            r"2 annotations without their image in the file, e.g. image_id 5",
        ),
        ([image(1, "a.png"), image(1, "b.png")], [], "image id 1 is there twice"),
        ("none", [], "lacks lists of images"),
        ([image(1, "a.png")], [3], "lacks lists of images"),
    ],
)
def test_files_that_do_not_hang_together_are_refused(tmp_path, images, annotations, said):  # faults 30 and 31
    picture(tmp_path / "a.png")
    save(tmp_path / "c.json", images, annotations)
    with pytest.raises(UserError, match=said):
        listed(tmp_path, config("coco"))


def test_files_of_cvat_need_a_word_and_image_ids_from_zero_are_read(tmp_path):  # fault 30
    picture(tmp_path / "a.png")
    save(tmp_path / "c.json", [image(1, "a.png")], [cell(1, iscrowd=1, attributes={"occluded": False})])
    with pytest.raises(UserError, match="iscrowd: CVAT marks its masks so"):
        listed(tmp_path, config("coco"))
    assert len(listed(tmp_path, config("coco", coco_convention="cvat"))["a"].load().instances) == 1
    assert not len(listed(tmp_path, config("coco", coco_convention="plain"))["a"].load().instances)
    save(tmp_path / "c.json", [image(0, "a.png")], [cell(0)], first=0)
    assert listed(tmp_path, config("coco"))["a"].load().instances.class_ids.tolist() == [2]


def test_json_that_is_no_coco_is_left_alone_and_links_out_are_refused(tmp_path):  # fault 52
    root = tmp_path / "in"
    picture(root / "a.png")
    save(root / "c.json", [image(1, "a.png")], [cell(1)])
    (root / "note.json").write_text('{"shapes": [], "images": []}')
    (root / "list.json").write_text('[{"image_id": 1}]')
    assert [sheet.path.name for sheet in read_sheets(root)] == ["c.json"]
    assert not looks_like_coco(root / "note.json")
    (root / "torn.json").write_text('{"images": [')
    with pytest.raises(UserError, match="torn.json is no JSON"):
        read_sheets(root)
    (root / "torn.json").unlink()
    (root / "out.json").symlink_to(save(tmp_path / "other.json", [], []))
    with pytest.raises(UserError, match="out.json is a link that leads out of"):
        read_sheets(root)


def test_coco_is_told_wherever_its_lists_begin_and_lists_are_named(tmp_path, capsys):
    picture(tmp_path / "a.png")
    whole = json.loads(save(tmp_path / "c.json", [image(1, "a.png")], [cell(1)]).read_text())
    whole["categories"][0]["supercategory"] = "shapes"
    (tmp_path / "c.json").write_text(json.dumps({"info": {"licence": "x" * 65_500}} | whole))
    (tmp_path / "d.json").write_text(json.dumps([whole]))
    assert len(listed(tmp_path, config("coco"))["a"].load().instances) == 1
    assert "hold a list" in (told := capsys.readouterr().err) and told.endswith("not read: d.json\n")
    (tmp_path / "e.json").write_text('{"categories": [], "shapes": [], "imagePath": "a.png"}')
    assert not looks_like_coco(tmp_path / "e.json")


# ---- LIVECell ------------------------------------------------------------------------------------------------------
@pytest.fixture
def livecell(tmp_path):
    """LIVECell as it is published: three lists, pictures in two folders, one image listed twice and one in two lists."""
    where = {"train": "livecell_train_val_images", "val": "livecell_train_val_images", "test": "livecell_test_images"}
    names = {
        "train": [
            "A172_Phase_C7_1_00d00h00m_1.tif",
            "A172_Phase_C7_1_00d04h00m_2.tif",
            "SHSY5Y_Phase_B10_2_02d20h00m_3.tif",
        ],
        "val": ["A172_Phase_D7_1_00d00h00m_1.tif"],
        "test": ["SHSY5Y_Phase_A10_1_00d00h00m_1.tif", "A172_Phase_B7_1_01d00h00m_4.tif"],
    }
    for k, (split, files) in enumerate(names.items()):
        images = [
            image(100 * k + n, picture(tmp_path / "images" / where[split] / name).name)
            for n, name in enumerate(files, 1)
        ]
        rows = [cell(entry["id"], id=1000 * k + n) for n, entry in enumerate(images)]
        if split == "train":  # once more with two cells, and an image of the list of val
            images += [image(51, names["train"][0], url="x", original_filename="y"), image(52, names["val"][0])]
            rows += [cell(51), cell(51, 1, [[20, 2, 25, 2, 25, 9]]), cell(52), cell(52), cell(52)]
        save(tmp_path / "annotations" / f"livecell_coco_{split}.json", images, rows, ["cell"])
    return tmp_path


def test_livecell_names_tell_line_and_well(livecell):
    items = listed(livecell, config("livecell", ("A172", "SHSY5Y")))
    assert len(items) == 8
    item = items["livecell_train_val_images_SHSY5Y_Phase_B10_2_02d20h00m_3"]
    assert (item.cell_type, item.group, item.split) == ("SHSY5Y", "SHSY5Y B10", "train")
    assert item.load().instances.class_ids.tolist() == [2] and item.load().instances.areas_px.tolist() == [49]
    path = livecell / "annotations" / "livecell_coco_test.json"
    other = picture(livecell / "images" / "other.tif")
    save(path, [image(9, other.name)], [cell(9)], ["cell"])
    with pytest.raises(UserError, match="other.tif does not tell its cell line and well"):
        listed(livecell, config("livecell", ("A172", "SHSY5Y")))["other"].load()
    assert detect_kind(livecell) == "livecell" and classes_of(livecell, "livecell") == ("A172", "SHSY5Y")
    with pytest.raises(UserError, match="label 'SHSY5Y' is none of the classes"):
        listed(livecell, config("livecell", ("A172", "BV2")))


def test_livecell_images_listed_twice_are_used_once_and_never_in_two_splits(livecell, tmp_path):
    made = convert_images(config("livecell", ("A172", "SHSY5Y")), livecell, tmp_path / "run")
    assert Counter(record.split for record in made.images.records) == {"train": 3, "val": 1, "test": 2}
    twice = [q for q in made.quarantined if "listed twice" in q.reason]
    assert len(twice) == len(made.quarantined) == 2
    assert "livecell_coco_train.json image 51" in twice[0].reason, "the entry with more cells is used"
    assert "livecell_coco_val.json image 101" in twice[1].reason, "what validation has, training must not see"
    cells = {
        record.image_id: len(found) for record, found in zip(made.images.records, made.images.instances, strict=True)
    }
    assert cells["livecell_train_val_images_A172_Phase_C7_1_00d00h00m_1"] == 2


def test_a_split_by_well_is_refused_where_the_published_one_tears_wells_apart(livecell):  # fault 58
    cfg = config("livecell", ("A172", "SHSY5Y"), split_by="group")
    assert len(listed(livecell, cfg)) == 8
    for folder in (livecell / "images").iterdir():
        for path in list(folder.glob("A172_Phase_D7*")):
            path.rename(path.with_name(path.name.replace("_D7_", "_C7_")))
    for path in (livecell / "annotations").iterdir():
        path.write_text(path.read_text().replace("A172_Phase_D7_1_00d00h00m_1", "A172_Phase_C7_1_00d00h00m_1x"))
    source = livecell / "images" / "livecell_train_val_images" / "A172_Phase_C7_1_00d00h00m_1.tif"
    source.with_name("A172_Phase_C7_1_00d00h00m_1x.tif").write_bytes(source.read_bytes())
    with pytest.raises(UserError, match=r"1 group is in more than one split, e.g. A172 C7 \(train, val\)"):
        listed(livecell, cfg)
    drawn = listed(livecell, cfg.model_copy(update={"published_split": False}))
    assert len({item.split for item in drawn.values() if item.group == "A172 C7"} - {""}) == 1
    assert len(listed(livecell, cfg.model_copy(update={"split_by": "image"}))) == 8


def test_an_image_that_is_listed_again_is_in_no_split_that_is_drawn(tmp_path):
    for split in ("train", "test"):
        images = [image(k, picture(tmp_path / "images" / f"{k}.png").name) for k in range(5)]
        save(tmp_path / f"{split}.json", images, [cell(k) for k in range(5)])
    items = listed(tmp_path, config("coco", published_split=False))
    assert {name: bool(item.split) for name, item in items.items()} == {
        **{str(k): True for k in range(5)}, **{f"{k}_again1": False for k in range(5)},
    }  # fmt: skip


def test_thousands_of_cells_in_one_image_are_read(tmp_path):
    picture(tmp_path / "images" / "BV2_Phase_A4_2_03d00h00m_1.tif", (520, 704))
    corners = [(x, y) for y in range(0, 518, 10) for x in range(0, 700, 12)]
    rows = [cell(1, 1, [[x, y, x + 9, y, x + 9, y + 7, x, y + 7]], id=k) for k, (x, y) in enumerate(corners)]
    save(
        tmp_path / "livecell_coco_test.json",
        [image(1, "BV2_Phase_A4_2_03d00h00m_1.tif", height=520, width=704)],
        rows,
        ["cell"],
    )
    (item,) = listed(tmp_path, config("livecell", ("BV2",))).values()
    cells = item.load().instances
    assert len(cells) == len(corners) == 3068 and cells.areas_px.min() > 0 and item.split == "test"


def test_a_file_in_utf_16_is_read(tmp_path, capsys):
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    path = save(tmp_path / "pilot_test.json", [image(1, "a.png")], [cell(1)])
    path.write_text(path.read_text(), encoding="utf-16")
    save(tmp_path / "more.json", [image(1, "b.png")], [cell(1)])
    assert listed(tmp_path, config("coco"))["a"].split == "test"
    assert "all images of pilot_test.json (test) a split" in capsys.readouterr().err
    assert len(read_coco(path).instances[0]) == 1


@pytest.mark.parametrize("key", ["split", "subset", "Set", "partition"])
def test_the_split_of_an_entry_is_kept_whatever_it_is_called(tmp_path, key):
    words = ("train", "valid", "TEST")
    images = [image(k, f"i{k}.png", **{key: word}) for k, word in enumerate(words, 1)]
    for one in images:
        picture(tmp_path / one["file_name"])
    save(tmp_path / "all.json", images, [cell(k) for k in (1, 2, 3)])
    assert [item.split for item in listed(tmp_path, config("coco")).values()] == ["train", "val", "test"]
