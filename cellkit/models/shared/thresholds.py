"""Thresholds that suit a model: searched on training images, since validation images are to judge by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.log import LOG

if TYPE_CHECKING:
    from cellkit.cells.dataset import CellDataset

SEARCHED_ON = 6  # training images


def images_to_search(train: CellDataset) -> tuple[list[tuple[np.ndarray, Instances]], str]:
    """Return the training images to search thresholds on, each with its truth, and what a score of them is called.

    Images whose labels a model proposed serve only where a person labelled none.
    """
    known = train.without_proposed() or train
    return [known[i] for i in spread(len(known), SEARCHED_ON)], known.compared_by("MAP IoU")


def search(
    score: Callable[[str, float], float],
    grid: Mapping[str, Sequence[float]],
    best: dict[str, Any],
    images: int,
    called: str,
    loosest: Mapping[str, float],
    remedy: str,
) -> dict[str, float]:
    """Set thresholds one after the other to the value that scores best, the first of equal ones; log what each scored.

    The loosest value of the first threshold is tried first: it keeps every cell that a stricter one keeps. Where it scores 0
    no cell is found right at any value, and the search ends with the first value of each.

    Parameters
    ----------
    score : callable
        (name, value) -> MAP IoU with that value and the others as `best` holds them.
    grid : mapping
        Name -> the values to try.
    best : dict
        Where the search begins; its thresholds are set on the way.
    images : int
        How many images the score is of, to be logged.
    called : str
        What the score is, to be logged.
    loosest : mapping
        Name -> the value that keeps most cells, of thresholds that have one.
    remedy : str
        What to do where no cell is found right.
    """
    from cellkit.parallel import progress

    order = {key: sorted(values, key=lambda value: value != loosest.get(key)) for key, values in grid.items()}
    scores: dict[str, dict[float, float]] = {key: {} for key in grid}
    for key, value in progress([(key, value) for key, values in order.items() for value in values], "thresholds"):
        scores[key][value] = score(key, value)
        last = len(scores[key]) == len(grid[key])
        if key == next(iter(grid)) and (last or value == loosest.get(key)) and not any(scores[key].values()):
            at = ", ".join(f"{one:g}" for one in scores[key])
            LOG.info(f"{key} {at}: no cell of {images} training images is right, so no threshold is searched. {remedy}")
            best |= {key: values[0] for key, values in grid.items()}
            break
        if last:
            best[key] = max(grid[key], key=scores[key].get)
            listed = ", ".join(f"{value:g}: {scores[key][value]:.3f}" for value in grid[key])
            LOG.info(f"{key} {best[key]:g}, by {called} on {images} training images ({listed})")
    return {key: best[key] for key in grid}


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` positions evenly spread over `count`; all of them for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()
