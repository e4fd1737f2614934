"""Which picture an image of a COCO file is, and which group."""

import pytest
from cocoset_cases import cell, config, image, listed, picture, save

from cellkit.errors import UserError
from cellkit.formats.coco_reading import read_coco
from cellkit.sources.ingest import convert_images


def test_images_of_one_name_in_two_folders_stay_two(tmp_path):  # fault 23
    picture(tmp_path / "a" / "1.png"), picture(tmp_path / "b" / "1.png")
    path = save(tmp_path / "all.json", [image(1, "a/1.png"), image(2, "b/1.png")], [cell(1), cell(2, 2), cell(2)])
    items = listed(tmp_path, config("coco"))
    assert list(items) == ["a_1", "b_1"] and [len(item.load().instances) for item in items.values()] == [1, 2]
    assert items["b_1"].load().instances.class_ids.tolist() == [2, 1]
    assert [record.image_id for record in read_coco(path).records] == ["a_1", "b_1"]
    save(path, [image(1, "x/1.png"), image(2, "b/1.png")], [])
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    made = convert_images(config("coco"), tmp_path, tmp_path / "run")
    assert [record.image_id for record in made.images.records] == ["b_1"], "x/1.png is not b/1.png"
    assert made.quarantined[0].reason.startswith("x/1.png of all.json is not there")


@pytest.mark.parametrize(
    ("named", "there"),
    [
        (["plate2/f.png"], []),  # another plate's cells would be the truth of plate1/f.png
        (["plate1/f.png", "plate2/f.png"], ["plate1_f"]),
        (["test/f.png"], []),
        (["D:\\data\\plate1\\f.png"], ["plate1_f"]),
        (["/other/set/plate1/f.png", "/other/set/plate2/f.png"], ["plate1_f"]),
        (["images/plate1/f.png"], ["plate1_f"]),
        (["train/f.png"], ["plate1_f"]),
        (["f.png"], ["plate1_f"]),
    ],
)
def test_a_picture_in_a_folder_that_the_file_does_not_name_is_not_taken(tmp_path, named, there):
    picture(tmp_path / ("train/plate1" if "test/f.png" in named else "plate1") / "f.png")
    rows = [cell(number) for number, _ in enumerate(named) for _ in range(number + 1)]
    save(tmp_path / "all.json", [image(number, name) for number, name in enumerate(named)], rows)
    items = listed(tmp_path, config("coco"))
    assert [name for name, item in items.items() if item.files] == there
    for name in there:
        assert len(items[name].load().instances) == 1


def test_one_picture_for_two_folders_of_the_file_is_neither(tmp_path):
    picture(tmp_path / "f.png")
    save(tmp_path / "all.json", [image(1, "plate1/f.png"), image(2, "plate2/f.png")], [cell(1)])
    assert not any(item.files for item in listed(tmp_path, config("coco")).values() if not item.is_left)


def test_the_group_is_told_by_folders_or_by_the_name_not_by_the_number_in_the_file(tmp_path):
    names = [f"donor{k}/{field}{k}.png" for k in (3, 4, 5) for field in "ab"]
    images = [image(k, picture(tmp_path / name).relative_to(tmp_path).as_posix()) for k, name in enumerate(names)]
    save(tmp_path / "instances_2017.json", images, [cell(k) for k in range(6)])
    for rule, wanted in ((None, "donor{}"), (r"(?P<group>\d+)", "{}"), (r"^donor(?P<group>\d)/", "{}")):
        items = listed(tmp_path, config("coco", split_by="group", group_from=rule))
        assert [item.group for item in items.values()] == [wanted.format(k) for k in (3, 3, 4, 4, 5, 5)]
        assert all(len({i.split for i in items.values() if i.group == item.group}) == 1 for item in items.values())


def test_pictures_of_one_name_belong_to_the_file_of_their_split(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "0.png")
        save(tmp_path / "annotations" / f"instances_{split}.json", [image(1, "0.png")], [cell(1)])
    items = listed(tmp_path, config("coco"))
    assert {k: item.split for k, item in items.items() if not item.is_left} == {"train_0": "train", "val_0": "val"}
    save(tmp_path / "annotations" / "instances_val.json", [image(1, "0.png")], [cell(1)]).rename(tmp_path / "more.json")
    with pytest.raises(UserError, match="0.png of more.json is 2 pictures"):
        [item.load() for item in listed(tmp_path, config("coco")).values()]


