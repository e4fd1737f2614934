"""A search over settings, on images a person labelled; with a backend whose training costs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from run_cases import TWO, here, write_notebook  # noqa: F401
from test_folds import CONFIG, LABEL

from cellkit import models
from cellkit.cells.dataset import CellDataset
from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.commands.search import over_of
from cellkit.errors import UserError
from cellkit.evaluate import folds
from cellkit.files import PACKAGE, locked
from cellkit.forecast.stages import Forecast
from cellkit.formats.coco_reading import read_coco
from cellkit.manifest import read_manifest
from cellkit.models.gate import regime_of
from cellkit.run import search
from cellkit.run.foretold_rounds import noted_search
from cellkit.run.search import run_search
from cellkit.show.search import show_search

OVER = {"finetune.diameter_px": [8.0, 30.0]}
HOW = {"run_dir": "runs/s", "notebooks": "notebooks", "overrides": {"finetune.backend": "threshold"}}


@pytest.fixture
def drawn(here):  # noqa: F811
    (here / "configs/demo.yaml").write_text(CONFIG)
    cells = [text.replace("**files)", "labels=stage.path('labels.json'), **files)") for text in LABEL]
    cells.insert(-1, "write_dataset(stage.path('labels.json'), truth)")
    write_notebook(here / "notebooks", TWO, cells)
    shutil.copy(PACKAGE.parent / "notebooks/01_convert.ipynb", here / "notebooks")
    return here


def test_a_search_compares_on_images_that_taught_nothing_and_goes_on_where_it_was(drawn, monkeypatch, capsys):
    looked = []
    real = folds.predict_all
    monkeypatch.setattr(
        folds, "predict_all", lambda segment, images, *more: looked.append(images) or real(segment, images, *more)
    )
    done = run_search("configs/demo.yaml", OVER, 6, **HOW)
    labelled = read_coco("runs/s/labels.json")
    assert done.who.endswith("held back, as no validation image chooses")
    assert {r.split for images in looked for r in images.records} == {"train"}
    assert len(looked) == 3 and len(looked[0]) < len(labelled.select("train"))
    table = pd.read_csv("runs/s/search/finetune/search.csv")
    assert table["trial"].tolist()[0] == done.best.number and sorted(table["trial"]) == [0, 1, 2]
    assert table["score"].is_monotonic_decreasing and table["goes_on"].tolist() == [True, False, False]
    by_trial = table.set_index("trial")
    assert by_trial["finetune.diameter_px"].dropna().to_dict() == {1: 8.0, 2: 30.0}
    assert by_trial["score"][2] > by_trial["score"][1], "cells of 30 px are cut to pieces at 8"
    assert "30.0" in show_search(table).texts[0].get_text() or done.best.number == 0

    took = read_manifest(Path("runs/s"))["searches"]["finetune"]
    assert took["took_seconds"] > 0 and took["took_peak_bytes"] and list(took["rungs"]) == ["rung 1 of the search"]
    err = capsys.readouterr().err
    assert (
        "forecast: the search and the notebooks before it, not timed" in err
        and "the search: forecast, and taken" in err
    )

    again = run_search("configs/demo.yaml", OVER, 6, **HOW)
    assert len(looked) == 3 and again.table.equals(done.table), "what is finished is read"
    with (
        locked(Path("runs/s/search/.finetune.lock"), "held"),
        pytest.raises(UserError, match="is being searched by another process"),
    ):
        run_search("configs/demo.yaml", OVER, 6, **HOW)
    monkeypatch.setattr(folds, "package_sha256", lambda: "other code")
    run_search("configs/demo.yaml", OVER, 6, **HOW)
    assert len(looked) == 6, "trials of other code are run again"


@pytest.mark.parametrize(("empty", "judging"), [(0, False), (4, True)])
def test_it_is_said_where_images_that_compare_trials_judge_in_notebook_03(empty, judging, monkeypatch, capsys):
    """Of fourteen validation images ten with cells are too few to choose: there all labelled images judge."""
    records = [ImageRecord(f"{split}{k}", "", 4, 4, split=split) for split in ("train", "val") for k in range(14)]
    cells = [Instances.from_labels(np.eye(4, dtype=int))] * (28 - empty) + [Instances.empty((4, 4))] * empty
    labelled = CellDataset(records, cells, made_by=["truth"] * 28)
    monkeypatch.setattr(search, "read_coco", lambda *more: labelled)
    train, held, _ = search._parts(SimpleNamespace(find=str, folder=""), "finetune", 0)
    names = {record.image_id for record in held.records}
    assert bool(names & set(regime_of(labelled).judges)) == judging
    assert ("that compare trials judge in notebook 03 too" in capsys.readouterr().err) == judging
    assert names.isdisjoint(record.image_id for record in train.records)
    assert {record.split for record in held.records} == {"train" if judging else "val"}


def test_a_search_is_done_though_another_command_writes_where_it_would_be_noted(tmp_path, capsys):
    holder = (
        "import sys; from pathlib import Path; from cellkit.manifest import hold\n"
        "hold(Path(sys.argv[1]), 'writer'); print('held', flush=True); input()"
    )
    told = {"rung 1 of the search": Forecast(1.0, 10**6, 0, 10**6, 10**6, 1)}
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with noted_search(tmp_path, "finetune", tmp_path / "search", told):
            pass
        other.communicate("\n", timeout=60)
    err = capsys.readouterr().err
    assert "what the search took is not noted: run folder" in err and "the search: forecast" in err
    with noted_search(tmp_path, "finetune", tmp_path / "search", told):
        pass
    assert list(read_manifest(tmp_path)["searches"]) == ["finetune"]


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        ({"label.diameter_px": [1]}, "a search over label.diameter_px"),
        ({"finetune.steps": [1], "maskrcnn.steps": [1]}, "a search over finetune.steps, maskrcnn.steps"),
        ({"finetune.diameter_px": [-1]}, "finetune.diameter_px is -1"),
        ({"finetune.diameter_pixels": [9]}, "finetune.diameter_pixels"),
        ({"finetune.folds": [3, 4]}, "a search over finetune.folds: no trial is trained or scored by it"),
        ({"finetune.diameter_px": [9], "finetune.fold_steps": [0.5]}, "a search over finetune.fold_steps: no trial"),
        ({"finetune.min_train_masks": [3]}, "a search over finetune.min_train_masks: no trial"),
        ({"maskrcnn.cell_classes.ring_px": [3]}, "a search over maskrcnn.cell_classes.ring_px: no trial"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(here, over, problem):  # noqa: F811
    (Path("configs/demo.yaml")).write_text(CONFIG)
    with pytest.raises(UserError, match=problem):
        run_search("configs/demo.yaml", over, 6, **HOW)
    assert not Path("runs").exists()


def test_missing_weights_of_one_trial_and_combinations_left_out_are_said_before_anything_runs(here, capsys):  # noqa: F811
    (Path("configs/demo.yaml")).write_text(CONFIG)
    unet = HOW | {"overrides": {"finetune.backend": "cellpose_unet"}}
    with pytest.raises(UserError, match="no_such"):
        run_search("configs/demo.yaml", {"finetune.base": ["starter_light", "no_such.safetensors"]}, 6, **unet)
    assert not Path("runs").exists()
    over = {"finetune.base": ["no_such.safetensors"], "finetune.steps": list(range(10, 25))}
    with pytest.raises(UserError, match="no_such"):
        run_search("configs/demo.yaml", over, 2, **unet)
    search._say_left_out(over, {}, 1, 2.0)
    assert "15 combinations, 1 of them tried (drawn by the seed): --budget is 2, and --budget 8 tries all" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (
            {"maskrcnn.backend": ["maskrcnn_torchvision", "needs_much"]},
            "'needs_much' needs the package 'no_such_package'",
        ),
        ({"maskrcnn.unfreeze_after": [0.5], "maskrcnn.freeze_backbone": [False]}, "the encoder is not frozen before"),
        ({"maskrcnn.backbone": ["resnet50_fpn_v2"]}, "start is tuned, a Cellpose network"),
        ({"maskrcnn.gpus": [40]}, "gpus"),
        ({"finetune.base": ["starter_light", "runs/none:cellpose_tuned"]}, ""),
    ],
)
def test_a_trial_that_cannot_begin_is_refused_before_any_is_trained(drawn, over, problem, monkeypatch):
    own = Path("own/models")
    own.mkdir(parents=True)
    text = "from cellkit.models.maskrcnn_torchvision import Settings, TrainSettings\nTITLE = 'Much'\n"
    (own / "needs_much.py").write_text(f"{text}REQUIRES = ('no_such_package',)\n")
    monkeypatch.setenv("CELLKIT_MODULES", str(own.parent))
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(own)])
    monkeypatch.setattr(search, "run_notebooks", lambda *more, **how: 7)
    monkeypatch.setattr(search, "foretell_search", lambda *more: {})
    how = HOW | {"overrides": {"finetune.backend": "cellpose_unet"}}
    if not problem:
        assert run_search("configs/demo.yaml", over, 6, **how).code == 7, "weights that a run makes may come to be"
        return
    with pytest.raises(UserError, match=problem):
        run_search("configs/demo.yaml", over, 6, **how)


@pytest.mark.parametrize(
    ("strings", "problem"),
    [
        (["finetune.steps"], "has no values"),
        (["finetune.steps=1", "finetune.steps=2"], "is given twice"),
        (["finetune.steps=1,1"], "has a value twice"),
    ],
)
def test_values_that_are_none_are_refused(strings, problem):
    with pytest.raises(UserError, match=problem):
        over_of(strings)
