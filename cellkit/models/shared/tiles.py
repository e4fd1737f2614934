"""Overlapping tiles of a large image: maps are blended, detections are pasted into the image, every cell once and whole.

The function that looks at one tile is an argument: nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.windows import Window
from cellkit.scores.iou import overlaps

MARGIN_PX = 64  # around what is left of a cell, when it is looked for whole
LARGEST_PX = 1536  # side of the square whose area a window may have
WHOLE_PX = 16  # sides of tiles are multiples of it, so that networks add nothing to them
SAME = 0.5  # share of its pixels that a cell has in common with one found before, to be the same cell


@dataclass(frozen=True)
class Boxes:
    """Boxes (N, 4) xyxy in px of the image, scores (N,), mask probabilities (N, m, m), log probabilities of classes (N, K).

    A mask reaches beyond its box by ``margin`` times the width and height, on each side.
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray
    votes: np.ndarray | None = None
    margin: float = 0.0

    @property
    def mask_boxes(self) -> np.ndarray:
        """What the masks cover, (N, 4) xyxy in px of the image."""
        return grown(self.boxes, self.margin)

    def __getitem__(self, chosen) -> Boxes:
        votes = None if self.votes is None else self.votes[chosen]
        return Boxes(self.boxes[chosen], self.scores[chosen], self.masks[chosen], votes, self.margin)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """Return the parts, of one detector, as one."""
        columns = zip(*((part.boxes, part.scores, part.masks) for part in parts), strict=True)
        votes = [part.votes for part in parts if part.votes is not None]
        together = (np.concatenate(column) for column in columns)
        return cls(*together, np.concatenate(votes) if votes else None, parts[0].margin)


def grown(boxes_xyxy: Any, share: float) -> Any:
    """Return boxes (N, 4), an array or a tensor, each side moved outwards by a share of the width or height.

    Examples
    --------
    >>> grown(np.array([[10.0, 20, 30, 60]]), 0.1).tolist()
    [[8.0, 16.0, 32.0, 64.0]]
    """
    return boxes_xyxy + share * (boxes_xyxy - boxes_xyxy[:, [2, 3, 0, 1]])


