"""What is not annotated: beside the cells, of no cell's pixels, and there after every step that changes the cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellkit.cells.dataset import CellDataset, known_in_part
from cellkit.cells.instances import IGNORED, Instances
from cellkit.cells.labels import clean_labels, refuse_foreground, relabel
from cellkit.cells.records import ImageRecord
from cellkit.cells.resize import resize_instances

MARKED = np.array([[1, 1, 0, -1, -1], [1, 0, 0, -1, 7], [0, 0, -1, -1, 7]])
LABELS = arrays(np.int16, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-1, 4))


def test_a_label_image_with_a_mark():
    cells = Instances.from_labels(MARKED, class_ids=[2, 1])
    assert (len(cells), cells.areas_px.tolist(), cells.class_ids.tolist()) == (2, [3, 2], [2, 1])
    assert cells.unknown.tolist() == [[3, 2], [8, 1], [12, 2]] and cells.unknown_px == 5
    assert np.array_equal(cells.unknown_mask, MARKED == -1)
    assert np.array_equal(cells.paint(unknown=-1), relabel(MARKED)[0])
    assert np.array_equal(cells.paint(), np.maximum(relabel(MARKED)[0], 0)), "unless it is asked for, it is background"
    assert cells.region().areas_px.tolist() == [5] and len(Instances.empty((3, 5)).region()) == 0


@given(LABELS)
def test_painted_and_read_again(labels):
    cells = Instances.from_labels(labels)
    assert Instances.from_labels(cells.paint(unknown=-1)) == cells
    assert cells == Instances.from_labels(np.maximum(labels, 0)).with_unknown(labels < 0)
    assert (cells == Instances.from_labels(np.maximum(labels, 0))) == (labels >= 0).all(), "it tells two sets apart"
    assert cells.with_unknown(cells.unknown_mask) == cells


@given(LABELS, st.data())
def test_a_labelled_cell_is_known_wherever_it_lies(labels, data):
    mask = data.draw(arrays(bool, labels.shape))
    cells = Instances.from_labels(np.maximum(labels, 0)).with_unknown(mask)
    assert np.array_equal(cells.unknown_mask, mask & (labels <= 0))
    assert np.array_equal(cells.with_classes(3).with_scores(0.5).unknown, cells.unknown)
    assert np.array_equal(cells[:1].unknown, cells.unknown), "a cell left out is background"
    assert not (cells.as_boxes().unknown_mask & (cells.as_boxes().paint() > 0)).any()
    assert np.array_equal(cells.as_boxes().unknown_mask, mask & (cells.as_boxes().paint() == 0))


@given(LABELS)
def test_objects_of_the_class_ignore_are_what_is_not_annotated(labels):
    cells = Instances.from_labels(np.maximum(labels, 0))
    ids = np.unique(labels[labels > 0])
    cells = cells.with_classes(np.where(ids == 2, IGNORED, ids))
    wanted = Instances.from_labels(np.where(labels == 2, -1, np.maximum(labels, 0)), ids[ids != 2])
    assert cells.without_ignored() == wanted


def test_an_ignored_object_yields_to_a_labelled_one():
    masks = [np.array([[1, 1, 1, 0]], bool), np.array([[0, 0, 1, 1]], bool)]
    cells = Instances.from_masks(masks, (1, 4), class_ids=[IGNORED, 1]).without_ignored()
    assert cells.unknown_mask.tolist() == [[True, True, False, False]] and cells.areas_px.tolist() == [2]


def test_parts_joined_keep_what_none_of_them_labels():
    left, right = Instances.from_labels(MARKED), Instances.from_labels(np.where(MARKED == -1, 0, 0 * MARKED))
    assert Instances.concatenate([left, right]) == left and Instances.concatenate([right, left]) == left
    labelled = Instances.from_labels(np.pad([[5]], ((0, 2), (3, 1))))
    assert Instances.concatenate([left, labelled]).unknown_px == 4


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_it_is_resized_with_the_cells(scale):
    large = Instances.from_labels(np.kron(MARKED, np.ones((4, 4), int)))
    small = resize_instances(large, scale)
    assert np.array_equal(small.unknown_mask, np.kron(MARKED == -1, np.ones((int(4 * scale),) * 2, bool)))
    assert not (small.unknown_mask & (small.paint() > 0)).any()


def test_cleaning_and_renumbering_leave_the_mark():
    labels = np.array([[9, 0, 9, -1], [0, 0, 0, -1], [10**6, 0, 0, -1]])
    assert relabel(labels)[0].tolist() == [[1, 0, 1, -1], [0, 0, 0, -1], [2, 0, 0, -1]]
    assert relabel(labels)[1].tolist() == [9, 10**6]
    assert clean_labels(labels, "split").tolist() == [[1, 0, 2, -1], [0, 0, 0, -1], [3, 0, 0, -1]]
    assert clean_labels(labels, "largest").tolist()[1:] == [[0, 0, 0, -1], [2, 0, 0, -1]]
    with pytest.raises(Exception, match="one id in 3 pieces"):
        refuse_foreground(np.array([[1, 0, 1, 0, 1, -1]]), "a.tif", "")


def test_how_many_images_and_how_much_of_them_is_said():
    shapes = [Instances.from_labels(MARKED), Instances.empty((3, 5)), Instances.from_labels(np.full((1, 15), -1))]
    assert known_in_part(shapes) == "2 images are annotated in part (33 % known)"
    assert known_in_part(shapes[1:2]) == known_in_part([]) == ""
    records = [ImageRecord(str(k), f"{k}.png", *cells.shape) for k, cells in enumerate(shapes)]
    data = CellDataset(records, shapes)
    assert repr(data).endswith("; 2 images are annotated in part (33 % known)")
    assert "in part" not in repr(data.subset([1]))
    assert (
        data.without_small(3).instances[0].areas_px.tolist() == [3]
        and data.without_small(3).instances[0].unknown_px == 5
    )
