"""Hits at a threshold, decided in integers, and which object is matched to which.

A hit is an IoU strictly above, or at least, a threshold: ``20 * I > (10 + j) * U`` for 0.50, 0.55, ..., 0.95.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.parallel import map_all
from cellkit.scores.intervals import BOOTSTRAP
from cellkit.scores.iou import Overlaps, mostly_unknown, overlap_images, overlaps

if TYPE_CHECKING:
    import pandas


THRESHOLDS = tuple(Fraction(10 + j, 20) for j in range(10))


class Counts(NamedTuple):
    """Hits, inventions and misses at each threshold, three (T,) int64 arrays."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


def as_fractions(thresholds: Iterable[float | Fraction]) -> tuple[Fraction, ...]:
    """Return thresholds as the decimal fractions that were meant.

    Examples
    --------
    >>> as_fractions([0.5, 0.6000000000000001])
    (Fraction(1, 2), Fraction(3, 5))
    """
    return tuple(t if isinstance(t, Fraction) else Fraction(t).limit_denominator(10_000) for t in thresholds)


def hits(pairs: Overlaps, thresholds: Sequence[Fraction | float] = THRESHOLDS, strict: bool = True) -> np.ndarray:
    """Tell which pairs have IoU above (`strict`) or at least each threshold, in integers: (T, K) bool.

    Examples
    --------
    >>> from cellkit.scores.iou import overlaps_of_labels
    >>> pairs = overlaps_of_labels(np.repeat(1, 20), np.arange(20) < 12)  # IoU 12 / 20
    >>> hits(pairs, [0.6]), hits(pairs, [0.6], strict=False)
    (array([[False]]), array([[ True]]))
    """
    fractions = as_fractions(thresholds)
    below = np.array([t.denominator for t in fractions], np.int64)[:, None] * pairs.shared_px
    above = np.array([t.numerator for t in fractions], np.int64)[:, None] * pairs.union_px
    return below > above if strict else below >= above


def count(pairs: Overlaps, thresholds: Sequence[Fraction | float] = THRESHOLDS, strict: bool = True) -> Counts:
    """Count hits one to one, and what remains on either side, at each threshold.

    Where objects of one side do not overlap and the threshold is at least 0.5 (strict), the match is unique. Otherwise
    the largest one-to-one matching counts.

    Examples
    --------
    >>> from cellkit.scores.iou import overlaps_of_labels
    >>> count(overlaps_of_labels(np.array([[1, 1, 1, 2]]), np.array([[5, 5, 0, 6]])), [0.5, 0.7])
    Counts(tp=array([2, 1]), fp=array([0, 1]), fn=array([0, 1]))
    """
    table = hits(pairs, thresholds, strict)
    any_hit = np.flatnonzero(table.any(axis=0))
    table, i, j = table[:, any_hit], pairs.truth[any_hit], pairs.found[any_hit]
    if _one_to_one(i, j):
        tp = table.sum(axis=1)
    else:
        tp = np.array([_largest_matching(i[row], j[row]) for row in table], np.int64)
    return Counts(tp, pairs.n_found - tp, pairs.n_truth - tp)


def match_pairs(
    truth: Instances | Overlaps, found: Instances | None = None, threshold: Fraction | float = 0.5, strict: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of matched true and found objects, ordered by truth.

    Parameters
    ----------
    truth, found : Instances
        Of one image; or `Overlaps` alone.
    threshold : float
        On the IoU, strictly above (`strict`). Where several one-to-one matchings exist, the largest one is taken and
        among those the one with the largest sum of IoU.

    Returns
    -------
    truth_index, found_index : (M,) int64

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 2, 2]]))
    >>> found = Instances.from_labels(np.array([[0, 0, 5, 5]]))
    >>> match_pairs(truth, found)
    (array([1]), array([0]))
    """
    pairs = truth if isinstance(truth, Overlaps) else overlaps(truth, found)
    kept = np.flatnonzero(hits(pairs, [threshold], strict)[0])
    i, j = pairs.truth[kept], pairs.found[kept]
    if not _one_to_one(i, j):
        smaller = min(pairs.n_truth, pairs.n_found)
        chosen = heaviest_matching(i, j, 1 + pairs.iou[kept] / (2 * smaller))
        i, j = i[chosen], j[chosen]
    return i, j


def _one_to_one(i: np.ndarray, j: np.ndarray) -> bool:
    return len(i) < 2 or bool(np.bincount(i).max() == 1 and np.bincount(j).max() == 1)


def _largest_matching(i: np.ndarray, j: np.ndarray) -> int:
    """Return the size of the largest one-to-one choice of pairs (Hopcroft-Karp)."""
    if _one_to_one(i, j):
        return len(i)
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_matrix((np.ones(len(i), np.int8), (i, j)), shape=(i.max() + 1, j.max() + 1))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def heaviest_matching(i: np.ndarray, j: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return which pairs (positions, ascending) make the one-to-one choice of largest total weight; weights in (0, 2).

    Every row may also take a private column of weight 0, so that a full matching always exists (LAPJVsp).
    """
    if not len(i):
        return np.zeros(0, np.int64)
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    none = np.arange(len(rows))
    cost = np.r_[3.0 - weight, np.full(len(rows), 3.0)]
    graph = csr_matrix((cost, (np.r_[row, none], np.r_[column, len(columns) + none])))
    left, right = min_weight_full_bipartite_matching(graph)
    taken = np.full(len(rows), -1)
    taken[left] = right
    return np.flatnonzero(taken[row] == column)


