"""Outlines: every pixel comes back, the orders agree, ImageJ's rule for centres on an edge, nothing wild gets through."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.cells.instances import Instances
from cellkit.cells.outlines import fill, is_hole, outlines, polygons
from cellkit.errors import UserError

RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])


def label_images(most_px=9, most_id=4):
    shapes = st.tuples(st.integers(1, most_px), st.integers(1, most_px))
    return shapes.flatmap(lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(0, most_id)))


def refilled(found):
    """The same objects, drawn around and filled again."""
    runs = [fill(rings, found.shape) for rings in outlines(found)]
    starts, lengths = (np.concatenate([np.zeros(0, np.int64), *(run[k] for run in runs)]) for k in (0, 1))
    offsets = np.cumsum([0, *(len(run[0]) for run in runs)])
    return Instances.from_runs(found.shape, starts, lengths, offsets, found.class_ids, found.scores)


def crossings(rings, points):
    """Even-odd and winding rule, one point at a time."""
    odd, winding = np.zeros(len(points), bool), np.zeros(len(points), int)
    for ring in rings:
        for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, 0), strict=True):
            for k, (x, y) in enumerate(points):
                if (ya <= y) != (yb <= y) and x < xa + (y - ya) / (yb - ya) * (xb - xa):
                    odd[k] ^= True
                    winding[k] += 1 if yb > ya else -1
    return odd, winding != 0


# ---- pixels to outlines --------------------------------------------------------------------------------------------
def test_a_pixel_is_the_square_from_its_index_to_the_next():
    (((ring,)),) = outlines(Instances.from_labels(np.array([[0, 0], [0, 1]])))
    assert ring.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2]]


def test_a_hole_turns_the_other_way():
    (rings,) = outlines(Instances.from_labels(RING))
    assert [ring.tolist() for ring in rings] == [[[0, 0], [3, 0], [3, 3], [0, 3]], [[2, 1], [1, 1], [1, 2], [2, 2]]]
    assert [is_hole(ring) for ring in rings] == [False, True]


@pytest.mark.parametrize(
    ("labels", "pieces"),
    [
        ([[1, 0], [0, 1]], 1),  # pixels that meet at a corner are one piece, either way
        ([[0, 1], [1, 0]], 1),
        ([[1, 0, 1]], 2),
        ([[1, 1, 1, 1]], 1),
        ([[1, 1, 1], [1, 0, 1], [1, 1, 0]], 2),  # the hole meets the outside at a corner only: it stays a hole
    ],
)
def test_how_many_outlines(labels, pieces):
    (rings,) = outlines(Instances.from_labels(np.array(labels)))
    assert len(rings) == pieces


def test_no_object_and_an_object_without_pixels():
    assert outlines(Instances.empty((3, 4))) == []
    assert outlines(Instances.from_runs((3, 4), [], [], [0, 0])) == [[]]


@settings(max_examples=300, deadline=None)
@given(label_images())
def test_every_pixel_comes_back(labels):
    found = Instances.from_labels(labels)
    assert refilled(found) == found


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
def test_overlapping_objects_come_back(masks):
    found = Instances.from_masks(masks, masks.shape[1:])
    assert refilled(found) == found


@settings(max_examples=40, deadline=None)
@given(label_images(6, 1))
def test_even_odd_and_winding_rule_agree(labels):
    centres = [(x + 0.5, y + 0.5) for y in range(labels.shape[0]) for x in range(labels.shape[1])]
    for rings in outlines(Instances.from_labels(labels)):
        odd, wound = crossings(rings, centres)
        np.testing.assert_array_equal(odd, labels.ravel() > 0)
        np.testing.assert_array_equal(wound, labels.ravel() > 0)


@settings(max_examples=100, deadline=None)
@given(label_images())
def test_outlines_have_corners_only_and_shoelace_to_the_area(labels):
    found = Instances.from_labels(labels)
    for rings, area in zip(outlines(found), found.areas_px, strict=True):
        signed = 0
        for ring in rings:
            ahead, after = np.roll(ring, -1, 0) - ring, np.roll(ring, -2, 0) - np.roll(ring, -1, 0)
            assert np.all((ahead == 0).sum(1) == 1), "edges run along the axes"
            assert np.all((ahead * after).sum(1) == 0), "every point is a corner"
            x, y = ring.T
            signed += np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2
        assert signed == area


# ---- outlines to pixels --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ring", "mask"),
    [
        ([[0, 0], [2, 0], [2, 1], [0, 1]], [[1, 1, 0], [0, 0, 0]]),
        ([[0.5, 0], [2.5, 0], [2.5, 1], [0.5, 1]], [[0, 1, 1], [0, 0, 0]]),  # ImageJ: left edge out, right edge in
        ([[0, 0.5], [2, 0.5], [2, 1.5], [0, 1.5]], [[1, 1, 0], [0, 0, 0]]),  # upper edge in, lower edge out
        ([[0.6, 0.6], [0.7, 0.6], [0.7, 0.7]], [[0, 0, 0], [0, 0, 0]]),  # no centre inside
        ([[-9, -9], [9, -9], [9, 9], [-9, 9]], [[1, 1, 1], [1, 1, 1]]),  # clipped
        ([[7, 7], [9, 7], [9, 9]], [[0, 0, 0], [0, 0, 0]]),
        (
            [[0, 0], [3, 2], [3, 0], [0, 2]],
            [[1, 0, 1], [1, 0, 1]],
        ),  # crosses itself; the middle column's centres are on it
        ([[0, 0], [3, 0]], [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_which_centres_are_inside(ring, mask):
    starts, lengths = fill([np.array(ring)], (2, 3))
    found = Instances.from_runs((2, 3), starts, lengths, [0, len(starts)])
    np.testing.assert_array_equal(found.mask(0), np.array(mask, bool))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(*[st.integers(-20, 90).map(lambda v: v / 10 + 0.03)] * 2), min_size=3, max_size=6),
        max_size=3,
    )
)
def test_filling_is_the_even_odd_rule(rings):
    shape = (7, 6)
    starts, lengths = fill([np.array(ring) for ring in rings], shape)
    found = Instances.from_runs(shape, starts, lengths, [0, len(starts)])
    centres = [(x + 0.5, y + 0.5) for y in range(7) for x in range(6)]
    odd, _ = crossings([np.array(ring) for ring in rings], [(x - 1e-8, y) for x, y in centres])
    np.testing.assert_array_equal(found.mask(0).ravel(), odd)
    assert Instances.from_masks([found.mask(0)], shape) == found, "runs that touch are joined"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 2e9])
def test_a_point_far_away_is_refused(value):
    with pytest.raises(UserError, match="not finite or far away"):
        fill([np.array([[0, 0], [1, 0], [value, 3]])], (5, 5))


def test_an_outline_as_large_as_the_memory_is_refused():
    zigzag = np.column_stack([np.arange(20_000), np.tile([0, 4096], 10_000)])
    with pytest.raises(UserError, match=r"crosses \d+ rows"):
        fill([zigzag], (4096, 4096))


# ---- polygons ------------------------------------------------------------------------------------------------------
def test_polygons_lose_holes_and_say_so():
    labels = np.zeros((5, 9), int)
    labels[:3, :3], labels[:2, 5:8] = RING, 2
    shapes, holes, changed = polygons(Instances.from_labels(labels))
    assert shapes[1] == [[5, 0, 8, 0, 8, 2, 5, 2]]
    assert len(shapes[0]) == 1
    assert (holes, changed) == (1, 1)


@settings(max_examples=150, deadline=None)
@given(label_images())
def test_the_loss_is_what_pycocotools_draws(labels):
    from pycocotools import mask as coco_mask

    found = Instances.from_labels(labels)
    shapes, holes, changed = polygons(found)
    different = 0
    for shape, k in zip(shapes, range(len(found)), strict=True):
        with warnings.catch_warnings():  # pycocotools' own, of numpy 2
            warnings.simplefilter("ignore", DeprecationWarning)
            drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(shape, *found.shape))) > 0
        different += not np.array_equal(drawn, found.mask(k))
    assert (changed, holes <= changed) == (different, True)
