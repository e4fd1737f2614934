"""Trainings of two steps, for the tests of the backends."""

from __future__ import annotations

import csv
import importlib.util
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sam_cases import small_checkpoint

from cellkit.models import backend_module, backend_names, get_backend

EMPTY = np.zeros((96, 80, 3), np.uint8)

FEW = {
    "threshold": {},
    "cellpose_sam": {"flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15, "late_blocks": 1},
    "cellpose_unet": {
        "base": "scratch",
        "flow_threshold": 0.4,
        "cellprob_threshold": 0.0,
        "min_area_px": 15,
        "diameter_of": "batch",
    },
    "coordinate": {"outline": "both"},
    "maskrcnn_torchvision": {
        "start": "scratch",
        "freeze_backbone": False,
        "fpn_channels": 16,
        "score_threshold": 0.5,
        "nms_threshold": 0.5,
        "mask_threshold": 0.5,
        "min_area_px": 15,
    },
}

FEW["unet_border"] = {
    "encoder": "tu-resnet10t",
    "encoder_depth": 4,
    "decoder_width": 4,
    "border_weight": 1.0,
    "seed_threshold": 0.5,
    "cell_threshold": 0.5,
    "min_area_px": 15,
}
FEW["maskrcnn_detectron2"] = FEW["maskrcnn_torchvision"]

STEPS = {"steps": 2, "batch_size": 2, "crop_px": 64, "warmup_steps": 1, "eval_every": 2, "val_images": 1}


def lacks(name: str) -> str:
    """Return the package that a backend needs and that is not here; "" where it can be used. Only detectron2 may be missing."""
    missing = [one for one in backend_module(name).REQUIRES if importlib.util.find_spec(one) is None]
    assert set(missing) <= {"detectron2"}, missing
    return ", ".join(missing)


def each(*names: str) -> list:
    """Return backends to go through, all unless named; one whose package is missing is skipped, which is said."""
    skipped = lambda name: pytest.mark.skipif(bool(lacks(name)), reason=f"{lacks(name)} is not installed")  # noqa: E731
    return [pytest.param(name, marks=skipped(name)) for name in names or backend_names()]


@cache
def small_sam() -> str:
    """The path of random weights of a Cellpose-SAM small enough for a test."""
    return str(small_checkpoint(Path(tempfile.mkdtemp(prefix="small_sam")) / "small"))


def config_of(name: str, **changes):
    """The settings of a training of two steps."""
    if name == "cellpose_sam" and "base" not in changes:
        changes["base"] = small_sam()
    return get_backend(name).TrainSettings(**(FEW[name] | (STEPS if name != "threshold" else {}) | changes))


def history_of(checkpoint) -> list[dict[str, float]]:
    with open(checkpoint.parent / "history.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
