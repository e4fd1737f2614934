"""Logistic regression on numbers about cells: every class counts the same, images left out in turn choose the penalty.

Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # of the penalty on large weights; the first of equally good ones
FOLDS, DEFAULT_STRENGTH = 5, 0.03
MOST_SPREADS = 6.0  # a feature further from the mean of the training cells counts as this far
NAMES = ("mean", "spread", "weight", "bias")


@dataclass(frozen=True)
class Regression:
    """What turns features of cells into chances of classes.

    Parameters
    ----------
    mean, spread : (F,) float64
        Of the features of the training cells.
    weight : (F, K) float64
    bias : (K,) float64
    """

    mean: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def chances(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes 1..K, (N, K) float64, of cells with these features (N, F)."""
        return softmax(standardised(features, self.mean, self.spread) @ self.weight + self.bias)

    def tensors(self, prefix: str = "") -> dict[str, Any]:
        """Return it as float32 tensors, to be saved."""
        import torch

        return {f"{prefix}{name}": torch.tensor(getattr(self, name), dtype=torch.float32) for name in NAMES}

    @classmethod
    def of(cls, tensors: Mapping[str, Any], prefix: str = "") -> Regression:
        """Return the one that was saved under a prefix."""
        return cls(*(tensors[f"{prefix}{name}"].cpu().numpy().astype(np.float64) for name in NAMES))


@dataclass(frozen=True)
class Learned:
    """A regression, and how well it does on images that did not teach it.

    Attributes
    ----------
    regression : Regression
    strength : float
        Of the penalty.
    left_out : (N, K) float64 or None
        Chances of each training cell by a regression that its image did not teach; None where no image can be left out.
    """

    regression: Regression
    strength: float
    left_out: np.ndarray | None


def learn(features: np.ndarray, classes: np.ndarray, groups: np.ndarray, count: int) -> Learned:
    """Learn the classes of cells from their features, all cells at the strength that `choose_strength` finds.

    Parameters
    ----------
    features : (N, F) float
    classes : (N,) int
        1 to `count`.
    groups : (N,) int
        The image of each cell, or the group (plate, well, donor) of images.
    """
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-6
    near = standardised(features, mean, spread)
    strength, left_out = choose_strength(near, classes, groups, count)
    return Learned(Regression(mean, spread, *fit(near, classes, count, strength)), strength, left_out)


def standardised(features: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return features (N, F) in spreads from the mean, float64, none further than `MOST_SPREADS`."""
    return np.clip((features.astype(np.float64) - mean) / spread, -MOST_SPREADS, MOST_SPREADS)


def fit(features: np.ndarray, classes: np.ndarray, count: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression in which every class counts the same, by L-BFGS in float64 from zeros.

    Parameters
    ----------
    features : (N, F) float64
    classes : (N,) int
        1 to `count`.
    strength : float
        Of the penalty on the squares of the weights.

    Returns
    -------
    weight : (F, count) float64
    bias : (count,) float64
    """
    import torch

    x, wanted = torch.tensor(features), torch.tensor(classes - 1)
    share = torch.tensor(shares(classes, count))
    weight = torch.zeros((features.shape[1], count), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    stepper = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        stepper.zero_grad()
        each = torch.nn.functional.cross_entropy(x @ weight + bias, wanted, reduction="none")
        total = (share * each).sum() + strength * weight.square().sum()
        total.backward()
        return total

    stepper.step(loss)
    return weight.detach().numpy(), bias.detach().numpy()


def choose_strength(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, count: int
) -> tuple[float, np.ndarray | None]:
    """Choose the strength of the penalty by leaving out training images in turn, in up to five parts.

    Parameters
    ----------
    groups : (N,) int
        The image of each cell, or the group (plate, well, donor) of images.

    Returns
    -------
    strength : float
        That of the least balanced log loss; a fixed one where a part left out takes a whole class with it.
    left_out : (N, count) float64 or None
        Chances of each cell when its image is left out, at that strength.
    """
    images = np.unique(groups)
    part = np.searchsorted(images, groups) % min(FOLDS, len(images))
    splits = [part == k for k in range(part.max() + 1)]
    if len(splits) < 2 or any(set(classes[~held]) != set(classes) for held in splits):
        return DEFAULT_STRENGTH, None
    best: tuple[float, float, np.ndarray] | None = None
    for strength in STRENGTHS:
        chances = np.zeros((len(classes), count))
        for held in splits:
            weight, bias = fit(features[~held], classes[~held], count, strength)
            chances[held] = softmax(features[held] @ weight + bias)
        loss = log_loss(chances, classes)
        if best is None or loss < best[0] - 1e-9:
            best = loss, strength, chances
    return best[1], best[2]


def shares(classes: np.ndarray, count: int) -> np.ndarray:
    """Return how much each cell counts, (N,) float64 with the sum 1, so that every class counts the same.

    Examples
    --------
    >>> shares(np.array([1, 2, 2]), 2).tolist()
    [0.5, 0.25, 0.25]
    """
    share = 1 / np.maximum(np.bincount(classes, minlength=count + 1), 1)[classes]
    return share / share.sum()


def log_loss(chances: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean over classes of the log loss of chances (N, K) for cells of these classes, 1..K."""
    own = chances[np.arange(len(classes)), classes - 1]
    return float(-(shares(classes, chances.shape[1]) * np.log(own + 1e-12)).sum())


def right_share(chances: np.ndarray, classes: np.ndarray) -> float:
    """Return how often the likeliest class is right: mean over classes.

    Examples
    --------
    >>> right_share(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([1, 2, 2]))
    0.75
    """
    return float((shares(classes, chances.shape[1]) * (chances.argmax(axis=1) + 1 == classes)).sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, (N, K), from logits.

    Examples
    --------
    >>> softmax(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    raised = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return raised / raised.sum(axis=1, keepdims=True)
