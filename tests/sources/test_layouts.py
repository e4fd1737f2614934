"""Pictures with label images beside them: what belongs to what, which class, which split."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layout_cases import GREY, LABELS, RNG, config, listed, save
from PIL import Image

from cellkit.cells.instances import Instances
from cellkit.config.sections import SplitConfig
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.formats.seg import write_seg
from cellkit.sources.ingest import convert_images
from cellkit.sources.two_lines import compose_halves

DATA = Path(os.environ.get("CELLKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")


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
    made = convert_images(cfg, tmp_path, tmp_path / "run")
    assert len(made.images.records) == 3 and "dna-1.png has no label image dna-1" in made.quarantined[0].reason


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


# ---- DSB2018 -------------------------------------------------------------------------------------------------------


def test_kaggles_dsb2018_with_its_test_folder(tmp_path):
    for part, names in (("stage1_train", "ab"), ("stage1_test", "cd")):
        for name in names:
            save(tmp_path / part / name / "images" / f"{name}.png", RNG.integers(0, 255, (8, 9), dtype=np.uint8))
    for name in "ab":
        save(tmp_path / "stage1_train" / name / "masks" / "1.png", np.full((8, 9), 255, np.uint8))
    items = listed(tmp_path, config("dsb2018", 0, classes=("nucleus",)))
    assert [items[name].split for name in "cd"] == ["test", "test"] and [i.own_id for i in items.values()] == list(
        "abcd"
    )
    assert len(items["a"].load().instances) == 1 and items["c"].load().instances is None


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
def test_packed_dsb2018():
    items = listed(DATA / "dsb2018", config("dsb2018", "red", classes=("nucleus",)))
    with open(DATA / "dsb2018" / "index.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(items) == 565 == len(rows) and set(items) == set(rows)
    for image_id in sorted(items)[::60]:
        loaded, row = items[image_id].load(), rows[image_id]
        assert loaded.image.shape == (int(row["height"]), int(row["width"]), 3)
        assert len(loaded.instances) == int(row["n_nuclei"]) and loaded.instances.class_ids.all()


@pytest.mark.realdata
def test_the_pair_of_stardist():
    (item,) = listed(DATA / "small_pairs", config("folder", pair=("img", "mask"))).values()
    loaded = item.load()
    assert loaded.image.shape == (512, 512, 3) and len(loaded.instances) == 125


# ---- which way a picture lies --------------------------------------------------------------------------------------


def test_labels_are_taken_only_when_they_are_turned_as_their_picture_is(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    write_labels(tmp_path / "a_masks.tif", LABELS)
    cfg = config("cellpose")
    with pytest.raises(UserError, match=r"a.png has the EXIF orientation 3, its labels .*a_masks.tif have 1"):
        listed(tmp_path, cfg)["a"].load()
    (tmp_path / "a_masks.tif").unlink()
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / "a_masks.png", exif=exif)
    loaded = listed(tmp_path, cfg)["a"].load()
    np.testing.assert_array_equal(loaded.instances.paint() > 0, LABELS[::-1, ::-1] > 0)
    (tmp_path / "a_masks.png").unlink()
    write_seg(tmp_path / "a_seg.npy", GREY[..., None], Instances.from_labels(LABELS), ("cell",), "a.png")
    with pytest.raises(UserError, match="EXIF orientation 3, its labels .*a_seg.npy have 1"):
        listed(tmp_path, cfg)["a"].load()


# ---- names that could be two things --------------------------------------------------------------------------------


def test_the_text_of_pictures_may_be_part_of_that_of_labels(tmp_path):
    for k in range(2):
        save(tmp_path / f"{k}_img.png")
        save(tmp_path / f"{k}_img_mask.png", LABELS.astype(np.uint8))
    items = listed(tmp_path, config("folder", pair=["_img", "_img_mask"]))
    assert list(items) == ["0_img", "1_img"] and not any(item.bare for item in items.values())
    with pytest.raises(UserError, match="has '_pic' in its name"):
        listed(tmp_path, config("folder", pair=["_pic", "_mask"]))
    with pytest.raises(ValueError, match="another in its place"):
        config("folder", pair=["_img", "_img"])


def test_a_class_that_is_called_as_a_split_is_a_class(tmp_path):
    for name in ("control/a.png", "test/b.png", "test/c.png"):
        save(tmp_path / name)
    items = listed(tmp_path, config("folder", classes=("control", "test"))).values()
    assert [item.cell_type for item in items] == ["control", "test", "test"] and not any(
        item.is_own_test for item in items
    )
    save(tmp_path / "val" / "control" / "d.png")
    with pytest.raises(UserError, match="folder test is called after a class and after a split"):
        listed(tmp_path, config("folder", classes=("control", "test")))


def test_all_images_in_one_split_by_their_names_gets_a_word(tmp_path, capsys):
    save(tmp_path / "test" / "a.png"), save(tmp_path / "test" / "a_masks.png", LABELS.astype(np.uint8))
    assert [item.split for item in listed(tmp_path, config("folder")).values()] == ["test"]
    assert "make all 1 images test images; convert.published_split: false" in capsys.readouterr().err


def test_kaggles_form_without_masks_and_with_a_black_mask(tmp_path):
    for name, masks in (("a", {"m": 255, "n": 0}), ("b", {"m": 255}), ("c", {})):
        save(tmp_path / name / "images" / f"{name}.png")
        for mask, value in masks.items():
            save(tmp_path / name / "masks" / f"{mask}.png", ((LABELS == 1) * value).astype(np.uint8))
    items = listed(tmp_path, config("dsb2018", modalities=None))
    black = items["a"].load()
    assert len(black.instances) == 1 and black.left_out == ("a/masks/n.png: no pixel of it is above 0",)
    assert items["c"].split == "" and items["c"].bare, "no test image by chance: convert_images names it"


def test_a_layout_of_one_label_image_each_takes_no_picture_of_several_frames(tmp_path):
    for line in ("A", "B"):
        (tmp_path / line / "images").mkdir(parents=True)
        movie = np.stack([GREY, GREY]) if line == "A" else GREY
        axes = "TYX"[-movie.ndim :]
        tifffile.imwrite(tmp_path / line / "images" / "1.tif", movie, imagej=True, metadata={"axes": axes})
        write_labels(tmp_path / line / "labels" / "1.tif", LABELS)
    kind = {"source": "two_lines", "classes": ("A", "B"), "split": SplitConfig(train=1.0, val=0.0, test=0.0)}
    items = listed(tmp_path, config(**kind))
    assert len(items["B_1"].load().instances) == 3
    with pytest.raises(UserError, match="1.tif holds 2 frames"):
        items["A_1"].load()


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("by", ["image", "group"])
def test_a_damaged_file_takes_no_split_of_its_class(tmp_path, labelled, by, caplog):
    """Three good files of a class and a torn one: whichever it is, the others fill all splits."""
    cfg = config("folder", classes=("HEK",), split_by=by)
    for torn in range(4):
        for k in range(4):
            path = save(tmp_path / f"{torn}/HEK/p{k}/a{k}.png", GREY // 2 + k)
            if labelled:
                write_labels(path.with_name(f"a{k}_masks.tif"), LABELS)
            if k == torn:
                path.write_bytes(b"torn")
        found = listed(tmp_path / str(torn), cfg)
        assert found.pop(f"HEK_p{torn}_a{torn}").split == "train"
        assert sorted(item.split for item in found.values()) == ["test", "train", "val"]
    assert "torn" not in caplog.text.replace(str(tmp_path), ""), "why is said where the image is left out"


def test_a_class_whose_only_test_image_cannot_be_used_is_named(tmp_path, caplog):
    """The header is in order, so the split is drawn with it; the pixels are not."""
    for line in ("A", "B"):
        for k in range(3):
            save(tmp_path / f"in/{line}/{k}.png", RNG.integers(0, 255, (24, 32), dtype=np.uint8))
    cfg = config("folder", classes=("A", "B"))
    (test,) = [item for item in listed(tmp_path / "in", cfg).values() if (item.split, item.cell_type) == ("test", "A")]
    test.files[0].write_bytes(test.files[0].read_bytes()[:-400])
    made = convert_images(cfg, tmp_path / "in", tmp_path / "run")
    assert len(made.images) == 5 and "no test image is of the class A: the scores of test images" in caplog.text
