"""Label images beside pictures: what they may be, where they lie, what a table says of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from layout_cases import GREY, LABELS, RNG, config, listed, save
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.config.sections import SplitConfig
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.formats.labels import write_chosen_cells
from cellkit.formats.seg import write_seg
from cellkit.sources.ingest import convert_images, detect_kind
from cellkit.sources.inspection import classes_of

# ---- label images and what they may be ------------------------------------------------------------------------------


def test_a_label_image_may_be_told_by_a_text_in_the_name(tmp_path):
    for name in ("img_1", "img_2", "other"):
        save(tmp_path / f"{name}.png")
    write_labels(tmp_path / "mask_1.tif", LABELS)
    save(tmp_path / "mask_2.png", LABELS.astype(np.uint8))
    items = listed(tmp_path, config("folder", pair=("img", "mask")))
    assert list(items) == ["img_1", "img_2", "left/other.png"], "no mask is an image, and what has another name is told"
    assert [items[name].load().instances.areas_px.tolist() for name in ("img_1", "img_2")] == [[63, 160, 1]] * 2
    save(tmp_path / "mask_1.png", LABELS.astype(np.uint8))
    with pytest.raises(UserError, match="img_1.png has several label images"):
        listed(tmp_path, config("folder", pair=("img", "mask")))["img_1"].load()


def test_mixed_images_of_a_folder_are_test_images(tmp_path):
    for name in ("A/1", "A/2", "B/1", "B/2", "mixed/1", "mixed/2", "train/mixed/3"):
        save(tmp_path / f"{name}.png")
    cfg = config("folder", classes=("A", "B"), split=SplitConfig(train=0.5, val=0.5, test=0.0))
    items = listed(tmp_path, cfg)
    assert [items[name].split for name in ("mixed_1", "mixed_2")] == ["test", "test"]
    assert items["train_mixed_3"].split == "train", "the source's own split says so"
    assert {items[name].split for name in ("A_1", "A_2")} == {"train", "val"}
    assert listed(tmp_path, cfg.model_copy(update={"published_split": False}))["train_mixed_3"].split == "test"


def test_a_folder_called_after_a_class_holds_images_whatever_else_its_name_says(tmp_path):
    for name in ("GT/1", "WT/2", "mask/3"):
        save(tmp_path / f"{name}.png")
        write_labels((tmp_path / "truth" / name).with_suffix(".tif"), LABELS)
    items = listed(tmp_path, config("microscope", classes=("GT", "WT"), class_names={"mask": "WT"}))
    assert {name: item.cell_type for name, item in items.items()} == {"GT_1": "GT", "WT_2": "WT", "mask_3": "WT"}
    assert all(len(item.load().instances) == 3 for item in items.values())


def test_by_group_what_shares_a_group_with_mixed_images_is_a_test_image_too(tmp_path, capsys):
    for name in (*(f"{line}/plate{k}/1" for line in "AB" for k in range(4)), "mixed/plate1/m"):
        save(tmp_path / f"{name}.png")
    cfg = config("folder", classes=("A", "B"), split_by="group")
    items = listed(tmp_path, cfg)
    assert {name for name, item in items.items() if item.split == "test"} >= {
        "A_plate1_1",
        "B_plate1_1",
        "mixed_plate1_m",
    }
    assert {item.split for item in items.values() if item.group != "plate1"} >= {"train", "val"}
    assert "2 images are test images, as mixed images of the same group are (e.g. plate1)" in capsys.readouterr().err
    for k in (0, 2, 3):
        save(tmp_path / "mixed" / f"plate{k}" / "m.png")
    with pytest.raises(UserError, match="every group has mixed images .*\n.*set convert.split_by: image"):
        listed(tmp_path, cfg)


@pytest.mark.parametrize(
    ("pieces", "areas"), [("keep", [24, 6]), ("largest", [16, 6]), ("split", [16, 4, 4, 6]), (None, [24, 6])]
)
def test_objects_in_pieces_are_what_the_config_says(tmp_path, pieces, areas):  # fault 17
    labels = np.zeros((24, 32), np.int32)
    labels[1:5, 1:5], labels[8:10, 8:10], labels[14:16, 20:22], labels[20:22, 2:5] = 7, 7, 7, 8
    save(tmp_path / "a.png")
    write_labels(tmp_path / "a_masks.tif", labels)
    cells = listed(tmp_path, config("folder", pieces=pieces))["a"].load().instances
    assert sorted(cells.areas_px.tolist()) == sorted(areas) and set(cells.class_ids.tolist()) == {1}


def test_a_mask_of_all_cells_is_not_taken_for_one_cell(tmp_path):  # fault 16
    save(tmp_path / "a.png"), save(tmp_path / "b.png")
    write_labels(tmp_path / "a_masks.tif", LABELS > 0)
    write_labels(tmp_path / "b_masks.tif", (LABELS == 1).astype(np.int32))
    with pytest.raises(UserError, match="holds one id in 3 pieces.*\nset convert.pieces: split"):
        listed(tmp_path, config("folder"))["a"].load()
    assert len(listed(tmp_path, config("folder", pieces="split"))["a"].load().instances) == 3
    assert len(listed(tmp_path, config("folder", pieces="keep"))["a"].load().instances) == 1
    assert len(listed(tmp_path, config("folder"))["b"].load().instances) == 1, "one cell is one cell"


@pytest.mark.parametrize("count", [65_535, 65_536, 70_000])
def test_more_labels_than_16_bits_hold_stay_apart(tmp_path, count):  # faults 14 and 15
    labels = np.zeros((300, 300), np.int32)
    labels.flat[:count] = np.arange(1, count + 1)
    save(tmp_path / "a.png", np.resize(GREY, (300, 300)))
    write_labels(tmp_path / "a_masks.tif", labels)
    cells = listed(tmp_path, config("folder"))["a"].load().instances
    assert len(cells) == count and (cells.areas_px == 1).all() and (cells.boxes_xywh[:, 2:] == 1).all()  # fault 19


def test_holes_gaps_and_images_without_cells_stay_as_they_are(tmp_path):  # faults 18, 20 and 22
    ring = np.zeros((24, 32), np.int32)
    ring[5:12, 5:12], ring[7:10, 7:10] = 300, 0
    for name, labels in (("ring", ring), ("none", ring * 0)):
        save(tmp_path / f"{name}.png")
        write_labels(tmp_path / f"{name}_masks.tif", labels)
    made = convert_images(config("folder"), tmp_path, tmp_path / "run")
    assert [len(cells) for cells in made.images.instances] == [0, 1] and not made.quarantined
    np.testing.assert_array_equal(made.images.instances[1].mask(0), ring > 0)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: Image.fromarray(LABELS.astype(np.uint8)).convert("RGB").save(path), "colour picture"),
        (lambda path: Image.fromarray(LABELS.astype(np.uint8)).save(path, "JPEG"), "is a JPEG"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
    ],
)
def test_label_images_that_may_have_lost_ids_are_refused(tmp_path, write, said):  # faults 11 and 13
    save(tmp_path / "a.png")
    write(tmp_path / "a_masks.png")
    with pytest.raises(UserError, match=said):
        listed(tmp_path, config("folder"))["a"].load()


def test_a_palette_label_image_gives_its_indices(tmp_path):  # fault 11
    save(tmp_path / "a.png")
    picture = Image.fromarray(LABELS.astype(np.uint8), "L").convert("P")
    picture.putdata(LABELS.ravel().tolist())
    picture.putpalette(RNG.integers(0, 255, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "a_masks.png")
    cells = listed(tmp_path, config("folder"))["a"].load().instances
    assert cells.areas_px.tolist() == [63, 160, 1]


# ---- Cellpose ------------------------------------------------------------------------------------------------------


def test_cellpose_files_beside_their_images(tmp_path):
    for name in ("A/seg", "A/masks", "mixed/both", "mixed/bare"):
        save(tmp_path / f"{name}.png")
    cells = Instances.from_labels(LABELS)
    write_seg(tmp_path / "A" / "seg_seg.npy", None, cells)
    save(tmp_path / "A" / "masks_cp_masks.png", LABELS.astype(np.uint8))
    write_seg(tmp_path / "mixed" / "both_seg.npy", None, cells.with_classes([2, 0, 1]).with_scores(0.5), ("A", "B"))
    write_labels(tmp_path / "mixed" / "both_cp_masks.tif", LABELS)
    items = listed(tmp_path, config("cellpose", classes=("B", "A")))
    found = {name: item.load().instances for name, item in items.items()}
    assert found["A_seg"] == found["A_masks"] == cells.with_classes(2), "the class of the folder"
    assert found["mixed_both"] == cells.with_classes([1, 0, 2]), "classes by name, scores of truth"
    assert found["mixed_bare"] is None and items["mixed_both"].split == "test"
    assert detect_kind(tmp_path) == "cellpose" and classes_of(tmp_path, "cellpose") == ("A", "B")


def test_cellpose_files_that_disagree_or_run_code_are_refused(tmp_path):  # faults 21, 41 and 52
    root = tmp_path / "in"
    for name in ("differ", "size", "code", "out"):
        save(root / f"{name}.png")
    write_seg(root / "differ_seg.npy", None, LABELS)
    write_labels(root / "differ_masks.tif", LABELS // 2)
    write_seg(root / "size_seg.npy", None, LABELS[:-1])
    np.save(root / "code_seg.npy", np.array({"masks": Path("x")}, object), allow_pickle=True)
    write_seg(tmp_path / "out_seg.npy", None, LABELS)
    (root / "out_seg.npy").symlink_to(tmp_path / "out_seg.npy")
    items = listed(root, config("cellpose"))
    said = {"differ": "differ from differ_seg.npy", "size": "is 23 x 32", "code": "has no masks", "out": "leads out of"}
    for name, part in said.items():
        with pytest.raises(UserError, match=part):
            items[name].load()


def test_labels_that_a_model_proposed_are_no_truth_until_somebody_changes_them(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png")
    files = [write_labels(tmp_path / f"labels/{name}.tif", LABELS) for name in "ab"]
    write_chosen_cells(tmp_path / "labels", files, [Instances.from_labels(LABELS)] * 2, ["proposed"] * 2)
    write_labels(files[1], np.where(LABELS == 1, 0, LABELS))
    write_seg(tmp_path / "c_seg.npy", None, LABELS, made_by="proposed")
    items = listed(tmp_path, config("folder"))
    assert len(items["b"].load().instances) == 2
    for name in "ac":
        with pytest.raises(UserError, match=f"{name}.*: the cells of the image are a model's proposals, no truth"):
            items[name].load()


# ---- folders of labels by other names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [("train_images/a.tif", "train_masks/a.tif", "train"), ("imagesTs/a_0000.png", "labelsTs/a.png", "test"),
     ("img/a.png", "seg/a.png", ""), ("raw/x/a.png", "annotations/x/a.png", ""), ("rawimages/a.tif", "groundtruth_png/a.png", ""),
     ("01/t003.tif", "01_GT/SEG/man_seg003.tif", ""), ("Images/a.png", "Label_images/a_mask.png", ""),
     ("x/test images/a.png", "x/test masks/a.png", "test"), ("images/a.png", "manual_masks/a.png", "")],
)  # fmt: skip
def test_folders_called_labels_hold_the_truth_of_those_called_alike(tmp_path, image, label, split):
    for path, pixels in ((image, GREY), (label, LABELS.astype(np.uint8)), ("other/o.png", GREY)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_labels(tmp_path / path, pixels) if path.endswith(".tif") else save(tmp_path / path, pixels)
    items = {item.source: item for item in listed(tmp_path, config("folder")).values()}
    assert set(items) == {image, "other/o.png"} and len(items[image].load().instances) == 3
    assert items[image].split in (split or ("train", "val", "test")) and items["other/o.png"].bare


def test_label_images_of_no_picture_are_refused_with_a_remedy_and_are_no_pictures(tmp_path):
    for k in range(3):
        save(tmp_path / f"tissue images/{k}.png"), save(tmp_path / f"label masks/{k}.png")
    with pytest.raises(UserError, match="of 3 label files.* none is named after an image(.|\n)*A_images/ and A_masks/"):
        listed(tmp_path, config("folder"))


def test_a_pair_may_lie_in_two_folders(tmp_path):
    save(tmp_path / "frames_images/1_img.png"), save(tmp_path / "frames_labels/1_mask.png", LABELS.astype(np.uint8))
    (item,) = listed(tmp_path, config("folder", pair=("_img", "_mask"))).values()
    assert len(item.load().instances) == 3


def test_a_folder_with_pictures_and_their_labels_is_none_of_labels_whatever_its_name(tmp_path):
    for name in (
        "a_seg/images/1.png",
        "a_seg/masks/1.png",
        "gt_2/2.png",
        "gt_2/2_masks.png",
        "mask/3.png",
        "Label/4.png",
    ):
        save(tmp_path / name, LABELS.astype(np.uint8))
    items = listed(tmp_path, config("folder"))
    assert {item.source: item.bare for item in items.values() if not item.is_left} == {
        "a_seg/images/1.png": False, "gt_2/2.png": False}  # fmt: skip
    save(tmp_path / "only/my_annotations/5.png")
    assert [i.source for i in listed(tmp_path / "only", config("folder")).values()] == ["my_annotations/5.png"]


# ---- tables of classes, stacks of labels ------------------------------------------------------------------------------


def mixed(root, rows, name="classes.csv", image="mixed/a.ome.tif"):
    for path in (image, "HEK/b.tif"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / path, LABELS.astype(np.uint16) * 99, metadata=None)
    for path in ("truth/mixed/a.tif", "truth/HEK/b.tif"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_labels(root / path, LABELS)
    (root / "truth" / name).write_text(rows)
    return listed(root, config("microscope", classes=("HEK", "N2a")))


@pytest.mark.parametrize(
    "file", ["mixed/a.ome.tif", "mixed/a.tif", "mixed/a", "a.tif", "mixed\\A.TIF", " ./mixed/a.ome.tif ", "truth/mixed/a.tif",
             "mixed/a_masks.tif"]
)  # fmt: skip
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_table_of_classes_may_be_spelled_in_any_way(tmp_path, file, between):
    rows = "\n".join(between.join(row) for row in (("File", "label ", "CLASS"), (file, "1", "HEK"), (file, "4", "n2a")))
    items = mixed(tmp_path, rows, "Classes.csv")
    made = items["mixed_a"].load()
    assert (
        made.instances.class_ids.tolist() == [1, 2, 0]
        and made.planes == "(1 cell without a row in the table of classes)"
    )
    assert not [name for name in items if name.startswith("left/")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [("mixed/a,0,HEK", "line 2: label is 0"), ("mixed/a,1.5,HEK", "line 2: label is 1.5"), ("mixed/a,x,HEK", "line 2"),
     ("mixed/a,1,HEK\nmixed/a.tif,1,N2a", "line 3: label 1 of mixed/a.tif has another class in line 2"),
     ("mixed/a,1,HEK\na,1,N2a", "line 3: label 1 of mixed/a has another class in line 2"),
     ("mixed/a,1,Hela", "line 2: the source's label 'Hela'"), (",1,HEK", "line 2 names no file")],
)  # fmt: skip
def test_rows_that_cannot_be_meant_stop_with_their_line(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        mixed(tmp_path, f"file,label,class\n{rows}\n")


def test_rows_of_a_file_and_of_its_frames_count_together_and_none_is_dropped(tmp_path):
    later = np.where(LABELS == 9, 7, LABELS)  # the third cell has another number in the second frame
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.stack([GREY, GREY]), imagej=True, metadata={"axes": "TYX"})
    (tmp_path / "truth").mkdir()
    tifffile.imwrite(tmp_path / "truth" / "a.tif", np.stack([LABELS, later]).astype(np.uint16))
    for time, labels in enumerate((LABELS, later)):
        write_labels(tmp_path / "truth" / f"b_t{time}.tif", labels)
    for name in "ab":
        rows = f"{name}.tif,1,A\n{name}.tif,9,B\n{name}.tif,7,B\n{name}_t1,4,A\n"
        (tmp_path / "truth" / "classes.csv").write_text(f"file,label,class\n{rows}")
        items = listed(tmp_path, config("folder", classes=("A", "B")))
        classes = [items[f"{name}_t{time}"].load().instances.class_ids.tolist() for time in (0, 1)]
        assert classes == [[1, 0, 2], [1, 1, 2]]
        for more, said in (
            (f"{name},99,B", "label 99, and no frame"),
            (f"{name}_t1,9,B", "label 9, and .* has 3 labels"),
        ):
            (tmp_path / "truth" / "classes.csv").write_text(f"file,label,class\n{rows}{more}\n")
            with pytest.raises(UserError, match=f"line 6 .*{said}"):
                listed(tmp_path, config("folder", classes=("A", "B")))[f"{name}_t1"].load()


def test_a_frame_with_labels_of_its_own_and_in_a_stack_is_refused(tmp_path):
    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", np.stack([GREY, GREY]), imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "a_masks.tif", np.stack([LABELS, LABELS]).astype(np.uint16))
    write_labels(tmp_path / "a_t1_masks.tif", LABELS * (LABELS < 9))
    items = listed(tmp_path, config("folder", split=SplitConfig(train=1.0, val=0.0, test=0.0)))
    assert len(items["a_t0"].load().instances) == 3
    with pytest.raises(UserError, match="frame _t1 of a.tif has several label images"):
        items["a_t1"].load()


def test_rows_of_two_spellings_of_one_image_count_together(tmp_path):
    items = mixed(tmp_path, "file,label,class\nmixed/a.tif,1,HEK\na,4,N2a\ntruth/mixed/a_masks,9,N2a\n")
    assert items["mixed_a"].load().instances.class_ids.tolist() == [1, 2, 2]


def test_rows_that_fit_nothing_are_set_aside_with_their_line(tmp_path):
    save(tmp_path / "N2a" / "b.png"), save(tmp_path / "mixed" / "bare.png")
    rows = ("mixed/a,1", "zz.tif,1", "b,1", "mixed/bare,1", "mixed/a,99")
    items = mixed(tmp_path, "file,label,class\n" + "".join(f"{row},HEK\n" for row in rows))
    said = {
        "left/truth/classes.csv line 3": "no image below the data folder",
        "left/truth/classes.csv line 4": "several images",
        "left/truth/classes.csv line 5": "an image without labels",
        "mixed_a": "line 6 .* names label 99, and a.tif has 3",
    }
    assert {name for name in items if name.startswith("left/")} == set(said) - {"mixed_a"}
    for name, part in said.items():
        with pytest.raises(UserError, match=part):
            items[name].load()


def test_a_stack_of_labels_has_a_plane_for_each_frame(tmp_path):
    planes = np.stack([LABELS, LABELS * (LABELS == 4), 0 * LABELS]).astype(np.uint16)
    for name, axes in (("m", "TYX"), ("n", "TYX"), ("o", "TYX")):
        tifffile.imwrite(tmp_path / f"{name}.tif", planes * 9, imagej=True, metadata={"axes": axes})
    tifffile.imwrite(tmp_path / "m_masks.tif", planes, imagej=True, metadata={"axes": "TYX"})
    write_labels(tmp_path / "n_masks.tif", LABELS)
    write_labels(tmp_path / "o_t1_masks.tif", LABELS)
    items = listed(tmp_path, config("folder"))
    assert [len(items[f"m_t{k}"].load().instances) for k in range(3)] == [3, 1, 0]
    with pytest.raises(UserError, match="holds 1 plane.* for a file of 3 frames"):
        items["n_t0"].load()
    assert len(items["o_t1"].load().instances) == 3 and items["o_t0"].load().instances is None
    assert {item.group for name, item in items.items() if name[0] == "m"} == {"m"}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_in_an_ome_zarr_are_its_truth(tmp_path, version):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "a.ome.zarr"
    for where, pixels in (("", LABELS * 99), ("labels/cells", LABELS)):  # not listed in labels: read all the same
        group = zarr.open_group(str(path / where), mode="a", zarr_format=2 if version == "0.4" else 3)
        group.create_array("0", data=pixels.astype(np.uint16), chunks=pixels.shape)
        scales = [{"axes": [{"name": name, "type": "space"} for name in "yx"], "datasets": [{"path": "0"}]}]
        group.attrs.update({"multiscales": scales} if version == "0.4" else {"ome": {"multiscales": scales}})
    items = listed(tmp_path, config("folder"))
    assert list(items) == ["a"] and items["a"].load().instances.areas_px.tolist() == [63, 160, 1]
    (path / "labels" / "nuclei").mkdir()
    with pytest.raises(UserError, match="several label images: cells, nuclei"):
        listed(tmp_path, config("folder"))["a"].load()


@pytest.mark.parametrize("folder", ["valid", "Validation", "val2017", "dev"])
def test_folders_of_a_split_are_kept_whatever_their_spelling(tmp_path, folder):
    for part in ("Training", folder, "holdout"):
        for k in range(3):
            save(tmp_path / part / f"{k}.png")
            save(tmp_path / "two" / "u2os" / "images" / part / f"{part}{k}.png")
            save(tmp_path / "two" / "u2os" / "labels" / part / f"{part}{k}.png", LABELS.astype(np.uint8))
    (tmp_path / "two").rename(tmp_path.parent / f"{tmp_path.name}-two")
    for root, cfg in (
        (tmp_path, config("folder")),
        (tmp_path.parent / f"{tmp_path.name}-two", config("two_lines", classes=("u2os",))),
    ):
        found = Counter((item.source.split("/")[-2], item.split) for item in listed(root, cfg).values())
        assert found == {("Training", "train"): 3, (folder, "val"): 3, ("holdout", "test"): 3}
