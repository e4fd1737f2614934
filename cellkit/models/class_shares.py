"""What the cells of an image say of one another's classes: nearly all are of one class, or several are there.

Where every training image holds one class, what surrounds a cell tells its class as well as the cell does: right in images of one
class, misleading where several grow together. So there are two ways to look at a cell, with its surroundings and alone, and the
cells seen alone decide how an image is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PSEUDO_CELLS = 0.5  # of each class, that an image is taken to hold beforehand
ROUNDS = 100
LONE_SHARE = 0.8  # of an image's cells, from which on it counts as of one class


def hold_one_class(class_ids: Iterable[np.ndarray]) -> bool:
    """Return whether no image holds cells of two known classes.

    Examples
    --------
    >>> hold_one_class([np.array([1, 1, 0]), np.array([2])]), hold_one_class([np.array([1, 2])])
    (True, False)
    """
    return all(len(np.unique(ids[ids > 0])) < 2 for ids in class_ids)


def with_shares(chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjust the chances of an image's cells to how many of each class it holds, which they tell themselves.

    Expectation maximisation. Source: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a classifier to new a priori
    probabilities", Neural Computation 2002.

    Parameters
    ----------
    chances : (N, K) float
        Of each cell, as if all classes were as frequent.

    Returns
    -------
    chances : (N, K) float64
    shares : (K,) float64
        Of the classes in the image.

    Examples
    --------
    >>> chances, shares = with_shares(np.array([[0.9, 0.1]] * 9 + [[0.4, 0.6]]))  # the tenth is hardly of the second class
    >>> chances[-1].round(2).tolist(), shares.round(2).tolist()
    ([0.91, 0.09], [0.94, 0.06])
    """
    count = chances.shape[1]
    shares, adjusted = np.full(count, 1 / count), np.asarray(chances, np.float64)
    for _ in range(ROUNDS if len(chances) else 0):
        adjusted = chances * shares
        adjusted = adjusted / np.maximum(adjusted.sum(axis=1, keepdims=True), 1e-300)
        before, shares = shares, (adjusted.sum(axis=0) + PSEUDO_CELLS) / (len(chances) + count * PSEUDO_CELLS)
        if np.abs(shares - before).max() < 1e-6:
            break
    return adjusted, shares


def told_together(surrounded: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Return the chances, (N, K) float64, of the cells of an image: one of one class is told otherwise than one of several.

    Parameters
    ----------
    surrounded, alone : (N, K) float
        Chances by all that is seen of a cell and around it, and by the cell alone. Where cells alone say that the image holds
        one class, the first count, and so do the shares of the classes; else the mean of both.

    Examples
    --------
    >>> surrounded, alone = np.array([[0.7, 0.3]] * 8), np.array([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 4)
    >>> told_together(surrounded, alone).argmax(axis=1)
    array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> one_class = np.array([[0.8, 0.2]] * 8)  # of cells alone
    >>> told_together(alone, one_class).argmax(axis=1).tolist(), told_together(surrounded, one_class)[0].round(2).tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [0.96, 0.04])
    """
    if not len(alone):
        return np.asarray(surrounded, np.float64)
    if with_shares(alone)[0].mean(axis=0).max() < LONE_SHARE:
        return (np.asarray(surrounded, np.float64) + alone) / 2
    return with_shares(surrounded)[0]
