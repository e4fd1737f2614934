"""An image larger than the memory: its cells are found window by window, each whole and once.

Every window is seen with a halo. A cell belongs to the window that holds the centre of its box; one that the halo cuts is looked
for again in a larger one, and what no window holds is put together from its pieces. Cells are numbered by their first pixel, row
by row, so that the numbers do not depend on the windows. Finished windows are kept beside the result until it is whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cells.leftout import too_small
from cellkit.cells.resize import grid
from cellkit.cells.runs import cut_at_rows, merge_adjacent_of_each
from cellkit.cells.windows import Window, windows_of
from cellkit.files import atomic_path
from cellkit.models.shared.contract import Segmenter
from cellkit.models.shared.in_windows import InWindows, boxes_in, left_out_by, within
from cellkit.scores.iou import overlaps

WINDOW_PX, LEAST_WINDOW_PX = 4096, 512  # side of a window: the first, or half of it, and so on, that takes no more than
WINDOW_BYTES = 2_000_000_000
GROWTH = 4  # times the halo, at most, for a cell that it cuts
NEAR_PX = 8  # beyond its window a cell is kept too, in case its neighbour sees its centre elsewhere
SAME = 0.5  # share of the pixels of the smaller of two cells that they have in common, to be the same
CHUNK_PX = 1024  # of the label image
STRIP_PX = 2**26  # of the label image at once
UNSURE = "lie in clumps that no window holds whole: their outlines may differ from those of the whole image"
PIECED = "are longer than a window with what is seen around it: put together from pieces"


def window_side(segment: Segmenter, finder: InWindows, window_px: int | None, shape: tuple[int, int]) -> int:
    """Return the side of the windows (px): what was asked for, else the largest that takes little memory."""
    if window_px is not None:
        return window_px
    side = WINDOW_PX
    while side > LEAST_WINDOW_PX:
        seen = [min(side + 2 * GROWTH * finder.halo_px, length) for length in shape]
        if segment.bytes_for((seen[0], seen[1])) <= WINDOW_BYTES:
            break
        side //= 2
    return side


def cells_of_window(finder: InWindows, core: Window, shape: tuple[int, int]) -> tuple[dict[str, Any], Counter[str]]:
    """Find the cells of one window.

    Returns
    -------
    found : dict
        Runs of the cells in the whole image (starts, lengths, offsets, scores, class_ids), and of each cell, (N,) bool: `own`,
        its centre is in the window; `piece`, it is cut even by the largest halo. `seen` are the window's sides with its halo.
    left_out : Counter
        The window's own cells that are too small, and those that are not surely what the whole image would give.
    """
    halo = finder.halo_px
    while True:
        seen = core.grown(halo, shape)
        cells, whole = finder.find(seen)
        boxes = boxes_in(cells, seen)
        own = within(core, boxes)
        if (whole | ~own).all() or halo >= GROWTH * finder.halo_px:
            break
        halo *= 2
    near = within(core.grown(NEAR_PX, shape), boxes)
    cut = seen.cuts(boxes, shape).any(axis=1)
    small = cells.areas_px < finder.min_area_px
    left_out = Counter({too_small(finder.min_area_px): int((own & small & ~cut).sum()),
                        UNSURE: int((own & ~whole & ~cut & ~small).sum())}) + left_out_by(finder)  # fmt: skip
    kept = (own & (~small | cut)) | (near & whole & ~small)
    placed = placed_in(cells[kept], seen, shape)
    found = {name: getattr(placed, name) for name in ("starts", "lengths", "offsets", "scores", "class_ids")}
    sides = np.array([seen.top, seen.left, seen.bottom, seen.right])
    return found | {"own": own[kept], "piece": (own & cut & ~whole)[kept], "seen": sides}, +left_out


def placed_in(cells: Instances, window: Window, shape: tuple[int, int]) -> Instances:
    """Return cells of a window as cells of the whole image of `shape`.

    Examples
    --------
    >>> cells = Instances.from_labels(np.array([[1, 1], [1, 0]]))
    >>> placed_in(cells, Window(1, 3, 3, 5), (3, 5)).paint().tolist()
    [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]
    """
    starts, ends, run = cut_at_rows(cells.starts, cells.lengths, window.shape[1])
    owner = cells.owner_of_run[run]
    rows, columns = np.divmod(starts, max(window.shape[1], 1))
    offsets = np.searchsorted(owner, np.arange(len(cells) + 1))
    begins = (rows + window.top) * shape[1] + columns + window.left
    runs = merge_adjacent_of_each(begins, ends - starts, offsets)
    return Instances.from_runs(shape, *runs, cells.class_ids, cells.scores)


# ---- the windows' cells joined -------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Numbered:
    """The cells of an image from those of its windows.

    Attributes
    ----------
    numbers : list of (n,) int64, for each window
        The number of each of its cells in the label image, 0 for one that another window has.
    boxes : (N, 4) int64
        Left, top, right, lower side (not included) of the cells 1 to N.
    scores : (N,) float64
    class_ids : (N,) int64
    pieced : int
        How many were put together from pieces.
    """

    numbers: list[np.ndarray]
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    pieced: int


def joined_cells(windows: Sequence[Window], parts: Sequence[Path], shape: tuple[int, int]) -> Numbered:
    """Number the cells of an image, each once, by its first pixel; only those near a seam are in memory together."""
    window, first, boxes, own, piece, scores, classes, areas, near = [], [], [], [], [], [], [], [], []
    seam: list[Instances] = []
    seen: list[Window] = []
    for k, (core, path) in enumerate(zip(windows, parts, strict=True)):
        cells, flags = read_part(path, shape)
        seen.append(Window(*flags["seen"].tolist()))
        x, y, width, height = cells.boxes_xywh.T
        box = np.stack([x, y, x + width, y + height], axis=1)
        inner = (y >= core.top + NEAR_PX) & (y + height <= core.bottom - NEAR_PX)
        inner &= (x >= core.left + NEAR_PX) & (x + width <= core.right - NEAR_PX)
        at_seam = ~inner | ~flags["own"] | flags["piece"]
        seam.append(cells[at_seam])
        for column, values in zip(
            (window, first, boxes, own, piece, scores, classes, areas, near),
            (np.full(len(cells), k), cells.starts[cells.offsets[:-1]], box, flags["own"], flags["piece"], cells.scores,
             cells.class_ids, cells.areas_px, at_seam), strict=True):  # fmt: skip
            column.append(values)
    window, first, boxes, own, piece, scores, classes, areas, near = (
        np.concatenate(column) for column in (window, first, boxes, own, piece, scores, classes, areas, near)
    )
    group = np.arange(len(window))
    if near.any():
        _group(group, Instances.concatenate(seam), np.flatnonzero(near), window, own, piece, seen)
    kept = group >= 0
    roots, member = np.unique(group[kept], return_inverse=True)
    weight = np.bincount(member, areas[kept])
    begin = np.full(len(roots), np.iinfo(np.int64).max)
    np.minimum.at(begin, member, first[kept])
    rank = np.empty(len(roots), np.int64)
    rank[np.lexsort((roots, begin))] = np.arange(1, len(roots) + 1)
    number = np.zeros(len(window), np.int64)
    number[kept] = rank[member]
    hull = np.empty((len(roots), 4), np.int64)
    for side, (take, start) in enumerate(((np.minimum, np.iinfo(np.int64).max),) * 2 + ((np.maximum, -1),) * 2):
        values = np.full(len(roots), start)
        take.at(values, member, boxes[kept, side])
        hull[rank - 1, side] = values
    score, class_ids = np.empty(len(roots)), np.empty(len(roots), np.int64)
    weighted = np.bincount(member, (scores * areas)[kept]) / np.maximum(weight, 1)
    score[rank - 1] = np.where(np.bincount(member) > 1, weighted, scores[roots]).round(6)  # as a COCO file has it
    class_ids[rank - 1] = classes[roots]
    bounds = np.cumsum(np.bincount(window, minlength=len(windows)))[:-1]
    pieced = int((np.bincount(member) > 1).sum())
    return Numbered(np.split(number, bounds), hull, score, class_ids, pieced)


def read_part(path: Path, shape: tuple[int, int]) -> tuple[Instances, dict[str, np.ndarray]]:
    """Read what was kept of a window: its cells in the whole image; which are `own`, which a `piece`; and what was `seen`."""
    with np.load(path, allow_pickle=False) as kept:
        runs = [kept[name] for name in ("starts", "lengths", "offsets", "class_ids", "scores")]
        return Instances.from_runs(shape, *runs), {name: kept[name] for name in ("own", "piece", "seen")}


def write_part(path: Path, found: dict[str, Any], left_out: Counter[str]) -> None:
    """Keep what was found in a window, and what was left out."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found, why=np.array(list(left_out), str), cells=np.array(list(left_out.values()), np.int64))


