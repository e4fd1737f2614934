"""The six notebooks with Cellpose-SAM, small: both ways of adapting it, killed once; and what it teaches the U-Net."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "models"))
from notebook_cases import execute
from sam_learnt import learnt

from cellkit.models.shared.flow_loss import FlowLoss
from cellkit.models.weights import load_tensors, read_card
from cellkit.run.folder import Run

CONFIG = """
classes: [HEK, N2a]
convert:
  source: drawn
  channels: {{nuclei: DAPI, cytoplasm: GFP}}
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  drawn: {{images_per_line: 4, mixed_images: 1, size_px: 128, diameter_px: 24, defect_images_per_line: 0, planes: 1}}
label: {{backend: cellpose_sam, model: "{base}", preview: 2}}
finetune:
  backend: cellpose_sam
  base: "{base}"
  folds: 2
  steps: 6
  batch_size: 2
  crop_px: 64
  eval_every: 3
  late_blocks: 1
  learning_rate: 0.003
  flow_threshold: 0.4
  cellprob_threshold: 0.0
  min_area_px: 15
maskrcnn:
  start: scratch
  freeze_backbone: false
  fpn_channels: 16
  steps: 1
  eval_every: 1
  batch_size: 1
  crop_px: 64
  val_images: 1
  score_threshold: 0.5
  nms_threshold: 0.5
evaluate: {{bootstrap_samples: 20}}
"""
U_NET = """
finetune:
  backend: cellpose_unet
  diameter_px: 24
  folds: 2
  steps: 2
  batch_size: 1
  crop_px: 64
  eval_every: 2
  flow_threshold: 0.4
  cellprob_threshold: 0.0
  min_area_px: 15
maskrcnn:"""
LABEL, TUNE, COCO, DETECT, SCORE = (
    "02_label_with_cellpose", "03_finetune_cellpose", "04_cells_to_coco", "05_train_maskrcnn", "06_evaluate_map_iou"
)  # fmt: skip


@pytest.fixture(scope="module")
def config(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    path = folder / "sam.yaml"
    pairs = [(image, cells.paint()) for image, cells in (drawn[k] for k in range(len(drawn)))]
    path.write_text(CONFIG.format(base=learnt(folder / "base", 100, pairs)))
    return path


@pytest.fixture(scope="module")
def converted(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sam"
    execute("01_convert", config, folder)
    return folder


@pytest.fixture(scope="module")
def labelled(config, converted, tmp_path_factory) -> Path:
    folder = copied(converted, tmp_path_factory.mktemp("labelled") / "sam")
    execute(LABEL, config, folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


class Killed(BaseException):
    pass


def tuned(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_tensors(Run(run_dir).find("cellpose_tuned_checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["late", "lora"])
def test_six_notebooks_killed_once_end_with_the_same_weights(way, config, labelled, tmp_path, monkeypatch):
    """What follows 03 reads a plain network and its predictions, whichever way made them: it is run for one."""
    pytest.importorskip("peft") if way == "lora" else None
    run_dir, whole = (copied(labelled, tmp_path / name) for name in ("run", "whole"))
    execute(TUNE, config, whole, **{"finetune.way": way})
    drawn, steps = FlowLoss.drawn, []

    def dies(self, step):
        steps.append(step)
        if len(steps) == 8:  # in the whole run, after those that hold parts back
            raise Killed
        return drawn(self, step)

    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(FlowLoss, "drawn", dies)
    with pytest.raises(Killed):
        execute(TUNE, config, run_dir, **{"finetune.way": way})
    assert steps[-1] > 0, "in the middle of a training"
    monkeypatch.setattr(FlowLoss, "drawn", drawn)
    execute(TUNE, config, run_dir, **{"finetune.way": way})
    first, second = tuned(whole), tuned(run_dir)
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
    run = Run(run_dir)
    card = read_card(run.find("cellpose_tuned_checkpoint"))
    assert card.backend == "cellpose_sam" and card.metrics["adapted"]["way"] == way
    found = [Run(one).find("predictions_cellpose_tuned").read_bytes() for one in (whole, run_dir)]
    assert found[0] == found[1] and json.loads(found[0])
    if way == "lora":
        return
    for stage in (COCO, DETECT, SCORE):
        execute(stage, config, run_dir)
    scores = pd.read_csv(run.find("scores"))
    assert {"threshold", "cellpose_base", "cellpose_tuned", "cellpose_classes", "maskrcnn"} == set(scores["model"])
    assert "Cellpose, tuned" in run.find("report").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_student_is_shown_beside_its_teacher_and_its_base(config, converted, tmp_path):
    run_dir, own = copied(converted, tmp_path / "run"), tmp_path / "sam_to_unet.yaml"
    own.write_text(re.sub(r"\nfinetune:.*?\nmaskrcnn:", U_NET, config.read_text(), flags=re.S))
    for stage in (LABEL, TUNE, COCO, SCORE):
        execute(stage, own, run_dir, **{"label.teacher": True, "label.use": "truth"})
    run = Run(run_dir)
    labels = pd.read_csv(run.find("labels_table")).merge(pd.read_csv(run.find("records")), on="image_id")
    assert set(labels.loc[labels["split"] == "train", "made_by"]) == {"proposed"}
    assert set(labels.loc[labels["split"] != "train", "made_by"]) == {"truth"}
    judges = set(json.loads(run.find("decision").read_text())["judges"])
    assert judges and judges == set(labels.loc[labels["split"] == "val", "image_id"]), "proposals judge nothing"
    scores = pd.read_csv(run.find("scores"))
    assert {"teacher", "cellpose_base", "cellpose_tuned"} <= set(scores["model"])
    assert read_card(run.find("cellpose_tuned_checkpoint")).backend == "cellpose_unet"
    report = run.find("report").read_text(encoding="utf-8")
    assert all(name in report for name in ("Teacher", "Cellpose, base", "Cellpose, tuned"))
    assert json.loads(run.find("summary").read_text())["best"] != "teacher"
