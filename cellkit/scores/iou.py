"""Which true and which found objects share pixels: every pair of an image, counted exactly in one pass.

`Overlaps` is what every score is made of. Nothing is rounded and no file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.outlines import refuse_boxes
from cellkit.cells.runs import ranges
from cellkit.errors import UserError, counted

_BLOCK = 4_000_000


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

    def places(self, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return where pairs of these objects, each of which is here, stand."""
        size = max(self.n_found, 1)
        return np.searchsorted(self.truth * size + self.found, truth * size + found)

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
    """Count the pixels that every true and every found object of one image share, wherever they lie: see `scorable`.

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
    >>> pairs.truth, pairs.found, pairs.shared_px
    (array([0, 1]), array([0, 0]), array([1, 2]))
    >>> pairs.iou
    array([0.25      , 0.66666667])
    """
    refuse_other_size(truth, found)
    true_runs, found_runs = sorted_runs(truth), sorted_runs(found)
    i, j, pixels = shared_pixels(true_runs, found_runs, len(truth), len(found))
    return Overlaps(
        *(i, j, pixels, truth.areas_px, found.areas_px, truth.class_ids, found.class_ids, found.scores),
        covered_px=_covered(true_runs, found_runs),
    )


def scorable(truth: Instances, found: Instances) -> Instances:
    """Return the found cells that count: not those of which more than half lies where the truth is not annotated.

    Such a cell is neither right nor wrong. A true cell is known wherever it lies, so a cell left out has less than half of its
    pixels in true ones and could match none of them (IoU of 0.5). The IoU is that of whole cells: no pixel is taken off an area.
    Conventions that match below that, match first: `cellkit.scores.matching.ScoredImages.with_matched`.

    The rule is that of panoptic quality for crowd regions (Kirillov et al. 2019; panopticapi, evaluation.py, commit 1ad5afa).
    COCO (pycocotools 2.0.11, cocoeval.py) and Cityscapes (evalInstanceLevelSemanticLabeling.py, commit 13c6ab2) ask for as large
    a share of the found cell as the threshold of the IoU; `cellkit.scores.coco` does as COCO.

    Raises
    ------
    UserError
        The two sides are of images of different size.

    Examples
    --------
    >>> truth = Instances.from_labels(np.array([[1, 1, 0, -1, -1, -1]]))
    >>> len(scorable(truth, Instances.from_labels(np.array([[1, 1, 2, 2, 3, 3]]))))  # the last lies in it, the second by half
    2
    """
    return found[~mostly_unknown(truth, found)] if truth.unknown_px else found


def mostly_unknown(truth: Instances, found: Instances) -> np.ndarray:
    """Tell which found cells lie by more than half where the truth is not annotated, (P,) bool.

    Raises
    ------
    UserError
        The two sides are of images of different size.
    """
    refuse_other_size(truth, found)
    before = np.r_[0, np.cumsum(truth.unknown_mask.ravel())]
    inside = before[found.starts + found.lengths] - before[found.starts]
    inside_px = np.bincount(found.owner_of_run, inside, len(found)).astype(np.int64)
    return 2 * inside_px > found.areas_px


def refuse_other_size(truth: Instances, found: Instances) -> None:
    """Refuse two sides that are of images of different size.

    Raises
    ------
    UserError
        With both sizes.
    """
    if truth.shape != found.shape:
        raise UserError(
            f"the truth is {truth.shape[0]} x {truth.shape[1]} px, the found is {found.shape[0]} x {found.shape[1]} px",
            "compare objects of the same image; scale predictions back to its size first",
        )


def overlap_images(truths: Sequence[Instances], founds: Sequence[Instances]) -> list[Overlaps]:
    """Return the `Overlaps` of every image, of the found objects that are `scorable`.

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
            f"truth of {counted(len(truths), 'image')}, predictions of {len(founds)}",
            "give one Instances per image, in order",
        )
    found_overlaps = []
    for position, (truth, found) in enumerate(zip(truths, founds, strict=True), 1):
        try:
            found_overlaps.append(overlaps(truth, scorable(truth, found)))
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


def sorted_runs(objects: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end and owner of all runs, ordered by start."""
    order = objects.by_start
    starts = objects.starts[order]
    return starts, starts + objects.lengths[order], objects.owner_of_run[order]


Runs = tuple[np.ndarray, np.ndarray, np.ndarray]


def shared_pixels(a: Runs, b: Runs, n_a: int, n_b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (i, j, pixels) of two sets of runs, each its starts, ends and owners.

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
