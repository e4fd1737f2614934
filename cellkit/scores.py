"""Scores: which found object is which true one, and what each published convention makes of it. No I/O.

Everything begins with `Overlaps`, the pairs of one image that share a pixel, counted exactly in one pass over the runs
(or over two label images). A convention is a function of a list of them, one per image, and returns a plain dict that
can be written as JSON; an undefined number is None. "mAP" alone is never said: the name of the convention goes with it.

The project's own score is `kaggle`, called MAP IoU: hits are IoU strictly above 0.50, 0.55, ..., 0.95, decided in
integers (``20 * I > (10 + j) * U``), TP / (TP + FP + FN), mean over thresholds, mean over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cellkit.errors import UserError, nearest
from cellkit.instances import Instances, ranges, refuse_boxes
from cellkit.intervals import Difference, Units, interval, jackknife, reach, standard_error

if TYPE_CHECKING:
    import pandas
    from scipy.sparse import csr_matrix

    from cellkit.records import ImageRecord

THRESHOLDS = tuple(Fraction(10 + j, 20) for j in range(10))
CELLPOSE_THRESHOLDS = (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))
LIVECELL_AREAS_PX = {"small": (0, 18**2), "medium": (18**2, 31**2), "large": (31**2, 10**10)}
# pycocotools: the default of Params.setDetParams, capped as in evaluateImg; .9 is .8999999999999999 there
COCO_THRESHOLDS = np.minimum(np.linspace(0.5, 0.95, 10), 1 - 1e-10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
BOOTSTRAP = 2000
_BLOCK = 4_000_000


# ---- which objects share pixels ------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Overlaps:
    """All pairs of a true and a found object of one image that share a pixel, and all that a score needs besides.

    Parameters
    ----------
    truth, found, shared_px : (K,) int64
        Pair k is true object ``truth[k]`` and found object ``found[k]``; each pair once, ordered by truth, then found.
    truth_areas_px, found_areas_px : (G,), (P,) int64
    truth_classes, found_classes : (G,), (P,) int64
        0 = unknown.
    found_scores : (P,) float64
    covered_px : int
        Pixels in any object of either side; -1 after `select`.
    """

    truth: np.ndarray
    found: np.ndarray
    shared_px: np.ndarray
    truth_areas_px: np.ndarray
    found_areas_px: np.ndarray
    truth_classes: np.ndarray
    found_classes: np.ndarray
    found_scores: np.ndarray
    covered_px: int = -1

    @property
    def n_truth(self) -> int:
        """G, the number of true objects."""
        return len(self.truth_areas_px)

    @property
    def n_found(self) -> int:
        """P, the number of found objects."""
        return len(self.found_areas_px)

    @cached_property
    def union_px(self) -> np.ndarray:
        """(K,) int64: pixels in one or the other of each pair."""
        return self.truth_areas_px[self.truth] + self.found_areas_px[self.found] - self.shared_px

    @cached_property
    def iou(self) -> np.ndarray:
        """(K,) float64: intersection over union of each pair."""
        return self.shared_px / self.union_px

    def matrix(self) -> csr_matrix:
        """(G, P) sparse int64: shared pixels, rows truth, columns found."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.shared_px, (self.truth, self.found)), shape=(self.n_truth, self.n_found))

    def select(self, truth: np.ndarray, found: np.ndarray) -> Overlaps:
        """Keep some objects: (G,) bool and (P,) bool."""
        kept = truth[self.truth] & found[self.found]
        return Overlaps(
            (np.cumsum(truth) - 1)[self.truth[kept]],
            (np.cumsum(found) - 1)[self.found[kept]],
            self.shared_px[kept],
            self.truth_areas_px[truth],
            self.found_areas_px[found],
            self.truth_classes[truth],
            self.found_classes[found],
            self.found_scores[found],
        )


def overlaps(truth: Instances, found: Instances) -> Overlaps:
    """Count the pixels that every true and every found object of one image share.

    Exact for objects that overlap within a side too. The work grows with the runs and with the pairs of runs that meet,
    not with the pixels of the image and not with the product of the two numbers of objects.

    Raises
    ------
    UserError
        The two sides are of images of different size.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 2, 2]]))
    >>> found = Instances.from_labels(np.array([[0, 1, 1, 1]]))
    >>> pairs = overlaps(truth, found)
    >>> pairs.matrix().toarray()
    array([[1],
           [2]])
    >>> pairs.iou
    array([0.25      , 0.66666667])
    """
    if truth.shape != found.shape:
        raise UserError(
            f"the truth is {truth.shape[0]} x {truth.shape[1]} px, the found is {found.shape[0]} x {found.shape[1]} px",
            "compare objects of the same image; scale predictions back to its size first",
        )
    true_runs, found_runs = _sorted_runs(truth), _sorted_runs(found)
    i, j, pixels = _shared_pixels(true_runs, found_runs, len(truth), len(found))
    return Overlaps(
        *(i, j, pixels, truth.areas_px, found.areas_px, truth.class_ids, found.class_ids, found.scores),
        covered_px=_covered(true_runs, found_runs),
    )


def overlap_images(truths: Sequence[Instances], founds: Sequence[Instances]) -> list[Overlaps]:
    """Return the `Overlaps` of every image.

    Raises
    ------
    UserError
        Not as many predictions as images, an image whose two sides differ in size (named by its position), or truth that is
        boxes only while the predictions are masks.
    """
    if not all(found.boxes_only for found in founds):
        refuse_boxes(truths, "scoring masks")
    if len(truths) != len(founds):
        raise UserError(
            f"{len(truths)} images have truth, {len(founds)} have predictions", "give one Instances per image, in order"
        )
    found_overlaps = []
    for position, (truth, found) in enumerate(zip(truths, founds, strict=True), 1):
        try:
            found_overlaps.append(overlaps(truth, found))
        except UserError as error:
            raise UserError(f"image {position} of {len(truths)}: {error}") from error
    return found_overlaps


def overlaps_of_labels(truth_labels: np.ndarray, found_labels: np.ndarray) -> Overlaps:
    """Count shared pixels straight from two label images, in one pass.

    Parameters
    ----------
    truth_labels, found_labels : (H, W) int, 0 = background
        Ids may have gaps and there need be no background; objects are numbered by ascending id.

    Raises
    ------
    UserError
        Different sizes, not integers, or a negative id.

    Examples
    --------
    >>> overlaps_of_labels(np.array([[1, 1, 40]]), np.array([[7, 7, 9]])).shared_px
    array([2, 1])
    """
    a, b = np.asarray(truth_labels), np.asarray(found_labels)
    if a.shape != b.shape or a.dtype.kind not in "iub" or b.dtype.kind not in "iub":
        raise UserError(
            f"cannot compare labels {a.shape} {a.dtype} with {b.shape} {b.dtype}",
            "give two integer label images of the same size, 0 = background",
        )
    a, b = (x.reshape(-1).view(np.uint8) if x.dtype == bool else x.reshape(-1) for x in (a, b))
    edges = _edges(a, b)
    lengths = np.diff(edges)
    i, n_truth = _dense(a[edges[:-1]])
    j, n_found = _dense(b[edges[:-1]])
    areas = [np.bincount(k, lengths, n + 1)[1:].astype(np.int64) for k, n in ((i, n_truth), (j, n_found))]
    both = np.flatnonzero((i > 0) & (j > 0))
    pairs = _summed(i[both] - 1, j[both] - 1, lengths[both], n_truth, n_found)
    unknown = [np.zeros(n, np.int64) for n in (n_truth, n_found)]
    covered = int(areas[0].sum() + areas[1].sum() - pairs[2].sum())
    return Overlaps(*pairs, *areas, *unknown, np.ones(n_found), covered_px=covered)


