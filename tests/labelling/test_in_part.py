"""Images that are annotated in part, from notebook 02 on: chosen, corrected, written, read back, counted, cut into quarters."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.evaluate.classes import count_by_class
from cellkit.evaluate.folds import Fold, _stamp, judged_of
from cellkit.evaluate.quarters import Box, cut_out
from cellkit.formats.coco import write_coco, write_dataset
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels
from cellkit.formats.labels import write_label_png
from cellkit.labelling.annotate import choose_labels, with_classes, write_chosen
from cellkit.labelling.corrections import read_corrections, same_cells
from cellkit.labelling.rounds import change, label_changes
from cellkit.models import threshold

SHAPE = (12, 16)
LABELS = np.zeros(SHAPE, np.int32)
LABELS[1:5, 1:5], LABELS[1:5, 7:11], LABELS[7:11, 2:8] = 1, 2, 3
REGION = np.zeros(SHAPE, bool)
REGION[6:, 9:] = True
MARKED = np.where(REGION, -1, LABELS)
WHOLE, PARTLY = Instances.from_labels(LABELS), Instances.from_labels(MARKED)


@pytest.fixture
def images(tmp_path):
    records = [ImageRecord(n, f"images/{n}.png", *SHAPE, cell_type="HEK", split="train") for n in ("a", "b")]
    return CellDataset(records, [Instances.empty(SHAPE)] * 2, (), tmp_path, [1, 2])


def test_from_the_truth_to_the_files_of_a_class_for_every_cell(images, tmp_path, capsys):
    """Notebook 02 writes labels/, 04 reads it and writes coco/, 03 and 05 read that."""
    truth = write_coco(
        tmp_path / "truth.json", images.records, [PARTLY.with_classes(1), WHOLE.with_classes(1)], ("HEK", "N2a")
    )
    chosen = choose_labels(images, images.instances, {"truth": truth}, "truth", min_area_px=17)
    assert "labels: 1 image is annotated in part (78 % known)" in capsys.readouterr().err
    write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images, ("HEK", "N2a"))
    assert np.array_equal(read_labels(tmp_path / "labels/a.tif"), np.where(MARKED == 3, 3, np.minimum(MARKED, 0)))
    assert tifffile.imread(tmp_path / "labels/b.tif").dtype == np.uint16
    labelled = with_classes(
        read_coco(tmp_path / "labels/labels.json", tmp_path), "cell_type", ("HEK", "N2a"), {"truth": truth}
    )
    assert [cells.unknown_px for cells in labelled.instances] == [REGION.sum(), 0]
    assert "1 image is annotated in part (78 % known)" in repr(labelled)
    train = read_coco(write_dataset(tmp_path / "coco/train.json", labelled.by_split()["train"]), tmp_path)
    assert train.instances == labelled.instances == [PARTLY[2:].with_classes(1), WHOLE[2:].with_classes(1)]


def test_corrections_that_mark_a_part(images, tmp_path):
    proposals = [WHOLE, WHOLE]
    write_labels(tmp_path / "c/a.tif", MARKED)
    found, unused, _ = read_corrections(images, proposals, tmp_path / "c")
    assert unused == [] and found["a"].cells == PARTLY and np.array_equal(found["a"].labels, MARKED)
    assert found["a"].by_person, "the proposed cells, and a mark that no model makes"
    assert not same_cells(PARTLY, WHOLE) and same_cells(PARTLY, PARTLY[[2, 0, 1]])
    write_label_png(tmp_path / "c/a_masks.png", LABELS)
    found, unused, _ = read_corrections(images, proposals, tmp_path / "c")
    assert found["a"].cells == PARTLY, "the copy of the proposal beside it is none"
    chosen = choose_labels(images, proposals, {}, str(tmp_path / "c"))
    assert [(item.made_by, item.instances.unknown_px > 0) for item in chosen] == [
        ("corrected", True),
        ("proposed", False),
    ]
    write_chosen(chosen, tmp_path / "labels", tmp_path / "labels.csv", images)
    assert read_coco(tmp_path / "labels/labels.json").instances == [PARTLY, WHOLE]


def test_a_file_that_annotates_nothing_corrects_nothing(images, tmp_path):
    write_labels(tmp_path / "c/a.tif", np.full(SHAPE, -1))
    write_labels(tmp_path / "c/b.tif", MARKED)
    found, unused, _ = read_corrections(images, [WHOLE, WHOLE], tmp_path / "c")
    assert list(found) == ["b"] and [item.item for item in unused] == ["a.tif"]
    assert "marks every pixel as not annotated" in unused[0].reason


def test_what_a_mark_covers_was_not_removed(images):
    assert change(WHOLE, PARTLY) == (3, 0, 0, 0, 1.0)
    covered = Instances.from_labels(np.where(LABELS == 3, -1, LABELS))
    assert change(WHOLE, covered) == (2, 0, 0, 0, 1.0) and change(WHOLE, WHOLE[:2]) == (2, 0, 0, 1, 1.0)
    assert not len(label_changes(images, [WHOLE, WHOLE], [], "nowhere"))


def test_a_quarter_keeps_its_part_of_the_mark(images, tmp_path):
    box = Box(4, 12, 6, 16)
    part = cut_out(PARTLY, box)
    assert np.array_equal(part.unknown_mask, REGION[4:, 6:]) and len(part) == 2
    held = CellDataset(images.records[:1], [PARTLY], ("HEK",), tmp_path, [1], ["truth"])
    found = Instances.concatenate([WHOLE, Instances.from_labels(np.where(REGION, 1, 0))])
    judge, cells, _ = judged_of([Fold(held, held, tmp_path, Box(0, 12, 0, 16))], [{0.0: [found]}])
    assert judge.instances[0].unknown_px == REGION.sum() and len(cells[0.0][0]) == 4


def test_a_fold_is_run_again_where_the_mark_changed(images, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"images/{name}.png").write_bytes(b"x")

    def stamp(first):
        data = CellDataset(images.records, [first, WHOLE], ("HEK",), tmp_path, [1, 2])
        return _stamp(threshold, Fold(data, data, tmp_path), threshold.TrainSettings())

    assert stamp(PARTLY) == stamp(PARTLY) != stamp(WHOLE)


def test_true_counts_are_those_of_whole_images(images):
    found = {"a": WHOLE.with_classes(1), "b": WHOLE.with_classes(1)}
    for first, known in ((WHOLE, True), (PARTLY, False)):
        truth = CellDataset(images.records, [first.with_classes(1), WHOLE.with_classes(1)], ("HEK",))
        assert ("truth" in count_by_class(found, images, truth, ("HEK",)).columns) == known