def test_batches_are_no_groups_unless_the_split_goes_by_group_or_the_file_says_so(tmp_path):
    names = [f"batch{k % 2}/{k}.png" for k in range(4)]
    images = [image(k, picture(tmp_path / name).relative_to(tmp_path).as_posix()) for k, name in enumerate(names)]
    images[3]["group"] = "donor1"
    save(tmp_path / "all.json", images, [cell(0)])
    assert [item.group for item in listed(tmp_path, config("coco")).values()] == ["", "", "", "donor1"]
    by_group = listed(tmp_path, config("coco", split_by="group"))
    assert {name: item.group for name, item in by_group.items()} == {
        "batch0_0": "batch0", "batch1_1": "batch1", "batch0_2": "batch0", "batch1_3": "donor1",
    }  # fmt: skip
    ruled = listed(tmp_path, config("coco", group_from="(?P<group>batch[01])"))
    assert {item.group for item in ruled.values()} == {"batch0", "batch1"}


@pytest.mark.parametrize("sheet", ["{}.json", "{}/all.json"])
def test_the_group_may_be_in_the_path_of_the_file_that_lists_the_image(tmp_path, sheet):
    donors = ("donorA", "donorB", "donorC")
    for donor in donors:
        images = [image(k, picture(tmp_path / "images" / f"{donor[-1]}{k}.png").name) for k in range(2)]
        save(tmp_path / sheet.format(donor), images, [cell(0), cell(1)])
    items = listed(tmp_path, config("coco", split_by="group", group_from="(?P<group>donor[A-C])"))
    assert [item.group for item in items.values()] == [donor for donor in donors for _ in range(2)]
    file = sheet.format("donorA")
    with pytest.raises(UserError, match=f"fits 0 of 6 images, not e.g. 'images/A0.png' or '{file}' or 'A0'"):
        listed(tmp_path, config("coco", split_by="group", group_from="(?P<group>plate)"))


@pytest.mark.parametrize(
    ("named", "there"), [("raw_data/exp7", "pics"), ("data", "originals"), ("subset1", "images/default")]
)
def test_a_folder_that_has_another_name_here_is_taken_where_it_is_the_same_as_a_whole(tmp_path, capsys, named, there):
    for name in (f"{there}/0.png", f"{there}/1.png", "more/2.png"):
        picture(tmp_path / name)
    images = [image(k, name) for k, name in enumerate((f"{named}/0.png", f"{named}/1.png", "more/2.png"))]
    save(tmp_path / "annotations" / "all.json", images, [cell(0), cell(1), cell(1)])
    items = [item for item in listed(tmp_path, config("coco")).values() if item.files]
    assert [item.files[0] for item in items[:2]] == [tmp_path / there / f"{k}.png" for k in (0, 1)]
    assert [len(item.load().instances) for item in items] == [1, 2, 0]
    assert capsys.readouterr().err.count(f"folder {named} is taken for {there}, which holds") == 1


@pytest.mark.parametrize(
    ("named", "there"),
    [
        (["plate2/f.png"], ["plate1/f.png"]),
        (["plate2/f.png", "plate1/g.png"], ["plate1/f.png"]),
        (["plate2/f.png", "plate1/f.png"], ["other/f.png"]),
        (["data/f.png"], ["originals/f.png", "originals/g.png"]),
        (["data/f.png", "data/g.png"], ["originals/f.png"]),
        (["data/f.png", "data/g.png"], ["a/f.png", "b/g.png"]),
        (["data/f.png", "originals/g.png"], ["originals/f.png"]),
        (["data/f.png", "D:/set/originals/g.png"], ["originals/f.png"]),
        (["data/f.png", "g.png"], ["originals/f.png", "originals/g.png"]),
        (["data/f.png"], ["originals/f.png", "more/f.png"]),
        (["train/data/f.png"], ["test/originals/f.png"]),
        (["donorA/data/f.png"], ["donorB/originals/f.png"]),
    ],
)
def test_a_picture_of_another_folder_is_not_taken_and_named(tmp_path, named, there):
    for name in there:
        picture(tmp_path / name)
    save(tmp_path / "all.json", [image(k, name) for k, name in enumerate(named)], [cell(0)])
    item, *_ = listed(tmp_path, config("coco")).values()
    with pytest.raises(UserError, match=f"{named[0]} of all.json is not there; .*f.png is, in another folder"):
        item.load()


def test_a_folder_beside_a_file_is_not_that_of_another_plate(tmp_path):
    picture(tmp_path / "plate2" / "originals" / "f.png")
    save(tmp_path / "plate1" / "all.json", [image(1, "data/f.png")], [cell(1)])
    assert not any(item.files for item in listed(tmp_path, config("coco")).values() if not item.is_left)
