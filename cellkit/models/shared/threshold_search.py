"""How the maps of a network are best read, searched on labelled images: all thresholds together, from maps computed once.

The network runs once per image. Flows are followed once per threshold of the cell probability; the flow error and the area of
each mask are measured once, and every combination of thresholds is a choice among these masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.errors import counted
from cellkit.log import LOG
from cellkit.models.shared.fine_tuning import nearest_to_default
from cellkit.models.shared.flows import flow_errors, follow, outline, without
from cellkit.scores.iou import Overlaps, overlaps, scorable
from cellkit.scores.kaggle import kaggle
from cellkit.settings import as_yaml

THRESHOLDS: dict[str, tuple] = {  # what may be combined, the default first; least areas are shares of the median cell's
    "flow_threshold": (0.4, 0.8, 1.2, 0.0),
    "cellprob_threshold": (0.0, -1.0, -2.0, 1.0),
    "min_area_px": (0.025, 0.05, 0.1, 0.15, 0.2, 0.3),
}
LEAST_AREA_PX = 15  # the default
HARDLY = 4  # times the least area: where the median labelled cell is smaller, the least area is too


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


def grid_of(
    settings: Mapping[str, Any],
    searched: Sequence[str],
    truths: Sequence[Instances],
    grid: Mapping[str, tuple] = THRESHOLDS,
) -> dict[str, tuple]:
    """Return the values of each setting to combine, the default first; of one that is not searched the value it has.

    Examples
    --------
    >>> truths = [Instances.from_labels(np.kron([[1, 2]], np.ones((20, 20), int)))]
    >>> grid_of({"flow_threshold": 0.4, "cellprob_threshold": 0.0}, ["min_area_px"], truths)["min_area_px"]
    (15, 10, 20, 40, 60, 80, 120)
    """
    areas = np.concatenate([truth.areas_px for truth in truths])
    shares = [round(float(np.median(areas)) * share) for share in grid["min_area_px"]] if areas.size else []
    grid = {**grid, "min_area_px": tuple(dict.fromkeys([LEAST_AREA_PX, *shares]))}
    return {key: values if key in searched else (settings[key],) for key, values in grid.items()}


def least_area_of(truths: Sequence[Instances]) -> int:
    """Return the least area in px to read cells with while none is set: 15 px, less where labelled cells are hardly larger.

    Examples
    --------
    >>> tiny = Instances.from_labels(np.kron([[1, 2]], np.ones((3, 4), int)))
    >>> large = Instances.from_labels(np.kron([[1, 2]], np.ones((20, 20), int)))
    >>> least_area_of([tiny]), least_area_of([large]), least_area_of([])
    (1, 15, 15)
    """
    areas = np.concatenate([truth.areas_px for truth in truths]) if len(truths) else np.zeros(0)
    middle_px = float(np.median(areas)) if areas.size else np.inf
    shares = THRESHOLDS["min_area_px"]
    return LEAST_AREA_PX if middle_px >= HARDLY * LEAST_AREA_PX else max(1, round(middle_px * min(shares)))


def search_maps(
    pairs: Sequence[tuple[np.ndarray, Instances]],
    grid: Mapping[str, tuple],
    searched: Sequence[str],
    score_of: Callable[[np.ndarray, Instances], np.ndarray],
    maps_of: Callable[[np.ndarray], np.ndarray],
    called: str,
    remedy: str,
) -> Searched:
    """Search how a network's maps are best read, by MAP IoU (kaggle) on labelled images.

    Of all combinations the one nearest to the defaults is taken that is not clearly worse than the best, see
    `cellkit.models.shared.fine_tuning.nearest_to_default`.

    Parameters
    ----------
    grid : mapping
        Setting -> its values, the default first.
    searched : sequence of str
        Which of them are not set.
    score_of : callable
        Image and truth -> MAP IoU at every combination, an axis for each setting of the grid.
    maps_of : callable
        Image -> its maps, (3, h, w) float32.
    called : str
        What the search is said to go by: agreement, where the labels are a model's proposals.
    remedy : str
        What to try where the network finds no cell right.
    """
    from cellkit.parallel import progress

    begun = time.monotonic()
    if problem := _hopeless(pairs, grid, maps_of):
        LOG.info(f"{problem}, so nothing is searched. {remedy}")
        return Searched({key: grid[key][0] for key in searched}, {})
    scores = np.stack([score_of(image, truth) for image, truth in progress(pairs, "search on images")])
    return choose(scores, grid, searched, sum(len(truth) for _, truth in pairs), called, time.monotonic() - begun)


def choose(
    scores: np.ndarray,
    grid: Mapping[str, tuple],
    searched: Sequence[str],
    cells: int,
    called: str,
    seconds: float,
) -> Searched:
    """Return the settings to take of a grid, by the scores of images at every combination; and log what they gain.

    Parameters
    ----------
    scores : (images, ...) float64
        Each further axis is a setting of the grid.
    cells : int
        In these images.
    seconds : float
        What the search took, to be logged.
    """
    place = nearest_to_default(scores)
    found = {key: values[k] for (key, values), k in zip(grid.items(), place, strict=True)}
    card = _summary(scores, grid, place, searched) | {"images": len(scores), "cells": cells}
    _log(card, called, seconds)
    return Searched({key: found[key] for key in searched}, card)


def score_maps(
    maps: np.ndarray,
    truth: Instances,
    flow_thresholds: Sequence[float],
    cellprob_thresholds: Sequence[float],
    min_areas_px: Sequence[int],
    device: Any = "cpu",
) -> np.ndarray:
    """Return the MAP IoU of an image at every combination of thresholds: what `masks_of` finds there, against the truth.

    Parameters
    ----------
    maps : (3, h, w) float32
        Flow y, flow x and cell probability (logit), at network scale.
    device : torch.device or str
        As for `masks_of`.

    Returns
    -------
    (F, C, A) float64
    """
    scores = np.zeros((len(flow_thresholds), len(cellprob_thresholds), len(min_areas_px)))
    for c, cellprob in enumerate(cellprob_thresholds):
        labels = follow(maps, cellprob, device)
        errors = flow_errors(labels, maps, device) if any(flow_thresholds) else np.zeros(labels.max())
        seen: dict[bytes, Overlaps] = {}  # several thresholds often drop the same masks
        for f, flow in enumerate(flow_thresholds):
            bad = errors > flow if flow else np.zeros(len(errors), bool)
            if bad.tobytes() not in seen:
                found = outline(without(labels, bad), maps[2], truth.shape, cellprob)
                seen[bad.tobytes()] = overlaps(truth, scorable(truth, found))
            pairs = seen[bad.tobytes()]
            every = np.ones(pairs.n_truth, bool)
            for a, least in enumerate(min_areas_px):
                scores[f, c, a] = kaggle([pairs.select(every, pairs.found_areas_px >= least)], bootstrap=0)["score"]
    return scores


def _hopeless(pairs: Sequence, grid: Mapping[str, Sequence], maps_of: Callable[[np.ndarray], np.ndarray]) -> str:
    """Return why no search is worth its time: no cell is found at all, or none right; else "".

    That is, where every mask is kept, at the default threshold of the cell probability and at the lowest.
    """
    nothing, cellprobs = True, dict.fromkeys([grid["cellprob_threshold"][0], min(grid["cellprob_threshold"])])
    for image, truth in pairs:
        maps = maps_of(image)
        nothing = nothing and not (maps[2] > min(grid["cellprob_threshold"])).any()
        if len(truth) and any(score_maps(maps, truth, (0.0,), (cellprob,), (0,)).any() for cellprob in cellprobs):
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