def ratio(part: ArrayLike, whole: ArrayLike, empty: float = np.nan) -> np.ndarray:
    """Divide; `empty` where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, float(empty)), where=whole > 0)


def count_images(pairs: Sequence[Overlaps], thresholds: Sequence[Fraction], strict: bool) -> Counts:
    """Count every image: three (images, T) arrays."""
    rows = [count(image, thresholds, strict) for image in pairs]
    empty = np.zeros((0, len(thresholds)), np.int64)
    return Counts(*(np.stack(part) if rows else empty for part in (zip(*rows, strict=True) if rows else ([],) * 3)))


def json_number(value: float) -> float | None:
    """Return a JSON number: None where undefined."""
    value = float(value)
    return value if np.isfinite(value) else None


def mean_of_defined(values: ArrayLike) -> float | None:
    """Return the mean of the defined values, None when there is none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None


def keyed_by_threshold(thresholds: Sequence[Fraction], values: np.ndarray) -> dict[str, float | None]:
    """Return {"0.50": value, ...}, None where undefined."""
    return {f"{float(t):.2f}": json_number(v) for t, v in zip(thresholds, values, strict=True)}


def matched_iou(image: Overlaps, threshold: Fraction, strict: bool = False) -> np.ndarray:
    """Return the IoU of each matched pair."""
    return image.iou[image.places(*match_pairs(image, threshold=threshold, strict=strict))]


