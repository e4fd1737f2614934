"""Rules for which image to label next: each a small function from features of unlabelled images to an order.

A rule sees what a model finds in images that nobody has labelled, never a label. One more rule is one more function and its
line in `RULES`; ``benchmarks/bench_planner.py`` compares them.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cellkit.errors import UserError, nearest

ROUNDS = 100  # of Lloyd's algorithm, at most


@dataclass(frozen=True)
class Features:
    """What is known of n images that nobody has labelled.

    Parameters
    ----------
    names : sequence of str
        Their image_id; all that tells equal images apart.
    cells : (n,) float64
        How many cells a model finds.
    confidence : (n,) float64
        Mean score of these cells in [0, 1]; nan where there are none.
    disagreements : dict
        What was compared ("models", "thresholds", "flips") -> (n,) float64, the share of cells that only one of the two
        answers has.
    style : (n, d) float64, optional
        A description of the whole image, such as the style vector of Cellpose's U-Net.
    labelled : (m, d) float64, optional
        The same of the images that are labelled already.
    seed : int
        Of the rules that choose at random.
    """

    names: Sequence[str]
    cells: np.ndarray
    confidence: np.ndarray
    disagreements: Mapping[str, np.ndarray] = field(default_factory=dict)
    style: np.ndarray | None = None
    labelled: np.ndarray | None = None
    seed: int = 0

    @property
    def disagreement(self) -> np.ndarray:
        """Mean of the disagreements, (n,) float64; 0 where nothing was compared."""
        parts = np.nan_to_num(np.array([*self.disagreements.values()], float))
        return parts.mean(axis=0) if len(parts) else np.zeros(len(self.names))

    def distance(self, chosen: Sequence[int] = ()) -> np.ndarray:
        """Distance of each image's style to the nearest labelled or chosen one, (n,) float64; inf where there is none."""
        known = [] if self.labelled is None else [*self.labelled]
        known += [self.style[k] for k in chosen]
        parts = [np.linalg.norm(self.style - one, axis=1) for one in known]
        return np.min(parts, axis=0) if parts else np.full(len(self.names), np.inf)


# ---- rules: features, how many are wanted -> all places, the first to label on top ----------------------------------------
def _ordered(features: Features, *keys: np.ndarray) -> list[int]:
    """Return the places with the largest first key in front, then the largest second one, ...; of equal ones the first name."""
    return sorted(range(len(features.names)), key=lambda k: (*(-float(key[k]) for key in keys), features.names[k]))


def _random_numbers(features: Features) -> np.ndarray:
    """Draw a number for each image, (n,) float64 in [0, 1), by its name alone: an image more changes no other's."""
    return np.array([random_number(name, features.seed) for name in features.names])


def random_number(name: str, seed: int = 0) -> float:
    """Return the random number of one image, in [0, 1).

    Examples
    --------
    >>> len({random_number("a"), random_number("a"), random_number("b"), random_number("a", 1)})
    3
    """
    text = f"random\0{seed}\0{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def at_random(features: Features, count: int) -> list[int]:
    """Choose at random: what every other rule has to beat."""
    return _ordered(features, _random_numbers(features))


def densest(features: Features, count: int) -> list[int]:
    """Take the images with most cells.

    Examples
    --------
    >>> densest(Features(["a", "b", "c"], np.array([3, 9, 3]), np.ones(3)), 1)
    [1, 0, 2]
    """
    return _ordered(features, features.cells)


def random_denser_half(features: Features, count: int) -> list[int]:
    """Choose at random among the half of the images with more cells, then among the others: chance that avoids empty images."""
    return _ordered(features, _denser_half(features), _random_numbers(features))