def _edges(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return where a run of equal (a, b) begins, and the end."""
    if not a.size:
        return np.zeros(1, np.int64)
    change = np.empty(a.size + 1, bool)
    change[0] = change[-1] = True
    inner = change[1:-1]
    np.not_equal(a[1:], a[:-1], out=inner)
    inner |= b[1:] != b[:-1]
    return np.flatnonzero(change)


def _dense(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Replace ids by 1..n in ascending order, 0 stays; a table where the ids are small, sorting where not."""
    if not values.size:
        return values.astype(np.int64), 0
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0:
        raise UserError(f"a label image has the id {lowest}", "ids are positive, 0 = background")
    if highest > 16 * values.size + 65_536:
        ids, inverse = np.unique(values, return_inverse=True)
        shift = 0 if ids[0] == 0 else 1
        return inverse.reshape(-1) + shift, len(ids) - 1 + shift
    present = np.zeros(highest + 1, bool)
    present[values] = True
    present[0] = False
    return np.cumsum(present)[values], int(present.sum())


def _sorted_runs(objects: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end and owner of all runs, ordered by start."""
    order = np.argsort(objects.starts, kind="stable")
    starts = objects.starts[order]
    return starts, starts + objects.lengths[order], objects.owner_of_run[order]


def _shared_pixels(a, b, n_a: int, n_b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (i, j, pixels) of two sets of runs.

    Two runs meet either where b starts inside a, or where a starts inside b: both are ranges in the order of starts, so
    every pair of runs that meets is listed once, however the runs of one side overlap each other.
    """
    (a_start, a_end, a_owner), (b_start, b_end, b_owner) = a, b
    parts = []
    for inside in (True, False):
        if inside:
            first, stop = np.searchsorted(b_start, a_start, "left"), np.searchsorted(b_start, a_end, "left")
        else:
            first, stop = np.searchsorted(a_start, b_start, "right"), np.searchsorted(a_start, b_end, "left")
        counts = np.maximum(stop - first, 0)
        for block in _blocks(counts):
            outer = np.repeat(np.arange(len(counts))[block], counts[block])
            inner = ranges(first[block], counts[block])
            x, y = (outer, inner) if inside else (inner, outer)
            pixels = np.minimum(a_end[x], b_end[y]) - np.maximum(a_start[x], b_start[y])
            parts.append((a_owner[x], b_owner[y], pixels))
            if len(parts) > 2:
                parts = [_summed(*map(np.concatenate, zip(*parts, strict=True)), n_a, n_b)]
    return _summed(*map(np.concatenate, zip(*parts, strict=True)), n_a, n_b)


def _blocks(counts: np.ndarray) -> Iterable[slice]:
    """Cut a list so that the counts of a part sum to about a block: bounded memory when everything overlaps."""
    total = np.cumsum(counts)
    if not len(counts) or total[-1] <= _BLOCK:
        return [slice(None)]
    cuts = np.unique(np.r_[0, np.searchsorted(total, np.arange(_BLOCK, total[-1], _BLOCK)) + 1, len(counts)])
    return [slice(x, y) for x, y in zip(cuts[:-1], cuts[1:], strict=True)]


def _summed(i, j, pixels, n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add up the pixels of equal (i, j), ordered by i, then j."""
    from scipy.sparse import coo_matrix

    table = coo_matrix((pixels, (i, j)), shape=(n_rows, n_columns)).tocsr()
    table.sum_duplicates()
    rows = np.repeat(np.arange(n_rows), np.diff(table.indptr))
    return rows, table.indices.astype(np.int64), table.data.astype(np.int64)


def _covered(a, b) -> int:
    """Count the pixels in any run."""
    starts, ends = np.r_[a[0], b[0]], np.r_[a[1], b[1]]
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order]) if len(ends) else ends
    before = np.r_[0, ends[:-1]] if len(ends) else ends
    return int(np.maximum(ends - np.maximum(starts, before), 0).sum())


# ---- hits and matches ----------------------------------------------------------------------------------------------
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


def hits(pairs: Overlaps, thresholds=THRESHOLDS, strict: bool = True) -> np.ndarray:
    """Tell which pairs have IoU above (`strict`) or at least each threshold, in integers: (T, K) bool.

    Examples
    --------
    >>> pairs = overlaps_of_labels(np.repeat(1, 20), np.arange(20) < 12)  # IoU 12 / 20
    >>> hits(pairs, [0.6]), hits(pairs, [0.6], strict=False)
    (array([[False]]), array([[ True]]))
    """
    fractions = as_fractions(thresholds)
    below = np.array([t.denominator for t in fractions], np.int64)[:, None] * pairs.shared_px
    above = np.array([t.numerator for t in fractions], np.int64)[:, None] * pairs.union_px
    return below > above if strict else below >= above


def count(pairs: Overlaps, thresholds=THRESHOLDS, strict: bool = True) -> Counts:
    """Count hits one to one, and what remains on either side, at each threshold.

    Where objects of one side do not overlap and the threshold is at least 0.5 (strict), the match is unique. Otherwise
    the largest one-to-one matching counts.

    Examples
    --------
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


def match_pairs(truth: Instances | Overlaps, found: Instances | None = None, threshold=0.5, strict: bool = True):
    """Return who is who: the indices of matched true and found objects, ordered by truth.

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
        chosen = _heaviest_matching(i, j, 1 + pairs.iou[kept] / (2 * smaller))
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


def _heaviest_matching(i: np.ndarray, j: np.ndarray, weight: np.ndarray) -> np.ndarray:
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


def _share(part, whole, empty: float = np.nan) -> np.ndarray:
    """Divide; `empty` where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, float(empty)), where=whole > 0)


def _stacked(pairs: Sequence[Overlaps], thresholds, strict: bool) -> Counts:
    """Count every image: three (images, T) arrays."""
    rows = [count(image, thresholds, strict) for image in pairs]
    empty = np.zeros((0, len(thresholds)), np.int64)
    return Counts(*(np.stack(part) if rows else empty for part in (zip(*rows, strict=True) if rows else ([],) * 3)))


def _number(value) -> float | None:
    """Return a JSON number: None where undefined."""
    value = float(value)
    return value if np.isfinite(value) else None


def _mean(values) -> float | None:
    """Return the mean of the defined values, None when there is none."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None


def _by_threshold(thresholds, values) -> dict[str, float | None]:
    return {f"{float(t):.2f}": _number(v) for t, v in zip(thresholds, values, strict=True)}


# ---- the conventions -----------------------------------------------------------------------------------------------
def kaggle(
    pairs: Sequence[Overlaps],
    pool: str = "images",
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """MAP IoU, the score of DSB2018 and Sartorius 2021.

    Ten thresholds 0.50 ... 0.95, a hit is an IoU strictly greater, TP / (TP + FP + FN), mean over thresholds. No
    confidence, no class. Truth without prediction, and prediction without truth, score 0. Two empty sides score 1:
    nothing missed, nothing invented; the mean without such images is given too.

    Parameters
    ----------
    pool : {"images", "cells"}
        The mean of the images' scores (the competitions), or one score of the counts added up over the images.
    bootstrap, seed : int
        Draws behind the interval, and their seed; 0 = no interval.
    groups : sequence of str, optional
        Well, donor, plate or series of each image ("" = none): images of one are drawn as one, see `cellkit.intervals`.

    Returns
    -------
    dict
        score, by_threshold, interval (95 %), interval_of (what was drawn: "40 images", "4 groups (few)"), pool, images,
        empty_images, score_without_empty.

    Examples
    --------
    >>> once = np.array([[1, 1, 0, 2, 2]])
    >>> kaggle([overlaps_of_labels(once, once), overlaps_of_labels(once, 0 * once)])["score"]
    0.5
    """
    if pool not in ("images", "cells"):
        raise UserError(f"pool is {pool!r}", "pool is 'images' or 'cells'")
    counts = _stacked(pairs, THRESHOLDS, strict=True)
    empty = np.array([image.n_truth + image.n_found == 0 for image in pairs], bool)
    units = Units.of(groups, len(pairs))
    score, low, high = _pooled_interval(counts, pool, units, bootstrap, seed)
    if pool == "images":
        by_threshold = _share(counts.tp, sum(counts), 1).mean(axis=0) if len(pairs) else np.full(10, np.nan)
    else:
        by_threshold = _share(counts.tp.sum(axis=0), sum(counts).sum(axis=0), 1)
    return {
        "score": _number(score),
        "by_threshold": _by_threshold(THRESHOLDS, by_threshold),
        "interval": [_number(low), _number(high)],
        "interval_of": str(units),
        "pool": pool,
        "images": len(pairs),
        "empty_images": int(empty.sum()),
        "score_without_empty": _number(_pooled_score(Counts(*(part[~empty] for part in counts)), pool)),
    }


def cellpose(pairs: Sequence[Overlaps], thresholds=CELLPOSE_THRESHOLDS) -> dict[str, Any]:
    """`cellpose.metrics.average_precision` (4.2): TP / (TP + FP + FN) per image, IoU at least 0.5, 0.75, 0.9.

    Two empty sides are undefined (nan there) and left out of the mean here, their number given as undefined_images.
    """
    counts = _stacked(pairs, thresholds, strict=False)
    per_image = _share(counts.tp, sum(counts))
    means = [_mean(column) for column in per_image.T]
    return {
        "score": _mean([np.nan if mean is None else mean for mean in means]),
        "by_threshold": _by_threshold(thresholds, [np.nan if mean is None else mean for mean in means]),
        "undefined_images": int(np.isnan(per_image).any(axis=1).sum()),
    }


def stardist(pairs: Sequence[Overlaps], thresholds=(Fraction(1, 2),), by_image: bool = False) -> dict[str, Any]:
    """`stardist.matching.matching_dataset` (0.9.1): IoU at least the threshold, optimal assignment.

    Its default pools the counts over images (`by_image` False). Two empty sides score 0 there, and here.

    Returns
    -------
    dict
        score (F1 at the first threshold), and by threshold: f1, accuracy, pq, precision, recall.
    """
    counts = _stacked(pairs, thresholds, strict=False)
    matched = np.array([[_matched_iou(image, t).sum() for t in thresholds] for image in pairs]).reshape(counts.tp.shape)
    if not by_image:
        counts = Counts(*(part.sum(axis=0, keepdims=True) for part in counts))
        matched = matched.sum(axis=0, keepdims=True)
    tp, fp, fn = counts
    table = {
        "f1": _share(2 * tp, 2 * tp + fp + fn, 0),
        "accuracy": _share(tp, tp + fp + fn, 0),
        "pq": _share(matched, tp + fp / 2 + fn / 2, 0),
        "precision": _share(tp, tp + fp, 0),
        "recall": _share(tp, tp + fn, 0),
    }
    means = {name: values.mean(axis=0) if len(values) else np.zeros(len(thresholds)) for name, values in table.items()}
    first = {name: _number(values[0]) for name, values in means.items()}
    return {
        "score": first["f1"],
        **first,
        "by_threshold": _by_threshold(thresholds, means["f1"]),
        **{f"{name}_by_threshold": _by_threshold(thresholds, means[name]) for name in ("accuracy", "pq")},
        "by_image": by_image,
    }


def _matched_iou(image: Overlaps, threshold, strict: bool = False) -> np.ndarray:
    """Return the IoU of each matched pair."""
    i, j = match_pairs(image, threshold=threshold, strict=strict)
    size = max(image.n_found, 1)
    position = np.searchsorted(image.truth * size + image.found, i * size + j)
    return image.iou[position]


def caicedo(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """F1 of Caicedo et al., Cytometry A 2019 (github.com/carpenterlab/2019_caicedo_cytometryA, evaluation.py).

    IoU strictly greater; a hit is a truth with exactly one match, a miss a truth with none, an invention a prediction
    with none; F1 = 2 TP / (2 TP + FP + FN + 1e-9), mean over images. Nine thresholds 0.50 ... 0.90 in the paper's code
    (score), ten in one seed (score_ten). Splits: truths with more than one overlap of IoU > 0.1; merges: predictions
    likewise. Two empty sides score 0.
    """
    rows = [_caicedo_counts(image) for image in pairs]
    tp, fp, fn = (np.array(part).reshape(-1, 10) for part in (zip(*rows, strict=True) if rows else ([], [], [])))
    f1 = 2 * tp / (2 * tp + fp + fn + 1e-9)
    means = f1.mean(axis=0) if len(f1) else np.full(10, np.nan)
    crossings = [_splits_and_merges(image) for image in pairs]
    return {
        "score": _mean(means[:9]),
        "score_ten": _mean(means),
        "by_threshold": _by_threshold(THRESHOLDS, means),
        "splits": sum(s for s, _ in crossings),
        "merges": sum(m for _, m in crossings),
        "tp": tp.sum(axis=0).tolist(),
        "fp": fp.sum(axis=0).tolist(),
        "fn": fn.sum(axis=0).tolist(),
    }


def _caicedo_counts(image: Overlaps) -> Counts:
    table = hits(image)
    of_truth = np.stack([np.bincount(image.truth[row], minlength=image.n_truth) for row in table])
    of_found = np.stack([np.bincount(image.found[row], minlength=image.n_found) for row in table])
    return Counts((of_truth == 1).sum(axis=1), (of_found == 0).sum(axis=1), (of_truth == 0).sum(axis=1))


def _splits_and_merges(image: Overlaps) -> tuple[int, int]:
    some = hits(image, [Fraction(1, 10)])[0]
    return int((np.bincount(image.truth[some]) > 1).sum()), int((np.bincount(image.found[some]) > 1).sum())


def pq(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """Panoptic quality, Kirillov et al. 2019: sum of IoU (where > 0.5) / (TP + FP / 2 + FN / 2), over all images.

    sq is the mean IoU of the hits, rq their F1. Nothing on either side of any image: undefined (None).
    """
    matched = np.concatenate([np.zeros(0)] + [_matched_iou(image, Fraction(1, 2), strict=True) for image in pairs])
    tp, both = len(matched), sum(image.n_truth + image.n_found for image in pairs)
    return {
        "score": _number(_share(2 * matched.sum(), both)),
        "sq": _number(_share(matched.sum(), tp)),
        "rq": _number(_share(2 * tp, both)),
    }


def aji_kumar(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """Aggregated Jaccard index, Kumar et al. 2017: mean over images.

    Every truth takes the prediction of largest IoU (which may serve several truths); shared pixels over united pixels,
    and the area of every prediction never taken is added below. Two empty sides are undefined and left out.
    """
    return {"score": _mean([_aji_kumar_image(image) for image in pairs])}


def _aji_kumar_image(image: Overlaps) -> float:
    order = np.lexsort((image.found, -image.iou, image.truth))
    best = order[np.r_[True, image.truth[order][1:] != image.truth[order][:-1]]] if len(order) else order
    missed, unused = np.ones(image.n_truth, bool), np.ones(image.n_found, bool)
    missed[image.truth[best]] = unused[image.found[best]] = False
    below = image.union_px[best].sum() + image.truth_areas_px[missed].sum() + image.found_areas_px[unused].sum()
    return float(_share(image.shared_px[best].sum(), below))


def aji_cellpose(pairs: Sequence[Overlaps]) -> dict[str, Any]:
    """`cellpose.metrics.aggregated_jaccard_index` (4.2), a different number under the same name: mean over images.

    Shared pixels of the optimal one-to-one assignment over all pixels in any object. Two empty sides are left out.
    """
    return {"score": _mean([_aji_cellpose_image(image) for image in pairs])}


def _aji_cellpose_image(image: Overlaps) -> float:
    if image.covered_px < 0:
        raise ValueError("aji_cellpose needs all objects of the image, not a selection")
    smaller = max(min(image.n_truth, image.n_found), 1)
    weight = (2 * image.shared_px >= image.union_px) + image.iou / (2 * smaller)
    chosen = _heaviest_matching(image.truth, image.found, weight)
    return float(_share(image.shared_px[chosen].sum(), image.covered_px))


# ---- COCO AP -------------------------------------------------------------------------------------------------------
def coco(
    pairs: Sequence[Overlaps],
    per_class: bool = False,
    crowd: Sequence[np.ndarray] | None = None,
    max_detections: int | None = None,
    areas_px: dict[str, tuple[float, float]] | None = None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """COCO average precision of masks, as `pycocotools.cocoeval` 2.0.11 computes it, to 1e-9.

    Per image and category the found objects, by descending score, each take the best free truth with IoU >= t; crowds
    absorb any number; precision is read at 101 recalls. Equal scores keep the order of the list.

    Parameters
    ----------
    per_class : bool
        The mean over the classes that occur in the truth; else all objects are one category. A truth of unknown class
        (0) is then no target, and a detection on it is no error.
    crowd : list of (G,) bool, optional
        Which true objects are crowds.
    max_detections : int, optional
        Per image and category; default as many as there are. pycocotools silently takes the best 100.
    areas_px : dict of name -> (low, high), optional
        Also the AP of truths in these ranges of area (inclusive), e.g. `LIVECELL_AREAS_PX`.

    Returns
    -------
    dict
        score (None without any truth), ap50, ap75, by_threshold, recall (the mean of the largest recalls),
        max_detections, by_class and by_area where asked for.

    Raises
    ------
    UserError
        A score that is not a finite number.
    """
    if crowd is None:
        crowd = [np.zeros(image.n_truth, bool) for image in pairs]
    if max_detections is None:
        max_detections = max([100, *(image.n_found for image in pairs)])
    categories = _categories(pairs) if per_class else [None]
    curves = [_coco_curves(pairs, category, crowd, max_detections, (0.0, 1e10)) for category in categories]
    result = _coco_summary(curves)
    result["max_detections"] = int(max_detections)
    if per_class:
        names = [_class_name(category, classes) for category in categories]
        result["by_class"] = {name: _coco_summary([curve])["score"] for name, curve in zip(names, curves, strict=True)}
    if areas_px:
        result["by_area"] = {
            name: _coco_summary([_coco_curves(pairs, c, crowd, max_detections, area) for c in categories])["score"]
            for name, area in areas_px.items()
        }
    return result


def _categories(pairs: Sequence[Overlaps]) -> list[int]:
    """Return the known classes of the truth, ascending."""
    return sorted({int(k) for image in pairs for k in np.unique(image.truth_classes)} - {0})


def _class_name(class_id: int, classes: Sequence[str]) -> str:
    return classes[class_id - 1] if 1 <= class_id <= len(classes) else str(class_id) if class_id else "unknown"


def _coco_summary(curves: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> dict[str, Any]:
    """Average (precision (T, 101), recall (T,)) over the categories that have truth."""
    curves = [curve for curve in curves if curve is not None]
    if not curves:
        nothing = _by_threshold(THRESHOLDS, np.full(10, np.nan))
        return {"score": None, "ap50": None, "ap75": None, "by_threshold": nothing, "recall": None}
    precision = np.stack([p for p, _ in curves]).mean(axis=(0, 2))
    return {
        "score": float(precision.mean()),
        "ap50": float(precision[0]),
        "ap75": float(precision[5]),
        "by_threshold": _by_threshold(THRESHOLDS, precision),
        "recall": float(np.mean([r for _, r in curves])),
    }


def _coco_curves(pairs, category: int | None, crowd, max_detections: int, area: tuple[float, float]):
    """Return precision (T, 101) and largest recall (T,) of one category; None without a truth that counts."""
    images = []
    for image, crowded in zip(pairs, crowd, strict=True):
        ignored = crowded
        if category is not None:
            kept = np.isin(image.truth_classes, (0, category))
            ignored = (crowded | (image.truth_classes == 0))[kept]
            image, crowded = image.select(kept, image.found_classes == category), crowded[kept]
        outside = (image.truth_areas_px < area[0]) | (image.truth_areas_px > area[1])
        images.append(_coco_image(image, crowded, ignored | outside, max_detections, area))
    targets = sum(image[3] for image in images)
    if not targets:
        return None
    scores = np.concatenate([image[0] for image in images])
    order = np.argsort(-scores, kind="stable")
    matched, ignored = (np.concatenate([image[k] for image in images], axis=1)[:, order] for k in (1, 2))
    tp = np.cumsum(matched & ~ignored, axis=1, dtype=float)
    fp = np.cumsum(~matched & ~ignored, axis=1, dtype=float)
    return _interpolated(tp, fp, targets)


def _interpolated(tp: np.ndarray, fp: np.ndarray, targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the precision envelope at 101 recalls, as COCOeval.accumulate does."""
    precision = np.zeros((len(tp), len(COCO_RECALLS)))
    if not tp.shape[1]:
        return precision, np.zeros(len(tp))
    recall = tp / targets
    # upstream adds np.spacing(1) below, so that a perfect result gives .9999999999999998 there and 1 here
    envelope = np.maximum.accumulate(_share(tp, tp + fp, 0)[:, ::-1], axis=1)[:, ::-1]
    for row in range(len(tp)):
        at = np.searchsorted(recall[row], COCO_RECALLS, side="left")
        inside = at < tp.shape[1]
        precision[row, inside] = envelope[row, at[inside]]
    return precision, recall[:, -1]


def _coco_image(image: Overlaps, crowd, ignored, max_detections: int, area):
    """Match one image: scores (D,), matched (T, D), ignored (T, D) in descending score, and the number of targets."""
    order = _ranked(image.found_scores)[:max_detections]
    rank = np.full(image.n_found, -1)
    rank[order] = np.arange(len(order))
    below = np.where(crowd[image.truth], image.found_areas_px[image.found], image.union_px)
    iou = image.shared_px / below
    kept = (iou >= COCO_THRESHOLDS[0]) & (rank[image.found] >= 0)
    i, j, iou = image.truth[kept], rank[image.found[kept]], iou[kept]
    matched, ignored_found = np.zeros((2, len(COCO_THRESHOLDS), len(order)), bool)
    alone = np.bincount(j, minlength=len(order))[j] == 1
    alone &= crowd[i] | (np.bincount(i, minlength=image.n_truth)[i] == 1)
    matched[:, j[alone]] = iou[alone] >= COCO_THRESHOLDS[:, None]
    ignored_found[:, j[alone]] = matched[:, j[alone]] & ignored[i[alone]]
    if not alone.all():
        _greedy(i[~alone], j[~alone], iou[~alone], crowd, ignored, matched, ignored_found)
    areas = image.found_areas_px[order]
    ignored_found |= ~matched & ((areas < area[0]) | (areas > area[1]))
    return image.found_scores[order], matched, ignored_found, int((~ignored).sum())


def _greedy(i, j, iou, crowd, ignored, matched, ignored_found) -> None:
    """Match contested pairs in order of detection as COCOeval.evaluateImg does; fills `matched`, `ignored_found`."""
    order = np.lexsort((i, ignored[i], j))
    candidates: dict[int, list[tuple[int, float, bool, bool]]] = {}
    for k in order.tolist():
        candidates.setdefault(int(j[k]), []).append((int(i[k]), float(iou[k]), bool(ignored[i[k]]), bool(crowd[i[k]])))
    for row, threshold in enumerate(COCO_THRESHOLDS.tolist()):
        taken: set[int] = set()
        for detection, choices in candidates.items():
            best, best_iou, best_ignored = -1, threshold, False
            for truth, value, is_ignored, is_crowd in choices:
                if truth in taken and not is_crowd:
                    continue
                if best >= 0 and not best_ignored and is_ignored:
                    break
                if value >= best_iou:
                    best, best_iou, best_ignored = truth, value, is_ignored
            if best >= 0:
                taken.add(best)
                matched[row, detection] = True
                ignored_found[row, detection] = best_ignored


def _ranked(scores: np.ndarray) -> np.ndarray:
    """Return the order of descending score; equal scores keep their order."""
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"found object {bad + 1} of an image has the score {scores[bad]}", "scores are numbers 0 to 1")
    return np.argsort(-scores, kind="stable")


