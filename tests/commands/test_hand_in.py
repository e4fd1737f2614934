"""`cellkit submit` on files that folds and `cellkit fuse` write: the images asked for, in pixels of the files, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import write_png

from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord, write_records
from cellkit.config.sections import ConvertConfig
from cellkit.evaluate.submission import handed_in
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.label_images import write_labels
from cellkit.formats.sides import marks_of
from cellkit.run.folder import Run

NAMES = ("007", "008", "v1", "t1")
SPLITS = ("test", "test", "val", "test")


def predictions(path, marks=({},) * 4, classes=("cell",)):
    """Write a file of predictions of four images of 32 px, two cells in each."""
    records = [ImageRecord(n, f"{n}.png", 32, 32, split=s) for n, s in zip(NAMES, SPLITS, strict=True)]
    labels = np.zeros((32, 32), np.int32)
    labels[2:9, 2:9], labels[15:28, 10:20] = 1, 2
    cells = [Instances.from_labels(labels, np.ones(2, int)).with_scores(0.9)] * 4
    return write_coco(path, records, cells, classes, with_scores=True, made_by=["proposed"] * 4, marks=marks)


ASKED = ({"asked": "yes"}, {"asked": "yes"}, {"asked": "no"}, {"asked": "no"})


def ids(path):
    return list(dict.fromkeys(pd.read_csv(path, dtype=str)["id"]))


def test_only_what_a_competition_asks_for_is_handed_in_also_through_a_fusion(tmp_path, said):
    a, b = (predictions(tmp_path / f"{name}.json", ASKED) for name in "ab")
    assert said("fuse", a, b, "-o", tmp_path / "both.json")[0] == 0
    for path in (a, tmp_path / "both.json"):
        code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        assert (
            code == 0 and ids(tmp_path / "s.csv") == ["007", "008"] and "2 test images handed in, not 2 others" in err
        )
    for name in ("007", "008"):
        write_png(tmp_path / f"asked/{name}.png", np.zeros((32, 32, 3), np.uint8))
    code, *_ = said("submit", a, "--profile", "sartorius", "--images", tmp_path / "asked", "-o", tmp_path / "i.csv")
    assert code == 0 and ids(tmp_path / "i.csv") == ["007", "008"], "others of the run are no mistake"


def test_a_fusion_of_a_run_s_predictions_hands_in_its_test_images_alone(tmp_path, said):
    records = [ImageRecord(n, f"images/{n}.png", 32, 32, split=s) for n, s in zip(NAMES, SPLITS, strict=True)]
    run, cells = Run(tmp_path / "run"), Instances.from_labels(np.eye(32, dtype=np.int32))
    stage = run.start("01_convert", ConvertConfig())
    stage.done(records=write_records(stage.path("records.csv"), records))
    found = [write_results(tmp_path / f"run/predictions/{name}.json", [1, 2, 3, 4], [cells] * 4) for name in "ab"]
    for out, files in (("both.json", found), ("again.json", (tmp_path / "both.json", tmp_path / "both.json"))):
        assert said("fuse", *files, "-o", tmp_path / out)[0] == 0
        code, _, err = said("submit", tmp_path / out, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        assert code == 0 and ids(tmp_path / "s.csv") == ["007", "008", "t1"] and "not 1 other of the run (val)" in err


@pytest.mark.parametrize("there", [True, False])
def test_a_run_without_a_test_image_names_lists_that_are_there_and_one_without_any_none(tmp_path, said, there):
    run, cells = Run(tmp_path / "run"), Instances.from_labels(np.eye(32, dtype=np.int32))
    records = [ImageRecord(n, f"images/{n}.png", 32, 32, split=s) for n, s in (("a", "train"), ("b", "val"))]
    stage = run.start("01_convert", ConvertConfig())
    stage.done(records=write_records(stage.path("records.csv"), records))
    path = write_results(tmp_path / "run/predictions/a.json", [2], [cells])
    coco = tmp_path / "run/coco/val.json"
    if there:
        write_coco(coco, records[1:], [cells.with_classes(1)], ("cell",))
    code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
    assert code == 2 and "no test image of the run, only val" in err
    assert err.rstrip().endswith(f"--images DIR, or --coco {coco}" if there else "--images DIR")
    write_records(tmp_path / "run/records.csv", records[:1])
    path = write_results(tmp_path / "run/predictions/a.json", [], [])
    code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
    assert code == 2 and "no test image of the run, and no other" in err and "cellkit predict RUN:NAME" in err
    if there:
        code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv", "--coco", coco)
        assert code == 2 and f"{path} holds no image" in err


def test_cells_of_resized_pictures_are_refused_also_after_a_fusion(tmp_path, said):
    a, b = (predictions(tmp_path / f"{name}.json", ({"scale": 0.5},) * 4) for name in "ab")
    assert said("fuse", a, b, "-o", tmp_path / "both.json")[0] == 0
    for path in (a, tmp_path / "both.json"):
        code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        assert code == 2 and "0.5 times the original size" in err and not (tmp_path / "s.csv").exists()


def test_an_area_below_0_is_refused(tmp_path, said):
    flags = ("--profile", "sartorius", "-o", tmp_path / "s.csv")
    code, _, err = said("submit", predictions(tmp_path / "a.json"), *flags, "--min-area", "-5")
    assert code == 2 and "--min-area is -5" in err and "0 or more" in err and not (tmp_path / "s.csv").exists()


def test_other_files_are_handed_in_whole_as_ever(tmp_path, said):
    path = predictions(tmp_path / "a.json")
    assert said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")[0] == 0
    assert ids(tmp_path / "s.csv") == list(NAMES)


def test_an_image_that_prediction_skipped_has_an_empty_row_and_one_it_never_saw_is_refused(tmp_path, said):
    path = predictions(tmp_path / "a.json")
    whole = json.loads(path.read_text())
    whole["info"] = {"quarantined": [{"item": "test/torn.png", "reason": "cut short"}]}
    path.write_text(json.dumps(whole))
    for name in (*NAMES, "torn"):
        write_png(tmp_path / f"images/{name}.png", np.zeros((32, 32, 3), np.uint8))
    flags = ("--profile", "sartorius", "--images", tmp_path / "images", "-o", tmp_path / "s.csv")
    assert said("fuse", path, predictions(tmp_path / "b.json"), "-o", tmp_path / "both.json")[0] == 0
    assert json.loads((tmp_path / "both.json").read_text())["info"]["quarantined"] == whole["info"]["quarantined"]
    code, _, err = said("submit", path, *flags)
    table = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
    assert code == 3 and "could not be predicted: torn" in err and "torn.png: an empty row, cut short" in err
    assert said("submit", path, *flags, "--allow-skips")[0] == 0
    assert table[table["id"] == "torn"]["predicted"].tolist() == [""] and set(table["id"]) == {*NAMES, "torn"}
    code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "t.csv")
    assert code == 3 and "no row for torn" in err
    write_png(tmp_path / "images/new.png", np.zeros((32, 32, 3), np.uint8))
    code, _, err = said("submit", path, *flags)
    assert code == 2 and "1 test image without prediction" in err and "new" in err


def test_every_id_of_the_sample_has_a_row_and_no_other_image(tmp_path, said):
    path, sample = predictions(tmp_path / "a.json"), tmp_path / "sample_submission.csv"
    whole = json.loads(path.read_text())
    whole["info"] = {"quarantined": [{"item": f"test/{name}.png", "reason": "cut short"} for name in ("torn", "other")]}
    path.write_text(json.dumps(whole))
    sample.write_text("ID;Predicted\nghost;\ntorn;\n008;\n007;\n")
    flags = ("--profile", "sartorius", "-o", tmp_path / "s.csv", "--sample", sample)
    for more in ((), ("--images", tmp_path / "images")):
        for name in (*NAMES, "torn", "other"):
            write_png(tmp_path / f"images/{name}.png", np.zeros((32, 32, 3), np.uint8))
        code, out, err = said("submit", path, *flags, *more)
        table = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
        assert code == 3 and ids(tmp_path / "s.csv") == ["ghost", "torn", "008", "007"] and "asks for 4, each" in out
        assert table[table["predicted"] == ""]["id"].tolist() == ["ghost", "torn"]
        assert (
            "ghost: an empty row, " in err and "nothing was predicted of it" in err and "an empty row, cut short" in err
        )
        told = "3 images not handed in, as not asked for by" if more else "2 images not handed in, as not asked for by"
        assert told in err and ("v1, t1" in err or "other, t1, v1" in err) and "no row for" not in err
        assert err.count("skipped: ") == 2, "what nobody asks for is not skipped"
        assert said("submit", path, *flags, *more, "--allow-skips")[0] == 0
    assert said("check-submission", tmp_path / "s.csv", "--profile", "sartorius", "--sample", sample)[0] == 0
    sample.write_text("id,predicted\n007,\n008,\nv1,\nt1,\n")
    code, _, err = said("submit", path, *flags)
    assert code == 0 and "skipped" not in err
    sample.write_text("id,predicted\nghost,\n")
    code, _, err = said("submit", path, *flags)
    assert code == 2 and "none of 1 id of" in err and "there are 007, 008, v1" in err
    code, _, err = said("submit", path, *flags[:3], sample, *flags[4:])
    assert code == 2 and "is read for the submission" in err and "ghost" in sample.read_text()


ORIGINALS = """image_id,id,split,height_px,width_px,asked,note
007,x_7,test,32,32,{yes},
008,008,test,32,32,{yes},
v1,9,val,32,32,{no},
t1,10,test,32,32,{no},
torn,torn,test,,,{yes},cut short
dark,a.dark,test,32,32,{yes},
"""
GHOST = ",ghost,test,,,yes,no picture of it is here\n"


def run_with(folder, originals):
    """Write a run of the four images, with a table of its originals and two results lists; return these."""
    records = [ImageRecord(n, f"images/{n}.png", 32, 32, split=s) for n, s in zip(NAMES, SPLITS, strict=True)]
    run, cells = Run(folder), Instances.from_labels(np.eye(32, dtype=np.int32))
    stage = run.start("01_convert", ConvertConfig())
    stage.path("originals.csv").write_text(originals)
    stage.done(records=write_records(stage.path("records.csv"), records), originals=stage.path("originals.csv"))
    return [write_results(folder / f"predictions/{name}.json", [1, 2, 3, 4], [cells] * 4) for name in "ab"]


@pytest.mark.parametrize("competition", [True, False])
def test_a_run_s_predictions_have_the_rows_and_the_ids_of_its_own_submission(competition, tmp_path, said):
    marks = {"yes": "yes", "no": "no"} if competition else {"yes": "", "no": ""}
    table = ORIGINALS.format(**marks) + GHOST * competition
    a, b = run_with(tmp_path / "run", table)
    asked = [one.id for one in handed_in({"originals": tmp_path / "run/originals.csv"}, "test")]
    assert said("fuse", a, b, "-o", tmp_path / "both.json")[0] == 0
    assert said("fuse", tmp_path / "both.json", tmp_path / "both.json", "-o", tmp_path / "again.json")[0] == 0
    for path in (a, tmp_path / "both.json", tmp_path / "again.json"):
        code, _, err = said("submit", path, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        rows = pd.read_csv(tmp_path / "s.csv", dtype=str, keep_default_na=False)
        empty = {"torn", "a.dark"} | ({"ghost"} if competition else set())
        assert code == 3 and sorted(set(rows["id"])) == sorted(asked)
        assert set(rows[rows["predicted"] == ""]["id"]) == empty
        assert "torn: an empty row, cut short" in err and "a.dark: an empty row, not predicted (see its flag" in err


def test_what_a_run_could_not_predict_is_empty_also_where_a_folder_names_the_images(tmp_path, said):
    a, b = run_with(tmp_path / "run", ORIGINALS.format(yes="yes", no="no"))
    assert said("fuse", a, b, "-o", tmp_path / "both.json")[0] == 0
    for name in ("007", "008", "a.dark", "torn"):
        write_png(tmp_path / f"images/{name}.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "images/torn.png").write_bytes(b"")
    for path in (a, tmp_path / "both.json"):
        flags = ("--profile", "sartorius", "--images", tmp_path / "images", "-o", tmp_path / "s.csv")
        code, _, err = said("submit", path, *flags)
        assert (
            code == 3
            and ids(tmp_path / "s.csv") == ["007", "008", "a.dark", "torn"]
            and "torn.png: an empty row" in err
        )


def test_another_file_of_images_says_which_and_the_run_how_they_are_called(tmp_path, said):
    a, _ = run_with(tmp_path / "run", ORIGINALS.format(yes="", no=""))
    val = write_coco(
        tmp_path / "run/coco/val.json", [ImageRecord("v1", "images/v1.png", 32, 32)], [Instances.empty((32, 32))], ()
    )
    code, *_ = said("submit", a, "--coco", val, "--profile", "sartorius", "-o", tmp_path / "s.csv")
    assert code == 0 and ids(tmp_path / "s.csv") == ["9"]
    named = tmp_path / "twice.csv"
    (tmp_path / "run/originals.csv").write_text(ORIGINALS.format(yes="", no="").replace(",10,", ",008,"))
    assert said("submit", a, "--profile", "sartorius", "-o", named)[0] == 3
    assert ids(named) == ["x_7", "008", "t1", "torn", "a.dark"], "of two of one id each keeps the run's name"


@pytest.mark.parametrize("name", ["a.json", "nothing.json"])
def test_marks_are_told_only_where_there_are_any(name, tmp_path):
    side = CellDataset([], [], path=predictions(tmp_path / "a.json", ASKED).with_name(name))
    wanted = {"007": {"asked": "yes"}, "008": {"asked": "yes"}, "v1": {"asked": "no"}, "t1": {"asked": "no"}}
    assert marks_of(side) == (wanted if name == "a.json" else {})
    assert marks_of(replace(side, path=None)) == {}


def test_without_images_ids_are_names_of_files_as_the_competition_has_them(tmp_path, said):
    labels = np.eye(32, dtype=np.int32)
    paths = {"a1_a1": "stage1_test/a1/images/a1.png", "im_0": "im 0.png", "b": "b_cp_masks.tif", "x_mask": "x_mask.png"}
    records = [ImageRecord(name, path, 32, 32) for name, path in paths.items()]
    coco = write_coco(tmp_path / "a.json", records, [Instances.from_labels(labels)] * 4, (), with_scores=True)
    flags = ("--profile", "sartorius", "-o", tmp_path / "s.csv")
    assert said("submit", coco, *flags)[0] == 0 and ids(tmp_path / "s.csv") == ["a1", "im 0", "b", "x_mask"]
    for name in ("a1/a.b_masks.tif", "im 0.tif"):
        write_labels(tmp_path / "labels" / name, labels)
    assert said("submit", tmp_path / "labels", *flags)[0] == 0 and ids(tmp_path / "s.csv") == ["a.b", "im 0"]
    write_labels(tmp_path / "labels/im 1/im 0.tif", labels)
    code, _, err = said("submit", tmp_path / "labels", *flags)
    assert code == 2 and "two images of files called 'im 0'" in err and "--images DIR" in err


def test_what_is_read_is_not_written_over(tmp_path, said):
    coco = predictions(tmp_path / "a.json")
    results = write_results(tmp_path / "r.json", [1], [Instances.from_labels(np.eye(32, dtype=np.int32))])
    label = write_labels(tmp_path / "labels/a.tif", np.eye(32, dtype=np.int32))
    calls = ((coco, coco, ()), (results, coco, ("--coco", coco)), (label.parent, label, ()))
    for path, out, more in calls:
        before = out.read_bytes()
        code, _, err = said("submit", path, "--profile", "sartorius", *more, "-o", out)
        assert code == 2 and "is read for the submission" in err and out.read_bytes() == before


def test_an_image_that_cannot_be_read_blocks_neither_the_submission_nor_its_check(tmp_path, said):
    path, images = predictions(tmp_path / "a.json"), tmp_path / "images"
    for name in NAMES:
        write_png(images / f"{name}.png", np.zeros((32, 32, 3), np.uint8))
    (images / "torn.png").write_bytes(b"")
    (images / "007.png").write_bytes(b"")  # torn since it was predicted
    flags = ("--profile", "sartorius", "--images", images)
    code, _, err = said("submit", path, *flags, "-o", tmp_path / "s.csv")
    assert code == 2 and "1 test image without prediction" in err and "torn" in err
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"info": {"quarantined": [{"item": "x/torn.png", "reason": "0 bytes"}]}}))
    code, _, err = said("submit", path, *flags, "-o", tmp_path / "s.csv")
    assert code == 3 and "torn.png: an empty row" in err and ids(tmp_path / "s.csv") == [*NAMES[:2], "t1", "torn", "v1"]
    code, out, err = said("check-submission", tmp_path / "s.csv", *flags)
    assert code == 3 and "valid" in out and "torn: only its id is checked" in err
    (tmp_path / "s.csv").write_text((tmp_path / "s.csv").read_text().replace("torn,\n", ""))
    code, out, _ = said("check-submission", tmp_path / "s.csv", *flags)
    assert code == 2 and "torn" in out
