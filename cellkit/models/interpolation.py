"""Between the base and the tuned weights: how far to go is chosen, and a small step may be better than the whole one.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.models import weights

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the base to the tuned weights
NO_CHECK_AT_0 = ("flow_threshold",)  # settings whose 0 is the loosest of all, not the strictest


def steps_between(base: Path | None, tuned: Path) -> tuple[float, ...]:
    """Return how far from base to tuned one can go: all of `STEPS`, or the ends where weights do not fit, or the tuned alone.

    Parameters
    ----------
    base : Path or None
        None: the model was not tuned from anything.
    """
    if base is None:
        return STEPS[-1:]
    if Path(base).suffix != ".safetensors" or Path(tuned).suffix != ".safetensors":
        return STEPS[:: len(STEPS) - 1]
    shapes = [weights.shapes_in(path) for path in (base, tuned)]
    return STEPS if shapes[0] == shapes[1] else STEPS[:: len(STEPS) - 1]


def interpolate(base: Path, tuned: Path, step: float, to: Path) -> Path:
    """Write the weights that lie between two checkpoints of one network, read as lies between them.

    Numbers are averaged, the running means and variances of batch normalisation among them, and those in the card by which
    cells are read, as thresholds; counts, and what is no number in the card, are those of `tuned`.

    Parameters
    ----------
    step : float
        0 = base, 1 = tuned.
    to : Path
        ``.safetensors``; the card beside it is that of `tuned` but for its numbers, and says how far the step was.

    Notes
    -----
    Averages of weights from separate runs need statistics estimated anew (Izmailov et al., UAI 2018). Whether a step between a
    base and what was tuned from it does is not settled: three test images of the drawn cells score 0.671, 0.685 and 0.709 at the
    steps 0.25, 0.5 and 0.75 with averaged statistics, 0.666, 0.678 and 0.695 with statistics of 24 crops, but statistics of
    so few crops also score less at the ends, where nothing is mixed.

    A step read with the thresholds of the whole one is read too strictly or too loosely: three images of two_lines taught
    (``starter_light``, 80 steps), 14 test images score 0.640, 0.643 and 0.644 at these steps, 0.679, 0.666 and 0.656 with
    thresholds in between, and 0.677 and 0.637 at the ends.
    """
    ours, theirs = weights.load_tensors(base), weights.load_tensors(tuned)
    card = weights.read_card(tuned)
    between = {
        name: (ours[name] + step * (value - ours[name])).to(value.dtype) if value.is_floating_point() else value
        for name, value in theirs.items()
    }
    metrics = card.metrics | {"step_from_base": step}
    config = settings_between(weights.read_card(base).config, card.config, step)
    return weights.save_checkpoint(
        to, between, card.backend, classes=card.classes, config=config, metrics=metrics, licence=card.licence
    )


def settings_between(ours: Mapping[str, Any], theirs: Mapping[str, Any], step: float) -> dict[str, Any]:
    """Return the second of two settings with its numbers, also those in mappings, so far between them; whole ones stay whole.

    Where one of them checks flows and the other does not (0), or one takes each image's own diameter and the other one for all,
    nothing lies between: that of the nearer end is taken.

    Examples
    --------
    >>> base, tuned = {"diameter_px": 30.0, "min_area_px": 15}, {"diameter_px": 40.0, "min_area_px": 30, "channels": "both"}
    >>> settings_between(base, tuned, 0.25)
    {'diameter_px': 32.5, 'min_area_px': 19, 'channels': 'both'}
    >>> [settings_between({"flow_threshold": 0.0}, {"flow_threshold": 0.4}, step)["flow_threshold"] for step in (0.25, 0.5)]
    [0.0, 0.4]
    >>> [settings_between({"diameter_of": "batch"}, {"diameter_of": "image"}, step)["diameter_of"] for step in (0.25, 0.5)]
    ['batch', 'image']
    """
    between = dict(theirs)
    for key, value in theirs.items():
        other = ours.get(key, "batch" if key == "diameter_of" else None)  # cards of before had one diameter for all
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            between[key] = settings_between(other, value, step)
        elif key == "diameter_of" or (key in NO_CHECK_AT_0 and 0 in (value, other)):
            between[key] = value if step >= 0.5 or other is None else other
        elif type(value) in (int, float) and type(other) in (int, float) and other != value:
            number = other + step * (value - other)
            between[key] = round(number) if isinstance(value, int) and isinstance(other, int) else number
    return between


def best_step(scores: np.ndarray) -> int:
    """Return the column with the highest mean score; of equal ones the smaller step away from the base.

    Parameters
    ----------
    scores : (images, steps) float

    Examples
    --------
    >>> best_step(np.array([[0.5, 0.7, 0.6], [0.5, 0.5, 0.6]]))
    1
    """
    return int(np.round(scores.mean(axis=0), 9).argmax()) if scores.size else scores.shape[1] - 1


def nested_steps(scores: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Choose the step of each image by the images of the other folds: it does not choose what it judges.

    Parameters
    ----------
    scores : (images, steps) float
    fold : (images,) int

    Returns
    -------
    (images,) int
        Columns of `scores`.

    Examples
    --------
    >>> nested_steps(np.array([[0.5, 0.9], [0.5, 0.4], [0.5, 0.4]]), np.arange(3))
    array([0, 1, 1])
    """
    return np.array([best_step(scores[fold != one]) for one in fold], int)
