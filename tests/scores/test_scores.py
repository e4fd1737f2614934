"""Scores: the worked cases of the metric definitions, and invariants; the real evaluators are in test_parity.py."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peers import cellpose_counts, coco_curves, coco_data, mean_defined, sequential

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.scores import iou as scores_iou
from cellkit.scores.aji_cellpose import aji_cellpose
from cellkit.scores.aji_kumar import aji_kumar
from cellkit.scores.caicedo import caicedo
from cellkit.scores.cellpose import cellpose
from cellkit.scores.coco import coco
from cellkit.scores.conventions import compare_conventions, find_conventions
from cellkit.scores.iou import overlap_images, overlaps, overlaps_of_labels
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import THRESHOLDS, as_fractions, class_accuracy, count, counts_by_class, hits, match_pairs
from cellkit.scores.point import match_points, point
from cellkit.scores.pq import pq
from cellkit.scores.stardist import stardist
from cellkit.scores.table import (
    TABLE_COLUMNS,
    paired_bootstrap,
    per_image,
    score_table,
    size_terciles,
    summary,
)
from cellkit.scores.voc import voc

quick = settings(max_examples=100, deadline=None)
NOTHING = np.zeros((1, 4), int)


def strip(*ids):
    """A label image of one row."""
    return np.array([ids])


def spans(width, *ranges_, classes=None, scores=None):
    """Instances in a 1 x width image, each a (start, stop) span; they may overlap."""
    masks = []
    for start, stop in ranges_:
        mask = np.zeros((1, width), bool)
        mask[0, start:stop] = True
        masks.append(mask)
    return Instances.from_masks(masks, (1, width), classes, scores)


def one(truth, found):
    return [overlaps_of_labels(np.asarray(truth), np.asarray(found))]


def ap_of(package, truth, found, most=100, first_id=1):
    """Mean AP of one image in pycocotools or faster-coco-eval."""
    return mean_defined(coco_curves(package, *coco_data([truth], [found], first_id=first_id), most)[0])


def counts_of(result, t=0):
    return int(result.tp[t]), int(result.fp[t]), int(result.fn[t])


# ---- strategies ----------------------------------------------------------------------------------------------------
shapes = st.tuples(st.integers(1, 7), st.integers(1, 9))


@st.composite
def label_pairs(draw, high=5):
    shape = draw(shapes)
    truth = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, high), fill=st.just(0)))
    if draw(st.booleans()):
        found = np.where(draw(hnp.arrays(bool, shape)), truth, 0)
    else:
        found = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, high)))
    return truth, found


@st.composite
def boxes(draw, shape, most=7, classes=1):
    """Instances made of rectangles that may overlap; scores in tenths, so that they tie."""
    masks = []
    for _ in range(draw(st.integers(0, most))):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        mask = np.zeros(shape, bool)
        mask[y : y + draw(st.integers(1, 4)), x : x + draw(st.integers(1, 5))] = True
        masks.append(mask)
    n = len(masks)
    ids = draw(st.lists(st.integers(1, classes), min_size=n, max_size=n))
    tenths = draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
    return Instances.from_masks(masks, shape, ids, np.array(tenths) / 10)


@st.composite
def overlapping_pairs(draw, classes=1):
    shape = draw(st.tuples(st.integers(2, 7), st.integers(2, 9)))
    truth = draw(boxes(shape, classes=classes))
    found = draw(boxes(shape, classes=classes))
    if len(truth) and draw(st.booleans()):  # make hits likely: some predictions are truths
        copied = truth[draw(st.lists(st.integers(0, len(truth) - 1), max_size=5))]
        found = Instances.concatenate([found, copied])
    return truth, found


# ---- overlaps ------------------------------------------------------------------------------------------------------
def dense(pairs):
    """Return the shared pixels of all pairs, (G, P), 0 where none are shared."""
    shared = np.zeros((pairs.n_truth, pairs.n_found), int)
    shared[pairs.truth, pairs.found] = pairs.shared_px
    return shared


@quick
@given(overlapping_pairs(classes=3))
def test_overlaps_counts_every_pair_as_masks_do(sides):
    truth, found = sides
    pairs = overlaps(truth, found)
    masks = [[side.mask(k) for k in range(len(side))] for side in sides]
    expected = np.array([[(a & b).sum() for b in masks[1]] for a in masks[0]]).reshape(len(truth), len(found))
    np.testing.assert_array_equal(dense(pairs), expected)
    assert pairs.shared_px.min(initial=1) > 0
    union = np.zeros(truth.shape, bool)
    for mask in masks[0] + masks[1]:
        union |= mask
    assert pairs.covered_px == union.sum()


@quick
@given(label_pairs(high=300))
def test_labels_and_instances_give_the_same_overlaps(sides):
    direct = overlaps_of_labels(*sides)
    by_runs = overlaps(*(Instances.from_labels(side) for side in sides))
    for name in ("truth", "found", "shared_px", "truth_areas_px", "found_areas_px", "covered_px"):
        np.testing.assert_array_equal(getattr(direct, name), getattr(by_runs, name))


def test_overlaps_in_blocks_equal_overlaps_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    masks = rng.random((2, 12, 9, 11)) < 0.6
    truth, found = (Instances.from_masks(side, (9, 11)) for side in masks)
    whole = dense(overlaps(truth, found))
    monkeypatch.setattr(scores_iou, "_BLOCK", 7)
    np.testing.assert_array_equal(dense(overlaps(truth, found)), whole)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_any_integer_dtype(dtype):
    assert overlaps_of_labels(strip(0, 1, 1).astype(dtype), strip(1, 1, 1).astype(dtype)).iou.tolist() == [2 / 3]


def test_huge_ids_cost_no_table():
    assert kaggle(one(strip(0, 1, 2**40), strip(0, 5, 2**50)))["score"] == 1.0


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (strip(1, 2), strip(1, 2, 3), "cannot compare labels"),
        (strip(1.0), strip(1), "cannot compare labels"),
        (strip(-1, 0), strip(1, 0), "the id -1"),
    ],
)
def test_bad_label_images_are_refused(truth, found, message):
    with pytest.raises(UserError, match=message):
        overlaps_of_labels(truth, found)


def test_sizes_that_differ_are_refused_with_the_image():
    a, b = Instances.empty((2, 3)), Instances.empty((3, 2))
    with pytest.raises(UserError, match=r"image 2 of 2: the truth is 2 x 3 px, the found is 3 x 2"):
        overlap_images([a, a], [a, b])
    with pytest.raises(UserError, match="truth of 2 images, predictions of 1"):
        overlap_images([a, a], [a])


# ---- the k / 20 table ----------------------------------------------------------------------------------------------
# k: exact >, exact >=, arange >, arange >=, linspace >, StarDist, Cellpose (arange), COCO
TABLE = {
    10: (0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.1, 0.1),
    11: (0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.2, 0.2),
    12: (0.2, 0.3, 0.2, 0.2, 0.2, 0.3, 0.2, 0.3),
    13: (0.3, 0.4, 0.3, 0.3, 0.3, 0.4, 0.3, 0.4),
    14: (0.4, 0.5, 0.4, 0.4, 0.4, 0.5, 0.4, 0.5),
    15: (0.5, 0.6, 0.5, 0.5, 0.5, 0.6, 0.5, 0.6),
    16: (0.6, 0.7, 0.6, 0.6, 0.6, 0.7, 0.6, 0.7),
    17: (0.7, 0.8, 0.7, 0.7, 0.7, 0.8, 0.7, 0.8),
    18: (0.8, 0.9, 0.8, 0.8, 0.9, 0.9, 0.8, 0.9),
    19: (0.9, 1.0, 0.9, 0.9, 0.9, 1.0, 0.9, 1.0),
    20: (1.0,) * 8,
}


@pytest.mark.parametrize("k", TABLE)
def test_part_of_one_cell(k):
    truth, found = np.repeat([[1, 0]], 20, axis=1), (np.arange(40) < k).astype(int)[None]
    pairs = one(truth, found)
    iou = pairs[0].iou[0]
    arange, linspace = np.arange(0.5, 1, 0.05), np.linspace(0.5, 0.95, 10)
    cells = [Instances.from_labels(side, class_ids=[1]) for side in (truth, found)]
    got = (
        kaggle(pairs)["score"],
        count(pairs[0], strict=False).tp.mean(),
        (iou > arange).mean(),
        (iou >= arange).mean(),
        (iou > linspace).mean(),
        np.mean(list(stardist(pairs, THRESHOLDS)["accuracy_by_threshold"].values())),
        cellpose_counts(truth, found, arange)[0].mean(),
        coco(pairs)["score"],
    )
    assert got == pytest.approx(TABLE[k])
    assert ap_of("pycocotools", *cells) == pytest.approx(TABLE[k][7])


def test_thresholds_are_the_fractions_meant():
    assert as_fractions(np.arange(0.5, 1, 0.05)) == THRESHOLDS == as_fractions(np.linspace(0.5, 0.95, 10))


def test_a_hit_is_decided_in_integers():
    pairs = overlaps_of_labels(np.repeat(1, 3 * 10**5)[None], (np.arange(3 * 10**5) < 180_001).astype(int)[None])
    assert hits(pairs, [0.6]).all()
    assert not hits(pairs, [Fraction(180_001, 300_000)]).any()


# ---- the test vectors ----------------------------------------------------------------------------------------------
def test_vector_1_one_pixel_of_two():
    truth, found = strip(1, 1), strip(1, 0)
    pairs = one(truth, found)
    assert counts_of(count(pairs[0])) == (0, 1, 1)
    assert [caicedo(pairs)[name][0] for name in ("tp", "fp", "fn")] == [0, 1, 1]
    assert stardist(pairs)["score"] == 1
    assert cellpose(pairs)["by_threshold"]["0.50"] == 1 == cellpose_counts(truth, found, [0.5])[1][0]


def test_vector_2_two_halves_of_one_cell():
    truth, found = strip(1, 1, 0), strip(1, 2, 0)
    pairs = one(truth, found)
    assert counts_of(count(pairs[0])) == (0, 2, 1)
    assert [caicedo(pairs)[name][0] for name in ("tp", "fp", "fn")] == [0, 2, 1]
    assert counts_of(count(pairs[0], strict=False)) == (1, 1, 0)
    assert cellpose(pairs)["by_threshold"]["0.50"] == 0.5 == cellpose_counts(truth, found, [0.5])[0][0]
    assert stardist(pairs)["accuracy"] == 0.5
    assert caicedo(pairs)["splits"] == 1
    assert caicedo(pairs)["merges"] == 0


@pytest.mark.parametrize(("copies", "score"), [(1, 1.0), (2, 0.5), (5, 0.2)])
def test_vector_3_one_cell_predicted_often(copies, score):
    pairs = [overlaps(spans(6, (1, 4)), spans(6, *[(1, 4)] * copies))]
    assert kaggle(pairs)["score"] == pytest.approx(score)
    assert caicedo(pairs)["score"] == pytest.approx(
        1.0 if copies == 1 else 0.0
    )  # a truth matched twice is no hit there


def test_caicedo_counts_a_prediction_of_two_truths_as_no_invention():
    result = caicedo([overlaps(spans(30, (0, 12), (2, 14)), spans(30, (1, 13)))])
    assert [result[name][0] for name in ("tp", "fp", "fn")] == [2, 0, 0]


def test_vector_4_both_empty():
    pairs = one(NOTHING, NOTHING)
    assert kaggle(pairs)["score"] == 1
    assert kaggle(pairs)["empty_images"] == 1
    assert kaggle(pairs)["score_without_empty"] is None
    assert stardist(pairs)["score"] == stardist(pairs)["pq"] == caicedo(pairs)["score"] == 0
    assert cellpose(pairs)["score"] is None
    assert np.isnan(cellpose_counts(NOTHING, NOTHING, [0.5])[0]).all()  # tripwire
    assert coco(pairs)["score"] is None
    assert pq(pairs)["score"] is None
    assert aji_kumar(pairs)["score"] is None


@pytest.mark.parametrize(("truth", "found"), [(strip(1, 1, 0, 2), NOTHING), (NOTHING, strip(1, 1, 0, 2))])
def test_vector_5_one_side_only(truth, found):
    pairs = one(truth, found)
    for convention in (kaggle, cellpose, stardist, caicedo, pq, aji_kumar, aji_cellpose):
        assert convention(pairs)["score"] == 0
    assert coco(pairs)["score"] == (0 if truth.any() else None)
    assert voc(pairs)["score"] == (0 if truth.any() else None)


@pytest.mark.parametrize("ids", [(1, 7), (1, 2, 300), (3, 70_000)])
def test_vector_6_gaps_in_the_ids_do_not_matter(ids):
    row = np.zeros((1, 4 * len(ids)), int)
    for place, value in enumerate(ids):
        row[0, 4 * place : 4 * place + 3] = value
    found = np.roll(row, 1)
    for convention in (kaggle, cellpose, stardist, caicedo, coco):
        assert convention(one(row, found)) == convention(one(sequential(row), sequential(found)))
    assert kaggle(one(row, row))["score"] == 1
    assert caicedo(one(row, row))["score"] == pytest.approx(1)


def test_vector_7_no_background():
    truth, found = strip(1, 1, 2, 2), strip(4, 4, 4, 9)
    assert kaggle(one(truth, found)) == kaggle(one(np.c_[truth, 0], np.c_[found, 0]))
    tp, fp, fn = cellpose_counts(truth, found, [0.5])[1:]
    assert (int(tp[0]), int(fp[0]), int(fn[0])) != counts_of(
        count(one(truth, found)[0], [0.5], strict=False)
    )  # tripwire
    ap = cellpose_counts(strip(1, 1, 2), strip(1, 1, 2), [0.5])[0]
    assert np.isinf(ap).all()  # tripwire: a perfect prediction without background


def test_vector_9_mean_of_images_and_pooled():
    good, poor = strip(1), strip(1, 2, 3, 4, 5, 6, 7, 8)
    pairs = one(good, good) + one(poor, np.where(poor == 1, 1, 0))
    assert kaggle(pairs)["score"] == pytest.approx(0.5625)
    assert kaggle(pairs, pool="cells")["score"] == pytest.approx(2 / 9, abs=1e-12)
    assert stardist(pairs)["accuracy"] == pytest.approx(0.2222, abs=1e-4)


def grid_of_cells(n):
    labels = np.zeros((3 * n // 20 + 3, 60), int)
    for k in range(n):
        labels[3 * (k // 20) : 3 * (k // 20) + 2, 3 * (k % 20) : 3 * (k % 20) + 2] = k + 1
    return labels


def test_vector_10_more_than_a_hundred_cells():
    cells = Instances.from_labels(grid_of_cells(400), class_ids=np.ones(400, int))
    pairs = [overlaps(cells, cells)]
    assert coco(pairs, max_detections=100)["score"] == pytest.approx(0.2574, abs=5e-5)
    assert coco(pairs)["score"] == 1
    assert coco(pairs)["max_detections"] == 400
    assert ap_of("pycocotools", cells, cells) == pytest.approx(0.2574, abs=5e-5)
    assert ap_of("pycocotools", cells, cells, most=2000) == pytest.approx(1)


def test_vector_11_tripwire_coco_ids_from_zero_lose_a_cell():
    cells = Instances.from_labels(grid_of_cells(5), class_ids=np.ones(5, int))
    assert ap_of("pycocotools", cells, cells, first_id=0) == pytest.approx(0.6416, abs=5e-5)
    assert ap_of("pycocotools", cells, cells, first_id=1) == pytest.approx(1)


def test_vector_12_run_lengths():
    mask = np.zeros((3, 4), bool)
    mask[:2, 1] = True
    cell = Instances.from_masks([mask], (3, 4))
    assert cell.to_kaggle_rle("row-major") == ["2 1 6 1"]
    assert cell.to_kaggle_rle("column-major") == ["4 2"]
    assert cell.to_coco_rle(compressed=False)[0]["counts"] == [3, 2, 7]


def test_vector_13_two_ajis():
    from cellpose.metrics import aggregated_jaccard_index

    truth, found = np.repeat([[1, 2]], 25, axis=1), np.repeat([[1, 2]], [40, 10], axis=1)
    pairs = one(truth, found)
    assert aji_kumar(pairs)["score"] == pytest.approx(35 / 65)
    assert aji_cellpose(pairs)["score"] == pytest.approx(0.70)
    with np.errstate(invalid="ignore"):
        assert aggregated_jaccard_index([truth], [found])[0] == pytest.approx(0.70)


def test_vector_14_overlapping_truth():
    truth = spans(14, (1, 11), (3, 13), classes=[1, 1])
    found = spans(14, (3, 11), classes=[1], scores=[0.9])
    pairs = [overlaps(truth, found)]
    assert pairs[0].iou.tolist() == [0.8, 0.8]
    assert kaggle(pairs)["score"] == pytest.approx(0.30)
    inclusive = count(pairs[0], strict=False)
    assert (inclusive.tp / sum(inclusive)).mean() == pytest.approx(0.35)
    result = coco(pairs)
    assert result["score"] == pytest.approx(0.3535, abs=5e-5)
    assert result["ap50"] == pytest.approx(0.505, abs=5e-4)
    assert ap_of("pycocotools", truth, found) == pytest.approx(result["score"], abs=1e-9)


def test_vector_14_one_to_one_needs_a_matching():
    # two truths of IoU > .5 with both predictions: a greedy choice would leave one out
    truth, found = spans(30, (0, 10), (0, 14)), spans(30, (0, 12), (0, 18))
    assert hits(overlaps(truth, found), [0.5]).sum() == 4
    assert counts_of(count(overlaps(truth, found), [0.5])) == (2, 0, 0)
    assert [part.tolist() for part in match_pairs(truth, found)] == [[0, 1], [0, 1]]


def test_vector_15_a_second_perfect_prediction_ranked_last_is_free_in_coco():
    truth, found = spans(6, (1, 4), classes=[1]), spans(6, (1, 4), (1, 4), classes=[1, 1], scores=[0.9, 0.8])
    assert coco([overlaps(truth, found)])["score"] == 1
    assert ap_of("pycocotools", truth, found) == pytest.approx(1)
    assert voc([overlaps(truth, found)])["score"] == 1


# ---- invariants ----------------------------------------------------------------------------------------------------
@quick
@given(overlapping_pairs())
def test_matching_is_the_largest_one_to_one(sides):
    from scipy.optimize import linear_sum_assignment

    pairs = overlaps(*sides)
    for threshold, strict in ((Fraction(1, 2), True), (Fraction(3, 10), False)):
        table = np.zeros((pairs.n_truth, pairs.n_found))
        chosen = hits(pairs, [threshold], strict)[0]
        table[pairs.truth[chosen], pairs.found[chosen]] = 1
        largest = table[linear_sum_assignment(-table)].sum()
        assert count(pairs, [threshold], strict).tp[0] == largest
        i, j = match_pairs(pairs, threshold=threshold, strict=strict)
        assert len(i) == largest
        assert len(set(i.tolist())) == len(i) == len(set(j.tolist()))
        assert table[i, j].all()


@quick
@given(overlapping_pairs(), st.randoms(use_true_random=False))
def test_order_and_side_do_not_matter(sides, random):
    truth, found = sides
    order = list(range(len(found)))
    random.shuffle(order)
    straight, mirrored = count(overlaps(truth, found)), count(overlaps(found, truth))
    for mine, other in zip(straight, count(overlaps(truth, found[np.array(order, int)])), strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(straight.tp, mirrored.tp)
    np.testing.assert_array_equal(straight.fp, mirrored.fn)
    assert (np.diff(straight.tp) <= 0).all()


@quick
@given(label_pairs())
def test_scores_are_shares_and_perfect_is_one(sides):
    truth, found = sides
    result = compare_conventions(*([Instances.from_labels(side)] for side in sides), bootstrap=0)
    for name, convention in result["conventions"].items():
        assert convention["score"] is None or 0 <= convention["score"] <= 1 + 1e-9, name
    if truth.any():
        same = compare_conventions(*([Instances.from_labels(truth)] for _ in range(2)), bootstrap=0)["conventions"]
        assert all(convention["score"] == pytest.approx(1) for convention in same.values())


# ---- COCO options, VOC, points, PQ ---------------------------------------------------------------------------------
def test_coco_ignores_truth_of_unknown_class():
    truth = spans(20, (0, 5), (10, 15), classes=[1, 0])
    found = spans(20, (0, 5), (10, 15), classes=[1, 1], scores=[0.5, 0.9])
    assert coco([overlaps(truth, found)], per_class=True, classes=["HEK"])["by_class"] == {"HEK": 1.0}
    assert voc([overlaps(truth, found)], classes=["HEK"])["by_class"] == {"HEK": 1.0}


def test_voc_by_hand():
    # ranked right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    truth = spans(40, (0, 5), (10, 15), classes=[1, 1])
    found = spans(40, (0, 5), (20, 25), (10, 15), classes=[1, 1, 1], scores=[0.9, 0.8, 0.7])
    result = voc([overlaps(truth, found)])
    assert result["score"] == result["mean_of_images"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_voc_second_choice_is_no_choice_in_the_devkit_but_is_in_coco():
    # both predictions overlap truth A most; COCO lets the second have B, VOC does not
    truth = spans(40, (0, 10), (4, 14), classes=[1, 1])
    found = spans(40, (1, 11), (0, 11), classes=[1, 1], scores=[0.9, 0.8])
    pairs = [overlaps(truth, found)]
    assert voc(pairs)["score"] == pytest.approx(0.5)
    assert coco(pairs)["ap50"] == pytest.approx(1)


def test_voc_per_class_and_per_image():
    truth = spans(40, (0, 5), (10, 15), classes=[1, 2])
    found = spans(40, (0, 5), (10, 15), classes=[1, 1], scores=[0.9, 0.8])
    result = voc([overlaps(truth, found)], classes=["HEK", "N2a"])
    assert result["by_class"] == {"HEK": 1.0, "N2a": 0.0}
    assert result["score"] == result["mean_of_images"] == 0.5


def test_point_uses_each_mask_once_in_order_of_score():
    truth = spans(20, (0, 5), (10, 15), (16, 18), classes=[1, 2, 0])
    points = np.array([[0, 1], [0, 2], [0, 12], [0, 17], [0, 19]])
    result = point([truth], [points], [np.array([0.2, 0.9, 0.5, 0.4, 0.1])], [np.array([1, 1, 1, 2, 2])])
    assert result["recall"] == 1
    assert result["precision"] == pytest.approx(3 / 5)
    assert result["judged"] == 2  # the third cell's class is not to be judged
    assert result["accuracy"] == 0.5
    np.testing.assert_array_equal(match_points(truth, points, [0.2, 0.9, 0.5, 0.4, 0.1]), [-1, 0, 1, 2, -1])


def test_point_in_two_masks_takes_the_free_one():
    truth = spans(10, (0, 6), (3, 9))
    assert match_points(truth, np.array([[0, 4], [0, 4], [0, 4]])).tolist() == [0, 1, -1]


@pytest.mark.parametrize("bad", [[[0, 10]], [[-1, 0]], [[0.5, 0.5]]])
def test_point_outside_is_refused(bad):
    with pytest.raises(UserError, match="a point is no pixel of its image"):
        match_points(spans(10, (0, 6)), np.array(bad))


def test_pq_is_sq_times_rq():
    pairs = one(np.repeat([[1, 2, 3]], 10, axis=1), np.repeat([[1, 0, 2, 4, 0]], [8, 2, 10, 2, 8], axis=1))
    result = pq(pairs)
    assert result["sq"] == pytest.approx((0.8 + 1) / 2)
    assert result["rq"] == pytest.approx(2 * 2 / 6)
    assert result["score"] == pytest.approx(result["sq"] * result["rq"])


# ---- classes -------------------------------------------------------------------------------------------------------
def test_class_accuracy_leaves_out_unknown_truth():
    truth = spans(40, (0, 5), (10, 15), (20, 25), (30, 35), classes=[1, 2, 0, 2])
    found = spans(40, (0, 5), (10, 15), (20, 25), classes=[1, 1, 2])
    accuracy, n, confusion = class_accuracy([truth], [found], classes=["HEK", "N2a"])
    assert (accuracy, n) == (0.5, 2)
    assert confusion.loc["HEK", "HEK"] == confusion.loc["N2a", "HEK"] == 1
    assert confusion.to_numpy().sum() == 2
    assert list(confusion.columns) == ["HEK", "N2a"]


def test_class_accuracy_without_a_match_is_undefined():
    empty = Instances.empty((1, 5))
    accuracy, n, _ = class_accuracy([empty], [empty], classes=["HEK"])
    assert np.isnan(accuracy)
    assert n == 0


def test_counts_by_class_keep_absent_classes_and_show_unknown():
    table = counts_by_class([spans(9, (0, 1), (2, 3), classes=[2, 0]), Instances.empty((1, 9))], ["HEK", "N2a"])
    assert table.set_index("class_name")["cells"].to_dict() == {"HEK": 0, "N2a": 1, "unknown": 1}


# ---- the table -----------------------------------------------------------------------------------------------------
def a_record(image_id, cell_type="HEK", group="a", split="val"):
    return ImageRecord(image_id, f"images/{image_id}.png", 1, 40, cell_type=cell_type, group=group, split=split)


def a_set():
    """Three images: all found, one of two found, nothing in it."""
    truths = [spans(40, (0, 5), classes=[1]), spans(40, (0, 5), (10, 30), classes=[1, 2]), Instances.empty((1, 40))]
    founds = [truths[0], spans(40, (10, 30), (31, 33), classes=[2, 1]), Instances.empty((1, 40))]
    records = [a_record("a"), a_record("b", "N2a", "b"), a_record("c", "N2a", "b")]
    return truths, founds, records


def map_iou(table):
    return summary(table, n=0)["score"].item()


def test_table_agrees_with_kaggle_and_survives_csv():
    import pandas as pd

    truths, founds, records = a_set()
    table = score_table(truths, founds, records, classes=["HEK", "N2a"], sizes=True)
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert len(table) == 3 * (1 + 2 + 3) * 10
    expected = kaggle(overlap_images(truths, founds))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for t in (table, again, table.sample(frac=1, random_state=0)):
        assert map_iou(t) == pytest.approx(expected["score"]) == pytest.approx((1 + 1 / 3 + 1) / 3)
    line = summary(table, n=200).iloc[0]
    assert (line["images"], line["empty_images"], line["truth_cells"], line["found_cells"]) == (3, 1, 3, 3)
    assert line["score_without_empty"] == pytest.approx(expected["score_without_empty"]) == pytest.approx(2 / 3)
    assert (line["low"], line["high"]) == pytest.approx(
        kaggle(overlap_images(truths, founds), bootstrap=200)["interval"]
    )
    assert line["low"] <= line["score"] <= line["high"]


def test_table_by_parts():
    table = score_table(*a_set(), classes=["HEK", "N2a"], sizes=True)
    by = {
        name: summary(table, name, n=0).set_index(name)["score"].to_dict()
        for name in ("cell_type", "group", "class_name")
    }
    assert by["cell_type"] == {"HEK": 1.0, "N2a": pytest.approx((1 / 3 + 1) / 2)}
    assert by["group"] == {"a": 1.0, "b": pytest.approx((1 / 3 + 1) / 2)}
    assert by["class_name"] == {"HEK": pytest.approx((1 + 0) / 2), "N2a": 1.0}  # image c has neither, it is left out
    sizes = summary(table, "size", n=0).set_index("size")
    assert list(sizes.index) == ["small", "medium", "large"]
    assert sizes["truth_cells"].sum() == 3
    assert sizes["found_cells"].sum() == 3
    assert sizes.loc["large", "score"] == 1


def test_cells_of_equal_areas_are_not_called_small():
    equal = [spans(40, (0, 5), (10, 15), (20, 25))]
    assert size_terciles(equal) is None and size_terciles([]) is None
    assert size_terciles([spans(40, (0, 5), (10, 16), (20, 27))]) == pytest.approx((5 + 2 / 3, 6 + 1 / 3))
    assert set(score_table(equal, equal, [a_record("a")], sizes=True)["size"]) == {""}
    with pytest.raises(UserError, match="the 3 true cells are all equally large"):
        compare_conventions(equal, equal, records=[a_record("a")], by="size")


def test_class_rows_forgive_a_prediction_on_unknown_truth():
    truth, found = spans(40, (0, 5), (10, 15), classes=[1, 0]), spans(40, (0, 5), (10, 15), (20, 22), classes=[1, 1, 1])
    table = score_table([truth], [found], [a_record("a")], classes=["HEK"])
    row = table[(table["class_name"] == "HEK") & (table["threshold"] == 0.5)].iloc[0]
    assert (row["tp"], row["fp"], row["fn"]) == (1, 1, 0)


@quick
@given(overlapping_pairs())
def test_sizes_sum_to_the_whole(sides):
    table = score_table([sides[0]], [sides[1]], [a_record("a")], sizes=True)
    whole, parts = table[table["size"] == ""], table[table["size"] != ""]
    if len(parts):
        summed = parts.groupby("threshold")[["tp", "fp", "fn"]].sum().to_numpy()
        np.testing.assert_array_equal(whole[["tp", "fp", "fn"]].to_numpy(), summed)


def test_per_image_names_every_image_in_order():
    lines = per_image(score_table(*a_set()))
    assert lines["image_id"].tolist() == ["a", "b", "c"]
    assert lines["score"].tolist() == pytest.approx([1, 1 / 3, 1])
    assert lines[["truth_cells", "found_cells", "tp", "fp", "fn"]].to_numpy().tolist() == [
        [1, 1, 1, 0, 0],
        [2, 2, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]


def test_table_refuses_what_does_not_fit():
    truths, founds, records = a_set()
    with pytest.raises(UserError, match="2 records, 3 truths"):
        score_table(truths, founds, records[:2])
    table = score_table(truths, founds, records)
    with pytest.raises(UserError, match="lacks size"):
        map_iou(table.drop(columns="size"))
    with pytest.raises(UserError, match=r"did you mean 'cell_type'"):
        summary(table, by="celltype")
    with pytest.raises(UserError, match="29 rows for 3 images"):
        map_iou(table.iloc[1:])


def test_no_image_at_all():
    table = score_table([], [], [])
    assert np.isnan(map_iou(table))
    assert kaggle([])["score"] is None
    assert len(per_image(table)) == 0
    assert json.dumps(compare_conventions([], []), allow_nan=False)


# ---- bootstrap -----------------------------------------------------------------------------------------------------
def many_images(seed, quality, n=40):
    rng = np.random.default_rng(seed)
    truth = spans(100, *[(10 * k, 10 * k + 10) for k in range(10)])
    founds = [truth[rng.random(10) < quality] for _ in range(n)]
    return score_table([truth] * n, founds, [a_record(f"i{k:02d}", group="") for k in range(n)])


def test_paired_bootstrap_tells_better_from_equal():
    a, b = many_images(0, 0.7), many_images(1, 0.9)
    better = paired_bootstrap(a, b)
    assert better.difference == pytest.approx(map_iou(b) - map_iou(a))
    assert 0 < better.low < better.difference < better.high
    assert better.n == 40
    assert better.sentence("base", "tuned").startswith("tuned is better than base by 0.")
    worse = paired_bootstrap(b, a)
    assert worse.difference == pytest.approx(-better.difference)
    assert worse.sentence().startswith("B is worse than A by 0.")
    same = paired_bootstrap(a, a.sample(frac=1, random_state=0))
    assert same[:3] == (0, 0, 0)
    assert "cannot be told apart" in same.sentence()
    assert paired_bootstrap(a, b) == better  # deterministic


def test_paired_bootstrap_needs_the_same_images():
    a = many_images(0, 0.7)
    with pytest.raises(UserError, match=r"1 image is in one table only, e.g. 'i39'"):
        paired_bootstrap(a, a[a["image_id"] != "i39"])


def test_interval_covers_the_true_score():
    # an image is right or wrong with probability 1/2: the interval covers .5 about 95 times in 100
    truth = spans(10, (0, 5))
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        founds = [truth if rng.random() < 0.5 else Instances.empty((1, 10)) for _ in range(60)]
        low, high = kaggle(overlap_images([truth] * 60, founds), bootstrap=300, seed=seed)["interval"]
        covered += low <= 0.5 <= high
    assert 88 <= covered <= 99


def test_one_image_has_no_interval():
    assert kaggle(one(strip(1), strip(1)))["interval"] == [None, None]


# ---- side by side --------------------------------------------------------------------------------------------------
def test_compare_is_json_with_a_reason_for_every_number():
    truths, founds, records = a_set()
    result = compare_conventions(truths, founds, records, by="cell_type", classes=["HEK", "N2a"], bootstrap=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["images"] == 3
    assert set(result["conventions"]) == set(find_conventions())
    assert all(convention["why"] for convention in result["conventions"].values())
    kaggle_result = result["conventions"]["kaggle"]
    assert list(kaggle_result["by_threshold"])[:2] == ["0.50", "0.55"]
    assert len(kaggle_result["interval"]) == 2
    assert kaggle_result["score_pooled"] == pytest.approx(0.5)
    assert set(result["by"]["cell_type"]) == {"HEK", "N2a"}
    assert result["conventions"]["coco"]["by_class"] == {"HEK": pytest.approx(0.5 * 51 / 50.5, abs=0.02), "N2a": 1.0}
    assert result["conventions"]["point"]["accuracy"] == 1


def test_compare_takes_only_what_is_asked_and_says_what_is_unknown():
    truths, founds, _ = a_set()
    assert list(compare_conventions(truths, founds, conventions=["caicedo"])["conventions"]) == ["caicedo"]
    with pytest.raises(UserError, match=r"no convention 'kagle' \(did you mean 'kaggle'\?\)"):
        compare_conventions(truths, founds, conventions=["kagle"])
    with pytest.raises(UserError, match="without records"):
        compare_conventions(truths, founds, by="group")


def test_compare_says_how_many_images_hold_overlapping_predictions():
    truth, found = spans(9, (0, 4)), spans(9, (0, 4), (2, 6))
    assert (
        compare_conventions([truth], [found], conventions=["kaggle"])["conventions"]["kaggle"]["overlapping_images"]
        == 1
    )


def test_a_convention_is_one_file(tmp_path, monkeypatch, capsys):
    """Found, run, given an interval and printed by the command, with no other file touched."""
    import sys

    import cellkit.scores
    from cellkit.commands.main import main

    (tmp_path / "mine.py").write_text(
        "WHY = 'half of what is found'\nON_BOXES = True\n\n\n"
        "def score(images):\n    return {'score': sum(pairs.n_found for pairs in images.pairs) / 8}\n"
    )
    before = list(find_conventions())
    monkeypatch.setattr(cellkit.scores, "__path__", [*cellkit.scores.__path__, str(tmp_path)])
    assert set(find_conventions()) == {*before, "mine"}
    cells = [Instances.from_labels(np.array([[1, 1, 2, 2]])), Instances.from_labels(np.array([[1, 1, 0, 0]]))]
    told = compare_conventions(cells, cells, conventions=["mine", "kaggle"], bootstrap=10)["conventions"]
    assert (list(told), told["mine"]["score"], told["mine"]["why"]) == (
        ["mine", "kaggle"],
        3 / 8,
        "half of what is found",
    )
    assert told["mine"]["interval_of"] == "2 images (few)"
    boxes = [image.as_boxes() for image in cells]
    assert list(compare_conventions(boxes, boxes, bootstrap=0)["conventions"]) == ["mine", "coco", "voc"]
    assert main(["score", "--help"]) == 0
    assert "mine          half of what is found" in capsys.readouterr().out
    del sys.modules["cellkit.scores.mine"]


def test_every_convention_says_what_it_must():
    for name, convention in find_conventions().items():
        assert convention.WHY and isinstance(convention.ON_BOXES, bool) and callable(convention.score), name