def left_out_of(paths: Sequence[Path]) -> Counter[str]:
    """Return what was left out in all windows, cells by reason."""
    total: Counter[str] = Counter()
    for path in paths:
        with np.load(path, allow_pickle=False) as kept:
            total.update(dict(zip(kept["why"].tolist(), kept["cells"].tolist(), strict=True)))
    return total


def _group(
    group: np.ndarray,
    cells: Instances,
    places: np.ndarray,
    window: np.ndarray,
    own: np.ndarray,
    piece: np.ndarray,
    seen: Sequence[Window],
) -> None:
    """Note the cell that each is, by its first piece, and -1 for one that another window has too; in place.

    `cells` are those at `places` of all.
    """
    pairs = overlaps(cells, cells)
    a, b = places[pairs.truth], places[pairs.found]
    other = window[a] != window[b]
    for k in np.flatnonzero(other & piece[a] & piece[b] & (a < b)).tolist():
        both = seen[window[a[k]]].meets(seen[window[b[k]]])
        least_px = min(_px_in(cells[[one]], both) for one in (pairs.truth[k], pairs.found[k]))
        if pairs.shared_px[k] > SAME * least_px:  # what both windows see of them is alike: they are one cell
            low, high = sorted((group[a[k]], group[b[k]]))
            group[group == high] = low
    share = pairs.shared_px / np.minimum(pairs.truth_areas_px[pairs.truth], pairs.found_areas_px[pairs.found])
    same = other & (share > SAME) & (group[a] != group[b])
    _drop_second(group, a[same], b[same], own, piece, window)