# ---- VOC AP --------------------------------------------------------------------------------------------------------
def voc(pairs: Sequence[Overlaps], classes: Sequence[str] = (), threshold=Fraction(1, 2)) -> dict[str, Any]:
    """Pascal VOC average precision at IoU 0.5 on masks, per class (area under the envelope, devkit of 2010 on).

    A detection goes to the truth of its class it overlaps most; if that one is taken it is an error. A detection that
    lies on a truth of unknown class counts neither way. Without any class in the truth all objects are one class,
    "cell".

    Returns
    -------
    dict
        score (mean over classes), by_class, and mean_of_images: matterport Mask R-CNN's `compute_ap` (all classes of an
        image in one list, mean over the images that have truth), the "VOC mAP" of seed 1.
    """
    known = _categories(pairs)
    by_class = {_class_name(k, classes): _voc_class(pairs, k, threshold) for k in known}
    if not known:
        by_class = {"cell": _voc_class(pairs, None, threshold)}
    return {
        "score": _mean([np.nan if value is None else value for value in by_class.values()]),
        "by_class": by_class,
        "mean_of_images": _mean([_matterport_image(image, threshold, bool(known)) for image in pairs]),
    }


def _voc_class(pairs: Sequence[Overlaps], category: int | None, threshold) -> float | None:
    """Return the AP of one class over all images, None where the truth has none of it."""
    scores, right, counted, targets = [], [], [], 0
    for image in pairs:
        difficult = np.zeros(image.n_truth, bool)
        if category is not None:
            kept = np.isin(image.truth_classes, (0, category))
            difficult = image.truth_classes[kept] == 0
            image = image.select(kept, image.found_classes == category)
        order = _ranked(image.found_scores)
        best = _best_truth(image, threshold)[order]
        hit, on_difficult = best >= 0, np.zeros(len(order), bool)
        on_difficult[hit] = difficult[best[hit]]
        hit &= ~on_difficult
        first = np.zeros(len(order), bool)
        first[np.flatnonzero(hit)[np.unique(best[hit], return_index=True)[1]]] = True
        scores.append(image.found_scores[order])
        right.append(first)
        counted.append(~on_difficult)
        targets += int((~difficult).sum())
    if not targets:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    order = order[np.concatenate(counted)[order]]
    return _area_under(np.concatenate(right)[order], targets)


