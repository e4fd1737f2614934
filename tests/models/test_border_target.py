"""The touching border: what is encoded can be decoded, whatever cells there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cellkit.cells.instances import Instances
from cellkit.models import border_target
from cellkit.models.border_target import (
    NOT_KNOWN,
    SOME_CLASS,
    cut,
    decode,
    encode,
    one_hot,
    to_second_cell,
    weights_by_distance,
)
from cellkit.scores.iou import overlaps

SIDE_PX = 64


@st.composite
def touching_cells(draw):
    """A label image of the nearest of some points, each cell no wider than its reach: many touch, some do not."""
    places = draw(st.lists(st.tuples(st.integers(0, SIDE_PX - 1), st.integers(0, SIDE_PX - 1)), min_size=1, max_size=8))
    reach = draw(st.integers(6, 14))
    at = np.indices((SIDE_PX, SIDE_PX)).reshape(2, 1, -1)
    away = np.hypot(*(at - np.array(places).T[..., None]))
    labels = np.where(away.min(axis=0) <= reach, away.argmin(axis=0) + 1, 0)
    return labels.reshape(SIDE_PX, SIDE_PX).astype(np.int32)


@given(touching_cells(), st.sampled_from([1.0, 2.0, 3.0]))
def test_what_is_encoded_has_cells_where_they_were_and_border_only_near_another(labels, width_px):
    target = encode(labels, width_px)
    np.testing.assert_array_equal(target > 0, labels > 0)
    border = target == 2
    for k in np.unique(labels[border]):
        others = (labels > 0) & (labels != k)
        away = ndimage.distance_transform_edt(~others)
        assert away[border & (labels == k)].max() <= width_px + 0.5
        assert ((labels == k) & (target == 1)).any(), "every cell keeps a seed"


@given(touching_cells(), st.sampled_from([1.0, 2.0, 3.0]))
def test_seeds_of_two_cells_never_touch(labels, width_px):
    seeds, _ = ndimage.label(encode(labels, width_px) == 1)
    deep = labels * (ndimage.minimum_filter(labels, 3) == labels)  # a cell of single pixels has no depth to keep
    for seed in range(1, int(seeds.max()) + 1):
        assert len(np.unique(deep[(seeds == seed) & (deep > 0)])) <= 1


@given(touching_cells())
def test_what_is_decoded_covers_what_was_encoded(labels):
    found = decode(one_hot(encode(labels, 2.0), 1), labels.shape)
    covered = found.paint() > 0
    assert not found.overlapping and covered[labels > 0].all()
    assert (found.scores == 1).all() or (covered & (labels == 0)).any(), "only a hole that was filled scores less"


def discs(*places, radius=11, shape=(60, 90)):
    away = [np.hypot(np.arange(shape[0])[:, None] - y, np.arange(shape[1]) - x) for y, x in places]
    return np.where(np.min(away, axis=0) <= radius, np.argmin(away, axis=0) + 1, 0).astype(np.int32)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_two_cells_that_touch_come_apart_at_every_scale(scale):
    from cellkit.models.shared.inputs import labels_at

    truth = Instances.from_labels(discs((30, 30), (30, 50)))
    target = encode(labels_at(truth, tuple(round(scale * n) for n in truth.shape)), 3.0 * scale)
    assert {1, 2} <= set(np.unique(target))
    found = decode(one_hot(target, 1), truth.shape)
    pairs = overlaps(truth, found)
    assert len(found) == 2 and pairs.iou.max() > 0.9 and (pairs.iou > 0.85).sum() == 2
    melted = decode(one_hot(np.minimum(target, 1), 1), truth.shape)
    assert len(melted) == 1, "without the border they are one"


def test_a_cell_of_a_class_votes_for_it_and_one_of_none_does_not_say():
    labels = discs((30, 20), (30, 38), (30, 70))
    target = encode(labels, 2.0, np.array([2, 1, 0]), classes=2)
    assert target.max() == SOME_CLASS and set(np.unique(target)) == {0, 1, 2, 3, SOME_CLASS}
    found = decode(one_hot(target, 2), labels.shape)
    by_column = found.class_ids[np.argsort(found.boxes_xywh[:, 0])]
    assert by_column[:2].tolist() == [2, 1] and len(found) == 3
    assert decode(one_hot(encode(labels, 2.0), 1), labels.shape).class_ids.tolist() == [0, 0, 0]


def test_what_nobody_annotated_is_not_known():
    labels = discs((30, 30))
    labels[:, 60:] = -1
    target = encode(labels, 2.0)
    assert (target[:, 60:] == NOT_KNOWN).all() and (target[:, :60] < 2).all()


def test_thresholds_do_what_they_say():
    probabilities = one_hot(encode(discs((30, 30), (30, 50)), 2.0), 1)
    blurred = np.stack([ndimage.gaussian_filter(one, 1.5) for one in probabilities])
    areas = [decode(blurred, (60, 90), cell_threshold=t).areas_px.sum() for t in (0.3, 0.5, 0.7)]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[2]
    assert len(decode(blurred, (60, 90), border_weight=0.0, seed_threshold=0.1)) == 1
    assert len(decode(blurred, (60, 90), border_weight=2.0)) == 2
    left_out: Counter[str] = Counter()
    assert not len(decode(blurred, (60, 90), min_area_px=10**6, left_out=left_out)) and sum(left_out.values()) == 2


def test_a_patch_without_a_seed_is_a_cell_all_the_same():
    cell = np.zeros((9, 20), np.float32)
    cell[2:7, 2:7], cell[2:7, 12:17] = 0.9, 0.6
    inner = np.where(cell > 0.8, cell, 0.3 * cell)
    assert np.unique(cut(cell, inner, cell - inner, 1.0, 0.5, 0.5)).size == 3


def test_a_hole_that_one_cell_encloses_is_filled_and_one_among_several_is_not():
    ring = discs((30, 30))
    ring[28:33, 28:33] = 0
    assert border_target._filled(ring)[30, 30] == 1
    halves = np.where((np.arange(90) > 30) & (ring > 0), 2, ring).astype(np.int32)
    assert border_target._filled(halves)[30, 30] == 0


def test_weights_are_highest_between_two_cells():
    labels = discs((30, 30), (30, 54))
    weight = weights_by_distance(labels, 10.0, 3.0)
    assert weight[30, 42] == weight.max() > 5 and weight[5, 5] == 1
    assert np.isinf(to_second_cell(discs((30, 30)))).all()
    np.testing.assert_array_equal(weights_by_distance(np.zeros((4, 5), int), 10.0, 3.0), np.ones((4, 5)))