def _px_in(cell: Instances, window: Window) -> int:
    """Return how many pixels of one cell of the whole image lie in a window."""
    starts, ends, _ = cut_at_rows(cell.starts, cell.lengths, cell.shape[1])
    rows = starts // cell.shape[1]
    left, right = starts - rows * cell.shape[1], ends - rows * cell.shape[1]
    inside = (window.top <= rows) & (rows < window.bottom)
    return int((inside * np.clip(np.minimum(right, window.right) - np.maximum(left, window.left), 0, None)).sum())


def _drop_second(
    group: np.ndarray, a: np.ndarray, b: np.ndarray, own: np.ndarray, piece: np.ndarray, window: np.ndarray
) -> None:
    """Keep the first of those that are the same: a window's own before its neighbours', whole before pieces; in place."""
    order = np.lexsort((np.arange(len(group)), window, piece, ~own))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group))
    before: dict[int, list[int]] = {}
    for one, two in zip(a.tolist(), b.tolist(), strict=True):
        if rank[one] < rank[two]:
            before.setdefault(two, []).append(one)
    for two in sorted(before, key=lambda k: rank[k]):
        if any(group[one] >= 0 for one in before[two]):
            group[two] = -1


# ---- the label image -----------------------------------------------------------------------------------------------
def paint_labels(path: Path, parts: Sequence[Path], cells: Numbered, shape: tuple[int, int]) -> Any:
    """Write the label image (H, W) int32 as a Zarr array, window by window; of cells that meet the lower number stays."""
    import zarr

    labels = zarr.create_array(
        store=str(path), shape=shape, chunks=tuple(min(CHUNK_PX, side) for side in shape), dtype=np.int32, fill_value=0,
        overwrite=True,
    )  # fmt: skip
    for part, numbers in zip(parts, cells.numbers, strict=True):
        found, _ = read_part(part, shape)
        found, numbers = found[numbers > 0], numbers[numbers > 0]
        if not len(found):
            continue
        x, y, width, height = found.boxes_xywh.T
        hull = Window(int(y.min()), int(x.min()), int((y + height).max()), int((x + width).max()))
        painted = _cut_out(found, hull).with_scores(1 / numbers).paint(numbers)
        there = labels[hull.slices]
        labels[hull.slices] = np.where((painted > 0) & ((there == 0) | (painted < there)), painted, there)
    return labels


