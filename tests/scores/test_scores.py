"""Scores: the worked cases of the metric definitions, and invariants; the real evaluators are in test_parity.py."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers import cellpose_counts, sequential
from score_cases import ap_of, label_pairs, one, overlapping_pairs, quick, spans, strip

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.scores.aji_cellpose import aji_cellpose
from cellkit.scores.aji_kumar import aji_kumar
from cellkit.scores.caicedo import caicedo
from cellkit.scores.cellpose import cellpose
from cellkit.scores.coco import coco
from cellkit.scores.conventions import compare_conventions
from cellkit.scores.iou import overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import count, hits, match_pairs
from cellkit.scores.point import match_points, point
from cellkit.scores.pq import pq
from cellkit.scores.stardist import stardist
from cellkit.scores.voc import voc

NOTHING = np.zeros((1, 4), int)


def counts_of(result, t=0):
    return int(result.tp[t]), int(result.fp[t]), int(result.fn[t])


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
