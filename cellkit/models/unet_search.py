"""How the U-Net's maps are best read: thresholds searched on labelled images, from maps that are computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.models.shared.fine_tuning import map_iou, search
from cellkit.models.shared.flows import masks_of
from cellkit.models.unet_maps import predict_maps

GRID = {"flow_threshold": (0.4, 0.8, 1.2, 0.0), "cellprob_threshold": (0.0, -1.0, -2.0, 1.0)}  # searched when not set
LOOSEST = {"flow_threshold": 0.0}  # no check of flows: every mask stays
DEFAULTS = {
    "diameter_px": None,
    "channels": "both",
    "flow_threshold": 0.4,
    "cellprob_threshold": 0.0,
    "min_area_px": 15,
}


def best_thresholds(
    network,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: dict,
    searched: Sequence[str] = tuple(GRID),
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Search thresholds one after the other by MAP IoU (kaggle) on labelled images; the network runs once per image.

    Give training images: validation images are to judge by.

    Parameters
    ----------
    settings : dict
        As for `segment_image`; the thresholds in it are where the search begins.
    searched : sequence of str
        Which of `GRID`; a threshold that was set stays.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.

    Returns
    -------
    dict
        The thresholds that were searched; of equal ones the first in `GRID`.
    """
    from cellkit.parallel import progress

    if not searched:
        return {}
    cached = [
        (predict_maps(network, image, settings["diameter_px"], settings["channels"]), truth)
        for image, truth in progress(pairs, "maps of training images")
    ]
    best = {key: settings[key] for key in (*GRID, "min_area_px")}
    if not any((maps[2] > min(GRID["cellprob_threshold"])).any() for maps, _ in cached):
        problem = f"no threshold is searched: the network finds no cell in {counted(len(pairs), 'training image')} at any of them"
        LOG.info(f"{problem}. {_other_start(settings)}")
        return {key: DEFAULTS[key] for key in searched}

    def score(key: str, value: float) -> float:
        return map_iou((truth, masks_of(maps, truth.shape, **{**best, key: value})) for maps, truth in cached)

    grid = {key: GRID[key] for key in searched}
    return search(score, grid, best, len(pairs), called, LOOSEST, _other_start(settings))


def unpromising(base: str, cells: int, images: int, settings: Mapping[str, Any]) -> str:
    """Return what to say of a base that finds no cell right before training, and what to try.

    Examples
    --------
    >>> print(unpromising("starter", 0, 4, {"diameter_px": 31.0, "channels": "both"}))
    before training, starter finds no cell in 4 validation images: training starts from nothing useful.
    Try another base (finetune.base: cyto3), finetune.diameter_px (now 31) or finetune.channels (now both).
    """
    what = "no cell" if not cells else f"{cells} objects and no cell right"
    return (
        f"before training, {base} finds {what} in {counted(images, 'validation image')}: training starts from nothing useful.\n"
        + _other_start(settings)
    )


def _other_start(settings: Mapping[str, Any]) -> str:
    return (
        f"Try another base (finetune.base: cyto3), finetune.diameter_px (now {settings['diameter_px']:.3g}) "
        f"or finetune.channels (now {settings['channels']})."
    )
