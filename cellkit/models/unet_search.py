"""How the U-Net's maps are best read, searched on labelled images: all settings together, from maps computed once.

The network runs once per image and diameter. Flows are followed once per threshold of the cell probability;
the flow error and the area of each mask are measured once, and every combination of thresholds is a choice among these masks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.models.map_cache import MapCache
from cellkit.models.shared.fine_tuning import nearest_to_default
from cellkit.models.shared.flows import flow_errors, follow, outline, without
from cellkit.models.shared.inputs import NORMALISE
from cellkit.models.unet_maps import FIRST_PASS, predict_maps, second_pass
from cellkit.scores.iou import Overlaps, overlaps
from cellkit.scores.kaggle import kaggle
from cellkit.settings import as_yaml

GRID: dict[str, tuple] = {  # what may be combined, the default first; least areas are shares of the median cell's
    "diameter_of": ("batch", "image"),
    "flow_threshold": (0.4, 0.8, 1.2, 0.0),
    "cellprob_threshold": (0.0, -1.0, -2.0, 1.0),
    "min_area_px": (0.025, 0.05, 0.1, 0.15, 0.2, 0.3),
}
SEARCHED = (
    "flow_threshold",
    "cellprob_threshold",
    "min_area_px",
)  # when not set; the others gain nothing: bench_search
DEFAULTS = {"diameter_px": None, "channels": "both", "normalise": NORMALISE, "diameter_of": "batch", **FIRST_PASS}


class Searched(NamedTuple):
    """What a search found.

    Parameters
    ----------
    settings : dict
        The settings that were searched, each with its value.
    card : dict
        What the card is to say of the search: how many images and cells, the score at the defaults and at what was found,
        and what each setting gained; empty where nothing was searched.
    """

    settings: dict[str, Any]
    card: dict[str, Any]


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
        Which of `GRID`.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.
    """
    from cellkit.parallel import progress

    if not searched:
        return Searched({}, {})
    begun = time.monotonic()
    truths = [truth for _, truth in pairs]
    grid = grid_of(settings, searched, truths)
    if problem := _hopeless(network, pairs, settings, grid, cache):
        LOG.info(f"{problem}, so nothing is searched. {other_start(settings)}")
        return Searched({key: DEFAULTS[key] for key in searched}, {})
    scores = np.stack([
        score_image(network, image, truth, settings, grid, cache) for image, truth in progress(pairs, "search on images")
    ])  # fmt: skip
    place = nearest_to_default(scores)
    found = {key: values[k] for (key, values), k in zip(grid.items(), place, strict=True)}
    card = _summary(scores, grid, place, searched) | {"images": len(pairs), "cells": sum(map(len, truths))}
    _log(card, called, time.monotonic() - begun)
    return Searched({key: found[key] for key in searched}, card)


def grid_of(settings: Mapping[str, Any], searched: Sequence[str], truths: Sequence[Instances]) -> dict[str, tuple]:
    """Return the values of each setting to combine, the default first; of one that is not searched the value it has.

    Examples
    --------
    >>> truths = [Instances.from_labels(np.kron([[1, 2]], np.ones((20, 20), int)))]
    >>> grid_of(DEFAULTS, ["min_area_px"], truths)["min_area_px"]
    (15, 10, 20, 40, 60, 80, 120)
    """
    areas = np.concatenate([truth.areas_px for truth in truths])
    shares = [round(float(np.median(areas)) * share) for share in GRID["min_area_px"]] if areas.size else []
    grid = {**GRID, "min_area_px": tuple(dict.fromkeys([DEFAULTS["min_area_px"], *shares]))}
    return {key: values if key in searched else (settings[key],) for key, values in grid.items()}


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
        second = second_pass(network, image, first, settings["diameter_px"], *shown)
        same = second is first and scores
        scores["image"] = scores["batch"] if same else score_maps(second, truth, *thresholds)
    return np.stack([scores[diameter_of] for diameter_of in diameters])


