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
    called: str = "MAP IoU",
) -> dict[str, float]:
    """Set thresholds one after the other to the value that scores best, the first of equal ones; say what each scored.

    Parameters
    ----------
    score : callable
        (name, value) -> MAP IoU with that value and the others as `best` says.
    grid : mapping
        Name -> the values to try.
    best : dict
        Where the search begins; its thresholds are set on the way.
    images : int
        How many images the score is of, to be said.
    called : str
        What the score is, to be said.
    """
    from cellkit.parallel import progress

    tried: dict[str, dict[float, float]] = {key: {} for key in grid}
    for key, value in progress([(key, value) for key, values in grid.items() for value in values], "thresholds"):
        tried[key][value] = score(key, value)
        if len(tried[key]) == len(grid[key]):
            best[key] = max(tried[key], key=tried[key].get)
            told = ", ".join(f"{value:g}: {found:.3f}" for value, found in tried[key].items())
            LOG.info(f"{key} {best[key]:g}, by {called} on {images} training images ({told})")
            if not any(tried[key].values()):
                LOG.info(
                    f"no threshold of {', '.join(grid)} finds a cell right: train longer, or start from another base"
                )
                break
    return {key: best[key] for key in grid}


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` positions evenly spread over `count`; all of them for 0."""
    if not wanted or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()
