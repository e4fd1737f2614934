"""Recipe 11 as its notebook runs, on drawn cells with a tiny encoder: it learns, and writes what 06 scores."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from notebook_cases import REPO, execute

from cellkit.cells.records import write_records
from cellkit.config.reading import load_config
from cellkit.config.sections import CocoConfig, ConvertConfig
from cellkit.formats.coco import write_coco
from cellkit.models import weights
from cellkit.run.folder import Run
from cellkit.run.notebooks import notebooks_of

TINY = {"encoder": "tu-resnet10t", "encoder_depth": 3, "decoder_width": 4, "learning_rate": 0.01, "batch_size": 4}
SHORT = {"steps": 30, "eval_every": 15, "crop_px": 96, "warmup_steps": 2, "average_steps": 5, "search_images": 1}


@pytest.fixture(scope="module")
def run_dir(drawn, tmp_path_factory):
    """A run as 01 and 04 leave it, and recipe 11 after it."""
    folder = tmp_path_factory.mktemp("runs") / "border"
    stage = Run(folder).start("01_convert", ConvertConfig(classes=drawn.classes))
    for record in drawn.records:
        shutil.copy(drawn.root / record.path, stage.path(record.path))
    stage.done(records=write_records(stage.path("records.csv"), drawn.records), images=stage.path("images"))
    stage = Run(folder).start("04_cells_to_coco", CocoConfig(classes=drawn.classes))
    made = {}
    for split in ("train", "val", "test"):
        part = drawn.select(split)
        path = stage.path(f"coco/{split}.json")
        made[f"coco_{split}"] = write_coco(path, part.records, part.instances, drawn.classes, part.ids)
    stage.done(**made)
    config = folder.parent / "border.yaml"
    config.write_text("classes: [HEK, N2a]\nprecision: float32\nrecipes: {unet_border: {}}\n")
    settings = {f"recipes.unet_border.{key}": value for key, value in (TINY | SHORT).items()}
    execute("recipes/11_unet_border", config, folder, **settings)
    return folder


def test_it_learns_each_class_of_pixels_and_writes_what_06_reads(run_dir, drawn):
    run = Run(run_dir)
    rows = pd.read_csv(run.find("history_unet_border"))
    assert [name for name in rows if name.startswith("iou_")] == ["iou_background", "iou_HEK", "iou_N2a", "iou_border"]
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[1] and rows["iou_background"].iloc[-1] > 0.5
    predicted = json.loads(run.find("predictions_unet_border").read_text(encoding="utf-8"))
    assert {row["image_id"] for row in predicted} <= {4, 5, 6} and {row["category_id"] for row in predicted} <= {1, 2}
    assert len(predicted) > 10
    card = weights.read_card(run.find("unet_border_checkpoint"))
    assert (card.backend, card.classes) == ("unet_border", drawn.classes)


def test_its_configuration_runs_it_and_leaves_05_out():
    config = REPO / "configs/unet_border.yaml"
    names = [notebook.name for notebook in notebooks_of(load_config(config))]
    assert "11_unet_border" in names and "05_train_maskrcnn" not in names
