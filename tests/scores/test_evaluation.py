"""The evaluation: every model on every truth in one table, one winner, counts of each line, one valid submission."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cellkit.cells.dataset import NO_ACCURACY, CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.errors import UserError
from cellkit.evaluate.classes import class_model, classes_found, count_by_class, images_to_count, totals_by_class
from cellkit.evaluate.evaluation import (
    attribute_errors,
    choose_model,
    decide,
    describe_found,
    found_in,
    of_images,
    predictions_of,
    read_truths,
    score_models,
    summarise,
    unjudged,
)
from cellkit.evaluate.submission import Original, handed_in, submit_best
from cellkit.evaluate.verdict import score_judged
from cellkit.formats.coco import write_dataset, write_results
from cellkit.formats.submission import read_submission
from cellkit.formats.submission_check import check_submission
from cellkit.scores.iou import overlap_images
from cellkit.scores.kaggle import kaggle
from cellkit.scores.table import TABLE_COLUMNS, paired_bootstrap

SHAPE = (12, 16)
CLASSES = ("HEK", "N2a")
ASKED = [Original(name, name, SHAPE) for name in "cd"]


def truth_of(k):
    labels = np.zeros(SHAPE, int)
    labels[1:5, 1:7], labels[7:11, 2:8], labels[2:10, 10 : 12 + k] = 1, 2, 3
    return Instances.from_labels(labels, class_ids=[1, 2, 1 + k % 2])


def records(names, split):
    return [ImageRecord(n, f"images/{n}.png", *SHAPE, cell_type="mixed", group=f"g{n}", split=split) for n in names]


@pytest.fixture
def truths(tmp_path):
    made = {}
    for first, names, split in ((1, "ab", "val"), (4, "cd", "test")):
        cells = [truth_of(first + k) for k in range(len(names))]
        ids = [first + k for k in range(len(names))]
        made[split] = CellDataset(records(names, split), cells, CLASSES, tmp_path, ids)
    return made


@pytest.fixture
def images(tmp_path, truths):
    """All images of the run; image 3 is a training image."""
    known = truths["val"].records + records("x", "train") + truths["test"].records
    return CellDataset(known, [Instances.empty(SHAPE)] * 5, (), tmp_path, [1, 2, 3, 4, 5])


@pytest.fixture
def paths(tmp_path, truths):
    """A perfect model with classes, one that misses the third cell and knows no class, one that finds nothing."""
    ids = truths["val"].ids + truths["test"].ids
    cells = [x for truth in truths.values() for x in truth.instances]
    found = {
        "perfect": [x.with_scores([0.9, 0.8, 0.7]) for x in cells],
        "plain": [x[:2].with_classes(0) for x in cells],
        "nothing": [Instances.empty(SHAPE)] * 4,
    }
    return {f"predictions_{name}": write_results(tmp_path / f"{name}.json", ids, x) for name, x in found.items()}


@pytest.fixture
def predictions(paths, images):
    return predictions_of(paths, images)


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
    assert capsys.readouterr().err.splitlines() == [
        "handed in: perfect (decided on 2 validation images; not kept by 03: none)",
        "handed in: plain (decided on 2 validation images; not kept by 03: perfect)",
        "handed in: nothing (decided on 0 validation images; not kept by 03: none)",
    ]


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


# ---- the submission ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("profile", ["sartorius", "dsb2018"])
def test_the_submission_has_no_overlap_and_every_image(tmp_path, images, profile, capsys):
    over = Instances.from_masks([np.ones(SHAPE, bool), np.eye(*SHAPE, dtype=bool)], SHAPE, scores=[0.4, 0.9])
    found = {name: Instances.empty(SHAPE) for name in "abxcd"} | {"c": over}
    path, log = submit_best(tmp_path / "submission.csv", found, ASKED, profile)
    shapes = {name: SHAPE for name in "cd"}
    assert check_submission(path, profile, shapes) == []
    lines = path.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == ["c", "c", "d"]
    assert lines[-1] == "d,"
    assert log.to_dict("records") == [{"image_id": "c", "index": 0, "what": "lost to higher scores", "pixels": 12}]
    assert capsys.readouterr().err == "submission: 1 cell of 1 image lost pixels to higher scores (c)\n"


def test_small_objects_are_dropped_told_and_logged(tmp_path, images, predictions, capsys):
    path, log = submit_best(tmp_path / "s.csv", predictions["perfect"], ASKED, "dsb2018", min_area_px=30)
    assert len(path.read_text().splitlines()) == 1 + 2
    assert log["what"].unique().tolist() == ["dropped: smaller than 30 px"]
    told = f"submission: {len(log)} cells of 2 images left out: smaller than 30 px (most in "
    assert capsys.readouterr().err.startswith(told)
    wide = {"c": truth_of(1), "d": Instances.from_labels(np.eye(*SHAPE, dtype=int))}
    submit_best(tmp_path / "s.csv", wide, [Original("d", "d", (3, 3))], "dsb2018")
    assert "left out" not in capsys.readouterr().err
    submit_best(tmp_path / "s.csv", wide, [Original("c", "c", (1, 1))], "dsb2018")
    assert "3 cells of 1 image left out: smaller than a pixel of the file (c)" in capsys.readouterr().err
    path, log = submit_best(tmp_path / "s.csv", predictions["nothing"], ASKED, "dsb2018")
    assert path.read_text() == "ImageId,EncodedPixels\nc,\nd,\n"
    assert log.empty and list(log.columns) == ["image_id", "index", "what", "pixels"]


def test_cells_of_a_resized_picture_are_handed_in_at_the_size_of_the_file(tmp_path):
    """The competition's picture has 27 x 35 px, the run's 12 x 16: run lengths count pixels of the former, disjoint."""
    over = Instances.from_masks([np.ones(SHAPE, bool), np.eye(*SHAPE, dtype=bool)], SHAPE, scores=[0.4, 0.9])
    cells = Instances.concatenate([truth_of(1).with_scores([0.8, 0.7, 0.6]), over])
    for profile in ("sartorius", "dsb2018"):
        path, _ = submit_best(tmp_path / "s.csv", {"run": cells}, [Original("own", "run", (27, 35))], profile)
        assert check_submission(path, profile, {"own": (27, 35)}) == []
        handed = read_submission(path, profile, {"own": (27, 35)})["own"]
        assert len(handed) == 5 and handed.areas_px.sum() == 27 * 35
        rows, columns = (np.arange(27) + 0.5) * 12 / 27, (np.arange(35) + 0.5) * 16 / 35
        expected = cells.paint()[np.ix_(rows.astype(int), columns.astype(int))]
        masks = {handed.mask(k).tobytes() for k in range(5)}
        assert masks == {(expected == k).tobytes() for k in range(1, 6)}


TABLE = """image_id,id,split,height_px,width_px,asked,note
train_1,1,train,12,16,{no},
test_1,1,test,12,16,{yes},
test_x,x,test,,,{yes},it is damaged
test_'q,'=q,test,12,16,{no},
"""


def test_what_is_handed_in_follows_the_split_or_the_competitions_own_list(tmp_path, capsys):
    path = tmp_path / "originals.csv"
    path.write_text(TABLE.format(yes="", no=""))
    asked = handed_in({"originals": path}, "test")
    assert [(one.id, one.image_id, one.shape) for one in asked] == [
        ("1", "test_1", SHAPE), ("x", "test_x", None), ("=q", "test_'q", SHAPE),
    ]  # fmt: skip
    assert [one.image_id for one in handed_in({"originals": path}, "train")] == ["train_1"]
    with pytest.raises(UserError, match="no image of the split 'val' to hand in\n.*evaluate.report_split=val"):
        handed_in({"originals": path}, "val")
    assert not capsys.readouterr().err
    path.write_text(TABLE.format(yes="yes", no="no") + ",7,test,,,yes,no picture of it is here\n")
    assert [one.id for one in handed_in({"originals": path}, "test")] == ["1", "x", "7"]
    said = capsys.readouterr().err
    assert (
        "handed in: 3 images that the competition asks for; scored and not handed in: 1 other test image of this run"
        in said
    )
    assert [one.image_id for one in handed_in({"originals": path}, "train")] == ["train_1"]


def test_an_image_that_could_not_be_read_has_an_empty_row_and_is_named(tmp_path, capsys):
    asked = [
        Original("a", "run_a", SHAPE),
        Original("x", "run_x", None, "it is damaged"),
        Original("7", "", None, "gone"),
    ]
    path, _ = submit_best(tmp_path / "s.csv", {"run_a": truth_of(1)[:1]}, asked, "sartorius")
    assert [line.partition(",")[0] for line in path.read_text().splitlines()] == ["id", "a", "x", "7"]
    assert path.read_text().endswith("x,\n7,\n")
    assert capsys.readouterr().err.splitlines() == ["x: an empty row, it is damaged", "7: an empty row, gone"]


def test_counts_name_the_classes_where_no_truth_does(predictions, truths, images):
    table = count_by_class(predictions["perfect"], images.select("test"), None, CLASSES)
    assert table[table["image_id"] == "all"]["found"].tolist() == [3, 3]


# ---- proposals are no truth ------------------------------------------------------------------------------------------
def marked(truths, *made_by):
    """Return the data sets marked by who made the labels, and the files they are written to."""
    found = {k: replace(data, made_by=list(makers)) for (k, data), makers in zip(truths.items(), made_by, strict=True)}
    return found, {f"coco_{k}": write_dataset(data.root / f"{k}.json", data) for k, data in found.items()}


PROPOSED, CORRECTED = "proposed", "corrected"


def test_images_whose_labels_a_model_proposed_are_not_scored_and_named(predictions, truths, capsys):
    half, paths = marked(truths, (PROPOSED, CORRECTED), (PROPOSED, PROPOSED))
    kept = read_truths(paths | {"coco_train": "not read"}, "")
    assert {split: [r.image_id for r in data.records] for split, data in kept.items()} == {"val": ["b"], "test": []}
    assert capsys.readouterr().err == "not scored, because a model proposed their labels: a, c, d\n"
    scores = score_models(predictions, half)
    assert set(scores["image_id"]) == {"b"}
    assert list(classes_found(predictions, half)["perfect"]) == ["val"]
    table = score_judged(half["val"], half["val"].instances)
    assert (set(table["image_id"]), set(table["fn"])) == ({"b"}, {0})


def test_where_nobody_labelled_an_image_everything_goes_on_without_a_number(predictions, truths, images, capsys):
    nobody, paths = marked(truths, (PROPOSED,) * 2, (PROPOSED,) * 2)
    assert not any(map(len, read_truths(paths, "").values()))
    assert NO_ACCURACY in capsys.readouterr().err
    scores = score_models(predictions, nobody)
    assert scores.empty and list(scores.columns) == ["model", *TABLE_COLUMNS]
    for by in (None, "cell_type", "class_name"):
        table = summarise(scores, by)
        assert table.empty and {"model", "split", "images", "score", "low", "high", "ap50"} <= set(table.columns)
    assert unjudged(predictions, "best") == "nothing", "no Cellpose here, so the first of the order of every table"
    assert unjudged([*predictions, "cellpose_base", "cellpose_tuned"], "best") == "cellpose_base"
    both = ["cellpose_base", "cellpose_tuned"]
    assert unjudged(both, "best", ["cellpose_base"]) == "cellpose_tuned", "03 kept it, by images that were held back"
    assert unjudged(predictions, "plain") == "plain"
    with pytest.raises(UserError, match="evaluate.submit is 'plane' .did you mean 'plain'"):
        unjudged(predictions, "plane")
    assert classes_found(predictions, nobody) == {"perfect": {}}, "it names classes, and nothing can judge them"
    counts = count_by_class(predictions["perfect"], images.select("test"), None, CLASSES)
    assert list(counts.columns) == ["image_id", "class_name", "found", "share"]
    gain = paired_bootstrap(*[score_judged(nobody["val"], nobody["val"].instances)] * 2)
    assert not gain.better
    assert "no image was labelled by a person" in gain.sentence("base", "tuned")


def test_what_is_never_found_is_named():
    cells = [truth_of(1).with_classes(2), Instances.empty(SHAPE)]
    assert describe_found(cells, "it", "key", CLASSES) == "it finds 3 cells in 2 validation images; never found: HEK"
    assert describe_found(cells, "it", "key") == "it finds 3 cells in 2 validation images"
