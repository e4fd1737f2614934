"""The six notebooks, run live on a small config, and their answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from cellkit.files import write_json
from cellkit.manifest import owned_files, read_manifest
from cellkit.run.folder import Run
from cellkit.run.runner import run_notebooks

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("small.yaml")
STAGES = [path.stem for path in sorted((REPO / "notebooks").glob("0*.ipynb"))]


# Every file that a kernel opens and does not itself begin, one line each: the module is imported when its interpreter starts.
WATCH = """
import json, os, sys
if "CELLKIT_RUNNER" in os.environ:
    log = open(os.path.join(os.environ["WATCHED"], json.loads(os.environ["CELLKIT_RUNNER"])["stage"]), "a")
    def note(event, given):
        if event == "open" and isinstance(given[0], (str, os.PathLike)) and not given[2] & os.O_EXCL:
            log.write(os.path.abspath(given[0]) + chr(10))
            log.flush()
    sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """A folder for what each stage opened: <stage>, a line per file."""
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, watched) -> Path:
    """A finished run of all six notebooks, watched for the files it opens."""
    folder, hook = tmp_path_factory.mktemp("runs") / "small", tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(WATCH)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WATCHED", str(watched))
        patched.setenv("PYTHONPATH", os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])]))
        assert run_notebooks(CONFIG, folder) == 0
    return folder


def test_every_file_a_stage_opens_is_noted(run_dir, watched):
    """Nothing is read that would not make the stage out of date; libraries, caches and the runner's own files apart."""
    others = [sys.prefix, sys.base_prefix, REPO, Path.home(), "/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/var"]
    others = [Path(place).resolve() for place in others]
    run, stages = run_dir.resolve(), Run(run_dir).stages()
    for stage, entry in stages.items():
        places = [*entry["inputs"].values(), *entry["outputs"].values()]
        noted = {(run / place["path"]).resolve() for place in places} | {run / name for name in entry["also"]}
        noted |= {run / name for name in ("manifest.json", ".lock", "unfinished")}
        opened = {Path(line).resolve() for line in (watched / stage).read_text().splitlines()}
        opened = {path for path in opened if not path.name.startswith(".tmp-")}  # torn writes, synced to disk
        inside = {path for path in opened if path.is_relative_to(run)}
        assert len(inside) > 3, "the watch does not work"
        assert [path for path in sorted(inside) if not {path, *path.parents} & noted] == [], stage
        outside = [path for path in sorted(opened - inside) if not {*path.parents} & {*others, *noted}]
        mine = tuple(f"{Path(tempfile.gettempdir()).resolve()}/{name}-" for name in ("cellkit", "matplotlib"))
        assert [path for path in outside if not str(path).startswith(mine)] == [], stage
    for stage in (STAGES[1], STAGES[2]):
        assert {"weights starter_light", "card of starter_light"} <= set(stages[stage]["inputs"])
        read = (watched / stage).read_text()
        assert all(f"/cellkit/starter/starter_light{suffix}\n" in read for suffix in (".json", ".safetensors"))
    assert {"quality_summary", "quality", "sheet", "history_cellpose", "settings"} <= set(stages[STAGES[5]]["inputs"])


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


def test_a_run_killed_and_repeated_makes_what_one_never_killed_does(run_dir, tmp_path):
    """Killed with kill -9 in three notebooks; the others' outputs are there, and need no second making."""
    folder, unfinished = tmp_path / "killed", tmp_path / "killed" / "unfinished"
    shutil.copytree(run_dir, folder)
    manifest = read_manifest(folder)
    torn = [STAGES[1], STAGES[2], STAGES[4]]
    for name in torn:  # as if these had never run
        for place in owned_files({"stages": {name: manifest["stages"].pop(name)}}):
            path = folder / place
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(folder / "manifest.json", manifest)
    for finished, sign in (
        (3, unfinished / torn[0]),
        (4, unfinished / torn[1] / torn[1] / "last.safetensors"),
        (5, unfinished / torn[2] / torn[2] / "last.safetensors"),
    ):
        kill_once_there(folder, sign)
        listed = [name for name in STAGES if name not in torn or torn.index(name) < finished - 3]
        assert list(Run(folder).stages()) == listed, "listed means finished, and nothing else is listed"
    assert run_notebooks(CONFIG, folder, only=torn[2]) == 0
    assert list(Run(folder).stages()) == STAGES
    whole, again = (results_of(place) for place in (run_dir, folder))
    assert len(whole) > 20 and list(whole) == list(again)
    assert [name for name in whole if whole[name] != again[name]] == []


