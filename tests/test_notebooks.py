"""The six notebooks, run live on a small config, and their answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from cellkit.run import Run, run_notebooks

pytestmark = pytest.mark.slow
REPO = Path(__file__).parent.parent
CONFIG = Path(__file__).with_name("small.yaml")
STAGES = [path.stem for path in sorted((REPO / "notebooks").glob("0*.ipynb"))]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A finished run of all six notebooks; killed with kill -9 in three places, and repeated each time."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    unfinished = folder / "unfinished"
    for finished, sign in (
        (1, unfinished / "02_label_with_cellpose"),
        (2, unfinished / "03_finetune_cellpose" / "03_finetune_cellpose" / "last.safetensors"),
        (4, unfinished / "05_train_maskrcnn" / "05_train_maskrcnn" / "last.safetensors"),
    ):
        kill_once_there(folder, sign)
        assert list(Run(folder).stages()) == STAGES[:finished], "listed means finished, and nothing else is listed"
    assert run_notebooks(CONFIG, folder) == 0
    return folder


def kill_once_there(folder: Path, sign: Path) -> None:
    """Start the run, and kill it as soon as a file or folder is there."""
    command = [sys.executable, "-m", "cellkit", "run", str(CONFIG), "--run", str(folder)]
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.DEVNULL, start_new_session=True)
    give_up = time.monotonic() + 600
    while not sign.exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    assert process.poll() is None, f"the run ended with {process.returncode} before {sign.name} was there"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_killed_and_repeated_scores_what_one_never_killed_does(run_dir, tmp_path):
    assert run_notebooks(CONFIG, tmp_path / "whole") == 0
    for name in ("scores.csv", "counts.csv", "submission.csv", "records.csv", "labels.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (run_dir / name).read_bytes(), name
    for path in sorted((tmp_path / "whole" / "predictions").iterdir()):
        assert path.read_bytes() == (run_dir / "predictions" / path.name).read_bytes(), path.name


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def scores_of(run_dir: Path, split: str) -> dict[str, float]:
    return {row["model"]: row["score"] for row in summary_of(run_dir)["scores"] if row["split"] == split}


def test_all_six_are_listed_with_what_they_made(run_dir):
    stages = Run(run_dir).stages()
    assert list(stages) == STAGES and len(STAGES) == 6
    for entry in stages.values():
        assert entry["seconds"] > 0 and entry["versions"]["torch"] and not entry["quarantined"]
        assert all((run_dir / output["path"]).exists() for output in entry["outputs"].values())


def test_notebooks_keep_their_outputs_in_the_run_folder(run_dir):
    for stage in STAGES:
        notebook = nbformat.read(run_dir / "notebooks" / f"{stage}.ipynb", as_version=4)
        pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        assert pictures, f"{stage} shows no picture"
        assert not [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]


def test_defects_are_set_aside_and_good_images_are_not(run_dir):
    records = pd.read_csv(run_dir / "records.csv", keep_default_na=False)
    flagged = records[records["flags"] != ""]
    assert len(flagged) == 4 and set(flagged["split"]) <= {"", "test"}
    truth = json.loads((run_dir / "coco" / "test.json").read_text())
    assert not set(flagged["path"]) & {image["file_name"] for image in truth["images"]}
    numbers = set(flagged["source"].str.extract(r"_(\d\d)\.ome")[0])
    assert numbers == {"07", "08"}, "the last two of each line are the drawn defects"
    assert (records[records["cell_type"] == "mixed"]["split"] == "test").all()


def test_every_model_is_scored_and_the_order_is_as_it_should_be(run_dir):
    val = scores_of(run_dir, "val")
    assert set(val) == {"threshold", "cellpose_base", "cellpose_tuned", "maskrcnn"}
    assert 0.1 < val["threshold"] < val["cellpose_tuned"]
    assert val["cellpose_base"] > 0.3
    assert val["cellpose_tuned"] > val["cellpose_base"] - 0.03, "twenty steps gain little, and must not harm"
    assert val["maskrcnn"] > 0.05


def test_scores_table_holds_up_against_the_evaluator_itself(run_dir):
    """The number in the summary is the one `kaggle` gives for the files on disk."""
    from cellkit import CellDataset, read_results
    from cellkit.scores import kaggle, overlap_images

    truth = CellDataset.from_coco(run_dir / "coco" / "val.json", run_dir)
    everything = CellDataset.from_records(run_dir / "records.csv")
    shapes = {k: (r.height_px, r.width_px) for k, r in zip(everything.ids, everything.records, strict=True)}
    found = dict(
        zip(everything.ids, read_results(run_dir / "predictions" / "cellpose_tuned.json", shapes), strict=True)
    )
    score = kaggle(overlap_images(truth.instances, [found[k] for k in truth.ids]), bootstrap=0)["score"]
    assert score == pytest.approx(scores_of(run_dir, "val")["cellpose_tuned"], abs=1e-9)


def test_both_classes_are_found(run_dir):
    told = summary_of(run_dir)["classes"]["maskrcnn"]["val"]
    assert told["cells"] > 20 and told["accuracy"] > 0.7
    counts = pd.read_csv(run_dir / "counts.csv")
    found = counts[counts["image_id"] == "all"].set_index("class_name")["found"]
    assert set(found.index) == {"HEK", "N2a"} and (found > 0).all()


def test_submission_is_what_the_competition_takes(run_dir):
    from cellkit.evaluation import handed_in
    from cellkit.records import read_records, select
    from cellkit.submission import check_submission, read_submission

    test, asked = select(read_records(run_dir / "records.csv"), "test"), handed_in(run_dir / "originals.csv", "test")
    assert [one.image_id for one in asked] == [record.image_id for record in test]
    assert all(record.image_id.endswith(one.id) for one, record in zip(asked, test, strict=True))
    shapes = {one.id: one.shape for one in asked}
    assert check_submission(run_dir / "submission.csv", "sartorius", shapes) == []
    assert set(read_submission(run_dir / "submission.csv", "sartorius", shapes)) == set(shapes)


def test_report_is_one_self_contained_page(run_dir):
    page = (run_dir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "<script" not in page
    assert "Left out" not in page and "kaggle" in page
    assert f"{scores_of(run_dir, 'val')['cellpose_tuned']:.3f}" in page


def test_masks_of_coco_are_those_of_the_labels(run_dir):
    from cellkit import CellDataset, read_labels

    train = CellDataset.from_coco(run_dir / "coco" / "train.json", run_dir)
    record, cells = train.records[0], train.instances[0]
    labels = read_labels(run_dir / "labels" / f"{record.image_id}.tif")
    areas = np.bincount(labels.ravel())[1:]
    assert sorted(cells.areas_px) == sorted(areas[areas >= 15])
    assert {train.classes[k - 1] for k in cells.class_ids} == {record.cell_type}


def test_again_does_nothing(run_dir, capsys):
    before = (run_dir / "manifest.json").read_bytes()
    begun = time.monotonic()
    assert run_notebooks(CONFIG, run_dir) == 0
    assert time.monotonic() - begun < 10 and "nothing to do" in capsys.readouterr().err
    assert (run_dir / "manifest.json").read_bytes() == before


def test_a_changed_section_makes_its_stage_stale_and_no_earlier_one(run_dir):
    from cellkit.run import check

    states = {s.name: s for s in check(run_dir, CONFIG, overrides={"evaluate.submit": "maskrcnn"})}
    assert [s.state for s in states.values()] == ["fresh"] * 5 + ["stale"]
    assert "submit" in states[STAGES[5]].why


def test_predict_with_a_model_of_the_run(run_dir, tmp_path):
    """What a user does next: the tuned model on images, scored by the command line."""
    from cellkit.__main__ import main

    out, labels = tmp_path / "found.json", tmp_path / "labels"
    assert (
        main(["predict", f"{run_dir}:cellpose_tuned", str(run_dir / "images"), "-o", str(out), "--labels", str(labels)])
        == 0
    )
    names = {path.stem for path in labels.glob("*.tif")}
    assert names == {path.stem for path in (run_dir / "images").glob("*.png")}
    assert main(["score", str(run_dir / "coco" / "val.json"), str(out), "--json"]) in (0, 2)