def ranked(scores: np.ndarray) -> np.ndarray:
    """Return the order of descending score; equal scores keep their order.

    Raises
    ------
    UserError
        A score that is no finite number.
    """
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"found object {bad + 1} of an image has the score {scores[bad]}", "scores are numbers 0 to 1")
    return np.argsort(-scores, kind="stable")


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """What a convention is given: images with their true and found objects, and how an interval is drawn.

    Parameters
    ----------
    pairs : list of Overlaps
    truths, founds : list of Instances
        Those of `pairs`: found objects that lie mostly where the truth is not annotated are left out.
    classes : list of str
        Names of class 1, 2, ...
    with_class : bool
        Both sides know classes.
    groups : list of str, optional
    bootstrap, seed : int
    every : list of Instances
        All found objects, for a convention that has a rule of its own for those.
    workers : int
        Processes that share the images in `each`.
    """

    pairs: Sequence[Overlaps]
    truths: Sequence[Instances]
    founds: Sequence[Instances]
    classes: Sequence[str] = ()
    with_class: bool = False
    groups: Sequence[str] | None = None
    bootstrap: int = BOOTSTRAP
    seed: int = 0
    every: Sequence[Instances] = ()
    workers: int = 1
    _known: dict[tuple[Any, int, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def each(self, count: Callable[[ScoredImages], Any]) -> list[Any]:
        """Return what a function says of each image alone, (this image) -> anything; no image is asked for twice.

        For an interval images are left out again and again: what was counted of one is kept, also for a `subset`.

        Parameters
        ----------
        count : callable
            A function of a module: it may be sent to another process.
        """
        pairs = zip(self.truths, self.every or self.founds, strict=True)
        keys = [(count, id(truth), id(found)) for truth, found in pairs]
        new = [k for k, key in enumerate(keys) if key not in self._known]
        alone = [replace(self._at([k]), _known={}) for k in new]
        done = map_all(partial(_counted, count=count), alone, "score", self.workers)
        self._known.update(zip([keys[k] for k in new], done, strict=True))
        return [self._known[key] for key in keys]

    def subset(self, kept: np.ndarray) -> ScoredImages:
        """Keep some images, (images,) bool."""
        return self._at(np.flatnonzero(kept).tolist())

    def _at(self, chosen: Sequence[int]) -> ScoredImages:
        per_image = ("pairs", "truths", "founds", *(["every"] if self.every else []))
        parts = {name: [getattr(self, name)[k] for k in chosen] for name in per_image}
        groups = None if self.groups is None else [self.groups[k] for k in chosen]
        return replace(self, **parts, groups=groups)

    def with_matched(self, matched: Callable[[Instances, Instances], np.ndarray]) -> ScoredImages:
        """Return the images with all found objects that count where a match needs no IoU of 0.5.

        One that lies mostly where the truth is not annotated counts if it is matched, as among all found objects: so what is
        not annotated takes away inventions, and neither hits nor misses.

        Parameters
        ----------
        matched : callable
            True and found objects of an image -> which found ones are matched, (P,) bool.
        """
        pairs, founds = list(self.pairs), list(self.founds)
        for k, truth in enumerate(self.truths):
            if truth.unknown_px:
                every = self.every[k]
                founds[k] = every[~mostly_unknown(truth, every) | matched(truth, every)]
                pairs[k] = overlaps(truth, founds[k])
        return replace(self, pairs=pairs, founds=founds, _known={})


def _counted(image: ScoredImages, count: Callable[[ScoredImages], Any]) -> Any:
    return count(image)


def classes_of_truth(pairs: Sequence[Overlaps]) -> list[int]:
    """Return the known classes of the truth, ascending."""
    return sorted({int(k) for image in pairs for k in np.unique(image.truth_classes)} - {0})


def class_name_of(class_id: int, classes: Sequence[str]) -> str:
    """Return the name of a class, its number where it has none."""
    return classes[class_id - 1] if 1 <= class_id <= len(classes) else str(class_id) if class_id else "unknown"


def class_accuracy(
    truths: Sequence[Instances], founds: Sequence[Instances], classes: Sequence[str] = ()
) -> tuple[float, int, pandas.DataFrame]:
    """Compare the classes of matched cells (IoU > 0.5); cells whose true class is unknown (0) are left out.

    Parameters
    ----------
    classes : list of str
        Names of class 1, 2, ...

    Returns
    -------
    accuracy : float
        nan when no cell is matched.
    n : int
        Cells compared.
    confusion : DataFrame
        Rows truth, columns found.
    """
    import pandas as pd

    true, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for image in overlap_images(truths, founds):
        i, j = match_pairs(image)
        true.append(image.truth_classes[i])
        found.append(image.found_classes[j])
    true, found = np.concatenate(true), np.concatenate(found)
    true, found = true[true > 0], found[true > 0]
    size = max([len(classes), *true.tolist(), *found.tolist()]) + 1
    table = np.bincount(true * size + found, minlength=size * size).reshape(size, size)
    names = [class_name_of(k, classes) for k in range(size)]
    confusion = pd.DataFrame(table, pd.Index(names, name="truth"), pd.Index(names, name="found"))
    if not table[:, 0].any():
        confusion = confusion.iloc[1:, 1:]
    return float(ratio((true == found).sum(), len(true))), len(true), confusion


def class_errors(truths: Sequence[Instances], founds: Sequence[Instances], classes: Sequence[str]) -> pandas.DataFrame:
    """Count the cells of each class by what was found of them (IoU > 0.5), with those that were missed, and those invented.

    A true cell of unknown class counts nowhere, nor does what was found of it.

    Parameters
    ----------
    classes : list of str
        Names of class 1, 2, ...

    Returns
    -------
    DataFrame
        Rows: the true classes, then "invented"; columns: the classes found ("unknown" where any), then "missed".

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 2, 0, 0]]), class_ids=[1, 2])
    >>> found = Instances.from_labels(np.array([[1, 0, 0, 3]]), class_ids=[2, 1])
    >>> class_errors([truth], [found], ["HEK", "N2a"]).to_dict("split")["data"]
    [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    """
    import pandas as pd

    size = len(classes) + 1
    table = np.zeros((size + 1, size + 1), np.int64)  # unknown first, then the classes, then missed and invented
    for image in overlap_images(truths, founds):
        i, j = match_pairs(image)
        true, found = image.truth_classes, image.found_classes
        np.add.at(table, (true[i], found[j]), 1)
        np.add.at(table, (np.delete(true, i), size), 1)
        np.add.at(table, (size, np.delete(found, j)), 1)
    names = ["unknown", *classes]
    rows, columns = pd.Index([*names, "invented"], name="truth"), pd.Index([*names, "missed"], name="found")
    full = pd.DataFrame(table, rows, columns).iloc[1:]
    return full if full["unknown"].any() else full.iloc[:, 1:]


def counts_by_class(founds: Sequence[Instances], classes: Sequence[str]) -> pandas.DataFrame:
    """Count the objects of each class over all images: columns class_name, cells, share ("unknown" last, when any).

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 2, 3, 4]]), class_ids=[1, 1, 2, 1])
    >>> counts_by_class([cells], ["HEK", "N2a"]).to_dict("list")
    {'class_name': ['HEK', 'N2a'], 'cells': [3, 1], 'share': [0.75, 0.25]}
    """
    import pandas as pd

    ids = np.concatenate([np.zeros(0, np.int64)] + [found.class_ids for found in founds])
    cells = np.bincount(ids, minlength=len(classes) + 1)
    order = [*range(1, len(cells)), *([0] if cells[0] else [])]
    names = [class_name_of(k, classes) for k in order]
    return pd.DataFrame({"class_name": names, "cells": cells[order], "share": ratio(cells[order], cells.sum())})
