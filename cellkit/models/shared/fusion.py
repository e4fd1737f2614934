"""Several models' cells of one image made one set: weighted mask fusion, and a segmenter that fuses others.

As weighted boxes fusion (Solovyev, Wang and Gabruseva 2021, Image and Vision Computing 107, 104117), with masks for boxes: masks
that are one cell make a cluster, each pixel of it is voted on, and the score says how much of all models found the cell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

import numpy as np
from pydantic import Field

from cellkit.cells.disjoint import resolve_overlaps
from cellkit.cells.instances import Instances
from cellkit.cells.runs import merge_adjacent
from cellkit.errors import UserError
from cellkit.models.shared.contract import BatchSegmenter, Segmenter, Share
from cellkit.models.shared.in_windows import Together, WholeImage
from cellkit.scores.iou import overlaps
from cellkit.settings import Frozen

ROUNDING = 1e-9  # a share that misses its limit by no more than this is one that a sum was rounded in


class FusionSettings(Frozen):
    """When masks are one cell, and how much of the models has to agree."""

    iou: Share = Field(0.5, description="IoU above which two models' masks are one cell")
    least_models: Share = Field(
        0.5, description="a cell is kept that models of at least this share of the weights found; 0 = every cell"
    )
    least_votes: Share = Field(
        0.5, description="a pixel is kept that at least this share of the cell's masks holds, by weight times score"
    )


def fuse(
    founds: Sequence[Instances], weights: Sequence[float] | None = None, settings: FusionSettings | None = None
) -> Instances:
    """Fuse what several models found in one image; no two cells of the answer share a pixel.

    The masks that are agreed on most come first: those with the largest sum of weight times score of their own and, times the
    IoU, of the other models' best ones. Each takes to its cluster of every other model the free mask of the highest IoU above
    the limit. A model votes once in a cluster, so that cells which one model tells apart stay apart.

    Parameters
    ----------
    founds : list of Instances
        One per model, all of the same image; their order decides nothing.
    weights : list of float, optional
        One per model, 0 or more; default 1 each. A model of weight 0 is left out.
    settings : FusionSettings, optional

    Returns
    -------
    Instances
        Score: the sum of weight times score over the cluster, over the weights of all models. Class: the one with most weight
        times score, of equal ones the first; 0 where no mask has one.

    Raises
    ------
    UserError
        No model, not one weight per model, a negative weight, none above 0, or images of different size.

    Examples
    --------
    >>> one = Instances.from_labels(np.array([[1, 1, 1, 0]]), scores=[0.9])
    >>> other = Instances.from_labels(np.array([[0, 1, 1, 0]]), scores=[0.5])
    >>> fused = fuse([one, other])
    >>> fused.paint(), fused.scores.round(2)
    (array([[1, 1, 1, 0]], dtype=int32), array([0.7]))
    >>> fuse([one, other], weights=[1, 3]).paint()
    array([[0, 1, 1, 0]], dtype=int32)
    """
    settings = settings or FusionSettings()
    weights = checked_weights(len(founds), weights)
    shapes = {found.shape for found in founds}
    if len(shapes) > 1:
        raise UserError(f"masks of images of {' and '.join(map(str, sorted(shapes)))} px", "fuse cells of one image")
    used = [k for k, weight in enumerate(weights) if weight > 0]
    pool = Instances.concatenate([founds[k] for k in used])
    model = np.repeat(used, [len(founds[k]) for k in used]).astype(int)
    weight = np.array(weights, float)[model]
    clusters = _clusters(pool, model, weight, settings.iou)
    total = math.fsum(weights[k] for k in used)
    enough = settings.least_models * total - ROUNDING
    clusters = [own for own in clusters if math.fsum(weight[own]) >= enough]
    return resolve_overlaps(_voted(pool, clusters, weight, total, settings.least_votes))[0]


def checked_weights(models: int, weights: Sequence[float] | None) -> list[float]:
    """Return one weight per model, 1 each where none are given.

    Raises
    ------
    UserError
        No model, not as many weights, one below 0 or not finite, or none above 0.
    """
    if not models:
        raise UserError("no model to fuse", "name one or more")
    if weights is None:
        return [1.0] * models
    if len(weights) != models:
        raise UserError(f"{len(weights)} weights for {models} models", "give one weight per model, in their order")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UserError(f"the weights are {', '.join(f'{w:g}' for w in weights)}", "give 0 or more, one above 0")
    return [float(weight) for weight in weights]


def _clusters(pool: Instances, model: np.ndarray, weight: np.ndarray, iou: float) -> list[list[int]]:
    """Return the masks of each cell; in an order, and of it, that does not depend on that of the models."""
    near: dict[int, list[tuple[float, int]]] = {}
    pairs = overlaps(pool, pool)
    for a, b, value in zip(pairs.truth.tolist(), pairs.found.tolist(), pairs.iou.tolist(), strict=True):
        if value > iou and model[a] != model[b]:
            near.setdefault(a, []).append((value, b))
    votes = (weight * pool.scores).tolist()
    support = []
    for k in range(len(pool)):
        best: dict[int, float] = {}
        for value, other in near.get(k, ()):
            best[model[other]] = max(best.get(model[other], 0.0), value * votes[other])
        support.append(math.fsum([votes[k], *best.values()]))
    rank = sorted(range(len(pool)), key=lambda k: (-support[k], *_key(pool, k, weight[k])))
    place = {k: position for position, k in enumerate(rank)}
    free, clusters = np.ones(len(pool), bool), []
    for seed in rank:
        if not free[seed]:
            continue
        members, seen = [seed], {model[seed]}
        for _, other in sorted(near.get(seed, ()), key=lambda pair: (-pair[0], place[pair[1]])):
            if free[other] and model[other] not in seen:
                members.append(other)
                seen.add(model[other])
        free[members] = False
        clusters.append(sorted(members, key=place.get))
    return clusters


def _key(pool: Instances, k: int, weight: float) -> tuple:
    """Return what orders masks: weight times score, then what they are."""
    runs = slice(pool.offsets[k], pool.offsets[k + 1])
    score, starts = float(pool.scores[k]), pool.starts[runs]
    return -weight * score, -weight, int(starts[0]) if len(starts) else -1, int(pool.areas_px[k]), starts.tobytes(), \
        pool.lengths[runs].tobytes(), int(pool.class_ids[k])  # fmt: skip


def _voted(pool: Instances, clusters: list[list[int]], weight: np.ndarray, total: float, least: float) -> Instances:
    """Return a cell of each cluster: the pixels that enough of its masks hold, with score and class."""
    votes = weight * pool.scores
    stride = (
        pool.shape[0] * pool.shape[1] + 1
    )  # each cluster counts its pixels on a line of its own, with a gap after it
    line, share = np.full(len(pool), -1), np.zeros(len(pool))
    for number, own in enumerate(clusters):
        counts = votes[own] if votes[own].any() else weight[own]  # where all scores are 0 the weights alone vote
        line[own], share[own] = number, counts / math.fsum(counts)
    owner = pool.owner_of_run
    used = line[owner] >= 0
    begins = pool.starts[used] + line[owner][used] * stride
    values = share[owner][used]
    places, index = np.unique(np.r_[begins, begins + pool.lengths[used]], return_inverse=True)
    level = np.cumsum(np.bincount(index, np.r_[values, -values], len(places))) if len(places) else np.zeros(0)
    kept = np.flatnonzero(level[:-1] >= max(least, ROUNDING * 2) - ROUNDING)
    starts, lengths = merge_adjacent(places[kept], np.diff(places)[kept])
    number = starts // stride
    cells, runs = np.unique(number, return_counts=True)
    mine = [clusters[k] for k in cells.tolist()]
    return Instances.from_runs(
        pool.shape,
        starts - number * stride,
        lengths,
        np.r_[0, np.cumsum(runs)],
        [_class_of(pool.class_ids[own], votes[own]) for own in mine],
        [min(math.fsum(votes[own]) / total, 1.0) for own in mine],
    )


def _class_of(class_ids: np.ndarray, votes: np.ndarray) -> int:
    """Return the class with most votes, of equal ones the first; 0 where no mask has one."""
    sums = {k: math.fsum(votes[class_ids == k]) for k in sorted(set(class_ids.tolist()) - {0})}
    return max(sums, key=lambda k: (sums[k], -k), default=0)


def fused(
    segmenters: Sequence[Segmenter], weights: Sequence[float] | None = None, settings: FusionSettings | None = None
) -> Segmenter:
    """Return a segmenter that fuses what others find in each image, see `fuse`.

    Parameters
    ----------
    segmenters : list of Segmenter
        All give their cells the same classes. One of weight 0 is not run.
    weights, settings
        As for `fuse`.

    Raises
    ------
    UserError
        As `checked_weights`.
    """
    weights = checked_weights(len(segmenters), weights)
    used = [one for one, weight in zip(segmenters, weights, strict=True) if weight > 0]
    own = [weight for weight in weights if weight > 0]

    def find_each(images: Iterable[np.ndarray]) -> Iterator[tuple[Instances, Counter[str]]]:
        streams = tee(images, len(used))
        for founds in zip(*(one(stream) for one, stream in zip(used, streams, strict=True)), strict=True):
            counts: Counter[str] = Counter()
            for one in used:
                counts.update(one.left_out)
                one.left_out.clear()
            yield fuse(founds, own, settings), counts

    def in_windows(whole: WholeImage) -> Together:
        finders = [one.in_windows(whole.for_model(f"model_{k}")) for k, one in enumerate(used)]
        return Together(finders, whole, lambda founds: fuse(founds, own, settings))

    told = dict(settings or FusionSettings()) | {"weights": weights}
    reason = next((one.whole_only for one in used if one.whole_only), "")
    size = lambda shape: max(one.bytes_for(shape) for one in used)  # noqa: E731
    return BatchSegmenter(find_each, told, size, in_windows, reason)
