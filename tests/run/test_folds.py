"""Runs of folds with real kernels on drawn cells: killed, taken up, and every image judged by what had not seen it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from run_cases import TWO, here, write_notebook  # noqa: F401

from cellkit.cells.records import read_records
from cellkit.commands.main import main
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.files import PACKAGE, read_json, write_json
from cellkit.formats.coco_reading import read_coco
from cellkit.manifest import read_manifest
from cellkit.run.folds import collect_folds, folds_folder, run_folds
from cellkit.run.foretold_rounds import took_of_folds

CONFIG = """
classes: [HEK, N2a]
convert:
  source: drawn
  channels: {nuclei: DAPI, cytoplasm: GFP}
  split: {train: 0.5, val: 0.25, test: 0.25}
  drawn: {images_per_line: 4, mixed_images: 1, size_px: 96, diameter_px: 30, defect_images_per_line: 0, planes: 1}
evaluate: {bootstrap_samples: 100}
"""
LABEL = [  # what notebooks 02 and 04 do, with the threshold alone
    "from cellkit import CellDataset, get_backend, predict_all, read_coco, write_dataset, write_predictions",
    "images = CellDataset.of_run(run)\ntruth = read_coco(run.find('truth'), run.folder)\nfloor = get_backend('threshold')",
    "checkpoint = floor.train(truth.select('train'), truth.select('val'), floor.TrainSettings(), stage.folder)",
    "held_out = images.held_out()\nfound = predict_all(floor.load(checkpoint), held_out, 'threshold')",
    "files = {f'coco_{name}': write_dataset(stage.path(f'coco/{name}.json'), part) for name, part in truth.by_split().items()}",
    "stage.done(predictions_threshold=write_predictions(stage, 'threshold', held_out, found), "
    "threshold_checkpoint=checkpoint, **files)",
]
GO = "from cellkit.run.folds import run_folds; run_folds('configs/demo.yaml', 2, 'runs/f', notebooks='notebooks')"


@pytest.fixture
def drawn(here):  # noqa: F811
    (here / "configs/demo.yaml").write_text(CONFIG)
    write_notebook(here / "notebooks", TWO, LABEL)
    shutil.copy(PACKAGE.parent / "notebooks/01_convert.ipynb", here / "notebooks")
    return here


def stages(fold: int) -> dict[str, str]:
    """Return the finished stages of a fold, each with the attempt that finished it."""
    entries = read_manifest(folds_folder("runs/f", 2) / str(fold))["stages"]
    return {name: entry["attempt"] for name, entry in entries.items() if entry["status"] == "finished"}


def kill_in_second_fold() -> None:
    """Start the folds and kill the process, its kernel too, once the second fold has a finished stage."""
    process = subprocess.Popen([sys.executable, "-c", GO], start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not stages(2) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"


def earlier_models_are_not_handed_in_unsaid(place: Path, capsys) -> None:
    """Let a fold have other predictions since they were joined: that is said, and a run of a part removes what was joined."""
    manifest, own = read_json(place / "1/manifest.json"), place / "test/mine.json"
    shutil.copy(place / "test/threshold.json", own)
    submit = ["--profile", "sartorius", "-o", "s.csv"]
    capsys.readouterr()
    main(["submit", str(place / "test/threshold.json"), *submit])
    assert "not of the present state" not in capsys.readouterr().err
    entry = manifest["stages"][TWO]
    output = entry["outputs"]["predictions_threshold"]
    other = output | {"sha256": "0" * 64}
    stages = manifest["stages"] | {TWO: entry | {"outputs": entry["outputs"] | {"predictions_threshold": other}}}
    write_json(place / "1/manifest.json", manifest | {"stages": stages})
    main(["submit", str(place / "test/threshold.json"), *submit])
    told = capsys.readouterr().err
    assert "test/threshold.json is not of the present state of the folds: fold 1 has other predictions" in told
    (place / "out_of_fold/threshold.json").write_text("written by a person")
    assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks", until="01") == 0
    told = capsys.readouterr().err
    assert f"{place}: test/threshold.json, folds.csv removed, as fold 1 has other predictions" in told
    assert not (place / "test/threshold.json").exists() and not (place / "folds.csv").exists() and own.is_file()
    assert (place / "out_of_fold/threshold.json").is_file(), "what nobody joined stays"
    shutil.copy(own, place / "test/threshold.json")
    assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks", until="01") == 0
    assert "removed" not in capsys.readouterr().err and (place / "test/threshold.json").is_file()
    for damage in ("{", '{"models": 3}'):
        (place / "folds.json").write_text(damage)
        assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks", until="01") == 0
        assert "is not known" in capsys.readouterr().err
    write_json(place / "1/manifest.json", manifest)
    own.unlink()


def test_folds_that_were_killed_go_on_and_no_image_is_judged_by_what_saw_it(drawn, capsys, caplog):
    kill_in_second_fold()
    before = stages(1), stages(2)
    assert list(before[0]) == ["01_convert", TWO] and list(before[1]) == ["01_convert"]
    assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks") == 0
    assert "forecast: 1 fold, not timed" in capsys.readouterr().err
    assert stages(1) == before[0], "a finished fold is not run again"
    assert stages(2)["01_convert"] == before[1]["01_convert"], "nor a finished stage"

    place = folds_folder("runs/f", 2)
    records = [read_records(place / str(fold) / "records.csv") for fold in (1, 2)]
    held, taught, test = (
        [{r.image_id for r in of if r.split == name} for of in records] for name in ("val", "train", "test")
    )
    assert held[0] | held[1] == taught[0] | taught[1] and not held[0] & held[1]
    assert not held[0] & taught[0] and not held[1] & taught[1]
    assert test[0] == test[1] and test[0] and not test[0] & (held[0] | held[1])
    assert {r.cell_type for r in records[0] if r.split == "val"} == {"HEK", "N2a"}

    found = read_coco(place / "out_of_fold/threshold.json")
    assert [r.image_id for r in found.records] == [r.image_id for r in records[0] if r.split in ("train", "val")]
    diameters = [read_json(place / f"{fold}/{TWO}/threshold.json")["config"]["diameter_px"] for fold in (1, 2)]
    assert diameters[0] != diameters[1], "each fold learned from its own images"
    table = pd.read_csv(place / "folds.csv")
    assert table["fold"].tolist() == ["1", "2", "mean", "out of fold", "test, folds fused"] and set(table["model"]) == {
        "threshold"
    }
    assert table["images"].tolist()[:2] == [len(held[0]), len(held[1])]
    assert table["images"].tolist()[2:] == [*[len(held[0] | held[1])] * 2, len(test[0])]
    fused = read_coco(place / "test/threshold.json")
    assert {r.image_id for r in fused.records} == test[0] and fused.cells
    each = table["score"]
    assert each[2] == pytest.approx(each[:2].mean())
    assert table["low"][3] <= each[3] <= table["high"][3]

    capsys.readouterr()
    assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks") == 0
    assert capsys.readouterr().err.count("nothing to do") == 2

    (place / "folds.csv").unlink()
    assert run_folds("configs/demo.yaml", 2, "runs/f", notebooks="notebooks", until="01") == 0
    assert "the folds are not scored: 01_convert is the last notebook" in capsys.readouterr().err
    assert not (place / "folds.csv").exists() and (place / "test/threshold.json").is_file(), "its models are the same"

    collect_folds(place, 2, load_config("configs/demo.yaml"))
    earlier_models_are_not_handed_in_unsaid(place, capsys)
    collect_folds(place, 2, load_config("configs/demo.yaml"))

    originals = pd.read_csv(place / "1/originals.csv", dtype=str, keep_default_na=False)
    originals["asked"] = ["yes" if name in test[0] else "no" for name in originals["image_id"]]
    originals["id"] = [f"own {name}" for name in originals["image_id"]]
    originals.loc[len(originals)] = {"id": "ghost", "split": "test", "asked": "yes", "note": "no picture of it is here"}
    originals.to_csv(place / "1/originals.csv", index=False)
    table["model"].replace("threshold", "gone").to_frame().to_csv(place / "folds.csv")
    for name in ("out_of_fold/gone", "test/gone", "test/mine"):
        (place / f"{name}.json").write_text("{}")
    collect_folds(place, 2, load_config("configs/demo.yaml"))
    assert [path.name for path in (place / "out_of_fold").iterdir()] == ["threshold.json"]
    assert sorted(path.name for path in (place / "test").iterdir()) == ["mine.json", "threshold.json"]
    assert caplog.text.count("removed: the folds have no model gone any more") == 2
    assert "mine.json is of no model of the folds as they are now" in caplog.text
    for name, asked in (("test", {"yes"}), ("out_of_fold", {"no"})):
        images = read_json(place / name / "threshold.json")["images"]
        assert {image["asked"] for image in images} == asked, "cellkit submit knows whom a competition asks for"
        assert all(image["own_id"] == f"own {image['image_id']}" for image in images)
    lacking = [
        read_json(place / name / "threshold.json")["info"].get("quarantined") for name in ("test", "out_of_fold")
    ]
    assert lacking == [[{"item": "ghost", "reason": "no picture of it is here", "own_id": "ghost"}], None]
    assert main(["submit", str(place / "test/threshold.json"), "--profile", "sartorius", "-o", "s.csv"]) == 3
    assert set(pd.read_csv("s.csv")["id"]) == {"ghost", *(f"own {name}" for name in test[0])}


def test_what_all_folds_took_is_said_together(tmp_path):
    one = {"seconds": 50.0, "peak_bytes": 2e9, "disk_bytes": 2e7, "took_seconds": 60.0, "took_peak_bytes": 1e9}
    for fold in (1, 2):
        manifest = {
            "format": 1,
            "stages": {},
            "attempts": {},
            "forecast": {"01_convert": one | {"took_disk_bytes": 1e7}},
        }
        (tmp_path / str(fold)).mkdir()
        write_json(tmp_path / str(fold) / "manifest.json", manifest)
    assert took_of_folds(tmp_path, 2) == "forecast 100 s, took 2 min; memory 2.0 GB, 1.0 GB; disk 40 MB, 20 MB"
    assert took_of_folds(tmp_path / "none", 2) == ""


@pytest.mark.parametrize(
    ("folds", "overrides", "problem"),
    [
        (1, {}, "--folds is 1"),
        (21, {}, "--folds is 21"),
        (3, {"convert.fold": 2}, "--folds and --set convert.fold"),
        (3, {"convert": {"folds": 3}}, "--folds and --set convert.folds"),
    ],
)
def test_folds_that_are_none_are_refused(here, folds, overrides, problem):  # noqa: F811
    with pytest.raises(UserError, match=problem):
        run_folds("configs/demo.yaml", folds, "runs/f", overrides)
    assert not Path("runs").exists()


def test_more_folds_than_images_are_refused_before_anything_runs(here, said):  # noqa: F811
    (here / "configs/demo.yaml").write_text(CONFIG)
    code, _, err = said("run", "configs/demo.yaml", "--folds", "9")
    assert code == 2
    assert "error: 9 folds of 6 images, files or series for training and validation\n  ask for 6 folds or fewer" in err
    assert not Path("runs").exists()