def tile_spans(size: int, tile_px: int, overlap_px: int) -> list[tuple[int, int]]:
    """Return where tiles begin and end: as few as cover `size` px with `overlap_px` between them, and no longer than that takes.

    Examples
    --------
    >>> tile_spans(90, 100, 20), tile_spans(101, 100, 20), tile_spans(200, 100, 20)
    ([(0, 90)], [(0, 64), (37, 101)], [(0, 80), (60, 140), (120, 200)])
    """
    if size <= tile_px:
        return [(0, size)]
    count = -(-(size - overlap_px) // (tile_px - overlap_px))
    least = -(-(size + (count - 1) * overlap_px) // count)
    side = min(tile_px, -(-least // WHOLE_PX) * WHOLE_PX)
    return [(start, start + side) for start in np.linspace(0, size - side, count).round().astype(int).tolist()]


def blend_tiles(
    forward: Callable[[np.ndarray], np.ndarray], planes: np.ndarray, tile_px: int, overlap_px: int
) -> np.ndarray:
    """Return maps of an image (C, H, W), in overlapping tiles where it is large, blended by distance to their edge.

    Parameters
    ----------
    forward : callable
        Planes (C, h, w) -> maps (K, h, w) float32.

    Returns
    -------
    (K, H, W) float32
    """
    height, width = planes.shape[1:]
    if max(height, width) <= tile_px + overlap_px:
        return forward(planes)
    out: np.ndarray | None = None
    weight = np.zeros((height, width), np.float32)
    for rows in tile_spans(height, tile_px, overlap_px):
        for columns in tile_spans(width, tile_px, overlap_px):
            window = slice(*rows), slice(*columns)
            found = forward(planes[:, *window])
            ramp = tile_weight(found.shape[1:], overlap_px)
            out = np.zeros((len(found), height, width), np.float32) if out is None else out
            out[:, *window] += found * ramp
            weight[window] += ramp
    return out / weight


def tile_weight(shape: tuple[int, int], overlap_px: int) -> np.ndarray:
    """Return how much each pixel of a tile counts where tiles overlap, (h, w) float32: by its distance to the edge."""
    return np.minimum.outer(*(_ramp(size, overlap_px) for size in shape))


def _ramp(size: int, overlap_px: int) -> np.ndarray:
    return np.minimum(np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)), overlap_px / 2).astype(np.float32)


def owned_tiles(
    shape: tuple[int, int], tile_px: int, overlap_px: int
) -> list[tuple[Window, tuple[float, float, float, float]]]:
    """Return overlapping tiles that cover an image, each with the part (top, left, bottom, right) that it alone owns."""
    rows, columns = (_owned_parts(size, tile_px, overlap_px) for size in shape)
    return [
        (Window(y0, x0, y1, x1), (top, left, bottom, right))
        for (y0, y1), top, bottom in rows
        for (x0, x1), left, right in columns
    ]


def _owned_parts(size: int, tile_px: int, overlap_px: int) -> list[tuple[tuple[int, int], float, float]]:
    spans = tile_spans(size, tile_px, overlap_px)
    middles = [(start + stop) / 2 for (start, _), (_, stop) in zip(spans[1:], spans[:-1], strict=True)]
    return list(zip(spans, [-np.inf, *middles], [*middles, np.inf], strict=True))


def join_tiles(
    detect: Callable[[Window], Boxes],
    pixels: Callable[[Boxes], Instances],
    tiles: Sequence[tuple[Window, tuple[float, float, float, float]]],
    shape: tuple[int, int],
) -> tuple[Boxes, int]:
    """Return the cells of an image from those of its tiles.

    A cell that two tiles see is taken from the one whose own part holds its centre. A cell that no tile sees whole, because
    it is longer than the overlap or lies on a corner, is looked for once more in a window around what the tiles saw of it.

    Parameters
    ----------
    detect : callable
        Window -> what is found in it.
    pixels : callable
        Boxes -> their masks in the image.
    tiles : sequence of (Window, (top, left, bottom, right))
        Each with the part it owns.
    shape : (int, int)
        Of the image.

    Returns
    -------
    found : Boxes
    pieces : int
        How many of them are cut after all, since the cell does not fit into a window of `LARGEST_PX`.
    """
    seen = [detect(window) for window, _ in tiles]
    found = Boxes.joined(seen)
    if len(tiles) == 1 or not len(found):
        return found, 0
    tile = np.repeat(np.arange(len(tiles)), [len(part) for part in seen])
    sides = [window.cuts(part.boxes, shape) for (window, _), part in zip(tiles, seen, strict=True)]
    cut = np.concatenate(sides).any(axis=1)
    own = _owned(found.boxes, np.array([part for _, part in tiles])[tile])
    objects = pixels(found)
    kept = _distinct(objects, tile, np.lexsort((-found.scores, ~own, cut)), cut)
    whole = kept & ~cut
    parts, pieces = [found[whole]], 0
    taken = objects[whole]
    for k in np.flatnonzero(kept & cut)[np.argsort(-found.scores[kept & cut], kind="stable")]:
        piece = objects[[k]]
        if _same(piece, taken)[0]:
            continue
        cells = _find_whole(detect, pixels, found.boxes[[k]], piece, shape)
        if cells is None:
            cells, pieces = found[[k]], pieces + 1
        masks = pixels(cells)
        new = ~_same(masks, taken)
        parts.append(cells[new])
        taken = Instances.concatenate([taken, masks[new]])
    return Boxes.joined(parts), pieces


def _owned(boxes: np.ndarray, parts: np.ndarray) -> np.ndarray:
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    top, left, bottom, right = parts.T
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)


def _distinct(objects: Instances, tile: np.ndarray, order: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Return which objects are no second sight, by another tile, of one that comes before them in `order`.

    Objects that are cut are left out only for one that is not: two pieces of a cell say nothing about its whole.
    """
    pairs = overlaps(objects, objects)
    other = tile[pairs.truth] != tile[pairs.found]
    same = other & ((pairs.shared_px > SAME * pairs.found_areas_px[pairs.found]) | (pairs.iou > SAME))
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    earlier = same & (rank[pairs.truth] < rank[pairs.found]) & ~cut[pairs.truth]
    before: dict[int, list[int]] = {}
    for first, second in zip(pairs.truth[earlier].tolist(), pairs.found[earlier].tolist(), strict=True):
        before.setdefault(second, []).append(first)
    kept = np.ones(len(objects), bool)
    for k in order.tolist():
        kept[k] = not any(kept[j] for j in before.get(k, ()))
    return kept


def _same(cells: Instances, taken: Instances) -> np.ndarray:
    """Return, (N,) bool, which cells are among those taken: most of their pixels are, or of both together."""
    pairs = overlaps(taken, cells)
    same = (pairs.shared_px > SAME * pairs.found_areas_px[pairs.found]) | (pairs.iou > SAME)
    among = np.zeros(len(cells), bool)
    among[pairs.found[same]] = True
    return among


def _find_whole(detect, pixels, box: np.ndarray, piece: Instances, shape: tuple[int, int]) -> Boxes | None:
    """Look at a window around a piece, wider until nothing that meets the piece is cut; None where that gets too large."""
    window = Window.around(box, MARGIN_PX, shape)
    while window.area_px <= LARGEST_PX**2:
        found = detect(window)
        pairs = overlaps(piece, pixels(found))
        least = np.minimum(pairs.truth_areas_px[pairs.truth], pairs.found_areas_px[pairs.found])
        met = found[np.sort(pairs.found[pairs.shared_px > SAME * least])]
        left, top, right, bottom = window.cuts(met.boxes, shape).any(axis=0)
        if not (left or top or right or bottom):
            return met
        wide, high = window.right - window.left, window.bottom - window.top
        corners = [
            window.left - left * wide,
            window.top - top * high,
            window.right + right * wide,
            window.bottom + bottom * high,
        ]
        window = Window.around(np.array([corners]), 0, shape)
    return None


def paste(masks: np.ndarray, boxes_xyxy: np.ndarray, shape: tuple[int, int], threshold: float) -> Instances:
    """Put mask probabilities into the image at their exact boxes (torchvision rounds them to whole pixels).

    Parameters
    ----------
    masks : (N, m, m) float32
    boxes_xyxy : (N, 4) float
        In px of the image; pixel (row, column) covers [column, column + 1) x [row, row + 1).
    threshold : float

    Returns
    -------
    Instances
        N objects; one that falls outside the image or below the threshold has no pixel.
    """
    import cv2

    parts, corners = [], []
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        left, top = int(np.floor(x0)), int(np.floor(y0))
        right, bottom = max(int(np.ceil(x1)), left + 1), max(int(np.ceil(y1)), top + 1)
        size = mask.shape[0]
        scale_x, scale_y = size / max(x1 - x0, 1e-6), size / max(y1 - y0, 1e-6)
        padded = np.pad(mask, 1)
        warp = np.array(  # pixel centre of the image -> sample of the padded mask
            [[scale_x, 0, (left + 0.5 - x0) * scale_x - 0.5 + 1], [0, scale_y, (top + 0.5 - y0) * scale_y - 0.5 + 1]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        parts.append(cv2.warpAffine(padded, warp, (right - left, bottom - top), flags=flags) > threshold)
        corners.append((left, top))
    return Instances.from_boxed_masks(parts, corners, shape)
