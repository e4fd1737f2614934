"""One image of a source before it is opened: which files, which are kept, which split, which objects."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.config.sections import ChannelsConfig, Config, ConvertConfig, SplitConfig
from cellkit.errors import UserError
from cellkit.microscope.folders import check_inside, list_files
from cellkit.sources.assign_splits import (
    assign_splits,
    check_enough,
    check_labelled,
    check_left,
    limit_images,
    split_off,
)
from cellkit.sources.listing import UNUSED, Loaded, SourceImage
from cellkit.sources.loading import labelled
from cellkit.sources.source_tables import read_table


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 12))
def test_thinning_keeps_order_and_the_wanted_number(kinds, wanted):
    items = [SourceImage(str(k), kind, "", "", str(k), None) for k, kind in enumerate(kinds)]
    kept = limit_images(items, wanted)
    positions = [items.index(item) for item in kept]
    assert positions == sorted(positions) and limit_images(items, None) == items == limit_images(items, 100)
    for kind in "ab":
        there = [k for k, item in enumerate(items) if item.cell_type == kind]
        mine = [k for k in positions if items[k].cell_type == kind]
        assert len(mine) == min(wanted, len(there))


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


def test_an_image_that_is_a_folder_is_one_image_and_not_what_lies_in_it(tmp_path):
    for name in ("a.ome.zarr/0/c/0/0.png", "b/c.zarr/zarr.json", "d.png"):
        save(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir(parents=True)
    names = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path, (".png", ".zarr"))]
    assert names == ["a.ome.zarr", "b/c.zarr", "d.png"]
    assert [path.name for path in list_files(tmp_path, (".png",))] == ["d.png"]


# ---- splits --------------------------------------------------------------------------------------------------------
def config(**options):
    return ConvertConfig(source="folder", channels=ChannelsConfig(nuclei=0), **options)


def images(*splits, group=""):
    return [SourceImage(f"{k:02d}", "A", group, split, f"{k:02d}.png", None) for k, split in enumerate(splits)]


def splits_of(items):
    return [item.split for item in items]


def test_only_splits_the_source_lacks_are_carved_from_its_training_images():
    cfg = config(split=SplitConfig(train=0.5, val=0.25, test=0.25))
    whole = splits_of(split_off(images(*["train"] * 8), cfg))
    assert {name: whole.count(name) for name in ("train", "val", "test")} == {"train": 4, "val": 1, "test": 3}
    given = splits_of(split_off(images(*["train"] * 8, "test", UNUSED), cfg))
    assert (
        set(given[:8]) == {"train", "val"} and given[:8].count("train") in (5, 6, 7) and given[8:] == ["test", UNUSED]
    )
    assert splits_of(split_off(images("", "test"), cfg)) == ["", "test"], "no training images to take from"
    full = images("train", "val", "test")
    assert split_off(full, cfg) == full


def test_what_a_source_leaves_out_stays_out_and_may_be_drawn_anew():
    cfg = config(split=SplitConfig(train=1.0, val=0.0, test=0.0))
    assert splits_of(assign_splits(images("val", UNUSED, ""), cfg)) == ["val", "", "train"]
    drawn = config(split=SplitConfig(train=1.0, val=0.0, test=0.0), published_split=False)
    assert splits_of(assign_splits(images("val", UNUSED, ""), drawn)) == ["train"] * 3


def test_groups_may_be_named_by_the_file_names_and_hold_for_carved_splits_too():  # fault 58
    names = [f"plate{p}_{well}_{site}" for p in (1, 2) for well in ("A01", "B02", "C03") for site in (1, 2, 3)]
    items = [SourceImage(name, "A", "", "train", f"{name}.tif", None) for name in names]
    how = {
        "split_by": "group",
        "group_from": r"(?P<group>plate\d_[A-H]\d\d)",
        "split": SplitConfig(train=0.5, val=0.5, test=0.0),
    }
    done = list(assign_splits(items, config(**how), fill_split=True))
    splits = {group: {item.split for item in done if item.group == group} for group in {item.group for item in done}}
    assert len(splits) == 6 and all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == {"train", "val"}
    with pytest.raises(UserError, match="fits 18 of 19 images, not e.g. 'odd.tif' or 'odd'"):
        list(assign_splits([*items, SourceImage("odd", "A", "", "", "odd.tif", None)], config(**how)))


@given(st.integers(2, 60), st.integers(1, 20), st.data())
def test_one_image_more_takes_the_place_of_one_that_was_kept(count, wanted, data):
    items = images(*[""] * count)
    more = data.draw(st.integers(0, count - 1))
    fewer = [item for k, item in enumerate(items) if k != more]
    assert (
        len({i.image_id for i in limit_images(fewer, wanted)} - {i.image_id for i in limit_images(items, wanted)}) <= 1
    )


@given(st.lists(st.sampled_from(["train", "val", "test", UNUSED]), max_size=40), st.integers(1, 12))
def test_thinning_keeps_a_share_of_every_split(splits, wanted):
    items = images(*splits)
    kept = splits_of(limit_images(items, wanted))
    used = [split for split in splits if split != UNUSED]
    assert len(kept) == min(wanted, len(used)) and UNUSED not in kept
    if wanted >= len(set(used)):
        assert set(kept) == set(used)
    for split in set(used):
        assert kept.count(split) <= max(1, -(-wanted * used.count(split) // len(used)))


@given(st.lists(st.sampled_from(["", "train", "val", "test", UNUSED]), max_size=12), st.integers(0, 3))
def test_a_split_by_group_never_tears_a_group_apart(splits, seed):
    items = [image for k, split in enumerate(splits) for image in images(split, group=f"g{k % 3}")]
    items = [SourceImage(str(k), *list(vars(item).values())[1:]) for k, item in enumerate(items)]
    try:
        done = list(assign_splits(items, config(split_by="group", seed=seed)))
    except UserError as error:
        assert "in more than one split" in str(error)
        return
    for group in {item.group for item in done}:
        assert len({item.split for item in done if item.group == group} - {""}) <= 1


def test_frames_of_one_file_or_series_are_not_torn_apart_unless_told():
    names = [f"{movie}_t{t}" for movie in "abcdefgh" for t in range(3)]
    items = [SourceImage(name, "A", "", "", f"{name}.tif", None, files=(Path(f"x/{name}.tif"),)) for name in names]
    items += [SourceImage(f"z_s{k}", "A", "", "", "z.czi", None, files=(Path("x/z.czi"),), unit="z") for k in range(3)]
    for by in ("image", "group"):
        done = list(assign_splits(items, config(split_by=by)))
        of_movie = {item.group: {other.split for other in done if other.group == item.group} for item in done}
        assert set(of_movie) == {*"abcdefgh", "z"} and all(len(splits) == 1 for splits in of_movie.values())
        assert set().union(*of_movie.values()) == {"train", "val", "test"}
    more = list(
        assign_splits(
            [*items, SourceImage("new_t0", "A", "", "", "new_t0.tif", None, files=(Path("x/new_t0.tif"),))], config()
        )
    )
    assert splits_of(more[:-1]) == splits_of(list(assign_splits(items, config()))), "one image more moves no other"
    told = list(assign_splits(items, config(group_from="(?P<group>.*)")))
    assert any(len({item.split for item in told if item.unit == unit}) > 1 for unit in of_movie)


def test_a_set_of_one_file_is_refused_with_what_to_set(capsys):
    opened = lambda convert: Loaded(np.zeros((4, 4, 3), np.uint8), None)  # noqa: E731
    items = [SourceImage(f"z_s{k}", "A", "", "", f"z.czi scene {k}", opened, unit="z") for k in range(6)]
    with pytest.raises(
        UserError,
        match=r"6 images are frames of 1 file, series or group \(e.g. z\).* for val and test\nset convert.group_from",
    ):
        list(assign_splits(items, config()))
    assert set(splits_of(assign_splits(items, config(group_from="(?P<group>.*)")))) == {"train", "val", "test"}
    assert splits_of(assign_splits(items, config(split=SplitConfig(train=1.0, val=0.0, test=0.0)))) == ["train"] * 6
    two = [*items, SourceImage("b", "A", "", "", "b.tif", opened)]
    assert (
        set(splits_of(assign_splits(two, config()))) == {"train", "val"}
        and "none is left for test" in capsys.readouterr().err
    )


def test_a_split_by_group_without_a_group_is_refused():
    with pytest.raises(UserError, match="no image has a group\nset convert.group_from"):
        list(assign_splits(images("", "", ""), config(split_by="group")))


# ---- tables and links ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a\n1\n", "lacks the column b"), (b"a,b\n1\n", "line 2 has more or fewer"), (b"a,b\n1,2\n1,2,3\n", "line 3"),
     (b"\xff\xfa", "no CSV in UTF-8"), (b"", "lacks the column"), (b"a,b\n" + b"x" * 200_000 + b",1\n", "field larger")],
)  # fmt: skip
def test_tables_are_read_whole_or_not_at_all(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_table(tmp_path / "t.csv", ("a", "b"), tmp_path)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert read_table(tmp_path / "t.csv", ("a", "b"), tmp_path) == [{"a": "1", "b": "2"}]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,B \n1,2,3\n")
    with pytest.raises(UserError, match="has 2 columns called b"):
        read_table(tmp_path / "t.csv", ("a", "b"), tmp_path)


def test_max_images_leaves_all_test_images_of_a_competition(capsys):
    items = [SourceImage(f"a{k}", "HEK", "", "", "", int) for k in range(5)]
    asked = [SourceImage(f"t{k}", "HEK", "", "test", "", int, bare=True, is_own_test=True) for k in range(4)]
    kept = [item.image_id for item in limit_images(items + asked, 2)]
    assert kept[2:] == ["t0", "t1", "t2", "t3"] and {name[0] for name in kept[:2]} == {"a"}
    assert "4 test images without truth kept" in capsys.readouterr().err
    assert len(limit_images(asked, 2)) == 2 and not capsys.readouterr().err  # all to be predicted: no competition


def test_what_a_link_points_to_must_lie_in_the_folder(tmp_path):  # fault 52
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "t.csv").write_text("a\n1\n")
    (root / "t.csv").symlink_to(tmp_path / "t.csv")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(UserError, match="leads out of"):
        read_table(root / "t.csv", ("a",), root)
    with pytest.raises(UserError, match="leads"):
        check_inside(root / "loop", root)


# ---- label images --------------------------------------------------------------------------------------------------
@settings(deadline=None)  # the first call imports
@given(st.integers(0, 2**31), st.sampled_from(["keep", "largest", "split"]))
def test_pieces_keep_the_class_of_their_object(seed, pieces):
    labels = np.random.default_rng(seed).integers(0, 4, (6, 7))
    ids = {1: 2, 3: 1}
    cells = labelled(labels, 5, ids, pieces)
    for k in range(len(cells)):
        (value,) = np.unique(labels[cells.mask(k)])
        assert cells.class_ids[k] == ids.get(int(value), 5)
    assert pieces == "largest" or cells.areas_px.sum() == (labels > 0).sum()


# ---- enough --------------------------------------------------------------------------------------------------------
def whole(report="test", classes=("A", "B"), class_from="cell_type", use="truth"):
    told = {"evaluate": {"report_split": report}, "coco": {"class_from": class_from, "classes": classes}}
    return Config.model_validate({"classes": classes, "label": {"use": use}} | told)


def placed(*told):
    return [ImageRecord(str(k), "", 9, 9, cell_type=line, split=split) for k, (line, split) in enumerate(told)]


ENOUGH = (("A", "train"), ("B", "train"), ("A", "val"), ("B", "test"))


@pytest.mark.parametrize(
    "told, report, problem, remedy",
    [
        (ENOUGH[:1], "test", r"1 for training, 0 for validation, 0 for test.: "
         "no training image is of the class B", "give more images of it"),
        (ENOUGH[:2], "val", "no validation image", "give 2 images or more"),
        (ENOUGH[2:], "test", "no training image", "convert.split"),
        (ENOUGH[1:], "test", "no training image is of the class A", "coco.class_from: truth"),
        (ENOUGH, "val", "evaluate.report_split is val, whose images also choose", "set evaluate.report_split: test"),
    ],
)  # fmt: skip
def test_a_set_too_small_is_refused_in_two_lines_that_say_what_to_do(told, report, problem, remedy):
    with pytest.raises(UserError, match=problem) as error:
        check_enough(placed(*told), whole(report))
    first, second = str(error.value).split("\n")
    assert re.search(remedy, second)


def test_enough_is_enough():
    check_enough(placed(*ENOUGH), whole())
    check_enough(placed(*ENOUGH[:3]), whole("val"))
    for few in (ENOUGH[:2], ENOUGH[:3]):
        check_enough(placed(*few), whole())
    check_enough(placed(*ENOUGH[:1]), whole(classes=("A",)))
    check_enough(placed(*ENOUGH[1:]), whole(class_from="truth"))


def test_a_class_without_a_training_cell_is_told_before_any_training():
    cells = Instances.from_labels(np.ones((9, 9), int), class_ids=[1])
    none, images = Instances.empty((9, 9)), placed(*ENOUGH)
    check_labelled(images, [cells, cells, none, None], whole())
    check_labelled(images, None, whole())
    check_labelled(images, [cells, none, none, None], whole(use="proposed"))
    for found, asked in (
        ([cells, none, cells, cells], whole()),
        ([cells, cells, cells, cells.with_classes(2)], whole(class_from="truth")),
        ([cells, cells[cells.areas_px > 99], cells, cells], whole()),
    ):
        with pytest.raises(UserError, match="no training image has a labelled cell of B;"):
            check_labelled(images, found, asked)


def test_what_is_left_without_the_flagged_images_is_checked():
    cells, items = Instances.from_labels(np.ones((9, 9), int)), placed(*ENOUGH)
    records = [ImageRecord(str(k), "", 9, 9, cell_type=i.cell_type, split=i.split) for k, i in enumerate(items)]
    images = CellDataset(records, [cells] * 4, made_by=["truth"] * 4)
    check_left(images, whole())
    with pytest.raises(UserError, match=r"images are left \(the others are named above"):
        check_left(
            images.with_records([replace(r, split="" if r.image_id == "1" else r.split) for r in records]), whole()
        )
    without = replace(images, instances=[cells, cells[cells.areas_px > 99], cells, cells])
    with pytest.raises(UserError, match="no training image has a labelled cell of B;"):
        check_left(without, whole())


def test_images_without_a_split_among_others_with_one_get_a_word(capsys):
    list(
        assign_splits(
            [*images("train", "train"), *(replace(i, image_id=f"{i.image_id}b") for i in images(""))], config()
        )
    )
    assert "the split of 1 of 3 images is drawn" in capsys.readouterr().err
    list(assign_splits(images("train", "test", UNUSED), config()))
    assert not capsys.readouterr().err
