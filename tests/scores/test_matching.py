"""Overlaps, matches at thresholds of k / 20, and what they say of classes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from peers import cellpose_counts
from score_cases import ap_of, label_pairs, one, overlapping_pairs, quick, spans, strip

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.scores import iou as scores_iou
from cellkit.scores.coco import coco
from cellkit.scores.iou import overlap_images, overlaps, overlaps_of_labels
from cellkit.scores.kaggle import kaggle
from cellkit.scores.matching import THRESHOLDS, as_fractions, class_accuracy, count, counts_by_class, hits
from cellkit.scores.stardist import stardist

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
