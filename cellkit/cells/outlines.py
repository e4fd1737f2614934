"""Outlines and boxes: from polygons and edges to pixels, and from pixels to polygons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.runs import cut_at_rows, merge_adjacent, merge_adjacent_of_each, ranges
from cellkit.errors import UserError, counted

FARTHEST_PX = 1e9
MOST_CROSSINGS = 50_000_000  # of one outline with the rows of its image: 400 MB
NUDGE_PX = 1e-8  # to the right, as ImageJ's PolygonFiller does: a centre exactly on the right edge is inside


# ---- pixels to outlines --------------------------------------------------------------------------------------------
def outlines(found: Instances, apart: bool = False) -> list[list[np.ndarray]]:
    """Return the closed outlines of every object, in one pass over all runs.

    Pieces that meet at a corner share an outline; holes have one each. Around pixels an outline turns clockwise (y down),
    around holes the other way, so that the even-odd rule and the winding rule agree.

    Parameters
    ----------
    apart : bool
        Pieces that meet at a corner only have outlines of their own, and holes that do share one.

    Returns
    -------
    list of lists of (P, 2) int64
        Corners x, y in px, the first not repeated; an object without pixels has no outline.

    Examples
    --------
    >>> ((square,),) = outlines(Instances.from_labels(np.array([[0, 1], [0, 1]])))
    >>> square.tolist()
    [[1, 0], [2, 0], [2, 2], [1, 2]]
    """
    owner, x, y, weight = _corners(found)
    across = _vertical_partners(owner, x, y, weight, 2 if not apart else -2)
    left = np.arange(0, len(x), 2)  # corners 2k and 2k + 1 are the ends of horizontal edge k
    to_right = weight[left] > 0  # its pixels lie below
    tail, head = np.where(to_right, left, left + 1), np.where(to_right, left + 1, left)
    order, bounds = _cycles(across[head] // 2)
    places = np.stack([tail[order], head[order]], 1).ravel()
    points = np.stack([x[places], y[places]], 1)
    rings: list[list[np.ndarray]] = [[] for _ in range(len(found))]
    owners = owner[tail[order[bounds[:-1]]]].tolist()
    cuts = (2 * bounds).tolist()
    for which, begin, end in zip(owners, cuts[:-1], cuts[1:], strict=True):
        rings[which].append(points[begin:end])
    return rings


def simple_polygons(found: Instances) -> list[list[list[np.ndarray]]]:
    """Return every object as polygons with holes that no geometry library objects to (OGC Simple Features, ISO 19125).

    No outline touches itself, a piece that meets another at a corner only is a polygon of its own, and a hole belongs to the
    piece around it. Filled by the even-odd rule they give the very pixels.

    Returns
    -------
    list of lists of lists of (P, 2) int64
        Of each object its polygons, of each polygon the outer outline and then its holes; corners as in `outlines`.

    Examples
    --------
    >>> (diagonal,) = simple_polygons(Instances.from_labels(np.array([[0, 1], [1, 0]])))
    >>> [[ring.tolist() for ring in polygon] for polygon in diagonal]
    [[[[1, 0], [2, 0], [2, 1], [1, 1]]], [[[0, 1], [1, 1], [1, 2], [0, 2]]]]
    """
    return [_nested([part for ring in rings for part in _parted(ring)]) for rings in outlines(found, apart=True)]


def _parted(ring: np.ndarray) -> list[np.ndarray]:
    """Cut an outline where it passes a corner twice."""
    corners = list(map(tuple, ring.tolist()))
    if len(set(corners)) == len(corners):
        return [ring]
    parts, way, place = [], [], {}
    for corner in corners:
        if corner in place:
            begin = place[corner]
            parts.append(np.array(way[begin:]))
            for one in way[begin:]:
                del place[one]
            del way[begin:]
        place[corner] = len(way)
        way.append(corner)
    return [*parts, np.array(way)]


def _nested(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Return outer outlines, each followed by its holes: those of the smallest outline around them."""
    outer = [[ring] for ring in rings if not is_hole(ring)]
    for hole in (ring for ring in rings if is_hole(ring)):
        around = outer if len(outer) == 1 else [polygon for polygon in outer if _is_around(polygon[0], hole)]
        min(around, key=lambda polygon: abs(_doubled_area(polygon[0]))).append(hole)
    return outer


