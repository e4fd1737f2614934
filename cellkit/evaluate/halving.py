"""Successive halving: many settings tried with few steps, the better half of them with twice as many, until two are left.

Jamieson and Talwalkar 2016, Proc. Machine Learning Research 51, 240-248 (fixed budget, eta = 2). Each trial of a rung is trained
from the start: a learning rate that falls along a cosine to the end has no state that a longer training could go on from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellkit.errors import UserError

PARTS = 4  # of the training images one is held back to compare trials by, where no validation image chooses


@dataclass(frozen=True)
class Trial:
    """Settings to try: its number, from 0 (the configuration as it is), and what it changes of the configuration."""

    number: int
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a trial scored in a rung: the share of the whole training's steps, MAP IoU of images, and whether it goes on."""

    trial: Trial
    rung: int
    share: float
    score: float
    goes_on: bool


def rungs_of(trials: int) -> list[tuple[int, float]]:
    """Return how many trials each rung has, and the share of the steps that each of them is trained for.

    Examples
    --------
    >>> rungs_of(8), rungs_of(5), rungs_of(1)
    ([(8, 0.25), (4, 0.5), (2, 1.0)], [(5, 0.25), (3, 0.5), (2, 1.0)], [(1, 1.0)])
    """
    counts = [trials]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    return [(count, 2.0 ** (k + 1 - len(counts))) for k, count in enumerate(counts)]


def cost_of(trials: int) -> float:
    """Return what a search costs, in whole trainings.

    Examples
    --------
    >>> cost_of(8), cost_of(4), cost_of(2)
    (6.0, 4.0, 2.0)
    """
    return sum(count * share for count, share in rungs_of(trials))


def combinations_of(over: Mapping[str, Sequence[Any]], base: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return every combination of values but that which the configuration has already.

    Examples
    --------
    >>> combinations_of({"maskrcnn.steps": [10, 20]}, {"maskrcnn.steps": 20})
    [{'maskrcnn.steps': 10}]
    """
    combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    return [one for one in combinations if one != base]


def trials_of(
    over: Mapping[str, Sequence[Any]], budget: float, seed: int = 0, base: Mapping[str, Any] | None = None
) -> list[Trial]:
    """Return the trials of a search: the configuration as it is, and settings of the grid, as many as the budget allows.

    Parameters
    ----------
    over : mapping
        Dotted key -> the values to try; every combination is a trial.
    budget : float
        Most that the search may cost, in whole trainings.
    seed : int
        Draws the combinations that are tried, where the budget does not allow all.
    base : mapping, optional
        What the configuration says of these keys; the combination that says the same is not tried twice.

    Raises
    ------
    UserError
        Nothing to try, or a budget below two trainings: two trials are the least that can be compared.

    Examples
    --------
    >>> [dict(trial.changes) for trial in trials_of({"maskrcnn.steps": [10, 20]}, 4)]
    [{}, {'maskrcnn.steps': 10}, {'maskrcnn.steps': 20}]
    """
    combinations = combinations_of(over, base)
    if not over or not combinations:
        raise UserError("there is nothing to search over", "give --over KEY=VALUE,VALUE, once for each setting")
    if not budget >= cost_of(2):
        raise UserError(f"a budget of {budget:g} whole trainings", f"give {cost_of(2):g} or more")
    count = len(combinations) + 1
    while cost_of(count) > budget:
        count -= 1
    chosen = np.sort(np.random.default_rng(seed).permutation(len(combinations))[: count - 1])
    return [Trial(0, {}), *(Trial(k + 1, combinations[k]) for k in chosen.tolist())]


def successive_halving(
    trials: Sequence[Trial], score_at: Callable[[Trial, int, float], float], at_once: bool = False
) -> list[Result]:
    """Train all trials with few steps, the better half with twice as many, and so on; return all that was scored.

    Of equal scores the earlier trial goes on.

    Parameters
    ----------
    trials : list of Trial
    score_at : callable
        (trial, rung, share of the whole training's steps) -> MAP IoU of images that neither taught nor will judge.
    at_once : bool
        All trials are trained whole, and none is dropped: for what is not trained step by step.

    Returns
    -------
    list of Result
        Rung by rung, in each the best first; of the last rung the first goes on, and is the best of all.

    Examples
    --------
    >>> found = successive_halving([Trial(k, {}) for k in range(4)], lambda trial, rung, share: trial.number * share)
    >>> [(one.trial.number, one.rung, one.score, one.goes_on) for one in found][:3]
    [(3, 1, 1.5, True), (2, 1, 1.0, True), (1, 1, 0.5, False)]
    """
    results, left = [], list(trials)
    rungs = [(len(left), 1.0)] if at_once else rungs_of(len(left))
    for rung, (_, share) in enumerate(rungs, 1):
        scored = [(score_at(trial, rung, share), trial) for trial in left]
        scored.sort(key=lambda one: (-one[0], one[1].number))
        stay = rungs[rung][0] if rung < len(rungs) else 1
        results += [Result(trial, rung, share, score, k < stay) for k, (score, trial) in enumerate(scored)]
        left = sorted((trial for _, trial in scored[:stay]), key=lambda trial: trial.number)
    return results
