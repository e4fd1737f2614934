"""The split that a source's own lists and tables name."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cellkit.config.sections import ChannelsConfig, Config, ConvertConfig, SplitConfig
from cellkit.errors import UserError
from cellkit.modules import load
from cellkit.sources.assign_splits import check_enough
from cellkit.sources.listing import UNUSED, SourceImage
from cellkit.sources.own_split import read_split_lists, split_lists, with_own_split

WANTED = {f"cell{k}": ("train", "val", "test")[k % 3] for k in range(6)}


def config(**options):
    return ConvertConfig(source="folder", classes=("A",), channels=ChannelsConfig(nuclei=0), **options)


def images(root, folder="images", names=WANTED):
    return [
        SourceImage(name, "A", "", "", f"{folder}/{name}.png", None, name, files=(root / folder / f"{name}.png",))
        for name in names
    ]


def load_items(root):
    return [
        replace(item, split="") if item.split == UNUSED else item
        for item in with_own_split(images(root), root, config())[0]
    ]


def write_lists(root, line="{}.png", name="{}.txt", splits=WANTED):
    root.mkdir(exist_ok=True, parents=True)
    for split in ("train", "val", "test"):
        lines = [line.format(one) for one in splits if splits[one] == split]
        (root / name.format(split)).write_text("\n".join(lines) + "\n")


def splits_of(items):
    return {item.image_id: item.split for item in items}


@pytest.mark.parametrize(
    ("line", "name"),
    [("{}.png", "{}.txt"), ("{}", "{}_list.txt"), ("images/{}.png", "splits/{}.txt"), (".\\images\\{}.PNG", "{}_ids.txt"),
     ("/elsewhere/set/images/{}.png", "{}.txt")],
)  # fmt: skip
def test_lists_of_names_are_the_split(tmp_path, line, name):
    write_lists(tmp_path / name.rpartition("/")[0], line, name.rpartition("/")[2])
    items, used = with_own_split(images(tmp_path), tmp_path, config())
    assert splits_of(items) == WANTED and len(used) == 3
    items, used = with_own_split(images(tmp_path), tmp_path, config(published_split=False))
    assert set(splits_of(items).values()) == {""} and not used


@pytest.mark.parametrize("head", ["filename,split", "Split;File_Name", "image\tsubset", "id,set"])
def test_a_column_of_a_table_is_the_split(tmp_path, head):
    between = next(sign for sign in ",;\t" if sign in head)
    words = {"train": "Training", "val": "valid", "test": "TEST"}
    rows = [[f"{name}.png", words[split]] for name, split in WANTED.items()]
    rows = [row[::-1] if head.startswith("Split") else row for row in rows]
    (tmp_path / "metadata.csv").write_text("\n".join([head, *map(between.join, rows)]) + "\n")
    assert splits_of(with_own_split(images(tmp_path), tmp_path, config())[0]) == WANTED


def test_the_folder_source_keeps_its_lists(tmp_path):
    for k, name in enumerate(WANTED):
        for folder, pixels in (("images", np.full((8, 8), k, np.uint8)), ("masks", np.eye(8, dtype=np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    write_lists(tmp_path)
    assert (
        splits_of(load("source", "folder").read(tmp_path, config(split=SplitConfig(train=0.0, val=0.0, test=1.0))))
        == WANTED
    )


def test_what_lists_do_not_say_is_named(tmp_path, capsys):
    write_lists(tmp_path, splits=WANTED | {"gone": "val"})
    items, _ = with_own_split(images(tmp_path, names=[*WANTED, "more"]), tmp_path, config())
    assert splits_of(items)["more"] == UNUSED
    told = capsys.readouterr().err
    assert "1 of 7 names are no image, e.g. gone" in told and "1 of 7 images are in none of" in told
    write_lists(tmp_path, "{}_of_another_set")
    assert set(splits_of(with_own_split(images(tmp_path), tmp_path, config())[0]).values()) == {""}
    assert "no name there is an image" in capsys.readouterr().err
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "splits_final.json").write_text("[]")
    with_own_split(images(tmp_path), tmp_path, config())
    assert "splits_final.json may say a split, and is not read" in capsys.readouterr().err


def test_lists_that_contradict_are_refused(tmp_path):
    write_lists(tmp_path)
    twice = [*images(tmp_path), *images(tmp_path, "images/b")]
    with pytest.raises(UserError, match="cell2 is 2 images"):
        with_own_split(twice, tmp_path, config())
    with pytest.raises(UserError, match="is train in .* and its folder says test"):
        with_own_split([SourceImage("cell0", "A", "", "test", "test/cell0.png", None, "cell0",
                                    files=(tmp_path / "test/cell0.png",))], tmp_path, config())  # fmt: skip
    (tmp_path / "metadata.csv").write_text("filename,split\ncell0.png,test\n")
    with pytest.raises(UserError, match="cell0 is train and test"):
        with_own_split(images(tmp_path), tmp_path, config())
    (tmp_path / "metadata.csv").write_text("filename,split\ncell0.png,7\n")
    with pytest.raises(UserError, match="metadata.csv line 2: the split is '7'"):
        with_own_split(images(tmp_path), tmp_path, config())
    (tmp_path / "val.txt").write_text("cell0\n")
    with pytest.raises(UserError, match="val.txt lists cell0, which is train already|lists cell0, which is"):
        read_split_lists(split_lists(tmp_path), tmp_path)


def test_one_image_in_two_spellings_is_in_two_lists_all_the_same(tmp_path):
    write_lists(tmp_path, splits=WANTED | {"CELL0": "test"})
    with pytest.raises(UserError, match="lists cell0, which is test already"):
        with_own_split(images(tmp_path), tmp_path, config())
    write_lists(tmp_path)
    (tmp_path / "more.csv").write_text("file,split\nCell0.PNG,test\n")
    with pytest.raises(UserError, match="cell0 is train and test"):
        with_own_split(images(tmp_path), tmp_path, config())


def test_lists_of_another_folder_s_images_are_not_followed(tmp_path, capsys):
    write_lists(tmp_path, "plate2/{}.png")
    here = images(tmp_path, "plate1")
    assert set(splits_of(with_own_split(here, tmp_path, config())[0]).values()) == {""}
    assert "no name there is an image, e.g. plate2/cell" in capsys.readouterr().err
    write_lists(tmp_path, "/elsewhere/set/plate1/{}.png")
    assert splits_of(with_own_split(here, tmp_path, config())[0]) == WANTED
    write_lists(tmp_path, "images/train/{}.png")
    assert splits_of(with_own_split(here, tmp_path, config())[0]) == WANTED


@pytest.mark.parametrize("before", ["", "./", "D:\\data\\", "/other/set/", "exp/"])
def test_lists_of_another_disk_are_followed_where_plates_share_file_names(tmp_path, before):
    here = [image for plate in ("plate1", "plate2") for image in images(tmp_path, plate)]
    here = [replace(item, image_id=item.source) for item in here]
    wanted = {item.source: WANTED[item.own_id] for item in here}
    lines = [f"{before}{name},{split}" for name, split in wanted.items()]
    (tmp_path / "split.csv").write_text("\n".join(["image,split", *lines]) + "\n")
    assert splits_of(with_own_split(here, tmp_path, config())[0]) == wanted


def test_lists_that_name_two_files_for_one_picture_are_not_followed(tmp_path, capsys):
    write_lists(tmp_path, "D:/exp{0[4]}/plate1/cell.png", splits={f"cell{k}": WANTED[f"cell{k}"] for k in (0, 1)})
    here = images(tmp_path, "plate1", ["cell"])
    assert splits_of(with_own_split(here, tmp_path, config())[0]) == {"cell": ""}
    assert "no name there is an image" in capsys.readouterr().err


def test_a_list_of_test_images_alone_leaves_none_to_train_on_and_says_what_mends_it(tmp_path):
    (tmp_path / "test.txt").write_text("cell2\ncell5\n")
    items = load_items(tmp_path)
    with pytest.raises(UserError, match="4 images are in no split of the source: .*published_split: false"):
        check_enough(items, Config(classes=["A"]))


@pytest.mark.parametrize(
    ("lists", "counts"),
    [(("trainval", "test"), {"train": 4, "test": 2}), (("train_val", "train", "test"), {"train": 2, "val": 2, "test": 2}),
     (("trainval", "train", "val"), {"train": 2, "val": 2})],
)  # fmt: skip
def test_a_list_of_both_is_training_and_validation(tmp_path, lists, counts):
    for name in lists:
        wanted = [
            one
            for one, split in WANTED.items()
            if split in name or ("val" in name and "train" in name and split != "test")
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(wanted))
    assert Counter(read_split_lists(split_lists(tmp_path), tmp_path).values()) == counts
