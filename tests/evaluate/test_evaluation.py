"""The evaluation: every model on every truth in one table, one winner, counts of each line, one valid submission."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_cases import CLASSES, SHAPE, images, paths, predictions, records, truth_of, truths  # noqa: F401

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.classes import (
    class_model,
    classes_found,
    corrected_counts,
    count_by_class,
    describe_accuracy,
    images_to_count,
    totals_by_class,
)
from cellkit.evaluate.evaluation import (
    attribute_errors,
    choose_model,
    decide,
    found_in,
    of_images,
    predictions_of,
    read_truths,
    score_models,
    summarise,
    table_by_line,
)
from cellkit.evaluate.verdict import who_decided
from cellkit.formats.coco import write_dataset, write_results
from cellkit.models.shared.fusion import fuse
from cellkit.scores.iou import overlap_images
from cellkit.scores.kaggle import kaggle
from cellkit.scores.table import TABLE_COLUMNS

# ---- predictions ---------------------------------------------------------------------------------------------------


def test_predictions_are_read_by_model_and_image(predictions, truths):
    assert list(predictions) == ["perfect", "plain", "nothing"]
    assert list(predictions["perfect"]) == list("abxcd")
    assert predictions["perfect"]["a"] == truths["val"].instances[0].with_scores([0.9, 0.8, 0.7])
    assert len(predictions["perfect"]["x"]) == 0, "not asked about"
    assert [x.areas_px.tolist() for x in of_images(predictions["plain"], truths["test"])] == [[24, 24], [24, 24]]


def test_predictions_for_an_image_that_is_not_of_the_run_are_refused(tmp_path, images):
    path = write_results(tmp_path / "r.json", [9], [truth_of(1)])
    with pytest.raises(UserError, match="r.json: 3 annotations of images that are not there, e.g. image_id 9"):
        predictions_of({"predictions_other": path}, images)


def test_models_that_are_named_are_fused_to_one_more(predictions, tmp_path, images, truths):
    paths = {f"predictions_{name}": write_results(tmp_path / f"{name}.json", images.ids, of_images(found, images))
             for name, found in predictions.items()}  # fmt: skip
    found = predictions_of(paths, images, ("perfect", "perfect", "plain"))
    assert list(found) == [*predictions, "fused"], "it comes last, and takes no other's place"
    assert found["fused"]["a"] == fuse([predictions[name]["a"] for name in ("perfect", "perfect", "plain")])
    table = summarise(score_models(found, truths), n=0)
    assert set(table["model"]) == {*predictions, "fused"}
    with pytest.raises(UserError, match=r"evaluate.fuse is 'perfct' \(did you mean 'perfect'\?\)"):
        predictions_of(paths, images, ("perfct",))


# ---- scores --------------------------------------------------------------------------------------------------------


def test_every_model_is_scored_on_every_truth(predictions, truths):
    table = score_models(predictions, truths)
    assert tuple(table.columns) == ("model", *TABLE_COLUMNS)
    everything = table[(table["class_name"] == "") & (table["size"] == "")]
    assert len(everything) == 3 * 4 * 10
    assert everything.groupby(["model", "split"])["image_id"].nunique().tolist() == [2] * 6
    classes = table[table["class_name"] != ""].groupby("model")["class_name"].unique()
    assert {name: sorted(found) for name, found in classes.items()} == {"perfect": ["HEK", "N2a"]}, "who knows classes"


def test_the_summary_is_the_score_of_its_convention(predictions, truths):
    table = summarise(score_models(predictions, truths), n=50)
    assert table[["model", "split"]].to_numpy().tolist() == [
        [model, split] for model in ("perfect", "plain", "nothing") for split in ("val", "test")
    ]
    scores = table.set_index(["model", "split"])["score"]
    assert scores["perfect"].tolist() == [1, 1]
    assert scores["plain"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert scores["nothing"].tolist() == [0, 0]
    for truth in truths.values():
        wanted = kaggle(overlap_images(truth.instances, of_images(predictions["plain"], truth)))["score"]
        assert scores["plain", truth.records[0].split] == pytest.approx(wanted)
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    pd.testing.assert_frame_equal(table, summarise(score_models(predictions, truths), n=50))


@pytest.mark.parametrize(
    ("by", "parts"), [("cell_type", {"mixed"}), ("class_name", set(CLASSES)), ("size", {"small", "medium", "large"})]
)
def test_the_summary_by_part(predictions, truths, by, parts):
    table = summarise(score_models(predictions, truths), by, n=0)
    assert set(table[by]) <= parts and "part" not in table
    known = table[table["model"] == "perfect"]
    assert set(known[by]) == parts or by == "size"
    assert (known.loc[known["truth_cells"] > 0, "score"] == 1).all()


def test_a_table_read_back_from_csv_gives_the_same_summary(tmp_path, predictions, truths):
    table = score_models(predictions, truths)
    table.to_csv(tmp_path / "scores.csv", index=False)
    pd.testing.assert_frame_equal(summarise(pd.read_csv(tmp_path / "scores.csv"), n=0), summarise(table, n=0))


def test_images_without_cells_on_either_side_are_scored(tmp_path):
    truth = CellDataset(records("a", "val"), [Instances.empty(SHAPE)], CLASSES, tmp_path, [1])
    for found, score in ((Instances.empty(SHAPE), 1), (truth_of(1), 0)):
        (line,) = summarise(score_models({"m": {"a": found}}, {truth.records[0].split: truth}), n=0).to_dict("records")
        assert (line["score"], line["images"]) == (score, 1)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_image_without_cells_counts_in_every_split_table_and_interval(tmp_path, split):
    truth = CellDataset(records("ab", split), [Instances.empty(SHAPE), truth_of(1)], CLASSES, tmp_path, [1, 2])
    for found, score in ((Instances.empty(SHAPE), 1), (truth_of(2), 0)):
        cells = {"a": found, "b": truth_of(1)}
        table = score_models({"m": cells}, {truth.records[0].split: truth})
        whole = table[(table["class_name"] == "") & (table["size"] == "")]
        assert whole.groupby("image_id").size().to_dict() == {"a": 10, "b": 10}
        (line,) = summarise(table, n=50).to_dict("records")
        assert (line["split"], line["images"], line["score"]) == (split, 2, (1 + score) / 2)
        assert 0 <= line["low"] <= line["score"] <= line["high"] <= 1
        assert classes_found({"m": cells}, {truth.records[0].split: truth})["m"][split]["cells"] == 3
        counts = count_by_class(cells, truth, truth).groupby("image_id")["truth"].sum()
        assert counts.to_dict() == {"a": 0, "b": 3, "all": 3}


def test_nothing_to_score_is_refused(predictions, truths):
    with pytest.raises(UserError, match="there is no prediction to score"):
        score_models({}, truths)
    with pytest.raises(UserError, match="there is no truth to score"):
        score_models(predictions, {})


# ---- the winner ----------------------------------------------------------------------------------------------------


def scored(*rows):
    return pd.DataFrame([dict(zip(("model", "split", "score"), row, strict=True)) for row in rows])


def test_the_best_on_the_deciding_split_is_handed_in():
    table = scored(("a", "val", 0.4), ("a", "test", 0.9), ("b", "val", 0.5), ("b", "test", 0.1))
    assert decide(table, "best", "val") == "b"
    assert decide(table, "best", "test") == "a"
    assert decide(table, "a", "val") == "a"


def test_of_equals_the_first_is_handed_in():
    table = scored(*((name, "val", 0.5) for name in "dacb"))
    assert decide(table, "best", "val") == "d"
    assert decide(scored(("a", "val", np.nan), ("b", "val", 0.0)), "best", "val") == "b"


def test_the_winner_is_chosen_by_validation_images_or_by_name(predictions, truths, capsys):
    scores = score_models(predictions, truths)
    assert choose_model(scores, predictions, truths["val"], "best") == "perfect"
    assert choose_model(scores, predictions, truths["val"], "best", ["perfect"]) == "plain"
    assert choose_model(scores, predictions, truths["val"].subset([]), "best") == "nothing", "the first of every table"
    assert choose_model(scores, predictions, truths["val"], "plain") == "plain"
    assert capsys.readouterr().err.splitlines() == [
        "handed in: perfect (decided on 2 validation images; not kept by 03: none)",
        "handed in: plain (decided on 2 validation images; not kept by 03: perfect)",
        "handed in: nothing (no image could decide, so it is what 03 kept of Cellpose, or the first model; not kept by 03: none)",
        "handed in: plain (named in evaluate.submit; not kept by 03: none)",
    ]
    assert who_decided(truths["val"], "best") == {
        "by": "images",
        "images": 2,
        "in_words": "decided on 2 validation images",
    }


def test_where_the_score_is_lost_is_told_of_the_images_of_the_truth(predictions, truths):
    lost = attribute_errors(truths["val"], predictions["plain"])
    assert list(dict.fromkeys(lost["image_id"])) == ["a", "b"]
    assert lost.groupby("kind")["cells"].sum()["missed"] == 2
    assert attribute_errors(truths["val"].subset([]), predictions["plain"]).empty


def test_truths_are_there_for_both_splits_where_one_has_no_file(truths, tmp_path):
    found = read_truths({"coco_val": write_dataset(tmp_path / "v.json", truths["val"])}, tmp_path)
    assert {split: len(data) for split, data in found.items()} == {"val": 2, "test": 0}
    assert found["test"].classes == CLASSES and found["val"].root == tmp_path
    assert read_truths({}, tmp_path) == {}


def test_a_winner_that_cannot_be_named_is_refused():
    table = scored(("maskrcnn", "val", 0.4), ("cellpose", "val", 0.5))
    with pytest.raises(
        UserError, match=r"is 'maskrnn' \(did you mean 'maskrcnn'\?\)\nuse best, or one of maskrcnn, cell"
    ):
        decide(table, "maskrnn", "val")
    with pytest.raises(UserError, match="no image of the split 'test' has truth to decide by"):
        decide(table, "best", "test")


# ---- classes and counts --------------------------------------------------------------------------------------------


def test_classes_are_judged_for_models_that_know_them(predictions, truths):
    swapped = dict(predictions["perfect"])
    swapped["a"] = swapped["a"].with_classes([2, 1, 2])
    right = classes_found(predictions | {"swapped": swapped}, truths)
    assert sorted(right) == ["perfect", "swapped"]
    assert {k: (v["accuracy"], v["cells"]) for k, v in right["perfect"].items()} == {"val": (1, 6), "test": (1, 6)}
    assert (right["swapped"]["val"]["accuracy"], right["swapped"]["test"]["accuracy"]) == (round(4 / 6, 4), 1)
    assert right["perfect"]["val"]["confusion"]["columns"] == list(CLASSES)
    assert np.sum(right["perfect"]["val"]["confusion"]["data"]) == 6


def test_the_model_that_names_classes_best_on_validation_images_counts_the_lines():
    """By no alphabet, and by no test image; where nothing can judge, the last of the tables."""
    judged_by = lambda val, test: {"val": {"accuracy": val}, "test": {"accuracy": test}}  # noqa: E731
    right = {"zebra": judged_by(0.8, 1.0), "maskrcnn": judged_by(0.9, 0.1), "alpha": judged_by(None, 1.0)}
    assert class_model(right) == "maskrcnn"
    assert class_model(right | {"alpha": judged_by(0.95, 0.0)}) == "alpha"
    assert class_model({"zebra": {}, "maskrcnn": {}}) == "zebra"
    assert class_model({}) == ""


def test_what_was_predicted_once_is_found_again_by_image(truths, images):
    found = [truth_of(k) for k in range(len(images))]
    names = [record.image_id for record in images.records]
    assert found_in(truths["test"], images, found) == [found[names.index(name)] for name in "cd"]


def test_no_matched_cell_has_no_accuracy(truths):
    far = Instances.from_labels(np.eye(*SHAPE, dtype=int), class_ids=[1])
    right = classes_found({"m": dict.fromkeys("abcd", far)}, truths)
    assert (right["m"]["val"]["accuracy"], right["m"]["val"]["cells"]) == (None, 0)


def test_where_a_class_cannot_be_told_the_reason_is_said(truths):
    val = truths["val"]
    assert describe_accuracy(0.5, 4, val) == describe_accuracy(0.5, 4) and "50.0% right" in describe_accuracy(0.5, 4)
    none = float("nan"), 0
    assert (
        describe_accuracy(*none, val.subset([]))
        == "class: there is no labelled validation image, so nothing is known yet"
    )
    one = CellDataset(val.records, [cells.with_classes(1) for cells in val.instances], val.classes[:1])
    for judges in (one, one.subset([])):
        assert describe_accuracy(1.0, 4, judges) == "class: 1 class, nothing to tell apart"
    assert "no cell of known class is matched" in describe_accuracy(*none, val)


def test_how_many_of_each_line(predictions, truths):
    found = dict(predictions["perfect"])
    found["b"] = found["b"].with_classes([1, 1, 1])
    table = count_by_class(found, truths["val"], truths["val"])
    assert table.to_dict("split")["columns"] == ["image_id", "class_name", "found", "share", "truth", "true_share"]
    assert table.to_numpy().tolist() == [
        ["a", "HEK", 1, 0.3333, 1, 0.3333],
        ["a", "N2a", 2, 0.6667, 2, 0.6667],
        ["b", "HEK", 3, 1.0, 2, 0.6667],
        ["b", "N2a", 0, 0.0, 1, 0.3333],
        ["all", "HEK", 4, 0.6667, 3, 0.5],
        ["all", "N2a", 2, 0.3333, 3, 0.5],
    ]


def test_counts_without_truth_and_of_models_that_know_no_class(tmp_path, predictions, truths):
    asked = CellDataset(truths["val"].records, truths["val"].instances, CLASSES, tmp_path, truths["val"].ids)
    table = count_by_class(predictions["plain"], asked)
    assert list(table.columns) == ["image_id", "class_name", "found", "share"]
    assert table[["found", "share"]].to_numpy().tolist() == [[0, 0]] * 6
    assert count_by_class(predictions["perfect"], asked)["found"].tolist() == [1, 2, 2, 1, 3, 3]


def test_counts_of_images_the_truth_lacks_are_those_of_the_model_alone(truths):
    found = {name: truth_of(1) for name in "ab"}
    table = count_by_class(found, truths["val"], truths["val"].subset([0]))
    assert list(table.columns) == ["image_id", "class_name", "found", "share"]
    assert table["found"].tolist() == [1, 2, 1, 2, 2, 4]


def test_cells_of_unknown_class_have_no_share(truths):
    found = {name: truth_of(1).with_classes([1, 2, 0]) for name in "ab"}
    table = count_by_class(found, truths["val"])
    assert table[["found", "share"]].to_numpy().tolist() == [[1, 0.5]] * 4 + [[2, 0.5]] * 2


def test_totals_are_those_of_every_model_that_knows_classes(predictions, truths, images):
    table = totals_by_class(predictions, truths["val"], truths["val"])
    assert table.reset_index().to_numpy().tolist() == [
        ["perfect", "HEK", 3, 0.5, 3, 0.5],
        ["perfect", "N2a", 3, 0.5, 3, 0.5],
    ]
    assert totals_by_class({"plain": predictions["plain"]}, truths["val"], truths["val"]).empty


def test_lines_are_counted_in_mixed_images_else_in_all_of_the_split(images):
    assert [r.image_id for r in images_to_count(images, "test").records] == ["c", "d"]
    pure = [replace(r, cell_type="HEK" if r.image_id != "c" else r.cell_type) for r in images.records]
    assert [r.image_id for r in images_to_count(images.with_records(pure), "test").records] == ["c"]
    pure = [replace(r, cell_type="HEK", flags="debris" if r.image_id == "c" else "") for r in images.records]
    assert [r.image_id for r in images_to_count(images.with_records(pure), "test").records] == ["d"]


def test_counts_of_no_image(truths):
    none = truths["val"].subset([])
    table = count_by_class({}, none, none)
    assert table.to_numpy().tolist() == [["all", "HEK", 0, 0.0, 0, 0.0], ["all", "N2a", 0, 0.0, 0, 0.0]]


def test_counts_are_corrected_for_the_errors_made_on_labelled_images():
    rng = np.random.default_rng(0)
    share = np.array([[0.8, 0.05, 0.15], [0.2, 0.7, 0.1]])

    def image(cells):
        seen = np.array([rng.multinomial(n, of) for n, of in zip(cells, share, strict=True)])
        return np.vstack([seen, [*rng.poisson(0.05 * seen[:, :2].sum(axis=0)), 0]])

    inside, off = 0, []
    for trial in range(40):
        errors = np.array([image((20, 20)) for _ in range(25)])
        found = sum(image((30, 60)) for _ in range(6))[:, :2].sum(axis=0)
        told = corrected_counts(found, errors, draws=200, seed=trial)
        inside += int(((told[:, 1] <= (180, 360)) & (told[:, 2] >= (180, 360))).sum())
        off.append(told[:, 0] - (180, 360))
    assert inside >= 64, "a 95 % interval, 80 of them"
    assert np.abs(np.mean(off, axis=0)).max() < 12, "found as they come there would be 30 too many of the first"


def test_counts_are_not_corrected_by_what_tells_nothing():
    alike = np.array([[[5, 5, 0], [5, 5, 0], [0, 0, 0]]] * 3)
    absent = np.array([[[5, 0, 0], [0, 0, 0], [0, 0, 0]]] * 3)
    assert all(np.isnan(corrected_counts(np.array([3, 4]), errors)).all() for errors in (alike, absent))


def test_counts_have_no_interval_where_each_class_is_on_one_image():
    alone = np.zeros((8, 9, 9), int)
    alone[range(8), range(8), range(8)] = 9
    told = corrected_counts(np.full(8, 20), alone, draws=200)
    assert (told[:, 0] == 20).all() and np.isnan(told[:, 1:]).all(), "nearly every draw lacks a class"


def test_cells_found_without_a_class_are_missed_by_the_counts(images, truths):
    """One cell of each class is named in an image: there are more than are found."""
    named = [
        np.isin(np.arange(len(one)), np.unique(one.class_ids, return_index=True)[1]) for one in truths["val"].instances
    ]
    seen = [one.with_classes(one.class_ids * some) for one, some in zip(truths["val"].instances, named, strict=True)]
    found = dict(zip([record.image_id for record in truths["val"].records], seen, strict=True))
    table = totals_by_class({"half": found}, truths["val"], truths["val"], truths["val"])
    assert (table["found"] < table["truth"]).all() and np.allclose(table["corrected"], table["truth"])


def test_totals_are_corrected_where_labelled_images_judge(predictions, truths, images):
    counted = images_to_count(images, "test")
    plain = totals_by_class(predictions, counted, truths["test"])
    more = totals_by_class(predictions, counted, truths["test"], truths["val"])
    assert list(more.columns) == [*plain.columns, "corrected", "low", "high"] and more[plain.columns].equals(plain)
    assert totals_by_class(predictions, counted, truths["test"], truths["val"].subset([])).equals(plain)
    perfect = more.loc["perfect"]
    assert (perfect["corrected"] == perfect["found"]).all()


def test_a_line_that_is_called_all_keeps_its_column():
    row = {"model": "a", "split": "val", "images": 2}
    lines = pd.DataFrame([row | {"cell_type": "all", "score": 0.5}, row | {"cell_type": "N2a", "score": 0.7}])
    table = table_by_line(lines, pd.DataFrame([row | {"score": 0.6}]))
    assert table.to_dict("records") == [{"all": 0.5, "N2a": 0.7, "all images": 0.6}]
