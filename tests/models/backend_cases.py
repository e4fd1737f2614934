"""Trainings of two steps, for the tests of the backends."""

from __future__ import annotations

import csv

import numpy as np

from cellkit.models import get_backend

EMPTY = np.zeros((96, 80, 3), np.uint8)

FEW = {
    "threshold": {},
    "cellpose_unet": {
        "base": "scratch",
        "flow_threshold": 0.4,
        "cellprob_threshold": 0.0,
        "min_area_px": 15,
        "diameter_of": "batch",
    },
    "maskrcnn_torchvision": {
        "start": "scratch",
        "freeze_backbone": False,
        "fpn_channels": 16,
        "score_threshold": 0.5,
        "nms_threshold": 0.5,
    },
}

STEPS = {"steps": 2, "batch_size": 2, "crop_px": 64, "warmup_steps": 1, "eval_every": 2, "val_images": 1}


def config_of(name: str, **changes):
    """The settings of a training of two steps."""
    return get_backend(name).TrainSettings(**(FEW[name] | (STEPS if name != "threshold" else {}) | changes))


# ---- cellpose_unet -------------------------------------------------------------------------------------------------


def history_of(checkpoint) -> list[dict[str, float]]:
    with open(checkpoint.parent / "history.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