def _cut_out(cells: Instances, window: Window) -> Instances:
    """Return cells of the whole image, which lie in a window, as cells of the window."""
    starts, ends, run = cut_at_rows(cells.starts, cells.lengths, cells.shape[1])
    rows, columns = np.divmod(starts, cells.shape[1])
    owner = cells.owner_of_run[run]
    begins = (rows - window.top) * window.shape[1] + columns - window.left
    runs = merge_adjacent_of_each(begins, ends - starts, np.searchsorted(owner, np.arange(len(cells) + 1)))
    return Instances.from_runs(window.shape, *runs, cells.class_ids, cells.scores)


def fitted(path: Path, labels: Any, cells: Numbered, shape: tuple[int, int]) -> tuple[Any, Numbered]:
    """Bring the label image of a resized picture back to the pixels of its file, as `cellkit.cells.resize.fit_to`.

    Returns
    -------
    labels : zarr.Array, (H, W) int32
        Numbered by the first pixel in the file; cells left without a pixel are gone.
    cells : Numbered
        Its boxes, scores and classes; without `numbers`.
    """
    import zarr

    rows, columns = (grid(old, new) for old, new in zip(labels.shape, shape, strict=True))
    count = len(cells.boxes)
    first = np.full(count + 1, np.iinfo(np.int64).max)
    boxes = np.array([[np.iinfo(np.int64).max] * 2 + [-1] * 2] * (count + 1), np.int64)
    for window in windows_of(shape, CHUNK_PX):
        found = Instances.from_labels(part := _nearest(labels, rows[window.slices[0]], columns[window.slices[1]]))
        numbers = np.unique(part[part > 0])
        own = boxes_in(found, window)
        begin = found.starts[found.offsets[:-1]]
        places = (begin // window.shape[1] + window.top) * shape[1] + begin % window.shape[1] + window.left
        first[numbers] = np.minimum(first[numbers], places)
        boxes[numbers, :2] = np.minimum(boxes[numbers, :2], own[:, :2])
        boxes[numbers, 2:] = np.maximum(boxes[numbers, 2:], own[:, 2:])
    kept = np.argsort(first, kind="stable")[: int((boxes[:, 2] >= 0).sum())]
    number = np.zeros(count + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    chunks = tuple(min(CHUNK_PX, side) for side in shape)
    out = zarr.create_array(store=str(path), shape=shape, chunks=chunks, dtype=np.int32, fill_value=0, overwrite=True)
    for window in windows_of(shape, CHUNK_PX):
        part = _nearest(labels, rows[window.slices[0]], columns[window.slices[1]])
        if part.any():
            out[window.slices] = number[part]
    return out, Numbered([], boxes[kept], cells.scores[kept - 1], cells.class_ids[kept - 1], cells.pieced)


def _nearest(labels: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    part = np.asarray(labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return part[np.ix_(rows - rows[0], columns - columns[0])]


def strips_of(labels: Any, boxes: np.ndarray) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Yield strips of a label image, each with the numbers of the cells that begin in it and lie in it whole.

    Parameters
    ----------
    labels : (H, W) int array of Zarr
    boxes : (N, 4) int
        Left, top, right and lower side of the cells 1 to N, which are in the order of their first row.

    Yields
    ------
    window : Window
        Of full width, with a row above and below its cells.
    numbers : (n,) int64
        Rising, and over all strips 1 to N, each once.
    values : (h, W) int32
        The strip of the label image.
    """
    height, width = labels.shape
    step = max(64, min(CHUNK_PX, STRIP_PX // max(width, 1)))
    ends = np.searchsorted(boxes[:, 1], np.arange(step, height + step, step))
    begin = 0
    for end in ends.tolist():
        if end > begin:
            chosen = boxes[begin:end]
            window = Window(max(int(chosen[0, 1]) - 1, 0), 0, min(int(chosen[:, 3].max()) + 1, height), width)
            yield window, np.arange(begin + 1, end + 1), np.asarray(labels[window.slices])
        begin = end


def windows_with_parts(folder: Path, shape: tuple[int, int], side_px: int) -> list[tuple[Window, Path]]:
    """Return the windows of an image, and where what is found in each is kept."""
    return [(core, folder / f"{side_px}_{core.top}_{core.left}.npz") for core in windows_of(shape, side_px)]