def _is_around(ring: np.ndarray, hole: np.ndarray) -> bool:
    """Tell whether the pixel beside the first edge of a hole, which is no part of the hole, lies inside an outline."""
    (x0, y0), (x1, y1) = hole[0].tolist(), hole[1].tolist()
    dx, dy = np.sign([x1 - x0, y1 - y0]) / 2
    x, y = x0 + dx - dy, y0 + dy + dx  # pixels lie to the right of an outline, y down
    a, b = ring, np.roll(ring, -1, axis=0)
    across = (
        (a[:, 0] == b[:, 0]) & (a[:, 0] > x) & (np.minimum(a[:, 1], b[:, 1]) < y) & (y < np.maximum(a[:, 1], b[:, 1]))
    )
    return bool(np.count_nonzero(across) % 2)


def is_hole(ring: np.ndarray) -> bool:
    """Tell whether an outline of `outlines` goes around a hole: anticlockwise."""
    return bool(_doubled_area(ring) < 0)


def _doubled_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)


def _corners(found: Instances) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return owner, x, y and weight of every corner, sorted by owner, y, x.

    A run begins and ends a stretch of its row, seen from the line above it (+1, -1) and from the line below it (-1, +1).
    Where these do not cancel the outline turns; where two pixels meet at a corner only, the sum is 2 and there are two
    corners. To the right of an even corner lies a horizontal edge, its pixels below it (weight > 0) or above.
    """
    height, width = found.shape
    begin, end, run = cut_at_rows(found.starts, found.lengths, width)
    owner = found.owner_of_run[run]
    row = begin // max(width, 1)
    x0, x1 = begin - row * width, end - row * width
    key = lambda y, x: (owner * (height + 1) + y) * (width + 1) + x  # noqa: E731
    keys = np.concatenate([key(row, x0), key(row, x1), key(row + 1, x0), key(row + 1, x1)])
    weights = np.repeat(np.array([1, -1, -1, 1]), len(owner))
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    firsts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    sums = np.add.reduceat(weights, firsts) if len(keys) else weights
    kept = sums != 0
    weight = np.repeat(sums[kept], np.abs(sums[kept]))
    keys = np.repeat(keys[firsts[kept]], np.abs(sums[kept]))
    line, x = np.divmod(keys, width + 1)
    owner, y = np.divmod(line, height + 1)
    return owner, x, y, weight


def _vertical_partners(owner: np.ndarray, x: np.ndarray, y: np.ndarray, weight: np.ndarray, crossed: int) -> np.ndarray:
    """Return for each corner the other end of its vertical edge.

    Of the two corners where pixels meet diagonally, the left one takes the edge that makes both pixels one piece where
    `crossed` is 2, and two where it is -2.
    """
    place = np.arange(len(x))
    order = np.lexsort((np.where(weight == crossed, -place, place), y, x, owner))
    partner = np.empty(len(x), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cycles of a permutation one after the other, and where each begins."""
    after = following.tolist()
    seen = bytearray(len(after))
    order, bounds = [], []
    for first in range(len(after)):
        if seen[first]:
            continue
        bounds.append(len(order))
        place = first
        while not seen[place]:
            seen[place] = 1
            order.append(place)
            place = after[place]
    return np.array(order, np.int64), np.array([*bounds, len(order)], np.int64)