def score_maps(
    maps: np.ndarray,
    truth: Instances,
    flow_thresholds: Sequence[float],
    cellprob_thresholds: Sequence[float],
    min_areas_px: Sequence[int],
) -> np.ndarray:
    """Return the MAP IoU of an image at every combination of thresholds: what `masks_of` finds there, against the truth.

    Parameters
    ----------
    maps : (3, h, w) float32
        Flow y, flow x and cell probability (logit), at network scale.

    Returns
    -------
    (F, C, A) float64
    """
    scores = np.zeros((len(flow_thresholds), len(cellprob_thresholds), len(min_areas_px)))
    for c, cellprob in enumerate(cellprob_thresholds):
        labels = follow(maps, cellprob)
        errors = flow_errors(labels, maps) if any(flow_thresholds) else np.zeros(labels.max())
        seen: dict[bytes, Overlaps] = {}  # several thresholds often drop the same masks
        for f, flow in enumerate(flow_thresholds):
            bad = errors > flow if flow else np.zeros(len(errors), bool)
            if bad.tobytes() not in seen:
                seen[bad.tobytes()] = overlaps(truth, outline(without(labels, bad), maps[2], truth.shape, cellprob))
            pairs = seen[bad.tobytes()]
            every = np.ones(pairs.n_truth, bool)
            for a, least in enumerate(min_areas_px):
                scores[f, c, a] = kaggle([pairs.select(every, pairs.found_areas_px >= least)], bootstrap=0)["score"]
    return scores


def _hopeless(network, pairs, settings: Mapping[str, Any], grid: Mapping[str, Sequence], cache: MapCache | None) -> str:
    """Return why no search is worth its time: no cell is found at all, or none right where every mask is kept; else ""."""
    nothing = True
    for image, truth in pairs:
        shown = (settings["channels"], settings["normalise"], cache)
        maps = predict_maps(network, image, settings["diameter_px"], *shown)
        nothing = nothing and not (maps[2] > min(grid["cellprob_threshold"])).any()
        if score_maps(maps, truth, (0.0,), grid["cellprob_threshold"][:1], (0,)).any():
            return ""
    return f"the network finds no cell{'' if nothing else ' right'} in {counted(len(pairs), 'training image')}"


def _summary(scores: np.ndarray, grid: Mapping[str, Sequence], place: Sequence[int], searched: Sequence[str]) -> dict:
    """Return what the card says of a search: the scores, and of each setting what would be lost without it."""
    mean = scores.mean(axis=0)
    gains: dict[str, dict[str, Any]] = {}
    for axis, key in enumerate(grid):
        if key in searched:
            back = tuple(0 if k == axis else at for k, at in enumerate(place))
            along = mean[tuple(slice(None) if k == axis else at for k, at in enumerate(place))]
            best = int(along.argmax())
            gains[key] = {
                "value": grid[key][place[axis]],
                "default": grid[key][0],
                "gain": round(float(mean[tuple(place)] - mean[back]), 4),
                "best": grid[key][best],
                "best_gain": round(float(along[best] - mean[back]), 4),
            }
    at_defaults, at_found = (round(float(mean[tuple(at)]), 4) for at in ([0] * mean.ndim, place))
    return {"score_at_defaults": at_defaults, "score": at_found, "settings": gains}


def _log(card: Mapping[str, Any], called: str, seconds: float) -> None:
    """Log a search: a line in all, and one for each setting."""
    of = f"{counted(card['images'], 'training image')} ({counted(card['cells'], 'cell')})"
    scores = f"{card['score']:.3f}, {card['score_at_defaults']:.3f} at the defaults"
    LOG.info(f"settings searched by {called} on {of}: {scores}; {seconds:.0f} s")
    for key, told in card["settings"].items():
        if told["value"] != told["default"]:
            LOG.info(f"{key} {as_yaml(told['value'])}, not {as_yaml(told['default'])}: {told['gain']:+.3f}")
        else:
            other = f"; {as_yaml(told['best'])} would be {told['best_gain']:+.3f}, not clear" * (told["best_gain"] > 0)
            LOG.info(f"{key} {as_yaml(told['value'])}, the default{other}")


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
