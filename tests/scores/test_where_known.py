"""Scores of images that are annotated in part: what lies mostly where nothing is known is neither right nor wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peers import coco_curves, coco_data, mean_defined
from test_scores import label_pairs, spans

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.models.shared.fine_tuning import class_score, map_iou
from cellkit.scores.attribution import attribute
from cellkit.scores.conventions import compare_conventions, find_conventions
from cellkit.scores.iou import overlap_images, scorable
from cellkit.scores.matching import class_accuracy
from cellkit.scores.table import score_table

quick = settings(max_examples=30, deadline=None)


def known_until(truth: Instances, column: int) -> Instances:
    mask = np.zeros(truth.shape, bool)
    mask[:, column:] = True
    return truth.with_unknown(mask)


def scores_of(truths, founds, **how):
    told = compare_conventions(truths, founds, bootstrap=0, **how)["conventions"]
    return {name: {key: value for key, value in one.items() if key != "why"} for name, one in told.items()}


# ---- by eye ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("invented", "counts"),
    [((12, 16), False), ((10, 14), False), ((7, 14), False), ((8, 12), True), ((7, 12), True), ((5, 9), True)],
)
def test_a_cell_that_lies_mostly_where_nothing_is_known_counts_nowhere(invented, counts):
    """The image is known up to column 10; (8, 12) lies there by exactly half."""
    truth, found = spans(20, (0, 4)), spans(20, (0, 4), invented, scores=[0.5, 0.9])
    marked = known_until(truth, 10)
    assert len(scorable(marked, found)) == 1 + counts
    wanted = scores_of([truth], [found] if counts else [found[:1]])
    told = scores_of([marked], [found])
    assert list(told) == list(find_conventions())
    of_coco = told.pop("coco"), wanted.pop("coco")
    assert told == wanted
    if invented[0] >= 10 or invented[1] <= 10:
        assert of_coco[0] == of_coco[1], "wholly on one side"


def test_coco_asks_for_as_large_a_share_as_for_an_iou():
    """Three of five pixels lie in the region: no error at 0.50, 0.55 and 0.60, one above."""
    truth, found = spans(20, (0, 4)), spans(20, (8, 13), (0, 4), scores=[0.9, 0.5])
    by_threshold = scores_of([known_until(truth, 10)], [found])["coco"]["by_threshold"]
    assert list(by_threshold.values()) == pytest.approx([1.0] * 3 + [0.5] * 7)


def test_a_labelled_cell_in_the_region_is_found_or_missed_like_any_other():
    truth = spans(20, (0, 4), (12, 16), classes=[1, 2])
    marked = known_until(truth, 8)
    both, one = spans(20, (0, 4), (12, 16), classes=[1, 1]), spans(20, (0, 4), classes=[1])
    assert scores_of([marked], [both])["kaggle"]["score"] == 1
    assert scores_of([marked], [one])["kaggle"]["score"] == 0.5
    assert class_accuracy([marked], [both])[:2] == (0.5, 2)
    assert class_score([marked], [both], ("A", "B")) == class_score([truth], [both], ("A", "B"))


def test_a_cell_that_is_cut_by_the_region_is_compared_as_it_is_drawn():
    """Six of the nine pixels of a cell are labelled, the others not annotated: found as a whole its IoU is 6 / 9."""
    drawn = known_until(spans(20, (4, 10)), 10)
    told = scores_of([drawn], [spans(20, (4, 13))])["kaggle"]["by_threshold"]
    assert list(told.values()) == [1.0] * 4 + [0.0] * 6
    assert len(scorable(drawn, spans(20, (4, 17)))) == 0, (
        "mostly unknown: the labelled part is missed, nothing is invented"
    )


def test_where_the_score_is_lost_and_the_table_say_the_same():
    truth, found = known_until(spans(30, (0, 4), (5, 9)), 15), spans(30, (0, 4), (11, 14), (20, 24), (25, 30))
    record = [ImageRecord("a", "a.png", 1, 30)]
    lost = attribute([truth], [found], record).set_index("kind")["cells"]
    assert lost[["missed", "invented"]].tolist() == [1, 1]
    table = score_table([truth], [found], record, sizes=True)
    assert table[(table["size"] == "") & (table["threshold"] == 0.5)][["tp", "fp", "fn"]].values.tolist() == [[1, 1, 1]]
    assert map_iou([(truth, found)]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("convention", ["point", "aji_kumar", "aji_cellpose"])
def test_what_matches_at_less_iou_matches_a_labelled_cell_in_spite_of_a_mark(convention):
    """The found cell covers the labelled one, two thirds of it lie in the region; another lies there alone."""
    truth = spans(20, (4, 8))
    marked = truth.with_unknown(~truth.mask(0))
    around, and_alone = spans(20, (0, 12)), spans(20, (0, 12), (14, 18))
    plain = scores_of([truth], [around], conventions=[convention])
    assert plain[convention]["score"] == (1.0 if convention == "point" else pytest.approx(4 / 12))
    assert scores_of([marked], [around], conventions=[convention]) == plain
    assert scores_of([marked], [and_alone], conventions=[convention]) == plain, "only an invention is taken away"


def test_a_second_centre_in_a_labelled_cell_is_an_invention_that_a_mark_takes_away():
    truth = spans(20, (4, 8))
    found = Instances.concatenate([spans(20, (4, 8)), spans(20, (0, 12))]).with_scores([0.9, 0.5])
    marked = truth.with_unknown(~truth.mask(0))
    assert scores_of([truth], [found])["point"]["precision"] == 0.5
    assert scores_of([marked], [found])["point"]["precision"] == 1.0


@quick
@given(label_pairs(), st.data())
def test_a_mark_makes_no_miss_where_less_iou_is_enough(sides, data):
    truth, found = map(Instances.from_labels, sides)
    marked = truth.with_unknown(data.draw(hnp.arrays(bool, truth.shape)))
    plain, told = (scores_of([one], [found])["point"] for one in (truth, marked))
    assert told["recall"] == plain["recall"]
    assert (told["precision"] or 0) >= (plain["precision"] or 0)
    plain, told = (scores_of([one], [found], conventions=["aji_kumar"])["aji_kumar"] for one in (truth, marked))
    assert (told["score"] or 0) >= (plain["score"] or 0)


def test_boxes_too():
    truth = known_until(Instances.from_boxes([[0, 0, 4, 1]], (1, 20)), 10)
    found = Instances.from_boxes([[0, 0, 4, 1], [12, 0, 5, 1]], (1, 20))
    told = scores_of([truth], [found])
    assert {name: one["score"] for name, one in told.items()} == {"coco": pytest.approx(1.0), "voc": 1.0}


def test_sides_of_another_size_are_refused():
    with pytest.raises(UserError, match="the truth is 1 x 20 px, the found is 1 x 9 px"):
        scorable(known_until(spans(20, (0, 4)), 8), spans(9, (0, 4)))


# ---- whatever the image ----------------------------------------------------------------------------------------------
@quick
@given(st.lists(label_pairs(), min_size=1, max_size=3))
def test_marked_wherever_it_is_wrong_it_scores_like_perfect(images):
    truths, founds, right = [], [], []
    for labels, found_labels in images:
        truth, found = Instances.from_labels(labels), Instances.from_labels(found_labels)
        same = [k for k in range(len(truth)) if any((truth.mask(k) == found.mask(j)).all() for j in range(len(found)))]
        good = truth[same]
        truths.append(good.with_unknown((labels > 0) | (found_labels > 0)))
        founds.append(found)
        right.append(good)
    told, wanted = scores_of(truths, founds), scores_of(right, right)
    assert told == wanted
    assert told["kaggle"]["score"] == 1


@quick
@given(st.lists(label_pairs(), min_size=1, max_size=3))
def test_marking_nothing_and_marking_what_no_cell_is_found_in_changes_no_number(images):
    truths, founds = ([Instances.from_labels(side) for side in sides] for sides in zip(*images, strict=True))
    plain = scores_of(truths, founds)
    assert scores_of([truth.with_unknown(np.zeros(truth.shape, bool)) for truth in truths], founds) == plain
    empty = [truth.with_unknown(labels == 0) for truth, (_, labels) in zip(truths, images, strict=True)]
    assert scores_of(empty, founds) == plain


@quick
@given(label_pairs(), st.data())
def test_a_mark_takes_away_inventions_and_nothing_else(sides, data):
    truth, found = map(Instances.from_labels, sides)
    marked = truth.with_unknown(data.draw(hnp.arrays(bool, truth.shape)))
    more = truth.with_unknown(marked.unknown_mask | data.draw(hnp.arrays(bool, truth.shape)))
    record = [ImageRecord("a", "a.png", *truth.shape)]
    before, after, last = (score_table([one], [found], record) for one in (truth, marked, more))
    for column in ("tp", "fn"):
        assert before[column].tolist() == after[column].tolist() == last[column].tolist()
    assert (before["fp"] >= after["fp"]).all() and (after["fp"] >= last["fp"]).all()


@quick
@given(st.lists(label_pairs(), min_size=1, max_size=3), st.data())
def test_coco_is_that_of_pycocotools_with_a_crowd_region(images, data):
    truths, founds = [], []
    for sides in images:
        truth, found = (Instances.from_labels(side).with_classes(1) for side in sides)
        truths.append(truth.with_unknown(data.draw(hnp.arrays(bool, truth.shape))))
        founds.append(
            found.with_scores(data.draw(hnp.arrays(float, len(found), elements=st.sampled_from([0.2, 0.5, 0.9]))))
        )
    assume(sum(map(len, founds)) and sum(map(len, truths)))
    joined = [Instances.concatenate([truth, truth.region().with_classes(1)]) for truth in truths]
    crowd = [np.arange(len(both)) >= len(truth) for both, truth in zip(joined, truths, strict=True)]
    precision = coco_curves("pycocotools", *coco_data(joined, founds, crowd))[0]
    ours = compare_conventions(truths, founds, conventions=["coco"], classes=["cell"], bootstrap=0)["conventions"][
        "coco"
    ]
    assert ours["score"] == pytest.approx(mean_defined(precision), abs=1e-9)
    by_class = ours.get("by_class", {"cell": ours["score"]})["cell"]  # none where no cell found counts
    assert by_class == pytest.approx(mean_defined(precision), abs=1e-9), "the region has no class"


def test_overlap_images_leaves_them_out():
    truth, found = known_until(spans(20, (0, 4)), 8), spans(20, (0, 4), (12, 16))
    assert [pairs.n_found for pairs in overlap_images([truth], [found])] == [1]