# ---- outlines to pixels --------------------------------------------------------------------------------------------
def fill(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of pixels whose centres lie inside closed outlines (even-odd rule), clipped to the image.

    The rounding is that of ImageJ's PolygonFiller: a centre exactly on a left or upper edge is inside, one on a right
    or lower edge outside, but for its nudge of 1e-8 px.

    Parameters
    ----------
    rings : sequence of (P, 2) float
        Corners x, y in px; the last is joined to the first.

    Returns
    -------
    starts, lengths : (R,) int64
        Over the row-major flattened image.

    Raises
    ------
    UserError
        A corner that is not finite or far away, or more crossings with rows than memory should be spent on.
    """
    row, column, _, _ = _crossings(rings, shape)
    starts, lengths = _between(np.sort(row * (shape[1] + 1) + column), shape[1])
    some = lengths > 0
    return merge_adjacent(starts[some], lengths[some])


def fill_each(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `fill` does of each outline by itself, in one pass over all.

    Returns
    -------
    starts, lengths, offsets
        Outline i fills the runs ``offsets[i]:offsets[i + 1]``.

    Raises
    ------
    UserError
        As `fill`.

    Examples
    --------
    >>> [part.tolist() for part in fill_each([[[0, 0], [2, 0], [2, 1], [0, 1]], [[1, 0], [3, 0], [3, 2], [1, 2]]], (2, 4))]
    [[0, 1, 5], [2, 2, 2], [0, 1, 3]]
    """
    height, width = shape
    row, column, _, ring = _crossings(rings, shape)
    starts, lengths = _between(np.sort((ring * height + row) * (width + 1) + column), width)
    some = lengths > 0
    owner, starts = np.divmod(starts[some], max(height * width, 1))
    offsets = np.r_[0, np.cumsum(np.bincount(owner, minlength=len(rings)))]
    return merge_adjacent_of_each(starts, lengths[some], offsets)


def _between(keys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs between every first and second crossing, from their sorted places in rows one column too wide."""
    begin, end = keys[0::2], keys[1::2]
    return begin - begin // (width + 1), end - begin


def cross_themselves(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Tell which closed outlines cross themselves so that it matters to some pixel: a figure of eight, a loop drawn twice.

    Around the centre of every pixel an outline must turn once, always the same way, or not at all.

    Parameters
    ----------
    rings : sequence of (P, 2) float
        As for `fill`.

    Returns
    -------
    (R,) bool

    Raises
    ------
    UserError
        As `fill`.

    Examples
    --------
    >>> square, eight = [[0, 0], [4, 0], [4, 4], [0, 4]], [[0, 0], [4, 4], [4, 0], [0, 4]]
    >>> cross_themselves([square, eight], (4, 4)).tolist()
    [False, True]
    """
    if not len(rings):
        return np.zeros(0, bool)
    height, width = shape
    row, column, turn, ring = _crossings(rings, shape)
    keys = (ring * height + row) * (width + 1) + column
    order = np.argsort(keys, kind="stable")
    keys, turn = keys[order], turn[order]
    last = np.flatnonzero(np.r_[keys[1:] != keys[:-1], True]) if len(keys) else np.zeros(0, np.int64)
    turns = np.cumsum(turn)[last]  # each row of an outline sums to 0, so that the next begins anew
    most, least = np.zeros(len(rings), np.int64), np.zeros(len(rings), np.int64)
    np.maximum.at(most, ring[order][last], turns)
    np.minimum.at(least, ring[order][last], turns)
    return most - least > 1


def _crossings(
    rings: Sequence[np.ndarray], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return where outlines cross the middle of the rows of an image: row, column from which pixels lie to the right of
    it, +1 down or -1 up, and which outline it is."""
    height, width = shape
    xa, ya, xb, yb = _edges(rings)
    ra, rb = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (ya, yb))
    first, count = np.minimum(ra, rb), np.abs(ra - rb)
    if count.sum() > MOST_CROSSINGS:
        raise UserError(f"its outline crosses {count.sum()} rows", "draw it with fewer corners")
    row = ranges(first, count)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (xb - xa) / (yb - ya)
    across = np.repeat(xa, count) + (row + 0.5 - np.repeat(ya, count)) * np.repeat(slope, count) + NUDGE_PX
    column = np.clip(np.floor(across + 0.5), 0, width).astype(np.int64)
    owner = np.repeat(np.arange(len(rings)), [len(np.asarray(ring).reshape(-1, 2)) for ring in rings])
    return row, column, np.repeat(np.sign(rb - ra), count), np.repeat(owner, count)


def _edges(rings: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return both ends of every edge, checked."""
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
    if not rings:
        return (np.zeros(0),) * 4
    a = np.concatenate(rings)
    if not np.all(np.abs(a) <= FARTHEST_PX):  # NaN is not <= either
        raise UserError("its outline has a point that is not finite or far away", "points are in px")
    b = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    return a[:, 0], a[:, 1], b[:, 0], b[:, 1]


# ---- polygons ------------------------------------------------------------------------------------------------------
def polygons(found: Instances) -> tuple[list[list[list[float]]], int, int]:
    """Return COCO polygons of every object, and what they lose.

    A polygon is an outer outline; COCO has no form for a hole, so holes are filled. Which pixels a polygon covers is a
    convention of the program that draws it: the loss is counted with pycocotools.

    Returns
    -------
    polygons : list of lists of [x1, y1, x2, y2, ...]
    holes : int
        Objects whose holes are filled.
    changed : int
        Objects of which pycocotools draws other pixels, those with holes included.
    """
    from pycocotools import mask as coco_mask

    height, width = found.shape
    drawn, written, holes, changed = found.to_coco_rle(), [], 0, 0
    for rings, rle in zip(outlines(found), drawn, strict=True):
        outer = [ring.ravel().astype(float).tolist() for ring in rings if not is_hole(ring)]
        holes += len(outer) < len(rings)
        again = coco_mask.merge(coco_mask.frPyObjects(outer, height, width))["counts"] if outer else b""
        changed += again.decode() != rle["counts"]
        written.append(outer)
    return written, holes, changed


# ---- boxes ---------------------------------------------------------------------------------------------------------
def refuse_boxes(instances: Iterable[Instances], what: str) -> None:
    """Refuse truth of which only boxes are known, where outlines are needed.

    Raises
    ------
    UserError
        Saying what cannot be done, why, and what can.
    """
    count = sum(found.boxes_only for found in instances)
    if count:
        raise UserError(
            f"{what} needs outlines, and {counted(count, 'image has', 'images have')} boxes only: "
            "even a perfect round cell fills 79% of its box",
            "score boxes with the conventions voc and coco; to learn or score outlines, label masks (label.use)",
        )


def pixel_boxes(edges: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """Turn edges (left, top, right, bottom; px from the image's corner) into whole pixels (column, row, width, height).

    Edges are rounded to the nearest pixel border; a box too thin for that gets the pixel of its middle.

    Raises
    ------
    UserError
        A box without extent, with a number that is not finite, or that leaves the image by half a pixel or more.

    Examples
    --------
    >>> pixel_boxes(np.array([[0, 0, 25.2, 40.8]]), (256, 256), "a.png")
    array([[ 0,  0, 25, 41]])
    """
    edges = np.asarray(edges, float).reshape(-1, 4)
    height, width = shape
    most = np.array([width, height, width, height])
    wrong = ~np.isfinite(edges).all(axis=1)
    wrong |= ~((edges > -0.5) & (edges < most + 0.5)).all(axis=1) | ~(edges[:, 2:] > edges[:, :2]).all(axis=1)
    if wrong.any():
        box = ", ".join(f"{value:g}" for value in edges[wrong][0])
        raise UserError(
            f"{where}: {int(wrong.sum())} of {len(edges)} boxes leave the image of {height} x {width} px or have no extent, "
            f"e.g. {box} (left, top, right, bottom edge)",
            "correct them, or leave them out",
        )
    corners = np.clip(np.floor(edges + 0.5), 0, most).astype(np.int64)
    middle = np.clip(np.floor((edges[:, :2] + edges[:, 2:]) / 2), 0, most[:2] - 1).astype(np.int64)
    size = corners[:, 2:] - corners[:, :2]
    return np.concatenate([np.where(size > 0, corners[:, :2], middle), np.maximum(size, 1)], axis=1)
