"""Attribution: verdicts that can be checked by eye, and repairs that give back what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.scores.attribution import KINDS, attribute, fault_kinds, gains, repaired_score, worst_images, wrong_classes
from cellkit.scores.iou import overlaps, overlaps_of_labels
from cellkit.scores.kaggle import kaggle


def spans(*ranges_, classes=None, width=100):
    """Instances in a 1 x width image, each a (start, stop) span; they may overlap."""
    masks = []
    for start, stop in ranges_:
        mask = np.zeros((1, width), bool)
        mask[0, start:stop] = True
        masks.append(mask)
    return Instances.from_masks(masks, (1, width), classes)


def verdicts(truth, found):
    of_truth, of_found = fault_kinds(overlaps(truth, found))
    return of_truth.tolist(), of_found.tolist()


@pytest.mark.parametrize(
    ("truth", "found", "of_truth", "of_found"),
    [
        ([(0, 40)], [(0, 40)], ["good"], ["good"]),
        ([(0, 40)], [(0, 39)], ["good"], ["good"]),  # IoU .975: right at every threshold
        ([(0, 40)], [(0, 38)], ["boundary"], ["boundary"]),  # IoU exactly .95 is no hit at .95
        ([(0, 40)], [(0, 12)], ["boundary"], ["boundary"]),  # IoU .3: the cell is there
        ([(0, 40)], [(0, 4)], ["missed"], ["invented"]),  # IoU exactly .1 is not
        ([(0, 40)], [], ["missed"], []),
        ([], [(0, 40)], [], ["invented"]),
        ([(0, 40)], [(0, 20), (20, 40)], ["split"], ["split", "split"]),
        ([(0, 40)], [(0, 35), (35, 40)], ["split"], ["split", "split"]),
        ([(0, 40)], [(0, 37), (37, 40)], ["boundary"], ["boundary", "invented"]),  # a piece below a tenth
        ([(0, 20), (20, 40)], [(0, 40)], ["merged", "merged"], ["merged"]),
        ([(0, 20), (20, 30), (50, 60)], [(0, 30)], ["merged", "merged", "missed"], ["merged"]),
        ([(0, 40)], [(0, 40), (0, 40)], ["split"], ["split", "split"]),  # predicted twice
        ([(0, 30), (30, 36)], [(0, 36), (0, 10)], ["merged", "merged"], ["merged", "invented"]),  # merged before split
        ([(0, 20), (30, 50)], [(0, 18), (60, 70)], ["boundary", "missed"], ["boundary", "invented"]),
    ],
)
def test_verdicts(truth, found, of_truth, of_found):
    assert verdicts(spans(*truth), spans(*found)) == (of_truth, of_found)


def test_overlapping_truth_is_no_merge():
    truth, found = spans((0, 12), (8, 20)), spans((0, 12), (8, 20))
    assert verdicts(truth, found) == (["good", "good"], ["good", "good"])


def test_gains_by_hand():
    # one cell right, one missed, one invented: 1 / 3 at every threshold
    truth, found = spans((0, 10), (20, 30)), spans((0, 10), (50, 60))
    table = attribute([truth], [found]).set_index("kind")
    assert table["score"].tolist() == pytest.approx([1 / 3] * 6)
    assert table.loc["missed", "gain"] == pytest.approx(2 / 3 - 1 / 3)
    assert table.loc["invented", "gain"] == pytest.approx(1 / 2 - 1 / 3)
    assert table["cells"].to_dict() == {"missed": 1, "invented": 1, "split": 0, "merged": 0, "boundary": 0, "class": 0}
    assert table.loc[["split", "merged", "boundary", "class"], "gain"].tolist() == [0, 0, 0, 0]


def test_boundary_gain_is_what_the_thresholds_took():
    truth, found = spans((0, 40)), spans((0, 33))  # IoU .825: right at seven thresholds
    table = attribute([truth], [found]).set_index("kind")
    assert table.loc["boundary", "score"] == pytest.approx(0.7)
    assert table.loc["boundary", "gain"] == pytest.approx(0.3)


def test_merged_gain_replaces_one_prediction_by_two():
    truth, found = spans((0, 20), (20, 40), (50, 70)), spans((0, 40), (50, 70))
    table = attribute([truth], [found]).set_index("kind")
    assert table.loc["merged", "score"] == pytest.approx(1 / 4)
    assert table.loc["merged", "gain"] == pytest.approx(3 / 4)
    assert table.loc["merged", "cells"] == 2


def test_class_gain_is_what_a_class_aware_hit_costs():
    truth = spans((0, 10), (20, 30), (40, 50), classes=[1, 2, 0])
    found = spans((0, 10), (20, 30), (40, 50), classes=[1, 1, 2])
    table = attribute([truth], [found]).set_index("kind")
    assert wrong_classes(overlaps(truth, found)).tolist() == [1]  # the third cell's class is not known
    assert table.loc["class", "cells"] == 1
    assert table.loc["class", "score"] == 1
    assert table.loc["class", "gain"] == pytest.approx(1 - 2 / 4)
    without = attribute([truth], [found.with_classes(0)]).set_index("kind")
    assert without.loc["class", ["cells", "gain"]].tolist() == [0, 0]


def test_two_empty_sides_lose_nothing():
    empty = Instances.empty((3, 3))
    table = attribute([empty], [empty])
    assert table["score"].tolist() == [1] * 6
    assert table[["cells", "gain"]].to_numpy().sum() == 0
    assert worst_images(table).loc[0, "main"] == ""


@st.composite
def label_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 12)))
    truth = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 4)))
    found = np.where(
        draw(hnp.arrays(bool, shape)), truth, draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 4)))
    )
    return truth, found


@settings(max_examples=150, deadline=None)
@given(label_pairs())
def test_every_repair_gains_and_all_together_give_one(sides):
    pairs = overlaps_of_labels(*sides)
    of_truth, of_found = fault_kinds(pairs)
    assert set(of_truth) <= {*KINDS, "good"} - {"invented"}
    assert set(of_found) <= {*KINDS, "good"} - {"missed"}
    assert (of_truth == "boundary").sum() == (of_found == "boundary").sum()
    assert (of_truth == "good").sum() == (of_found == "good").sum()
    score = kaggle([pairs], bootstrap=0)["score"]
    nothing = np.zeros(pairs.n_truth, bool), np.zeros(pairs.n_found, bool)
    assert repaired_score(pairs, *nothing) == pytest.approx(score)
    for kind in KINDS:
        assert repaired_score(pairs, of_truth == kind, of_found == kind) >= score - 1e-12
    assert repaired_score(pairs, of_truth != "good", of_found != "good") == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(label_pairs())
def test_a_repair_is_what_scoring_the_repaired_image_gives(sides):
    truth, found = (Instances.from_labels(side) for side in sides)
    pairs = overlaps(truth, found)
    of_truth, of_found = fault_kinds(pairs)
    for kind in KINDS[:5]:
        fixed, removed = of_truth == kind, of_found == kind
        repaired = Instances.concatenate([found[~removed], truth[fixed]])
        expected = kaggle([overlaps(truth, repaired)], bootstrap=0)["score"]
        assert repaired_score(pairs, fixed, removed) == pytest.approx(expected)


def a_record(image_id, cell_type="HEK"):
    return ImageRecord(image_id, f"images/{image_id}.png", 1, 100, cell_type=cell_type, group="w", split="val")


def a_set():
    truth = spans((0, 10), (20, 30))
    founds = [truth, spans((0, 10)), spans((0, 10), (20, 30), (40, 50)), Instances.empty((1, 100))]
    records = [a_record("a"), a_record("b"), a_record("c", "N2a"), a_record("d", "N2a")]
    return attribute([truth] * 4, founds, records)


def test_gains_average_over_all_images():
    table = gains(a_set())
    assert table["kind"].tolist()[:2] == ["missed", "invented"]
    assert table.set_index("kind").loc["missed", ["cells", "images", "gain"]].tolist() == [3, 2, (0.5 + 1) / 4]
    assert table.set_index("kind").loc["invented", "gain"] == pytest.approx((1 - 2 / 3) / 4)


def test_worst_images_first_with_the_reason():
    table = worst_images(a_set(), 3)
    assert table["image_id"].tolist() == ["d", "b", "c"]
    assert table["main"].tolist() == ["missed", "missed", "invented"]
    assert table["score"].tolist() == pytest.approx([0, 0.5, 2 / 3])
    assert table[[f"gain_{kind}" for kind in KINDS]].max(axis=1).tolist() == pytest.approx([1, 0.5, 1 / 3])
    assert len(worst_images(a_set(), 99)) == 4


def test_no_image_and_too_few_records():
    assert len(attribute([], [])) == 0
    assert len(worst_images(attribute([], []))) == 0
    assert len(gains(attribute([], []))) == 0
    with pytest.raises(UserError, match="0 records, 1 truths"):
        attribute([spans((0, 1))], [spans((0, 1))], [])
