"""How many more labelled images are worth it: a learning curve fitted to scores that were measured, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.errors import UserError
from cellkit.labelling.planner import SECONDS_PER_CELL, minutes_for

POWERS = np.round(np.arange(0.1, 2.05, 0.1), 1)  # of a curve a - b n^-c
LEAST_SIZES = 3  # different numbers of images; a curve has three parameters
MOST_AHEAD = 2.0  # times the largest number measured: no telling beyond
WORTH = 0.01  # MAP IoU that five more images must gain; seeds alone differ by 0.005 to 0.02 (Fong 2024, three seeds)
FIVE = 5  # images, of `WORTH`
FLOOR, FLOOR_MEASURED = (
    0.02,
    0.005,
)  # smallest spread of a score that is believed, with fewer than 5 degrees of freedom and with more
DRAWS = 500
CURVE_FILE = "learning_curve.csv"  # in a run folder: columns images, score
TRAINED_ON = (1, 2, 3, 5)  # images, to measure a curve


def how_to_measure(labelled: int = TRAINED_ON[-1]) -> str:
    """Return how the scores of a curve are measured with so many labelled images, or how many to label first.

    Examples
    --------
    >>> how_to_measure(3)[:48], how_to_measure(1)[:23]
    ('train on 1, 2 and 3 of the labelled images, scor', 'label 3 images first: a')
    """
    if labelled < LEAST_SIZES:
        return f"label {LEAST_SIZES} images first: a curve needs the scores of models trained on 1, 2 and {LEAST_SIZES} of them"
    *first, last = [number for number in TRAINED_ON if number <= labelled]
    return (
        f"train on {', '.join(map(str, first))} and {last} of the labelled images, score each on the same validation images, "
        "and give a CSV with the columns images, score: --curve FILE"
    )


class Gain(NamedTuple):
    """What more images gain in score, with the 95 % interval in which the gain is found when they are labelled."""

    gain: float
    low: float
    high: float

    def __str__(self) -> str:
        """Say it.

        Examples
        --------
        >>> str(Gain(0.021, -0.012, 0.052))
        '+0.02 [-0.01, 0.05]'
        """
        return f"{self.gain:+.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class BudgetCurve:
    """A learning curve: score = a - b n^-c for n labelled images.

    Parameters
    ----------
    a, b, c : float
    sizes : tuple of int
        The different numbers of images that were measured.
    spread, floor : float
        Standard deviation of the score of one image's model about the curve, as measured, and the smallest that is believed;
        see `error`.
    draws : (B, 3) float64
        a, b, c of curves fitted to redrawn scores.
    """

    a: float
    b: float
    c: float
    sizes: tuple[int, ...]
    spread: float
    floor: float
    draws: np.ndarray

    def at(self, images: float) -> float:
        """Return the score of a number of images (1 or more)."""
        return self.a - self.b * images**-self.c

    def error(self, images: float | np.ndarray) -> np.ndarray:
        """Return how far one score of that many images lies from the curve, as a standard deviation."""
        return np.maximum(self.spread / np.sqrt(images), self.floor)

    def gain(self, now: int, more: int) -> Gain:
        """Return what `more` images gain for a model trained on `now`: what will be seen, not what images gain on average.

        So both scores scatter about the curve in the interval. On the published curves of Fong et al. 2024 (nine networks,
        1 to 7 images, each told from its first 3 to 6 points) it holds 78 of 81 gains; the curve's own interval held 43.

        Raises
        ------
        UserError
            The curve was not measured far enough to tell.
        """
        if more > self.told(now):
            largest = self.sizes[-1]
            raise UserError(
                f"{more} more images than {now}: the curve was measured up to {largest}, and tells no further than "
                f"{int(MOST_AHEAD * largest)}",
                "label some and measure again",
            )
        value = float(self.at(now + more) - self.at(now))
        _, b, c = self.draws.T
        scatter = np.random.default_rng([now, more]).standard_normal((2, len(b))).T @ self.error(
            np.array([now, now + more])
        )
        low, high = np.percentile(b * (float(now) ** -c - float(now + more) ** -c) + scatter, (2.5, 97.5))
        return Gain(value, min(value, float(low)), max(value, float(high)))

    def told(self, now: int) -> int:
        """Return how many more images than `now` the curve can tell of."""
        return max(0, int(MOST_AHEAD * self.sizes[-1]) - now)

    def worth(self, now: int) -> int:
        """Return how many more images are worth it: as long as five images together gain `WORTH`, each its share of it."""
        gains = [self.at(now + k) - self.at(now + k - 1) for k in range(1, self.told(now) + 1)]
        return int(sum(gain >= WORTH / FIVE for gain in gains))


def fit_budget(rows: Sequence[tuple[int, float]], seed: int = 0, labelled: int = TRAINED_ON[-1]) -> BudgetCurve:
    """Fit a learning curve to scores, and redraw it to see how sure it is.

    Least squares over a <= 1, b >= 0 and c in `POWERS`; a score of n images counts n times, since which images they are
    matters less the more there are (the spread is taken as falling with the square root of n). The interval is a parametric
    bootstrap: scores are redrawn about the curve with that spread, and fitted again. The spread comes from repeated scores
    and from what lies off the curve; while these are few it is taken as 0.02 or more.

    Parameters
    ----------
    rows : sequence of (int, float)
        Number of labelled images, score of the model trained on them; several scores of one number are welcome. Scores of 0
        images are those of the base: they are on no such curve, and left out.
    seed : int
        Of the draws.
    labelled : int
        Images labelled so far, for what to do where there are too few scores.

    Raises
    ------
    UserError
        Fewer than three different numbers of images: nothing is told from them; or a number or score that is none.

    Examples
    --------
    >>> curve = fit_budget([(1, 0.5), (2, 0.6), (3, 0.64), (5, 0.67), (7, 0.69)])
    >>> round(curve.at(6), 2), curve.gain(7, 5).gain < 0.03
    (0.68, True)
    """
    images, scores = _checked(rows)
    sizes = np.unique(images)
    if len(sizes) < LEAST_SIZES:
        known = " and ".join(f"{number} image{'s' * (number != 1)}" for number in sizes.tolist())
        known = (
            f"only scores of models trained on {known} are given" if known else "no score of a trained model is given"
        )
        problem = f"{known}; a curve needs {LEAST_SIZES}, of different numbers of labelled images"
        raise UserError(problem, how_to_measure(max(labelled, *sizes.tolist(), 0)))
    a, b, c = _fit(images, scores[None])[0].tolist()
    off = (scores - (a - b * images**-c)) * np.sqrt(images)  # as of one image
    free = len(images) - LEAST_SIZES
    spread = float(np.sqrt(np.square(off).sum() / free)) if free else 0.0
    curve = BudgetCurve(a, b, c, tuple(sizes.tolist()), spread, FLOOR if free < 5 else FLOOR_MEASURED, np.zeros((0, 3)))
    noise = np.random.default_rng(seed).standard_normal((DRAWS, len(images)))
    return replace(curve, draws=_fit(images, a - b * images**-c + noise * curve.error(images)))


def _checked(rows: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(sorted(map(tuple, rows)), float).reshape(-1, 2)
    wrong = [row for row in table.tolist() if row[0] < 0 or row[0] % 1 or not 0 <= row[1] <= 1]
    if wrong or not np.isfinite(table).all():
        example = f", e.g. {wrong[0][0]:g} images, score {wrong[0][1]:g}" if wrong else ""
        raise UserError(f"scores that are none{example}", "images are whole numbers from 0, scores from 0 to 1")
    table = table[table[:, 0] > 0]
    return table[:, 0].astype(int), table[:, 1]


def _fit(images: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Fit a - b n^-c to each row of (B, N) scores; return (B, 3) a, b, c."""
    weight = images / images.sum()
    mean = scores @ weight
    best, error = np.zeros((len(scores), 3)), np.full(len(scores), np.inf)
    for c in POWERS:
        x = images.astype(float) ** -c
        middle = x @ weight
        b = -((scores - mean[:, None]) @ (weight * (x - middle))) / (weight @ np.square(x - middle))
        b = np.maximum(b, 0)
        a = mean + b * middle
        capped = np.maximum((1 - scores) @ (weight * x) / (weight @ np.square(x)), 0)
        a, b = np.where(a > 1, 1.0, a), np.where(a > 1, capped, b)
        off = np.square(scores - a[:, None] + b[:, None] * x) @ weight
        better = off < error - 1e-15
        best[better] = np.column_stack([a, b, np.full(len(a), c)])[better]
        error = np.where(better, off, error)
    return best


