"""What a model lost of what it knew before it was adapted: scored beside the gate, and deciding nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellkit.cells.dataset import CellDataset
from cellkit.models.shared.diameter import diameter_of
from cellkit.models.shared.fine_tuning import map_iou
from cellkit.models.shared.inputs import CHANNELS
from cellkit.parallel import progress


def score_others(backend: ModuleType, checkpoints: Mapping[str, Path], others: CellDataset) -> dict[str, float]:
    """Return the MAP IoU of each model on cells of other kinds than it was adapted to, mean of images.

    A backend that can be told how large cells are is told so of each image; all else is read as the checkpoint says. An image
    that is empty in the channels that a model is shown, `nuclei` say, is shown there: what it knew is asked, not where it looks.

    Parameters
    ----------
    backend : module of cellkit.models
    checkpoints : mapping
        Model -> checkpoint.
    others : CellDataset
        Images with cells, e.g. of `cellkit.cells.drawn.others.draw_others`.

    Raises
    ------
    UserError
        A checkpoint that is missing or of another backend.
    """
    scores: dict[str, list[float]] = {name: [] for name in checkpoints}
    for k in progress(range(len(others)), "cells of other kinds"):
        image, truth = others[k]
        for name, path in checkpoints.items():
            model = backend.load(path, _at_size_of(backend, truth))
            (found,) = model([visible(image, model.settings.get("channels", "all"))])
            scores[name].append(map_iou([(truth, found)]))
    return {name: float(np.mean(each)) for name, each in scores.items()}


def visible(image: np.ndarray, channels: str) -> np.ndarray:
    """Return an image (H, W, 3) uint8 whose brightest colours stand in the first of some channels, if all of these are empty.

    Examples
    --------
    >>> red = np.array([[[9, 0, 0], [5, 0, 0]]], np.uint8)
    >>> visible(red, "nuclei")[0].tolist(), visible(red, "all") is red
    ([[9, 0, 9], [5, 0, 5]], True)
    """
    seen = list(CHANNELS.get(channels, CHANNELS["all"]))
    if np.ptp(image[..., seen], axis=(0, 1)).any():
        return image
    shown = image.copy()
    shown[..., seen[0]] = image.max(axis=2)
    return shown


def _at_size_of(backend: ModuleType, truth: Any) -> Any:
    """Return settings with the diameter of these cells, where the backend has such a setting."""
    is_told = "diameter_px" in backend.Settings.model_fields
    return backend.Settings(diameter_px=diameter_of([truth])) if is_told and len(truth) else None


def describe_others(scores: Mapping[str, float]) -> str:
    """Say what `score_others` found.

    Examples
    --------
    >>> describe_others({"base": 0.612, "tuned": 0.583})
    'on cells of other kinds: base 0.612, tuned 0.583 MAP IoU; this decides nothing'
    """
    each = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    return f"on cells of other kinds: {each} MAP IoU; this decides nothing"
