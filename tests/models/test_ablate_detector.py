"""The benchmark of a detector's steps: what is set, what is searched, and how rows are paired."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ablate_detector

from cellkit.cells.instances import Instances
from cellkit.models.maskrcnn_torchvision import TrainSettings
from cellkit.models.shared.detector_settings import DEFAULTS
from cellkit.models.shared.tiles import Boxes


@pytest.mark.parametrize("training", list(ablate_detector.TRAININGS))
def test_a_training_changes_what_it_names_and_searches_nothing(drawn, training):
    changes = ablate_detector.TRAININGS[training]
    config, base = (
        ablate_detector.settings_of(one, TrainSettings(diameter_px=12.0), Path("w"), 3, 40, drawn)
        for one in (changes, {})
    )
    keys = {{"average": "average_steps", "enlarged": "diameter_px"}.get(key, key) for key in changes}
    assert {key for key in type(config).model_fields if getattr(config, key) != getattr(base, key)} == keys
    assert (config.seed, config.steps, config.score_threshold, config.min_area_px) == (3, 40, 0.5, 15)
    assert config.diameter_px == 12.0 / changes.get("enlarged", 1)


@pytest.mark.parametrize("reading", list(ablate_detector.READINGS))
def test_every_reading_is_searched_and_scored(reading):
    labels = np.zeros((40, 60), int)
    labels[5:20, 5:20], labels[5:20, 30:45] = 1, 2
    truth = Instances.from_labels(labels)
    boxes = np.array([[5.0, 5, 20, 20], [30, 5, 45, 20], [6, 5, 21, 20]])
    raw = Boxes(boxes, np.array([0.9, 0.8, 0.3]), np.full((3, 28, 28), 0.95, np.float32))
    row = ablate_detector.scores_of([(raw, truth)] * 2, [(raw, truth)], DEFAULTS, reading)
    assert row["score"] > 0.9 and row["scores"].split() == [f"{row['score']:.4f}"]


def test_a_table_pairs_by_seed():
    keys = ("seed", "training", "reading", "scores")
    rows = [
        dict(zip(keys, one, strict=True)) | {"train_s": "9", "search_s": "1", "score": "0.5"}
        for one in [
            ("0", "base", "base", "0.5 0.7"), ("1", "base", "base", "0.4 0.6"),
            ("0", "base", "no score of masks", "0.4 0.7"), ("1", "base", "no score of masks", "0.3 0.6"),
            ("1", "weights averaged", "base", "0.6 0.6"),
        ]
    ]  # fmt: skip
    each = ablate_detector.paired(rows, "base", "no score of masks")
    assert np.concatenate(each).tolist() == pytest.approx([-0.1, 0.0, -0.1, 0.0]), "by seed, then by image"
    lines = list(ablate_detector.table(rows))
    over_images = "-0.6853 to +0.5853"  # Student's t of -0.1 and 0: -0.05 and 12.706 times 0.05
    assert lines[3].endswith(f"| -0.0500 | -0.0500 to -0.0500 | {over_images}, {over_images} |")
    assert "+0.1000" in lines[4] and len(lines) == 5