def results_of(folder: Path) -> dict[str, bytes]:
    """Return labels, predictions and networks by name: all that tells no time."""
    paths = [*folder.glob("labels*"), *folder.glob("*/*.tif"), *folder.glob("predictions/*"), *folder.glob("0*/*")]
    of_time = ("history.csv", "last.safetensors")
    plain = lambda path: path.read_bytes().replace(str(folder).encode(), b"RUN")  # a card names where it began  # noqa: E731
    return {str(p.relative_to(folder)): plain(p) for p in sorted(paths) if p.is_file() and p.name not in of_time}


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
    assert set(val) == {"threshold", "cellpose_base", "cellpose_tuned", "cellpose_classes", "maskrcnn"}
    assert 0.1 < val["threshold"] < val["cellpose_tuned"]
    assert val["cellpose_base"] > 0.3
    both = {name: (val[name] + scores_of(run_dir, "test")[name]) / 2 for name in val}  # four images each, too few alone
    assert both["cellpose_tuned"] > both["cellpose_base"] - 0.03, "a dozen steps gain little, and must not harm"
    handed_on = json.loads((run_dir / "decision.json").read_text())["kept"]
    assert val["cellpose_classes"] == val[handed_on], "classes are put on what the gate hands on"
    assert val["maskrcnn"] > 0.05


def test_scores_table_holds_up_against_the_evaluator_itself(run_dir):
    """The number in the summary is the one `kaggle` gives for the files on disk."""
    from cellkit import CellDataset, read_coco
    from cellkit.formats.coco_reading import read_results
    from cellkit.scores.iou import overlap_images
    from cellkit.scores.kaggle import kaggle

    truth = read_coco(run_dir / "coco" / "val.json", run_dir)
    everything = CellDataset.from_records(run_dir / "records.csv")
    shapes = {k: (r.height_px, r.width_px) for k, r in zip(everything.ids, everything.records, strict=True)}
    found = dict(
        zip(everything.ids, read_results(run_dir / "predictions" / "cellpose_tuned.json", shapes), strict=True)
    )
    score = kaggle(overlap_images(truth.instances, [found[k] for k in truth.ids]), bootstrap=0)["score"]
    assert score == pytest.approx(scores_of(run_dir, "val")["cellpose_tuned"], abs=1e-9)


def test_every_cell_of_the_measured_model_has_a_row_with_its_raw_brightness(run_dir):
    model, table = summary_of(run_dir)["measured"], pd.read_csv(run_dir / "cells.csv")
    found = json.loads((run_dir / "predictions" / f"{model}.json").read_text())
    assert len(table) == len(found) > 20
    assert table[["mean_DAPI", "mean_GFP", "area_um2", "line", "class"]].notna().all(axis=None)
    assert table["max_DAPI"].max() > 255, "16 bits, not those of the picture"


def test_both_classes_are_found(run_dir):
    told = summary_of(run_dir)["classes"]["maskrcnn"]["val"]
    assert told["cells"] > 20 and told["accuracy"] > 0.7
    counts = pd.read_csv(run_dir / "counts.csv")
    found = counts[counts["image_id"] == "all"].set_index("class_name")["found"]
    assert set(found.index) == {"HEK", "N2a"} and (found > 0).all()


def test_submission_is_what_the_competition_takes(run_dir):
    from cellkit.cells.records import read_records, select
    from cellkit.evaluate.submission import handed_in
    from cellkit.formats.submission import read_submission
    from cellkit.formats.submission_check import check_submission

    test = select(read_records(run_dir / "records.csv"), "test")
    asked = handed_in({"originals": run_dir / "originals.csv"}, "test")
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
    from cellkit import read_coco
    from cellkit.formats.label_images import read_labels

    train = read_coco(run_dir / "coco" / "train.json", run_dir)
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
    from cellkit.run.stale import check

    states = {s.name: s for s in check(run_dir, CONFIG, overrides={"evaluate.submit": "maskrcnn"})}
    assert [s.state for s in states.values()] == ["fresh"] * 5 + ["stale"]
    assert "submit" in states[STAGES[5]].why


def test_predict_with_a_model_of_the_run(run_dir, tmp_path):
    """What a user does next: the tuned model on images, scored by the command line."""
    from cellkit.commands.main import main

    out, labels = tmp_path / "found.json", tmp_path / "labels"
    assert (
        main(["predict", f"{run_dir}:cellpose_tuned", str(run_dir / "images"), "-o", str(out), "--labels", str(labels)])
        == 0
    )
    names = {path.stem for path in labels.glob("*.tif")}
    assert names == {path.stem for path in (run_dir / "images").glob("*.png")}
    assert main(["score", str(run_dir / "coco" / "val.json"), str(out), "--json"]) in (0, 2)