def _best_truth(image: Overlaps, threshold) -> np.ndarray:
    """Return for each found object the truth of largest IoU if that reaches the threshold, else -1."""
    order = np.lexsort((image.truth, -image.iou, image.found))
    first = order[np.r_[True, image.found[order][1:] != image.found[order][:-1]]] if len(order) else order
    first = first[hits(image, [threshold], strict=False)[0][first]]
    best = np.full(image.n_found, -1)
    best[image.found[first]] = image.truth[first]
    return best


def _area_under(right: np.ndarray, targets: int) -> float:
    """Return the area under the precision envelope over recall; `right` (D,) bool in descending score."""
    tp = np.cumsum(right)
    precision = np.maximum.accumulate((tp / np.arange(1, len(tp) + 1))[::-1])[::-1]
    return float(precision[right].sum() / targets)


def _matterport_image(image: Overlaps, threshold, with_class: bool) -> float:
    """Return one image's AP of matterport Mask R-CNN utils.compute_ap; nan without truth."""
    if not image.n_truth:
        return np.nan
    kept = np.flatnonzero(hits(image, [threshold], strict=False)[0])
    if with_class:
        kept = kept[image.truth_classes[image.truth[kept]] == image.found_classes[image.found[kept]]]
    kept = kept[np.argsort(-image.iou[kept], kind="stable")]
    choices: dict[int, list[int]] = {}
    for k in kept.tolist():
        choices.setdefault(int(image.found[k]), []).append(int(image.truth[k]))
    taken: set[int] = set()
    right = np.zeros(image.n_found, bool)
    for place, found in enumerate(_ranked(image.found_scores).tolist()):
        free = next((truth for truth in choices.get(found, ()) if truth not in taken), None)
        if free is not None:
            taken.add(free)
            right[place] = True
    return _area_under(right, image.n_truth)


