"""What is handed in: the winner's cells without overlaps; what was proposed judges nothing."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation_cases import CLASSES, SHAPE, images, paths, predictions, truth_of, truths  # noqa: F401

from cellkit.cells.dataset import NO_ACCURACY, CellDataset
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.classes import classes_found, count_by_class
from cellkit.evaluate.evaluation import (
    describe_found,
    read_truths,
    score_models,
    summarise,
    unjudged,
)
from cellkit.evaluate.submission import Original, handed_in, submit_best
from cellkit.evaluate.verdict import score_judged
from cellkit.formats.coco import write_dataset
from cellkit.formats.submission import read_submission
from cellkit.formats.submission_check import check_submission
from cellkit.scores.table import TABLE_COLUMNS, paired_bootstrap

ASKED = [Original(name, name, SHAPE) for name in "cd"]


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
    with pytest.raises(
        UserError, match="no image of the split 'val' to hand in\nraise convert.split.val, or .* test .*=test$"
    ):
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


@pytest.mark.parametrize(
    ("splits", "remedy"),
    [
        (["train"], "give 3 images or more: one to train on, one for validation and one for test"),
        (["train", "train", ""], "give 3 images or more: one to train on, one for validation and one for test"),
        (["train", "train", "train"], "raise convert.split.test"),
        (
            ["train", "train", "val"],
            "raise convert.split.test, or report on the validation images: evaluate.report_split=val",
        ),
    ],
)
@pytest.mark.parametrize("table", [True, False])
def test_what_to_do_without_a_test_image_is_what_can_be_done(tmp_path, images, capsys, splits, remedy, table):
    records = [replace(images.records[0], image_id=str(k), split=split) for k, split in enumerate(splits)]
    here = CellDataset(records, images.instances[:1] * len(records), CLASSES)
    path = tmp_path / "originals.csv"
    rows = [f"{k},{k},{split},12,16,," for k, split in enumerate(splits)]
    path.write_text("\n".join([TABLE.splitlines()[0], *rows]))
    assert handed_in({"originals": path} if table else {}, "test", here) == []
    assert capsys.readouterr().err.rstrip().endswith(f"the submission is empty; {remedy}")


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
