"""Data sets: images and their cells stay together, in order, under one numbering; a damaged image is named."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cellkit.cells.dataset import CellDataset, predict_all, refuse_few
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, read_records, write_records
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels

SHAPE = (6, 8)
SPLITS = ("train", "val", "", "train", "test")
LINES = ("HEK", "N2a", "HEK", "mixed", "HEK")


def cells_of(k):
    labels = np.zeros(SHAPE, int)
    labels[1:3, 1:4], labels[4, k] = 1, 2
    return Instances.from_labels(labels)


@pytest.fixture
def run(tmp_path):
    """Five images with their records and label images; image k is k times ten all over."""
    records = []
    for k, (split, line) in enumerate(zip(SPLITS, LINES, strict=True)):
        name = "abcde"[k]
        records.append(ImageRecord(name, f"images/{name}.png", *SHAPE, cell_type=line, split=split))
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", SHAPE[::-1], (0, 10 * k, 200)).save(tmp_path / f"images/{name}.png")
        write_labels(tmp_path / f"labels/{name}.tif", cells_of(k).paint())
    write_records(tmp_path / "records.csv", records)
    return tmp_path


def from_labels(run, classes=()):
    records = read_records(run / "records.csv")
    cells = [Instances.from_labels(read_labels(run / f"labels/{r.image_id}.tif")) for r in records]
    ids = [classes.index(r.cell_type) + 1 if r.cell_type in classes else 0 for r in records]
    cells = [found.with_classes(k) for found, k in zip(cells, ids, strict=True)]
    return CellDataset(records, cells, classes, run, [1, 2, 3, 4, 5])


def names(images):
    return "".join(record.image_id for record in images.records)


# ---- opened from ---------------------------------------------------------------------------------------------------
def test_from_labels(run):
    images = from_labels(run)
    assert (len(images), names(images), images.ids, images.classes) == (5, "abcde", [1, 2, 3, 4, 5], ())
    assert images.instances == [cells_of(k) for k in range(5)]
    image, found = images[3]
    assert (image.shape, image.dtype, image[0, 0].tolist()) == ((6, 8, 3), np.uint8, [0, 30, 200])
    assert found == cells_of(3)
    assert images.root == run


def test_from_records_leaves_out_what_was_set_aside(run):
    images = CellDataset.from_records(run / "records.csv")
    assert (names(images), images.ids) == ("abde", [1, 2, 4, 5])
    assert images.instances == [Instances.empty(SHAPE)] * 4
    assert names(CellDataset.from_records(run / "records.csv", split="train")) == "ad"


def test_of_run_notes_both_inputs_and_says_what_is_there(run):
    class Asked:
        keys = []

        def find(self, key):
            self.keys.append(key)
            return run / f"{key}.csv"

    images = CellDataset.of_run(Asked())
    assert Asked.keys == ["records", "images"] and names(images) == "abde"
    assert repr(images) == "4 images; train 2, val 1, test 1; HEK 2, N2a 1, mixed 1"
    assert names(CellDataset.of_run(Asked(), "train")) == "ad" and names(images.held_out()) == "be"
    labelled = from_labels(run, classes=("N2a", "HEK")).select("train")
    flagged = labelled.with_records([replace(record, flags="debris") for record in labelled.records])
    assert repr(flagged).endswith(f"; {labelled.cells} cells of N2a, HEK; 2 flagged")
    assert repr(images.subset([])) == "0 images"
    assert names(images.sample(2)) == "ae" and names(images.sample(9)) == names(images)


def test_from_coco_is_what_was_written(run):
    images = from_labels(run, classes=("HEK", "N2a")).select("train")
    path = write_coco(run / "coco.json", images.records, images.instances, images.classes, images.ids)
    back = read_coco(path, run)
    assert (back.ids, back.classes, back.root) == ([1, 4], ("HEK", "N2a"), run)
    assert back.instances == images.instances
    assert [replace(r, um_per_px=0) for r in back.records] == [replace(r, um_per_px=0) for r in images.records]
    np.testing.assert_array_equal(back.image(1), images.image(1))


def test_not_one_of_each_per_image_is_refused(run):
    images = from_labels(run)
    with pytest.raises(UserError, match="5 records, 5 instances, 5 made_by, 4 ids"):
        replace(images, ids=[1, 2, 3, 4])


# ---- parts of it ---------------------------------------------------------------------------------------------------
def test_subsets_keep_records_cells_and_ids_together(run):
    images = from_labels(run)
    for chosen in ([3, 0], np.array([3, 0]), (3, 0)):
        part = images.subset(chosen)
        assert (names(part), part.ids, part.instances) == ("da", [4, 1], [cells_of(3), cells_of(0)])
    assert names(images.subset([False, True, False, False, True])) == "be"
    assert names(images.subset(np.array([False] * 5))) == names(images.subset([])) == ""
    assert names(images.select("train")) == "ad"
    assert names(images.select("train", "mixed")) == "d"
    assert names(images.select(cell_type="HEK")) == "ace"
    assert images.index("d") == 3


def test_parts_of_nothing_are_nothing(run):
    none = from_labels(run).select("no such split")
    assert len(none) == len(none.select("train")) == len(none.with_at_least(3)) == len(none.without_small(3)) == 0
    assert list(none.images()) == predict_all(lambda stream: map(len, stream), none) == []


def test_images_with_too_few_cells_are_left_out_and_named(run, capsys):
    write_labels(run / "labels/b.tif", np.zeros(SHAPE, int))
    images = from_labels(run)
    assert len(images.instances[1]) == 0
    assert names(images.with_at_least(1)) == "acde"
    assert capsys.readouterr().err == "left out, fewer than 1 labelled cells: b\n"
    assert names(images.with_at_least(0)) == "abcde"
    assert capsys.readouterr().err == ""


def test_small_cells_go_and_images_stay(run, capsys):
    images = from_labels(run)
    assert len(images.without_small(0)) == 5 and capsys.readouterr().err == ""
    assert [x.areas_px.tolist() for x in images.without_small(2).instances] == [[6]] * 5
    assert [len(x) for x in images.without_small(7).instances] == [0] * 5
    told = "coco.min_area_px = 7 px: 10 of 10 labelled cells are smaller and left out (most in a: 2); lower coco.min_area_px"
    assert told in capsys.readouterr().err
    assert [len(x) for x in images.without_small(0).instances] == [2] * 5 == [len(x) for x in images.instances]


# ---- images --------------------------------------------------------------------------------------------------------
def test_images_come_one_by_one_and_in_order(run):
    images = from_labels(run)
    assert [image[0, 0, 1] for image in images.images()] == [0, 10, 20, 30, 40]
    (run / "images/e.png").unlink()
    stream = images.images()
    assert [next(stream)[0, 0, 1] for _ in range(4)] == [0, 10, 20, 30], "an image is read when it is asked for"
    with pytest.raises(UserError, match="e.png cannot be read"):
        next(stream)


def test_predict_all_gives_one_answer_per_image_in_order(run):
    images = from_labels(run)
    assert predict_all(lambda stream: (int(image[0, 0, 1]) for image in stream), images) == [0, 10, 20, 30, 40]


def test_a_grey_image_is_shown_grey(run):
    Image.new("L", SHAPE[::-1], 99).save(run / "images/a.png")
    assert from_labels(run).image(0)[0, 0].tolist() == [99, 99, 99]


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("RGB", (6, 8)), r"is (8, 6, 3) uint8"),
        (Image.new("RGBA", (8, 6)), r"is (6, 8, 4) uint8"),
        (Image.new("P", (8, 6)), r"is (6, 8) uint8"),
        (Image.fromarray(np.zeros(SHAPE, np.uint16)), r"is (6, 8) uint16"),
    ],
)
def test_an_image_that_is_not_what_its_record_says_is_refused(run, picture, told):
    picture.save(run / "images/a.png")
    with pytest.raises(UserError, match=re.escape(told) + r"\nits record says 6 x 8 RGB"):
        from_labels(run).image(0)


def test_damaged_images_are_refused_by_name(run):
    path, images = run / "images/a.png", from_labels(run)
    noise = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for size in range(0, len(data) - 16, 7):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"a\.png cannot be read"):
            images.image(0)
    Image.fromarray(noise).save(path, format="JPEG")
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        images.image(0)
    rng = np.random.default_rng(1)
    for _ in range(200):
        changed = bytearray(data)
        changed[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
        path.write_bytes(changed)
        try:
            assert images.image(0).shape == (*SHAPE, 3)
        except UserError as error:
            assert "a.png" in str(error)


def test_the_table_is_read_once_and_as_it_is(run):
    assert [r.image_id for r in read_records(run / "records.csv")] == list("abcde")
    with pytest.raises(UserError, match="no file at"):
        CellDataset.from_records(run / "other.csv")


def test_splits_come_in_order_and_only_where_they_have_images(run):
    images = from_labels(run)
    assert {split: names(part) for split, part in images.by_split().items()} == {
        split: names(images.select(split)) for split in ("train", "val", "test")
    }
    assert list(images.select("test").by_split()) == ["test"] and images.subset([]).by_split() == {}


@pytest.mark.parametrize(("cells", "told"), [(2, "or lower finetune.min_train_masks"), (0, "or change convert.split")])
def test_too_few_cells_to_train_on_are_refused_with_what_helps(cells, told):
    labels = np.zeros((8, 8), np.int32)
    labels[:2, :cells] = np.arange(1, cells + 1)
    with pytest.raises(UserError, match=told):
        refuse_few([Instances.from_labels(labels), Instances.empty((8, 8))], 3)