def _denser_half(features: Features) -> np.ndarray:
    half = densest(features, 0)[: (len(features.names) + 1) // 2]
    return np.isin(np.arange(len(features.names)), half)


def farthest_first(features: Features, count: int) -> list[int]:
    """Take, one after the other, the image that looks least like what is labelled or taken; the most typical one to begin with.

    Gonzalez, Theoretical Computer Science 38 (1985) 293; as a core-set: Sener, Savarese, ICLR 2018.
    """
    return _greedy(features, lambda distance: distance)


def dense_and_far(features: Features, count: int) -> list[int]:
    """Take farthest-first among the half of the images with more cells, then among the others."""
    half = _denser_half(features)
    return _greedy(features, lambda distance: np.where(half, distance, distance - 1e6))


def disagreement_x_coverage(features: Features, count: int) -> list[int]:
    """Take, one after the other, the image with most disagreement times distance to what is labelled or taken."""
    return _greedy(features, lambda distance: features.disagreement * distance, features.disagreement)


def _greedy(
    features: Features, worth: Callable[[np.ndarray], np.ndarray], first: np.ndarray | None = None
) -> list[int]:
    """Take the image of most worth, again and again; `first` decides while nothing is labelled, else how typical it is."""
    n, distance, chosen = len(features.names), features.distance(), []
    if first is None and n:
        first = -np.linalg.norm(features.style - features.style.mean(axis=0), axis=1)
    left = np.ones(n, bool)
    for _ in range(n):
        key = worth(distance) if np.isfinite(distance).all() else worth(np.zeros(n)) + first
        best = max(key[left])
        place = min(np.flatnonzero(left & (key >= best - 1e-12)), key=lambda k: features.names[k])
        left[place] = False
        chosen.append(int(place))
        distance = np.minimum(distance, np.linalg.norm(features.style - features.style[place], axis=1))
    return chosen


def kmeans_centres(features: Features, count: int) -> list[int]:
    """Take the image nearest to each of `count` centres of the styles, that of the largest cluster first, then farthest-first.

    Lloyd's algorithm, begun at the images that farthest-first takes: no chance in it. Styles alone; labelled images are
    centres that stay.
    """
    names, style = list(features.names), features.style
    if not names:
        return []
    fixed = np.zeros((0, style.shape[1])) if features.labelled is None else features.labelled
    centres = style[farthest_first(features, count)[: max(1, count)]]
    for _ in range(ROUNDS):
        owner = _nearest_centre(style, np.concatenate([centres, fixed]))
        moved = [style[owner == k].mean(axis=0) if (owner == k).any() else centres[k] for k in range(len(centres))]
        if np.allclose(moved, centres, atol=1e-9):
            break
        centres = np.array(moved)
    size = np.bincount(owner, minlength=len(centres))
    chosen: list[int] = []
    for k in sorted(range(len(centres)), key=lambda k: (-size[k], k)):
        away = np.round(np.linalg.norm(style - centres[k], axis=1), 9)
        chosen.append(min(set(range(len(names))) - set(chosen), key=lambda j: (away[j], names[j])))
    return chosen + [k for k in farthest_first(features, count) if k not in chosen]


def _nearest_centre(style: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.round(np.linalg.norm(style[:, None] - centres[None], axis=2), 9).argmin(axis=1)


def most_disagreement(features: Features, count: int) -> list[int]:
    """Take the images on which two answers differ most."""
    return _ordered(features, features.disagreement)


def doubt(features: Features, count: int) -> list[int]:
    """Add the ranks by large disagreement and by low confidence; an image without cells has no confidence at all."""
    unsure = np.nan_to_num(features.confidence)
    ranks = [np.searchsorted(np.sort(key), key) for key in (-features.disagreement, unsure)]
    return _ordered(features, -sum(ranks))


class Rule(NamedTuple):
    """A rule: its order, the features it needs besides the cells, and why it takes an image, in words."""

    order: Callable[[Features, int], list[int]]
    needs: tuple[str, ...]
    why: str


RULES = {
    "random": Rule(at_random, (), "chosen at random"),
    "dense_and_far": Rule(dense_and_far, ("style",), "of the half with more cells, least like what is labelled or above"),
    "random_denser_half": Rule(random_denser_half, (), "chosen at random from the half with more cells"),
    "densest": Rule(densest, (), "most cells"),
    "disagreement": Rule(most_disagreement, ("disagreement",), "two readings of the model differ most"),
    "disagreement_x_coverage": Rule(
        disagreement_x_coverage, ("disagreement", "style"), "two readings differ, and it is unlike what is labelled or above"
    ),
    "doubt": Rule(doubt, ("disagreement",), "answers differ and the model is unsure"),
    "farthest_first": Rule(farthest_first, ("style",), "least like what is labelled or above"),
    "kmeans_centres": Rule(kmeans_centres, ("style",), "typical of a group of images that look alike"),
}  # fmt: skip


def rule_of(name: str) -> Rule:
    """Return a rule by its name.

    Raises
    ------
    UserError
        There is none of that name.
    """
    if name not in RULES:
        raise UserError(f"no rule '{name}'{nearest(name, RULES)}", f"choose from {', '.join(RULES)}")
    return RULES[name]
