"""What folds found out of fold, and its scores: golden cases."""

from dataclasses import replace

import numpy as np
import pytest

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.out_of_fold import FoldFound, fold_table, fused_test, left_out, out_of_fold

CELLS = Instances.from_labels(np.array([[1, 1, 0, 0, 2, 2]]))
HALF = CELLS[:1]


def fold(names: list[int], found: Instances, taught=()) -> FoldFound:
    records = [ImageRecord(f"i{k}", "", 1, 6, split="val") for k in names]
    images = CellDataset(records, [CELLS] * len(names), ("cell",), ids=names)
    own = {record.image_id: found for record in records}
    models = {name: dict(own) for name in ("b", "threshold", *(["only here"] if names[0] > 3 else []))}
    return FoldFound(images, images, models, frozenset(taught))


def test_found_out_of_fold_is_of_the_run_that_held_the_image_back():
    found = out_of_fold([fold([2, 4], HALF), fold([1], CELLS, taught=["i2"])])
    assert list(found) == ["threshold", "b"], "of models that all folds have"
    assert found["b"].ids == [1, 2, 4] and [len(x) for x in found["b"].instances] == [2, 1, 1]
    assert found["b"].made_by == ["proposed"] * 3


def test_folds_are_fused_in_test_images_and_scored_where_these_have_truth():
    records = [ImageRecord("t", "", 1, 6, split="test")]
    test = CellDataset(records, [CELLS], ("cell",), ids=[9])
    first, second = (replace(fold([k], HALF), test=test, test_truth=test) for k in (1, 2))
    first.found["b"]["t"], second.found["b"]["t"] = CELLS, HALF.with_scores([0.5])
    for one in (first, second):
        one.found["threshold"]["t"] = HALF
    fused = fused_test([first, second])
    assert fused["b"].ids == [9] and fused["b"].instances[0].scores.tolist() == [0.75, 0.5]
    rows = fold_table([first, second])
    rows = rows[rows["fold"] == "test, folds fused"].set_index("model")
    assert rows["score"].to_dict() == {"threshold": 0.5, "b": 1.0} and rows["images"].tolist() == [1, 1]


def test_what_a_fold_flagged_is_fused_of_the_others_and_said():
    records = [ImageRecord(name, "", 1, 6, split="test") for name in "tu"]
    test = CellDataset(records, [CELLS] * 2, ("cell",), ids=[8, 9])
    first, second = (replace(fold([k], HALF, taught=[f"i{3 - k}", "i5", "pseudo"]), test=test) for k in (1, 2))
    first = replace(first, test=test.subset([0]), test_truth=test.subset([0]))
    second = replace(second, test_truth=test, taught=second.taught - {"i5"})
    for one in (first, second):
        for found in one.found.values():
            found.update({record.image_id: CELLS.with_scores([0.8, 0.6]) for record in one.test.records})
    fused = fused_test([first, second])["b"]
    assert [record.image_id for record in fused.records] == ["t", "u"] and fused.ids == [8, 9]
    assert [cells.scores.tolist() for cells in fused.instances] == [[0.8, 0.6]] * 2, (
        "a fold that flagged it has no vote"
    )
    rows = fold_table([first, second])
    assert rows[rows["fold"] == "test, folds fused"]["images"].tolist() == [2, 2]
    assert left_out([first, second]) == [
        "1 image not out of fold: flagged, and so not used, in the fold that held it back (e.g. i5)",
        "1 image of the test found by some folds alone: flagged, and so not used, in others (e.g. u)",
    ]
    assert not left_out([second, second])


def test_folds_without_truth_have_no_score():
    bare = fold([1], HALF)
    bare = replace(bare, truth=bare.truth.subset([]))
    table = fold_table([bare, replace(bare, held=fold([2], HALF).held)])
    assert table["score"].isna().all() and table["images"].eq(0).all() and len(table) == 8


def test_an_image_that_taught_or_is_there_twice_is_refused():
    with pytest.raises(UserError, match="'i2' taught the run that held it back"):
        out_of_fold([fold([2, 3], HALF, taught=["i2"])])
    with pytest.raises(UserError, match="'i1' is held back in two folds"):
        out_of_fold([fold([1], HALF), fold([1, 2], HALF)])


def test_the_mean_counts_folds_the_score_out_of_fold_images():
    table = fold_table([fold([1, 2, 3], HALF), fold([4], CELLS)]).set_index(["model", "fold"])["score"]
    assert table["b"].round(3).to_dict() == {"1": 0.5, "2": 1.0, "mean": 0.75, "out of fold": 0.625}


def test_overlaps_are_removed_before_scoring():
    both = Instances.from_masks(
        [np.ones((1, 6), bool), *(CELLS.mask(k) for k in (0, 1))], (1, 6), scores=[0.1, 0.9, 0.8]
    )
    part = fold_table([fold([1], both), fold([2], both)])
    assert part["score"].round(3).tolist()[:2] == [round(2 / 3, 3)] * 2, (
        "what is left of the large one is one invention"
    )


def test_images_that_chose_a_checkpoint_judge_nothing():
    from cellkit.models.gate import choosers

    many = fold(list(range(1, 31)), CELLS)
    chose = len(choosers(many.truth.records))
    assert chose and fold_table([many, fold([90], CELLS)])["images"].tolist()[0] == 30 - chose
