"""Recipes 21 and 22, live on drawn cells: points, outlines, classes, 06 after them, and a folder kept aside."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from notebook_cases import execute

from cellkit.cells.dataset import predict_all
from cellkit.cells.records import write_records
from cellkit.config.reading import load_config
from cellkit.config.sections import ConvertConfig, FinetuneConfig, LabelConfig
from cellkit.formats.coco import write_coco, write_predictions
from cellkit.models import threshold
from cellkit.predict.model import find_model
from cellkit.run.folder import Run
from cellkit.run.notebooks import notebooks_of

CONFIG = """
classes: [HEK, N2a]
convert: {source: labelme, channels: {nuclei: blue, cytoplasm: green}}
label: {diameter_px: 30}
evaluate: {bootstrap_samples: 20}
recipes:
  coordinates: {steps: 40, eval_every: 40, batch_size: 3, crop_px: 64, learning_rate: 0.005, average_steps: 10, outline: both}
  crop_classifier:
    {steps: 12, eval_every: 12, batch_size: 8, crop_px: 48, input_px: 48, votes: cut_outs, average_steps: 5, views: 1}
"""
COORDINATES, CROPS = "recipes/21_coordinates", "recipes/22_crop_classifier"
TEST_FOLDER = "recipes.crop_classifier.test_folder"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "few.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ran(drawn, config, tmp_path_factory) -> Path:
    """A run of 04 and both recipes; in the place of the tuned Cellpose is a threshold."""
    folder = tmp_path_factory.mktemp("runs") / "few"
    stage = Run(folder).start("01_convert", ConvertConfig(classes=drawn.classes))
    for record in drawn.records:
        shutil.copy(drawn.root / record.path, stage.path(record.path))
    truth = write_coco(stage.path("truth.json"), drawn.records, drawn.instances, drawn.classes)
    stage.done(
        records=write_records(stage.path("records.csv"), drawn.records), images=stage.path("images"), truth=truth
    )
    stage = Run(folder).start("02_label_with_cellpose", LabelConfig(classes=drawn.classes))
    labels = write_coco(stage.path("labels/labels.json"), drawn.records, drawn.instances, drawn.classes)
    stage.done(labels=labels)
    stage = Run(folder).start("03_finetune_cellpose", FinetuneConfig(classes=drawn.classes))
    tuned, held_out = threshold.train(drawn, drawn, threshold.TrainSettings(), stage.folder), drawn.held_out()
    found = write_predictions(stage, "cellpose_tuned", held_out, predict_all(threshold.load(tuned), held_out))
    stage.done(cellpose_tuned_checkpoint=tuned, predictions_cellpose_tuned=found)
    for notebook in ("04_cells_to_coco", COORDINATES, CROPS):
        execute(notebook, config, folder)
    return folder


def kept_aside(drawn, folder: Path) -> Path:
    """Write the test image as labelme does, into a folder called test."""
    (image, cells), shapes = drawn.select("test")[0], []
    for number, (x, y, width, height) in enumerate(cells.boxes_xywh.tolist()):
        mask = io.BytesIO()
        Image.fromarray(cells.mask(number)[y : y + height, x : x + width].astype(np.uint8)).save(mask, "PNG")
        corners = [[x, y], [x + width - 1, y + height - 1]]
        label = drawn.classes[cells.class_ids[number] - 1]
        shapes.append(
            {
                "label": label,
                "shape_type": "mask",
                "points": corners,
                "mask": base64.b64encode(mask.getvalue()).decode(),
            }
        )
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    (folder / "test").mkdir(parents=True)
    content = {"shapes": shapes, "imageData": base64.b64encode(picture.getvalue()).decode()}
    content |= {"imageHeight": image.shape[0], "imageWidth": image.shape[1]}
    (folder / "test/0001.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_both_ways_are_found_named_and_compared(ran):
    run = Run(ran)
    scores = pd.read_csv(run.find("points")).set_index(["model", "split"])
    assert set(scores.index.unique(0)) == {"cellpose_tuned", "coordinates", "crops_coordinates", "crops_cellpose"}
    assert (scores["seconds"] > 0).all() and len(pd.read_csv(run.find("points_kept_aside"))) == 0
    for plain, named in (("coordinates", "crops_coordinates"), ("cellpose_tuned", "crops_cellpose")):
        rows, classed = (json.loads(run.find(f"predictions_{name}").read_text()) for name in (plain, named))
        assert [row["segmentation"] for row in rows] == [row["segmentation"] for row in classed]
        assert {row["category_id"] for row in classed} <= {1, 2}
        same = ["recall", "precision", "map_iou"]
        assert scores.loc[plain][same].equals(scores.loc[named][same])
        assert scores.loc[plain]["class_right"].isna().all() and scores.loc[named]["class_right"].notna().all()
    assert scores.loc["coordinates", "recall"].min() > 0.2


def test_06_scores_them_beside_the_others_and_they_predict_new_images(ran, config, drawn, tmp_path):
    run_dir = Path(shutil.copytree(ran, tmp_path / "run"))
    execute("06_evaluate_map_iou", config, run_dir)
    models = {row["model"] for row in json.loads(Run(run_dir).find("summary").read_text())["scores"]}
    assert {"coordinates", "crops_coordinates", "crops_cellpose", "cellpose_tuned"} <= models
    model = find_model(f"{run_dir}:coordinates")
    (found,) = model.load()([drawn.image(5)])
    assert model.backend == "coordinate" and len(found)


def test_a_folder_kept_aside_is_judged_by_the_models_as_they_are(ran, config, drawn, tmp_path):
    run_dir, folder = Path(shutil.copytree(ran, tmp_path / "run")), kept_aside(drawn, tmp_path / "kept")
    before = Run(run_dir).find("crop_classifier_checkpoint").read_bytes()
    execute(CROPS, config, run_dir, **{TEST_FOLDER: str(folder)})
    run = Run(run_dir)
    assert run.find("crop_classifier_checkpoint").read_bytes() == before, "nothing was trained again"
    aside = pd.read_csv(run.find("points_kept_aside")).set_index("model")
    scores = pd.read_csv(run.find("points")).query("split == 'test'").set_index("model")
    assert set(aside["split"]) == {"kept aside"} and set(aside["images"]) == {1}
    same = ["cells", "recall", "precision", "class_right"]
    assert aside.loc["crops_cellpose", same].equals(scores.loc["crops_cellpose", same]), "the same picture, read anew"


def test_the_shipped_configuration_runs_both_before_06():
    cfg = load_config(Path(__file__).parents[2] / "configs/coordinates.yaml")
    names = [book.name for book in notebooks_of(cfg)]
    assert names.index("21_coordinates") < names.index("22_crop_classifier") < names.index("06_evaluate_map_iou")
    assert names.index("05_train_maskrcnn") < names.index("22_crop_classifier")
