"""Masks of several models fused: golden cases, invariants, and segmenters of segmenters."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.models.shared.contract import BatchSegmenter, Segmenter
from cellkit.models.shared.fusion import FusionSettings, checked_weights, fuse, fused

ALL = FusionSettings(least_models=0.0)
SHAPE = (12, 14)


def boxes(*given_boxes, scores=None, classes=None) -> Instances:
    """Cells that are boxes (y, x, height, width)."""
    masks = []
    for y, x, height, width in given_boxes:
        mask = np.zeros(SHAPE, bool)
        mask[y : y + height, x : x + width] = True
        masks.append(mask)
    return Instances.from_masks(masks, SHAPE, class_ids=classes, scores=scores)


box = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.integers(1, 6))
cell = st.tuples(box, st.sampled_from([k / 20 for k in range(1, 21)]), st.integers(0, 2))


@st.composite
def founds(draw) -> Instances:
    cells = draw(st.lists(cell, max_size=6))
    return boxes(*(c[0] for c in cells), scores=[c[1] for c in cells], classes=[c[2] for c in cells])


def same(a: Instances, b: Instances) -> bool:
    """Whether two sets hold the same cells, in any order, with the same classes and about the same scores."""
    rows = [
        sorted((x.mask(k).tobytes(), int(x.class_ids[k]), round(float(x.scores[k]), 9)) for k in range(len(x)))
        for x in (a, b)
    ]
    return rows[0] == rows[1]


# ---- golden cases ----------------------------------------------------------------------------------------------------
def test_a_cell_that_two_models_found_has_the_pixels_that_most_votes_are_for():
    result = fuse([boxes((0, 0, 2, 6), scores=[0.8]), boxes((0, 0, 2, 8), scores=[0.4])])
    assert np.array_equal(result.mask(0), boxes((0, 0, 2, 6)).mask(0)) and result.scores == pytest.approx([0.6])
    result = fuse([boxes((0, 0, 2, 6), scores=[0.8]), boxes((0, 0, 2, 8), scores=[0.4])], weights=[1, 3])
    assert np.array_equal(result.mask(0), boxes((0, 0, 2, 8)).mask(0)) and result.scores == pytest.approx([0.5])


def test_three_masks_vote_pixel_by_pixel():
    three = [boxes((0, 0, 2, 6)), boxes((0, 1, 2, 6)), boxes((0, 2, 2, 6))]
    assert np.flatnonzero(fuse(three).mask(0)[0]).tolist() == [1, 2, 3, 4, 5, 6]
    strict, loose = (fuse(three, settings=FusionSettings(least_votes=v, iou=0.4)) for v in (1.0, 0.0))
    assert np.flatnonzero(strict.mask(0)[0]).tolist() == [2, 3, 4, 5]
    assert np.flatnonzero(loose.mask(0)[0]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_cell_that_too_few_models_found_is_dropped_and_else_has_a_lower_score():
    three = [boxes((0, 0, 4, 4), scores=[0.9]), boxes(), boxes()]
    assert len(fuse(three)) == 0
    assert fuse(three, settings=ALL).scores == pytest.approx([0.3])
    assert len(fuse(three[:2])) == 1, "one of two is half of the weight"


def test_two_cells_that_one_model_tells_apart_stay_apart():
    pair = boxes((0, 0, 4, 3), (0, 3, 4, 3))
    lump = boxes((0, 0, 4, 6), scores=[0.5])
    assert same(fuse([pair, pair, lump]), pair.with_scores([2 / 3, 2 / 3]))


def test_the_class_is_voted_and_no_class_is_no_vote():
    a, b, c = (boxes((0, 0, 4, 4), scores=[s], classes=[k]) for s, k in ((0.5, 1), (0.4, 2), (0.9, 0)))
    assert fuse([a, b, c]).class_ids.tolist() == [1]
    assert fuse([a, b, c], [1, 2, 1]).class_ids.tolist() == [2]
    assert fuse([c, c]).class_ids.tolist() == [0]


def test_masks_of_score_0_vote_by_their_weight():
    result = fuse([boxes((0, 0, 2, 6), scores=[0.0]), boxes((0, 0, 2, 6), scores=[0.0])])
    assert len(result) == 1 and result.scores.tolist() == [0.0]


def test_nothing_found_fuses_to_nothing():
    assert len(fuse([boxes(), boxes()])) == 0


@pytest.mark.parametrize(
    ("weights", "problem"),
    [([1.0], "1 weights for 2 models"), ([0.0, 0.0], "the weights are 0, 0"), ([-1.0, 2.0], "the weights are -1, 2")],
)
def test_weights_that_are_none_are_refused(weights, problem):
    with pytest.raises(UserError, match=problem):
        fuse([boxes(), boxes()], weights)


def test_other_refusals():
    with pytest.raises(UserError, match="no model to fuse"):
        checked_weights(0, None)
    with pytest.raises(UserError, match="masks of images of"):
        fuse([boxes(), Instances.empty((3, 3))])


# ---- invariants ------------------------------------------------------------------------------------------------------
@given(founds(), st.integers(1, 4))
def test_a_model_fused_with_itself_gives_its_own_masks(found, times):
    assume(len(set(found.scores.tolist())) == len(found))  # of equal scores, the order decides who keeps a shared pixel
    assert same(fuse([found] * times), resolve_overlaps(found)[0])


@given(st.lists(founds(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_the_models_decides_nothing(models, rng):
    weights = [rng.choice([0.5, 1.0, 2.0]) for _ in models]
    order = rng.sample(range(len(models)), len(models))
    mixed = fuse([models[k] for k in order], [weights[k] for k in order], ALL)
    assert fuse(models, weights, ALL) == mixed


@given(st.lists(founds(), min_size=1, max_size=3), founds())
def test_a_model_of_weight_0_is_left_out(models, other):
    assert fuse([*models, other], [1.0] * len(models) + [0.0]) == fuse(models)


@given(st.lists(founds(), min_size=1, max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_no_pixel_is_shared_none_is_invented_and_scores_are_scores(models, least):
    result = fuse(models, settings=FusionSettings(least_models=least, least_votes=least))
    assert not result.overlapping and (result.areas_px > 0).all()
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    found = np.any([model.paint() > 0 for model in models], axis=0)
    assert not ((result.paint() > 0) & ~found).any()


@given(founds(), founds())
def test_what_all_models_have_to_find_is_no_more_than_what_one_found(one, other):
    assert len(fuse([one, other], settings=FusionSettings(least_models=1.0))) <= min(len(one), len(other))


# ---- segmenters ------------------------------------------------------------------------------------------------------
def of(found: Instances, dropped: int = 0) -> Segmenter:
    def find(image, left_out):
        left_out["small"] += dropped
        return found

    return Segmenter(find, {}, lambda shape: 7 * shape[0])


def test_a_fused_segmenter_is_one_and_takes_images_when_they_are_needed():
    taken = []

    def images():
        for k in range(3):
            taken.append(k)
            yield np.zeros((*SHAPE, 3), np.uint8)

    def in_pairs(stream):
        stream = list(stream)  # a model that looks at several images together
        for _ in stream:
            yield boxes((0, 0, 4, 4), scores=[0.5]), Counter(large=1)

    one = fused([of(boxes((0, 0, 4, 4), scores=[0.9]), 2), of(boxes()), BatchSegmenter(in_pairs, {})], [1, 0, 1])
    found = []
    for cells in one(images()):
        found.append(cells)
        assert one.left_out == {"small": 2, "large": 1}
        one.left_out.clear()
    assert [x.scores.tolist() for x in found] == [[pytest.approx(0.7)]] * 3 and taken == [0, 1, 2]
    assert one.bytes_for((10, 10)) == 70 and one.settings["weights"] == [1, 0, 1]


def test_a_fused_segmenter_of_one_at_a_time_models_takes_one_image_ahead():
    taken = []
    stream = fused([of(boxes()), of(boxes())])(taken.append(k) or np.zeros((*SHAPE, 3), np.uint8) for k in range(9))
    next(stream)
    assert taken == [0]
