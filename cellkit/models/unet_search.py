"""How the U-Net's maps are best read: the thresholds, and whose diameter an image is scaled by, searched on labelled images.

The network runs once per image and diameter; the rest is as in `cellkit.models.shared.threshold_search`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.models.map_cache import MapCache
from cellkit.models.shared.inputs import NORMALISE
from cellkit.models.shared.threshold_search import THRESHOLDS, Searched, grid_of, score_maps, search_maps
from cellkit.models.shared.thresholds import AS_CELLPOSE
from cellkit.models.unet_maps import further_passes, predict_maps

GRID: dict[str, tuple] = {"diameter_of": ("batch", "image"), **THRESHOLDS}
SEARCHED = tuple(THRESHOLDS)  # when not set; whose diameter too, where the images' differ
DEFAULTS = {"diameter_px": None, "channels": "both", "normalise": NORMALISE, "diameter_of": "batch", **AS_CELLPOSE}


def search_settings(
    network,
    pairs: Sequence[tuple[np.ndarray, Instances]],
    settings: Mapping[str, Any],
    searched: Sequence[str] = SEARCHED,
    called: str = "MAP IoU",
    cache: MapCache | None = None,
) -> Searched:
    """Search how a network's maps are best read, by MAP IoU (kaggle) on labelled images.

    Give training images: validation images are to judge by. Of all combinations the one nearest to the defaults is taken
    that is not clearly worse than the best, see `cellkit.models.shared.fine_tuning.nearest_to_default`.

    Parameters
    ----------
    settings : mapping
        As for `segment_image`; what is not searched stays as it is there.
    searched : sequence of str
        Which of `GRID`; whose diameter an image is scaled by has the default that is in `settings`.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.
    """
    if not searched:
        return Searched({}, {})
    diameters = (settings["diameter_of"], *(one for one in GRID["diameter_of"] if one != settings["diameter_of"]))
    grid = grid_of(settings, searched, [truth for _, truth in pairs], GRID | {"diameter_of": diameters})
    shown = (settings["diameter_px"], settings["channels"], settings["normalise"], cache)
    return search_maps(
        pairs,
        grid,
        searched,
        lambda image, truth: score_image(network, image, truth, settings, grid, cache),
        lambda image: predict_maps(network, image, *shown),
        called,
        other_start(settings),
    )


def score_image(
    network,
    image: np.ndarray,
    truth: Instances,
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence],
    cache: MapCache | None = None,
) -> np.ndarray:
    """Return the MAP IoU of one image at every combination of a grid, an axis for each of its settings."""
    shown = (settings["channels"], settings["normalise"], cache)
    diameters, *thresholds = grid.values()
    first = predict_maps(network, image, settings["diameter_px"], *shown)
    scores = {"batch": score_maps(first, truth, *thresholds)} if "batch" in diameters else {}
    if "image" in diameters:
        last = further_passes(network, image, first, settings["diameter_px"], *shown)
        same = last is first and scores
        scores["image"] = scores["batch"] if same else score_maps(last, truth, *thresholds)
    return np.stack([scores[diameter_of] for diameter_of in diameters])


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
        + other_start(settings)
    )


def other_start(settings: Mapping[str, Any]) -> str:
    """Return what to try where a network finds no cell right."""
    return (
        f"Try another base (finetune.base: cyto3), finetune.diameter_px (now {settings['diameter_px']:.3g}) "
        f"or finetune.channels (now {settings['channels']})."
    )