def read_curve(path: str | Path) -> list[tuple[int, float]]:
    """Read the scores of a learning curve: a CSV with the columns images and score; others are not looked at.

    Raises
    ------
    UserError
        No such file or column, or what stands there is no number of images or no score.
    """
    from cellkit.sources.source_tables import read_table

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file at {path}", how_to_measure())
    rows = []
    for line, row in enumerate(read_table(path, ("images", "score"), path.parent), 2):
        try:
            images, score = int(row["images"]), float(row["score"])
            if images < 0 or not 0 <= score <= 1:  # nan is in no interval
                raise ValueError
            rows.append((images, score))
        except ValueError:
            what = f"{path} line {line}: images is '{row['images']}', score '{row['score']}'"
            raise UserError(what, "images is a whole number from 0, score a number from 0 to 1") from None
    return rows


def _cost(more: int, cells: float, seconds_per_cell: float) -> str:
    """Say what labelling so many images takes."""
    minutes = more * float(minutes_for(np.array(cells), seconds_per_cell))
    return f"about {more * cells:.0f} cells, {minutes:.0f} minutes"


def tell_budget(
    rows: Sequence[tuple[int, float]],
    now: int,
    cells: float | None,
    seconds_per_cell: float = SECONDS_PER_CELL,
    more: int = FIVE,
) -> str:
    """Say what more labelled images gain, what they cost, and how many are worth it; or why it cannot be told.

    Parameters
    ----------
    rows : sequence of (int, float)
        As for `fit_budget`.
    now : int
        Images labelled so far; taken as the largest number measured where that is larger.
    cells : float, optional
        Cells expected in an image that would be labelled next; None where nobody knows: then no cost is told.
    more : int
        Images that the first sentence is about; fewer, where the curve was not measured that far.
    """
    try:
        curve = fit_budget(rows, labelled=now)
        now = max(now, curve.sizes[-1])
        more = max(1, min(more, curve.told(now)))
        gain = curve.gain(now, more)
    except UserError as error:
        problem, _, remedy = str(error).partition("\n")
        return f"what more images would gain cannot be told yet: {problem}\n{remedy}"
    cost = None if cells is None else _cost(more, cells, seconds_per_cell)
    measured = ", ".join(map(str, curve.sizes))
    count = curve.worth(now)
    if gain.high < WORTH * more / FIVE:
        advice = "more images of this kind hardly change the score: look at what is missed instead"
    elif gain.low >= WORTH * more / FIVE:
        advice = "label more: it is worth it" + (f" ({cost})" if cost else "")
    else:
        advice = f"label more only if the chance of that is worth {cost or 'the work'} to you"
    further = ", and it tells no further" if count and count == curve.told(now) else ""
    worth = (
        f"the next {count} image{'s' * (count != 1)} gain{'s' * (count == 1)} at least {WORTH / FIVE:g} each{further}"
    )
    worth = worth if count else f"not one more image gains {WORTH / FIVE:g}"
    return (
        f"{more} more image{'s' * (more != 1)}: {gain}; {advice}\n"
        f"by the curve {worth} ({len(rows)} scores at {measured} images; brackets: where the gain is found in 95 %)"
    )