# ---- points --------------------------------------------------------------------------------------------------------
def centre_points(objects: Instances) -> np.ndarray:
    """Return the pixel of each object that is nearest to its centroid: (N, 2) int64 rows of (y, x).

    Examples
    --------
    >>> centre_points(Instances.from_labels(np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1]])))
    array([[1, 0]])
    """
    if not np.all(objects.areas_px):
        raise UserError("an object of no pixel has no centre", "drop empty objects first")
    pixels = ranges(objects.starts, objects.lengths)
    owner = np.repeat(objects.owner_of_run, objects.lengths)
    y, x = np.divmod(pixels, max(objects.shape[1], 1))
    n, areas = len(objects), objects.areas_px
    mean_y, mean_x = (np.bincount(owner, part, n) / areas for part in (y, x))
    distance = (y - mean_y[owner]) ** 2 + (x - mean_x[owner]) ** 2
    order = np.lexsort((pixels, distance, owner))
    first = order[np.r_[0, np.cumsum(areas)[:-1]]] if n else order
    return np.stack([y[first], x[first]], axis=1)


def match_points(truth: Instances, points_yx: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Give each point, by descending score, the first true object not yet used up whose mask holds its pixel.

    Parameters
    ----------
    points_yx : (P, 2) int
        Row and column of each point.
    scores : (P,) float, optional
        Default: the order given.

    Returns
    -------
    (P,) int64
        Index of the true object, -1 for a false positive.

    Examples
    --------
    >>> match_points(Instances.from_labels(np.array([[1, 1, 0]])), np.array([[0, 0], [0, 1], [0, 2]]))
    array([ 0, -1, -1])
    """
    points = np.asarray(points_yx).reshape(-1, 2)
    if points.size and (points.dtype.kind not in "iu" or (points < 0).any() or (points >= truth.shape).any()):
        raise UserError(f"a point is no pixel of its image of {truth.shape} px", "points are integer (row, column)")
    order = np.arange(len(points)) if scores is None else _ranked(np.asarray(scores, float))
    starts = (points[:, 0].astype(np.int64) * truth.shape[1] + points[:, 1])[order]
    dots = Instances.from_runs(truth.shape, starts, np.ones(len(points), np.int64), np.arange(len(points) + 1))
    i, j, _ = _shared_pixels(_sorted_runs(dots), _sorted_runs(truth), len(dots), len(truth))
    used, result = set(), np.full(len(points), -1)
    for point, holder in zip(i.tolist(), j.tolist(), strict=True):
        if result[order[point]] < 0 and holder not in used:
            used.add(holder)
            result[order[point]] = holder
    return result


def point(
    truths: Sequence[Instances],
    points_yx: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    class_ids: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """DKFZ point-in-mask detection: recall and precision pooled over images, accuracy over hits of known class.

    No IoU: shown beside MAP IoU, never mixed with it. A class that is not to be judged (there:
    PartiallydifferentiatedMSC) has class id 0 in the truth.

    Parameters
    ----------
    points_yx : list of (P, 2) int
        One point per found cell, e.g. `centre_points` of its mask.
    """
    hit = found = cells = right = judged = 0
    for position, (truth, points) in enumerate(zip(truths, points_yx, strict=True)):
        match = match_points(truth, points, None if scores is None else scores[position])
        ok = np.flatnonzero(match >= 0)
        hit, found, cells = hit + len(ok), found + len(match), cells + len(truth)
        if class_ids is not None:
            true_class = truth.class_ids[match[ok]]
            known = true_class > 0
            judged += int(known.sum())
            right += int((np.asarray(class_ids[position])[ok] == true_class)[known].sum())
    return {
        "score": _number(_share(2 * hit, found + cells)),
        "recall": _number(_share(hit, cells)),
        "precision": _number(_share(hit, found)),
        "accuracy": _number(_share(right, judged)),
        "judged": judged,
    }


# ---- classes -------------------------------------------------------------------------------------------------------
def class_accuracy(
    truths: Sequence[Instances], founds: Sequence[Instances], ignore_unknown: bool = True, classes: Sequence[str] = ()
) -> tuple[float, int, pandas.DataFrame]:
    """Compare the classes of matched cells (IoU > 0.5).

    Parameters
    ----------
    ignore_unknown : bool
        Leave out cells whose true class is unknown (0).
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
    if ignore_unknown:
        true, found = true[true > 0], found[true > 0]
    size = max([len(classes), *true.tolist(), *found.tolist()]) + 1
    table = np.bincount(true * size + found, minlength=size * size).reshape(size, size)
    names = [_class_name(k, classes) for k in range(size)]
    confusion = pd.DataFrame(table, pd.Index(names, name="truth"), pd.Index(names, name="found"))
    if not table[0].any() and not table[:, 0].any():
        confusion = confusion.iloc[1:, 1:]
    return float(_share((true == found).sum(), len(true))), len(true), confusion


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
    names = [_class_name(k, classes) for k in order]
    return pd.DataFrame({"class_name": names, "cells": cells[order], "share": _share(cells[order], cells.sum())})


# ---- the tidy table ------------------------------------------------------------------------------------------------
TABLE_COLUMNS = ("image_id", "cell_type", "group", "split", "class_name", "size", "threshold", "tp", "fp", "fn")


def score_table(
    truths: Sequence[Instances],
    founds: Sequence[Instances],
    records: Sequence[ImageRecord],
    thresholds=THRESHOLDS,
    classes: Sequence[str] = (),
    sizes: bool = False,
) -> pandas.DataFrame:
    """Count hits per image and threshold: a tidy table from which every MAP IoU is read.

    Parameters
    ----------
    classes : list of str
        Also count each class by itself (truth of the class against found of the class). A prediction of the class that
        hits a truth of unknown class counts neither way.
    sizes : bool
        Also count terciles of the areas of all truths: a hit or a miss belongs to its truth, an invention to its own
        area.

    Returns
    -------
    DataFrame
        image_id, cell_type, group, split, class_name ("" = all objects, whatever their class), size ("" = all, or
        small, medium, large), threshold, tp, fp, fn.

    Raises
    ------
    UserError
        Not as many records, truths and predictions.
    """
    import pandas as pd

    if len(records) != len(truths):
        raise UserError(f"{len(records)} records, {len(truths)} truths", "give one record per image, in order")
    pairs = overlap_images(truths, founds)
    fractions = as_fractions(thresholds)
    edges = size_terciles(truths) if sizes else None
    blocks = []
    for record, image in zip(records, pairs, strict=True):
        rows = [("", "", count(image, fractions))]
        rows += [(name, "", _class_counts(image, k, fractions)) for k, name in enumerate(classes, 1)]
        if edges is not None:
            rows += [("", name, counts) for name, counts in _size_counts(image, edges, fractions).items()]
        about = (record.image_id, record.cell_type, record.group, record.split)
        blocks += [(*about, name, size, *counts) for name, size, counts in rows]
    repeated = len(fractions)
    columns = enumerate(TABLE_COLUMNS[:6])
    text = {name: np.repeat(np.array([block[k] for block in blocks], object), repeated) for k, name in columns}
    numbers = [np.concatenate([b[k] for b in blocks]) if blocks else np.zeros(0, np.int64) for k in (6, 7, 8)]
    values = np.tile(np.array([float(t) for t in fractions]), len(blocks))
    return pd.DataFrame({**text, "threshold": values, "tp": numbers[0], "fp": numbers[1], "fn": numbers[2]})


def _class_counts(image: Overlaps, class_id: int, thresholds) -> Counts:
    """Count one class; an unmatched prediction on a truth of unknown class is left out."""
    of_class = image.found_classes == class_id
    counts = count(image.select(image.truth_classes == class_id, of_class), thresholds)
    if not (image.truth_classes == 0).any():
        return counts
    aside = image.select(image.truth_classes == 0, of_class)
    own = image.select(image.truth_classes == class_id, of_class)
    fp = []
    for t in thresholds:
        unmatched = np.ones(own.n_found, bool)
        unmatched[match_pairs(own, threshold=t)[1]] = False
        unmatched[aside.found[hits(aside, [t])[0]]] = False
        fp.append(unmatched.sum())
    return Counts(counts.tp, np.array(fp, np.int64), counts.fn)


def size_terciles(truths: Sequence[Instances]) -> tuple[float, float]:
    """Return the areas (px) that cut all true objects of a data set into three equal parts; nan without objects."""
    areas = np.concatenate([np.zeros(0)] + [truth.areas_px for truth in truths])
    return tuple(np.quantile(areas, [1 / 3, 2 / 3]).tolist()) if areas.size else (np.nan, np.nan)


def _size_counts(image: Overlaps, edges: tuple[float, float], thresholds) -> dict[str, Counts]:
    """Count each tercile of area."""
    of_truth, of_found = (np.searchsorted(edges, areas) for areas in (image.truth_areas_px, image.found_areas_px))
    rows = []
    for t in thresholds:
        i, j = match_pairs(image, threshold=t)
        missed, invented = np.ones(image.n_truth, bool), np.ones(image.n_found, bool)
        missed[i] = invented[j] = False
        rows.append([np.bincount(part, minlength=3) for part in (of_truth[i], of_found[invented], of_truth[missed])])
    table = np.array(rows).reshape(-1, 3, 3)
    return {name: Counts(*table[:, :, k].T) for k, name in enumerate(("small", "medium", "large"))}


def _checked(table: pandas.DataFrame, by: str | None = None) -> pandas.DataFrame:
    """Return the rows a question is about: all objects, each class, or each size. A table read from CSV serves too."""
    missing = [name for name in TABLE_COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"the score table lacks {', '.join(missing)}", "make it with score_table")
    text = table[["cell_type", "group", "split", "class_name", "size"]].astype(object).fillna("")
    table = table.assign(**{name: text[name].astype(str) for name in text})
    rows = (table["class_name"] != "") if by == "class_name" else (table["class_name"] == "")
    rows &= (table["size"] != "") if by == "size" else (table["size"] == "")
    return table[rows]


def _wide(table: pandas.DataFrame) -> tuple[pandas.DataFrame, Counts]:
    """Return one row per image (what it is) and its counts as three (images, T) arrays, thresholds ascending."""
    thresholds = np.sort(table["threshold"].unique())
    about = table.drop_duplicates(["image_id", "class_name", "size"]).reset_index(drop=True)
    if len(table) != len(about) * max(len(thresholds), 1):
        raise UserError(
            f"{len(table)} rows for {len(about)} images and {len(thresholds)} thresholds",
            "each image has each threshold once",
        )
    keys = [zip(part["image_id"], part["class_name"], part["size"], strict=True) for part in (about, table)]
    place = {key: row for row, key in enumerate(keys[0])}
    row = np.array([place[key] for key in keys[1]], np.int64)
    column = np.searchsorted(thresholds, table["threshold"])
    counts = np.zeros((3, len(about), len(thresholds)), np.int64)
    for k, name in enumerate(("tp", "fp", "fn")):
        counts[k, row, column] = table[name]
    return about, Counts(*counts)


def map_iou(table: pandas.DataFrame, pool: str = "images") -> float:
    """Return the MAP IoU of a score table (see `kaggle`); nan for no image."""
    return _pooled_score(_wide(_checked(table))[1], pool)


def _pooled_score(counts: Counts, pool: str, weights: np.ndarray | None = None):
    """Return the score of all images, or of (B, images) multiplicities."""
    images = counts.tp.shape[0]
    weights = np.ones((1, images)) if weights is None else weights
    if not images:
        return np.nan
    if pool == "images":
        result = weights @ _share(counts.tp, sum(counts), 1).mean(axis=1) / weights.sum(axis=1)
    else:
        result = _share(weights @ counts.tp, weights @ sum(counts), 1).mean(axis=1)
    return float(result[0]) if len(result) == 1 else result


def _pooled_interval(counts: Counts, pool: str, units: Units, n: int, seed: int) -> tuple[float, float, float]:
    """Return score, low, high."""
    score = _pooled_score(counts, pool)
    return score, *interval(lambda weights: _pooled_score(counts, pool, weights), score, units, n, seed)


def per_image(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row per image: its MAP IoU, how many cells are true and found, hits at 0.5; in the order of the table."""
    about, counts = _wide(_checked(table))
    about = about[["image_id", "cell_type", "group", "split"]].copy()
    about["score"] = _share(counts.tp, sum(counts), 1).mean(axis=1) if len(about) else np.zeros(0)
    lowest = [part[:, 0] if part.size else np.zeros(len(about), np.int64) for part in counts]
    about["truth_cells"], about["found_cells"] = lowest[0] + lowest[2], lowest[0] + lowest[1]
    about["tp"], about["fp"], about["fn"] = lowest
    return about


def summary(
    table: pandas.DataFrame, by: str | None = None, pool: str = "images", n: int = BOOTSTRAP, seed: int = 0
) -> pandas.DataFrame:
    """Score a table as a whole, or each part of it, with 95 % intervals over the groups of its images.

    Parameters
    ----------
    by : {None, "cell_type", "group", "split", "class_name", "size"}
        For a class or a size, images that have nothing of it on either side are left out.
    pool : {"images", "cells"}
    n, seed : int
        Draws behind the intervals (see `cellkit.intervals`; 0 = none), and their seed.

    Returns
    -------
    DataFrame
        One row per part: its name (column `by`), images, empty_images, truth_cells, found_cells, score, low, high,
        interval_of ("40 images", "4 groups (few)"), score_without_empty, and the score at the thresholds 0.5, 0.75 and 0.9
        (ap50, ap75, ap90) where they are there.
    """
    import pandas as pd

    if by not in (None, "cell_type", "group", "split", "class_name", "size"):
        choices = ("cell_type", "group", "split", "class_name", "size")
        raise UserError(f"by is {by!r}{nearest(str(by), choices)}", f"by is one of {', '.join(choices)}")
    rows = _checked(table, by)
    parts = [("all", rows)] if by is None else [(name, rows[rows[by] == name]) for name in sorted(rows[by].unique())]
    thresholds = np.sort(rows["threshold"].unique())
    lines = []
    for name, part in parts:
        about, counts = _wide(part)
        empty = sum(counts)[:, 0] == 0 if counts.tp.size else np.zeros(counts.tp.shape[0], bool)
        if by in ("class_name", "size"):
            about, counts, empty = about[~empty], Counts(*(x[~empty] for x in counts)), empty[~empty]
        units = Units.of(list(about["group"]), len(about))
        lines.append({by or "part": name, **_summary_line(counts, empty, thresholds, pool, units, n, seed)})
    if by == "size":
        lines.sort(key=lambda line: ("small", "medium", "large").index(line["size"]))
    return pd.DataFrame(lines)


def _summary_line(counts: Counts, empty, thresholds, pool: str, units: Units, n: int, seed: int) -> dict[str, Any]:
    score, low, high = _pooled_interval(counts, pool, units, n, seed)
    line = {
        "images": len(empty),
        "empty_images": int(empty.sum()),
        "truth_cells": int((counts.tp + counts.fn)[:, :1].sum()),
        "found_cells": int((counts.tp + counts.fp)[:, :1].sum()),
        "score": score,
        "low": low,
        "high": high,
        "interval_of": str(units),
        "score_without_empty": _pooled_score(Counts(*(part[~empty] for part in counts)), pool),
    }
    for value, name in ((0.5, "ap50"), (0.75, "ap75"), (0.9, "ap90")):
        column = np.flatnonzero(np.isclose(thresholds, value))
        if column.size:
            line[name] = _pooled_score(Counts(*(part[:, column] for part in counts)), pool)
    return line


def paired_bootstrap(
    table_a: pandas.DataFrame, table_b: pandas.DataFrame, n: int = BOOTSTRAP, seed: int = 0
) -> Difference:
    """Compare two models on the same images: MAP IoU of B minus that of A, drawing whole groups of images.

    Returns
    -------
    Difference
        With its 95 % interval (nan for fewer than two images or groups), and whether B is better beyond doubt.

    Raises
    ------
    UserError
        The tables are not of the same images.
    """
    tables = [per_image(table).set_index("image_id") for table in (table_a, table_b)]
    a, b = (table["score"] for table in tables)
    if set(a.index) != set(b.index):
        only = sorted(set(a.index) ^ set(b.index))
        raise UserError(
            f"{len(only)} image(s) are in one table only, e.g. '{only[0]}'", "score both models on the same images"
        )
    gain = (b.loc[a.index] - a).to_numpy(float)
    units = Units.of(list(tables[0]["group"]), len(gain))
    error = standard_error(lambda weights: weights @ gain / weights.sum(axis=1), units, n, seed)
    value, half = float(gain.mean()) if len(gain) else np.nan, reach(error, units.count)
    low, high, alone = max(value - half, -1.0), min(value + half, 1.0), units.kind == "image of one group"
    return Difference(value, low, high, len(gain), units.count, error, alone)


# ---- side by side --------------------------------------------------------------------------------------------------
WHY = {
    "kaggle": "MAP IoU: IoU > 0.50:0.05:0.95, TP/(TP+FP+FN), mean over thresholds and images; no confidence, no class",
    "coco": "IoU >= t, ranked by confidence: an error below every hit costs nothing; one curve over all images",
    "cellpose": "IoU >= t at 0.5, 0.75 and 0.9 only: fewer hard thresholds; both empty is undefined, not 1",
    "stardist": "F1 (a hit counts twice) at IoU >= 0.5 only; counts pooled, so images with many cells weigh more",
    "caicedo": "F1, IoU > 0.50:0.05:0.90 (ten: to 0.95); a truth matched twice is no hit and no miss; both empty is 0",
    "voc": "IoU >= 0.5 only, per class, ranked by confidence; a second detection of a cell is an error",
    "point": "a cell counts as found when the centre lies in its mask: no IoU, so outlines do not matter",
    "pq": "mean IoU of the hits (IoU > 0.5) times their F1, counts pooled over images",
    "aji_kumar": "pixels, not cells: large cells weigh more; one prediction may serve several truths",
    "aji_cellpose": "pixels, one-to-one, over all covered pixels: not Kumar's number",
}


BOX_CONVENTIONS = ("voc", "coco")  # also defined on boxes
RANKED = ("coco", "voc")
UNRANKED = "; here all cells have the same score (label images tell none): the number depends on the order of the list"


def unranked(founds: Sequence[Instances]) -> bool:
    """Tell whether there are cells to rank and no score ranks them: the AP of label images depends on their numbering."""
    scores = np.concatenate([np.zeros(0), *(found.scores for found in founds)])
    return len(scores) > 1 and bool((scores == scores[0]).all())


def compare_conventions(
    truths: Sequence[Instances],
    founds: Sequence[Instances],
    records: Sequence[ImageRecord] | None = None,
    by: str | None = None,
    classes: Sequence[str] = (),
    conventions: Sequence[str] | None = None,
    crowd: Sequence[np.ndarray] | None = None,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Score the same objects under every convention, side by side, and say in a line why the numbers differ.

    Parameters
    ----------
    records, by : optional
        Also the MAP IoU of each part: cell_type, group, split, class_name or size; needs the records.
    conventions : list of str, optional
        Default all of `WHY`. Where the truth is boxes only, the boxes of the predictions are scored, by `BOX_CONVENTIONS`.
    crowd : list of (G,) bool, optional
        For coco only.

    Returns
    -------
    dict
        ``{"images": n, "conventions": {name: {"score": ..., "by_threshold": {...}, ..., "why": ...}}, "by": {...}}``,
        ready for JSON.
    """
    chosen = list(WHY) if conventions is None else list(conventions)
    for name in chosen:
        if name not in WHY:
            raise UserError(f"no convention '{name}'{nearest(name, WHY)}", f"choose from {', '.join(WHY)}")
    what = "of boxes: " if any(truth.boxes_only for truth in truths) else ""
    if what:
        chosen = _box_conventions(truths, chosen if conventions is not None else BOX_CONVENTIONS, by)
        truths, founds = [x.as_boxes() for x in truths], [x.as_boxes() for x in founds]
    pairs = overlap_images(truths, founds)
    with_class = any(image.found_classes.any() for image in pairs) and bool(_categories(pairs))
    crowds = [np.zeros(image.n_truth, bool) for image in pairs] if crowd is None else crowd
    groups = None if records is None else [record.group for record in records]
    units = Units.of(groups, len(pairs))
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "coco": lambda pairs, crowd, *_: coco(pairs, crowd=crowd),
        "cellpose": lambda pairs, *_: cellpose(pairs),
        "stardist": lambda pairs, *_: stardist(pairs),
        "caicedo": lambda pairs, *_: caicedo(pairs),
        "voc": lambda pairs, *_: voc(pairs, classes),
        "point": lambda pairs, crowd, truths, founds: _point_of_centres(truths, founds, with_class),
        "pq": lambda pairs, *_: pq(pairs),
        "aji_kumar": lambda pairs, *_: aji_kumar(pairs),
        "aji_cellpose": lambda pairs, *_: aji_cellpose(pairs),
    }
    sides = (pairs, crowds, truths, founds)
    scored = {}
    for name in chosen:
        if name == "kaggle":
            scored[name] = _kaggle_both(pairs, founds, bootstrap, seed, groups)
        else:
            scored[name] = jobs[name](*sides)
            if bootstrap:
                scored[name] |= {"interval": _jackknifed(jobs[name], sides, units), "interval_of": str(units)}
        scored[name]["why"] = what + WHY[name] + (UNRANKED if name in RANKED and unranked(founds) else "")
    if with_class and "coco" in scored:
        scored["coco"]["by_class"] = coco(pairs, per_class=True, crowd=crowd, classes=classes)["by_class"]
    result: dict[str, Any] = {"images": len(pairs), "conventions": scored, "by": {}}
    if by is not None:
        result["by"] = {by: _by_part(truths, founds, records, by, classes, bootstrap, seed)}
    return result


def _jackknifed(job: Callable[..., dict[str, Any]], sides: Sequence[Sequence[Any]], units: Units) -> list[float | None]:
    """Return the 95 % interval of a convention that is no sum over images."""

    def score(kept: np.ndarray) -> float | None:
        return job(*([side[k] for k in np.flatnonzero(kept)] for side in sides))["score"]

    return [_number(end) for end in jackknife(score, units)]


def _box_conventions(truths: Sequence[Instances], chosen: Sequence[str], by: str | None) -> list[str]:
    """Refuse conventions that need outlines; the parts of `by` are scored by MAP IoU, so they do too."""
    masks = [name for name in chosen if name not in BOX_CONVENTIONS]
    if masks or by is not None:
        refuse_boxes(truths, f"the convention {masks[0]}" if masks else f"MAP IoU by {by}")
    return list(chosen)


def _kaggle_both(pairs, founds, bootstrap: int, seed: int, groups) -> dict[str, Any]:
    result = kaggle(pairs, bootstrap=bootstrap, seed=seed, groups=groups)
    result["score_pooled"] = kaggle(pairs, pool="cells", bootstrap=0)["score"]
    result["overlapping_images"] = sum(found.overlapping for found in founds)  # the competitions refuse these
    return result


def _point_of_centres(truths, founds, with_class: bool) -> dict[str, Any]:
    founds = [found[found.areas_px > 0] for found in founds]
    points, scores = [centre_points(found) for found in founds], [found.scores for found in founds]
    return point(truths, points, scores, [found.class_ids for found in founds] if with_class else None)


def _by_part(truths, founds, records, by: str, classes, bootstrap: int, seed: int) -> dict[str, Any]:
    if records is None:
        raise UserError(f"cannot score by {by} without records", "give the records of the images (records.csv)")
    table = score_table(truths, founds, records, classes=classes if by == "class_name" else (), sizes=by == "size")
    lines = summary(table, by, n=bootstrap, seed=seed).to_dict("records")
    names = ("images", "truth_cells", "found_cells")
    return {
        line[by]: {"score": _number(line["score"]), "interval": [_number(line["low"]), _number(line["high"])]}
        | {name: int(line[name]) for name in names}
        for line in lines
    }
